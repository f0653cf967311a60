"CCMR and SWP: golden values, the equations pixel by pixel, gradients, faults, and the network"
from pathlib import Path

import numpy as np
import pytest
import torch

from conformity import check_localiser
from wsss_nb.base.core import UserError
from wsss_nb.engine.methods import build_localiser
from wsss_nb.nets.single_stage import ConvHead, SingleStageHead, balanced_mask_loss, pseudo_labels, resize
from wsss_nb.nets.zoo import build
from wsss_nb.papers.ccmr import Ccmr, ccmr, focal_penalty, neighbour_affinity, ngwp, prototypes, swp
from wsss_nb.engine.recipes import read_recipe, stage_parameters
from wsss_nb.refine.pamr import pamr

HERE = Path(__file__).parent / 'goldens'
golden = lambda name: {k: torch.from_numpy(v) for k, v in np.load(HERE / f'{name}.npz').items()}
draw = lambda *shape, seed=0: torch.tensor(np.random.default_rng(seed).random(shape))


# ------------------------------------------------------------------ ccmr
@pytest.mark.parametrize('case', ['all4_rgb255', 'all4_rgb01_scale10', 'present02_rgb01'])
def test_golden(case):
    g = {k[len(case) + 1:]: v for k, v in golden('ccmr').items() if k.startswith(case)}
    present, d, scale, eps = torch.isin(torch.arange(4), g['P'])[None], tuple(g['dilations'].tolist()), g['scale'].item(), g['eps'].item()
    run = lambda n, dtype: ccmr(g['image'][None].to(dtype), g['mask'][None].to(dtype), present, n, scale, d, g['use_neighbours'].item(), eps)[0]
    for n in (1, 10):
        assert run(n, torch.float64).dtype == torch.float64 and (run(n, torch.float64) - g[f'out{n}']).abs().max() < 1e-9
        assert run(n, torch.float32).dtype == torch.float32 and (run(n, torch.float32) - g[f'out{n}']).abs().max() < 1e-4
    p = prototypes(g['image'], g['mask'][g['P']], eps)
    assert (p - g['proto1']).abs().max() < 1e-9 * g['image'].max()
    alpha, z = neighbour_affinity(g['image'], scale, d)
    weight = torch.cat([-scale * (g['image'] - p[..., None, None]).square().sum(1).sqrt(), z[None]]).softmax(0)
    assert (weight[:-1] - g['ap1']).abs().max() < 1e-9 and (weight[-1] * alpha - g['al1']).abs().max() < 1e-9
    assert (prototypes(g['image'], run(9, torch.float64)[g['P']], eps) - g['proto10']).abs().max() < 1e-9 * g['image'].max()


def literal(image, mask, present, scale, dilations, neighbours, eps):
    "One iteration of Eq. 1-6 with loops and plain exponentials"
    (_, h, w), out, kernel = image.shape, np.zeros_like(mask), lambda a, b: np.exp(-scale * np.sqrt(((a - b)**2).sum()))
    bar = {k: mask[k] / (eps + mask[k].sum()) for k in present}
    p = {k: (b * image).sum((1, 2)) / (eps + b.sum()) for k, b in bar.items()}
    for y, x in np.ndindex(h, w):
        at = [(min(max(y + d * i, 0), h - 1), min(max(x + d * j, 0), w - 1)) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j] if neighbours else []
        to_class, to_near = {k: kernel(image[:, y, x], p[k]) for k in present}, [kernel(image[:, y, x], image[:, a, b]) for a, b in at]
        for k in range(len(mask)):
            out[k, y, x] = (to_class.get(k, 0) + sum(v * mask[k, a, b] for v, (a, b) in zip(to_near, at))) / (sum(to_class.values()) + sum(to_near))
    return out


@pytest.mark.parametrize('shape,dilations,scale,present,neighbours,eps', [
    ((7, 5), (1, 2, 4, 8, 12, 24), 20., [0, 1, 2], True, 1e-6),
    ((6, 11), (1,), 5., [0, 2], True, 1e-6),
    ((1, 9), (2, 5), 50., [1], True, 1e-3),
    ((9, 1), (3,), 1., [], True, 1e-6),
    ((8, 8), (1, 3), 20., [0, 1], False, 1e-6),
    ((5, 13), (1, 24), 255., [0, 1, 2], True, 1.),
    ((6, 6), (1,), 255., [2], False, 1e-6)])
