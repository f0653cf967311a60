"""Two processes train what one trains: the same batches, losses and weights, side by side and through a whole recipe, which torchrun starts."""
import json
import os
import socket
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conformity import ground
from inside import FORKS, in_kernels, inside
from wsss_nb.cli import main
from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.methods import AFFINITIES, METHODS, affinity_learner, localiser_learner, method_class, segmenter_learner
from wsss_nb.base.processes import SharedNorm, count, everyones, launcher, share_norms
from wsss_nb.engine.batches import Batches
from wsss_nb.engine.checkpoint import read_checkpoint
from wsss_nb.engine.train import Callback, Learner

class Seen(Callback):
    "The images of each step"
    def __init__(self): self.names = []
    def after_step(self, learner, batch, losses): self.names.append(list(batch['name']))


STEPPED = [m for m in METHODS if not hasattr(method_class(m), 'learner')]  # one that brings its own takes no steps that could be shared


def localiser_in(cache):
    "The folder of a localiser, for the affinity networks to stand on"
    folder, data = Path(cache) / 'localiser', synthetic('train', n=4)
    localiser_learner(data, 'cam', 'tiny', '', crop=48, long_side=(48, 64), epochs=1, batch_size=4, device='cpu', folder=folder).fit()
    save_json(folder / 'stage.json', dict(stage='train', parameters=dict(method='cam', backbone='tiny', stride=0, options={}), results=dict(classes=data.classes)))


def learners(cache):
    "What is trained both ways: 11 images in batches of 4, so 3 are left over in each round"
    data, half = synthetic('train', n=11), lambda m: np.where(np.arange(m.shape[1]) < m.shape[1] // 3, 255, m).astype(np.uint8)
    some = synthetic('train', n=11)
    some.mask = lambda i: half(data.mask(i)) if i % 2 else data.mask(i)  # shares of a batch have another number of pixels
    kw = dict(backbone='tiny', weights='', epochs=2, batch_size=4, crop=48, optimizer='sgd', lr=.01, device='cpu')
    calm = lambda method: dict(dropout=0.) if method in ('ecsnet', 'seam') else {}
    out = {m: partial(localiser_learner, data, m, long_side=(48, 64), options=calm(m), cache=cache, **{**kw, 'backbone': ground(m)}) for m in STEPPED}
    out.update({f'segment {loss}': partial(segmenter_learner, some, loss=loss, norm='batch', **kw) for loss in ('plain', 'balanced')})
    own = {k: v for k, v in kw.items() if k not in ('backbone', 'weights')}
    out.update({kind: partial(affinity_learner, some, kind, Path(cache) / 'localiser', long_side=(48, 64), radius=3, **own) for kind in AFFINITIES})
    return dict(out, accumulate=partial(localiser_learner, data, 'cam', long_side=(48, 64), accumulate=2, clip=1., **kw))


def trained(make):
    seen = Seen()
    learner = make(callbacks=[seen])
    history = learner.fit()
    return dict(losses=[h['loss'] for h in history], net=learner.raw_net.state_dict(), names=seen.names, shared=any(isinstance(m, SharedNorm) for m in learner.raw_net.modules()))


def normalise_halves():
    "Each of two processes normalises half of a batch, and together they have what plain batch norm makes of the whole (the page of `base.processes` says the same)"
    if not torch.distributed.is_initialized(): torch.distributed.init_process_group('gloo')
    rank, x = torch.distributed.get_rank(), torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    net, plain = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    share_norms(net)
    mine, whole = x[rank::2].clone().requires_grad_(), x.clone().requires_grad_()
    a, b = net(mine), plain(whole)
    weight = torch.arange(360.).view(6, 3, 5, 4).sin()
    (a * weight[rank::2]).sum().backward(), (b * weight).sum().backward()
    assert torch.allclose(a, b[rank::2], atol=1e-5) and torch.allclose(mine.grad, whole.grad[rank::2], atol=1e-5)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(net.state_dict().values(), plain.state_dict().values()))
    assert everyones(x[rank::2]).shape == x.shape and count(x[:1 + rank] > 9) == .5


RANK = '''
import os, sys, torch
os.environ.update(RANK='{rank}', LOCAL_RANK='{rank}', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='{port}')  # as torchrun tells them
sys.path.insert(0, {tests!r})
from test_processes import learners, normalise_halves, trained
torch.save({{name: trained(make) for name, make in learners({cache!r}).items()}}, {out!r} + os.environ['RANK'])
normalise_halves()
'''


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Everything trained by two processes: what each of them has in the end"
    d = tmp_path_factory.mktemp('pair')
    localiser_in(d)
    learners(d)['icd']()  # its regions are made once, as a stage would
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    in_kernels(*(RANK.format(rank=i, port=port, tests=str(Path(__file__).parent), out=str(d / 'rank'), cache=str(d)) for i in range(2)))
    return d, *(torch.load(d / f'rank{i}', weights_only=False) for i in range(2))


