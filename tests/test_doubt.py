"""Doubt, review and estimate: the order of masks from maps alone, and what outlines drawn by chance say of all."""
import csv
import json

import numpy as np
import pytest

from inside import inside
from wsss_nb.base.core import load_json
from wsss_nb.cli import main
from wsss_nb.data.sample import ScoreMaps, load_maps, read_mask, save_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.record import Run
from wsss_nb.engine.run import make_run
from wsss_nb.metrics import Confusion
from wsss_nb.results.doubt import doubt, expected_counts
from wsss_nb.results.estimate import chosen_of, estimated, inclusion, similar_sets


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A small run on drawings; the outlines of all its pictures in `outlines`"
    runs = tmp_path_factory.mktemp('doubted')
    recipe = dict(stages=['train', 'masks'], limit=16, train=dict(epochs=2, batch_size=8, crop=64), masks=dict(scales=[1.0], splits=['val']))
    with inside(): make_run('small', recipe, str(runs), lambda _: None)
    data = synthetic('val').subset(range(16))
    for i, n in enumerate(data.names): save_mask(runs / f'outlines/{n}.png', data.mask(i))
    return runs


def masks_and_maps(runs):
    stage = Run(runs / 'small').stage('masks')
    made = load_json(stage / 'stage.json')
    maps = stage.parent / made['results']['maps']['val']
    return {n: (read_mask(stage / f'val/{n}.png'), load_maps(maps / f'{n}.npz')) for n in synthetic('val').subset(range(16)).names}


def slow_doubt(mask, maps, threshold):
    "Eq. 1 of results/doubt, pixel by pixel"
    keys = list(maps.keys) if 0 in maps.keys else [0, *maps.keys]
    sums = {k: [0., 0.] for k in keys}
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            scores = [float(maps.maps[list(maps.keys).index(k), y, x]) if k in maps.keys else threshold for k in keys]
            p = {k: (s + 1e-6) / (sum(scores) + 1e-6 * len(keys)) for k, s in zip(keys, scores)}
            for k in keys:
                if mask[y, x] == k: sums[k][0] += p[k]; sums[k][1] += 1
                else: sums[k][1] += p[k]
    return 1 - np.mean([i / u for i, u in sums.values()])


def test_doubt_is_what_the_equation_says():
    r = np.random.default_rng(0)
    for keys in ([2, 5], [0, 3, 4], [1]):
        maps, mask = ScoreMaps(np.array(keys), r.random((len(keys), 7, 9)).astype(np.float32)), r.choice([0, *keys], (7, 9)).astype(np.uint8)
        assert abs(doubt(mask, maps, .3) - slow_doubt(mask, maps, .3)) < 1e-5
    assert expected_counts(mask, ScoreMaps(np.zeros(0, int), np.zeros((0, 7, 9), np.float32)))[0][2] == pytest.approx(63)


def test_review_writes_the_most_doubtful_first(runs, tmp_path, capsys):
    assert main(['review', 'small', '--runs', str(runs), '--out', str(tmp_path / 'r'), '--most', '5']) == 0
    said, rows = capsys.readouterr().out, list(csv.DictReader((tmp_path / 'r/doubt.csv').open()))
    expected = sorted(((-slow_doubt(mask, maps, .25), n) for n, (mask, maps) in list(masks_and_maps(runs).items())))
    assert [r['image'] for r in rows] == [n for _, n in expected] and [float(r['doubt']) for r in rows] == pytest.approx([-d for d, _ in expected], abs=1e-4)
    tasks = load_json(tmp_path / 'r/label-studio/tasks.json')
    assert [t['data']['image'].rpartition('/')[2].partition('.')[0] for t in tasks] == [r['image'] for r in rows[:5]]
    page = (tmp_path / 'r/index.html').read_text()
    assert page.count('<figure>') == 5 and 'http' not in page.split('<body')[1] and f'Open this page: {tmp_path / "r/index.html"}' in said


