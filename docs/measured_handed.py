"""Which masks of tagged photographs are to be handed on: python docs/measured_handed.py RUN

RUN's network was told the tags of what it was evaluated on (`engine.record.masks_in`). On the same photographs its masks and those that it learnt from are counted, every pixel; and of both is asked whether the doubt of their maps (`results.doubt`) knows which are bad: the rank correlation with the IoU of a photograph, and the mean IoU of the 24 most doubtful.
Nothing is chosen. Numbers go to runs/measured/handed.json.
"""
import json, sys

import numpy as np
import torch
from scipy.stats import spearmanr

from measured import HERE, beside_seeds, ids_of, miou_of
from wsss_nb.engine.evaluate import areas_of, counted_each
from wsss_nb.engine.record import find_run
from wsss_nb.results.doubt import doubts_of, most_doubtful
from wsss_nb.results.handover import masks_of_run


def iou_of_one(areas):
    "The mean over what a photograph or its mask shows"
    return float(np.mean([both / either for _, both, either in areas]))


def row_of(split, masks, data, beside=None):
    "(areas image by image, the row of some masks of a split)"
    areas = {n: areas_of(c) for n, c in zip(data.names, counted_each(data, masks.folder))}
    ids = ids_of(data)
    doubts, each = doubts_of(masks._replace(data=data)), {n: iou_of_one(a) for n, a in areas.items()}
    worst = most_doubtful(doubts)[:24]
    row = dict(split=split, masks='of the network' if masks.by else 'that it learnt from', images=len(data), miou=miou_of(areas, ids),
               rank=float(spearmanr([-doubts[n] for n in data.names], [each[n] for n in data.names])[0]),
               each=float(np.mean([*each.values()])), doubtful=float(np.mean([each[n] for n in worst])))
    if beside: row |= beside_seeds(areas, beside, ids)
    return areas, row


def main(run):
    folder, rows = find_run(run), []
    for split, network in masks_of_run(folder).items():
        if not network.by: continue
        learnt = masks_of_run(folder, [split], 'masks')[split]
        areas, row = row_of(split, learnt, network.data)
        rows += [row, row_of(split, network, network.data, areas)[1]]
    for r in rows: print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()}, flush=True)
    about = dict(what='handed', data='voc12, six animal classes', run=folder.name, versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread', rows=rows)
    (HERE / 'handed.json').write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main(sys.argv[1])
