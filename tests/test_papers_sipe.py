"SIPE: the authors' values and gradients, Eq. 3-7 with loops, what may not break it, and the shared conformity check"
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conformity import check_localiser, training_batch
from wsss_nb.cams import CamNet, multilabel_loss, normalize, with_background
from wsss_nb.base.core import UserError, seed_everything
from wsss_nb.data.views import merge_pairs
from wsss_nb.nets.zoo import build
from wsss_nb.papers import sipe as S

STAGES = (1, 2, 3, 4)


def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / f'goldens/sipe_head_{name}_1cls.npz').items()}


def close(got, want):
    return got.shape == want.shape and (got - want).abs().max() <= 2e-5 * want.abs().max()


def training_head(g, dtype=torch.float32):
    "Everything behind the backbone, for one training crop"
    leaves = {k: g[k].to(dtype).requires_grad_() for k in ('x1', 'x2', 'x3', 'x4', 'w_side1', 'w_side2', 'w_side3', 'w_side4', 'w_classifier')}
    x, w, mask = [leaves[f'x{i}'] for i in STAGES], [leaves[f'w_side{i}'] for i in STAGES], g['valid_mask_low'].to(dtype)
    raw, features = F.conv2d(x[3], leaves['w_classifier'][..., None, None]), S.hierarchical(x, w)
    cam = with_background(normalize(raw), g['label']) * mask[:, :1]
    found = S.locate_seeds(x[3], cam)
    seeds = S.one_hot(found, 21, mask)
    p = S.prototypes(features, seeds)
    maps = S.is_cam(features, p)
    return leaves, dict(hie_fea=features, norm_cam=cam, seed_argmax=found, seeds=seeds, prototypes=p, IS_cam=maps, loss_gsc=S.gsc_loss(cam, maps), loss_cls=multilabel_loss(raw.mean((2, 3)), g['label']))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_training_crop_as_the_authors_code_has_it(dtype):
    g = golden('train')
    leaves, got = training_head(g, dtype)
    for k in ('hie_fea', 'norm_cam', 'seeds', 'prototypes', 'IS_cam'): assert got[k].dtype == dtype and close(got[k].detach().to(g[k]), g[k]), k
    assert got['seed_argmax'].dtype == torch.int64 and torch.equal(got['seed_argmax'], g['seed_argmax'])
    assert abs(got['loss_gsc'].item() - g['loss_gsc']) < 1e-6 and abs(got['loss_cls'].item() - g['loss_cls']) < 1e-6


@pytest.mark.parametrize('what, parts', [('cls', ('loss_cls',)), ('gsc', ('loss_gsc',)), ('total', ('loss_cls', 'loss_gsc'))])
def test_every_gradient_as_the_authors_code_has_it(what, parts):
    g = golden('train')
    leaves, got = training_head(g)
    grads = torch.autograd.grad(sum(got[p] for p in parts), list(leaves.values()), allow_unused=True)
    for name, grad in zip(leaves, grads):
        name = name.removeprefix('w_')
        if g[f'gradnone_{what}_{name}']: assert grad is None or grad.abs().max() == 0, name
        else: assert close(grad, g[f'grad_{what}_{name}']), name


def test_a_mirrored_pair_at_test_time_as_the_authors_code_has_it():
    g = golden('infer')
    features = merge_pairs(S.hierarchical([g[f'x{i}'] for i in STAGES], [g[f'w_side{i}'] for i in STAGES]))
    labels = g['label_with_bg'][None, 1:]
    cam = with_background(normalize(merge_pairs(F.conv2d(g['x4'], g['w_classifier'][..., None, None]))), labels)
    c = S.weighted(S.structure_similarity(features, cam), .5)
    seeds = S.one_hot(S.locate_seeds(features, cam), 21, S.channel_mask(labels))
    p = S.prototypes(features, seeds)
    assert close(features[0], g['hie_fea_sum']) and close(cam[0], g['norm_cam']) and close(c[0], g['iou_bghalved'])
    assert torch.equal(seeds[0], g['seeds']) and close(p[0], g['prototypes']) and close(S.is_cam(features, p)[0], g['IS_cam'])


