"""The mix of taught and outlined cells: against closed forms, and that the outlines alone are among the choices."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wsss_nb.data.outlined import Outlined
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.methods import localiser_learner
from wsss_nb.metrics import Confusion
from wsss_nb.nets.cells import MIXES, NEARLY_ALONE, Outlines, best_mix, learn_both, outlined_cells
from wsss_nb.nets.linear import learn_linear

squares = lambda s, ids: (s - F.one_hot(ids, s.shape[1])).square().mean()


def ridge(x, y, weights, decay):
    "[4,3]: weights and bias of the lowest sum of weighted squares, by the normal equations"
    rows = np.c_[x, np.ones(len(x))]
    of_bias = np.diag([1.] * x.shape[1] + [0.])
    return np.linalg.solve(rows.T @ (weights[:, None] * rows) + decay * of_bias, rows.T @ (weights[:, None] * np.eye(3)[y]))


def mixed(taught, outlined, share, decay):
    "What learn_both should find with squared errors"
    (x, y), (u, v) = taught, outlined
    each = np.r_[np.full(len(y), (1 - share) / len(y) / 3), np.full(len(v), share / len(v) / 3)]
    return ridge(np.concatenate([x, u]), np.concatenate([y, v]), each, decay)


def some_rows(seed, n, wrong):
    "Rows of 3 numbers and the ids 0, 1, 2 that a rule gives them, a share of them guessed"
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 3)).astype(np.float32)
    return x, np.where(r.random(n) < wrong, r.integers(0, 3, n), (x @ np.random.default_rng(9).normal(size=(3, 3))).argmax(1))


def tensors(rows): return torch.from_numpy(rows[0]), torch.from_numpy(rows[1])


def test_two_sets_of_rows_have_the_closed_form_of_a_ridge():
    taught, outlined = some_rows(0, 90, .3), some_rows(1, 30, 0)
    for share, decay in ((1 / 3, .1), (.95, .02), (1., .05)):
        layer, there = nn.Linear(3, 3), mixed(taught, outlined, share, decay)
        learn_both(layer, tensors(taught), tensors(outlined), share, (squares, squares), decay)
        assert np.allclose(np.c_[layer.weight.detach(), layer.bias.detach()].T, there, atol=2e-3)
    alone = ridge(*outlined, np.full(30, 1 / 90), .05)
    assert np.allclose(there, alone)  # a share of 1: whatever is taught, the outlines alone


def test_outlines_are_silent_of_classes_that_none_of_them_shows():
    taught, (u, v) = some_rows(0, 90, .3), some_rows(1, 30, 0)
    u, v = u[v != 1], v[v != 1]  # backgrounds and a class; the other is known from the teacher alone
    layer, share, decay = nn.Linear(3, 3), .85, .02
    learn_both(layer, tensors(taught), tensors((u, v)), share, (squares, squares), decay)
    found, heard = np.c_[layer.weight.detach(), layer.bias.detach()].T, np.full(90, (1 - share) / 90 / 3)
    both = ridge(np.concatenate([taught[0], u]), np.concatenate([taught[1], v]), np.r_[heard, np.full(len(v), share / len(v) / 2)], decay)
    alone = ridge(*taught, heard, decay)
    assert np.allclose(found[:, [0, 2]], both[:, [0, 2]], atol=2e-3) and np.allclose(found[:, 1], alone[:, 1], atol=2e-3)
    assert np.abs(both[:, 1] - alone[:, 1]).max() > .05  # with a word on it they would have changed it
    learn_both(layer, tensors(taught), tensors((u, v)), 1., (squares, squares), decay)  # alone they speak of all
    assert np.allclose(layer.weight[1].detach(), 0, atol=1e-3) and abs(float(layer.bias[1].detach())) < 1e-3


def test_each_kind_has_its_own_loss():
    taught, outlined = some_rows(0, 90, .3), some_rows(1, 30, 0)
    heard, layer = np.r_[np.full(90, (1 - .6) / 90 / 3), np.full(30, .6 * 2 / 30 / 3)], nn.Linear(3, 3)
    learn_both(layer, tensors(taught), tensors(outlined), .6, (squares, lambda s, y: 2 * squares(s, y)), .02)
    there = ridge(*map(np.concatenate, zip(taught, outlined)), heard, .02)
    assert np.allclose(np.c_[layer.weight.detach(), layer.bias.detach()].T, there, atol=2e-3)


def slow_mix(taught, outlined, owner, may, stands, decay):
    "best_mix of squared errors, cell by cell"
    def foretold(share, penalty):
        loss, counts, images = 0., Confusion(3), np.unique(owner)
        for k in range(min(4, len(images))):
            out = np.isin(owner, images[k::4])
            w = mixed(taught, (outlined[0][~out], outlined[1][~out]), share, penalty)
            for x, y, m, times in zip(outlined[0][out], outlined[1][out], may[out], stands[out]):
                s = np.where(m, x @ w[:3] + w[3], -np.inf)
                loss += np.log(np.exp(s - s.max()).sum()) + s.max() - s[y]
                counts.update(np.full((1, times), s.argmax(), np.uint8), np.full((1, times), y, np.uint8))
        return loss, counts.miou()
    usual, other = ({m: foretold(m[0], m[1] * decay) for m in mixes} for mixes in (MIXES, NEARLY_ALONE))
    mix, bold = min(usual, key=lambda m: usual[m][0]), max(other, key=lambda m: other[m][1])
    mix = bold if other[bold][1] >= usual[mix][1] + .03 else mix
    return mix[0], mix[1] * decay


def test_the_mix_is_that_of_a_slow_search():
    chosen = set()
    for seed, wrong in enumerate((0., .3, .6, 1., 0.)):
        taught, outlined = some_rows(10 + seed, 120, wrong), some_rows(20 + seed, 60, .1)
        if seed == 4: taught = taught[0], (taught[1] + 1) % 3  # always wrong
        owner, stands = np.arange(60) // 6, np.random.default_rng(seed).integers(1, 9, 60)
        may = np.random.default_rng(seed).random((60, 3)) < .7
        may[np.arange(60), outlined[1]] = True
        expected = slow_mix(taught, outlined, owner, may, stands, .01)
        o = Outlines({}, *tensors(outlined), *map(torch.from_numpy, (owner, may, stands.astype(np.float32))))
        assert best_mix(tensors(taught), o, (squares, squares), .01) == expected
        chosen.add(expected[0])
    assert min(chosen) < .9 < max(chosen)  # it depends on the teacher


def test_a_teacher_who_is_always_wrong_leaves_the_outlines_alone():
    (x, y), outlined = tensors(some_rows(3, 400, 0.)), tensors(some_rows(4, 200, 0.))
    nothing = x, (y + 1) % 3
    o = Outlines({}, *outlined, torch.arange(200) // 10, torch.ones(200, 3, dtype=torch.bool), torch.ones(200))
    share, penalty = best_mix(nothing, o, (F.cross_entropy,) * 2, .01)
    assert (share, penalty) == (1., .002)
    both, alone = nn.Linear(3, 3), nn.Linear(3, 3)
    learn_both(both, nothing, outlined, share, (F.cross_entropy,) * 2, penalty)
    learn_linear(alone, outlined[0], lambda s: F.cross_entropy(s, outlined[1]), penalty)
    assert torch.allclose(both.weight, alone.weight, atol=1e-3)


def test_cells_stand_for_those_of_their_class_and_image():
    data = synthetic('train', n=4)
    few = Outlined(data, {data.names[i]: data.mask(i) for i in (1, 3)})
    o = outlined_cells(few, lambda i: torch.zeros(2, *(n // 4 for n in data.size(i))), data.labels, 160, 0)  # 40 of a class and image at most
    for i in (1, 3):
        mask = data.mask(i)[2::4, 2::4]  # cells of four pixels: their middle
        for c in np.unique(mask[mask < 255]):
            here = (o.owner == i) & (o.ids == int(c))
            assert int(here.sum()) == min(40, (mask == c).sum()) and abs(float(o.stands[here].sum()) - (mask == c).sum()) < 1e-3
    wrong = o.told(torch.zeros(len(o.ids), 9), torch.ones(len(o.ids), dtype=torch.bool))  # all alike: the background
    assert torch.allclose(wrong[:, 0].sum(), o.stands.sum()) and (wrong[:, 1:] == 0).all()


def test_of_one_outlined_image_nothing_can_be_left_out():
    o = Outlines({}, *tensors(some_rows(5, 9, 0.)), torch.zeros(9).long(), torch.ones(9, 3, dtype=torch.bool), torch.ones(9))
    assert best_mix(tensors(some_rows(6, 30, 0.)), o, (squares, squares), .1) == (MIXES[0][0], MIXES[0][1] * .1)


def test_lessons_of_outlines_alone_are_one_lesson(monkeypatch):
    data = synthetic('train', n=12)
    few = Outlined(data, {data.names[i]: data.mask(i) for i in (2, 5)})
    monkeypatch.setattr('wsss_nb.papers.frozen.best_mix', lambda taught, o, losses, decay: (1., .2 * decay))
    learner = localiser_learner(few, 'frozen', backbone='tiny', weights='', options=dict(side=64, lessons=2), crop=48, device='cpu')
    history, net = learner.fit(), learner.raw_net
    assert [h['share'] for h in history[1:]] == [1., 1.] and abs(history[1]['loss'] - history[2]['loss']) < 1e-3
    assert F.cosine_similarity(net.lessons[0].weight.flatten(), net.lessons[1].weight.flatten(), dim=0) > .999
