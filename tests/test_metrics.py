from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix

from wsss_nb.base.core import UserError
from wsss_nb.metrics import Confusion, PixelAP, pixel_ap, pixel_map, rank16, threshold_sweep

GOLDENS = Path(__file__).parent / 'goldens'


@pytest.fixture
def maps():
    "Target, score maps on a coarse grid of values (many ties) and their keys, for five images"
    draw = np.random.default_rng(3)
    out = []
    for n in (0, 1, 2, 3, 2):
        target = draw.integers(0, 6, (14, 11))
        target[draw.random(target.shape) < .1] = 255
        out.append((np.sort(draw.choice([1, 2, 3, 4, 5], n, replace=False)).astype(int), draw.integers(0, 11, (n, 14, 11)) / np.float32(10), target))
    return out


def test_golden_miou():
    z = np.load(GOLDENS / 'miou.npz')
    c = Confusion(21)
    for p, t in zip(z['pred'], z['gt']): c.update(torch.from_numpy(p), torch.from_numpy(t))
    np.testing.assert_allclose(c.iou(), z['irn_iou'], atol=1e-9)
    assert c.miou() == pytest.approx(float(z['irn_miou']), abs=1e-9)
    assert c.matrix.dtype == np.int64 and (c.matrix == z['spec_conf']).all()


def test_agrees_with_scikit_learn():
    draw = np.random.default_rng(0)
    t, p = draw.integers(0, 7, 5000), draw.integers(0, 7, 5000)
    assert (Confusion(7).update(p, t).matrix == confusion_matrix(t, p)).all()


def test_declined_prediction_is_a_miss_and_void_is_not_counted():
    c = Confusion(3).update(np.array([255, 255, 1, 2]), np.array([1, 255, 1, 255]))
    assert c.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]] and c.missed.tolist() == [0, 1, 0]
    assert np.isnan(c.iou()[[0, 2]]).all() and c.iou()[1] == .5 and c.recall()[1] == .5 and c.precision()[1] == 1
    assert c.decided().iou()[1] == 1 and c.iou()[1] == .5


def test_absent_classes():
    c = Confusion(4).update(np.array([0, 1, 1]), np.array([0, 0, 0]))
    assert c.iou()[0] == pytest.approx(1 / 3) and c.iou()[1] == 0 and np.isnan(c.iou()[2:]).all()
    assert c.miou() == pytest.approx(1 / 6) and c.miou([0]) == pytest.approx(1 / 3) and np.isnan(c.miou([2, 3]))
    assert np.isnan(Confusion(4).miou())


def test_merging_is_free_of_order_and_leaves_the_parts_alone():
    draw = np.random.default_rng(1)
    a, b = (Confusion(5).update(draw.integers(0, 5, 99), draw.integers(0, 5, 99)) for _ in range(2))
    before = a.matrix.copy()
    assert ((a + b).matrix == (b + a).matrix).all() and (a.matrix == before).all() and (a + b).matrix.sum() == 198


def test_report_counts_every_target_pixel():
    c = Confusion(3).update(np.array([0, 1, 255, 2]), np.array([0, 1, 1, 0]))
    rows = c.report(['cat', 'dog'])
    assert [r['name'] for r in rows] == ['background', 'cat', 'dog', 'mean'] and rows[-1]['pixels'] == 4 and rows[1]['missed'] == 1
    assert rows[-1]['iou'] == pytest.approx(c.miou()) and 'cat' in c.table(['cat', 'dog'])


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.float32])
def test_sweep_equals_the_loop(maps, dtype):
    if dtype != np.float32: maps = [(k, m, t.astype(dtype)) for k, m, t in maps]
    thresholds = np.arange(11) / 10
    sweep = threshold_sweep(maps, thresholds, 6)
    for tau, matrix, miou in zip(thresholds, sweep.matrices, sweep.miou):
        c = Confusion(6)
        for keys, scores, target in maps:
            guess = np.zeros(target.shape, int)
            for y, x in np.ndindex(target.shape):  # one pixel after the other
                best = max([float(s[y, x]) for s in scores], default=0)
                if best > tau: guess[y, x] = keys[[float(s[y, x]) for s in scores].index(best)]
            c.update(guess, target)
        assert (c.matrix == matrix).all() and c.miou() == pytest.approx(miou)
    assert sweep.best.oracle is True and sweep.best.miou == sweep.miou.max()


def test_sweep_leaves_a_background_map_out(maps):
    keys, scores, target = maps[2]
    with_background = ([0, *keys], np.concatenate([np.ones((1, 14, 11), np.float32), scores]), target)
    assert (threshold_sweep([with_background], [.3], 6).matrices == threshold_sweep([maps[2]], [.3], 6).matrices).all()


