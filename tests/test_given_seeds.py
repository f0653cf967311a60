"""SIPE's prototypes from outlines: against the means and cosines written out, and that they train."""
import numpy as np
import torch

from wsss_nb.base.core import seed_everything
from wsss_nb.engine.beside import WEIGHT, Beside, part, shape_loss
from wsss_nb.nets.zoo import build
from wsss_nb.papers.sipe import Sipe


def some_batch(side=32):
    r = np.random.default_rng(0)
    mask = torch.from_numpy(np.kron(r.choice([0, 1, 2, 255], (3, 4, 4), p=[.4, .3, .2, .1]), np.ones((side // 4, side // 4), int)))
    return dict(image=torch.rand(3, 3, side, side), labels=torch.tensor([[1., 1.], [1., 0.], [0., 1.]]), mask=mask, valid=torch.ones(3, side, side), progress=0.)


def slow(net, batch, first=0):
    "The loss image by image: means of the outlined cells, cosines with them, mean absolute difference"
    stages, total = net.backbone(batch['image'])[-4:], 0.
    f = net.stage_features(stages, net.options)[net.options['feature']].detach().double().numpy()
    raw = net.head(stages[-1]).detach().double().numpy()
    h, w = raw.shape[2:]
    n = batch['mask'].shape[1] // h
    for b in range(len(raw)):
        cells = batch['mask'][b].numpy().reshape(h, n, w, n).transpose(0, 2, 1, 3).reshape(h, w, -1)
        known = (cells != 255).mean(2)
        shares = np.stack([(cells == k + 1).mean(2) * float(batch['labels'][b, k]) for k in range(2)])
        seeds = np.concatenate([(known - shares.sum(0))[None], shares])
        cam = np.maximum(raw[b], 0)
        cam = cam / (cam.max((1, 2), keepdims=True) + 1e-5)
        cam = np.concatenate([1 - cam.max(0)[None], cam * batch['labels'][b].numpy()[:, None, None]]) * known
        maps = np.zeros_like(cam)
        for k in range(3):
            p = (f[b] * seeds[k]).sum((1, 2)) / max(seeds[k].sum(), 1e-12)
            lengths = np.linalg.norm(f[b], axis=0) * np.linalg.norm(p)
            maps[k] = np.maximum(np.tensordot(p, f[b], 1) / np.maximum(lengths, 1e-12), 0) * known
        maps /= maps.max((1, 2), keepdims=True) + 1e-5
        total += np.abs(cam - maps)[first:].sum()
    return total / (len(raw) * (3 - first) * h * w)


def small(**options):
    seed_everything(0)
    return Sipe(build('tiny'), 2, widths=(8, 8, 8, 8), **options).eval()


def test_the_loss_is_that_of_means_and_cosines_written_out():
    batch = some_batch()
    for options, first in ((dict(gsc=1.), 0), (dict(gsc=3.), 0), (dict(background='estimated'), 1), (dict(feature='semantic'), 0)):
        net = small(**options)
        with torch.no_grad(): found = float(net.of_outlines(batch))
        assert abs(found - net.gsc * slow(net, batch, first)) < 1e-4 and found > 0


def test_what_is_unknown_or_not_tagged_is_no_seed():
    net, batch = small(), some_batch()
    with torch.no_grad():
        assert float(net.of_outlines(dict(batch, mask=batch['mask'] * 0 + 255))) == 0
        odd = torch.where(batch['mask'] == 1, 0, batch['mask'])
        odd[0] = batch['mask'][0]  # class 1 is tagged in the first two
        odd[1] = batch['mask'][1]
        assert torch.equal(net.of_outlines(dict(batch, mask=odd)), net.of_outlines(batch))  # in the third it counted as ground
    assert small(gsc=0.).of_outlines(batch) == 0


def test_projections_and_classifier_learn_from_it_beside_the_tags():
    net, batch = small(gsc=2.), some_batch()
    net.of_outlines(batch).backward()
    assert all(float(s.weight.grad.abs().sum()) > 0 for s in net.sides) and float(net.head.weight.grad.abs().sum()) > 0
    found = Beside(net, 2)(batch)
    last = part(batch, 2, None)
    assert torch.allclose(found['outlines'] * WEIGHT, WEIGHT * shape_loss(net.raw_maps(last['image']), last['mask'], last['labels']) + net.of_outlines(last), atol=1e-6)
    assert torch.allclose(found['loss'], net(part(batch, 0, 2))['loss'] + WEIGHT * found['outlines'])
    optimizer = torch.optim.Adam(net.parameters(), .01)
    def step():
        optimizer.zero_grad()
        loss = net.of_outlines(batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())
    first = step()
    for _ in range(15): last = step()
    assert last < .8 * first
