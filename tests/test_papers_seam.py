"SEAM: closed forms, slow evaluations, which loss reaches what, and batches in which something is missing"
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conformity import check_localiser
from wsss_nb.base.core import UserError
from wsss_nb.nets.zoo import build
from wsss_nb.papers import seam as P


def test_scaled_by_hand():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x[0, 1] = 2.
    got = P.rescaled(x)
    assert got.dtype == torch.float64 and got[0, 1].abs().sum() == 0 and got.min() >= 0 and got.max() <= 1
    for b, c in ((0, 0), (1, 2)):
        r = x[b, c].clamp(min=0)
        want = (r - r.min()) / (r.max() - r.min())
        assert torch.allclose(got[b, c], want, atol=1e-4)


def test_strongest_by_hand():
    cam = torch.rand(2, 4, 3, 5, requires_grad=True)
    got = P.strongest(cam)
    assert not got.requires_grad
    for b, y, x in np.ndindex(2, 3, 5):
        s = cam.detach()[b, 1:, y, x]
        k = int(s.argmax())
        assert torch.allclose(got[b, :, y, x], torch.tensor([1 - s[k], *(s[i] if i == k else torch.tensor(0.) for i in range(3))]))


def test_terms_in_closed_form():
    ramp = torch.linspace(0, 1, 9).view(1, 1, 1, 9).expand(1, 3, 9, 9)
    small = F.interpolate(ramp, (5, 5), mode='bilinear', align_corners=True)
    assert P.er_loss(ramp, small) < 1e-6 and torch.allclose(P.er_loss(ramp, small * .5), torch.tensor(.25)) and P.er_loss(ramp, small * torch.tensor([5., 1., 1.]).view(1, 3, 1, 1)) < 1e-6
    d = torch.rand(3, 4, 5, 6)
    want = np.mean([sorted(x.flatten().tolist())[-24:] for x in d])
    assert abs(P.hardest_mean(d, .2) - want) < 1e-6
    e = torch.randn(2, 3, 4, 4)
    want = np.mean([np.maximum(sorted(x.amax(0).flatten().tolist())[:4], 0) for x in e])
    assert abs(P.floor_loss(e) - want) < 1e-6


def a_batch(h=64, w=48, n=3, classes=4):
    r = torch.Generator().manual_seed(1)
    return dict(image=torch.rand(n, 3, h, w, generator=r), valid=torch.ones(n, h, w, dtype=torch.bool), labels=torch.eye(classes)[torch.arange(n) % classes], name=list('abc')[:n], progress=0., step=0, per_epoch=1)


def make(**options):
    torch.manual_seed(0)
    return P.Seam(build('tiny'), 4, **options)


@pytest.mark.parametrize('weights, reached', [(dict(er=1.), (True, True, False)), (dict(ecr=1.), (False, False, True)), (dict(floor=1.), (False, False, True))])
def test_what_reaches_what(weights, reached):
    net = make(**{**dict(er=0., ecr=0., floor=0.), **weights}).train()
    losses = net(a_batch())
    (losses['loss'] - losses['cls']).backward()
    assert tuple(any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in m.parameters()) for m in (net.backbone, net.head, net.correlation)) == reached


def test_the_classification_loss_is_of_both_scales():
    net, b = make(dropout=0.).train(), a_batch()
    losses = net(b)
    small = F.interpolate(b['image'], (19, 14), mode='bilinear', align_corners=True)
    want = sum(F.binary_cross_entropy_with_logits(net.raw_maps(x).mean((2, 3)), b['labels']) for x in (b['image'], small)) / 2
    assert torch.allclose(losses['cls'], want, atol=1e-6) and torch.allclose(losses['loss'], sum(losses[k] for k in ('cls', 'er', 'ecr', 'floor')))


@pytest.mark.parametrize('what', ['no class', 'one colour', 'tiny crop', 'a flat map', 'flat maps only', 'nothing but padding'])
def test_bad_batches(what):
    net, b = make().train(), a_batch(7, 9) if what == 'tiny crop' else a_batch()
    if what == 'no class': b['labels'] = torch.zeros_like(b['labels'])
    if what == 'one colour': b['image'] = torch.full_like(b['image'], .5)
    if what == 'nothing but padding': b['valid'], b['image'] = torch.zeros_like(b['valid']), net.backbone.mean.expand_as(b['image']).clone()
    with torch.no_grad(): net.head.weight[{'a flat map': slice(1, 2), 'flat maps only': slice(None)}.get(what, slice(0))] = 0.
    losses = net(b)
    losses['loss'].backward()
    assert all(np.isfinite(float(v.detach())) for v in losses.values()) and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    if what == 'flat maps only': assert losses['er'] == 0 and losses['floor'] == 0


def test_score_maps():
    net = make().eval()
    images = [np.random.default_rng(i).integers(0, 255, (37, 50, 3)).astype(np.uint8) for i in range(2)]
    got = net.score_maps(images, torch.tensor([[1., 0, 0, 1], [0, 0, 0, 0]]), scales=(1., .5))
    assert [list(m.keys) for m in got] == [[1, 4], []] and all(m.maps.shape == (len(m.keys), 37, 50) and m.maps.dtype == np.float32 for m in got)
    assert not np.allclose(got[0].maps, net.score_maps(images[:1], torch.tensor([[1., 0, 0, 1]]), scales=(1., .5), kind='cam')[0].maps)


def test_messages():
    with pytest.raises(UserError, match='scale: expected a number between 0 and 1, got 1.0'): make(scale=1.)
    with pytest.raises(UserError, match='kind: unknown name'): make().score_maps([np.zeros((8, 8, 3), np.uint8)], torch.ones(1, 4), kind='E')


@pytest.mark.parametrize('reading', [{}, dict(kind='cam')])
def test_what_every_method_promises(reading): check_localiser(lambda k: P.Seam(build('tiny'), k), **reading)