def test_the_equations(shape, dilations, scale, present, neighbours, eps):
    image, mask = draw(3, *shape), draw(3, *shape, seed=1)
    want = mask.numpy()
    for _ in range(3): want = literal(image.numpy(), want, present, scale, dilations, neighbours, eps)
    P = torch.isin(torch.arange(3), torch.tensor(present))[None]
    got = ccmr(image[None], mask[None], P, 3, scale, dilations, neighbours, eps)
    np.testing.assert_allclose(got[0], want, atol=1e-10)


def test_eight_bit_colours_do_not_underflow():
    image, mask, P = draw(1, 3, 12, 10), draw(1, 2, 12, 10, seed=1), torch.ones(1, 2, dtype=torch.bool)
    assert torch.allclose(ccmr(255 * image, mask, P, scale=1.), ccmr(image, mask, P, scale=255.), atol=1e-12)
    far = torch.zeros(1, 3, 4, 4)
    far[..., :2] = 255.
    out = ccmr(255 * far, torch.rand(1, 2, 4, 4), P, scale=255., neighbours=False)
    assert out.isfinite().all() and torch.allclose(out.sum(1), torch.ones(1, 4, 4))


def test_a_batch_is_its_images_and_arguments_stay():
    image, mask, P = draw(3, 3, 9, 12), draw(3, 4, 9, 12, seed=1), torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
    before = image.clone(), mask.clone(), P.clone()
    out = ccmr(image, mask, P)
    for i in range(3): assert torch.equal(out[i:i + 1], ccmr(image[i:i + 1], mask[i:i + 1], P[i:i + 1]))
    assert all(torch.equal(a, b) for a, b in zip(before, (image, mask, P)))
    assert not ccmr(image, mask.requires_grad_(), P).requires_grad


def test_absent_channels_cost_nothing_and_stay_zero(monkeypatch):
    import wsss_nb.papers.ccmr as module
    image, mask, P = draw(2, 3, 10, 12), draw(2, 21, 10, 12, seed=1), torch.zeros(2, 21, dtype=torch.bool)
    P[0, [0, 3]] = True
    mask = mask * P[..., None, None]
    seen, real = [], module.propagate
    monkeypatch.setattr(module, 'propagate', lambda a, m, d: seen.append(len(m)) or real(a, m, d))
    out = ccmr(image, mask, P)
    assert seen == [2] * 10 and (out[~P] == 0).all()
    assert torch.allclose(out[0, [0, 3]], ccmr(image[:1], mask[:1, [0, 3]], torch.ones(1, 2))[0])


def test_sums_and_range():
    image, P = draw(1, 3, 15, 9), torch.ones(1, 3, dtype=torch.bool)
    mask = draw(1, 3, 15, 9, seed=1).softmax(1)
    out = ccmr(image, mask, P)
    assert torch.allclose(out.sum(1), torch.ones(1, 15, 9).double()) and out.min() >= 0
    half = ccmr(image, mask / 2, P).sum(1)  # what is missing comes back, but not all of it
    assert (half > .5).all() and (half < 1).all()
    assert torch.equal(ccmr(image, mask, P, 0), mask)
    flat = ccmr(torch.full_like(image, .3), mask, P, 1)  # one colour everywhere: all voters count alike
    assert torch.allclose(flat.mean(), torch.tensor(1 / 3).double(), atol=1e-3) and flat.std() < mask.std()
    empty = ccmr(image, torch.zeros_like(mask), P)  # black prototypes, as the equations say
    assert empty.isfinite().all()


@pytest.mark.parametrize('change,text', [
    (dict(image=torch.zeros(1, 3, 4, 5, dtype=torch.uint8)), 'expected floating-point tensors, got torch.uint8'),
    (dict(image=torch.zeros(1, 3, 8, 5)), 'of one size, got [1, 3, 8, 5] and [1, 2, 4, 5]; resize the image'),
    (dict(mask=torch.zeros(2, 4, 5)), 'expected image [B,3,h,w]'),
    (dict(present=torch.ones(1, 3)), 'expected present [1, 2], one value for each channel'),
    (dict(mask=torch.full((1, 2, 4, 5), float('nan'))), 'NaN or infinite'),
    (dict(scale=0.), 'scale: expected a number above 0, got 0.0'),
    (dict(dilations=(0, 1)), 'expected distances of at least 1, got [0, 1]')])
