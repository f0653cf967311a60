"""Differences between two rows: the bootstrap beside every draw there is, beside a loop, and on runs that are really made; and choices by superpixels."""
import itertools
from pathlib import Path

import numpy as np
import pytest

from inside import inside
from wsss_nb.base.core import UserError, load_json
from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.record import Run
from wsss_nb.engine.run import make_run
from wsss_nb.metrics import Confusion
from wsss_nb.refine.superpixels import segments
from wsss_nb.results.agreement import agreeing_run, agreeing_threshold, agreement, run_agreement
from wsss_nb.results.paired import Areas, areas_from, beside_first, gains_table, mean_iou, paired_gain, run_gain
from wsss_nb.results.published import beyond_runs, private_parts, publish_run


def drawn(seed, n=4, classes=3):
    draw = np.random.default_rng(seed)
    either = draw.integers(1, 50, (n, classes)) * (draw.random((n, classes)) < .7)
    return Areas([*map(str, range(n))], (either * draw.random((n, classes))).astype(int), either)


def slow_miou(a, images):
    "mIoU of some images, one after the other, class by class"
    iou = []
    for k in range(a.both.shape[1]):
        both, either = sum(int(a.both[i, k]) for i in images), sum(int(a.either[i, k]) for i in images)
        if either: iou.append(both / either)
    return sum(iou) / len(iou) if iou else float('nan')


def test_the_spread_is_that_of_all_draws_there_are():
    a, b = drawn(1), drawn(2)
    every = np.array([slow_miou(a, d) - slow_miou(b, d) for d in itertools.product(range(4), repeat=4)])  # each equally likely
    found = paired_gain(a, b, 40000)
    assert found.gain == pytest.approx(slow_miou(a, range(4)) - slow_miou(b, range(4)), abs=1e-12)
    assert found.spread == pytest.approx(np.nanstd(every), rel=.02)
    assert np.nanmean(every < found.low) <= .025 <= np.nanmean(every <= found.low) and np.nanmean(every > found.high) <= .025 <= np.nanmean(every >= found.high)


def test_images_that_gained_are_counted_one_by_one():
    a, b = drawn(3, 50), drawn(4, 50)
    each = [slow_miou(a, [i]) - slow_miou(b, [i]) for i in range(50)]
    found = paired_gain(a, b, 10)
    assert (found.gained, found.lost, found.images) == (sum(x > 0 for x in each), sum(x < 0 for x in each), 50)
    assert 0 < found.gained < 50


def test_a_row_beside_itself_gains_nothing():
    a = drawn(5, 30)
    assert paired_gain(a, a)[:6] == (0, 0, 0, 0, 0, 0)


def test_mean_iou_leaves_out_what_is_not_there():
    assert mean_iou(np.array([1, 0]), np.array([2, 0])) == .5 and np.isnan(mean_iou(np.zeros(2), np.zeros(2)))


def test_other_images_are_refused():
    a, b = drawn(6, 5), drawn(7, 6)
    with pytest.raises(UserError, match=r'counted on other images or classes \(5 and 6 images, 3 and 3 classes\)'): paired_gain(a, b)
    with pytest.raises(UserError, match='at least one image and one draw, got 5 and 0'): paired_gain(a, a, 0)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two runs that differ in their threshold"
    runs = tmp_path_factory.mktemp('paired')
    recipe = dict(stages=['train', 'masks', 'evaluate'], limit=12, train=dict(epochs=2, batch_size=4, crop=64), masks=dict(scales=[1.0], splits=['val']),
                  evaluate=dict(splits=['val']))
    with inside():
        make_run('low', recipe, str(runs), lambda _: None)
        make_run('high', {**recipe, 'masks': dict(recipe['masks'], threshold=.6)}, str(runs), lambda _: None)
    return runs


def test_what_is_kept_is_what_the_masks_show(runs):
    run, data = Run(runs / 'low'), synthetic('val').subset(range(12))
    kept = areas_from(run.images['masks/val'])
    for i, name in enumerate(kept.names):
        c = Confusion(9).update(read_mask(run.stage('masks') / f'val/{name}.png'), data.mask(name))
        assert (kept.both[i] == np.diag(c.matrix)).all() and np.allclose(mean_iou(kept.both[i], kept.either[i]), c.miou())
    assert mean_iou(kept.both.sum(0), kept.either.sum(0)) == pytest.approx(run.numbers[0]['miou'], abs=1e-12)


