"""Tags and a few outlines on drawings, networks trained: python docs/measured_drawings.py cam sipe net --keep FOLDER

160 drawings of the embedded set and their tags, outlines of some; 40 of `val` are counted, told their tags (the network: and told nothing). Tiny network from random weights, views of 64,
the package's learners with what the recipes of the embedded set say otherwise: 400 steps of 8 (SIPE 800), beside the outlines in their last third, or of the outlined drawings alone. The drawings of outlines are those of docs/measured_mixes.py.
`net` has the masks that the frozen line of docs/measured_mixes.py makes beside the same outlines, told the tags; of outlines alone it has the masks of these. No CRF. What is found goes to FOLDER/<kind> on drawings.json; a stopped run goes on.
"""
import argparse, json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from measured_mixes import counted, drawings_outlined, line_on_drawings
from wsss_nb.cams import with_background
from wsss_nb.data.demo import demo_data
from wsss_nb.data.outlined import Outlined
from wsss_nb.engine.methods import localiser_learner, segmenter_learner

TINY = dict(backbone='tiny', weights='', crop=64, batch_size=8, optimizer='adamw', lr=.002, device='cpu', workers=0)
STEPS = dict(cam=400, sipe=800, net=400)
OPTIONS = dict(cam={}, sipe=dict(gsc=2., bg_weight=.7, widths=[32, 32, 64, 64]))


class Masked(Outlined):
    "Images that all have a mask; that of some is outlined"
    def __init__(self, data, found, outlined): super().__init__(data, found); self.sure = outlined
    has_masks = True
    @property
    def outlined(self): return self.sure  # none where all are: there is nothing beside which they would train


def told(kind, net, image, labels):
    "Scores [K+1,H,W] of an image that is told its tags"
    maps = net.score_maps([image], labels[None], flip=True, **dict(background_of='present') if kind == 'sipe' else {})[0]
    scores = torch.zeros(len(labels) + 1, *image.shape[:2])
    scores[torch.from_numpy(np.asarray(maps.keys, int))] = torch.from_numpy(np.asarray(maps.maps, np.float32))
    return scores if 0 in maps.keys else with_background(scores[None, 1:])[0] if kind == 'sipe' else torch.cat([torch.full_like(scores[:1], .25), scores[1:]])


class Measured:
    def __init__(self, keep):
        self.data, self.val, self.keep = demo_data('train', 160), demo_data('val', 40), keep
        self.ids, self.outlines = range(len(self.data.classes) + 1), lambda at: {self.data.names[i]: self.data.mask(i) for i in at}

    def localiser(self, kind, at, alone, seed):
        "Trained beside the outlines of some, or on these alone"
        data = Outlined(self.data, self.outlines(at)) if at else self.data
        if alone: data = Outlined(self.data.subset(sorted(at)), self.outlines(at))
        learner = localiser_learner(data, kind, long_side=(48, 96), head_lr=1., seed=seed, steps=STEPS[kind], options=OPTIONS[kind], **TINY)
        learner.fit()
        return learner.raw_net.eval()

    def masks(self, kind, net, data): return [told(kind, net, data.image(i), data.labels[i]).argmax(0).numpy().astype(np.uint8) for i in range(len(data))]

    @cached_property
    def line(self): return line_on_drawings(self.data, self.keep)

    def network(self, at, kind, draw):
        "Taught by the masks of the frozen line beside the outlines, by outlines alone, or by all masks"
        if kind == 'all': data = Masked(self.data, self.outlines(range(len(self.data))), [])
        elif kind == 'alone': data = Masked(self.data.subset(sorted(at)), self.outlines(at), [])
        else:
            self.line.learn(self.data.mask, at, seed=draw)
            masks = {n: self.line.maps(self.data.size(i), i).argmax(0).numpy().astype(np.uint8) for i, n in enumerate(self.data.names)}
            data = Masked(self.data, masks | self.outlines(at), at)
        learner = segmenter_learner(data, width=64, seed=draw, steps=STEPS['net'], **TINY)
        learner.fit()
        return learner.raw_net.eval()

    @torch.no_grad()
    def score(self, kind, net):
        "[told the tags, told nothing or None]"
        val = self.val
        of = lambda found: counted(zip(found, (val.mask(i) for i in range(len(val)))), len(self.ids), self.ids)
        if kind != 'net': return [of(self.masks(kind, net, val)), None]
        p = [net.predict([val.image(i)])[0] for i in range(len(val))]
        absent = lambda i: torch.cat([torch.zeros(1, dtype=torch.bool), val.labels[i] == 0])[:, None, None]
        return [of([q.masked_fill(absent(i), -1).argmax(0).numpy() for i, q in enumerate(p)]), of([q.argmax(0).numpy() for q in p])]


def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('what', nargs='+', choices=STEPS)
    p.add_argument('--keep', required=True)
    p.add_argument('--draws', type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(1)
    Path(a.keep).mkdir(parents=True, exist_ok=True)
    m = Measured(a.keep)
    for kind in a.what:
        file = Path(a.keep) / f'{kind} on drawings.json'
        found = json.loads(file.read_text()) if file.exists() else {}
        for draw in range(a.draws):
            for n, at in drawings_outlined(m.data, draw).items():
                for how in ('both', *(['alone'] if n else []), *(['all'] if not n and kind == 'net' else [])):
                    if (key := f'{how} {n} {draw}') in found: continue
                    net = m.network(at, how, draw) if kind == 'net' else m.localiser(kind, at, how == 'alone', draw)
                    found[key] = m.score(kind, net)
                    file.write_text(json.dumps(found))
                    print(kind, key, found[key], flush=True)


if __name__ == '__main__': main()
