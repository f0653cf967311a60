"""Tags and a few outlines on photographs, networks trained: python docs/measured_outlines.py cam --root VOCdevkit --tags image_labels.json --weights FILE --keep FOLDER

MobileNetV2 of ImageNet stays as it is up to its last but one stage, whose maps of all photographs (257 x 257, straight and mirrored) are kept in FOLDER once; the last convolution and the heads are trained,
by the package's learner and losses: 86 steps of 16 from the tags of all 692, once; then from there 43 steps of 8 (sipe: 20), which is once through a part of the photographs that is drawn anew, beside the outlines of a drawing, or without any.
`line` is the frozen line itself (EfficientNet-Lite2, side 449 and stride 8), with outlines of a drawing or without, or of these outlines alone.
`net` learns 400 steps of 16 and then 60 of 8 from the masks that the frozen line, told the tags, makes of the tags, with the outlines in their places in the 60; with --beside from those that it makes beside the same outlines, with these in their places from the first step on. Masks are made first and kept in FOLDER too. What is found goes to FOLDER/<kind>.json, one number after the other; a stopped run goes on.
"""
import argparse, json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from wsss_nb.cams import CamNet, normalize
from wsss_nb.data.catalog import open_data
from wsss_nb.data.views import as_tensor
from wsss_nb.engine import batches
from wsss_nb.engine.train import Learner
from wsss_nb.engine.evaluate import ids_over
from wsss_nb.metrics import Confusion
from wsss_nb.nets.backbone import Backbone
from wsss_nb.nets.deeplab import LightDeepLab
from wsss_nb.nets.cells import outlined_cells
from wsss_nb.nets.linear import Features, of_cells
from wsss_nb.nets.zoo import build
from wsss_nb.papers.frozen import Frozen, among_tags, image_features
from wsss_nb.papers.sipe import Sipe

ALONE = 1., .02  # share and penalty of outlines alone
SIX, SIDE, MASK = ('cat', 'cow', 'dog', 'horse', 'person', 'sheep'), 257, 65
MAPS = dict(layer2=(32, 33), layer3=(96, 17), layer4=(320, 17))  # channels and side of what is kept
HOW = dict(cam=dict(lr=.01, head_lr=10., momentum=.9), sipe=dict(lr=.1, head_lr=10., clip=1.), net=dict(lr=1e-4, head_lr=10., optimizer='adamw', weight_decay=.01))
FIRST = dict(cam=86, sipe=86, net=400)  # steps of 16 from the tags of all, or from all masks
STEPS = dict(cam=(344, 43, 60), sipe=(160, 20, 30), net=(480, 60, 300))  # photographs beside the outlines, steps with them, steps of outlines alone
NETS = dict(cam=lambda b: CamNet(b, 20), sipe=lambda b: Sipe(b, 20, bg_weight=.9), net=lambda b: LightDeepLab(b, 20, width=128, head_lr=10.))


class Tail(Backbone):
    "What comes after the maps that were kept"
    def __init__(self, weights, last):
        names = (*MAPS, *(['last'] if last else []))
        super().__init__('mobilenet_v2', names, (32, 96, 320, 1280)[:len(names)], (8, 16, 16, 16)[:len(names)])
        self.frozen_norm, self.with_last = True, last
        if last: self.last = build('mobilenet_v2', weights, stride=16).features[18]

    def parts(self): return dict(last=[self.last]) if self.with_last else {}

    def forward(self, x):
        parts = x.flatten(1).split([c * n * n for c, n in MAPS.values()], 1)
        maps = [v.view(len(x), c, n, n) for v, (c, n) in zip(parts, MAPS.values())]
        return maps + [self.last(maps[-1])] if self.with_last else maps


class Kept:
    "Kept maps of some photographs with tags, masks and a mark on those that are outlined"
    name = 'kept'
    def __init__(self, all_maps, labels, names, at, masks, outlined=()):
        self.maps, self.labels_of, self.at, self.masks, self.outlined = all_maps, labels, list(at), masks, tuple(outlined)
        self.names = [names[i] for i in self.at]

    def __len__(self): return len(self.at)


def view(data, i, rng):
    "A photograph or its mirror image"
    j, mirrored = data.at[i], int(rng.integers(2))
    mask = data.masks[j].long()
    return dict(image=data.maps[j, mirrored].float()[None, None], labels=data.labels_of[j], mask=mask.flip(-1) if mirrored else mask, valid=torch.ones(17, 17))


@torch.no_grad()
def kept_maps(data, weights, file):
    "(maps [N,2,n] in half precision, masks [N,65,65]) of all photographs, from a file once it is there"
    if not file.exists():
        net, found, masks = build('mobilenet_v2', weights, stride=16).eval(), [], []
        for i in range(len(data)):
            x = as_tensor(np.asarray(Image.fromarray(data.image(i)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)))[None]
            found.append(torch.cat([m.flatten(1).half() for m in net(torch.cat([x, x.flip(-1)]))[1:4]], 1))
            masks.append(F.interpolate(torch.from_numpy(data.mask(i))[None, None].float(), (MASK, MASK), mode='nearest-exact')[0, 0].byte())
        torch.save((torch.stack(found), torch.stack(masks)), file)
    return torch.load(file)