@pytest.mark.parametrize('words, said', [
    (['review', 'smal'], "no run is called 'smal'"), (['review', 'small', '--split', 'train'], "split of run small: unknown name 'train'"),
    (['review', 'small', '--to', 'studio'], "to: unknown name 'studio'"), (['review', 'small', '--most', '0'], 'expected a whole number from 1 on'),
    (['estimate', 'small', '--outlines', '99'], 'outlines: expected 2 to 16 of 16 pictures, got 99'), (['estimate', 'small', '--outlines', '1'], 'expected 2 to 16'),
    (['estimate', 'small', '--outlines', 'nowhere'], 'nothing was drawn of val of small yet; draw first')])
def test_mistakes_are_told_in_a_line(runs, tmp_path, capsys, words, said):
    assert main([*words, '--runs', str(runs), '--out', str(tmp_path / 'new')]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1 and not (tmp_path / 'new').exists()


def test_an_estimate_from_beginning_to_end(runs, tmp_path, capsys):
    ask = lambda *words: (main(['estimate', 'small', '--runs', str(runs), '--out', str(tmp_path / 'these'), *words]), *capsys.readouterr())
    without = ask()[1]
    assert 'cannot be known' in without and similar_sets() in without
    code, out, _ = ask('--outlines', '8', '--to', 'cvat')
    assert code == 0 and '8 of 16 pictures of val, drawn by chance' in out
    names = load_json(runs / 'small/estimate-val.json')['drawn']
    code, out, _ = ask('--outlines', str(runs / 'outlines'))
    assert code == 0 and 'small: 16 masks, 8 of them outlined' in out and 'each left out in turn: ' in out
    found = load_json(runs / 'small/estimate-val.json')['found']
    low, high = found['interval']
    data, there, total = synthetic('val').subset(range(16)), masks_and_maps(runs), Confusion(9)
    for n in data.names: total.update(there[n][0], data[n].mask)
    tagged = [0, *sorted({t for r in data.records for t in r.tags})]
    assert low <= total.miou(tagged) <= high and low <= found['miou'] <= high and set(found['classes']) == {'background', *(data.classes[k - 1] for k in tagged[1:])}
    kept = (runs / f'outlines/{names[0]}.png').rename(tmp_path / 'away.png')
    code, _, err = ask('--outlines', str(runs / 'outlines'))
    assert code == 2 and f'1 of the 8 drawn pictures have no outline in {runs / "outlines"} ({names[0]})' in err
    kept.rename(runs / f'outlines/{names[0]}.png')
    export = [dict(data=dict(image=f'/data/{n}.jpg'), annotations=[dict(result=[])]) for n in names]  # all handed in empty: nothing is right
    (tmp_path / 'empty.json').write_text(json.dumps(export))
    assert ask('--outlines', str(tmp_path / 'empty.json'))[0] == 0 and load_json(runs / 'small/estimate-val.json')['found']['classes'][data.classes[tagged[1] - 1]]['iou'] < .1


def test_outlines_that_the_run_has_learnt_from_are_refused(runs, tmp_path, capsys):
    data = synthetic('val').subset(range(6))
    for i in (0, 3): save_mask(tmp_path / f'few/{data.names[i]}.png', data.mask(i))
    recipe = dict(stages=['train', 'masks'], limit=6, outlines=str(tmp_path / 'few'), split='val', train=dict(epochs=1, batch_size=3, crop=64), masks=dict(scales=[1.0], splits=['val']))
    with inside(): make_run('taught', recipe, str(tmp_path / 'runs'), lambda _: None)
    assert main(['review', 'taught', '--runs', str(tmp_path / 'runs'), '--out', str(tmp_path / 'r')]) == 0
    rows = list(csv.DictReader((tmp_path / 'r/doubt.csv').open()))
    assert {r['image'] for r in rows} == set(data.names) - {data.names[0], data.names[3]}  # they are no question any more
    made = dict(split='val', drawn=[data.names[3], data.names[1]], chance=dict.fromkeys(data.names, .5))
    (tmp_path / 'runs/taught/estimate-val.json').write_text(json.dumps(made))
    capsys.readouterr()
    assert main(['estimate', 'taught', '--runs', str(tmp_path / 'runs'), '--outlines', str(tmp_path / 'few')]) == 2
    assert f'taught has learnt from 1 of the 2 outlines ({data.names[3]}); they would flatter it' in capsys.readouterr().err


def test_draws_have_the_size_and_the_chances_that_were_asked_for():
    r = np.random.default_rng(3)
    for n in (2, 5, 17, 40):
        tags, d = r.random((40, 3)) < [.9, .2, .03], r.random(40)
        p = inclusion(tags, d, n)
        assert abs(p.sum() - n) < 1e-9 and (0 < p).all() and (p <= 1).all()
        draws = [chosen_of(p, np.argsort(d), r) for _ in range(1500)]
        assert all(len(set(s)) == n for s in draws)
        assert abs(np.mean([np.isin(np.arange(40), s) for s in draws], 0) - p).max() < .06


def test_estimates_are_right_in_the_mean_and_weights_matter():
    "Horvitz-Thompson by hand where the maps expect nothing; a wrong expectation does not shift the mean of many draws"
    r = np.random.default_rng(0)
    both = r.integers(1, 50, (30, 2)); either = both + r.integers(0, 60, (30, 2))
    p = inclusion(r.random((30, 2)) < .5, r.random(30), 10)
    s = chosen_of(p, np.arange(30), r)
    nothing = np.zeros((30, 2)), np.zeros((30, 2))
    e = estimated(both[s], either[s], s, p, nothing)
    by_hand = [sum(both[i, k] / p[i] for i in s) / sum(either[i, k] / p[i] for i in s) for k in (0, 1)]
    assert np.allclose(e.iou, by_hand) and abs(e.miou - np.mean(by_hand)) < 1e-12
    truth, wrong = (both.sum(0) / either.sum(0)).mean(), (r.random((30, 2)) * 500, r.random((30, 2)) * 100)
    many = [estimated(both[s], either[s], s, p, wrong) for s in (chosen_of(p, np.arange(30), r) for _ in range(600))]
    assert abs(np.mean([e.miou for e in many]) - truth) < .02 and np.mean([e.interval[0] <= truth <= e.interval[1] for e in many]) > .9


def test_a_report_without_ground_truth_says_what_cannot_be_known(runs):
    from wsss_nb.results.report import not_counted
    before = (runs / 'small/estimate-val.json').read_text()
    (runs / 'small/estimate-val.json').write_text(json.dumps(dict(drawn=[], chance={})))
    assert list(not_counted(runs / 'small')) == ['how good the masks are cannot be known without outlines; 24 drawn by chance tell it to some .06: wsss estimate small --outlines 24', similar_sets()]
    assert 'from 24' in similar_sets() and 'from 692 photographs' in similar_sets()
    (runs / 'small/estimate-val.json').write_text(json.dumps(dict(found=dict(miou=.5, interval=[.4, .6], outlined=8))))
    assert list(not_counted(runs / 'small')) == ['mIoU 0.500, between 0.400 and 0.600, from 8 outlines drawn by chance']
    (runs / 'small/estimate-val.json').write_text(before)


def test_classes_that_are_lost_and_tags_that_are_not_known_are_told():
    from wsss_nb.engine.gallery import ADVICE
    from wsss_nb.engine.run import stage_warnings
    counted = {'cat': dict(tagged=10, masked=5), 'hat': dict(tagged=10, masked=4), 'sea': dict(tagged=None, masked=0)}
    made = dict(stage='masks', parameters={}, results=dict(classes=dict(all=counted), odd={}))
    assert stage_warnings(made) == [f'warning: missing in most masks of all: hat (in 4 of 10); {ADVICE}'] and 'wsss review' in ADVICE
    train = dict(stage='train', parameters=dict(method='frozen', epochs=3), results=dict(classes=['cat'], steps=900, tag_ap=.31))
    assert 'hardly knows the tags of its own images (average precision 0.31)' in stage_warnings(train)[0] and not stage_warnings({**train, 'results': dict(steps=900, tag_ap=.9)})
