"""What the chapters say of photographs beyond runs: python docs/measured.py ccmr --root VOCdevkit --tags image_labels.json --localiser RUN

Each measurement writes numbers, and nothing but numbers, to runs/measured/<name>.json; pages read them from there. RUN is a run of `frozen_photos`, whose layers of tags are a CAM network.
With --features FOLDER its features of each image are kept there, so that the next measurement is quick.
"""
import argparse, json, time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wsss_nb.cams import normalize
from wsss_nb.data.catalog import open_data
from wsss_nb.data.views import as_tensor
from wsss_nb.engine.methods import load_localiser
from wsss_nb.metrics import Confusion, PixelAP
from wsss_nb.nets.linear import Features, best_decay, learn_linear, multilabel, of_cells
from wsss_nb.nets.single_stage import resize
from wsss_nb.nets.zoo import build
from wsss_nb.papers.ccmr import ccmr
from wsss_nb.papers.frozen import image_features
from wsss_nb.refine.pamr import pamr

SIX = 'cat', 'cow', 'dog', 'horse', 'person', 'sheep'
HERE = Path(__file__).resolve().parents[1] / 'runs/measured'


def opened(a, split='val'): return open_data('voc12', split, root=a.root, tags=a.tags)
def ids_of(data): return [0, *(data.classes.index(c) + 1 for c in SIX)]
def tagged_of(data, i): return data.labels[i].nonzero()[:, 0]


def counted(counts, maps, keys, truth):
    "Count the mask of maps [1,C,h,w] whose channels are `keys`"
    large = F.interpolate(maps, truth.shape, mode='bilinear', align_corners=False)
    pair = np.asarray(keys, np.uint16)[large[0].argmax(0).numpy()] + 256 * truth.astype(np.uint16)  # what Confusion.update does, without its checks
    counts.matrix += np.bincount(pair.ravel(), minlength=65536).reshape(256, 256)[:21, :21]


def cam_of(a, split='val'):
    "The data, and image -> the normalised CAM [1,k,h,w] of its tags from the layer of a frozen network"
    data, (net, _) = opened(a, split), load_localiser(a.localiser)
    kept = Features(data, lambda image: image_features(net.eval(), image), a.features and f'{a.features}/{split}')
    def cam(i): return normalize(of_cells(net.tags, net.standard(kept[i][None]))[:, tagged_of(data, i)])
    return data, torch.no_grad()(cam)


# CCMR: the scale of its kernel and the reach of its neighbours

SCALES, DILATIONS = (10., 20., 40., 60., 120.), (1, 2, 4, 8, 12, 24)
GRIDS = {(57, 4): (.08, .15, .22, .45), (57, 1): (.15, .45), (113, 4): (.08, .22)}  # cells on the long side, power of the maps -> reach of the neighbours, in shares of the side


def with_ground(cam, threshold=.25, power=1):
    "A background of the threshold in front, the maps sharpened and made shares of one"
    m = torch.cat([torch.full_like(cam[:, :1], threshold), cam], 1) ** power
    return m / m.sum(1, keepdim=True).clamp(min=1e-12)


def ccmr_settings(cells, reaches):
    "Name -> (image, mask) -> refined mask"
    of = lambda **o: lambda x, m: ccmr(x, m, torch.ones(1, m.shape[1]), 10, **o)
    out = {('nothing',): lambda x, m: m}
    out |= {('alone', s): of(scale=s, dilations=(1,), neighbours=False) for s in SCALES}
    for share in reaches:
        near = tuple(d for d in DILATIONS if d <= share * cells)
        out[('PAMR', share)] = lambda x, m, near=near: pamr(x, m, 10, near)
        out |= {('CCMR', share, s): of(scale=s, dilations=near) for s in SCALES}
    return out


def measure_ccmr(a):
    "bg+6 mIoU of fixed masks, refined in every way"
    data, cam = cam_of(a)
    out, images = [], min(a.images or 200, len(data))
    for (cells, power), reaches in GRIDS.items():
        settings, counts = ccmr_settings(cells, reaches), {}
        for i in range(images):
            if not len(tagged_of(data, i)): continue
            maps, truth, keys = cam(i), data.mask(i), [0, *(tagged_of(data, i) + 1).tolist()]
            size = [max(1, round(n * cells / max(maps.shape[2:]))) for n in maps.shape[2:]]
            m = with_ground(F.interpolate(maps, size, mode='bilinear', align_corners=False), power=power)
            x = resize(as_tensor(data.image(i))[None], size)
            for name, refine in settings.items(): counted(counts.setdefault(name, Confusion(21)), refine(x, m), keys, truth)
            if i % 50 == 49: print(cells, power, i + 1, {k: round(c.miou(ids_of(data)), 3) for k, c in counts.items()}, flush=True)
        for (how, *rest), c in counts.items():
            place = dict(zip(('scale',) if how == 'alone' else ('reach', 'scale'), rest))
            out.append(dict(cells=cells, power=power, how=how, **place, miou=c.miou(ids_of(data))))
    return dict(images=images, threshold=.25, iters=10, dilations=DILATIONS, rows=out)


