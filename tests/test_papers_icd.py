"ICD: golden values of the equations and of the authors' code, closed forms, gradients, data from which it cannot learn, and the whole line as a recipe"
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture

from conformity import check_localiser
from inside import inside
from wsss_nb.base.core import UserError
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import Data, Record, load_maps, read_mask, save_maps
from wsss_nb.data.views import TrainingViews
from wsss_nb.engine.evaluate import sweep_of
from wsss_nb.metrics import Confusion, pixel_ap
from wsss_nb.nets.zoo import build
from wsss_nb.nets import top_down as T
from wsss_nb.papers import icd as I
from wsss_nb.refine import cuts as C
from wsss_nb.refine import signed as S
from wsss_nb.refine.chain import refine, to_mask
from wsss_nb.refine.crf import crf_from_labels
from wsss_nb.engine.run import run_recipe

G, OPS, RULE = ({k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / f'goldens/{n}.npz').items()} for n in ('icd', 'icd_ops_official', 'icd_seeds_official'))


def close(a, b, atol=1e-9): torch.testing.assert_close(a, b, atol=atol, rtol=0)


# golden values

@pytest.mark.parametrize('labels', ['', '_single_only'])
@pytest.mark.parametrize('kind, name', [('square', 'bu'), ('abs', 'abs'), ('sigmoid', 'sig')])
def test_golden_bottom_up(kind, name, labels):
    w = G['w_raw'].clone().requires_grad_()
    close(I.directional_scores(G['feat'], w).detach(), G['raw_scores'])
    loss = I.bottom_up_loss(G['feat'], w, G['labels' + labels], kind)
    close(loss.detach(), G[f'loss_{name}{labels}'])
    if kind != 'sigmoid': close(torch.autograd.grad(loss, w)[0], G[f'grad_w_raw_{name}{labels}'])


@pytest.mark.parametrize('mode, name', [('official', 'code'), ('paper', 'paper')])
def test_golden_sign_and_single_seed(mode, name):
    aligner = I.SignAligner(5, mode=mode).double()
    close(aligner(G['sign_b0_score'], G['sign_b0_cam'], G['sign_b0_labels']), G[f'sign_b0_{name}_out'])
    close(aligner.means, G[f'sign_b0_{name}_moving'])
    assert torch.equal(I.seeds(G['seed_scores'][:1], G['seed_cams'][:1], [8], mode), G[f'seed_single_{name}'])


def test_golden_superpixels_and_top_down():
    close(I.superpixel_mean(G['sp_score'], G['sp_labels']), G['sp_avg'])
    x = G['td_logits'].clone().requires_grad_()
    loss = I.top_down_loss(x, G['B'], G['td_image_labels'])
    close(loss.detach(), G['loss_td'])
    close(torch.autograd.grad(loss, x)[0], G['grad_td'])


def test_golden_official_vote_target_and_warm_up():
    close(I.superpixel_vote(OPS['sp_score'], OPS['sp_superpixel'], OPS['sp_label']), OPS['sp_out'], 1e-6)
    x, (target, counts) = OPS['td_data'].clone().requires_grad_(), I.refined_target(OPS['td_score'])
    for step in range(6):
        assert abs(I.warm_up(step, 4) - float(OPS['td_warmup_scales'][step])) < 1e-7
        loss = len(x) * I.warm_up(step, 4) * I.top_down_loss(x, target, OPS['td_label'], counts)
        close(torch.autograd.grad(loss, x)[0], OPS['td_grads_6_steps'][step], 1e-7)


@pytest.mark.parametrize('case', ['single', 'multi2'])
@pytest.mark.parametrize('mode', I.MODES)
def test_golden_seeds_and_their_maps(case, mode, tmp_path):
    icd, cam, ids = RULE[f'{case}_icd_full'], RULE[f'{case}_cam_full'], RULE[f'{case}_labels0'] + 1
    seed = I.seeds(icd, cam, ids, mode)
    if mode == 'official': assert torch.equal(seed, RULE[f'{case}_seed_identity_crf'].long())
    m = S.seed_maps(icd, cam, ids, mode)
    save_maps(tmp_path / 'm.npz', *m)
    for maps in (m, load_maps(tmp_path / 'm.npz')):
        assert np.array_equal(to_mask(maps), seed) and maps.maps.min() >= 0 and maps.maps.max() <= 1


