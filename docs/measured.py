"""What the chapters say of photographs beyond runs: python docs/measured.py ccmr --root VOCdevkit --tags image_labels.json --localiser RUN

Each measurement writes numbers, and nothing but numbers, to runs/measured/<name>.json; pages read them from there. RUN is a run of `frozen_photos`, whose layers of tags are a CAM network.
With --features FOLDER its features of each image are kept there, so that the next measurement is quick.
"""
import argparse, functools, json, time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wsss_nb.cams import normalize
from wsss_nb.data.catalog import open_data
from wsss_nb.base.core import rng
from wsss_nb.data.resize import resize_mask
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.data.together import at_own_size, batches_to_show, near_sizes
from wsss_nb.data.views import as_tensor, resize_image
from wsss_nb.engine.evaluate import areas_of, ids_over
from wsss_nb.engine.methods import load_localiser
from wsss_nb.metrics import Confusion, PixelAP
from wsss_nb.nets.linear import Features, best_decay, learn_linear, multilabel, of_cells
from wsss_nb.nets.single_stage import resize
from wsss_nb.nets.zoo import build
from wsss_nb.papers.ccmr import ccmr
from wsss_nb.nets.shallow import shallow_features
from wsss_nb.papers.ecsnet import blur_erase, erased_region, minmax_cam, reliable_labels
from wsss_nb.papers.frozen import among_tags, image_features
from wsss_nb.papers.sipe import is_cam, length_one, one_hot, prototypes, structure_similarity, weighted
from wsss_nb.papers.svm import svm_maps
from wsss_nb.papers.seam import rescaled, strongest
from wsss_nb.refine.correlation import PixelCorrelation, correlate, fit_size
from wsss_nb.refine.cuts import gaussians, otsu
from wsss_nb.refine.pamr import pamr
from wsss_nb.refine.superpixels import segments
from wsss_nb.results.agreement import agreement
from wsss_nb.results.paired import areas_from, mean_iou, paired_gain

SIX = 'cat', 'cow', 'dog', 'horse', 'person', 'sheep'
HERE = Path(__file__).resolve().parents[1] / 'runs/measured'


def opened(a, split='val'): return open_data('voc12', split, root=a.root, tags=a.tags)
def ids_of(data): return ids_over(data, SIX)
def tagged_of(data, i): return data.labels[i].nonzero()[:, 0]


def counted(counts, maps, keys, truth):
    "Count the mask of maps [1,C,h,w] whose channels are `keys`"
    large = F.interpolate(maps, truth.shape, mode='bilinear', align_corners=False)
    counts.matrix += pairs_of(np.asarray(keys)[large[0].argmax(0).numpy()], truth)


def pairs_of(mask, truth):
    "What Confusion.update adds to its matrix, without its checks"
    pair = mask.astype(np.uint16) + 256 * truth.astype(np.uint16)
    return np.bincount(pair.ravel(), minlength=65536).reshape(256, 256)[:21, :21]


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


# Agreement with superpixels: which threshold it chooses

def entropy(p): return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def explained(mask, regions):
    "How much of the entropy of a mask its regions explain, 0 for a mask of one label"
    labels = np.unique(mask, return_inverse=True)[1].ravel()
    k = int(labels.max()) + 1
    count = np.bincount(np.ravel(regions).astype(np.int64) * k + labels, minlength=(int(np.max(regions)) + 1) * k).reshape(-1, k)
    size = np.maximum(count.sum(1), 1)
    return float(1 - count.sum(1) @ entropy(count / size[:, None]) / count.sum() / entropy(count.sum(0) / count.sum())) if k > 1 else 0.


def budget_of(data):
    "The 24 images that may choose: of each of the six classes the first four by their ids that show it"
    out = []
    for k in (data.classes.index(c) for c in SIX):
        out += [i for i in sorted(range(len(data)), key=lambda i: data.names[i]) if data.labels[i, k] and i not in out][:4]
    return out


