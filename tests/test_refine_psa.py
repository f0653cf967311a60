"""AffinityNet's affinity, walk, labels and loss against the authors' code and brute force; bad input."""
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.nets.zoo import build
from wsss_nb.refine import psa
from wsss_nb.refine.crf import dense_crf
from wsss_nb.refine.walk import at_sources, from_grid, pair_map, to_grid, transition
from wsss_nb.engine.train import Learner

G = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / 'goldens/psa_walk.npz').items()}


def dense_walk(cam, f, radius, beta, t, border):
    (h, w), r = f.shape[-2:], radius - 1
    W = torch.eye(h * w, dtype=cam.dtype)
    for i in range(h * w):
        for j in range(i + 1, h * w):
            (y, x), (y2, x2) = divmod(i, w), divmod(j, w)
            if (y2 - y)**2 + (x2 - x)**2 < radius**2 and (border or (y < h - r and r <= x < w - r)): W[i, j] = W[j, i] = (-(f[:, y, x] - f[:, y2, x2]).abs().mean()).exp()**beta
    return (cam.flatten(1) @ torch.linalg.matrix_power(W / W.sum(0), 2**t)).view_as(cam)


def test_affinities_match_the_authors_code():
    assert (psa.pair_affinity(G['0_feat']) - G['0_aff']).abs().max() < 1e-6
    weights = pair_map(psa.alike, G['0_feat'], 5)
    assert torch.allclose(at_sources(weights, 5), psa.pair_affinity(G['0_feat']))
    P = transition(psa.affinity_weights(G['0_feat'], 5, 1, False), 5).to_dense()
    assert (P - G['0_dense'] / G['0_dense'].sum(1, keepdim=True)).abs().max() < 1e-6


@pytest.mark.parametrize('alpha,t', [(16, 8), (6, 6)])
def test_walk_and_labels_match_the_authors_code(alpha, t):
    cams = torch.zeros(21, 104, 136)
    cams[G['0_cam_keys'] + 1, :99, :133] = G['0_cam']
    cams[0, :99, :133] = torch.from_numpy(psa.with_power_background(G['0_cam'].numpy(), alpha)[0])
    walked = psa.affinity_walk(to_grid(cams[None], 8)[0], G['0_feat'], log2_steps=t)
    assert (walked - G[f'0_a{alpha}_b8_t{t}_rw']).abs().max() < 1e-5
    assert (from_grid(walked[None], (99, 133), 8)[0].argmax(0) == G[f'0_a{alpha}_b8_t{t}_pred']).float().mean() > .999


@pytest.mark.parametrize('h,w,radius', [(1, 1, 5), (2, 8, 5), (6, 10, 5), (7, 5, 3), (4, 4, 9)])
@pytest.mark.parametrize('border', [False, True])
def test_any_size_against_brute_force(h, w, radius, border):
    torch.manual_seed(h)
    cam, f = torch.rand(3, h, w, dtype=torch.float64), 2 * torch.rand(4, h, w, dtype=torch.float64)
    out = psa.affinity_walk(cam, f, radius, 8, 6, border)
    assert out.dtype == torch.float64 and (out - dense_walk(cam, f, radius, 8, 6, border)).abs().max() < 1e-12


def test_a_batch_is_its_images():
    torch.manual_seed(0)
    cam, f = torch.rand(2, 1, 12, 13), torch.rand(2, 6, 12, 13)
    out = psa.affinity_walk(cam, f)
    for i in range(2): assert (out[i] - psa.affinity_walk(cam[i], f[i])).abs().max() < 2e-6 and (out[i] - psa.affinity_walk(cam[i], f[i:i + 1])).abs().max() < 2e-6
    assert psa.pair_affinity(f[..., :4, :], 5).shape == (2, 34, 0)


