"""What computes, on every device there is: the numbers of the CPU within what float32 leaves. `make test-cuda` runs it on a graphics card; what is not run there stands at the end, with the reason."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from conformity import ground
from inside import inside
from test_on_a_card import STEPPED, tiny
from wsss_nb.base.core import save_json
from wsss_nb.cams import normalize, write_score_maps
from wsss_nb.data.maps import load_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.views import multi_scale
from wsss_nb.engine.evaluate import count_masks, write_predictions
from wsss_nb.engine.methods import METHODS, build_localiser, load_localiser, localiser_learner, segmenter_learner
from wsss_nb.engine.record import Run
from wsss_nb.engine.run import make_run
from wsss_nb.nets.zoo import build
from wsss_nb.papers.ccmr import ccmr, swp
from wsss_nb.papers.conformity import random_labels, training_batch
from wsss_nb.refine.batched import ccmr_at_once, pamr_at_once
from wsss_nb.refine.irn import IRNet, boundary_walk
from wsss_nb.refine.pamr import pamr
from wsss_nb.refine.psa import AffinityNet, affinity_walk
from wsss_nb.results.predict import Predictor

HERE = Path(__file__).parent
OWN = dict(frozen=dict(side=48, lessons=1))


@pytest.fixture(autouse=True)
def exact():
    "float32 as the CPU has it: without TF32, which keeps ten bits of a product"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def near(a, b, rtol=1e-3, atol=1e-4): return np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=atol)


def to(batch, device): return {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}


@pytest.mark.parametrize('method', STEPPED)
def test_the_losses_of_a_method_are_those_of_the_cpu(method, device):
    torch.manual_seed(0)
    net = build_localiser(method, 3, ground(method)).eval()  # without dropout, which draws otherwise on a card
    batch, found = training_batch(net, random_labels(4, 3)), []
    for where in ('cpu', device):
        losses = net.to(where)(to(batch, where))
        losses['loss'].backward()
        found.append({k: float(v) for k, v in losses.items()} | {'slope': sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)})
        net.zero_grad()
    assert found[0].keys() == found[1].keys() and all(near(found[0][k], found[1][k], 1e-2, 1e-3) for k in found[0])


@pytest.mark.parametrize('method', METHODS)
def test_a_method_learns_goes_on_elsewhere_and_its_maps_are_the_same(method, device, tmp_path):
    data = synthetic('train', n=8)
    how = dict(method=method, backbone=ground(method), weights='', crop=48, long_side=(48, 64), epochs=1, batch_size=4, lr=.001, options=OWN.get(method), cache=tmp_path / 'cache', folder=tmp_path, workers=0)
    learner = localiser_learner(data, device=device, precision='fp32', channels_last=False, **how)
    losses = learner.fit()
    assert all(np.isfinite(v) for h in losses for v in h.values()) and next(learner.raw_net.parameters()).device.type == torch.device(device).type
    save_json(tmp_path / 'stage.json', dict(stage='train', parameters=dict(method=method, backbone=ground(method), stride=0, options=OWN.get(method, {})), results=dict(classes=data.classes)))
    for where in ('cpu', device): write_score_maps(load_localiser(tmp_path, where)[0], data, tmp_path / f'maps {where}', scales=(1., .5))
    for name in data.names:
        a, b = (load_maps(tmp_path / f'maps {where}/{name}.npz') for where in ('cpu', device))
        assert a.keys.tolist() == b.keys.tolist() and np.mean(np.abs(a.maps.astype(float) - b.maps) < .02) > .99  # a pixel may change its prototype
    assert localiser_learner(data, device='cpu', precision='fp32', channels_last=False, **how).fit() == losses  # what was learnt there is read here


@pytest.mark.parametrize('precision', ['auto', 'bf16', 'fp16'])
def test_every_precision_stays_finite_and_near(precision, device, tmp_path):
    a, b = (tiny('cam', tmp_path, p, device=device) for p in (precision, 'fp32'))
    assert near([h['loss'] for h in a.fit()], [h['loss'] for h in b.fit()], .1, .05)


def test_two_trainings_with_one_seed_are_near(device, tmp_path):
    a, b = (tiny('sipe', tmp_path, 'fp32', device=device).fit() for _ in 'ab')
    assert near([h['loss'] for h in a], [h['loss'] for h in b])


def test_a_learner_elsewhere_does_not_move_one_on_the_cpu(device, tmp_path):
    whole = tiny('cam', tmp_path, 'fp32', device='cpu').fit()
    tiny('cam', tmp_path, 'fp32', device=device).fit()
    again = tiny('cam', tmp_path, 'fp32', device='cpu')
    assert again.fit() == whole and next(again.raw_net.parameters()).device.type == 'cpu'


@pytest.mark.parametrize('workers', [0, 1])
def test_a_segmenter_learns_and_predicts(device, workers, tmp_path):
    data = synthetic('train', n=8)
    how = dict(backbone='tiny', weights='', crop=48, epochs=1, batch_size=4, width=16, precision='fp32', channels_last=False, lr=.001)
    learner = segmenter_learner(data, device=device, workers=workers, folder=tmp_path / 'net', **how)
    assert all(np.isfinite(h['loss']) for h in learner.fit())
    for where in ('cpu', device): write_predictions(learner.raw_net.to(where), data, tmp_path / where, scales=(1., .5), workers=1)
    a, b = (count_masks(data, tmp_path / where).matrix for where in ('cpu', device))
    assert np.abs(a - b).sum() <= .002 * a.sum()
    mask = Predictor(learner)(data.image(0))
    assert np.asarray(getattr(mask, 'mask', mask)).shape[:2] == data.size(0)


@pytest.mark.parametrize('kind', [AffinityNet, IRNet])
def test_affinity_networks_give_the_losses_of_the_cpu(kind, device):
    torch.manual_seed(0)
    net, g = kind(build('tiny'), radius=3).eval(), torch.Generator().manual_seed(0)
    batch = dict(image=torch.rand(2, 3, 64, 64, generator=g), mask=torch.randint(0, 3, (2, 64, 64), generator=g))
    a, b = ({k: float(v) for k, v in net.to(where)(to(batch, where)).items()} for where in ('cpu', device))
    assert a.keys() == b.keys() and all(near(a[k], b[k], 1e-2, 1e-3) for k in a)


def drawn(*shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_walks_and_refinements_are_those_of_the_cpu(device):
    image, maps, present = drawn(2, 3, 20, 24), drawn(2, 4, 20, 24), torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    features = drawn(1, 8, 12, 12)
    for f in (lambda d: pamr(image.to(d), maps.to(d), 3, (1, 2, 4)), lambda d: pamr_at_once(image.to(d), maps.to(d), 3, (1, 2, 4)),
              lambda d: ccmr(image.to(d), (maps * present[..., None, None]).to(d), present.to(d), 3, 20., (1, 2)), lambda d: ccmr_at_once(image.to(d), (maps * present[..., None, None]).to(d), present.to(d), 3, 20., (1, 2), True, 1e-6),
              lambda d: normalize(maps.to(d)), lambda d: swp(maps.to(d), maps.to(d), maps.to(d), present.to(d)),
              lambda d: torch.as_tensor(affinity_walk(maps[:1, :, :12, :12].to(d), features.to(d), radius=3)), lambda d: torch.as_tensor(boundary_walk(maps[:1, :, :12, :12].to(d), drawn(1, 12, 12).to(d), radius=3))):
        a, b = f('cpu'), f(device)
        assert a.shape == b.shape and torch.allclose(a.cpu(), b.cpu(), atol=1e-6)


def test_test_time_scales_and_gradients_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    net, data = build_localiser('cam', 8).eval(), synthetic('train', n=2)
    images = [data.image(0)] * 2
    a, b = (multi_scale(net.to(where).raw_maps, images, (1., .5), True, where, max_side=64).cpu() for where in ('cpu', device))
    assert torch.allclose(a, b, atol=1e-3)


def test_a_run_of_all_stages(device, tmp_path):
    recipe = dict(limit=6, device=device, splits=['train'], seed=0, workers=0, epochs=1, batch_size=4, crop=48, scales=[1.], refine=['pamr', 'crf'], precision='fp32', segment=dict(width=16), train=dict(long_side=[48, 64]), pamr_iters=2, crf_iters=2)
    with inside(): run = Run(make_run('r', recipe, tmp_path, lambda text: None))
    assert run.state == 'done' and run.stages.keys() >= {'train', 'masks', 'segment', 'evaluate'}


NOT_THERE = {  # what has nothing to do on a card, or must not: the reason -> the files of tests
    'it has tensors that only claim to be on a card, and runs where there is none': 'on_a_card devices',
    'it compares numbers of the CPU to the last bit: golden values, runs made again, resumed ones': 'numbers faults processes run published verify stages spread weights together until warm papers_ccmr papers_ecsnet papers_icd papers_seam papers_sipe papers_svm '
        'audit line cells named given_seeds doubt outlined paired conformity cams nets nets_deeplab from_timm refine_batched refine_irn refine_pamr refine_psa refine_superpixels saliency prompt told rollout families predict tiles scale ahead views sizes',
    'it reads, writes and refuses: no tensor is computed': 'bad_files data_catalog data_check data_coco data_folder data_sample data_tags data_voc data_sources synthetic parts on_parts tags given_masks submission sources domains trust load installs make package house surface public cli '
        'page report show look handover grid tables alone lab site metrics plugs until progress workers papermill',
    'it executes whole notebooks, whose device is auto: on a card `make test` runs them there': 'notebooks browser',
}


def test_every_file_of_tests_runs_here_or_says_why_not():
    said = {f'test_{name}.py' for names in NOT_THERE.values() for name in names.split()}
    there = {p.name for p in HERE.glob('test_*.py')}
    silent = {n for n in there - said - {'test_cuda.py'} if not re.search(r'\bdevice\b.*\):', (HERE / n).read_text(encoding='utf-8'))}
    assert silent == set()