def test_what_cannot_be_refined_says_so(change, text):
    args = dict(image=torch.rand(1, 3, 4, 5), mask=torch.rand(1, 2, 4, 5), present=torch.ones(1, 2), **{})
    with pytest.raises(UserError) as e: ccmr(**{**args, **change})
    assert text in str(e.value)


# ------------------------------------------------------------------ pooling
def test_swp_golden():
    g = golden('swp')
    four = [g[k][None] for k in ('scores', 'mask', 'mask_refined', 'z')]
    assert (swp(*four)[0] - g['y_tau0.6_area0.1']).abs().max() < 1e-9 and (ngwp(*four[:2])[0] - g['ngwp']).abs().max() < 1e-9
    sure = four[2][0] > .6
    assert torch.equal((sure.double().mean((1, 2)) >= .1) & (four[3][0] > 0), g['large_tau0.6_area0.1'])
    assert swp(*(x.float() for x in four[:3]), four[3]).dtype == torch.float32


def test_swp_by_hand_and_its_gradient():
    s, refined, z = draw(2, 3, 6, 7).mul(3).requires_grad_(), draw(2, 3, 6, 7, seed=2), torch.tensor([[1, 1, 0], [0, 1, 1]])
    refined[1, 2] *= .5  # nothing sure: not large
    refined.requires_grad_()
    y = swp(s, s.softmax(1), refined, z, tau=.7, min_area=.2, eps=.5)
    m = s.detach().softmax(1).numpy()
    for b, k in np.ndindex(2, 3):
        gate = refined[b, k].detach().numpy() > .7
        weight = m[b, k] * (gate if z[b, k] and gate.mean() >= .2 else 1)
        assert abs(y[b, k].item() - (weight * s[b, k].detach().numpy()).sum() / (.5 + weight.sum())) < 1e-12
    y[0, 0].backward()
    assert refined.grad is None and (s.grad[0, :, refined[0, 0] <= .7] == 0).all() and (s.grad[0, 0, refined[0, 0] > .7] != 0).any()
    assert (s.grad[1] == 0).all()
    assert torch.autograd.gradcheck(lambda x: swp(x, x.softmax(1), refined.detach(), z, .7, .2), s.detach().requires_grad_())


def test_a_gate_that_lets_nothing_through_is_zero_and_finite():
    s = torch.randn(1, 2, 4, 4, requires_grad=True)
    y = swp(s, s.softmax(1), torch.zeros(1, 2, 4, 4), torch.ones(1, 2), min_area=0.)
    y.sum().backward()
    assert (y == 0).all() and (s.grad == 0).all()
    with pytest.raises(UserError, match='swp: refined: expected .B,K,h,w. with B=1, K=2'): swp(s, s, s[:, :1], torch.ones(1, 2))