def test_losses_against_a_loop_over_pairs():
    torch.manual_seed(1)
    f, mask = torch.rand(2, 3, 6, 8, dtype=torch.float64), torch.randint(0, 3, (2, 6, 8))
    mask[:, 2:4, 3:5] = 255
    terms = dict(background=[], foreground=[], negative=[])
    for b in range(2):
        for y in range(6 - 2):
            for x in range(2, 8 - 2):
                for y2 in range(6):
                    for x2 in range(8):
                        if (y2, x2) <= (y, x) or (y2 - y)**2 + (x2 - x)**2 >= 9: continue
                        p, q, w = mask[b, y, x], mask[b, y2, x2], (-(f[b, :, y, x] - f[b, :, y2, x2]).abs().mean()).exp()
                        if 255 in (p, q): continue
                        terms['negative' if p != q else 'foreground' if p else 'background'].append(-(1 + 1e-5 - w).log() if p != q else -(w + 1e-5).log())
    want = {k: torch.stack(v).mean() for k, v in terms.items()}
    got = psa.affinity_losses(f, mask, 3)
    for k in want: assert torch.allclose(got[k], want[k])
    assert torch.allclose(got['loss'], want['background'] / 4 + want['foreground'] / 4 + want['negative'] / 2)


def test_labels_are_sure_only_where_both_backgrounds_agree():
    r = np.random.RandomState(0)
    image, cams = r.randint(0, 256, (24, 30, 3), np.uint8), np.linspace(0, 1, 30, dtype=np.float32) * np.ones((2, 24, 1), np.float32)
    cams[1] = cams[1, :, ::-1]
    got = psa.confident_labels(image, ScoreMaps(np.array([3, 9]), cams))
    low, high = (np.array([0, 3, 9])[dense_crf(image, np.concatenate([(1 - cams.max(0))[None]**a, cams])).argmax(0)] for a in (4, 32))
    assert (got[high == 0] == 0).all() and (got[(high > 0) & (low == 0)] == 255).all() and (got[(high > 0) & (low > 0)] == low[(high > 0) & (low > 0)]).all()
    assert (psa.confident_labels(image, ScoreMaps(np.zeros(0, int), cams[:0])) == 0).all()


def test_labels_of_flat_images_by_hand():
    cams = np.float32([.95, .3, .05]).repeat(4)[None, None] * np.ones((1, 5, 1), np.float32)  # backgrounds: 0, .24, .81 and 0, 0, .19
    got = psa.confident_labels(np.full((5, 12, 3), 50, np.uint8), ScoreMaps(np.array([6]), cams), alphas=(2, 32), iters=0)
    assert (got == np.uint8([6, 255, 0]).repeat(4)).all()


class Squares:
    "Dark squares on light ground"
    names, classes = [str(i) for i in range(8)], ['square']
    def __len__(self): return 8


def view(data, i, r):
    image, mask = .8 + .05 * torch.tensor(r.random((3, 48, 48))).float(), torch.zeros(48, 48).long()
    y, x = r.integers(4, 24, 2)
    image[:, y:y + 20, x:x + 20] -= .6
    mask[y:y + 20, x:x + 20] = 1
    return dict(image=image, mask=mask)


def test_the_learner_trains_it_and_the_walk_fills_the_square():
    torch.manual_seed(0)
    net = psa.AffinityNet(build('tiny'), width=8, stride=4)
    history = Learner(net, Squares(), view, epochs=15, batch_size=4, lr=.02, head_lr=1., momentum=.9, device='cpu').fit()
    assert np.mean([h['loss'] for h in history[-5:]]) < .8 * np.mean([h['loss'] for h in history[:3]])
    v = view(None, 0, np.random.default_rng(5))
    image, truth = (255 * v['image']).byte().permute(1, 2, 0).numpy(), v['mask'].numpy()
    cam = np.stack([np.full((48, 48), .15), np.zeros((48, 48))]).astype(np.float32)
    y, x = np.argwhere(truth).mean(0).astype(int)
    cam[1, y - 5:y + 6, x - 5:x + 6] = 1
    out = psa.refine(net, image, ScoreMaps(np.array([0, 1]), cam), beta=16, log2_steps=6, border=True)
    inside, iou = out.maps.argmax(0) == 1, lambda m: (m & (truth == 1)).sum() / (m | (truth == 1)).sum()
    assert iou(inside) > iou(cam[1] > 0) + .2
    grouped = {id(p) for g in net.groups() for p in g['params']}
    assert grouped == {id(p) for p in net.parameters()}


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return psa.AffinityNet(build('tiny'), width=8).eval()