def test_golden_average_precision():
    z = np.load(GOLDENS / 'icd_ap.npz')
    assert pixel_ap(z['ap_tiny_score'], z['ap_tiny_gt']) == pytest.approx(float(z['ap_tiny']), abs=1e-9)
    assert pixel_ap(z['ap_tiny_score'], z['ap_tiny_gt'], interpolate=True) == pytest.approx(float(z['ap_tiny_interpolated']), abs=1e-9)
    assert pixel_ap(torch.from_numpy(z['ap_ties_score']), torch.from_numpy(z['ap_ties_gt'])) == pytest.approx(float(z['ap_ties']), abs=1e-9)


@pytest.mark.parametrize('levels', [3, 50, 10 ** 6])
def test_average_precision_agrees_with_scikit_learn(levels):
    draw = np.random.default_rng(levels)
    s, y = draw.integers(0, levels, 3000) / levels, draw.random(3000) < .2
    assert pixel_ap(s, y) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    shuffled = draw.permutation(3000)
    assert pixel_ap(s[shuffled], y[shuffled]) == pytest.approx(pixel_ap(s, y), abs=1e-12)


def test_pixel_map_pools_the_images_of_a_class(maps):
    total = pixel_map(maps, 6)
    halves = np.array([PixelAP(6).update(*m).counts for m in maps]).sum(0)
    assert (total.counts == halves).all() and np.isnan(total.ap()[0])
    for k in range(1, 6):
        found = [(m[list(ks).index(k)][t != 255].astype(np.float16), t[t != 255] == k) for ks, m, t in maps if k in ks]
        if found: assert total.ap()[k] == pytest.approx(average_precision_score(*(np.concatenate(x) for x in list(zip(*found))[::-1])), abs=1e-12)


def test_rank16_keeps_the_order_of_all_finite_float16():
    every = np.arange(65536).astype(np.uint16).view(np.float16)
    every = np.sort(every[np.isfinite(every)])
    ranks = rank16(every).astype(int)
    assert (np.diff(ranks) >= 0).all() and ((np.diff(ranks) == 0) == (np.diff(every) == 0)).all()


@pytest.mark.parametrize('call, text', [
    (lambda: Confusion(3).update(np.zeros((2, 2), int), np.zeros((2, 3), int)), 'prediction is [2, 2] but target is [2, 3]'),
    (lambda: Confusion(3).update(np.array([3]), np.array([0])), 'prediction: expected ids 0..2 or 255, got 3'),
    (lambda: Confusion(3).update(np.array([0]), np.array([-1])), 'target: expected ids 0..2 or 255, got -1'),
    (lambda: Confusion(3).update(np.array([.5]), np.array([0])), 'prediction: expected integer class ids, got float64'),
    (lambda: Confusion(3) + Confusion(4), 'cannot add counts over 3 and 4 classes'),
    (lambda: Confusion(3).report(['a']), 'expected 3 names (or 2 without background), got 1'),
    (lambda: threshold_sweep([([1], np.ones((1, 2, 2)), np.zeros((3, 2), int))], [.1], 2), 'H,W of the target [3, 2], got [1, 2, 2]'),
    (lambda: threshold_sweep([([1], np.full((1, 2, 2), np.nan), np.zeros((2, 2), int))], [.1], 2), 'nan or infinity'),
    (lambda: pixel_ap([1., 2.], [1]), 'two flat arrays of one length')])
def test_mistakes_are_named(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


def test_the_papers_table_has_their_columns():
    from wsss_nb.data.voc import VOC_CLASSES
    from wsss_nb.results.by_class import papers_table
    iou = np.linspace(0, 1, 21)
    iou[[3, 20]] = np.nan
    head, rule, line = (l.strip('| ').split(' | ') for l in papers_table({'ours': iou}, VOC_CLASSES).splitlines())
    assert head == ['background', *VOC_CLASSES, 'mIoU'] and len(rule) == 23 and line[0] == 'ours' and line[1] == '0.00' and line[2] == '5.00' and line[4] == line[21] == '–'
    assert line[-1] == f'{100 * np.mean([i / 20 for i in range(20) if i != 3]):.2f}'
    rows = papers_table({'a, b': iou, 'c': iou}, VOC_CLASSES, 'csv').splitlines()
    assert rows[0] == ',background,' + ','.join(VOC_CLASSES) + ',mIoU' and rows[1].startswith('"a, b",0.00,5.00,10.00,,20.00') and len(rows) == 3
    with pytest.raises(UserError, match=r"papers_table: 'c' has 3 values, expected 21: background, aeroplane"): papers_table({'a': iou, 'c': iou[:3]}, VOC_CLASSES)
