"Dense CRF: the authors' values, pydensecrf against torch, an exact mean field, and what goes wrong"
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.sample import ScoreMaps, read_mask, save_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine import evaluate, refining
from wsss_nb.engine.methods import build_segmenter
from wsss_nb.engine.parameters import notebook_parameters, stage_notebook
from wsss_nb.refine import crf, place
from wsss_nb.refine.chain import refine, refine_together, to_mask
from wsss_nb.refine.lattice import Lattice
from wsss_nb.refine.masks import write_masks

GOLDEN = np.load(Path(__file__).parent / 'goldens/crf.npz')
built = pytest.mark.skipif(not find_spec('pydensecrf'), reason='needs pydensecrf2, which is built with a C++ compiler: make setup')
BACKENDS = [pytest.param('pydensecrf', marks=built), 'torch']


def picture(h=40, w=52, c=3, seed=0):
    "Blocks of colour with a little noise, and noisy probabilities that follow them"
    r = np.random.default_rng(seed)
    ids = r.integers(0, c, (h // 10 + 1, w // 13 + 1)).repeat(10, 0).repeat(13, 1)[:h, :w]
    image = (np.array([[60, 90, 50], [150, 80, 60], [70, 80, 170], [200, 200, 190]])[ids] + r.normal(0, 6, (h, w, 3))).clip(0, 255).astype(np.uint8)
    logits = 1.5 * np.eye(c)[ids].transpose(2, 0, 1) + r.normal(0, 1, (c, h, w))
    p = np.exp(logits)
    return image, (p / p.sum(0)).astype(np.float32)


@pytest.mark.parametrize('backend', BACKENDS)
def test_golden_psa(backend):
    want = GOLDEN['psa_crf_inference_t10']
    got = crf.dense_crf(GOLDEN['img'], GOLDEN['prob'], preset='psa', iters=10, backend=backend)
    assert got.shape == want.shape and got.dtype == np.float32
    assert (got.argmax(0) == want.argmax(0)).mean() >= .999 and np.abs(got - want).mean() < 1e-4


@pytest.mark.parametrize('backend', BACKENDS)
def test_golden_irn(backend):
    got = crf.crf_from_labels(GOLDEN['img'], GOLDEN['label'], 4, preset='irn', backend=backend)
    assert (got == GOLDEN['irn_crf_inference_label_t10']).mean() >= .999


def test_golden_irn_labels_from_two_thresholds():
    keys, cams = GOLDEN['irlabel_keys'], GOLDEN['irlabel_cams']
    fg, bg = (keys[crf.crf_from_labels(GOLDEN['img'], np.concatenate([np.full((1, *cams.shape[1:]), t), cams]).argmax(0), len(keys))] for t in (.3, .05))
    got = np.where(fg != 0, fg, np.where(bg == 0, 0, 255))
    assert (got == GOLDEN['irlabel_irn']).mean() >= .999


@built
@pytest.mark.parametrize('preset', list(crf.PRESETS))
def test_torch_agrees_with_pydensecrf(preset):
    for seed, c in ((0, 3), (1, 2), (2, 4)):
        image, p = picture(c=c, seed=seed)
        a, b = (crf.dense_crf(image, p, preset, backend=k, device='cpu') for k in ('pydensecrf', 'torch'))
        assert (a.argmax(0) == b.argmax(0)).mean() >= .998 and np.abs(a - b).mean() < 1e-3


def test_settings_are_those_of_the_table():
    p = crf.PRESETS
    rows = {k: (v.gauss_sxy, v.gauss_compat, v.sxy, v.srgb, v.compat) for k, v in p.items()}
    assert rows == {'psa': (3, 3, 80, 13, 10), 'irn': (3, 3, 50, 5, 10), 'icd': (3, 3, 80, 13, 10), 'deeplab_v2': (1, 3, 67, 3, 4),
                    'largefov': (3, 3, 121, 5, 4), 'deeplab_v2_vgg': (2, 2, 65, 3, 4), 'seam_retrain': (3, 3, 32, 13, 10)}
    assert (p['irn'].confidence, p['icd'].confidence, p['icd'].undecided, p['irn'].undecided) == (.7, .5, .1, 0)


@pytest.mark.parametrize('backend', BACKENDS)
def test_against_the_exact_mean_field(backend):
    image, probs = picture(16, 20)
    y, x = np.mgrid[:16, :20]
    xy, rgb = np.stack([x, y], -1).reshape(-1, 2) / 1., image.reshape(-1, 3) / 1.
    def kernel(f):
        k = np.exp(-.5 * ((f[:, None] - f)**2).sum(-1))
        return k / np.sqrt(np.outer(k.sum(1), k.sum(1)))
    k = 3 * kernel(xy / 3) + 10 * kernel(np.hstack([xy / 80, rgb / 13]))
    u = np.log(probs.reshape(3, -1).astype(float))
    q = probs.reshape(3, -1).astype(float)
    for _ in range(5): q = torch.tensor(u + q @ k).softmax(0).numpy()
    got = crf.dense_crf(image, probs, 'psa', 5, backend).reshape(3, -1)
    assert (got.argmax(0) == q.argmax(0)).mean() > .97


def test_lattice_is_a_symmetric_positive_gaussian():
    f = torch.tensor(np.random.default_rng(0).normal(size=(120, 3)) * 2)
    lattice = Lattice(f)
    k = lattice(torch.eye(120, dtype=torch.float64))
    exact = torch.exp(-.5 * torch.cdist(f, f, compute_mode='donot_use_mm_for_euclid_dist')**2)
    exact = exact / (exact.sum(0) * exact.sum(1)[:, None]).sqrt()
    assert (k >= 0).all() and torch.allclose(k.sum() / 120, exact.sum() / 120, atol=.1)
    assert np.corrcoef(k.flatten(), exact.flatten())[0, 1] > .9


def test_lattice_groups_do_not_meet():
    f = torch.rand(60, 5, dtype=torch.float64) * 3
    v, group = torch.rand(60, 2, dtype=torch.float64), torch.arange(60) // 20
    parts = torch.cat([Lattice(f[group == g])(v[group == g]) for g in range(3)])
    assert torch.allclose(Lattice(f, group)(v), parts)


def test_batch_is_its_images():
    data = [picture(seed=s) for s in range(3)]
    images = torch.stack([torch.tensor(i).permute(2, 0, 1) / 255 for i, _ in data]).double()
    probs = torch.stack([torch.tensor(p) for _, p in data]).double()
    whole = crf.mean_field(images, probs, 'irn')
    assert whole.dtype == torch.float64 and torch.allclose(whole.sum(1), torch.ones_like(whole[:, 0]))
    for i in range(3): assert torch.allclose(crf.mean_field(images[i:i + 1], probs[i:i + 1], 'irn'), whole[i:i + 1], atol=1e-6)


def test_one_pixel_in_closed_form():
    p = q = torch.tensor([.3, .7], dtype=torch.float64)
    for _ in range(4): q = (p.log() + 14 / 2 * q).softmax(0)
    got = crf.mean_field(torch.rand(1, 3, 1, 1).double(), p.view(1, 2, 1, 1), 'deeplab_v2', 4)
    assert torch.allclose(got.flatten(), q)  # 3 + 4: the compatibilities of the two kernels


@pytest.mark.parametrize('backend', BACKENDS)
def test_nothing_to_decide(backend):
    image, p = picture()
    np.testing.assert_allclose(crf.dense_crf(image, np.zeros_like(p), backend=backend), 1 / 3, atol=1e-5)
    np.testing.assert_allclose(crf.dense_crf(image, p[:1], backend=backend), 1, atol=1e-6)
    assert (crf.crf_from_labels(image, np.zeros(image.shape[:2], int), 1, backend=backend) == 0).all()
    np.testing.assert_allclose(crf.dense_crf(image, p, iters=0, backend=backend), p, atol=1e-6)


def test_icd_leaves_undecided_what_no_label_wins():
    image, _ = picture()
    unknown = np.full(image.shape[:2], 255)
    assert (crf.crf_from_labels(image, unknown, 21, 'icd') == 255).all() and (crf.crf_from_labels(image, unknown, 21, 'irn') == 0).all()
    unknown[:, :26] = 4
    got = crf.crf_from_labels(image, unknown, 21, 'icd')
    assert got.dtype == np.uint8 and (got[:, :26] == 4).all()


def test_icd_unary():
    u = crf.unary_from_labels(np.array([[0, 8, 255]]), 21, crf.PRESETS['icd'].confidence)[:, 0]
    np.testing.assert_allclose(np.exp(-u[:, 2]), 1 / 21, rtol=1e-5)
    np.testing.assert_allclose([u[0, 0], u[8, 1], u[1, 0]], [np.log(2), np.log(2), np.log(40)], rtol=1e-5)


def in_maps(c, seed, h=40, w=52):
    image, p = picture(h, w, c, seed)
    return image, ScoreMaps(np.arange(c) * 3, p)


@built
@pytest.mark.parametrize('preset, share', [('psa', .9999), ('irn', .9999), ('icd', .9999), ('deeplab_v2', .9999)])
def test_a_batch_on_the_device_has_the_labels_of_pydensecrf_one_by_one(preset, share, device):
    images, maps = zip(*(in_maps(c, seed, 120, 160) for seed, c in enumerate((3, 2, 4, 1, 3))))
    many = refine_together(images, maps, ['crf'], crf_preset=preset, crf_backend='torch', device=str(device))
    single = [refine(i, m, ['crf'], crf_preset=preset, crf_backend='pydensecrf') for i, m in zip(images, maps)]
    assert np.mean([to_mask(a) == to_mask(b) for a, b in zip(many, single)]) >= share
    assert all(np.array_equal(a.keys, b.keys) for a, b in zip(many, single)) and many[3] is not maps[3]
    assert all(np.abs(a.maps - b.maps).mean() < 1e-3 for a, b in zip(many, single))


def test_labels_that_an_image_has_not_get_nothing_of_a_batch():
    (i, p), (j, q) = picture(c=4, seed=3), picture(c=2, seed=4)
    both = crf.infer([i, j], [crf.unary_from_probs(p), crf.unary_from_probs(q)], 'psa', 10, 'torch', 'cpu')
    assert [x.shape for x in both] == [p.shape, q.shape] and all(np.isfinite(x).all() and np.allclose(x.sum(0), 1, atol=1e-5) for x in both)
    for image, given, x in ((i, p, both[0]), (j, q, both[1])): np.testing.assert_allclose(crf.dense_crf(image, given, backend='torch', device='cpu'), x, atol=1e-5)


def test_one_device_for_the_whole_chain(monkeypatch):
    image, maps = in_maps(3, 5)
    seen = []
    monkeypatch.setattr(crf, 'pick_device', lambda name: seen.append(name) or torch.device('cpu'))
    refine(image, maps, ['pamr', 'crf'], crf_backend='torch', device='there')
    assert seen == ['there']


def there(monkeypatch): monkeypatch.setattr(place, 'pick_device', lambda name: torch.device('cuda' if name == 'auto' else name))


@built
@pytest.mark.parametrize('seconds, backend, n', [(dict(pydensecrf=.2, torch=.01), 'torch', 8), (dict(pydensecrf=.02, torch=.03), 'pydensecrf', 0)])
def test_with_a_card_the_quicker_one_is_taken(seconds, backend, n, monkeypatch):
    there(monkeypatch)
    asked = []
    found = place.place_of_crf('auto', 'auto', lambda device: asked.append(device.type) or seconds)
    assert found.backend == backend and found.together == n and found.seconds == seconds and asked == ['cuda'] and found.device == 'cuda'


def test_where_there_is_no_choice_nothing_is_tried(monkeypatch):
    there(monkeypatch)
    def never(device): raise AssertionError
    assert place.place_of_crf('torch', 'cpu', never) == ('torch', 'cpu', {}) and place.place_of_crf('torch', 'auto', never).together == 8
    monkeypatch.setitem(__import__('sys').modules, 'pydensecrf.densecrf', None)
    assert place.place_of_crf('auto', 'auto', never) == ('torch', 'cuda', {}) and place.place_of_crf('auto', 'cpu', never).together == 0


def test_one_process_for_one_card(tmp_path, monkeypatch):
    there(monkeypatch)
    monkeypatch.setitem(__import__('sys').modules, 'pydensecrf.densecrf', None)
    assert place.place_of_crf().workers(4) == 1 and place.place_of_crf(device='cpu').workers(4) == 4
    asked = []
    monkeypatch.setattr(evaluate, 'parallel', lambda f, items, what, total, workers: asked.append(workers) or ())
    for crf_preset in ('psa', ''): evaluate.write_predictions(build_segmenter(8), synthetic('val', n=1), tmp_path, crf=crf_preset, workers=4)
    assert asked == [1]


@built
def test_pydensecrf_has_all_cores_beside_a_card_without_a_trial(monkeypatch):
    there(monkeypatch)
    found = place.place_of_crf()
    assert found == ('pydensecrf', 'cuda', {}) and found.workers(4) == 4 and found.together == 0


@built
def test_a_stage_tries_once_and_keeps_what_it_found(tmp_path, monkeypatch):
    there(monkeypatch)
    data, tried = synthetic('val', n=3), []
    blank = ScoreMaps(np.zeros(0, int), np.zeros((0, *data.image(0).shape[:2]), np.float32))
    for i, name in enumerate(data.names): save_maps(tmp_path / f'maps/{name}.npz', *(blank if i == 0 else ScoreMaps(np.array([1]), (data.mask(i) > 0)[None].astype(np.float32))))
    def here(image, maps, steps, device, *more, **settings):
        tried.append((image.shape[:2], tuple(steps), device.type))
        return place.seconds_each(image, maps, steps, 'cpu', *more, together=2, **settings)
    monkeypatch.setattr(refining, 'seconds_each', here)
    params = {k: v for k, (v, _) in notebook_parameters(stage_notebook('masks')).items()} | dict(refine=['crf'], crf_iters=2, max_side=90)
    stage = SimpleNamespace(p=SimpleNamespace(**params), params=params, folder=tmp_path, data=lambda split: data)
    first, again = (refining.crf_place(stage, 'val', tmp_path / 'maps') for _ in range(2))
    assert len(tried) == 1 and tried[0][0] == tuple(min(90, n) for n in data.image(1).shape[:2]) and tried[0][1:] == (('crf',), 'cuda') and first == again
    assert first.backend == min(first.seconds, key=first.seconds.get) and all(s > 0 for s in first.seconds.values())
    save_json(tmp_path / 'crf.json', dict(pydensecrf=1., torch=.5))
    assert refining.how_masks(refining.crf_place(stage, 'val', tmp_path / 'maps'), ['crf']) == dict(crf_backend='torch', device='cuda', together=8)
    assert refining.how_masks(first, ['pamr']) == {}
    stage.p.refine = ['pamr']
    assert refining.crf_place(stage, 'val', tmp_path / 'maps') is None


def test_masks_made_together_are_those_made_one_by_one(tmp_path, device):
    data = synthetic('val', n=9)
    for s in (data[i] for i in range(9)): save_maps(tmp_path / f'maps/{s.name}.npz', np.array(s.tags), np.stack([(s.mask == t) * .9 for t in s.tags]).astype(np.float32))
    how = dict(steps=['crf'], crf_backend='torch', crf_iters=3, device=str(device))
    for folder, more in (('one', dict(workers=1)), ('more', dict(together=4)), ('tiles', dict(together=4, tile=64, max_side=90))): write_masks(data, tmp_path / 'maps', tmp_path / folder, **how, **more)
    one, more, tiles = ([read_mask(tmp_path / f / f'{name}.png') for name in data.names] for f in ('one', 'more', 'tiles'))
    assert np.mean([(a == b).mean() for a, b in zip(one, more)]) > .9999 and all(a.shape == b.shape for a, b in zip(one, tiles))
    kept = (tmp_path / f'more/{data.names[2]}.png').stat().st_mtime_ns
    (tmp_path / f'more/{data.names[3]}.png').unlink()
    write_masks(data, tmp_path / 'maps', tmp_path / 'more', **how, together=4)
    assert (tmp_path / f'more/{data.names[2]}.png').stat().st_mtime_ns == kept and np.array_equal(read_mask(tmp_path / f'more/{data.names[3]}.png'), one[3])


def test_many_in_order_and_lazily():
    data = [picture(seed=s) for s in range(7)]
    drawn = []
    def items():
        for d in data: drawn.append(1); yield d
    results = crf.crf_many(items(), workers=2, preset='irn')
    first = next(results)
    assert len(drawn) < 7
    for (i, p), q in zip(data, [first, *results]): assert np.array_equal(q, crf.dense_crf(i, p, 'irn'))


def test_many_hands_on_an_error():
    image, p = picture()
    with pytest.raises(UserError, match='expected the size of the image'): list(crf.crf_many([(image, p), (image, p[:, 1:])], workers=2))


image, probs = picture()
nan = probs.copy()
nan[0, 0, 0] = np.nan


@pytest.mark.parametrize('call, text', [
    (lambda: crf.dense_crf(image, probs[:, :, 1:]), 'probs: expected the size of the image, 40 x 52, got 40 x 51'),
    (lambda: crf.dense_crf(image, nan), '1 values are NaN or infinite'),
    (lambda: crf.dense_crf(image.astype(np.float32), probs), 'expected RGB uint8'),
    (lambda: crf.dense_crf(image[..., 0], probs), 'expected RGB uint8'),
    (lambda: crf.dense_crf(image, (probs > .5).astype(int)), 'expected floating-point maps'),
    (lambda: crf.dense_crf(image, probs * 9), 'are these logits'),
    (lambda: crf.dense_crf(image, probs, 'irm'), "Did you mean 'irn'"),
    (lambda: crf.dense_crf(image, probs, backend='pytorch'), "Did you mean 'torch'"),
    (lambda: crf.crf_from_labels(image, np.full(image.shape[:2], 3), 3), 'expected 0..2 or 255, got 3'),
    (lambda: crf.crf_from_labels(image, np.zeros(image.shape[:2]), 3), 'expected integers'),
    (lambda: crf.crf_from_labels(image, np.zeros((4, 4), int), 3), 'label_map: expected the size of the image'),
    (lambda: crf.crf_from_labels(image, np.zeros(image.shape[:2], int), 3, confidence=1), 'between 0 and 1'),
    (lambda: crf.mean_field(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 9)), 'of one size'),
    (lambda: crf.mean_field(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8) * float('nan')), 'NaN'),
])
def test_messages(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


def test_without_pydensecrf(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pydensecrf.densecrf', None)
    assert crf.pick_backend() == 'torch'
    with pytest.raises(UserError, match=r'^pydensecrf2 is not installed; for crf_backend=pydensecrf \(crf_backend=torch needs nothing\): .*pip install'): crf.pick_backend('pydensecrf')
    assert (crf.dense_crf(GOLDEN['img'], GOLDEN['prob']).argmax(0) == GOLDEN['psa_crf_inference_t10'].argmax(0)).mean() >= .999
