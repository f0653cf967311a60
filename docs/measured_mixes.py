"""The frozen line's mix of tags and outlines beyond the curve of photographs: python docs/measured_mixes.py small --root VOCdevkit --tags image_labels.json --keep FOLDER

small: 30 photographs of `train_aug`, five of each of six classes, as somebody's own folder: masks of all from their tags, then twelve of them outlined, the most doubtful or any; the others are counted. FOLDER may be that of docs/measured_outlines.py net, whose features are read.
drawings: EfficientNet-Lite0 at side 128 and stride 8, one lesson of 12,000 cells (6,000 of the outlines) on 160 drawings of the embedded set, 40 of `val` are counted.
No CRF. What is found goes to FOLDER/<what>.json, one number after the other; a stopped run goes on.
"""
import argparse, json
from pathlib import Path

import numpy as np
import torch

from measured_outlines import ALONE, SIX, Line, drawing
from wsss_nb.data.catalog import open_data
from wsss_nb.data.demo import demo_data
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.data.views import as_tensor
from wsss_nb.metrics import Confusion
from wsss_nb.results.doubt import doubt


def counted(pairs, classes, ids):
    "mIoU over ids of (mask found, true mask)"
    c = Confusion(classes)
    for found, truth in pairs: c.update(found.astype(np.uint8), truth)
    return round(c.miou(ids), 4)


def small(a, found, note):
    "Key -> mIoU of the photographs that nobody outlined"
    every = open_data('voc12', 'train_aug', root=a.root, tags=a.tags)
    six = [every.classes.index(c) for c in SIX]
    for draw in range(a.draws):
        if all(f'{what} {how} {draw}' in found for what in ('tags', 'both', 'alone') for how in ('doubtful', 'random')): continue
        data = every.subset(drawing(every, 30, draw))
        shown = [k for k in range(len(every.classes)) if data.labels[:, k].any()]
        number = np.full(256, 255, np.uint8)
        number[[0, *(k + 1 for k in shown)]] = range(len(shown) + 1)
        truth, ids = [number[data.mask(i)] for i in range(30)], [0, *(shown.index(k) + 1 for k in six)]
        line = Line(data, data.labels[:, shown], 'timm:tf_efficientnet_lite2', a.keep, cells=a.cells)
        masks = lambda: [line.maps(truth[i].shape, i).argmax(0).numpy() for i in range(30)]
        line.learn(seed=draw)
        first, keys = masks(), lambda i: np.array([0, *(line.labels[i].nonzero()[:, 0] + 1).tolist()])
        doubts = [doubt(first[i], ScoreMaps(keys(i), line.maps(truth[i].shape, i)[keys(i)].numpy())) for i in range(30)]
        for how, order in (('doubtful', np.argsort(doubts)[::-1]), ('random', np.random.default_rng([12, draw]).permutation(30))):
            outlined, others = [int(i) for i in order[:12]], [int(i) for i in order[12:]]
            score = lambda made: counted([(made[i], truth[i]) for i in others], len(shown) + 1, ids)
            note(f'tags {how} {draw}', lambda: score(first))
            for what, mix in (('both', None), ('alone', ALONE)):
                line.learn(lambda i: truth[i], outlined, mix, draw)
                note(f'{what} {how} {draw}', lambda: score(masks()), str(line.net.mix))


def drawings_outlined(data, draw):
    "How many are outlined -> which of the drawings, as many of each class"
    r, out = np.random.default_rng([8, draw]), {}
    for n in (0, 6, 12, 24, 60):
        out[n] = []
        for k in range(n): out[n].append(int(r.choice([i for i in range(len(data)) if data.labels[i, k % 8] and i not in out[n]])))
    return out


def line_on_drawings(data, keep): return Line(data, data.labels, 'timm:tf_efficientnet_lite0', f'{keep}/drawings', side=128, lessons=1, cells=12000)


def drawings(a, found, note):
    "Key -> [mIoU told the tags, told nothing] of drawings"
    data, val = demo_data('train', 160), demo_data('val', 40)
    line, ids = line_on_drawings(data, a.keep), range(len(data.classes) + 1)
    with torch.no_grad(): cells = [line.net.standard(line.net.features(as_tensor(line.net.shown([val.image(i)])[0])[None])[0]) for i in range(len(val))]

    def score():
        of = lambda labels: counted([(line.maps(val.mask(i).shape, cells=cells[i], labels=labels[i]).argmax(0).numpy(), val.mask(i)) for i in range(len(val))], len(ids), ids)
        return [of(val.labels), of(torch.ones_like(val.labels))]

    for draw in range(a.draws):
        for n, outlined in drawings_outlined(data, draw).items():
            for what, mix in (('both', None), ('alone', ALONE)):
                if (n or what == 'both') and f'{what} {n} {draw}' not in found:
                    line.learn(data.mask, outlined, mix, draw)
                    note(f'{what} {n} {draw}', score, str(line.net.mix))


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('what', choices=('small', 'drawings'))
    for name in ('root', 'tags', 'keep'): p.add_argument(f'--{name}', default='')
    p.add_argument('--draws', type=int, default=3)
    p.add_argument('--cells', type=int, default=12000, help='of a lesson, on photographs')
    a = p.parse_args()
    torch.set_num_threads(1)
    file = Path(a.keep) / f'{a.what}.json'
    found = json.loads(file.read_text()) if file.exists() else {}

    def note(key, make, more=''):
        found[key] = make()
        file.write_text(json.dumps(found))
        print(key, found[key], more, flush=True)

    (small if a.what == 'small' else drawings)(a, found, note)


if __name__ == '__main__': main()
