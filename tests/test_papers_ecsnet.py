"ECS-Net: a literal evaluation of its equations, independent slow ones, which loss reaches what, and batches in which something is missing"
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from conformity import check_localiser
from wsss_nb.base.core import UserError
from wsss_nb.engine.methods import build_localiser
from wsss_nb.nets.zoo import BACKBONES, build
from wsss_nb.papers import ecsnet as P
from wsss_nb.engine.recipes import read_recipe, stage_parameters
from wsss_nb.refine import correlation as C

G = {k: torch.from_numpy(np.array(v)) for k, v in np.load(Path(__file__).parent / 'goldens/ecsnet.npz').items()}
g = {k[3:]: v[None] for k, v in G.items() if k.startswith('i0_')}
near = lambda a, b: a.dtype == torch.float64 and torch.allclose(a, b, rtol=0, atol=1e-9)


def test_golden_maps_and_labels():
    cam = P.minmax_cam(g['heat'], g['label'])
    assert near(cam, g['cam'])
    up = C.fit_size(cam, (33, 41))
    assert near(up, g['cam_up']) and near(up.amax(1), g['score_up']) and torch.equal(P.erased_region(up, float(G['delta'])), g['erased'])
    for d in (.4, .6, .8): assert torch.equal(P.erased_region(up, d), g[f'erased_delta{d}'])
    up2 = C.fit_size(P.minmax_cam(g['heat2'], g['label']), (33, 41))
    assert near(up2, g['cam2_up'])
    for t in (.5, .6, .7, .8, .9):
        got = P.reliable_labels(up2, g['erased'], t)
        assert got.dtype == torch.int64 and torch.equal(got, g[f'reliable_label_theta{t}'])
    assert torch.equal(P.reliable_labels(up2, g['erased']) != 255, g['phi'])


def test_golden_erasing_losses_and_overlay():
    assert near(P.blur_erase(g['image'], g['erased'], float(G['blur_sigma']), int(G['blur_radius'])), g['image_erased'])
    assert near(C.fit_size(g['refined'], (33, 41)), g['refined_up'])
    for refined in (g['refined'], g['refined_up']): assert near(P.segmentation_loss(refined, g['reliable_label']), g['ce_mean'][0])
    scores = [g[k][..., None, None] for k in ('o_cam', 'o2_cam', 'o_pro', 'o2_pro')]
    assert near(P.class_loss(g['label'], scores[0]), g['l_cls_o_cam'][0]) and near(P.class_loss(g['label'], *scores) / 2, g['L_cls'][0])
    assert near(P.multi_dilated_overlay(G['mdo_x'][None], G['mdo_w'], G['mdo_b'], (3,))[0], G['mdo_relu0_rates3'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [(12, 17), (5, 4), (1, 9), (3, 1)])
def test_the_blur_is_scipys_at_any_size(size, dtype):
    image, region = torch.rand(2, 3, *size, dtype=dtype), torch.rand(2, *size) > .4
    keep = image.clone()
    out = P.blur_erase(image, region, 2.5, 9)
    want = torch.tensor(np.stack([[gaussian_filter(c, 2.5, mode='mirror', radius=9) for c in i] for i in image.numpy()]))
    assert out.dtype == dtype and torch.allclose(out, torch.where(region[:, None], want, image), atol=1e-5) and torch.equal(image, keep)


def by_hand(cam, erased, theta):
    "The noise rule, pixel by pixel"
    out = np.full(cam.shape[1:], 255)
    for y, x in np.ndindex(out.shape):
        scores = [1 - cam[1:, y, x].max(), *cam[1:, y, x]]
        c = int(np.argmax(scores))
        if c and scores[c] > theta and not erased[y, x]: out[y, x] = c
    return out


@pytest.mark.parametrize('theta', [.2, .5, .8])
def test_reliable_labels_by_hand(theta):
    r = np.random.default_rng(3)
    cam, erased = np.round(r.random((5, 9, 13)), 1) * (np.arange(5) % 2)[:, None, None], r.random((9, 13)) > .7  # rounded: many ties, scores of exactly theta, absent classes
    assert np.array_equal(P.reliable_labels(torch.tensor(cam)[None], torch.tensor(erased)[None], theta)[0], by_hand(cam, erased, theta))


@pytest.mark.parametrize('rates', [(5, 7, 12), (2,), ()])
def test_the_overlay_is_one_large_kernel(rates):
    x, w, b = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 11, 6), (4, 3, 3, 3), (4,)))
    large = torch.zeros(4, 3, 25, 25, dtype=torch.float64)
    for r, share in ((1, .5 if rates else 1.), *((r, .5 / len(rates)) for r in rates)): large[:, :, 12 - r:13 + r:r, 12 - r:13 + r:r] += share * w
    assert torch.allclose(P.multi_dilated_overlay(x, w, b, rates), F.conv2d(x, large, b, padding=12))
    assert torch.allclose(P.multi_dilated_overlay(x, w, None, rates), F.conv2d(x, large, padding=12))


