"""What a training does on a graphics card, without one: tensors that only claim to be there, half precision, losses that are read late."""
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conformity import ground
from inside import quiet  # noqa: F401
from wsss_nb.base.core import UserError, seed_everything
from wsss_nb.cams import CamNet
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.views import TrainingViews, finish_views
from wsss_nb.engine.arithmetic import Arithmetic, precision_on, same_form
from wsss_nb.engine.batches import most_tags
from wsss_nb.engine.methods import METHODS, build_localiser, build_segmenter, localiser_learner, method_class
from wsss_nb.engine.rates import make_optimizer
from wsss_nb.engine.reading import Callback, Losses, Reads, read
from wsss_nb.engine.train import Learner
from wsss_nb.nets.zoo import build
from wsss_nb.papers.conformity import random_labels, training_batch
from wsss_nb.refine.irn import IRNet
from wsss_nb.refine.psa import AffinityNet

STEPPED = [m for m in METHODS if not hasattr(method_class(m), 'learner')]  # one that brings its own takes no steps
NETS = {**{m: lambda m=m: build_localiser(m, 3, ground(m)) for m in STEPPED}, 'icd vote': lambda: build_localiser('icd', 3, options=dict(refine='vote')),
        'segment': lambda: build_segmenter(3), 'segment balanced': lambda: build_segmenter(3, loss='balanced'),
        'psa': lambda: AffinityNet(build('tiny'), radius=3), 'irn': lambda: IRNet(build('tiny'), radius=3)}

pytestmark = pytest.mark.usefixtures('quiet')


def there(x): return torch.empty(x.shape, dtype=x.dtype, device='cuda')


def on_a_card(net, batch):
    "The network and the batch as tensors that claim to be on a card; within a FakeTensorMode"
    for m in net.modules():
        for k, p in m._parameters.items(): m._parameters[k] = p if p is None else torch.nn.Parameter(there(p), requires_grad=p.requires_grad)
        for k, b in m._buffers.items(): m._buffers[k] = b if b is None else there(b)
    return net.train(), {k: there(v) if torch.is_tensor(v) else v for k, v in batch.items()}


@pytest.mark.parametrize('name', NETS)
def test_no_method_waits_for_a_card_or_leaves_a_tensor_behind(name):
    net = NETS[name]()
    batch = most_tags(dict(training_batch(net, random_labels(4, 3)), mask=torch.randint(0, 4, (4, 64, 64))))
    for progress, step in ((0., 0), (.5, 5)):  # ICD and CCMR begin with a warm-up
        with FakeTensorMode():  # a number that is read, or two devices in one operation, is an error
            fake, shown = on_a_card(net, dict(batch, progress=progress, step=step))
            losses = fake(shown)
            assert all(v.device.type == 'cuda' for v in losses.values() if torch.is_tensor(v)) and losses['loss'].dtype == torch.float32


def test_views_become_floats_on_a_card_without_a_wait():
    with FakeTensorMode():
        batch = dict(pixels=torch.empty(4, 9, 9, 3, dtype=torch.uint8, device='cuda'), window=torch.empty(4, 4, dtype=torch.int64, device='cuda'), mask=torch.empty(4, 9, 9, dtype=torch.uint8, device='cuda'))
        made = finish_views(batch, (.1, .2, .3))
        assert made['image'].device.type == made['valid'].device.type == 'cuda' and made['image'].shape == (4, 3, 9, 9) and made['mask'].dtype == torch.int64


def test_views_are_resized_on_a_card_without_a_wait():
    with FakeTensorMode():
        on_card = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device='cuda')
        batch = dict(part=on_card(4, 30, 20, 3, dtype=torch.uint8), rows=on_card(4, 7, dtype=torch.int64), columns=on_card(4, 7, dtype=torch.int64), window=on_card(4, 4, dtype=torch.int64))
        made = TrainingViews(9).finish(batch)
        assert made['image'].device.type == 'cuda' and made['image'].shape == (4, 3, 9, 9) and not {'part', 'pixels', 'rows', 'columns'} & made.keys()


def test_a_training_on_parts_is_that_on_views():
    data = synthetic('train', n=12)
    def losses(there):
        seed_everything(0)
        learner = Learner(CamNet(build('tiny'), 8), data, TrainingViews(48, long_side=(40, 90)), epochs=2, batch_size=4, device='cpu', workers=1)
        assert learner.chosen['resized'] == 'by PIL'
        learner.views.there = there
        assert learner.chosen['resized'] == ('on the device' if there else 'by PIL')
        return [h['loss'] for h in learner.fit()]
    assert np.allclose(losses(True), losses(False), atol=2e-3)