def similarity_by_loops(f, m):
    "Eq. 3-4 for one image; f [D,h,w], m [K+1,h,w]"
    f, (k, h, w) = f.reshape(len(f), -1), m.shape
    flat, out = m.reshape(k, -1), np.zeros((k, h * w))
    for i in range(h * w):
        s = np.array([max(0., float(f[:, i] @ f[:, j]) / max(np.linalg.norm(f[:, i]) * np.linalg.norm(f[:, j]), 1e-12)) for j in range(h * w)])
        for c in range(k):
            both = (flat[c] * s).sum()
            out[c, i] = both / max((flat[c] + s - flat[c] * s).sum(), 1e-5)
    return out.reshape(m.shape)


@pytest.mark.parametrize('shape, classes', [((1, 1), 2), ((3, 7), 4), ((9, 5), 21), ((17, 16), 2)])
def test_seeds_prototypes_and_maps_from_the_definition(shape, classes):
    r = np.random.default_rng(classes)
    f, m = r.normal(size=(2, 6, *shape)), r.random((2, classes, *shape)) ** 3
    m[0, 1:] *= r.random((classes - 1, 1, 1)) < .6  # some classes are absent
    f[1, :, -1, -1] = 0
    c = np.stack([similarity_by_loops(*x) for x in zip(f, m)])
    for block in (0, 4, 7): np.testing.assert_allclose(S.structure_similarity(torch.tensor(f), torch.tensor(m), block), c, atol=1e-12)
    c[:, 0] *= .7
    found = S.locate_seeds(torch.tensor(f), torch.tensor(m), .7)
    assert torch.equal(found, torch.tensor(c.argmax(1)))
    p = S.prototypes(torch.tensor(f), S.one_hot(found, classes))
    maps = S.is_cam(torch.tensor(f), p)
    for b in range(2):
        for k in range(classes):
            on = (found[b] == k).numpy()
            np.testing.assert_allclose(p[b, k], f[b][:, on].sum(1) / on.size, atol=1e-12)
            mean = f[b][:, on].mean(1) if on.any() else np.zeros(6)
            want = np.einsum('d,dhw->hw', mean, f[b]) / np.maximum(np.linalg.norm(mean) * np.linalg.norm(f[b], axis=0), 1e-12)
            np.testing.assert_allclose(maps[b, k], np.maximum(want, 0), atol=1e-9)


def test_the_paper_does_not_average_what_the_cosine_hides():
    f, seeds = torch.randn(1, 5, 4, 4).double(), torch.rand(1, 3, 4, 4).double().round()
    per_seed = torch.einsum('bkhw,bdhw->bkd', seeds, f) / seeds.sum((2, 3)).clamp(min=1)[..., None]
    assert torch.allclose(S.is_cam(f, S.prototypes(f, seeds)), S.is_cam(f, per_seed))


def test_ties_go_to_the_smaller_id():
    f, cam = torch.ones(1, 3, 4, 4), torch.zeros(1, 4, 4, 4)
    assert (S.locate_seeds(f, cam) == 0).all()  # no evidence at all
    cam[:, 2:] = .5
    assert (S.locate_seeds(f, cam) == 2).all()