def largest(a, b): return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a.values(), b.values()) if x.numel())


@pytest.mark.parametrize('name', [*STEPPED, *AFFINITIES, 'segment plain', 'segment balanced', 'accumulate'])
def test_two_processes_train_what_one_trains(pair, name):
    alone, first, second = trained(learners(pair[0])[name]), pair[1][name], pair[2][name]
    print(name, 'losses differ by', np.abs(np.subtract(alone['losses'], first['losses'])).max(), 'weights by', largest(alone['net'], first['net']))
    assert len(alone['losses']) == 4 and all(sorted(w) == sorted(a + b) and len(a) == len(b) == 2 for w, a, b in zip(alone['names'], first['names'], second['names']))
    normed = any(k.endswith('running_mean') for k in alone['net'])  # a transformer normalises each token for itself
    assert first['shared'] == normed == (name != 'rollout') and not alone['shared'] and first['losses'] == second['losses'] and largest(first['net'], second['net']) == 0
    assert np.allclose(alone['losses'], first['losses'], rtol=1e-4, atol=1e-5)
    apart = {k: (x.double() - first['net'][k].double()).abs() for k, x in alone['net'].items()}
    for k, d in apart.items(): assert (d < 1e-4 * (alone['net'][k].clamp(min=1) if k.endswith('running_var') else 1)).all(), k


def test_a_batch_that_cannot_be_shared_is_told():
    with pytest.raises(UserError, match='batch_size: 5 images cannot be shared evenly by 2 processes; choose a multiple of 2'): Batches(11, 5, 1, 0, processes=2)


@pytest.mark.parametrize('where', [[], [True, False, True]])
def test_alone_a_count_is_the_plain_one(where): assert count(torch.tensor(where, dtype=torch.bool)) == max(1, sum(where))


def test_a_launcher_is_a_number_or_a_program(tmp_path, monkeypatch):
    assert launcher('3')[-2:] == ['--nproc_per_node', '3'] and launcher("torchrun --nnodes '2'")[1:] == ['--nnodes', '2']
    with pytest.raises(UserError, match="launch: there is no program 'trochrun'; expected a number of processes"): launcher('trochrun --nproc_per_node 2')
    monkeypatch.setenv('WSSS_LAUNCH', '2')
    with pytest.raises(UserError, match='give the learner a folder'): localiser_learner(synthetic('train', n=4), backbone='tiny', weights='', crop=48, device='cpu').fit()


# -- a whole recipe

SMALL = ['limit=10', 'device=cpu', 'train.epochs=1', 'train.batch_size=4', 'segment.epochs=1', 'segment.batch_size=4', 'optimizer=sgd', 'lr=0.01', 'masks.scales=[1.0]', 'masks.splits=[train]', 'evaluate.splits=[val]', 'workers=0']


def recipe_run(folder, *arguments, recipe='stages: [train, masks, segment, evaluate]\n'):
    folder.mkdir()
    (folder / 'r.yaml').write_text(recipe)
    return main(['run', str(folder / 'r.yaml'), '--no-report', '--runs', str(folder / 'runs'), *[x for o in SMALL for x in ('-p', o)], *arguments])


def numbers(folder): return {(n['what'], n['split'], n['oracle']): n['miou'] for n in json.loads((folder / 'runs/r/metrics.json').read_text())['numbers']}


