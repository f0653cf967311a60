"""What moves a short training, and whether a mean of its last weights holds it still: python docs/closer.py averaging|adding

`averaging --run FOLDER`: the network of a finished run of the embedded set, on its masks, with seeds 0 to 4; at the end its last
weights, their mean over the last third of the steps, and their exponential mean (.95), each counted on `val`.
`adding`: 25 steps of the CAM of `cam_synthetic`, seed 0, once as this machine would and once for each of some ways to add
in another order: how far the weights are apart in the end, and how long the steps took.
Numbers go to runs/measured/averaging.json and adding.json, and nbs/results/noise.ipynb shows them."""
import argparse, json, os, subprocess, sys, time
from pathlib import Path

import torch

from wsss_nb.base.core import load_json, save_json, versions
from wsss_nb.base.rounding import rounding
from wsss_nb.data.catalog import open_data
from wsss_nb.data.together import batches_of_one_size
from wsss_nb.engine.methods import load_localiser, localiser_learner, segmenter_learner
from wsss_nb.engine.record import Run
from wsss_nb.metrics import Confusion
from wsss_nb.refine.masks import WithMasks

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / 'runs/measured'
STAGES = ('masks', 'validate', 'validate_every', 'keep', 'data_name', 'data_root', 'data_tags', 'data_masks', 'data_classes',
          'outlines', 'split', 'limit', 'runs', 'seed', 'save_seconds', 'log')  # parameters that no learner takes
WAYS = {'as it is': {}, 'once more': {}, 'two threads': dict(OMP_NUM_THREADS='2'), 'channels last': dict(LAYOUT='1'),
        'ONEDNN_MAX_CPU_ISA=AVX2': dict(ONEDNN_MAX_CPU_ISA='AVX2'), 'ATEN_CPU_CAPABILITY=avx2': dict(ATEN_CPU_CAPABILITY='avx2'),
        'ATEN_CPU_CAPABILITY=default': dict(ATEN_CPU_CAPABILITY='default'), 'MKL_CBWR=COMPATIBLE': dict(MKL_CBWR='COMPATIBLE'),
        'both AVX2': dict(ONEDNN_MAX_CPU_ISA='AVX2', ATEN_CPU_CAPABILITY='avx2', MKL_CBWR='AVX2')}


class Means:
    "The mean of the weights over the last third of the steps, and an exponential one"
    def __init__(self): self.sum, self.count, self.fading = None, 0, None
    def before_fit(self, learner): pass
    def after_fit(self, learner): pass
    def after_step(self, learner, batch, losses):
        now = {k: v.detach().double().clone() for k, v in learner.raw_net.state_dict().items() if v.is_floating_point()}
        self.fading = now if self.fading is None else {k: .95 * self.fading[k] + .05 * v for k, v in now.items()}
        if learner.step <= learner.steps * 2 / 3: return
        self.sum, self.count = now if self.sum is None else {k: self.sum[k] + v for k, v in now.items()}, self.count + 1


def miou(net, data):
    "Counted as the stage counts: told nothing, mirrored too"
    counts = Confusion(len(data.classes) + 1)
    net.eval()
    with torch.no_grad():
        for batch in batches_of_one_size(data, 8):
            for s, mask in zip(batch, net.predict([s.image for s in batch], flip=True).argmax(1).numpy()): counts.update(mask, s.mask)
    return counts.miou()


def averaging(run, seeds=5):
    "Seed -> mIoU of the last weights and of two means"
    run, val, rows = Run(run), open_data('synthetic', split='val'), []
    asked = {k: v for k, v in run.stages['segment']['parameters'].items() if k not in STAGES}
    data = WithMasks(open_data('synthetic', split='train'), run.stage('masks') / 'train')
    for seed in range(seeds):
        means, start = Means(), load_localiser(run.stage('train'))[0].backbone
        learner = segmenter_learner(data, **asked, seed=seed, start=start, callbacks=[means])
        learner.fit()
        net, last = learner.raw_net, learner.raw_net.state_dict()
        last, rows = {k: v.clone() for k, v in last.items()}, [*rows, dict(seed=seed, last=miou(net, val))]
        for name, w in dict(third={k: v / means.count for k, v in means.sum.items()}, fading=means.fading).items():
            net.load_state_dict({**last, **{k: v.to(last[k].dtype) for k, v in w.items()}})
            rows[-1][name] = miou(net, val)
        print(rows[-1], flush=True)
    return dict(run=run.name, steps=learner.steps, rows=rows)


def steps(out, count=25):
    "Some steps of a CAM; its weights and losses in the end"
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    data, p = open_data('synthetic', split='train'), Run(ROOT / 'runs/published/cam_synthetic').stages['train']['parameters']
    asked = {k: v for k, v in p.items() if k not in (*STAGES, 'epochs', 'options', 'channels_last', 'workers')}
    learner = localiser_learner(data, **asked, seed=0, steps=count, channels_last='LAYOUT' in os.environ, workers=0)
    began = time.time()
    history = learner.fit()
    weights = torch.cat([v.double().flatten() for v in learner.raw_net.state_dict().values() if v.is_floating_point()])
    torch.save(dict(weights=weights, loss=[h['loss'] for h in history], seconds=time.time() - began, where=rounding()), out)


def adding(folder):
    "Way -> how far its weights are from those as it is, and how long it took"
    rows, first = [], None
    for i, (name, env) in enumerate(WAYS.items()):
        out = folder / f'way{i}.pt'
        subprocess.run([sys.executable, __file__, 'steps', '--run', str(out)], env={**os.environ, 'OMP_NUM_THREADS': '1', **env}, check=True)
        made = torch.load(out, weights_only=True)
        first = first if first is not None else made
        apart = (made['weights'] - first['weights']).norm() / first['weights'].norm()
        where = {k: v for k, v in made['where'].items() if v != first['where'].get(k)}
        rows.append(dict(way=name, apart=float(apart), loss=made['loss'][-1], seconds=round(made['seconds'], 1), where=where))
        print(rows[-1], flush=True)
    return dict(steps=25, rows=rows)


def main():
    "Measure, and write it down"
    p = argparse.ArgumentParser()
    p.add_argument('what', choices=('averaging', 'adding', 'steps'))
    p.add_argument('--run', type=Path, required=True)
    a = p.parse_args()
    if a.what == 'steps': return steps(a.run)
    found = averaging(a.run) if a.what == 'averaging' else adding(a.run)
    of = dict(what=a.what, data='synthetic', versions={k: versions()[k] for k in ('torch', 'torchvision')}, device=f'cpu, {rounding()["processor"]}, {rounding()["capability"]}, 1 thread')
    save_json(MEASURED / f'{a.what}.json', of | found)


if __name__ == '__main__': main()