def test_loss():
    cam, maps = torch.rand(2, 3, 4, 5).double(), torch.rand(2, 3, 4, 5).double()
    maps[1, 2] = 0
    top = maps.amax((2, 3), keepdim=True)
    want = sum(float(abs(cam[b, k] - maps[b, k] / (top[b, k] + 1e-5)).sum()) for b in range(2) for k in range(3)) / cam.numel()
    assert abs(S.gsc_loss(cam, maps) - want) < 1e-12 and abs(S.gsc_loss(cam, maps, max_normalise=False) - (cam - maps).abs().mean()) < 1e-12


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_zero_features_have_finite_gradients(dtype):
    stages = [torch.zeros(2, c, 6, 6, dtype=dtype) for c in (3, 4, 5, 6)]
    stages[3][0, :, :3] = torch.rand(6, 3, 6)
    w = [torch.randn(4, c, dtype=dtype, requires_grad=True) for c in (3, 4, 5, 6)]
    raw = torch.zeros(2, 3, 6, 6, dtype=dtype, requires_grad=True)
    features, semantic = S.hierarchical(stages, w), stages[3].clone().requires_grad_()
    for f in (features, semantic):
        cam = with_background(normalize(raw), torch.eye(3)[:2])
        maps = S.is_cam(f, S.prototypes(f, S.one_hot(S.locate_seeds(f, cam), 4)))
        assert maps.dtype == dtype and maps.isfinite().all() and (maps[1] == 0).all()
        grads = torch.autograd.grad(S.gsc_loss(cam, maps), [*w, raw] if f is features else [semantic, raw], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)


def test_arguments_are_left_alone():
    f, cam = torch.rand(1, 4, 5, 5), torch.rand(1, 3, 5, 5)
    kept = f.clone(), cam.clone()
    S.gsc_loss(cam, S.is_cam(f, S.prototypes(f, S.one_hot(S.locate_seeds(f, cam), 3))))
    assert torch.equal(f, kept[0]) and torch.equal(cam, kept[1])


def tiny(k=3, **options):
    seed_everything(0)
    return S.Sipe(build('tiny'), k, **dict(dict(widths=(8, 8, 16, 16)), **options))


def test_the_network_computes_the_loss_of_its_parts():
    net = tiny(bg_weight=.8, gsc=2.).eval()
    labels = torch.tensor([[1., 0., 1.], [0., 1., 0.]])
    batch = training_batch(net, labels)
    x = net.backbone(batch['image'])
    raw, f = net.head(x[3]), S.hierarchical(x, [s.weight for s in net.sides])
    valid = batch['valid'][:, None, ::8, ::8].float()
    cam = torch.cat([1 - normalize(raw).amax(1, keepdim=True), normalize(raw) * labels[:, :, None, None]], 1) * valid
    here = torch.cat([torch.ones(2, 1), labels], 1)[:, :, None, None] * valid
    seeds = F.one_hot(S.locate_seeds(x[3], cam, .8), 4).movedim(-1, 1) * here
    gsc = S.gsc_loss(cam, S.is_cam(f, S.prototypes(f, seeds)))
    losses = net(batch)
    assert torch.allclose(losses['gsc'], gsc) and torch.allclose(losses['loss'], multilabel_loss(raw.mean((2, 3)), labels) + 2 * gsc)


def test_the_text_to_the_letter():
    net = tiny(mode='paper').eval()
    batch = training_batch(net, torch.tensor([[1., 0., 1.]]))
    batch['valid'][:] = True
    x = net.backbone(batch['image'])
    cam = normalize(net.head(x[3]))
    cam = torch.cat([.5 * (1 - cam.amax(1, keepdim=True)), cam * batch['labels'][:, :, None, None]], 1)  # Eq. 2
    f = S.hierarchical(x, [s.weight for s in net.sides])
    seeds = F.one_hot(S.locate_seeds(x[3], cam, 1.), 4).movedim(-1, 1) * torch.tensor([1., 1, 0, 1]).view(1, 4, 1, 1)
    assert torch.allclose(net(batch)['gsc'], (cam - S.is_cam(f, S.prototypes(f, seeds))).abs().mean())


def test_padding_has_no_seeds_and_no_cam(monkeypatch):
    seen = {}
    real_p, real_l = S.prototypes, S.gsc_loss
    monkeypatch.setattr(S, 'prototypes', lambda f, s: seen.update(seeds=s) or real_p(f, s))
    monkeypatch.setattr(S, 'gsc_loss', lambda c, m, n=True: seen.update(cam=c) or real_l(c, m, n))
    net = tiny()
    batch = training_batch(net, torch.tensor([[1., 0., 0.], [1., 1., 0.]]))
    net(batch)['loss'].backward()
    padding = ~batch['valid'][:, None, ::8, ::8].expand(-1, 4, -1, -1)
    assert padding.any() and (seen['seeds'][padding] == 0).all() and (seen['cam'][padding] == 0).all()
    assert (seen['seeds'][0, 2:] == 0).all() and (seen['seeds'].sum(1)[~padding[:, 0]] <= 1).all()