# closed forms and slow evaluations

def test_direction_of_a_known_cloud():
    f = torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    f[0, 0, 0] = torch.tensor([3., -3, 1, -1])
    w = torch.tensor([[2., 0], [0, 5]], dtype=torch.float64)
    assert I.directional_scores(f, w)[0, 0, 0].tolist() == [3, -3, 1, -1]
    assert float(I.bottom_up_loss(f, w, torch.ones(1, 2))) == -5 and float(I.bottom_up_loss(f, w, torch.ones(1, 2), 'abs')) == -2
    assert abs(float(I.bottom_up_loss(f, w[1:], torch.ones(1, 1), 'sigmoid')) - np.log(2)) < 1e-12


@pytest.mark.parametrize('mode', I.MODES)
def test_sign_against_a_loop(mode):
    r = torch.Generator().manual_seed(0)
    aligner, want = I.SignAligner(4, mode=mode).double(), np.zeros((4, 2))
    for _ in range(3):
        s, cam, y = (torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=r) for _ in range(2)), None, (torch.rand(3, 4, generator=r) > .5).double()
        s, cam = s
        s[0, 0] = s[0, 0].abs()  # an empty group
        y[:, 3] = 0
        out = aligner(s, cam, y)
        for c in range(4):
            if not y[:, c].any(): continue
            new = np.zeros(2)
            for i in range(3):
                for g, side in enumerate((s[i, c] > 0, s[i, c] < 0)):
                    m = cam[i, c][side].relu() if mode == 'official' else cam[i, c][side]
                    if y[i, c] and len(m): new[g] += float(m.mean())
            want[c] = .9 * want[c] + .1 * new / (float(y[:, c].sum()) if mode == 'official' else 3)
        close(aligner.means, torch.tensor(want))
        sign = np.where(want[:, 0] >= want[:, 1], 1., -1.)
        close(out, s * torch.tensor(sign)[:, None, None])
    aligner.eval()(s, cam, torch.ones(3, 4))
    close(aligner.means, torch.tensor(want))
    assert torch.equal(aligner.means[3], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize('size', [(7, 9), (4, 5), (1, 1), (3, 1)])
def test_superpixel_mean_at_any_size(size):
    regions, s = torch.randint(0, 4, (2, 7, 9)), torch.randn(2, 3, *size, dtype=torch.float64)
    hot = F.interpolate(F.one_hot(regions, 4).permute(0, 3, 1, 2).double(), size, mode='bilinear', align_corners=True)
    means = torch.einsum('brhw,bkhw->bkr', hot, s) / hot.sum((2, 3))[:, None].clamp(min=1e-12)
    before = s.clone()
    close(I.superpixel_mean(s, (regions * 97 - 5).int()), torch.einsum('brhw,bkr->bkhw', hot, means))
    assert torch.equal(s, before) and I.superpixel_mean(s.float(), regions).dtype == torch.float32


def test_one_superpixel():
    s, one, y = torch.randn(2, 3, 4, 5), torch.zeros(2, 32, 40, dtype=torch.uint8), torch.ones(2, 3)
    close(I.superpixel_mean(s, one), s.mean((2, 3), keepdim=True).expand_as(s), 1e-6)
    voted = I.superpixel_vote(s, one, y)
    close(voted, voted[..., :1, :1].expand_as(s), 1e-6)
    assert ((voted > 0).flatten(2).all(2).sum(1) <= 1).all()
    target, counts = I.refined_target(torch.zeros(1, 1, 2, 2))
    assert not target.any() and not counts.any() and I.refined_target(torch.zeros(1, 1, 2, 2), 0)[1].all()


def test_vote_by_hand():
    s = torch.tensor([[[[2., 2, -9, 1, -1, 0]], [[3., 3, 3, -1, -1, -4]], [[9.] * 6]]])
    out = I.superpixel_vote(s, torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[1., 1, 0]]))
    close(out[0, :, 0], torch.tensor([[-3.] * 3 + [-1 / 3] * 3, [3.] * 3 + [-2.] * 3, [0.] * 6]), 1e-6)