@pytest.mark.parametrize('can, precision', [((6, 1), 'fp32'), ((7, 0), 'fp16'), ((7, 5), 'fp16'), ((8, 0), 'bf16'), ((8, 6), 'bf16'), ((9, 0), 'bf16'), ((12, 0), 'bf16')])
def test_the_card_decides_the_precision(monkeypatch, can, precision):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *a, **k: True)  # as a T4 says, which emulates it
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: can)
    cuda, cpu = torch.device('cuda'), torch.device('cpu')
    assert precision_on(cuda) == precision and precision_on(cpu) == 'fp32' and precision_on(cuda, 'fp32') == 'fp32'
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    how = Arithmetic(cuda)
    assert how.said == dict(precision=precision, channels_last=True, tf32=can >= (8, 0), fused=True) and how.scaler.is_enabled() == (precision == 'fp16')
    assert not Arithmetic(cuda, 'fp32').tf32 and not Arithmetic(cuda, channels_last=False).said['channels_last']


def test_products_are_tf32_within_and_as_before_behind(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (8, 0))
    before = torch.get_float32_matmul_precision()
    with Arithmetic(torch.device('cuda')).products(): assert torch.get_float32_matmul_precision() == 'high'
    assert torch.get_float32_matmul_precision() == before


def test_words_that_are_none_are_refused():
    for k, v, text in (('precision', 'fp8', "precision: unknown name 'fp8'"), ('channels_last', 'maybe', "channels_last: unknown name 'maybe'"), ('workers', 'many', "workers: expected auto or a whole number, got 'many'")):
        with pytest.raises(UserError, match=text): learner(**{k: v})
    assert learner(channels_last=True).chosen['channels_last'] and learner(channels_last='true', workers='2').chosen == dict(learner(channels_last=True).chosen, workers=2)


class Numbers(list): names = [f'n{i}' for i in range(40)]


class Line(torch.nn.Module):
    "Its loss is not finite at the steps `bad`"
    def __init__(self, bad=()):
        super().__init__()
        self.w, self.bad = torch.nn.Linear(2, 1), bad

    def forward(self, batch):
        loss = ((self.w(batch['image']) - 1) ** 2).mean()
        return dict(loss=loss * float('nan') if batch['step'] + 1 in self.bad else loss, half=loss.detach() / 2, weight=.5, background=(loss > 9).float())


def view(data, i, rng): return dict(image=torch.tensor([data[i], rng.random()], dtype=torch.float32))


def learner(bad=(), every=1, **kw):
    torch.manual_seed(0)
    made = Learner(Line(bad), Numbers(np.linspace(0, 1, 40)), view, **dict(dict(epochs=5, batch_size=4, lr=.05, device='cpu', workers=0), **kw))
    made.read_every = every
    return made


def test_losses_that_are_read_late_are_the_same():
    whole = learner().fit()
    for every in (2, 7, 20, 500): assert learner(every=every).fit() == whole
    assert len(whole) == 50 and [h['step'] for h in whole] == list(range(1, 51)) and type(whole[3]['half']) is float


def test_a_step_reads_no_number():
    l, batch = learner(every=20), dict(image=torch.rand(4, 2), name=['a'] * 4)
    l.one_step(batch)
    with Reads() as counted:
        for _ in range(18): l.one_step(batch)
        assert counted.seen == [] and len(l.unread) == 19
    l.one_step(batch)
    assert l.unread == []
    with Reads() as counted: losses = l.one_step(batch); float(losses['loss'])
    assert type(losses['half']) is float and len(l.unread) == 1


def test_what_is_counted_is_counted():
    x = torch.arange(6.)
    for f in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.nonzero(), lambda: x[x > 2], lambda: x.unique(), lambda: int(x[0]), lambda: f'{x[1]:.2f}'):
        with Reads() as counted: f()
        assert counted.seen, f


@pytest.mark.parametrize('every', [1, 20])
def test_the_guard_names_step_and_images_whenever_it_looks(every, tmp_path):
    whole = learner(callbacks=[seen := Seen()])
    whole.fit()
    with pytest.raises(UserError, match=f'training stopped at step 13: loss is nan; images of this batch: {", ".join(seen.names[12])}. Lower lr .now 0.039.'): learner(bad=(13, 14, 30), every=every).fit()
    with pytest.raises(UserError, match='step 13'): learner(bad=(13,), every=every, folder=tmp_path, save_seconds=0).fit()
    kept = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert kept['step'] == 12 and len(kept['history']) == 12  # what is saved was looked at


class Seen(Callback):
    def __init__(self): self.names = []
    def after_step(self, learner, batch, losses): self.names.append(batch['name'])


class Adds(Callback):
    "Looks at the best so far, as a validation does"
    def __init__(self): self.best = []
    def after_step(self, learner, batch, losses):
        if learner.step % 5: return
        self.best.append(max((h['score'] for h in learner.history if 'score' in h), default=-1))
        losses['score'] = learner.step


def test_what_a_callback_adds_is_in_the_history_at_once():
    for every in (1, 20):
        history = learner(every=every, callbacks=[adds := Adds()]).fit()
        assert [h.get('score') for h in history[4::5]] == list(range(5, 51, 5)) and adds.best == [-1, *range(5, 46, 5)]


def test_losses_are_read_together_and_only_when_asked():
    several = [Losses(dict(loss=torch.tensor(k / 3), share=torch.tensor(k), sure=torch.tensor(True), weight=.5)) for k in range(3)]
    assert 'loss' in several[0] and len(several[0]) == 4 and torch.is_tensor(several[2].values_of['loss'])
    read(several)
    assert dict(several[2]) == dict(loss=float(torch.tensor(2 / 3)), share=2., sure=1., weight=.5)