def told(net, x, labels):
    "(scores told the tags, scores told nothing or None) [b,21,h,w] of kept maps"
    x, absent = x.float()[:, None, None], F.pad(labels == 0, (1, 0))[..., None, None]
    if isinstance(net, LightDeepLab): return (s := net.logits(x)).masked_fill(absent, -1e9), s
    if isinstance(net, Sipe): maps = net.view_maps(x, labels.float(), torch.arange(21), False, net.reading_of(dict(bg_weight=1., background_of='present')))
    else: maps = F.pad(normalize(net.raw_maps(x)), (0, 0, 0, 0, 1, 0), value=.25)
    if isinstance(net, Sipe): maps = maps / (maps.amax((2, 3), keepdim=True) + 1e-5)
    return maps.masked_fill(absent, -1e9), None


@torch.no_grad()
def scored(net, data, maps, every):
    "[mIoU told the tags, told nothing or None] of every photograph, or every second, every fourth pixel of each side"
    net.eval()
    counts, ids = (Confusion(21), Confusion(21)), ids_over(data, SIX)
    for i in range(0, len(data), every):
        mask = data.mask(i)
        for scores, count in zip(told(net, maps[i:i + 1, 0], data.labels[i:i + 1]), counts):
            if scores is None: continue
            large = F.interpolate(scores, mask.shape, mode='bilinear', align_corners=False)[0].argmax(0).numpy().astype(np.uint8)
            count.update(np.ascontiguousarray(large[2::4, 2::4]), np.ascontiguousarray(mask[2::4, 2::4]))
    return [round(counts[0].miou(ids), 4), round(counts[1].miou(ids), 4) if counts[1].matrix.sum() else None]


def drawing(data, n, draw):
    "n photographs, as many of each of the six classes; every eighth of the set is in none"
    r, chosen = np.random.default_rng([n, draw]), []
    for k in range(n):
        c = data.classes.index(SIX[k % 6])
        chosen.append(int(r.choice([i for i in range(len(data)) if i % 8 != 3 and data.labels[i, c] and i not in chosen])))
    return chosen