def test_gradients_stop_where_the_authors_stop_them():
    net = tiny()
    batch = training_batch(net, torch.tensor([[1., 1., 0.], [1., 1., 1.]]))
    net(batch)['gsc'].backward()
    assert all(s.weight.grad.abs().sum() > 0 for s in net.sides) and net.head.weight.grad.abs().sum() > 0
    net.zero_grad()
    loss = net(dict(batch))
    stages = net.backbone(batch['image'])
    f = S.hierarchical(stages, [s.weight for s in net.sides])
    assert torch.autograd.grad(f.sum(), stages, allow_unused=True) == (None,) * 4 and loss['gsc'].requires_grad


def test_frozen_parts():
    pretend = build('resnet50')
    pretend.origin = dict(pretend.origin, weights='a file')
    net = S.Sipe(pretend, 20)
    assert pretend.frozen == ('stem', 'layer1', 'layer2') and not pretend.layer2[0].conv1.weight.requires_grad and pretend.layer3[0].conv1.weight.requires_grad
    assert S.Sipe(build('tiny'), 2).backbone.frozen == () and S.Sipe(build('tiny'), 2, freeze=('layer1',)).backbone.frozen == ('layer1',)
    for name, parts in S.FROZEN.items(): assert name == 'resnet101' or set(parts) <= set(build(name).parts())
    batch = training_batch(net, torch.eye(20)[:2], (48, 64))
    net(batch)['loss'].backward()
    with_grad = {n for n, p in net.named_parameters() if p.grad is not None}
    assert with_grad == {n for n, p in net.named_parameters() if p.requires_grad} and {'head.weight', 'sides.0.weight'} <= with_grad
    assert [tuple(s.weight.shape[:2]) for s in net.sides] == [(128, 256), (128, 512), (256, 1024), (256, 2048)]


def test_without_the_loss_there_are_no_projections():
    net = tiny(gsc=0.)
    assert not len(net.sides) and set(net(training_batch(net, torch.ones(1, 3)))) == {'loss'} and not len(tiny(feature='semantic').sides)
    x = net.backbone(torch.rand(1, 3, 40, 40))
    f = S.hierarchical(x)
    assert f.shape[1] == sum(net.backbone.channels)
    last = f[:, -128:]  # no resizing there
    assert torch.allclose(last, x[3] / (x[3].norm(dim=1, keepdim=True) + 1e-5))


READINGS = [dict(), dict(kind='cam'), dict(background='estimated'), dict(background='threshold'), dict(background_of='present', bg_weight=.9), dict(feature='semantic'),
            dict(seed_feature='semantic'), dict(seeds='argmax'), dict(seeds='threshold', seed_threshold=.2)]


@pytest.mark.parametrize('reading', READINGS)
def test_readings(reading):
    net = tiny().eval()
    images, labels = [np.random.default_rng(i).integers(0, 255, (41, 50, 3)).astype(np.uint8) for i in range(3)], torch.tensor([[1., 0., 1.], [0., 1., 0.], [0., 0., 0.]])
    maps = net.score_maps(images, labels, (1., .5), **reading)
    first = [] if 'cam' in reading.values() or reading.get('background') == 'threshold' else [0]
    assert [list(m.keys) for m in maps] == [first + [1, 3], first + [2], first]
    assert all(m.maps.shape == (len(m.keys), 41, 50) and np.isfinite(m.maps).all() and (m.maps <= 1).all() for m in maps)
    if reading.get('background') == 'estimated': np.testing.assert_allclose(maps[0].maps[0], .5 * (1 - maps[0].maps[1:].max(0)), atol=1e-6)
    if reading.get('kind') == 'cam': np.testing.assert_allclose(maps[0].maps[0], CamNet.score_maps(net, images, labels, (1., .5))[0].maps[0])