def test_seeds_by_hand():
    icd = torch.tensor([[[1., 1, -1, -1, 2]], [[-1., 2, -2, 3, 1]]])
    cam = torch.tensor([[[4., 1, 9, 0, -1]], [[0., 2, 9, -1, -1]]])
    assert I.seeds(icd, cam, [3, 7], 'paper').tolist() == [[3, 7, 0, 7, 7]]
    assert I.seeds(icd, cam, [3, 7]).tolist() == [[3, 7, 0, 255, 255]]
    assert I.seeds(icd[:1], cam[:1], [3], threshold=.6).tolist() == [[255, 255, 0, 0, 3]]
    zero = torch.zeros(1, 2, 2)
    assert (I.seeds(zero, zero, [1]) == 255).all() and (I.seeds(zero, zero, [1], 'paper') == 0).all()
    assert (to_mask(S.seed_maps(zero, zero, [1])) == 255).all() and (to_mask(S.seed_maps(zero, zero, [1], 'paper')) == 0).all()


def half_decided(dtype=torch.float32):
    "Scores and CAM of classes 2 and 5 on a picture of three colours: background, class 2, and an object that both claim and no CAM supports"
    ids = torch.zeros(24, 30, dtype=torch.long)
    ids[:, 10:20], ids[:, 20:] = 1, 2
    icd = torch.stack([torch.tensor([-1., 2, 1e-3])[ids], torch.tensor([-2., -1, 1e-3])[ids]]).to(dtype)
    cam = torch.stack([torch.tensor([0., 3, -1])[ids], torch.tensor([0., 1, -1])[ids]]).to(dtype)
    return icd, cam, np.array([[90, 110, 180], [190, 90, 80], [80, 160, 90]], np.uint8)[ids]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_undecided_pixels_have_the_key_255_and_the_mask_has_it_too(tmp_path, dtype):
    icd, cam, _ = half_decided(dtype)
    m = S.seed_maps(icd, cam, [2, 5])
    assert m.keys.tolist() == [0, 2, 5, 255] and np.array_equal(m.maps[3] == 1, m.maps[3] > 0)
    want = np.repeat([0, 2, 255], 10)[None].repeat(24, 0)
    save_maps(tmp_path / 'm.npz', *m)
    assert np.array_equal(to_mask(m), want) and np.array_equal(to_mask(load_maps(tmp_path / 'm.npz')), want)
    assert S.seed_maps(icd, cam, [2, 5], 'paper').keys.tolist() == [0, 2, 5]  # that mode decides everything


def test_the_crf_preset_lets_undecided_pixels_be_anything_and_keeps_the_seed_of_a_single_class():
    icd, cam, image = half_decided()
    m = S.seed_maps(icd, cam, [2, 5])
    got, seed = to_mask(refine(image, m, ['crf'], crf_preset='icd')), to_mask(m)
    assert (got[:, :20] == seed[:, :20]).all() and (seed[:, 20:] == 255).all() and (got[:, 20:] != 255).all()
    assert np.array_equal(got, np.array([0, 2, 5])[crf_from_labels(image, np.select([seed == 0, seed == 2], [0, 1], 255), 3, 'icd', 20 / 22)])  # .5 among 21 labels
    one = S.seed_maps(icd[:1, :, :20], cam[:1, :, :20], [2])
    assert np.array_equal(to_mask(refine(image[:, :20], one, ['crf'], crf_preset='icd')), seed[:, :20])


def test_score_maps_rank_pixels_as_the_scores_do():
    icd = torch.tensor([[[-30., -29, -1, -1e-6, 0, 1e-6, 1, 15, 15.5, 30]]])
    p = S.seed_maps(icd, icd, [4], 'paper')
    assert (np.diff(p.maps[1, 0].astype(np.float16)) > 0).all() and to_mask(p).tolist() == [[0] * 5 + [4] * 5]
    lost = S.seed_maps(torch.tensor([[[2., 2]], [[1., -1]]]), torch.tensor([[[1., 1]], [[5., 5]]]), [1, 2], 'paper')
    assert to_mask(lost).tolist() == [[2, 1]] and abs(lost.maps[1, 0, 0] - lost.maps[2, 0, 0] + .001) < 1e-6 and lost.maps[1, 0, 1] > lost.maps[1, 0, 0] > .5