class Line:
    "The frozen line on some images, with or without outlines of some of them"
    def __init__(self, data, labels, network, folder, **options):
        self.data, self.labels = data, labels
        self.net = Frozen(build(network, 'imagenet', stride=8), labels.shape[1], **options)
        self.net.prepare(data, folder)
        self.net.learn_tags(self.net.kept, labels)

    def cells(self, i): return self.net.standard(self.net.kept[i])

    def others(self, data, folder):
        "Position -> cells of other images"
        kept = Features(data, lambda image: image_features(self.net, image), f'{folder}/{self.net.last} maps at {self.net.side}')
        return lambda i: self.net.standard(kept[i])

    def learn(self, mask_of=None, outlined=(), mix=None, seed=0):
        "All lessons, beside these outlines; `mix`: not the one that is found"
        net, some = self.net, SimpleNamespace(outlined=outlined, mask=mask_of)
        net.mix = mix
        for k in range(len(net.lessons)): net.learn_lesson(net.kept, self.labels, k, seed + 1 + k, outlined_cells(some, self.cells, self.labels, net.cells // 2, seed))

    @torch.no_grad()
    def maps(self, size, i=None, cells=None, labels=None):
        "Probabilities of an image told its tags, or of cells [D,h,w]"
        cells, labels = (self.cells(i), self.labels[i]) if cells is None else (cells, labels)
        return F.interpolate(among_tags(of_cells(self.net.lessons[-1], cells[None]), labels[None]), size, mode='bilinear', align_corners=False)[0]


    def masks(self, n, draw, folder, learn=True):
        "Masks uint8 [N,65,65] beside n outlines of a drawing, told the tags, from a file once it is there"
        file = Path(folder) / f'masks {n} {draw}.pt'
        if not file.exists():
            if learn: self.learn(self.data.mask, drawing(self.data, n, draw), seed=draw)
            torch.save(torch.stack([self.maps((MASK, MASK), i).argmax(0).byte() for i in range(len(self.data))]), file)
        return torch.load(file)


def measure_line(a):
    "The frozen line itself, [told the tags, told nothing] on `val`"
    data, val = (open_data('voc12', s, root=a.root, tags=a.tags) for s in ('train_aug', 'val'))
    line, ids = Line(data, data.labels, 'timm:tf_efficientnet_lite2', a.keep), ids_over(data, SIX)
    cells, anything = line.others(val, a.keep), torch.ones_like(val.labels[0])
    file = Path(a.keep) / 'line.json'
    found = json.loads(file.read_text()) if file.exists() else {}

    def score():
        counts = Confusion(21), Confusion(21)
        for i in range(len(val)):
            mask, z = val.mask(i), cells(i)
            for labels, count in zip((val.labels[i], anything), counts):
                large = line.maps(mask.shape, cells=z, labels=labels).argmax(0).numpy().astype(np.uint8)
                count.update(np.ascontiguousarray(large[2::4, 2::4]), np.ascontiguousarray(mask[2::4, 2::4]))
        return [round(c.miou(ids), 4) for c in counts]

    for how, n, draw in [(how, n, draw) for how in ('both', 'alone') for draw in (0, 1, 2) for n in (0, 6, 12, 24, 60) if n or (how, draw) == ('both', 0)]:
        if (key := f'{how} {n} {draw}') in found: continue
        line.learn(data.mask, drawing(data, n, draw), None if how == 'both' else ALONE, draw)
        if how == 'both': line.masks(n, draw, a.keep, False)
        found[key] = score()
        file.write_text(json.dumps(found))
        print('line', key, found[key], line.net.mix, flush=True)


def trained(net, data, kind, steps, batch, seed=0, lr=1.):
    batches.LATE = 0  # what is trained beside outlines is the last part of a training
    how = dict(HOW[kind], lr=HOW[kind]['lr'] * lr)
    Learner(net, data, view, steps=steps, batch_size=batch, seed=seed, device='cpu', workers=0, precision='fp32', **how).fit()
    return net


def measure(kind, a):
    "All numbers of a kind of network, one after the other"
    data, val = (open_data('voc12', s, root=a.root, tags=a.tags) for s in ('train_aug', 'val'))
    (maps, truth), (val_maps, _) = (kept_maps(d, a.weights, Path(a.keep) / f'{d.split}.pt') for d in (data, val))
    file, line = Path(a.keep) / f'{kind}{" beside" * a.beside}.json', Line(data, data.labels, 'timm:tf_efficientnet_lite2', a.keep) if kind == 'net' else None
    found, nothing, everything = json.loads(file.read_text()) if file.exists() else {}, torch.full_like(truth, 255), list(range(len(data)))
    photographs, steps, steps_alone = STEPS[kind]
    taught = lambda n, draw: line.masks(n, draw, a.keep) if line else nothing
    part = lambda draw: sorted(np.random.default_rng([99, draw]).permutation(len(data))[:photographs].tolist())
    kept = lambda at, masks, outlined=(): Kept(maps, data.labels, data.names, at, masks, outlined)

    def fresh():
        torch.manual_seed(0)
        return NETS[kind](Tail(a.weights, kind != 'net'))

    def note(key, make):
        if key not in found: found[key] = scored(make(), val, val_maps, 1 if kind == 'cam' else 2)
        file.write_text(json.dumps(found))
        print(kind, key, found[key], flush=True)

    def given(masks, chosen):
        out = masks.clone()
        out[chosen] = truth[chosen]
        return out

    def first(key, masks):
        "From all photographs: a localiser once, the network from each set of masks"
        file = Path(a.keep) / f'first {kind} {key}.pt'
        if not file.exists(): torch.save(trained(fresh(), kept(everything, masks), kind, FIRST[kind], 16).state_dict(), file)
        return torch.load(file)

    def both(n, draw):
        chosen, key, net = drawing(data, n, draw), (n, draw) if n and a.beside else (0, 0), fresh()
        at = [i for i in part(draw) if i not in chosen] + chosen
        net.load_state_dict(first(key, given(taught(*key), chosen if any(key) else [])))
        return trained(net, kept(at, given(taught(*key), chosen), [at.index(i) for i in chosen]), kind, steps, 8, draw, .5)

    def alone(n, draw):
        chosen = drawing(data, n, draw)
        return trained(fresh(), kept(chosen, given(nothing, chosen), () if kind == 'net' else range(n)), kind, steps_alone, min(8, n), draw)

    def all_masks(draw):
        net = fresh()
        net.load_state_dict(first('all', truth))
        return trained(net, kept(part(draw), truth), kind, steps, 8, draw, .5)

    for n, draw in [(n, draw) for n in (0, 6, 12, 24, 60) for draw in (0, 1, 2)]:
        note(f'both {n} {draw}', lambda: both(n, draw))
        if n: note(f'alone {n} {draw}', lambda: alone(n, draw))
        elif kind == 'net': note(f'all {draw}', lambda: all_masks(draw))


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('what', nargs='+', choices=(*NETS, 'line'))
    for name in ('root', 'tags', 'weights', 'keep'): p.add_argument(f'--{name}', default='')
    p.add_argument('--beside', action='store_true', help='net: masks that the frozen line makes beside the outlines')
    a = p.parse_args()
    torch.set_num_threads(1)
    Path(a.keep).mkdir(parents=True, exist_ok=True)
    for kind in a.what: measure_line(a) if kind == 'line' else measure(kind, a)


if __name__ == '__main__': main()
