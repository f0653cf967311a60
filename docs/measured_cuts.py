"""Score maps cut where superpixels agree: python docs/measured_cuts.py --root VOCdevkit --tags image_labels.json --runs RUNS icd_photos.bottom-up icd_photos.top-down icd_photos.CAM
python docs/measured_cuts.py --to ecsnet_cuts --root VOCdevkit --tags image_labels.json --runs RUNS CAM=ecsnet_baseline erasing=ecsnet_erasing

Of the score maps of each run, which may be given a name, the threshold is chosen at which the masks of `val`, told the tags, agree best with the regions of the photographs (results/agreement); no mask of the truth is asked. Beside it the run's own cut and the best, an oracle.
What the masks at the chosen cuts gain over those of the first run, also at its chosen cut, is counted image by image.
Numbers go to runs/measured/icd_cuts.json, or to another file, where rows of other names are left as they are.
"""
import argparse, json
from pathlib import Path

import numpy as np
import torch

from measured import HERE, beside_seeds, ids_of
from wsss_nb.base.core import Progress
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import load_maps
from wsss_nb.engine.evaluate import areas_of
from wsss_nb.engine.record import Run, stage_record
from wsss_nb.metrics import Confusion, iou_of, mean_of, threshold_sweep
from wsss_nb.refine.superpixels import segments
from wsss_nb.results.agreement import agreeing_threshold

THRESHOLDS = np.arange(.05, .96, .05).round(2)


def own_cut(made):
    "Where a run cuts its maps: at its threshold, ICD at 0, which lies at .5"
    return .5 if made['results']['own_background'] else made['parameters']['threshold']


def areas_at(threshold, maps, data):
    "Image -> what the mask at a threshold shares with the truth"
    out = {}
    for i, n in enumerate(data.names):
        keys, scores = maps(i)
        c = Confusion(len(data.classes) + 1)
        c.update(np.where(scores.max(0, initial=0) > threshold, np.append(keys, 0)[np.argmax(scores, 0) if len(keys) else 0], 0), data.mask(i))
        out[n] = areas_of(c)
    return out


def measured(row, run, data, regions):
    "(what the rule chooses of a run's maps, with the mIoU of every threshold; the areas of its choice)"
    made = stage_record(run.stage('masks'))
    folder, own = run.folder.parent / 'stages' / made['results']['maps']['val'], own_cut(made)
    def maps(i):
        m = load_maps(folder / f'{data.names[i]}.npz')
        return m.keys[(k := (m.keys > 0) & (m.keys < 255))], m.maps[k].astype(np.float32)
    chosen = agreeing_threshold(((*maps(i), regions[i]) for i in range(len(data))), THRESHOLDS)
    at = [*dict.fromkeys((*THRESHOLDS.tolist(), own))]
    sweep = threshold_sweep([(*maps(i), data.mask(i)) for i in range(len(data))], at, len(data.classes) + 1)
    miou = {float(t): float(mean_of(iou_of(m, np.zeros(len(m)))[ids_of(data)])) for t, m in zip(sweep.thresholds, sweep.matrices)}
    of_own, best = miou[own] if own in THRESHOLDS else miou.pop(own), max(miou, key=miou.get)
    found = dict(chosen=chosen.best, chosen_miou=miou[chosen.best], own=of_own, best=best, best_miou=miou[best])
    areas = areas_at(chosen.best, maps, data)
    return dict(row=row, **found, thresholds=[*miou], miou=[*miou.values()], agreement=[chosen.scores[t] for t in miou]), areas


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('run', nargs='+', help='RUN or NAME=RUN')
    p.add_argument('--to', default='icd_cuts')
    for name in ('root', 'tags', 'runs'): p.add_argument(f'--{name}', default='')
    a = p.parse_args()
    torch.set_num_threads(1)
    data = open_data('voc12', 'val', root=a.root, tags=a.tags)
    regions = [segments(data.image(i)) for i in Progress(range(len(data)), 'regions, image')]
    rows, first, file = [], None, HERE / f'{a.to}.json'
    for r in a.run:
        name, _, place = r.rpartition('=')
        run = Run.named(place, a.runs)
        row, areas = measured(name or run.folder.name.partition('.')[2], run, data, regions)
        first = first or areas
        rows.append(row if first is areas else {**row, 'beside': beside_seeds(areas, first, ids_of(data))})
    kept = [r for r in (json.loads(file.read_text()) if file.exists() else {}).get('rows', []) if r['row'] not in {m['row'] for m in rows}]
    about = dict(what=a.to, data='voc12, six animal classes', images=len(data), versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread')
    file.write_text(json.dumps(about, indent=1)[:-2] + ',\n "rows": [\n' + ',\n'.join(f'  {json.dumps(r)}' for r in kept + rows) + '\n ]\n}\n', encoding='utf-8')
    for r in rows: print({k: v for k, v in r.items() if not isinstance(v, list)})


if __name__ == '__main__': main()