def test_focal_penalty():
    g = golden('focal_curve')
    assert (focal_penalty(g['x'].view(1, -1, 1, 1).expand(-1, -1, 5, 3))[0] - g['y_p3_lam0.01']).abs().max() < 1e-6
    m = torch.zeros(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(focal_penalty, m)
    assert focal_penalty(torch.ones(2, 3, 4, 4)).abs().max() == 0


# ------------------------------------------------------------------ the single-stage framework
def test_scores_labels_and_loss_of_the_framework():
    t = {k[2:]: v for k, v in golden('single_stage_scores').items()}
    s = torch.cat([torch.ones_like(t['fg_logits'][:, :1]), t['fg_logits']], 1).requires_grad_()
    m, size = s.softmax(1), t['image01'].shape[2:]
    assert (ngwp(s, m)[:, 1:] - t['ngwp']).abs().max() < 1e-5 and (focal_penalty(m)[:, 1:] - t['focal_penalty']).abs().max() < 1e-5
    cls = torch.nn.functional.multilabel_soft_margin_loss((ngwp(s, m) + focal_penalty(m))[:, 1:], t['labels'])
    assert (torch.autograd.grad(cls, s, retain_graph=True)[0][:, 1:] - t['grad_loss_cls_wrt_fg_logits']).abs().max() < 1e-6
    present = torch.nn.functional.pad(t['labels'], (1, 0), value=1)[..., None, None]
    refined = pamr(resize(t['image01'], m.shape[2:]), m.detach() * present)
    target = pseudo_labels(resize(refined, size))
    want = torch.where(t['pseudo_gt'].sum(1) == 1, t['pseudo_gt'].argmax(1), 255)
    assert (target == want).float().mean() > .99
    loss = balanced_mask_loss(resize(s, size), want, t['labels'])
    assert (loss - t['loss_mask_per_image']).abs().max() < 1e-5
    assert (torch.autograd.grad(loss.mean(), s)[0][:, 1:] - t['grad_mean_loss_mask_wrt_fg_logits']).abs().max() < 1e-6


def test_pseudo_labels():
    g = golden('pseudo_gt')
    for p in ('p1', 'p2'):
        want = g[f'{p}_out']
        assert torch.equal(pseudo_labels(g[f'{p}_mask']), torch.where(want.sum(1) == 1, want.argmax(1), 255))
    assert (pseudo_labels(torch.full((1, 3, 2, 2), .19)) == 255).all()  # nothing above the floor
    assert (pseudo_labels(torch.full((1, 3, 2, 2), .9)) == 255).all()  # everything in three channels


def test_the_mask_loss_leaves_out_what_misses_a_class():
    s, target = torch.randn(2, 4, 6, 5, requires_grad=True), torch.randint(0, 2, (2, 6, 5))
    target[0, 0, 0], target[0, 0, 1] = 255, 2
    loss = balanced_mask_loss(s, target, torch.tensor([[1., 1, 0], [1, 1, 0]]))
    assert loss[0] > 0 and loss[1] == 0
    n, by_hand, p = 29, 0, s[0].log_softmax(0)
    for y, x in np.ndindex(6, 5):
        c = target[0, y, x]
        if c != 255: by_hand -= (n - (target[0] == c).sum()) / (1 + n) * p[c, y, x] / 30
    assert torch.allclose(loss[0], by_hand)
    none = balanced_mask_loss(s, torch.full_like(target, 255), torch.zeros(2, 3))
    assert (none == 0).all() and none.requires_grad


@pytest.mark.parametrize('head', [ConvHead, SingleStageHead])
@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_heads(head, norm):
    net = build('tiny')
    h = head(net.channels, net.strides, 5, norm, 16)
    out = h(net(torch.rand(2, 3, 41, 57)))
    assert out.shape == (2, 5, *((6, 8) if head is ConvHead else (11, 15)))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in h.parameters())
    with pytest.raises(UserError, match='norm: unknown name'): head(net.channels, net.strides, 5, 'layer', 16)


def test_the_stochastic_gate_has_the_deep_features_as_its_mean():
    h = SingleStageHead((4, 8), (4, 8), 2, width=16).train()
    deep, shallow = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    mean = torch.stack([h.gate(deep, shallow) for _ in range(4000)]).mean(0)
    assert (mean - deep).abs().max() < .06 and torch.equal(h.eval().gate(deep, shallow), deep)


# ------------------------------------------------------------------ the network
def make(k=4, **options):
    torch.manual_seed(0)
    return Ccmr(build('tiny'), k, **{'width': 16, 'dilations': (1, 2), **options})


def batch(b=2, k=4, h=48, w=56, progress=.9):
    valid = torch.ones(b, h, w, dtype=torch.bool)
    valid[0, :, -20:] = False
    return dict(image=draw(b, 3, h, w).float() * valid[:, None] + .45 * ~valid[:, None], valid=valid, labels=torch.eye(k)[:b], name=['a', 'b'][:b], progress=progress, step=9, per_epoch=2)