# ICD: where the scores along a direction are to be cut, with no training: the direction is the first eigenvector of Eq. 1

LAYERS = 'layer4', 'last'
CUTS = ('zero', 'otsu of the class', 'two Gaussians of the class', 'share of the CAM, class', 'between the means under the CAM', 'otsu of the image', 'two Gaussians of the image', 'share of the CAM, image')


def layers_of(a, data, split):
    "image -> its maps of two layers of MobileNetV2 as it comes from ImageNet, kept in --features"
    net = build('mobilenet_v2', a.weights or 'imagenet', stride=16).eval()
    @torch.no_grad()
    def maps(i):
        file = Path(a.features or '.') / f'mnv2/{data.names[i]}.npz'
        if not a.features or not file.exists():
            found = dict(zip(net.names, net(as_tensor(data.image(i))[None])))
            found = {k: found[k][0].half().numpy() for k in LAYERS}
            if not a.features: return found
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **found)
        return dict(np.load(file))
    return maps


class Directions:
    "Layers of tags and the first direction of each class, from the images of a training set"
    def __init__(self, data, maps, per_class=60):
        tags = data.labels.sum(1) == 1
        moments, means, pooled, n = 0, 0, [], 0
        self.single = {k: [i for i in range(len(data)) if tags[i] and data.labels[i, k]][:per_class] for k in range(len(data.classes))}
        self.single = {k: v for k, v in self.single.items() if len(v) > 9}
        for i in range(len(data)):
            m = maps(i)
            f, last = m['layer4'].reshape(320, -1).astype(np.float32), m['last'].reshape(1280, -1).astype(np.float32)
            moments, means, n = moments + f @ f.T, means + f.sum(1), n + f.shape[1]
            pooled.append(last.mean(1))
        self.mean = means / n
        values, vectors = np.linalg.eigh(moments / n - np.outer(self.mean, self.mean))
        self.white = vectors @ np.diag((values + .01 * values.mean()) ** -.5) @ vectors.T
        x = torch.tensor(np.array(pooled))
        self.centre, self.wide = x.mean(0), x.std(0).clamp(min=1e-3)
        x, self.tags = (x - self.centre) / self.wide, torch.nn.Linear(1280, len(data.classes))
        learn_linear(self.tags, x, lambda s: multilabel(s, data.labels.float()), best_decay(x, data.labels.float()) / len(data.classes))
        self.w = {k: self.direction(images, maps, k) for k, images in self.single.items()}

    def features(self, m): return self.white @ (m['layer4'].reshape(320, -1).astype(np.float32) - self.mean[:, None])

    @torch.no_grad()
    def cam(self, m, k):
        z = (torch.tensor(m['last']).float() - self.centre[:, None, None]) / self.wide[:, None, None]
        c = (torch.einsum('dhw,d->hw', z, self.tags.weight[k]) + self.tags.bias[k]).relu()
        return (c / (c.max() + 1e-5)).numpy()

    def direction(self, images, maps, k):
        "The unit vector of the largest mean square, turned to where the CAM is (Eq. 4-5)"
        found = [(self.features(m), self.cam(m, k).ravel()) for m in map(maps, images)]
        w = np.linalg.eigh(sum(f @ f.T / f.shape[1] for f, _ in found))[1][:, -1]
        sides = [[c[side].mean() if side.any() else 0 for side in (w @ f > 0, w @ f < 0)] for f, c in found]
        return w * (1 if np.mean(sides, 0)[0] >= np.mean(sides, 0)[1] else -1)

    def score(self, m, k): return (self.w[k] @ self.features(m)).reshape(m['layer4'].shape[1:])


def two_gaussians(x, rounds=60):
    "Where two Gaussians, fitted to the values, are equally likely"
    t = otsu(x)
    p = (x > t).astype(float)
    for _ in range(rounds):
        w = np.array([1 - p.mean(), p.mean()]) + 1e-9
        mu = np.array([((1 - p) * x).mean() / w[0], (p * x).mean() / w[1]])
        sd = np.sqrt(np.array([((1 - p) * (x - mu[0])**2).mean() / w[0], (p * (x - mu[1])**2).mean() / w[1]]) + 1e-6)
        like = [np.log(w[j]) - np.log(sd[j]) - (x - mu[j])**2 / 2 / sd[j]**2 for j in (0, 1)]
        p = 1 / (1 + np.exp(np.clip(like[0] - like[1], -50, 50)))
    between = np.linspace(mu[0], mu[1], 200)
    like = [np.log(w[j]) - np.log(sd[j]) - (between - mu[j])**2 / 2 / sd[j]**2 for j in (0, 1)]
    return float(between[np.argmin(abs(like[1] - like[0]))])


