"""What it is worth that somebody says what a photograph shows: python docs/measured_names.py --root VOCdevkit --tags image_labels.json --keep FOLDER --run network=RUN

All 222 of `val`, every pixel. First the frozen line (EfficientNet-Lite2, its features of measured_outlines.py in FOLDER), then the segmentation network of each RUN, under its name, with the scales and the CRF of its evaluation, and without the CRF; each told nothing, told by its own localiser where masks came from one, the network also by the line's layer of tags, by the line pixel by pixel as well (`engine.named`), and told the tags, alone and beside the line's pixels.
Nothing is chosen. Numbers, and the differences to being told nothing image by image, go to runs/measured/names.json, where rows of other names are left as they are.
"""
import argparse, json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from measured import HERE, beside_seeds, ids_of, miou_of
from measured_outlines import Line
from wsss_nb.base.core import UserError
from wsss_nb.cams import own_scores
from wsss_nb.data.catalog import open_data
from wsss_nb.engine.evaluate import areas_of
from wsss_nb.engine.in_tiles import likeliest, restricted
from wsss_nb.engine.methods import load_localiser, load_segmenter
from wsss_nb.engine.named import opinion
from wsss_nb.engine.record import Run, localiser_behind
from wsss_nb.metrics import Confusion
from wsss_nb.nets.linear import of_cells
from wsss_nb.nets.segmenter import agreed, named


def ways_of(p, data, i, said):
    "What is told -> (ids, probabilities) of photograph i; `said`: by whom -> scores [K] of the tags, of the pixels or None"
    ways, p, told = {'nothing': restricted(p), 'the tags': restricted(p, data.records[i].tags)}, torch.from_numpy(p)[None], data.records[i].tags
    for who, (tags, pixels) in said.items():
        both = p if pixels is None else agreed(p, pixels.softmax(1))
        ways[who] = restricted(named(both.log(), tags[None].float()).softmax(1)[0].numpy())
        if pixels is not None: ways[f'the tags, and {who}'] = restricted(both[0].numpy(), told)
    return ways


def counted(found, name, data, i, mask):
    "Add what a mask shares with the truth to found[name]"
    c = Confusion(len(data.classes) + 1)
    c.update(mask, data.mask(i))
    found.setdefault(name, {})[data.names[i]] = areas_of(c)


def rows_of(found, data):
    "A row for each way of each method"
    ids, out = ids_of(data), []
    for (method, told), areas in found.items():
        row = dict(method=method, told=told, miou=miou_of(areas, ids), images=len(areas))
        if told != 'nothing': row |= beside_seeds(areas, found[method, 'nothing'], ids)
        out.append(row)
    return out


def network_rows(found, name, run, val, line):
    "Count the masks of a run's network, told in each way"
    test, net = run.recipe['evaluate'], load_segmenter(run.stage('segment'))[0].eval()
    try: localiser = load_localiser(localiser_behind(run.stage('masks')))[0].eval()
    except UserError: localiser = None  # its masks were given
    for i in range(len(val)):
        image = val.image(i)
        with torch.no_grad():
            q = net.predict([image], test['scales'])[0].numpy()
            tags, pixels = opinion(line, [image])
            who = {'the frozen layer of tags': (tags[0], None), 'the frozen line': (tags[0], pixels)}
            if localiser: who['its localiser'] = own_scores(localiser, [image])[0], None
        for told, (keep, w) in ways_of(q, val, i, who).items():
            for crf in ('', test['crf']): counted(found, (f'{name}, CRF' if crf else name, told), val, i, likeliest(image, keep, w, crf))
        if i % 20 == 0: print(name, i, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    for name in ('root', 'tags', 'keep'): p.add_argument(f'--{name}', default='')
    p.add_argument('--run', action='append', default=[], help='name=folder of a run with a network')
    p.add_argument('--images', type=int, default=0, help='only the first ones')
    a = p.parse_args()
    torch.set_num_threads(1)
    data, val = (open_data('voc12', s, root=a.root, tags=a.tags) for s in ('train_aug', 'val'))
    if a.images: val = val.subset(range(a.images))
    line = Line(data, data.labels, 'timm:tf_efficientnet_lite2', a.keep)
    line.learn()
    cells, found, said = line.others(val, a.keep), {}, {}
    for i in range(len(val)):
        with torch.no_grad():
            z = cells(i)
            said[i] = line.net.tags(z.mean((1, 2)))
            scores = F.interpolate(of_cells(line.net.lessons[-1], z[None]), val.size(i), mode='bilinear', align_corners=False)
        for told, (keep, q) in ways_of(scores.softmax(1)[0].numpy(), val, i, {'its layer of tags': (said[i], None)}).items():
            counted(found, ('frozen line', told), val, i, likeliest(None, keep, q))
    for name, _, folder in (r.partition('=') for r in a.run): network_rows(found, name, Run(folder), val, line.net)
    rows = rows_of(found, val)
    for r in rows: print(r['method'], '|', r['told'], '|', round(r['miou'], 4), {k: r[k] for k in ('gain', 'low', 'high', 'gained') if k in r}, flush=True)
    file = Path(HERE) / 'names.json'
    kept = [r for r in (json.loads(file.read_text()) if file.exists() else {}).get('rows', []) if r['method'] not in {m['method'] for m in rows}]
    about = dict(what='names', data='voc12, six animal classes', versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread', rows=kept + rows)
    file.write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