@pytest.mark.parametrize('h,w', [(33, 50), (5, 3), (1, 1)])
def test_refine_at_any_size_with_zeros_and_without_classes(net, h, w):
    image, one = np.random.RandomState(0).randint(0, 256, (h, w, 3), np.uint8), np.ones((1, h, w), np.float32)
    out = psa.refine(net, image, ScoreMaps(np.array([4]), one))
    assert out.keys.tolist() == [0, 4] and out.maps.dtype == np.float32 and np.allclose(out.maps[0], 0) and np.allclose(out.maps[1], 1)
    zero = psa.refine(net, image, ScoreMaps(np.array([4]), 0 * one))
    assert np.allclose(zero.maps[0], 1) and (zero.maps[1] == 0).all()
    assert psa.refine(net, image, ScoreMaps(np.zeros(0, int), one[:0])).maps.shape == (1, h, w)
    assert psa.refine(net, image, ScoreMaps(np.array([0, 4]), np.concatenate([one / 4, one]))).maps[0] == pytest.approx(.25)


def test_published_head_sizes():
    head = psa.AffinityNet(build('vgg16'))
    assert [f.out_channels for f in head.sides] == [64, 128, 256] and head.mix.weight.shape == (448, 448, 1, 1) and head.stride == 8 and head.at == 0


CAM, F = torch.rand(2, 6, 7), torch.rand(4, 6, 7)
IMAGE, ONE = np.zeros((8, 9, 3), np.uint8), np.ones((1, 8, 9), np.float32)
@pytest.mark.parametrize('call,text', [
    (lambda n: psa.affinity_walk(CAM, F[..., :5]), 'cam and features: expected one size, got 6 x 7 and 6 x 5; resize the maps to the features first.'),
    (lambda n: psa.affinity_walk(CAM * float('nan'), F), 'cam: some values are NaN or infinite'),
    (lambda n: psa.affinity_walk(CAM, F / 0), 'features: some values are NaN or infinite'),
    (lambda n: psa.affinity_walk(CAM, F[0]), r'features: expected \[D,h,w\] or \[B,D,h,w\]|expected one batch size'),
    (lambda n: psa.affinity_walk(CAM, F, log2_steps=2.5), 'log2_steps: expected 0, 1, 2'),
    (lambda n: psa.pair_affinity(F), r'features: expected float \[B,D,h,w\], got torch.float32 \[4, 6, 7\].'),
    (lambda n: psa.refine(n, IMAGE, ScoreMaps(np.array([1]), ONE[:, :5])), 'maps: expected the size of the image, 8 x 9, got 5 x 9'),
    (lambda n: psa.refine(n, IMAGE, ScoreMaps(np.array([1]), ONE * np.nan)), 'NaN or infinite'),
    (lambda n: psa.confident_labels(IMAGE, ScoreMaps(np.array([0, 1]), np.concatenate([ONE, ONE]))), 'expected class maps without a background'),
    (lambda n: psa.confident_labels(IMAGE, ScoreMaps(np.array([1]), ONE * np.nan)), 'NaN or infinite'),
])
def test_bad_input_is_told(net, call, text):
    with pytest.raises(UserError, match=text): call(net)


def test_the_grid_has_stride_8_where_the_backbone_has_such_a_stage():
    from wsss_nb.nets.zoo import build
    for name, stride, used in (('mobilenet_v2', 16, [1, 3, 4]), ('mobilenet_v2', 8, [2, 3, 4]), ('resnet50', 16, [1, 2, 3]), ('tiny', None, [1, 2, 3])):
        net = psa.AffinityNet(build(name, stride=stride))
        assert net.used == used and net.stride == 8, name