def test_flat_maps_and_gradients():
    heat = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    heat[0, 2], heat[1] = 7., 0.
    heat.requires_grad_()
    cam = P.minmax_cam(heat, torch.ones(2, 3))
    assert cam.dtype == torch.float64 and cam[0, 2].abs().sum() == 0 and cam[1].abs().sum() == 0 and cam[:, 0].abs().sum() == 0 and cam[0, [1, 3]].amax() == 1
    cam.square().sum().backward()
    assert heat.grad.isfinite().all() and heat.grad[0, 1].abs().sum() > 0
    labels = torch.full((2, 5, 6), 255)
    nothing = P.segmentation_loss(heat, labels)
    assert nothing == 0 and nothing.requires_grad and torch.autograd.grad(nothing, heat)[0].abs().sum() == 0
    labels[1, 2, 3] = 3
    one = torch.autograd.grad(P.segmentation_loss(heat, labels), heat)[0]
    assert torch.allclose(one[1, :, 2, 3], torch.tensor([.25, .25, .25, -.75], dtype=torch.float64)) and (one != 0).sum() == 4
    assert torch.allclose(P.minmax_cam(heat, torch.ones(2, 3), eps=.5)[0, 1], (heat[0, 1] - heat[0, 1].min()) / (heat[0, 1].max() - heat[0, 1].min() + .5))


def test_correlation():
    m, z = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    z[0, :, 1, 2] = 0
    want = torch.zeros_like(m)
    for b in range(2):
        for j in np.ndindex(4, 5):
            a = {i: max(0., float(torch.cosine_similarity(z[b][:, i[0], i[1]], z[b][:, j[0], j[1]], dim=0))) for i in np.ndindex(4, 5)}
            want[b, :, j[0], j[1]] = sum(a[i] * m[b][:, i[0], i[1]] for i in a) / (sum(a.values()) + 1e-5)
    z.requires_grad_()
    got = C.correlate(m, z)
    assert torch.allclose(got, want, atol=1e-6) and torch.allclose(C.correlate(m, z, block=3), got) and got[0, :, 1, 2].abs().sum() == 0
    got.sum().backward()
    assert z.grad.isfinite().all()
    regions = torch.zeros(1, 2, 3, 4)
    regions[:, 0, :, :2], regions[:, 1, :, 2:] = 3, 7
    assert torch.allclose(C.correlate(torch.arange(12.).view(1, 1, 3, 4), regions)[0, 0], torch.tensor([4.5, 4.5, 6.5, 6.5]).expand(3, 4), atol=1e-4)


def make(name='tiny', classes=4, **options):
    torch.manual_seed(0)
    return P.EcsNet(build(name), classes, **options)