def test_saliency_replaces_the_background_and_decides_everything():
    icd, cam, _ = half_decided()
    m = S.seed_maps(icd, cam, [2, 5])
    out = S.with_saliency(m, np.full((24, 30), .25))
    assert np.allclose(out.maps[0], .75) and np.array_equal(out.maps[1:], m.maps[1:3]) and out.keys.tolist() == [0, 2, 5]
    assert set(np.unique(to_mask(S.with_saliency(m, np.ones((24, 30)))))) == {2}  # no background, nothing undecided
    with pytest.raises(UserError, match='expected the size of the maps'): S.with_saliency(m, np.zeros((6, 5)))
    with pytest.raises(UserError, match='maps with a background first'): S.with_saliency(type(m)(m.keys[1:], m.maps[1:]), np.zeros((24, 30)))


def test_float64_and_zero_vectors():
    f = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    for kind in I.KINDS:
        w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        loss = I.bottom_up_loss(f, w, torch.ones(1, 2), kind)
        loss.backward()
        assert loss.dtype == torch.float64 and w.grad.isfinite().all()
    assert S.unit_scores(f).isfinite().all() and I.SignAligner(3)(f, f, torch.ones(1, 3)).dtype == torch.float64


# the network

def batch_of(labels, size=(48, 40), seed=0):
    g, labels = torch.Generator().manual_seed(seed), torch.as_tensor(labels, dtype=torch.float32)
    return dict(image=torch.rand(len(labels), 3, *size, generator=g), valid=torch.ones(len(labels), *size, dtype=torch.bool), labels=labels, step=90, per_epoch=10, progress=.9,
                regions=torch.randint(0, 6, (len(labels), *size), generator=g), name=['x'] * len(labels))


def icd(backbone='tiny', **options):
    torch.manual_seed(0)
    return I.Icd(build(backbone), 3, **options).train()