@pytest.mark.parametrize('launched_stages', [['train'], pytest.param(['train', 'segment'], marks=pytest.mark.slow)], ids='+'.join)  # a launch each
def test_a_recipe_with_two_processes_has_the_numbers_of_one(tmp_path, launched_stages):
    stages_of = [s for s in ('train', 'masks', 'segment', 'evaluate') if s != 'segment' or s in launched_stages]
    recipe = f'stages: [{", ".join(stages_of)}]\n'
    measured = '-p', 'evaluate.splits=[train, val]'
    with inside(): assert recipe_run(tmp_path / 'one', *measured, recipe=recipe) == 0
    with inside(): assert recipe_run(tmp_path / 'two', '--launch', '2', *measured, recipe=recipe) == 0
    one, two = numbers(tmp_path / 'one'), numbers(tmp_path / 'two')
    assert one and one.keys() == two.keys() and all(abs(one[k] - two[k]) < 1e-3 for k in one)
    stages = [sorted((tmp_path / d / 'runs/stages').glob('*/stage.json')) for d in ('one', 'two')]
    assert [p.parent.name for p in stages[0]] == [p.parent.name for p in stages[1]]  # how many processes is no setting
    launched = [{r['stage']: r.get('launch') for p in s for r in [json.loads(p.read_text())]} for s in stages]
    assert launched == [dict.fromkeys(stages_of), {s: '2' if s in launched_stages else None for s in stages_of}]
    for stage in launched_stages:
        a, b = (read_checkpoint(next((tmp_path / d / 'runs/stages').glob(f'{stage}-*/checkpoint.pt'))) for d in ('one', 'two'))
        assert a['step'] == b['step'] == 2 and np.allclose([h['loss'] for h in a['history']], [h['loss'] for h in b['history']], rtol=1e-4)
        assert largest(a['net'], b['net']) < 1e-4
    assert not list((tmp_path / 'two').rglob('.launch.pt'))


LEARNS_BESIDE = """
stages: [train, masks]
train: {method: icd, epochs: 1, batch_size: 4, lr: 0.01, optimizer: sgd}
psa: {epochs: 1, batch_size: 4, radius: 3, reading: {kind: cam}, scales: [1.0]}
irn: {epochs: 1, batch_size: 4, radius: 3, reading: {kind: cam}, scales: [1.0]}
masks: {splits: [train], refine: [psa, irn], reading: {kind: cam}, scales: [1.0], psa_border: true, psa_log2_steps: 2, irn_log2_steps: 2}
limit: 8
device: cpu
workers: 1
"""


@pytest.mark.slow
def test_the_affinity_networks_and_icd_are_launched_as_well(tmp_path):
    (tmp_path / 'r.yaml').write_text(LEARNS_BESIDE)
    with inside(): assert main(['run', str(tmp_path / 'r.yaml'), '--no-report', '--runs', str(tmp_path / 'runs'), '--launch', '2']) == 0
    made = {r['stage']: r for p in (tmp_path / 'runs/stages').glob('*/stage.json') for r in [json.loads(p.read_text())]}
    assert {k: r.get('launch') for k, r in made.items()} == dict(train='2', psa='2', irn='2', masks=None)
    for stage in ('train', 'psa', 'irn'):
        state = read_checkpoint(next((tmp_path / 'runs/stages').glob(f'{stage}-*/checkpoint.pt')))
        assert state['step'] == 2 and all(np.isfinite(h['loss']) for h in state['history'])
    assert any(state['net']['mean_displacement'].flatten())  # what IRN measures after the training is in its checkpoint


@pytest.mark.slow  # a launch; test_faults has one whose process dies, and what is said of it
def test_an_error_in_one_of_them_is_told_in_one_line(tmp_path, capsys):
    with inside(): assert recipe_run(tmp_path / 'r', '--launch', '2', '-p', 'train.lr=1e30', '-p', 'train.epochs=9') == 1
    err = [l for l in capsys.readouterr().err.splitlines() if l.startswith('wsss: ')]
    assert len(err) == 1 and 'train failed in cell' in err[0] and 'images of this batch' in err[0]


def wait_for_two(folder):
    "A training by two processes, which this one starts and waits for"
    os.environ.update(WSSS_LAUNCH='2', WSSS_PROGRESS='off')
    localiser_learner(synthetic('train', n=8), 'cam', 'tiny', '', crop=32, long_side=(32, 48), epochs=5000, batch_size=4, device='cpu', folder=folder, save_seconds=0).fit()


def of(folder):
    "The processes that were started for a folder"
    out = []
    for f in Path('/proc').glob('[0-9]*/cmdline'):
        try: out += [f.parent.name] if f'{folder}/.launch' in f.read_text() else []
        except OSError: pass  # it has just ended
    return out


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='Linux tells a process that its parent died')
def test_the_processes_end_with_the_kernel_that_waits_for_them(tmp_path):
    waits = FORKS.Process(target=wait_for_two, args=(tmp_path,))
    waits.start()
    try:
        end = time.monotonic() + 300
        while not (tmp_path / 'checkpoint.pt').exists() and time.monotonic() < end: time.sleep(.1)
        assert len(of(tmp_path)) == 3  # torchrun and two of its own
    finally: waits.kill(); waits.join()
    end = time.monotonic() + 60
    while of(tmp_path) and time.monotonic() < end: time.sleep(.2)
    assert not of(tmp_path) and 0 < read_checkpoint(tmp_path / 'checkpoint.pt')['step'] < 10000