def measure_agreement(a):
    "mIoU and both measures of agreement at every threshold of a CAM: on the budget of outlined images, and on every third of val"
    out, thresholds = [], np.arange(.05, .86, .05).round(2)
    for split, some in (('train_aug', budget_of), ('val', lambda data: range(0, len(data), 3))):
        data, net = opened(a, split), load_localiser(a.localiser)[0].eval()
        images = [i for i in some(data) if len(tagged_of(data, i))]
        part = data.subset(images)
        kept = Features(part, lambda image: image_features(net, image), a.features and f'{a.features}/{split}')
        counts, found = {t: Confusion(21) for t in thresholds}, {t: ([], []) for t in thresholds}
        for i in range(len(part)):
            keys, truth, regions = (tagged_of(part, i) + 1).numpy(), part.mask(i), segments(part.image(i))
            with torch.no_grad(): m = normalize(of_cells(net.tags, net.standard(kept[i][None]))[:, keys - 1])
            m = F.interpolate(m, truth.shape, mode='bilinear', align_corners=False)[0].numpy()
            for t in thresholds:
                mask = np.where(m.max(0) > t, keys[m.argmax(0)], 0)
                counts[t].matrix += pairs_of(mask, truth)
                found[t][0].append(agreement(mask, regions, keys)), found[t][1].append(explained(mask, regions))
        for t in thresholds: out.append(dict(split=split, images=len(part), threshold=float(t), miou=counts[t].miou(ids_of(data)), IoU=float(np.mean(found[t][0])), entropy=float(np.mean(found[t][1]))))
    for r in out: print(r)
    return dict(rows=out)


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


@functools.cache
def tags_layer(root, tags, features, weights):
    "A Directions without directions: the layer of tags on MobileNetV2"
    a = argparse.Namespace(root=root, tags=tags, features=features, weights=weights)
    train = opened(a, 'train_aug')
    return Directions(train, layers_of(a, train, 'train_aug'), 0)


class Directions:
    "Layers of tags and the first direction of each class, from the images of a training set"
    def __init__(self, data, maps, per_class=60, whole=False):
        tags = data.labels.sum(1) == 1
        moments, means, pooled, n = 0, 0, [], 0
        self.single = {k: [i for i in range(len(data)) if tags[i] and data.labels[i, k]][:per_class] for k in range(len(data.classes))}
        self.single = {k: v for k, v in self.single.items() if len(v) > 9}  # per_class = 0: the layer of tags alone
        for i in range(len(data)):
            m = maps(i)
            f, last = m['layer4'].reshape(320, -1).astype(np.float32), m['last'].reshape(1280, -1).astype(np.float32)
            moments, means, n = moments + f @ f.T, means + f.sum(1), n + f.shape[1]
            pooled.append(last.mean(1))
        self.mean = means / n
        values, vectors = np.linalg.eigh(moments / n - np.outer(self.mean, self.mean))
        self.white = vectors @ np.diag((values + .01 * values.mean()) ** -.5) @ vectors.T if whole else np.diag((np.diag(moments / n) - self.mean**2) ** -.5)
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


def at(rule, x): return float(rule(torch.tensor(np.ravel(x))[None]))


def cuts_of_class(scores, cams):
    "Rule -> the cut of a class, from the scores and CAMs of its training images"
    x, c = np.concatenate([s.ravel() for s in scores]), np.concatenate([m.ravel() for m in cams])
    return {'zero': 0., 'otsu of the class': at(otsu, x), 'two Gaussians of the class': at(gaussians, x), 'share of the CAM, class': float(np.quantile(x, 1 - (c > .25).mean())),
            'between the means under the CAM': float((x[c > .5].mean() + x[c < .05].mean()) / 2)}


