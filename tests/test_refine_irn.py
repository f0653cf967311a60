"""IRNet's walk and losses against the authors' code and brute force; instances, labels and bad input."""
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.nets.zoo import build
from wsss_nb.refine import instances, irn
from wsss_nb.refine.walk import at_sources, chebyshev, directions, from_grid, pair_labels, power, transition, walk

GOLDENS = Path(__file__).parent / 'goldens'
load = lambda name: {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / f'{name}.npz').items()}
WALKS = [(5, 10, 8), (5, 8, 6), (5, 10, 0), (5, 10, 4), (3, 10, 8)]


def affinity(boundary, i, j, w):
    "1 - the largest boundary on the line, from the distance of every pixel to it"
    (y, x), (y2, x2) = divmod(i, w), divmod(j, w)
    dy, dx = y2 - y, x2 - x
    line = [boundary[p, q] for p in range(min(y, y2), max(y, y2) + 1) for q in range(min(x, x2), max(x, x2) + 1) if abs(dy * (q - x) - dx * (p - y)) / (dy * dy + dx * dx)**.5 < 1]
    return 1 - max(line)


def dense_walk(cam, boundary, radius, beta, t):
    h, w = boundary.shape
    A = torch.eye(h * w, dtype=cam.dtype)
    for i in range(h * w):
        for j in range(i):
            if (i // w - j // w)**2 + (i % w - j % w)**2 < radius**2: A[i, j] = A[j, i] = affinity(boundary, i, j, w)**beta
    return ((cam * (1 - boundary)).flatten(1) @ torch.linalg.matrix_power(A / A.sum(0), 2**t)).view_as(cam)


@pytest.mark.parametrize('radius,beta,t', WALKS)
def test_walk_matches_the_authors_code(radius, beta, t):
    g = load('irn_walk')
    out = irn.boundary_walk(g['0_x'], g['0_edge'][0], radius, beta, t)
    assert (out - g[f'0_rw_r{radius}_b{beta}_t{t}'][:, 0]).abs().max() < 1e-4


def test_labels_after_the_walk_match_the_authors_code():
    g = load('irn_walk')
    up = from_grid(irn.boundary_walk(g['0_x'], g['0_edge'][0])[None], g['0_size'].tolist(), 4)[0]
    up = up / up.max()
    assert (up - g['0_rw_up']).abs().max() < 2e-4
    for threshold in (.25, .15):
        labels = g['0_keys'][torch.cat([torch.full_like(up[:1], threshold), up]).argmax(0)]
        assert (labels == g[f'0_label_bg{threshold}']).float().mean() > .999


def test_affinities_and_transition_matrices_match_the_authors_code():
    g, order = load('irn_affinity'), sorted(range(34), key=lambda i: len(irn.path(*directions(5)[i])))
    weights = irn.boundary_weights(g['edge'], 5, 1)
    assert torch.equal(at_sources(weights, 5)[:, order], g['affinity'])
    assert torch.equal(1 - irn.pair_boundary(g['edge'], 5)[:, order], g['affinity'])
    h, w = g['size'].tolist()
    inside = torch.zeros_like(weights[:1])
    inside[:, :, :h - 4, 4:w - 4] = weights[:1, :, :h - 4, 4:w - 4]
    one_hot = torch.eye(h * w).view(1, h * w, h, w)
    for beta, t in ((10, 8), (8, 3), (10, 0)):
        assert (walk(one_hot, inside**beta, 5, t)[0].flatten(1) - g[f'trans_b{beta}_t{t}']).abs().max() < 2e-4


@pytest.mark.parametrize('h,w,radius', [(1, 1, 5), (1, 7, 5), (3, 2, 5), (7, 9, 5), (4, 6, 9), (9, 5, 2)])
def test_any_size_against_brute_force(h, w, radius):
    torch.manual_seed(h)
    cam, wall = torch.rand(2, h, w, dtype=torch.float64), torch.rand(h, w, dtype=torch.float64)**2
    assert (irn.boundary_walk(cam, wall, radius, 4, 8) - dense_walk(cam, wall, radius, 4, 8)).abs().max() < 1e-12


def test_float32_is_as_close_as_float32_gets_and_keeps_its_type():
    torch.manual_seed(0)
    cam, wall = torch.rand(3, 20, 24, dtype=torch.float64), torch.rand(20, 24, dtype=torch.float64)
    single, double = irn.boundary_walk(cam.float(), wall.float()), irn.boundary_walk(cam, wall)
    assert single.dtype == torch.float32 and double.dtype == torch.float64 and (single - double).abs().max() < 1e-4


def test_a_batch_is_its_images_and_channels_do_not_meet():
    torch.manual_seed(0)
    cam, wall = torch.rand(3, 4, 9, 11, dtype=torch.float64), torch.rand(3, 9, 11, dtype=torch.float64)
    cam[1, 2] = 0
    out = irn.boundary_walk(cam, wall)
    for i in range(3): assert (out[i] - irn.boundary_walk(cam[i], wall[i])).abs().max() < 1e-12
    assert (out[0, 1] - irn.boundary_walk(cam[0, 1:2], wall[0])[0]).abs().max() < 1e-12 and (out[1, 2] == 0).all()


@pytest.mark.parametrize('steps', [1, 2, 8, 64, 256, 1024])
def test_the_cut_chebyshev_sum_is_the_power(steps):
    x, c = np.linspace(-1, 1, 999), chebyshev(steps, 1e-7)
    assert abs(np.polynomial.chebyshev.chebval(x, c) - x**steps).max() <= 1.01e-7 and (steps < 64 or len(c) < steps)
    P = transition(irn.boundary_weights(torch.rand(1, 6, 7, dtype=torch.float64), 4, 3), 4)
    assert (power(P, torch.eye(42, dtype=torch.float64), steps) - torch.linalg.matrix_power(P.to_dense(), steps)).abs().max() < 1e-12


def test_pairs_and_losses_match_the_authors_code():
    g, order = load('irn_loss'), sorted(range(152), key=lambda i: len(irn.path(*directions(10)[i])))
    bg, fg, neg = pair_labels(g['label'].long(), 10)
    for ours, theirs in ((bg, g['bg_pos']), (fg, g['fg_pos']), (neg, g['neg'])): assert torch.equal(ours[:, order], theirs)
    ours = irn.irn_losses(g['edge_logit'][:, 0].sigmoid(), g['dp'], g['label'].long(), 10)
    assert np.allclose([float(v) for v in list(ours.values())[1:]], g['terms'], atol=2e-5) and abs(float(ours['loss']) - float(g['total'])) < 2e-5


def test_the_gradient_of_the_pair_boundary_is_that_of_a_plain_maximum():
    torch.manual_seed(0)
    b, d = torch.rand(1, 5, 9, dtype=torch.float64, requires_grad=True), directions(3)
    slow = torch.stack([torch.stack([at_sources(b, 3, *p) for p in irn.path(*q)]).amax(0) for q in d], 1)
    weights = torch.rand_like(slow)
    a, = torch.autograd.grad((slow * weights).sum(), b)
    c, = torch.autograd.grad((irn.pair_boundary(b, 3) * weights).sum(), b)
    assert torch.allclose(a, c)


def test_no_pairs_is_a_loss_of_zero_with_a_gradient():
    b, field = torch.rand(1, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    for mask in (torch.full((1, 4, 4), 255), torch.zeros(1, 4, 4).long()):
        loss = irn.irn_losses(b, field, mask, 5)['loss']
        loss.backward()
        assert loss == 0 and b.grad.abs().max() == 0 and field.grad.abs().max() == 0


def test_boundary_labels_match_the_authors_code():
    g = np.load(GOLDENS / 'crf.npz')
    got = irn.boundary_labels(g['img'], ScoreMaps(g['irlabel_keys'][1:], g['irlabel_cams']))
    assert got.dtype == np.uint8 and (got == g['irlabel_irn']).mean() >= .999


def test_a_background_of_its_own_is_halved_for_the_second_map():
    image = np.full((6, 8, 3), 90, np.uint8)
    cam = np.broadcast_to(np.float32([.9, .4, .4, .1, .1, .1, .1, .1]), (1, 6, 8))
    got = irn.boundary_labels(image, ScoreMaps(np.array([0, 7]), np.concatenate([np.full_like(cam, .5), cam])), iters=0)
    assert (got == np.uint8([7, 255, 255, 0, 0, 0, 0, 0])).all()


def test_arrows_lead_to_centres_and_shifts_of_the_field_are_taken_out():
    y, x = torch.meshgrid(torch.arange(20.), torch.arange(30.), indexing='ij')
    left = x < 15
    field = torch.stack([9 - y, torch.where(left, 7 - x, 22 - x)])
    end = instances.converge(field)
    assert (end - torch.stack([torch.full_like(x, 9), torch.where(left, 7, 22)])).abs().max() < 1e-3
    found = instances.clusters(field)
    assert set(np.unique(found)) == {1, 2} and (found[:, :15] == found[9, 7]).all() and (found[:, 15:] == found[9, 22]).all()
    assert (instances.clusters(torch.full((2, 4, 5), 9.)) == 0).all()


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return irn.IRNet(build('tiny'), radius=3, width=32).eval()


@pytest.mark.parametrize('h,w', [(33, 50), (5, 3), (1, 1)])
def test_refine_at_any_size_with_zeros_and_without_classes(net, h, w):
    image, one = np.random.RandomState(0).randint(0, 256, (h, w, 3), np.uint8), np.ones((1, h, w), np.float32)
    out = irn.refine(net, image, ScoreMaps(np.array([4]), one))
    assert out.keys.tolist() == [0, 4] and out.maps.shape == (2, h, w) and out.maps.dtype == np.float32 and (out.maps[0] == .25).all() and abs(out.maps[1].max() - 1) < 1e-5
    assert (irn.refine(net, image, ScoreMaps(np.array([4]), 0 * one)).maps[1] == 0).all()
    assert irn.refine(net, image, ScoreMaps(np.zeros(0, int), one[:0])).keys.tolist() == [0]
    assert irn.refine(net, image, ScoreMaps(np.array([0, 4]), np.concatenate([one / 2, one]))).maps.shape == (2, h, w)


def test_instances_split_one_class_by_its_centres(net, monkeypatch):
    field = torch.zeros(1, 2, 8, 12)
    x = torch.arange(12.)
    field[0, 1] = torch.where(x < 6, 2 - x, 9 - x)
    monkeypatch.setattr(net, 'predict', lambda images: ((x == 6).float().expand(1, 8, 12) * .999, field))
    cam = np.ones((1, 32, 48), np.float32)
    found = instances.instances(net, np.zeros((32, 48, 3), np.uint8), ScoreMaps(np.array([5]), cam))
    assert [i.tag for i in found] == [5, 5] and not (found[0].mask & found[1].mask).any()
    assert {tuple(np.flatnonzero(i.mask.any(0))[[0, -1]] // 26) for i in found} == {(0, 0), (1, 1)}
    assert instances.instances(net, np.zeros((32, 48, 3), np.uint8), ScoreMaps(np.array([5]), 0 * cam)) == []


def test_the_backbone_stays_as_it_is_and_the_mean_shift_is_subtracted(net):
    class Four:
        names = 'abcd'
        def __len__(self): return 4
        def __getitem__(self, i): return type('S', (), dict(image=np.full((20 + 4 * (i % 2), 24, 3), 60 * i, np.uint8)))
    net.mean_displacement.zero_()
    images = [torch.from_numpy(Four()[i].image).permute(2, 0, 1)[None] / 255 for i in range(4)]
    mean = torch.stack([net.predict(x)[1].mean((0, 2, 3)) for x in images]).mean(0)
    irn.mean_shift(net, Four(), batch_size=2)
    assert torch.allclose(net.mean_displacement.flatten(), mean, atol=1e-5) and mean.abs().max() > 1e-3
    assert torch.stack([net.predict(x)[1].mean((0, 2, 3)) for x in images]).mean(0).abs().max() < 1e-5
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    losses = net.train()(dict(image=torch.rand(2, 3, 48, 48), mask=torch.randint(0, 2, (2, 48, 48))))
    losses['loss'].backward()
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items()) and not any(p.grad is not None for p in net.backbone.parameters())
    grouped = {id(p) for g in net.groups() for p in g['params']}
    assert grouped == {id(p) for p in net.parameters() if p.requires_grad} and all(p.grad is not None for g in net.groups() for p in g['params'])
    net.eval()


def test_five_stages_of_resnet50():
    deep = irn.IRNet(build('resnet50')).eval()
    assert [f[0].in_channels for f in deep.edges] == [64, 256, 512, 1024, 2048] and [f[0].out_channels for f in deep.arrows] == [64, 128, 256, 256, 256]
    assert deep.stride == 4 and deep.coarse == [2, 3, 4] and deep.last[0][0].in_channels == 64 + 128 + 256


CAM, WALL = torch.rand(2, 6, 7), torch.rand(6, 7)
@pytest.mark.parametrize('call,text', [
    (lambda n: irn.boundary_walk(CAM, WALL[:, :5]), 'cam and boundary: expected one size, got 6 x 7 and 6 x 5; resize the maps to the boundary first.'),
    (lambda n: irn.boundary_walk(CAM * float('nan'), WALL), 'cam: some values are NaN or infinite'),
    (lambda n: irn.boundary_walk(CAM, WALL / 0), 'boundary: some values are NaN or infinite'),
    (lambda n: irn.boundary_walk(CAM, 4 * WALL - 2), 'are these logits? Apply a sigmoid first.'),
    (lambda n: irn.boundary_walk(CAM, WALL, radius=1), 'radius: expected an integer of at least 2, got 1.'),
    (lambda n: irn.boundary_walk(CAM, WALL, log2_steps=-1), 'log2_steps: expected 0, 1, 2 ... for 1, 2, 4 ... steps, got -1.'),
    (lambda n: irn.boundary_walk(CAM.half(), WALL), 'cam: expected float32 or float64 maps'),
    (lambda n: irn.boundary_walk(CAM[0], WALL), r'cam: expected float32 or float64 maps \[C,h,w\] or \[B,C,h,w\], got torch.float32 \[6, 7\]'),
    (lambda n: irn.boundary_walk(CAM[None], WALL[None].repeat(2, 1, 1)), 'expected one batch size, got 1 and 2'),
    (lambda n: irn.refine(n, np.zeros((8, 8, 3), np.uint8), ScoreMaps(np.array([1]), np.ones((1, 8, 9), np.float32))), 'maps: expected the size of the image, 8 x 8, got 8 x 9'),
    (lambda n: irn.refine(n, np.zeros((8, 8, 3), np.uint8), ScoreMaps(np.array([1]), np.full((1, 8, 8), np.nan, np.float32))), 'NaN or infinite'),
    (lambda n: irn.boundary_labels(np.zeros((8, 8, 3), np.uint8), ScoreMaps(np.array([1]), np.full((1, 8, 8), np.nan, np.float32))), 'NaN or infinite'),
])
def test_bad_input_is_told(net, call, text):
    with pytest.raises(UserError, match=text.replace('?', r'\?')): call(net)