def otsu(x, bins=256):
    "The cut with the largest variance between the two sides"
    count, edges = np.histogram(x, bins)
    w, middle = count.cumsum() / count.sum(), (edges[1:] + edges[:-1]) / 2
    below = (count * middle).cumsum() / count.sum()
    between = (below[-1] * w - below)**2 / np.maximum(w * (1 - w), 1e-12)
    return float(edges[1:][between[:-1].argmax()])


def cuts_of_class(scores, cams):
    "Rule -> the cut of a class, from the scores and CAMs of its training images"
    x, c = np.concatenate([s.ravel() for s in scores]), np.concatenate([m.ravel() for m in cams])
    return {'zero': 0., 'otsu of the class': otsu(x), 'two Gaussians of the class': two_gaussians(x), 'share of the CAM, class': float(np.quantile(x, 1 - (c > .25).mean())),
            'between the means under the CAM': float((x[c > .5].mean() + x[c < .05].mean()) / 2)}


def measure_icd(a):
    "IoU of a class's things at every cut, of images with one tag"
    train, data = opened(a, 'train_aug'), opened(a)
    from_train, from_val = layers_of(a, train, 'train_aug'), layers_of(a, data, 'val')
    d, grid, rows = Directions(train, from_train), np.arange(-4, 8, .02), []
    for k, images in d.single.items():
        scores, cams = zip(*[(d.score(m, k), d.cam(m, k)) for m in map(from_train, images)])
        cuts, total, ranks = cuts_of_class(scores, cams), {n: np.zeros(4) for n in CUTS}, PixelAP(2)
        sweep, cam_ap = np.zeros((2, len(grid) + 1)), PixelAP(2)
        mine = [i for i in range(len(data)) if data.labels[i, k] and data.labels[i].sum() == 1][:a.images or None]
        for i in mine:
            m, truth = from_val(i), data.mask(i)
            s, c = d.score(m, k), d.cam(m, k)
            large, shown = (F.interpolate(torch.tensor(x)[None, None].float(), truth.shape, mode='bilinear', align_corners=False)[0, 0].numpy() for x in (s, c))
            own = {**cuts, 'otsu of the image': otsu(s.ravel()), 'two Gaussians of the image': two_gaussians(s.ravel()), 'share of the CAM, image': np.quantile(s, 1 - (c > .25).mean())}
            keep, thing = truth != 255, truth == k + 1
            for n, t in own.items(): total[n] += [(thing & (large > t)).sum(), (keep & (thing | (large > t))).sum(), (keep & ~thing & (large <= t)).sum(), (keep & (~thing | (large <= t))).sum()]
            place = np.searchsorted(grid, large[keep])
            for j in (0, 1): sweep[j] += np.bincount(place[thing[keep] == j], minlength=len(grid) + 1)
            ranks.update(np.ones(1, int), large[None], np.where(keep, thing, 255).astype(np.uint8)), cam_ap.update(np.ones(1, int), shown[None], np.where(keep, thing, 255).astype(np.uint8))
        above = sweep[:, ::-1].cumsum(1)[:, -2::-1]
        iou = above[1] / (sweep[1].sum() + above[0])
        rows.append(dict(cls=data.classes[k], images=len(mine), train=len(images), ap=float(ranks.ap()[1]), cam_ap=float(cam_ap.ap()[1]), best=float(iou.max()), best_at=float(grid[iou.argmax()]),
                         cuts=cuts, iou={n: float(x[0] / x[1]) for n, x in total.items()}, ground={n: float(x[2] / x[3]) for n, x in total.items()}))
        print(rows[-1], flush=True)
    for n in CUTS: print(f'{n:36} {np.mean([r["iou"][n] for r in rows]):.3f} ground {np.mean([r["ground"][n] for r in rows]):.3f}')
    print('best', np.mean([r['best'] for r in rows]), 'AP', np.mean([r['ap'] for r in rows]), 'CAM', np.mean([r['cam_ap'] for r in rows]))
    return dict(rows=rows)


MEASURES = dict(ccmr=measure_ccmr, icd=measure_icd)


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('what', choices=MEASURES)
    for name in ('root', 'tags', 'localiser', 'features', 'weights'): p.add_argument(f'--{name}', default='')
    p.add_argument('--images', type=int, default=0, help='only the first ones')
    p.add_argument('--out', default=HERE)
    a, start = p.parse_args(), time.time()
    torch.set_num_threads(1)
    found = MEASURES[a.what](a)
    about = dict(what=a.what, data='voc12, six animal classes', versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread')
    Path(a.out).mkdir(parents=True, exist_ok=True)
    (Path(a.out) / f'{a.what}.json').write_text(json.dumps(about | found, indent=1) + '\n', encoding='utf-8')
    print(f'{a.what}: {time.time() - start:.0f} s')


if __name__ == '__main__': main()