def a_batch(h=48, w=64, n=3, classes=4):
    r = torch.Generator().manual_seed(1)
    valid = torch.ones(n, h, w, dtype=torch.bool)
    valid[0, :, w // 2:] = False
    return dict(image=torch.rand(n, 3, h, w, generator=r), valid=valid, labels=torch.eye(classes)[torch.arange(n) % classes], name=list('abc')[:n], progress=0., step=0, per_epoch=1)


def test_what_reaches_what():
    net, b = make(rates=(2,), theta=.5).train(), a_batch()
    p = net.passes(b['image'], b['labels'], b['valid'])
    outputs = [p.heat, p.refined, p.heat2, p.refined2]
    reached = lambda loss: [x is not None and bool(x.abs().sum() > 0) for x in torch.autograd.grad(loss, outputs, allow_unused=True, retain_graph=True)]
    assert reached(P.segmentation_loss(p.refined, p.target)) == [True, True, False, False] and reached(P.class_loss(b['labels'], *outputs)) == [True] * 4
    assert not p.erased.requires_grad and (p.target[p.region] == 255).all() and (p.target[~b['valid']] == 255).all() and not p.region[~b['valid']].any()
    assert torch.equal(p.erased.movedim(1, -1)[~p.region], b['image'].movedim(1, -1)[~p.region]) and p.heat.shape[2:] == (3, 4) and p.heat2.shape[2:] == (6, 8)
    net.zero_grad()
    net.correlation(p.heat2.detach(), b['image'], net.backbone(b['image'])).square().sum().backward()
    assert all(w.grad is None for w in net.backbone.parameters()) and all(w.grad.abs().sum() > 0 for w in net.correlation.parameters())


def test_the_sum_of_the_losses():
    net, b = make(rates=(2,), theta=.5, dropout=0., seg_weight=.3).train(), a_batch()
    p, losses = net.passes(b['image'], b['labels'], b['valid']), net(b)
    means = [F.binary_cross_entropy_with_logits(m[:, 1:].mean((2, 3)), b['labels']) for m in (p.heat, p.heat2, p.refined, p.refined2)]
    up = F.interpolate(p.refined, (48, 64), mode='bilinear', align_corners=True)
    ce = F.cross_entropy(up, p.target, ignore_index=255)
    assert torch.allclose(losses['cls'], sum(means) / 2) and torch.allclose(losses['seg'], ce) and torch.allclose(losses['loss'], sum(means) / 2 + .3 * ce)
    assert losses['trusted'] == (p.target != 255).float().mean() and losses['erased'] == p.region.float().mean()


CASES = dict(nothing_erased=dict(delta=1.), everything_erased=dict(delta=1e-9), no_reliable_pixel=dict(theta=1.), erase_only=dict(segment=False), segment_only=dict(erase=False, beta=.7),
             plain=dict(erase=False, segment=False), labels_from_E=dict(labels_from='refined'), centred=dict(centre=True), no_overlay=dict(rates=(), beta=1.))


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('batch', ['usual', 'no class', 'one colour', 'tiny crop'])
def test_bad_batches(case, batch):
    net, b = make(**CASES[case]).train(), a_batch(9, 7) if batch == 'tiny crop' else a_batch()
    if batch == 'no class': b['labels'] = torch.zeros_like(b['labels'])
    if batch == 'one colour': b['image'] = torch.full_like(b['image'], .5)
    losses = net(b)
    losses['loss'].backward()
    assert all(np.isfinite(float(v.detach())) for v in losses.values()) and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    if case == 'no_reliable_pixel': assert losses['seg'] == 0 and losses['trusted'] == 0
    if case == 'nothing_erased': assert losses['erased'] == 0
    if case == 'everything_erased' and batch == 'usual': assert losses['erased'] > .5 and losses['trusted'] < .01
    assert ('seg' in losses) == CASES[case].get('segment', True)


def test_the_overlay_is_for_training_only():
    net, b = make(rates=(2,), beta=1., dropout=0.).eval(), a_batch()
    with torch.no_grad(): p = net.passes(b['image'], b['labels'], torch.ones_like(b['valid']))
    with torch.no_grad(): assert torch.equal(net.maps(p.erased)[0], p.heat2) and not torch.equal(net.maps(p.erased, (2,))[0], p.heat2)


def test_score_maps():
    net = make().eval()
    images = [np.random.default_rng(i).integers(0, 255, (37, 50, 3)).astype(np.uint8) for i in range(3)]
    labels = torch.tensor([[1., 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    for kind in ('refined', 'cam'):
        got = net.score_maps(images, labels, scales=(1., .5), kind=kind)
        assert [list(m.keys) for m in got] == [[1, 4], [], [2]] and all(m.maps.shape == (len(m.keys), 37, 50) and m.maps.dtype == np.float32 for m in got)
        alone = net.score_maps(images[:1], labels[:1], scales=(1., .5), kind=kind)[0]
        np.testing.assert_allclose(alone.maps, got[0].maps, atol=1e-4)
    x = torch.tensor(images[0]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        total = sum(F.interpolate(m, (37, 50), mode='bilinear') for m in (net.maps(x)[1], net.maps(x.flip(-1))[1].flip(-1)))[0, 1:].relu()
    want = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    np.testing.assert_allclose(net.score_maps(images[:1], labels[:1], scales=(1.,))[0].maps, want[[0, 3]], atol=1e-4)


def test_sides_and_freezing():
    assert set(C.SIDES) == set(BACKBONES)
    net = make('mobilenet_v2', freeze=('stem', 'layer1', 'batch_norm'), sides=('layer2', 'last')).train()
    net(a_batch())['loss'].backward()
    frozen = [n for n, p in net.backbone.named_parameters() if p.grad is None]
    assert frozen and not any(p.requires_grad for n, p in net.backbone.named_parameters() if n.startswith(('features.0.', 'features.2.'))) and net.correlation.reduce[1].in_channels == 1280


@pytest.mark.parametrize('options, text', [
    (dict(theta=1.5), 'theta: expected a number in (0, 1], got 1.5'), (dict(beta=0.), 'beta: expected'), (dict(rates=(0,)), 'rates: expected dilations of at least 1'),
    (dict(labels_from='cams'), "Did you mean 'cam'?"), (dict(sides=('layer2', 'conv5')), 'stage of tiny'), (dict(sides=('layer2',)), 'expected 2 names'),
    (dict(freeze=('stem',)), 'freeze: part of tiny'), (dict(sigma=0.), 'radius and sigma')])
def test_messages(options, text):
    with pytest.raises(UserError) as e: make(**options)
    assert text in str(e.value)


def test_a_flat_map_labels_nothing_and_erases_nothing():
    net, b = make(rates=(2,), theta=.5).train(), a_batch()
    with torch.no_grad(): net.head.weight[1:3] = 0.
    b['labels'][1] = torch.tensor([1., 1, 0, 0])  # nothing but flat maps in this image
    p, losses = net.passes(b['image'], b['labels'], b['valid']), net(b)
    losses['loss'].backward()
    assert (p.heat[:, 1:3] == 0).all() and not p.region[1].any() and (p.target[1] == 255).all() and not torch.isin(p.target, torch.tensor([1, 2])).any()
    assert all(q.grad is None or q.grad.isfinite().all() for q in net.parameters()) and (p.target[2] == 3).any()


@pytest.mark.parametrize('recipe, rest', [('ecsnet_voc12', dict(theta=.8, beta=.5, rates=(5, 7, 12), seg_weight=1., centre=False)), ('seam_voc12', dict(er=1., ecr=1., floor=1., scale=.3))])
def test_the_recipes_for_voc_build_the_papers_network(recipe, rest):
    stages = stage_parameters(read_recipe(recipe))
    assert list(stages) == ['train', 'psa', 'masks', 'segment', 'evaluate'] and stages['masks']['refine'] == ['psa'] and stages['masks']['threshold'] == .26
    p, s = stages['train'], stages['segment']
    with torch.device('meta'): net = build_localiser(p['method'], 20, p['backbone'], '', p['stride'], '', p['options'])
    assert rest.items() <= net.o.items() and net.backbone.name == 'resnet38' and net.backbone.frozen == ('stem', 'conv2', 'batch_norm') and (p['batch_size'], p['epochs'], p['crop']) == (8, 8, 448)
    assert (s['backbone'], s['head'], s['batch_size'], s['epochs'], s['lr'], s['crop']) == ('resnet38', 'v1', 10, 20, .001, 321)


@pytest.mark.parametrize('reading', [{}, dict(kind='cam')])
def test_what_every_method_promises(reading): check_localiser(lambda k: P.EcsNet(build('tiny'), k, rates=(2, 3)), **reading)
