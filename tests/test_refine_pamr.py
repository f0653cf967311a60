"PAMR: the authors' values, the definition pixel by pixel, and what follows from it"
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError
from wsss_nb.refine import pamr as P

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / 'goldens/pamr.npz').items()}


@pytest.mark.parametrize('case', ['a', 'e', 'f'])
def test_golden(case):
    g = {k[2:]: v for k, v in GOLDEN.items() if k.startswith(case + '_')}
    d = tuple(g['dilations'].tolist())
    for got, want in ((P.pamr(g['image'], g['mask'], int(g['num_iter']), d), g['out']), (P.pamr(g['image'], g['mask'], 1, d), g['out_iter1']),
                      (P.affinity(g['image'], d), g['aff']), (P.local_std(P.pad(g['image'], max(d)), d), g['std'])):
        assert got.dtype == torch.float32 and (got - want).abs().max() < 1e-5


def pixel_by_pixel(image, mask, dilations):
    "One iteration from the definition, with loops"
    (_, h, w), out = image.shape, np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            at = [(min(max(y + d * i, 0), h - 1), min(max(x + d * j, 0), w - 1)) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)]
            sigma = np.array([image[:, a, b] for a, b in at]).std(0, ddof=1)
            near = [p for i, p in enumerate(at) if i % 9 != 4]
            k = np.array([-(np.abs(image[:, a, b] - image[:, y, x]) / (1e-8 + .1 * sigma)).mean() for a, b in near])
            weight = np.exp(k - k.max())
            out[:, y, x] = sum(v * mask[:, a, b] for v, (a, b) in zip(weight / weight.sum(), near))
    return out


@pytest.mark.parametrize('dilations', [(1,), (2, 5), (1, 24)])
def test_definition(dilations):
    r = np.random.default_rng(0)
    image, mask = r.random((3, 6, 9)), r.random((2, 6, 9))
    want = pixel_by_pixel(image, pixel_by_pixel(image, mask, dilations), dilations)
    got = P.pamr(torch.tensor(image)[None], torch.tensor(mask)[None], 2, dilations)
    np.testing.assert_allclose(got[0], want, atol=1e-7)


def test_a_smaller_mask_is_resized_with_aligned_corners():
    image, mask = torch.rand(2, 3, 9, 13), torch.rand(2, 2, 5, 7)
    corners = P.pamr(image, mask, 0)[:, :, ::8, ::12]
    assert torch.allclose(corners, mask[:, :, ::4, ::6])
    large = torch.nn.functional.interpolate(mask, size=(9, 13), mode='bilinear', align_corners=True)
    assert torch.equal(P.pamr(image, mask), P.pamr(image, large))


def test_absent_channels_cost_nothing_and_stay_zero(monkeypatch):
    image, mask = torch.rand(2, 3, 20, 24), torch.rand(2, 6, 20, 24)
    present = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    seen = []
    real = P.propagate
    monkeypatch.setattr(P, 'propagate', lambda a, m, d: seen.append(m.shape[0]) or real(a, m, d))
    out = P.pamr(image, mask * present[:, :, None, None], iters=3)
    assert seen == [2, 2, 2] and (out[0, [1, 2, 4, 5]] == 0).all() and (out[1] == 0).all()
    assert torch.allclose(out[0, [0, 3]], P.pamr(image, mask, iters=3)[0, [0, 3]], atol=1e-6)


def test_convex():
    image, mask = torch.rand(1, 3, 15, 11).double(), torch.rand(1, 4, 15, 11).double().softmax(1)
    out = P.pamr(image, mask)
    assert out.dtype == torch.float64 and torch.allclose(out.sum(1), torch.ones_like(out[:, 0]))
    assert (out.amax((2, 3)) <= mask.amax((2, 3))).all() and (out.amin((2, 3)) >= mask.amin((2, 3))).all()


def test_bands_do_not_show(monkeypatch):
    image, maps = torch.rand(1, 3, 37, 3000), torch.rand(2, 37, 3000)
    assert len(P.bands(image)) > 9 and P.bands(maps)[-1][1] == 37
    banded = P.affinity(image, (1, 3)), P.propagate(P.affinity(image, (1, 3))[0], maps, (1, 3))
    monkeypatch.setattr(P, 'bands', lambda x: [(0, x.shape[-2])])
    whole = P.affinity(image, (1, 3)), P.propagate(P.affinity(image, (1, 3))[0], maps, (1, 3))
    for a, b in zip(banded, whole): assert torch.allclose(a, b, atol=1e-6)


def test_threads_are_given_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        P.pamr(torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4))
        with pytest.raises(RuntimeError), P.one_thread(): raise RuntimeError
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)


def test_one_pixel_and_one_colour():
    assert torch.allclose(P.pamr(torch.rand(1, 3, 1, 1), torch.full((1, 2, 1, 1), .3)), torch.full((1, 2, 1, 1), .3))
    flat = P.affinity(torch.ones(1, 3, 7, 7), (1, 2))
    assert torch.allclose(flat, torch.full_like(flat, 1 / 16))


@pytest.mark.parametrize('call, text', [
    (lambda i, m: P.pamr(i, m * float('nan')), 'NaN or infinite'),
    (lambda i, m: P.pamr(i, m[0]), 'expected image [B,3,H,W] and mask [B,K,h,w], got [2, 3, 8, 8] and [4, 8, 8]'),
    (lambda i, m: P.pamr(i, m[:1]), 'expected image'),
    (lambda i, m: P.pamr((i * 255).byte(), m), 'floating-point'),
    (lambda i, m: P.pamr(i, m, dilations=()), 'pamr_dilations: expected distances of at least 1'),
])
def test_messages(call, text):
    with pytest.raises(UserError) as e: call(torch.rand(2, 3, 8, 8), torch.rand(2, 4, 8, 8))
    assert text in str(e.value)
