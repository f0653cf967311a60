"""What masks and refinements do on a graphics card, without one: tensors that only claim to be there."""
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inside import quiet  # noqa: F401
from wsss_nb.cams import normalize, with_background
from wsss_nb.data.scales import resized_there
from wsss_nb.data.views import multi_scale
from wsss_nb.papers.ccmr import swp
from wsss_nb.refine import batched as B
from wsss_nb.refine.irn import directions
from wsss_nb.refine.walk import pair_labels, pair_map

pytestmark = pytest.mark.usefixtures('quiet')


def drawn(*shape): return torch.rand(*shape, device='cuda')


def kinds(*tensors): return {(t.device.type, t.dtype) for t in tensors}


@pytest.mark.parametrize('padding', [False, True])
def test_the_batched_refinements_stay_on_a_card_and_read_nothing_back(padding):
    with FakeTensorMode():
        image, maps, own, d = drawn(2, 3, 12, 14), drawn(2, 4, 12, 14), drawn(2, 4) > .5, (1, 2)
        edge = B.border(drawn(2, 12, 14) > .5, 2) if padding else None
        around = B.bordered(image, 2, edge)
        alpha, (k, z) = B.colour_weights(around, d), B.distance_weights(around, 20., d)
        made = alpha, k, z, B.neighbour_means(alpha, maps, d, edge), B.to_prototypes(image, maps, own, 20., 1e-6)
        assert kinds(*made) == {('cuda', torch.float32)} and alpha.shape == k.shape == (2, 16, 12, 14)


def test_what_is_made_of_maps_stays_on_a_card():
    with FakeTensorMode():
        maps, labels = drawn(2, 4, 12, 14), drawn(2, 4) > .5
        pairs = pair_map(lambda a, b: (a * b).mean(1), maps, 3)
        found = with_background(normalize(maps), labels), swp(maps, maps, maps, labels), pairs
        assert kinds(*found) == {('cuda', torch.float32)} and pairs.shape == (2, len(directions(3)), 12, 14)
        assert kinds(*pair_labels(torch.zeros(2, 12, 14, dtype=torch.long, device='cuda'), 3)) == {('cuda', torch.bool)}


def test_images_travel_in_8_bits_and_are_resized_on_the_card(monkeypatch):
    images, seen, real = [np.zeros((20, 30, 3), np.uint8)] * 3, [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda x, *a, **k: seen.append((x.dtype, *a)) or real(x, *a, **k))
    with FakeTensorMode():
        x = resized_there(images, (40, 60), 'cuda')
        assert kinds(x) == {('cuda', torch.float32)} and x.shape == (3, 3, 40, 60) and [to for to in seen if 'cuda' in to] == [(torch.uint8, 'cuda')]
        maps = multi_scale(lambda x: torch.nn.functional.avg_pool2d(x, 4), images, device='cuda')
        assert kinds(maps) == {('cuda', torch.float32)} and maps.shape == (3, 3, 20, 30)