def measure_icd(a, whole=False):
    "IoU of a class's things at every cut, of images with one tag; every channel with spread 1, as ICD's batch norm has them, or the whole space whitened"
    train, data = opened(a, 'train_aug'), opened(a)
    from_train, from_val = layers_of(a, train, 'train_aug'), layers_of(a, data, 'val')
    d, grid, rows = Directions(train, from_train, whole=whole), np.arange(-10, 30, .05), []
    for k, images in d.single.items():
        scores, cams = zip(*[(d.score(m, k), d.cam(m, k)) for m in map(from_train, images)])
        cuts, total, ranks = cuts_of_class(scores, cams), {n: np.zeros(4) for n in CUTS}, PixelAP(2)
        sweep, cam_ap = np.zeros((2, len(grid) + 1)), PixelAP(2)
        mine = [i for i in range(len(data)) if data.labels[i, k] and data.labels[i].sum() == 1][:a.images or None]
        for i in mine:
            m, truth = from_val(i), data.mask(i)
            s, c = d.score(m, k), d.cam(m, k)
            large, shown = (F.interpolate(torch.tensor(x)[None, None].float(), truth.shape, mode='bilinear', align_corners=False)[0, 0].numpy() for x in (s, c))
            own = {**cuts, 'otsu of the image': at(otsu, s), 'two Gaussians of the image': at(gaussians, s), 'share of the CAM, image': np.quantile(s, 1 - (c > .25).mean())}
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


# SIPE: the weight of the background when seeds are found, on features of ImageNet

WEIGHTS = (.5, .6, .7, .8, .9, 1., 1.1)


def chance_iou(features, cam):
    "The IoU of Eq. 4 if structure and CAM lay anywhere: [1,K+1,h,w], from their sizes alone"
    f = length_one(features.flatten(2), 1)
    size = torch.cat([(f[:, :, at].transpose(1, 2) @ f).relu().sum(2) for at in torch.arange(f.shape[2]).split(512)], 1)[:, None]
    m, n = cam.flatten(2).sum(2)[..., None], f.shape[2]
    return (size * m / n / (size + m - size * m / n).clamp(min=1e-5)).view(1, -1, *cam.shape[2:])


def seeds_by_rule(features, cam):
    "Rule -> seeds [1,h,w]: the background's IoU times a weight, or every IoU beside that of chance"
    c, chance = structure_similarity(features, cam), chance_iou(features, cam)
    out = {f'weight {w}': weighted(c, w).argmax(1) for w in WEIGHTS}
    return out | {'beyond chance': ((c - chance) / (1 - chance).clamp(min=1e-5)).argmax(1), 'times chance': (c / chance.clamp(min=1e-5)).argmax(1)}


