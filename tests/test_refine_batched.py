"""A whole batch at once, as on a GPU, against the refinement image by image."""
from types import SimpleNamespace

import pytest
import torch

from wsss_nb.papers.ccmr import Ccmr, ccmr
from wsss_nb.refine import batched as B
from wsss_nb.refine.pamr import pad, pamr


def drawn(b=3, k=5, h=13, w=17, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    present = torch.arange(k) < 1 + torch.arange(b)[:, None] % k
    present[-1] = False
    return draw(b, 3, h, w), draw(b, k, h, w) * present[..., None, None], present


@pytest.mark.parametrize('dilations', [(1,), (1, 2, 4), (1, 24)])
def test_the_numbers_are_those_of_image_by_image(dilations):
    image, mask, present = drawn()
    assert torch.allclose(B.pamr_at_once(image, mask, 4, dilations), pamr(image, mask, 4, dilations), atol=1e-12)
    for neighbours in (True, False):
        got = B.ccmr_at_once(image, mask, present, 4, 20., dilations, neighbours, 1e-6)
        assert torch.allclose(got, ccmr(image, mask, present, 4, 20., dilations, neighbours), atol=1e-12)


def test_a_channel_without_a_prototype_only_fills_up():
    image, mask, present = drawn()
    present[0, 0], present[1, 4] = False, True  # values without a prototype, a prototype of nothing
    for neighbours in (True, False):
        got = B.ccmr_at_once(image, mask, present, 3, 20., (1, 2), neighbours, 1e-6)
        assert torch.allclose(got, ccmr(image, mask, present, 3, 20., (1, 2), neighbours), atol=1e-12)


def test_parts_of_a_batch_do_not_show(monkeypatch):
    image, mask, present = drawn(5)
    whole = B.pamr_at_once(image, mask, 3, (1, 2)), B.ccmr_at_once(image, mask, present, 3, 20., (1, 2), True, 1e-6)
    sizes, real = [], B.bordered
    monkeypatch.setattr(B, 'bordered', lambda x, *args: sizes.append(len(x)) or real(x, *args))
    monkeypatch.setitem(B.NUMBERS, 'cpu', 2 * 16 * 13 * 17 + 1)
    parts = B.pamr_at_once(image, mask, 3, (1, 2)), B.ccmr_at_once(image, mask, present, 3, 20., (1, 2), True, 1e-6)
    assert set(sizes) == {2, 1} and all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_nothing_there_is_nothing_done():
    image, mask, _ = drawn()
    assert (B.pamr_at_once(image, 0 * mask, 3, (1, 2)) == 0).all()


def test_the_border_of_a_rectangle_is_repeated():
    valid = torch.zeros(3, 6, 8, dtype=torch.bool)
    valid[0, 1:5, 2:7] = valid[1, 5:, :1] = True  # the third has no rectangle
    x = torch.rand(3, 2, 6, 8)
    around = B.bordered(x, 4, B.border(valid, 4))
    assert torch.equal(around[0, :, 1:13, 2:15], pad(x[0, :, 1:5, 2:7], 4))
    assert (around[1] == x[1, :, 5, 0, None, None]).all() and around.shape == (3, 2, 14, 16)


@pytest.mark.parametrize('how', ['pamr', 'ccmr', 'ccmr_no_neighbours', 'none'])
def test_views_are_refined_within_their_rectangles(how):
    image, mask, present = drawn()
    valid = torch.ones(3, 13, 17, dtype=torch.bool)
    valid[0, 9:], valid[1, :, :4] = False, False
    net = SimpleNamespace(refinement=how, iters=3, scale=20., dilations=(1, 3))
    net.refine = lambda *args: Ccmr.refine(net, *args)
    got = Ccmr.refine_views(net, image, mask, valid, present)
    for i, (y, x) in enumerate(((slice(9), slice(17)), (slice(13), slice(4, 17)), (slice(13), slice(17)))):
        at = slice(i, i + 1), slice(None), y, x
        assert torch.allclose(got[at], net.refine(image[at], mask[at], present[i:i + 1]), atol=1e-12)
    assert (got * ~valid[:, None] == 0).all()
    for most in (2, 5): assert torch.equal(Ccmr.refine_views(net, image, mask, valid, present, most), got)  # two are there at most


def test_a_gpu_takes_the_batch_and_a_cpu_does_not(monkeypatch):
    seen = []
    monkeypatch.setattr(B, 'at_once', lambda *args, **kwargs: seen.append(1))
    image, mask, present = drawn()
    pamr(image, mask, 1, (1,)), ccmr(image, mask, present, 1)
    assert not seen
    monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda x: True))
    pamr(image, mask, 1, (1,)), ccmr(image, mask, present, 1)
    assert len(seen) == 2
