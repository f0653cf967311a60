"""What wrong tags cost on photographs: python docs/measured_tags.py --root VOCdevkit --tags image_labels.json --weights FILE --keep FOLDER

CAM and SIPE as in docs/measured_outlines.py, whose kept maps of MobileNetV2 they read (86 steps of 16, no outlines), the SVM on SIPE's maps with `layer2` of the same maps.
Of each of six classes' tags a share is disturbed; every second photograph of `val` is counted, told its true tags. The draw of the errors is the seed of the training too. One number after the other goes to FOLDER/tags.json; a stopped run goes on.
"""
import argparse, json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from measured_outlines import FIRST, MAPS, NETS, SIX, Kept, Tail, kept_maps, told, trained
from wsss_nb.base.core import rng
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.engine.evaluate import ids_over
from wsss_nb.metrics import Confusion
from wsss_nb.papers.svm import svm_maps

SHARES, EVERY = (0., .05, .1, .2), 2


def disturbed(labels, share, draw, classes):
    "Labels [N,K] with wrong tags: of each class's n tags n share / 2 are taken off, and as many are put elsewhere"
    out, r = labels.clone(), np.random.default_rng([7, draw])
    for k in classes:
        there, elsewhere = (labels[:, k] > 0).nonzero()[:, 0], (labels[:, k] == 0).nonzero()[:, 0]
        n = round(share * len(there) / 2)
        for at, value in ((there, 0), (elsewhere, 1)): out[at[r.permutation(len(at))[:n]], k] = value
    return out


class Counted:
    "mIoU of background and six classes of masks that are told the true tags"
    def __init__(self, data): self.data, self.matrix, self.ids = data, Confusion(21), ids_over(data, SIX)

    def count(self, i, scores, keys=np.arange(21)):  # [1,C,h,w]
        mask = self.data.mask(i)
        found = np.asarray(keys)[F.interpolate(scores, mask.shape, mode='bilinear', align_corners=False)[0].argmax(0).numpy()].astype(np.uint8)
        self.matrix.update(np.ascontiguousarray(found[2::4, 2::4]), np.ascontiguousarray(mask[2::4, 2::4]))

    @property
    def miou(self): return round(self.matrix.miou(self.ids), 4)


def of_tags(data, i): return [0, *(data.labels[i].nonzero()[:, 0] + 1).tolist()]


@torch.no_grad()
def after_svm(data, i, scores, maps):
    "Maps of the background and the tags of an image, by the SVM on layer2"
    keys, (c, n) = of_tags(data, i), MAPS['layer2']
    features = maps[:, :c * n * n].float().view(c, n, n).numpy()
    m = ScoreMaps(np.array(keys), scores[0, keys].numpy())
    found, _ = svm_maps(features, m, (n, n), rng('svm', 0, data.names[i]).random(n * n), per_class=1000)
    return torch.from_numpy(np.asarray(found.maps, np.float32))[None], found.keys


@torch.no_grad()
def read(kind, net, val, val_maps):
    "mIoU of a localiser, and of the SVM on SIPE"
    net.eval()
    counts = {m: Counted(val) for m in (('CAM',) if kind == 'cam' else ('SIPE', 'SVM, on SIPE'))}
    for i in range(0, len(val), EVERY):
        scores, _ = told(net, val_maps[i:i + 1, 0], val.labels[i:i + 1])
        counts['CAM' if kind == 'cam' else 'SIPE'].count(i, scores)
        if kind == 'sipe' and len(of_tags(val, i)) > 1: counts['SVM, on SIPE'].count(i, *after_svm(val, i, scores, val_maps[i, :1]))
    return {m: c.miou for m, c in counts.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    for name in ('root', 'tags', 'weights', 'keep'): p.add_argument(f'--{name}', default='')
    p.add_argument('--draws', type=int, default=3)
    p.add_argument('--what', nargs='+', choices=('sipe', 'cam'), default=('sipe', 'cam'))
    a = p.parse_args()
    torch.set_num_threads(1)
    data, val = (open_data('voc12', s, root=a.root, tags=a.tags) for s in ('train_aug', 'val'))
    (maps, truth), (val_maps, _) = (kept_maps(d, a.weights, Path(a.keep) / f'{d.split}.pt') for d in (data, val))
    file, nothing = Path(a.keep) / 'tags.json', torch.full_like(truth, 255)
    found = json.loads(file.read_text()) if file.exists() else {}

    def localiser(kind, labels, seed):
        torch.manual_seed(seed)
        kept = Kept(maps, labels, data.names, range(len(data)), nothing)
        return read(kind, trained(NETS[kind](Tail(a.weights, True)), kept, kind, FIRST[kind], 16, seed), val, val_maps)

    for draw in range(a.draws):
        for share in SHARES:
            labels = disturbed(data.labels, share, draw, [data.classes.index(c) for c in SIX])
            for kind in a.what:
                if (key := f'{kind} {share:g} {draw}') in found: continue
                found[key] = localiser(kind, labels, draw)
                file.write_text(json.dumps(found))
                print(key, found[key], flush=True)


if __name__ == '__main__': main()