def measure_sipe(a):
    "bg+6 mIoU of IS-CAMs that need no training, and how large their grounds are, by the weight or rule"
    data, lite = cam_of(a)
    out = []
    images = range(0, len(data), max(1, len(data) // (a.images or 45)))
    maps, net = layers_of(a, data, 'val'), load_localiser(a.localiser)[0]
    kept, d = Features(data, None, f'{a.features}/val'), tags_layer(a.root, a.tags, a.features, a.weights)
    def mobile(i):
        m = maps(i)
        return torch.tensor(m['last'])[None].float(), torch.tensor(np.stack([d.cam(m, int(k)) for k in tagged_of(data, i)]))[None].float()
    lite2 = lambda i: (kept[i][None][:, -net.backbone.channels[-1]:], lite(i))
    for backbone, of in (('mobilenet_v2', mobile), ('timm:tf_efficientnet_lite2', lite2)):
        counts, share, agree = {}, {}, {}
        for i in images:
            if not len(tagged_of(data, i)): continue
            (f, cam), truth, keys = of(i), data.mask(i), [0, *(tagged_of(data, i) + 1).tolist()]
            regions = segments(data.image(i))
            counted(counts.setdefault('CAM .25', Confusion(21)), with_ground(cam), keys, truth)
            m = torch.cat([1 - cam.amax(1, keepdim=True), cam], 1)
            for rule, s in seeds_by_rule(f, m).items():
                specific = is_cam(f, prototypes(f, one_hot(s, m.shape[1])))
                specific = specific / (specific.amax((2, 3), keepdim=True) + 1e-5)
                counted(counts.setdefault(rule, Confusion(21)), specific, keys, truth)
                large = F.interpolate(specific, truth.shape, mode='bilinear', align_corners=False)[0].argmax(0).numpy()
                share.setdefault(rule, []).append(float((large == 0).mean())), agree.setdefault(rule, []).append(agreement(np.asarray(keys)[large], regions, keys))
        for rule, c in counts.items(): out.append(dict(backbone=backbone, rule=rule, miou=c.miou(ids_of(data)), ground=float(np.mean(share.get(rule, [np.nan]))), agreement=float(np.mean(agree.get(rule, [np.nan])))))
        for r in out: print(r, flush=True)
    return dict(images=len(images), rows=[{k: v for k, v in r.items() if v == v} for r in out])


# ECS-Net and SEAM: what the second look teaches, by the size of the view

def measure_ecsnet(a):
    "Of the labels that the erased image gives: how many are right, and how much of the things they cover"
    data, d = opened(a), tags_layer(a.root, a.tags, a.features, a.weights)
    nets, images = {stride: build('mobilenet_v2', a.weights or 'imagenet', stride=stride).eval() for stride in (16, 8)}, np.linspace(0, len(data) - 1, a.images or 40).astype(int)
    @torch.no_grad()
    def heat(x, stride):
        z = (nets[stride](x)[-1] - d.centre[:, None, None]) / d.wide[:, None, None]
        return F.pad(of_cells(d.tags, z), (0, 0, 0, 0, 1, 0))
    rows = {}
    for i in images:
        labels, truth = data.labels[i][None], torch.tensor(data.mask(i))
        for side, stride in ((161, 16), (257, 16), (449, 16), (449, 8)):
            size = [round(n * side / max(truth.shape)) for n in truth.shape]
            x, small = as_tensor(resize_image(data.image(i), size))[None], torch.tensor(resize_mask(truth.numpy(), size)).long()
            cams = lambda x: fit_size(minmax_cam(heat(x, stride).relu(), labels), size)
            for beta in (1., .5):
                first = cams(F.interpolate(x, [round(n * beta) for n in size], mode='bilinear', antialias=True))
                region = erased_region(first, .6)
                unit = side / 448
                second = cams(blur_erase(x, region, 10 * unit, max(1, round(25 * unit))))
                found = {('first map', .6): reliable_labels(first, torch.zeros_like(region), .6)}
                found |= {('second', t): reliable_labels(second, region, t) for t in (.6, .7, .8, .9)}
                found |= {('second, nothing left out', t): reliable_labels(second, torch.zeros_like(region), t) for t in (.6, .8)}
                for (what, theta), y in found.items():
                    given, thing = (y[0] != 255) & (small != 255), (small != 255) & (small > 0)
                    now = [int((given & (y[0] == small)).sum()), int(given.sum()), int((given & (y[0] == small)).sum()), int(thing.sum())]
                    rows.setdefault((side, stride, beta, what, theta), np.zeros(4, np.int64))
                    rows[side, stride, beta, what, theta] += now
    out = [dict(zip(('side', 'stride', 'beta', 'what', 'theta'), k), right=float(r[0] / max(r[1], 1)), cover=float(r[2] / r[3])) for k, r in rows.items()]
    for r in out: print(r)
    return dict(images=len(images), delta=.6, rows=out)


# SEAM: what the correlation makes of a map before anything is learnt

def leak(affinity, thing):
    "How much of what the cells of a thing take comes from the ground, beside the ground's share of the picture: 1 = they cannot be told apart"
    return float(affinity[thing][:, ~thing].sum() / affinity[thing].sum() / (~thing).float().mean())


def measure_seam(a):
    "bg+6 mIoU of CAMs and of what Eq. 1 makes of them, at the best cut and at each; and how much leaks in from the ground"
    data, d = opened(a), tags_layer(a.root, a.tags, a.features, a.weights)
    net, images = build('mobilenet_v2', a.weights or 'imagenet', stride=16).eval(), np.linspace(0, len(data) - 1, a.images or 60).astype(int)
    torch.manual_seed(0)
    start = {c: PixelCorrelation(net, centre=c) for c in (False, True)}
    start[True].load_state_dict(start[False].state_dict())
    plain = lambda x, stages: torch.cat([fit_size(F.normalize(stages[net.names.index(n)], dim=1), stages[-1].shape[2:]) for n in ('layer3', 'layer4')], 1)
    ways = {f'{what}, {"centred" if c else "as they are"}': lambda x, stages, f=f, c=c: (lambda z: z - z.mean((2, 3), keepdim=True) if c else z)(f(x, stages))
            for what, f in (('first weights', start[False].describe), ('stages themselves', plain)) for c in (False, True)}
    cuts, counts, leaks = [k / 20 for k in range(1, 15)], {}, {}
    for i in images:
        tags, truth = tagged_of(data, i), data.mask(i)
        keys = [0, *(tags + 1).tolist()]
        for side in (161, 257, 449):
            with torch.no_grad():
                x = as_tensor(resize_image(data.image(i), [round(n * side / max(truth.shape)) for n in truth.shape]))[None]
                stages = net(x)
                heat = of_cells(d.tags, (stages[-1] - d.centre[:, None, None]) / d.wide[:, None, None]).relu()
                first = F.pad(heat * data.labels[i][None, :, None, None], (0, 0, 0, 0, 1, 0))
                found, thing = {'the CAM': first}, torch.tensor(resize_mask(truth, stages[-1].shape[2:]))
                thing = ((thing > 0) & (thing < 255)).flatten()
                for name, describe in ways.items():
                    z = describe(x, stages)
                    found[name] = correlate(strongest(rescaled(first)), z)
                    u = F.normalize(z.flatten(2)[0], dim=0)
                    if thing.any() and not thing.all(): leaks.setdefault((side, name), []).append(leak((u.T @ u).relu(), thing))
            for name, maps in found.items():
                maps = normalize(maps[:, 1:])[:, tags]
                for cut in cuts: counted(counts.setdefault((side, name, cut), Confusion(21)), torch.cat([torch.full_like(maps[:, :1], cut), maps], 1), keys, truth)
    of = lambda side, name: [counts[side, name, cut].miou(ids_of(data)) for cut in cuts]
    out = [dict(side=side, how=name, best=max(of(side, name)), cut=cuts[int(np.argmax(of(side, name)))], miou=of(side, name), leak=float(np.mean(leaks[side, name])) if (side, name) in leaks else None)
           for side in (161, 257, 449) for name in ('the CAM', *ways)]
    for r in out: print({k: v for k, v in r.items() if k != 'miou'}, flush=True)
    return dict(images=len(images), cuts=cuts, rows=out)


# SVM: how deep its features lie, and what it gains by the quality of its seeds

LAYERS_OF = dict(mobilenet_v2=('layer1', 'layer2', 'layer3'), lite2=('stage2', 'stage3', 'stage4'))


def measure_svm(a):
    "bg+6 mIoU of given maps before and after the SVM, by network, layer and seeds"
    data, _ = cam_of(a)
    net, images = load_localiser(a.localiser)[0].eval(), np.linspace(0, len(data) - 1, a.images or 60).astype(int)
    kept = Features(data, None, f'{a.features}/val')
    mobile = build('mobilenet_v2', a.weights or 'imagenet', stride=16).eval()
    @torch.no_grad()
    def seeds(i, kind):
        z, here, size = net.standard(kept[i][None]), tagged_of(data, i), data.mask(i).shape
        if kind == 'CAM': m = normalize(of_cells(net.tags, z)[:, here])
        else: m = among_tags(of_cells(net.lessons[kind - 1], z), data.labels[i][None])[:, [0, *(here + 1).tolist()]]
        m = F.interpolate(m, size, mode='bilinear', align_corners=False)[0].numpy()
        return ScoreMaps(np.array([*([0] if kind != 'CAM' else []), *(here + 1).tolist()]), m)
    mask_of = lambda m: (m.keys if 0 in m.keys else np.append(0, m.keys))[(m.maps if 0 in m.keys else np.concatenate([np.full_like(m.maps[:1], .25), m.maps])).argmax(0)].astype(np.uint8)
    table = [(kind, None, '') for kind in ('CAM', 1, 3)] + [(3, n, l) for n, of in LAYERS_OF.items() for l in of] + [(kind, 'lite2', 'stage3') for kind in ('CAM', 1)]
    counts, each = {row: Confusion(21) for row in table}, {row: {} for row in table}
    for count, i in enumerate(images):
        if not len(tagged_of(data, i)): continue
        for row in table:
            kind, name, layer = row
            m = seeds(i, kind)
            if name:
                f = shallow_features(mobile if name == 'mobilenet_v2' else net.backbone, data.image(i), layer)
                m = svm_maps(f, m, data.mask(i).shape, rng('svm', 0, data.names[i]).random(f[0].size), per_class=1000)[0]
            one = Confusion(21)
            one.matrix += pairs_of(mask_of(m), data.mask(i))
            counts[row], each[row][data.names[i]] = counts[row] + one, areas_of(one)
        if count % 10 == 9: print(count + 1, {' '.join(map(str, k)): round(c.miou(ids_of(data)), 3) for k, c in counts.items()}, flush=True)
    beside = lambda k, n, l: beside_seeds(each[k, n, l], each[k, None, ''], ids_of(data)) if n else {}
    return dict(images=len(images), per_class=1000, rows=[dict(seeds=f'lesson {k}' if k != 'CAM' else k, network=n or '', layer=l, miou=c.miou(ids_of(data)), **beside(k, n, l)) for (k, n, l), c in counts.items()])


def miou_of(areas, classes):
    "The mIoU of a row of areas, image by image"
    a = areas_from(dict(classes=classes, images=areas))
    return float(mean_iou(a.both.sum(0), a.either.sum(0)))


def beside_seeds(a, b, classes):
    "The paired gain of one row of areas over another"
    return paired_gain(*(areas_from(dict(classes=classes, images=x)) for x in (a, b)))._asdict()


# The frozen line by the protocol

def measure_frozen(a):
    "The CAM of linear layers on a frozen network and what their lessons make of it, with the differences image by image"
    data, _ = cam_of(a)
    net, kept = load_localiser(a.localiser)[0].eval(), Features(data, None, f'{a.features}/val')
    counts, each, sweep = {}, {}, np.arange(.15, .46, .05).round(2)
    for i in range(len(data)):
        truth, here = data.mask(i), tagged_of(data, i)
        keys, up = np.array([0, *(here + 1).tolist()]), lambda m: F.interpolate(m, truth.shape, mode='bilinear', align_corners=False)[0].numpy()
        with torch.no_grad():
            z = net.standard(kept[i][None])
            cam = up(normalize(of_cells(net.tags, z)[:, here])) if len(here) else np.zeros((0, *truth.shape), np.float32)
            found = {f'lesson {k + 1}': keys[up(among_tags(of_cells(l, z), data.labels[i][None])[:, keys]).argmax(0)] for k, l in enumerate(net.lessons)}
        top, winner = (cam.max(0), keys[1:][cam.argmax(0)]) if len(here) else (np.zeros(truth.shape), np.zeros(truth.shape, int))
        found |= {f'CAM {t:g}': np.where(top > t, winner, 0) for t in sweep}
        for row, mask in found.items():
            one = Confusion(21)
            one.matrix += pairs_of(mask, truth)
            counts[row] = counts.get(row, Confusion(21)) + one
            each.setdefault(row, {})[data.names[i]] = areas_of(one)
        if i % 50 == 49: print(i + 1, {k: round(c.miou(ids_of(data)), 3) for k, c in counts.items()}, flush=True)
    return dict(images=len(data), rows=[dict(row=r, miou=c.miou(ids_of(data)), **(beside_seeds(each[r], each['CAM 0.25'], ids_of(data)) if r != 'CAM 0.25' else {})) for r, c in counts.items()])


# A GPU is shown photographs of near sizes together

def measure_near(a):
    "Masks of a CAM network whose photographs it is shown at their own sizes, as a CPU is, and at near ones, as a GPU is, compared image by image"
    data, net, labels = opened(a), load_localiser(a.localiser)[0].eval(), {}
    if a.images: data = data.subset(range(a.images))
    as_on, shown, each = dict(own='cpu', near='cuda'), {}, {}
    for way, device in as_on.items():
        each[way], labels[way], shown[way] = {}, {}, 0
        for samples, images in batches_to_show(data, range(len(data)), 8, device=device):
            shown[way] += 1
            for s, m in zip(samples, net.score_maps(images, torch.stack([data.labels[data.names.index(s.name)] for s in samples]), scales=(.5, 1., 1.5))):
                maps, keys = at_own_size(m.maps, s.mask.shape), np.append(0, m.keys)
                labels[way][s.name], one = keys[np.concatenate([np.full_like(maps[:1], .25), maps]).argmax(0)], Confusion(21)
                one.matrix += pairs_of(labels[way][s.name], s.mask)
                each[way][s.name] = areas_of(one)
    sizes = [data.size(i) for i in range(len(data))]
    other = [n for n, size in zip(data.names, sizes) if near_sizes(sizes)[size] != size]
    unlike = [float((labels['own'][n] != labels['near'][n]).mean()) for n in other]
    rows = {w: dict(shown=f'at {"their own" if w == "own" else w} sizes', batches=shown[w], miou=miou_of(each[w], ids_of(data))) for w in as_on}
    rows['near'] |= beside_seeds(*({n: each[way][n] for n in data.names} for way in ('near', 'own')), ids_of(data))
    return dict(images=len(data), resized=len(other), unlike=float(np.mean(unlike or [0])), threshold=.25, scales=[.5, 1., 1.5], rows=[*rows.values()])


MEASURES = dict(agreement=measure_agreement, ccmr=measure_ccmr, icd=measure_icd, icd_white=lambda a: measure_icd(a, True), sipe=measure_sipe, ecsnet=measure_ecsnet, seam=measure_seam, svm=measure_svm, frozen=measure_frozen, near=measure_near)


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('what', nargs='+', choices=MEASURES)
    for name in ('root', 'tags', 'localiser', 'features', 'weights'): p.add_argument(f'--{name}', default='')
    p.add_argument('--images', type=int, default=0, help='only the first ones')
    p.add_argument('--out', default=HERE)
    a = p.parse_args()
    torch.set_num_threads(1)
    for what in a.what: write(what, a)


def write(what, a):
    "Measure, and write the numbers with where they are from"
    start, found = time.time(), MEASURES[what](a)
    about = dict(what=what, data='voc12, six animal classes', versions=dict(torch=torch.__version__, numpy=np.__version__), device='cpu, 1 thread')
    Path(a.out).mkdir(parents=True, exist_ok=True)
    (Path(a.out) / f'{what}.json').write_text(json.dumps(about | found, indent=1) + '\n', encoding='utf-8')
    print(f'{what}: {time.time() - start:.0f} s', flush=True)


if __name__ == '__main__': main()