@pytest.mark.parametrize('options', [dict(), dict(pooling='ngwp', refinement='pamr'), dict(pooling='average', refinement='ccmr_no_neighbours'), dict(refinement='none', head='single_stage'), dict(norm='group')])
def test_training_step(options):
    net, b = make(**options), batch()
    out = net(b)
    assert {'loss', 'classes', 'masks', 'taught', 'labelled'} == set(out) and all(v.isfinite() for v in out.values())
    assert torch.allclose(out['loss'], out['classes'] + out['masks'])
    out['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.head.parameters())
    assert set(make(**options)(batch(progress=.1))) == {'loss', 'classes'}


def test_swp_only_after_the_warm_up():
    with torch.no_grad(): s = make().train().scores(batch()['image'])
    m, valid, net = s.softmax(1), torch.ones(2, *s.shape[2:], dtype=torch.bool), make()
    assert torch.equal(net.tag_scores(s, m, valid), make(pooling='ngwp').tag_scores(s, m, valid))
    want = (swp(s, m, torch.ones_like(m) * .9, torch.ones(2, 5)) + focal_penalty(m))[:, 1:]
    assert torch.allclose(net.tag_scores(s, m, valid, torch.ones_like(m) * .9, torch.ones(2, 5)), want)


def test_padding_is_no_part_of_the_image():
    net, b = make(norm='group'), batch()
    mask, present = draw(2, 5, 6, 7).softmax(1), torch.ones(2, 5) > 0
    valid = torch.ones(2, 6, 7, dtype=torch.bool)
    valid[0, :, -2:] = False
    out = net.refine_views(b['image'], mask, valid, present)
    small = resize(b['image'].double(), (6, 7))
    assert (out[0, ..., -2:] == 0).all() and torch.allclose(out[:1, ..., :-2], net.refine(small[:1, ..., :-2], mask[:1, ..., :-2], present[:1]))
    s = torch.randn(2, 5, 6, 7)
    scores = net.tag_scores(s, s.softmax(1), valid)
    assert torch.allclose(scores[:1], net.tag_scores(s[:1, ..., :-2], s[:1, ..., :-2].softmax(1), valid[:1, :, :-2]), atol=1e-6)


def test_score_maps_and_prediction():
    net = make().eval()
    images = [(draw(33, 45, 3, seed=i).numpy() * 255).astype(np.uint8) for i in range(3)]
    labels = torch.tensor([[1., 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    got, p = net.score_maps(images, labels, (1., .5)), net.predict(images, (1., .5))
    assert [list(g.keys) for g in got] == [[0, 1, 3], [0], [0, 1, 2, 3, 4]] and p.shape == (3, 5, 33, 45) and torch.allclose(p.sum(1), torch.ones(3, 33, 45), atol=1e-5)
    for g, q in zip(got, p): assert g.maps.dtype == np.float32 and np.abs(g.maps - q[list(g.keys)].numpy()).max() < 1e-6
    free = net.score_maps(images, labels, (1., .5), cleaned=False)
    for g, q in zip(free, p): assert set(g.keys) == {0, *q.argmax(0).unique().tolist()} and np.array_equal(g.keys[g.maps.argmax(0)], q.argmax(0).numpy())
    fine = net.score_maps(images[:1], labels[:1], (1.,), kind='refined')[0]
    assert list(fine.keys) == [0, 1, 3] and fine.maps.max() <= 1 and fine.maps.min() >= 0
    with pytest.raises(UserError, match="reading.kind: unknown name 'masks'"): net.score_maps(images, labels, kind='masks')


@pytest.mark.parametrize('pooling', ['swp', 'average'])
def test_raw_maps_have_the_class_score_as_their_mean(pooling):
    net, images = make(pooling=pooling).eval(), draw(2, 3, 40, 49).float()
    s = net.scores(images)
    assert torch.allclose(net.raw_maps(images).mean((2, 3)), net.tag_scores(s, s.softmax(1), torch.ones(2, *s.shape[2:], dtype=torch.bool)), atol=1e-5)


@pytest.mark.parametrize('options,text', [
    (dict(pooling='max'), "pooling: unknown name 'max'"), (dict(refinement='crf'), "refinement: unknown name 'crf'"), (dict(head='deep'), "head: unknown name 'deep'"),
    (dict(warmup=5), 'warmup: expected a share of the training, 0..1, got 5; 5 of 30 epochs are 0.1667')])
def test_options_that_are_none(options, text):
    with pytest.raises(UserError) as e: make(**options)
    assert text in str(e.value)


def without_a_say(net, b): torch.nn.init.zeros_(net.head.layers[-1].weight), torch.nn.init.zeros_(net.head.layers[-1].bias)
def one_flat_map(net, b): net.head.layers[-1].weight.data[1].zero_()
def no_class(net, b): b['labels'].zero_()
def every_class(net, b): b['labels'].fill_(1)
def one_colour(net, b): b['image'].fill_(.5)
def black(net, b): b['image'].zero_()
def only_padding(net, b): b['valid'].zero_()
def one_pixel(net, b): b['valid'].zero_()[..., 5, 7] = True


@pytest.mark.parametrize('spoil', [without_a_say, one_flat_map, no_class, every_class, one_colour, black, only_padding, one_pixel])
@pytest.mark.parametrize('options', [dict(), dict(pooling='average', refinement='pamr'), dict(pooling='ngwp', refinement='ccmr_no_neighbours')])
def test_bad_batches(options, spoil):
    net, b = make(**options).train(), batch(progress=.9)
    spoil(net, b)
    out = net(b)
    out['loss'].backward()
    assert all(v.isfinite() for v in out.values()) and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    if spoil in (without_a_say, only_padding): assert out['masks'] == 0 and out['taught'] == 0  # no reliable pixel of a class in the batch
    if spoil is only_padding: assert out['labelled'] == 0


def test_the_recipe_for_voc_builds_the_papers_network():
    stages = stage_parameters(read_recipe('ccmr_voc12'))
    p, s = stages['train'], stages['segment']
    with torch.device('meta'): net = build_localiser(p['method'], 20, p['backbone'], '', p['stride'], '', p['options'])
    assert (net.backbone.name, net.backbone.strides[-1], net.scale, net.iters, net.tau, net.pooling, net.refinement) == ('vgg16', 8, 20., 10, .6, 'swp', 'ccmr') and abs(net.warmup * p['epochs'] - 5) < 1e-9
    assert abs(p['lr'] * p['head_lr'] - .01) < 1e-9 and p['batch_size'] == 16 and p['schedule'] == 'constant' and stages['masks']['refine'] == ['crf'] and (s['backbone'], s['head']) == ('resnet101', 'v3plus')


@pytest.mark.parametrize('options, reading', [(dict(), dict()), (dict(refinement='pamr', pooling='ngwp', norm='group'), dict(kind='refined')), (dict(head='single_stage'), dict())])
def test_what_every_method_promises(options, reading): check_localiser(lambda k: Ccmr(build('tiny'), k, **{'width': 16, 'dilations': (1, 2), **options}), **reading)


# ------------------------------------------------------------------ as a step of refinement
def test_as_a_step_it_refines_what_another_method_wrote(tmp_path):
    from wsss_nb.data.sample import load_maps, save_maps
    from wsss_nb.data.synthetic import synthetic
    from wsss_nb.papers.ccmr import write_ccmr
    data = synthetic('val', n=3)
    keys = ([1, 4], [0, 2], [0, 3, 255])  # without a background, with one, with undecided pixels
    for i, k in enumerate(keys): save_maps(tmp_path / f'in/{data.names[i]}.npz', k, np.random.default_rng(i).random((len(k), *data.size(i))).astype(np.float32))
    write_ccmr(None, data, tmp_path / 'in', tmp_path / 'out', workers=1, threshold=.3, iters=3, scale=8., dilations=(1, 3))
    for i, k in enumerate(keys):
        got, m = load_maps(tmp_path / f'out/{data.names[i]}.npz'), torch.from_numpy(load_maps(tmp_path / f'in/{data.names[i]}.npz').maps.astype(np.float64))
        if 0 not in k: k, m = [0, *k], torch.cat([torch.full_like(m[:1], .3), m])
        m = (m + 1e-5) / (m + 1e-5).sum(0)
        x = torch.from_numpy(data.image(i)).permute(2, 0, 1)[None].double() / 255
        m = ccmr(x, m[None], torch.tensor(k)[None] != 255, 3, 8., (1, 3))[0]  # itself compared with the equations above
        assert got.keys.tolist() == k and np.abs(got.maps - m.clamp(0, 1).numpy()).max() < 2e-3  # files are float16
    before = (tmp_path / f'out/{data.names[0]}.npz').stat().st_mtime_ns
    (tmp_path / f'out/{data.names[1]}.npz').unlink()
    write_ccmr(None, data, tmp_path / 'in', tmp_path / 'out', workers=1)
    assert (tmp_path / f'out/{data.names[1]}.npz').exists() and (tmp_path / f'out/{data.names[0]}.npz').stat().st_mtime_ns == before


def test_a_recipe_can_refine_with_it():
    p = stage_parameters({'masks': {'refine': ['ccmr', 'crf'], 'ccmr_scale': 50}})['masks']
    assert p['ccmr_scale'] == 50. and p['ccmr_iters'] == 10
    with pytest.raises(UserError, match="unknown name 'ccmr_scal'. Did you mean 'ccmr_scale'"): stage_parameters({'masks': {'ccmr_scal': 50}})