def tiny(method, tmp_path, precision, **kw):
    data = synthetic('train', n=8)
    how = dict(backbone=ground(method), weights='', crop=48, long_side=(48, 64), epochs=2, batch_size=4, device='cpu', lr=.001, cache=tmp_path, workers=0)
    return localiser_learner(data, method=method, precision=precision, **{**how, **kw})


@pytest.mark.parametrize('method', STEPPED)
def test_losses_stay_finite_in_float16(method, tmp_path):
    half, whole = (tiny(method, tmp_path, p) for p in ('fp16', 'fp32'))
    a, b = half.fit(), whole.fit()
    assert half.chosen['precision'] == 'fp16' and half.arithmetic.scaler.is_enabled()
    assert all(np.isfinite(v) for h in a for v in h.values()) and a[0] != b[0]
    assert np.isclose(a[0]['loss'], b[0]['loss'], rtol=.02, atol=.01)  # later ones learn from labels of their own


class Halt(Exception): pass


class Stop(Callback):
    def after_step(self, learner, batch, losses):
        if learner.step == 6: raise Halt


def test_a_stopped_training_in_float16_goes_on_to_the_bit(tmp_path):
    def rising(l):  # the factor changes within these few steps
        l.arithmetic.scaler.set_growth_interval(2)
        return l
    data = synthetic('train', n=8)
    make = lambda folder, **more: rising(localiser_learner(data, backbone='tiny', weights='', crop=48, long_side=(48, 64), epochs=5, batch_size=4, device='cpu', lr=.001, workers=0,
                                                           precision='fp16', clip=.5, folder=tmp_path / folder, save_seconds=0, **more))
    whole = make('whole')
    whole.fit()
    with pytest.raises(Halt): make('halted', callbacks=[Stop()]).fit()
    again = make('halted')
    again.fit()
    assert again.arithmetic.scaler.get_scale() == whole.arithmetic.scaler.get_scale() > 65536
    assert again.history == whole.history and all(torch.equal(a, b) for a, b in zip(whole.raw_net.state_dict().values(), again.raw_net.state_dict().values()))


def test_an_overflow_leaves_the_step_out_and_halves_the_factor():
    l = learner(precision='fp16', lr=.1)
    before, factor = l.raw_net.w.weight.clone(), l.arithmetic.scaler.get_scale()
    l.raw_net.w.weight.register_hook(lambda g: g * float('inf'))
    l.one_step(dict(image=torch.rand(4, 2), name=['a'] * 4))
    assert torch.equal(l.raw_net.w.weight, before) and l.arithmetic.scaler.get_scale() == factor / 2


def test_the_checkpoint_of_a_card_goes_on_elsewhere():
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    card, here = torch.optim.AdamW([w], lr=.1, fused=True), torch.optim.AdamW([w], lr=.1)
    card.step()
    here.load_state_dict(same_form(card.state_dict(), here))
    assert not here.param_groups[0]['fused'] and here.state[w]['step'] == 1
    here.step()


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_a_fused_optimiser_takes_the_same_steps_on_a_cpu(name):
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        optimizer = make_optimizer([dict(params=list(net.parameters()), lr=.1, weight_decay=.01)], name, .9, fused)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([p.flatten() for p in net.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)
    assert Arithmetic(torch.device('cpu'), 'bf16').said['fused'] and not Arithmetic(torch.device('cpu'), 'fp32').said['fused']


def test_a_training_on_a_cpu_after_one_on_a_card():
    from accelerate.state import AcceleratorState, PartialState
    whole = learner().fit()
    for state in (AcceleratorState, PartialState): state._shared_state['device'] = torch.device('cuda')  # as if the last one had been there
    l = learner()
    assert l.fit() == whole and l.accelerator.device.type == 'cpu' and next(l.raw_net.parameters()).device.type == 'cpu'


def test_pixels_that_share_their_scores_stay_finite_in_float16():
    from wsss_nb.refine.correlation import correlate
    maps, features = torch.full((1, 3, 56, 56), 40.) * torch.tensor([1., .5, 0.]).view(1, 3, 1, 1), torch.rand(1, 8, 56, 56)
    with torch.autocast('cpu', torch.float16): half = correlate(maps, features)
    assert half.isfinite().all() and torch.allclose(half.float(), correlate(maps, features), rtol=.01)  # 56 x 56 of them add up to more than float16 holds


@pytest.mark.parametrize('name', ['segment', 'segment balanced', 'psa', 'irn'])
def test_networks_of_other_stages_stay_finite_in_float16(name):
    net = NETS[name]().train()
    batch = dict(training_batch(net, random_labels(4, 3)), mask=torch.randint(0, 4, (4, 64, 64)))
    with torch.autocast('cpu', torch.float16): half = net(batch)
    whole = net(batch)
    assert all(torch.as_tensor(v).isfinite() for v in half.values()) and torch.isclose(half['loss'], whole['loss'], rtol=.02)
