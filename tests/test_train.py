"""The schedule and SGD against recorded values; a killed training against one that was not."""
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from conformity import ground
from inside import FORKS
from wsss_nb.base.core import UserError
from wsss_nb.engine.methods import METHODS, method_class
from wsss_nb.engine.batches import Batches
from wsss_nb.engine.checkpoint import read_checkpoint
from wsss_nb.engine.rates import parameter_groups, poly
from wsss_nb.engine.train import Callback, Learner

GOLDENS = Path(__file__).parent / 'goldens'


def test_poly_matches_the_recorded_schedules():
    recorded = np.load(GOLDENS / 'schedules.npz')['irn_poly_max50']
    assert np.allclose([[.1 * poly(t, 50), poly(t, 50)] for t in range(55)], recorded, rtol=1e-12)


def test_sgd_with_poly_matches_the_recorded_steps():
    g = np.load(GOLDENS / 'poly_sgd.npz')
    params = [torch.nn.Parameter(torch.from_numpy(g[k])) for k in ('init0', 'init1')]
    net = torch.nn.ParameterList(params)
    net.groups = lambda: [dict(params=[params[0]]), dict(params=[params[1]], head=True)]
    optimizer = torch.optim.SGD(parameter_groups(net, .1, 10., float(g['weight_decay_in_groups'][0])), lr=0., momentum=float(g['momentum_in_groups'][0]))
    for t in range(len(g['p0'])):
        for group in optimizer.param_groups: group['lr'] = group['base_lr'] * poly(t, int(g['max_step']))
        assert np.allclose([group['lr'] for group in optimizer.param_groups], g['lr_after_each_step'][t], rtol=1e-12)
        for p, k in zip(params, ('grads0', 'grads1')): p.grad = torch.from_numpy(g[k][t])
        optimizer.step()
        for p, k in zip(params, ('p0', 'p1')): assert np.allclose(p.detach(), g[k][t], atol=1e-12)


def test_every_image_once_per_epoch_and_any_start():
    steps = list(Batches(11, 3, epochs=4, seed=7))
    assert len(steps) == 12
    for e in range(4):
        seen = [i for b in steps[3 * e:3 * e + 3] for epoch, i in b]
        assert len(set(seen)) == 9 and all(epoch == e for b in steps[3 * e:3 * e + 3] for epoch, _ in b)
    for first in range(13): assert list(Batches(11, 3, 4, 7, first)) == steps[first:]


class Noisy(torch.nn.Module):
    "Dropout uses the global generator, so its state must survive a kill"
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(.3), torch.nn.Linear(8, 1))

    def forward(self, batch): return dict(loss=((self.body(batch['image'].flatten(1)) - batch['image'].sum((1, 2))[:, None]) ** 2).mean())


class Numbers(list): names = [f'n{i}' for i in range(30)]


def view(data, i, rng): return dict(image=torch.tensor([[data[i], rng.normal(), rng.random()]], dtype=torch.float32))


def learner(folder, **kw):
    torch.manual_seed(0)
    return Learner(Noisy(), Numbers(np.linspace(0, 1, 30)), view, **{**dict(epochs=8, batch_size=4, lr=.05, momentum=.9, device='cpu', folder=folder, save_seconds=0, settings=dict(lr=.05)), **kw})


class Slow(Callback):
    "Says that the training has begun, and takes its time"
    def __init__(self, begun, saved): self.begun, self.saved = begun, saved
    def before_fit(self, learner): self.saved or self.begun.set()

    def after_step(self, learner, batch, losses):
        time.sleep(.02)
        if learner.step > 1: self.begun.set()  # behind a checkpoint


def train_slowly(folder, begun, saved): learner(folder, callbacks=[Slow(begun, saved)]).fit()


def test_ten_kills_change_nothing(tmp_path):
    whole = learner(tmp_path / 'whole')
    whole.fit()
    moments, kills = np.random.default_rng(0).uniform(0, .2, 10), 0
    for m in moments:
        begun = FORKS.Event()
        child = FORKS.Process(target=train_slowly, args=(tmp_path / 'killed', begun, m == moments[-1]))  # the last has saved something
        child.start()
        assert begun.wait(60)
        time.sleep(m)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    state = read_checkpoint(tmp_path / 'killed/checkpoint.pt')
    assert kills == 10 and 0 < state['step'] < whole.steps
    again = learner(tmp_path / 'killed')
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.raw_net.state_dict().values(), again.raw_net.state_dict().values()))
    assert again.history == whole.history