def test_score_maps_step_by_step():
    net = tiny().eval()
    r = np.random.default_rng(0)
    image, labels, total = r.integers(0, 255, (48, 64, 3)).astype(np.uint8), torch.tensor([[0., 1., 0.]]), 0
    for size in ((48, 64), (24, 32)):
        x = torch.tensor(np.asarray(__import__('PIL.Image').Image.fromarray(image).resize(size[::-1], 3))).permute(2, 0, 1)[None].float() / 255
        raw, f = 0, 0
        with torch.no_grad():
            for flip in (False, True):
                stages = net.backbone(x.flip(-1) if flip else x)
                turn = (lambda t: t.flip(-1)) if flip else (lambda t: t)
                raw, f = raw + turn(net.head(stages[3])), f + turn(S.hierarchical(stages, [s.weight for s in net.sides]))
            cam = torch.cat([1 - normalize(raw).amax(1, keepdim=True), normalize(raw) * labels[..., None, None]], 1)
            seeds = F.one_hot(S.locate_seeds(f, cam), 4).movedim(-1, 1)
            total = total + F.interpolate(S.is_cam(f, S.prototypes(f, seeds)), (48, 64), mode='bilinear', align_corners=False)
    want = total[0, [0, 2]] / (total[0, [0, 2]].amax((1, 2), keepdim=True) + 1e-5)
    np.testing.assert_allclose(net.score_maps([image], labels, (1., .5))[0].maps, want, atol=1e-5)


@pytest.mark.parametrize('call, text', [
    (lambda: S.locate_seeds(torch.rand(1, 8, 4, 4), torch.rand(1, 3, 8, 8)), 'cam: expected [B,K+1,h,w] on the grid of the features, [1, 8, 4, 4], got [1, 3, 8, 8]; resize one of them.'),
    (lambda: S.prototypes(torch.rand(1, 8, 4, 4), torch.zeros(1, 4, 4)), 'seeds: expected [B,K+1,h,w]'),
    (lambda: S.is_cam(torch.rand(1, 8, 4, 4), torch.rand(1, 3, 7)), 'prototypes: expected [1,K+1,8] for features [1, 8, 4, 4], got [1, 3, 7].'),
    (lambda: S.hierarchical([torch.rand(1, 2, 3, 3)] * 4, [torch.rand(4, 2)] * 3), 'projections: expected one for each of the 4 stages, got 3.'),
    (lambda: S.hierarchical([torch.rand(1, 2, 3, 3)] * 4, [torch.rand(4, 2)] * 3 + [torch.rand(4, 5)]), 'projections[3]: expected a kernel [o,2,1,1]'),
    (lambda: S.gsc_loss(torch.rand(1, 2, 3, 3), torch.rand(1, 3, 3, 3)), 'gsc_loss: expected two maps of one shape'),
    (lambda: tiny(mode='offical'), "mode: unknown name 'offical'. Did you mean 'official'?"),
    (lambda: tiny(freeze=('stem',)), 'freeze: part of tiny'),
    (lambda: tiny().score_maps([], torch.zeros(0, 3), bgweight=1.), "reading of sipe: unknown name 'bgweight'. Did you mean 'bg_weight'?"),
    (lambda: tiny().score_maps([], torch.zeros(0, 3), kind='iscam'), "kind: unknown name 'iscam'. Did you mean 'is_cam'?"),
])
def test_messages(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


@pytest.mark.parametrize('options', [{}, dict(gsc=0.), dict(mode='paper', background='threshold'), dict(feature='semantic', seeds='argmax')])
def test_conformity(options):
    check_localiser(lambda k: S.Sipe(build('tiny'), k, **dict(dict(widths=(8, 8, 16, 16)), **options)))


@pytest.mark.parametrize('kind', CamNet.kinds)
def test_conformity_of_the_baseline(kind):
    check_localiser(lambda k: CamNet(build('tiny'), k), kind=kind)
