"""ICD's maps cut where superpixels agree: python docs/measured_cuts.py --root VOCdevkit --tags image_labels.json --runs RUNS icd_photos.bottom-up icd_photos.top-down icd_photos.CAM

Of the score maps of each run the threshold is chosen at which the masks of `val`, told the tags, agree best with the regions of the photographs (results/agreement); no mask of the truth is asked. Beside it the run's own cut (0, or .25 of a CAM) and the best, an oracle.
Numbers go to runs/measured/icd_cuts.json.
"""
import argparse, json
from pathlib import Path

import numpy as np
import torch

from measured import HERE, ids_of
from wsss_nb.base.core import Progress
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import load_maps
from wsss_nb.engine.record import Run, stage_record
from wsss_nb.metrics import iou_of, mean_of, threshold_sweep
from wsss_nb.refine.superpixels import segments
from wsss_nb.results.agreement import agreeing_threshold

THRESHOLDS = np.arange(.05, .96, .05).round(2)
OWN = dict(CAM=.25)  # others: 0, which lies at .5


def measured(run, data, regions):
    "What the rule chooses of a run's maps, with the mIoU of every threshold"
    folder = run.folder.parent / 'stages' / stage_record(run.stage('masks'))['results']['maps']['val']
    def maps(i):
        m = load_maps(folder / f'{data.names[i]}.npz')
        return m.keys[(k := (m.keys > 0) & (m.keys < 255))], m.maps[k].astype(np.float32)
    chosen = agreeing_threshold(((*maps(i), regions[i]) for i in range(len(data))), THRESHOLDS)
    sweep = threshold_sweep([(*maps(i), data.mask(i)) for i in range(len(data))], list(THRESHOLDS), len(data.classes) + 1)
    miou = {float(t): float(mean_of(iou_of(m, np.zeros(len(m)))[ids_of(data)])) for t, m in zip(THRESHOLDS, sweep.matrices)}
    row, best = run.folder.name.partition('.')[2], max(miou, key=miou.get)
    found = dict(chosen=chosen.best, chosen_miou=miou[chosen.best], own=miou[OWN.get(row, .5)], best=best, best_miou=miou[best])
    return dict(row=row, **found, thresholds=[*miou], miou=[*miou.values()], agreement=[chosen.scores[t] for t in miou])


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('run', nargs='+')
    for name in ('root', 'tags', 'runs'): p.add_argument(f'--{name}', default='')
    a = p.parse_args()
    torch.set_num_threads(1)
    data = open_data('voc12', 'val', root=a.root, tags=a.tags)
    regions = [segments(data.image(i)) for i in Progress(range(len(data)), 'regions, image')]
    rows = [measured(Run.named(r, a.runs), data, regions) for r in a.run]
    about = dict(what='icd_cuts', data='voc12, six animal classes', images=len(data), versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread')
    (HERE / 'icd_cuts.json').write_text(json.dumps(about, indent=1)[:-2] + ',\n "rows": [\n' + ',\n'.join(f'  {json.dumps(r)}' for r in rows) + '\n ]\n}\n', encoding='utf-8')
    for r in rows: print({k: v for k, v in r.items() if not isinstance(v, list)})


if __name__ == '__main__': main()