def test_workers_change_nothing():
    a, b = learner(None), learner(None, workers=2)
    assert a.fit() == b.fit()


def test_accumulation_equals_the_large_batch():
    class Plain(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Linear(3, 1)
        def forward(self, batch): return dict(loss=(self.w(batch['image'].flatten(1)) ** 2).mean())
    def trained(**kw):
        torch.manual_seed(0)
        l = Learner(Plain(), Numbers(np.linspace(0, 1, 24)), view, epochs=2, lr=.1, momentum=0., device='cpu', schedule='constant', **kw)
        l.fit()
        return l.raw_net.w.weight.detach()
    assert torch.allclose(trained(batch_size=8), trained(batch_size=4, accumulate=2), atol=1e-6)


def test_nan_is_told_with_the_images_of_the_batch():
    with pytest.raises(UserError, match=r'loss is (nan|inf).*images of this batch: n\d+'): learner(None, lr=1e30).fit()


def test_other_settings_are_refused(tmp_path):
    learner(tmp_path).fit()
    with pytest.raises(UserError, match='made with other settings .lr: 0.05 there, 0.1 here'): learner(tmp_path, settings=dict(lr=.1)).fit()


def test_a_checkpoint_of_another_net_is_refused(tmp_path):
    learner(tmp_path).fit()
    other = learner(tmp_path)
    other.raw_net.body = torch.nn.Sequential(torch.nn.Linear(3, 9))
    with pytest.raises(UserError, match='a checkpoint of another network'): other.fit()


class Evil:
    def __init__(self, target): self.target = target
    def __reduce__(self): return os.system, (f'touch {self.target}',)


def test_a_checkpoint_with_code_is_not_run(tmp_path):
    import pickle
    (tmp_path / 'checkpoint.pt').write_bytes(pickle.dumps(Evil(tmp_path / 'ran')))
    with pytest.raises(UserError, match='holds Python code .*it was not run'): read_checkpoint(tmp_path / 'checkpoint.pt')
    torch.save(dict(net=Evil(tmp_path / 'ran')), tmp_path / 'checkpoint.pt')
    with pytest.raises(UserError, match='it was not run'): read_checkpoint(tmp_path / 'checkpoint.pt')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('content', [b'', b'half a file', b'PK\x03\x04 broken zip'])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / 'checkpoint.pt').write_bytes(content)
    with pytest.raises(UserError, match='checkpoint.pt is (damaged|not a PyTorch checkpoint)'): read_checkpoint(tmp_path / 'checkpoint.pt')


def tiny_losses(**kw):
    from wsss_nb.data.synthetic import synthetic
    from wsss_nb.engine.methods import localiser_learner
    return [h['loss'] for h in localiser_learner(synthetic('train', n=8), **{**dict(backbone='tiny', weights='', crop=48, long_side=(48, 64), epochs=2, batch_size=4, device='cpu'), **kw}).fit()]


@pytest.mark.parametrize('method', [m for m in METHODS if not hasattr(method_class(m), 'learner')])  # one that brings its own takes no steps
def test_bf16_stays_close_to_fp32(tmp_path, method, device):
    whole, half = (tiny_losses(method=method, backbone=ground(method), device=device, precision=p, cache=tmp_path, lr=.001) for p in ('fp32', 'bf16'))  # one after the other in one process
    assert whole != half and np.allclose(whole, half, rtol=.05, atol=.02)


def test_channels_last_changes_the_layout_and_not_the_result(): assert np.allclose(tiny_losses(), tiny_losses(channels_last=True), atol=1e-4)


@pytest.mark.slow
def test_compile_changes_the_speed_and_not_the_result(): assert np.allclose(tiny_losses(), tiny_losses(compile=True), atol=1e-3)


def test_what_stands_on_the_backbone_learns_faster():
    from wsss_nb.cams import CamNet
    from wsss_nb.nets.zoo import build
    net = CamNet(build('tiny'), 3)
    net.backbone.freeze('layer1')
    old, new = parameter_groups(net, .1, 10., 1e-4)
    assert (old['lr'], new['lr']) == (.1, 1.) and [p.shape for p in new['params']] == [net.head.weight.shape]
    assert sum(p.numel() for p in old['params']) == sum(p.numel() for n, p in net.backbone.named_parameters() if not n.startswith('layer1'))
