"""Photographs of near sizes share a batch on a card, and the set decides at which size, not the batch; scores are stretched to labels by products."""
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from inside import quiet  # noqa: F401
import wsss_nb.cams as cams
import wsss_nb.engine.evaluate as evaluate
from wsss_nb.data.sample import load_maps, read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tagged import tagged
from wsss_nb.data.together import at_own_size, batches_to_show, near_sizes, shown_on
from wsss_nb.engine.methods import build_localiser, build_segmenter
from wsss_nb.nets.heads import GroupNorm
from wsss_nb.nets.stretch import stretch_weights, stretched

pytestmark = pytest.mark.usefixtures('quiet')
SIZES = [(80, 96), (80, 96), (78, 96), (80, 90), (80, 96), (96, 80), (94, 78), (96, 80), (120, 64)]


@pytest.fixture
def photographs(tmp_path):
    "Nine drawings at sizes of which seven are near to another"
    made, files = synthetic('val', n=len(SIZES)), []
    for i, (h, w) in enumerate(SIZES):
        files.append(tmp_path / f'{i}.png')
        Image.fromarray(made.image(i)).resize((w, h), Image.BICUBIC).save(files[-1])
    return tagged(files, [[made.classes[t - 1] for t in r.tags] for r in made.records], classes=made.classes)


@pytest.fixture
def a_card(monkeypatch):
    "What is shown is put together as for a card"
    for module in (cams, evaluate):
        monkeypatch.setattr(module, 'batches_to_show', lambda data, todo, n, tile=0, max_side=0, device='cpu': batches_to_show(data, todo, n, tile, max_side, 'cuda'))


def test_sizes_that_are_near_take_the_one_that_most_have():
    assert near_sizes(SIZES) == {(80, 96): (80, 96), (78, 96): (80, 96), (80, 90): (80, 96), (96, 80): (96, 80), (94, 78): (96, 80), (120, 64): (120, 64)}
    rng = np.random.default_rng(0)
    many = [tuple(map(int, rng.integers(60, 500, 2))) for _ in range(3000)]
    found = near_sizes(many)
    assert set(found) == set(many) and all(found[v] == v and v in found for v in found.values())
    assert max(abs(a - b) for s, other in found.items() for a, b in zip(s, other)) < 16


def test_batches_are_fewer_and_every_picture_comes_once(photographs):
    for device, batches, changed in (('cpu', 6, 0), ('cuda', 3, 3)):
        found = list(batches_to_show(photographs, range(9), 8, device=device))
        assert len(found) == batches and sorted(s.name for samples, _ in found for s in samples) == sorted(photographs.names)
        assert sum(s.image.shape != i.shape for samples, images in found for s, i in zip(samples, images)) == changed
        assert all(len({i.shape for i in images}) == 1 for _, images in found)
    assert len(list(batches_to_show(photographs, range(9), 8, device='cuda', near=False))) == 6
    assert shown_on('cuda:1') == dict(shown='near sizes together') and shown_on('cpu') == {}


def test_maps_come_back_at_their_own_size_and_a_stopped_run_makes_the_same(photographs, a_card, tmp_path):
    torch.manual_seed(0)
    net = build_localiser('cam', 8).eval()
    write = partial(cams.write_score_maps, net, photographs, scales=(1.,), flip=False)
    write(tmp_path / 'whole')
    whole = [load_maps(tmp_path / 'whole' / f'{n}.npz') for n in photographs.names]
    assert [m.maps.shape[1:] for m in whole] == SIZES
    (tmp_path / 'again').mkdir()
    for i in (0, 1, 4, 5, 7): (tmp_path / 'again' / f'{i}.npz').write_bytes((tmp_path / 'whole' / f'{i}.npz').read_bytes())
    write(tmp_path / 'again')  # only those that are shown at another size are left
    for n, m in zip(photographs.names, whole): assert np.abs(load_maps(tmp_path / 'again' / f'{n}.npz').maps.astype(float) - m.maps).max() < 2e-3
    own = [net.score_maps([photographs.image(i)], photographs.labels[i:i + 1], scales=(1.,), flip=False)[0].maps for i in range(9)]
    differences = [float(np.abs(a - m.maps).mean()) for a, m in zip(own, whole)]
    assert max(differences[i] for i in (0, 1, 4, 5, 7, 8)) < 1e-3 and 1e-3 < max(differences) < .1


@pytest.mark.parametrize('tags', [False, True])
def test_masks_of_a_network_have_the_size_of_their_picture(photographs, a_card, tmp_path, tags):
    torch.manual_seed(0)
    net = build_segmenter(8).eval()
    evaluate.write_predictions(net, photographs, tmp_path / 'out', use_image_labels=tags)
    masks = [read_mask(tmp_path / 'out' / f'{n}.png') for n in photographs.names]
    assert [m.shape for m in masks] == SIZES
    alone = net.predict([photographs.image(8)])[0]
    keep = [0, *photographs.records[8].tags] if tags else [*range(9)]
    assert np.array_equal(masks[8], np.array(keep)[alone[keep].argmax(0)])


def test_maps_at_own_size_are_bilinear_of_any_kind():
    x = torch.rand(3, 6, 7)
    assert at_own_size(x, (6, 7)) is x and at_own_size(torch.zeros(0, 6, 7), (9, 9)).shape == (0, 9, 9)
    want = F.interpolate(x[None], (9, 11), mode='bilinear')[0]
    assert torch.equal(at_own_size(x, (9, 11)), want) and np.array_equal(at_own_size(x.numpy(), (9, 11)), want.numpy())


@pytest.mark.parametrize('corners', [False, True])
@pytest.mark.parametrize('size', [(28, 36), (29, 31), (4, 5), (1, 1), (7, 1), (321, 9)])
def test_two_products_are_the_interpolation_and_its_gradient(size, corners, device):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, device=device, requires_grad=True)
    ours, theirs = stretched(x, size, corners), F.interpolate(x, size, mode='bilinear', align_corners=corners)
    g = torch.randn_like(ours)
    assert torch.allclose(ours, theirs, atol=1e-11)
    assert torch.allclose(*(torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)), atol=1e-10)


def test_weights_by_hand():
    assert torch.allclose(stretch_weights(2, 4), torch.tensor([[1, 0], [.75, .25], [.25, .75], [0, 1]], dtype=torch.float64))
    assert torch.allclose(stretch_weights(2, 3, corners=True), torch.tensor([[1, 0], [.5, .5], [0, 1]], dtype=torch.float64))
    assert stretch_weights(1, 3).tolist() == [[1.]] * 3


def test_scores_and_norms_are_float32_where_products_are_not(device):
    x, norm = torch.randn(2, 16, 6, 6, device=device).to(torch.bfloat16), GroupNorm(8, 16).to(device)
    with torch.autocast(x.device.type, torch.bfloat16): wide, normed = stretched(x, (12, 12)), norm(x)
    assert wide.dtype == normed.dtype == torch.float32
    assert torch.allclose(wide, F.interpolate(x.float(), (12, 12), mode='bilinear'), atol=1e-5)
    assert torch.allclose(normed, F.group_norm(x.float(), 8, norm.weight, norm.bias, norm.eps), atol=1e-5)