def test_the_difference_of_two_runs_is_that_of_their_numbers(runs):
    low, high = Run(runs / 'low'), Run(runs / 'high')
    (run, number, found), = beside_first([low, high])
    assert (run, number) == (high, 'masks/val') and found == run_gain(high, low)
    assert found.gain == pytest.approx(high.numbers[0]['miou'] - low.numbers[0]['miou'], abs=1e-12) and found.images == 12


def test_a_table_says_how_far_each_run_is_ahead_of_the_first(runs):
    low, high = Run(runs / 'low'), Run(runs / 'high')
    head, row = gains_table([low, high]).strip().splitlines()
    found = run_gain(high, low)
    assert head.split() == ['ahead', 'of', 'low', 'masks/val'] and row.split()[:2] == ['high', f'{100 * found.gain:+.1f}'] and row.endswith(f'{found.gained} of 12')
    assert gains_table([]) == gains_table([low]) == ''


def test_it_is_published_and_read_from_there(runs, tmp_path):
    folder = publish_run('low', str(runs), folder=tmp_path, pages='none')
    assert sorted(f.name for f in folder.iterdir()) == ['images.json', 'metrics.json', 'run.json']
    assert Run(folder).images == Run(runs / 'low').images == load_json(folder / 'images.json')
    (folder / 'images.json').unlink()
    assert Run(folder).images == {} and run_gain(Run(folder), Run(runs / 'high')) is None


def slow_agreement(mask, regions, tags):
    "Eq. 1 of results/agreement, pixel by pixel"
    made = np.zeros_like(mask)
    for r in np.unique(regions):
        own = mask[regions == r].tolist()
        made[regions == r] = min(set(own), key=lambda k: (-own.count(k), k))
    labels = {0, *tags, *mask.ravel().tolist()}
    return sum(((mask == k) & (made == k)).sum() / max(((mask == k) | (made == k)).sum(), 1) for k in labels) / len(labels)


def test_agreement_is_what_a_slow_loop_counts():
    draw = np.random.default_rng(0)
    for tags in ((), (5,), (7, 12), (10,)):
        mask, regions = draw.integers(0, 3, (9, 7)) * 5, draw.integers(0, 6, (9, 7)) * 3
        assert agreement(mask, regions, tags) == pytest.approx(slow_agreement(mask, regions, tags), abs=1e-12)
    assert agreement(regions, regions) == 1 and agreement(np.zeros_like(regions), regions, [3]) == .5


def test_a_threshold_is_chosen_by_borders_and_no_mask():
    regions = np.zeros((20, 20), int)
    regions[5:15, 5:15] = 1
    y, x = np.indices(regions.shape)
    maps = np.clip(1 - np.maximum(abs(y - 9.5), abs(x - 9.5)) / 10, 0, 1)[None]  # a pyramid: .55 at the border of region 1, .45 outside
    chosen = agreeing_threshold([(np.array([4]), maps, regions)] * 3, [.1, .3, .5, .7])
    assert chosen.best == .5 and chosen.scores[.5] == 1 and max(chosen.scores[t] for t in (.1, .3, .7)) < .9
    with pytest.raises(UserError, match='no image has a map'): agreeing_threshold([(np.zeros(0, int), maps[:0], regions)])
    with pytest.raises(UserError, match=r'the mask is \[2, 2\] and its regions are \[20, 20\]'): agreement(np.zeros((2, 2), int), regions)


def test_the_run_with_the_better_borders_is_chosen(runs):
    low, high = (run_agreement(n, 'val', 5, str(runs)) for n in ('low', 'high'))
    data = synthetic('val').subset(range(12))
    name = next(iter(low))
    assert len(low) == 5 and low[name] == agreement(read_mask(Run(runs / 'low').stage('masks') / f'val/{name}.png'), segments(data.image(name)), data.records[data.index(name)].tags)
    chosen = agreeing_run(['low', 'high'], 'val', 5, str(runs))
    assert chosen.scores == {'low': pytest.approx(np.mean([*low.values()])), 'high': pytest.approx(np.mean([*high.values()]))} and chosen.best == max(chosen.scores, key=chosen.scores.get)


@pytest.mark.parametrize('file', sorted((Path(__file__).parents[1] / 'runs/measured').glob('*.json')), ids=lambda f: f.stem)
def test_what_was_measured_says_where_it_is_from_and_names_no_machine(file):
    x = load_json(file)
    assert x['what'] == file.stem and x['versions'] and x['device'] and x['rows'] and private_parts(x) == [] and file.stat().st_size < 200_000
    assert beyond_runs(file.stem) == x and beyond_runs('nothing') == {}