def test_only_the_bottom_up_loss_reaches_the_directions_and_nothing_else():
    net, batch = icd(), batch_of([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    out = net(batch)
    g = torch.autograd.grad(out['bottom_up'], list(net.parameters()), allow_unused=True, retain_graph=True)
    assert [n for (n, _), x in zip(net.named_parameters(), g) if x is not None] == ['directions']
    assert g[[n for n, _ in net.named_parameters()].index('directions')][2].eq(0).all()  # a class that never occurs
    for key in ('cam', 'top_down'):
        reached = {n for (n, _), x in zip(net.named_parameters(), torch.autograd.grad(out[key], list(net.parameters()), allow_unused=True, retain_graph=True)) if x is not None}
        assert 'directions' not in reached and 'backbone.layer1.0.weight' in reached and any(n.startswith('branch') for n in reached) == (key == 'top_down')
    close(out['loss'], out['cam'] + 5 * out['bottom_up'] + out['top_down'], 1e-5)


@pytest.mark.parametrize('labels', [[[1, 1, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]])
def test_batches_without_a_single_class_or_without_any(labels):
    net = icd()
    start = net.directions.detach().clone()
    out = net(batch_of(labels))
    out['loss'].backward()
    assert out['bottom_up'] == 0 and all(torch.isfinite(v) for v in out.values()) and net.directions.grad.eq(0).all()
    if not np.any(labels): assert out['top_down'] == 0 and net.aligner.means.eq(0).all()
    assert torch.equal(net.directions, start) and icd(single=False)(batch_of(labels))['bottom_up'] <= 0


def test_warm_up_scales_the_top_down_loss():
    batch = batch_of([[1, 0, 0], [0, 1, 0]])
    out = icd()({**batch, 'step': 0})
    close(out['loss'], out['cam'] + 5 * out['bottom_up'] + np.exp(-10) * out['top_down'], 1e-5)


@pytest.mark.parametrize('options', [dict(structure=s) for s in T.STRUCTURES] + [dict(features=f) for f in T.FEATURES] + [dict(kind='abs'), dict(refine='vote'), dict(refine='none'), dict(mode='paper'), dict(cut='share'), dict(cut='otsu')])
def test_every_option_trains_and_reads(options):
    net, batch = icd(**options), batch_of([[1, 0, 0], [0, 1, 1]], (41, 33))
    net(batch)['loss'].backward()
    assert net.directions.grad.abs()[0].sum() > 0 and sum(len(g['params']) for g in net.groups()) == len(list(net.parameters()))
    net.eval()
    image = (np.random.default_rng(0).random((33, 41, 3)) * 255).astype(np.uint8)
    for kind in net.kinds[options.get('structure') == 'none':]:
        a, b, c = net.score_maps([image] * 3, torch.tensor([[0., 1, 0], [1, 1, 1], [0, 0, 0]]), (1., .5), kind=kind)
        keys = [[k for k in m.keys.tolist() if k != 255] for m in (a, b, c)]
        assert keys == [[0, 2][kind == 'cam':], [0, 1, 2, 3][kind == 'cam':], [0] * (kind != 'cam')]
        assert a.maps.shape[1:] == (33, 41) and b.maps.dtype == np.float32 and 0 <= b.maps.min() and b.maps.max() <= 1


def test_half_precision_convolutions_leave_the_losses_whole():
    net, batch = icd(), batch_of([[1, 0, 0], [0, 1, 0]])
    with torch.autocast('cpu', torch.bfloat16): half = net(batch)
    assert all(v.dtype == torch.float32 for v in half.values()) and abs(half['loss'] - icd()(batch)['loss']) < .1
    half['loss'].backward()
    assert net.directions.grad.isfinite().all()


def test_groups():
    net = icd()
    by = {id(p): g for g in net.groups() for p in g['params']}
    assert by[id(net.head.weight)]['head'] and by[id(net.branch.head.weight)]['head'] and 'head' not in by[id(net.directions)]
    assert all(by[id(p)]['decay_mult'] == (p.dim() > 1) for p in net.parameters())


@pytest.mark.parametrize('name, conv5, layers, width', [('vgg16', 512, 2, 2560), ('mobilenet_v2', 320, 1, 1600), ('tiny', 96, 1, 224)])
def test_which_layers_stand_for_conv5_and_fc6(name, conv5, layers, width):
    with torch.device('meta'): net = I.Icd(build(name), 3)
    assert net.directions.shape[1] == conv5 and len(net.branch.layers) == layers and net.branch.head.in_channels == width


def test_copies_start_as_the_classifiers_layers_and_train_apart():
    net = icd()
    a, b = net.backbone.layer4.state_dict(), net.branch.layers[0][0].state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and a['0.conv1.0.weight'].data_ptr() != b['0.conv1.0.weight'].data_ptr()


@pytest.mark.parametrize('reading', [{}, dict(kind='bottom_up', mode='paper')])
def test_what_every_method_promises(reading):
    check_localiser(lambda k: I.Icd(build('tiny'), k, refine='none'), **reading)


# data

class Drawn(Data):
    def __init__(self, tags):
        super().__init__([Record(f'i{n}', Path(f'i{n}.jpg'), t, Path('m')) for n, t in enumerate(tags)], ['a', 'b', 'c'], 'drawn', 'train')

    def image(self, i): return (np.random.default_rng(i).random((40, 48, 3)) * 255).astype(np.uint8)
    def mask(self, i): return (np.arange(40 * 48).reshape(40, 48) // 700 % 3).astype(np.uint8)


def test_superpixels_are_made_once(tmp_path):
    data, net = Drawn([(1,), (1, 2)]), icd()
    regions = net.prepare(data, tmp_path, workers=1, min_size=20, max_regions=5)
    assert regions(data, 1).shape == (40, 48) and regions(data, 0).max() == 4 and sorted(p.name for p in tmp_path.iterdir()) == ['i0.png', 'i1.png']
    when = (tmp_path / 'i0.png').stat().st_mtime_ns
    (tmp_path / 'i1.png').unlink()
    again = net.prepare(data, tmp_path, workers=1, min_size=20, max_regions=5)
    assert (tmp_path / 'i0.png').stat().st_mtime_ns == when and again(data, 1).max() == 4
    assert icd(refine='none').prepare(data, tmp_path / 'none') is None and not (tmp_path / 'none').exists()


class Flat(Drawn):
    def image(self, i): return np.full((40, 48, 3), 60 * i, np.uint8)


def test_images_of_one_superpixel(tmp_path):
    data, net = Flat([(1,), (2,), (1, 3)]), icd()
    regions = net.prepare(data, tmp_path, workers=1)
    assert all(not regions(data, i).any() for i in range(3))
    views = TrainingViews(32, long_side=(24, 40), regions=regions)
    rows = [views(data, i, np.random.default_rng(i)) for i in range(3)]
    assert all(set(np.unique(v['regions'])) <= {0, 255} for v in rows)
    batch = {k: torch.stack([v[k] for v in rows]) for k in rows[0]}
    out = icd()({**batch, 'step': 90, 'per_epoch': 10})
    out['loss'].backward()
    assert all(torch.isfinite(v) for v in out.values())
    m = net.eval().score_maps([data.image(1)], torch.tensor([[0., 1, 0]]), (1.,), kind='superpixels')[0]
    assert all(np.ptp(x) < 1e-6 for x in m.maps)


def test_a_class_without_an_image_of_its_own_is_told_and_one_that_never_occurs_is_not(tmp_path, capsys):
    Icd = icd(refine='none')
    Icd.prepare(Drawn([(1,), (1, 2)]), tmp_path)
    assert capsys.readouterr().out == 'note: no image has the single tag b; the directions of these classes learn from all of their images\n'
    grad, = torch.autograd.grad(Icd(batch_of([[1, 1, 0], [1, 1, 1]]))['bottom_up'], Icd.directions)
    assert grad.abs().sum(1).gt(0).tolist() == [False, True, False]
    icd(refine='none', single=False).prepare(Drawn([(1,), (1, 2)]), tmp_path)
    Icd.prepare(Drawn([(1,), (2,)]), tmp_path)
    assert capsys.readouterr().out == ''


def test_without_a_new_branch_the_directions_are_read():
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
    for net, kind in ((icd(structure='none').eval(), 'bottom_up'), (icd().eval(), 'icd')):
        assert all(torch.equal(a, b) for a, b in zip(net.signed_scores([image], scales=(1.,)), net.signed_scores([image], kind, (1.,))))


def test_a_class_that_never_occurs_stays_as_it_was():
    net, batch = icd(), batch_of([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    before = net.directions[2].detach().clone()
    for _ in range(3):
        net.zero_grad()
        net(batch)['loss'].backward()
        with torch.no_grad(): net.directions -= .1 * net.directions.grad
    assert torch.equal(net.directions[2], before) and net.aligner.means[2].eq(0).all() and not net.aligner.means[:2].eq(0).all()


@pytest.mark.parametrize('call, text', [
    (lambda: icd().prepare(Drawn([(1, 2), (2, 3), ()]), '.'), 'none of the 3 images has just one; use options.single=false'),
    (lambda: icd()({k: v for k, v in batch_of([[1, 0, 0]]).items() if k != 'regions'}), 'regions: ICD refines its target by superpixels'),
    (lambda: S.read_regions('nowhere', Drawn([(1,)]), 0), 'make them with keep_regions (ICD: Icd.prepare) on these data'),
    (lambda: icd(structure='none').eval().signed_scores([np.zeros((32, 32, 3), np.uint8)], 'icd'), 'use bottom_up or superpixels'),
    (lambda: icd().eval().signed_scores([np.zeros((32, 32, 3), np.uint8)], 'superpixel'), "Did you mean 'superpixels'"),
    (lambda: I.bottom_up_loss(torch.ones(1, 2, 1, 1), torch.ones(1, 2), torch.ones(1, 1), 'squared'), "Did you mean 'square'"),
    (lambda: I.seeds(torch.ones(1, 1, 1), torch.ones(1, 1, 1), [1], 'offical'), "Did you mean 'official'"),
    (lambda: icd(refine='means'), "Did you mean 'mean'"),
    (lambda: icd(features='conv'), "features: unknown name 'conv'"),
])
def test_messages(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


# the whole line

RECIPE = """
stages: [train, masks, evaluate]
limit: 12
workers: 1
train: {method: icd, epochs: 1, batch_size: 4}
masks: {splits: [val], scales: [1.0], refine: [crf], crf_preset: icd}
evaluate: {splits: [val], pixel_map: true, sweep_own: true}
"""


def test_a_recipe_trains_writes_seeds_and_reports_the_pixel_map_and_the_best_cut(tmp_path):
    (tmp_path / 'icd.yaml').write_text(RECIPE)
    with inside(): folder = run_recipe(str(tmp_path / 'icd.yaml'), runs=tmp_path, say=print)
    store, data = tmp_path / 'stages', open_data('synthetic', 'val', limit=12)
    maps = {i: load_maps(next(store.glob('maps-*')) / f'{data.names[i]}.npz') for i in range(len(data))}
    got, ranked = json.loads((folder / 'metrics.json').read_text())['pixel_map']['val'], {}
    for i, m in maps.items():
        truth = data.mask(i)
        for k, x in zip(m.keys.tolist(), m.maps): ranked.setdefault(k, []).append((x[truth != 255], truth[truth != 255] == k))
    want = {data.classes[k - 1]: pixel_ap(*map(np.concatenate, zip(*v))) for k, v in ranked.items() if k not in (0, 255)}
    assert {c: v for c, v in got['classes'].items() if v is not None} == pytest.approx(want) and got['mean'] == pytest.approx(np.mean(list(want.values())))
    best, counted = next(n for n in json.loads((folder / 'metrics.json').read_text())['numbers'] if n['what'] == 'score maps'), {}
    for cut in np.arange(.02, 1, .02):  # their own background is left out, and what is undecided gets decided
        counted[cut] = Confusion(len(data.classes) + 1)
        for i, m in maps.items():
            fg = (m.keys > 0) & (m.keys < 255)
            counted[cut].update(np.where(m.maps[fg].max(0) > cut, m.keys[fg][m.maps[fg].argmax(0)], 0), data.mask(i))
    assert best['oracle'] and best['miou'] == max(c.miou() for c in counted.values()) == pytest.approx(counted[best['threshold']].miou()) and best['threshold_from'] == 'ground truth'
    assert any(255 in m.keys for m in maps.values()) and sweep_of(data, next(store.glob('maps-*'))) is None
    mask, m = read_mask(next(store.glob('masks-*')) / f'val/{data.names[0]}.png'), maps[0]
    assert np.array_equal(mask, to_mask(refine(data.image(0), m, ['crf'], crf_preset='icd')))

    regions = {p: p.stat().st_mtime_ns for p in store.glob('prepared-*/*.png')}
    with inside() as made: run_recipe(str(tmp_path / 'icd.yaml'), ['train.lr=0.001', 'stages=[train]'], runs=tmp_path, run_name='again')
    assert len(regions) == 12 and regions == {p: p.stat().st_mtime_ns for p in store.glob('prepared-*/*.png')} and [stage for stage, _ in made] == ['train']


def test_parts_keep_their_names_in_checkpoints():
    names = {k.split('.')[0] for k in I.Icd(build('tiny'), 3, features='concat').state_dict()}
    assert names == {'backbone', 'head', 'norms', 'directions', 'aligner', 'branch'}


@pytest.mark.parametrize('name', ['icd', 'ecsnet', 'ccmr'])
def test_a_chapter_begins_with_what_comes_out_and_ends_with_the_whole_paper(name):
    cells = json.loads((Path(__file__).parents[1] / f'nbs/papers/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    source = [''.join(c['source']) for c in cells]
    at = lambda text: next(i for i, s in enumerate(source) if text in s)
    pictures = [i for i, c in enumerate(cells) for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    assert 'Run All* takes' in source[0] and at('## First, what comes out') < min(pictures) < at('drawing(NODES, ARROWS')
    assert at(f"every_row('{name}'") < at(f"settings_of('{name}_voc12'") < at('## Departures from the paper') < at('## Exercises')
    code = [s for c, s in zip(cells, source) if c['cell_type'] == 'code']
    assert sum('assert' in s or '@with_goldens' in s for s in code) > len(code) / 4


def slow_otsu(x):
    "The value of the largest variance between the sides, every split of the sorted values tried"
    x = np.sort(np.asarray(x, np.float64).ravel())
    found = [(k * (len(x) - k) * (x[k:].mean() - x[:k].mean())**2, k) for k in range(1, len(x)) if x[k] > x[k - 1]]
    k = max(found)[1]
    return (x[k - 1] + x[k]) / 2


def test_otsu_tries_every_cut():
    for seed in range(6):
        maps = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed)).exp().round(decimals=1 + seed % 2)
        assert torch.allclose(C.otsu(maps), torch.tensor([[slow_otsu(m) for m in of] for of in maps]).float())
    assert C.otsu(torch.full((1, 4, 4), 3.)).tolist() == [3] and C.otsu(torch.tensor([[[2.]]])).tolist() == [2]


def test_two_gaussians_are_cut_where_another_fit_has_both_alike():
    for seed, (share, mean, wide) in enumerate([(.2, 4, 2), (.5, 3, .5), (.35, 5, 1.5)]):
        draw = np.random.default_rng(seed)
        x = np.where(draw.random(4000) < share, draw.normal(mean, wide, 4000), draw.normal(0, .7, 4000)).astype(np.float32)
        fit = GaussianMixture(2, tol=1e-7, max_iter=500, means_init=[[0], [mean]]).fit(x[:, None])
        low, high = fit.means_.ravel().argsort()
        between = np.linspace(*np.sort(fit.means_.ravel()), 20001)
        likelier = between[(fit.predict_proba(between[:, None])[:, high] > .5).argmax()]
        assert float(C.gaussians(torch.tensor(x).view(1, 40, 100))) == pytest.approx(likelier, abs=.03)
    assert C.gaussians(torch.full((2, 3, 3), 7.)).tolist() == [7, 7]


def slow_share(x, c):
    "The middle between the lowest value that no more pixels lie above than the CAM has, and the next"
    most, values = int((c > .25 * max(float(c.max()), 0)).sum()), sorted({float(v) for v in x.flatten()})
    low = min(v for v in values if int((x > v).sum()) <= most and v >= values[0])
    return (low + values[values.index(low) + 1]) / 2 if low < values[-1] else low + 1


def test_a_share_is_the_lowest_cut_that_leaves_no_more_than_the_cam_has():
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        maps, cam = (torch.randn(2, 3, 6, 7, generator=g).round(decimals=seed % 3) for _ in range(2))  # with ties
        slow = [[slow_share(x, c) for x, c in zip(*of)] for of in zip(maps, cam)]
        assert torch.allclose(C.cut_by_share(maps, cam), torch.tensor(slow)) and not (maps == C.cut_by_share(maps, cam)[..., None, None]).any()
    assert torch.equal(C.cut_by_share(maps, cam), C.cut_by_share(maps, 3 * cam)) and not torch.equal(C.cut_by_share(maps, cam), C.cut_by_share(maps, cam, .6))
    assert (C.cut_by_share(maps, -maps.abs() - 1) > maps.amax((2, 3))).all()  # a CAM below zero sees nothing


def test_the_target_is_cut_where_the_cam_says(monkeypatch):
    seen, batch = {}, batch_of([[1, 0, 0], [0, 1, 1]])
    for cut in ('', 'share'):
        net = icd(refine='none', cut=cut)
        kept = lambda s, b, cut=cut: (seen.update({cut: s}), I.refined_target(s))[1]
        monkeypatch.setattr(net, 'target', kept)
        net(batch)
    with torch.no_grad(): cam, features, _ = icd(refine='none').outputs(batch['image'])
    cuts = [[slow_share(x, c) for x, c in zip(*of)] for of in zip(seen[''], T.sized_as(cam, features))]
    close(seen['share'], seen[''] - torch.tensor(cuts)[:, :, None, None], 1e-4)


def test_scores_are_cut_before_anything_else():
    icd, cam = torch.tensor([[[9., 8, 3, 2, 1]]]), torch.ones(1, 1, 5)
    assert S.seed_maps(icd, cam, [4]).maps.argmax(0).tolist() == [[1] * 5]  # all of it above zero
    cut = S.seed_maps(icd, cam, [4], cut='otsu')
    assert cut.maps.argmax(0).tolist() == [[1, 1, 0, 0, 0]] and np.array_equal(cut.maps, S.seed_maps(icd - 5.5, cam, [4]).maps)
    some = torch.tensor([[[0., 2, 9, 3, 0]]])
    assert S.seed_maps(icd, some, [4], cut='share').maps.argmax(0).tolist() == [[1, 1, 0, 0, 0]]  # as many as the CAM has
    with pytest.raises(UserError, match="cut: unknown name 'half'"): S.seed_maps(icd, cam, [4], cut='half')


def test_the_reading_cut_reaches_the_seeds():
    net = I.Icd(build('tiny'), 3, structure='none').eval()
    image = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    score, cam = net.signed_scores([image], scales=(1.,), keep=torch.tensor([1]))
    found = net.score_maps([image], torch.tensor([[0, 1, 0]]), (1.,), cut='otsu')[0]
    assert np.array_equal(found.maps, S.seed_maps(score[0] - C.otsu(score[0])[:, None, None], cam[0], [2]).maps)
    assert not np.array_equal(found.maps, net.score_maps([image], torch.tensor([[0, 1, 0]]), (1.,))[0].maps)
