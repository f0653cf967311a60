"""The range that published seeds leave for one more run, and the three verdicts."""
import copy
import json
import re
from math import sqrt
from statistics import stdev

import pytest
from scipy.stats import t

from wsss_nb.base.core import UserError, versions
from wsss_nb.cli import main
from wsss_nb.engine import spread as S
from wsss_nb.engine import verify as V
from wsss_nb.engine.record import Run


def laid(folder, name, seed, masks, network, about='made up', ap=.9, data='d', torch='1', **more):
    "A run on record with these numbers"
    number = lambda what, x: dict(what=what, split='val', miou=x, iou=dict(cat=x), oracle=False)
    own = dict(seed=seed, data_name='synthetic', method='m', **more)
    stages = dict(train=dict(stage='train', folder='t', parameters=own, inputs={}, device='cpu', data=dict(train=data), results=dict(tag_ap=ap), rounding=dict(capability='AVX2')),
                  evaluate=dict(stage='evaluate', folder='e', parameters=dict(seed=seed, data_name='synthetic'), inputs={}, device='cpu', data={}, results=None))
    for file, x in (('run', dict(name=name, state='done', recipe=dict(about=about), code='', versions=dict(torch=torch), stages=stages)), ('metrics', dict(numbers=[number('masks', masks), number('network', network)]))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f'{file}.json').write_text(json.dumps(x))
    return Run(folder / name)


@pytest.fixture
def published(tmp_path, monkeypatch):
    "Five seeds of a_synthetic, two of b_synthetic"
    folder = tmp_path / 'published'
    for i, x in enumerate((.50, .51, .49, .52, .48)): laid(folder, 'a_synthetic' + f'_seed_{i}' * (i > 0), i, x, x - .05)
    for i, x in enumerate((.30, .32)): laid(folder, 'b_synthetic' + f'_seed_{i}' * (i > 0), i, x, x, about='another')
    monkeypatch.setattr(S, 'PUBLISHED', folder)
    monkeypatch.setattr(V, 'PUBLISHED', folder)
    S.of_all.cache_clear()
    yield folder
    S.of_all.cache_clear()


def test_of_one_recipe_the_range_is_the_prediction_interval_of_the_textbook():
    x = [.5, .51, .49, .52, .48]
    half = t.ppf(.995, 4) * stdev(x) * sqrt(1 + 1 / 5)
    assert S.expected_range(x, *S.pooled([x])) == pytest.approx((.5 - half, .5 + half))
    assert S.pooled([[0., 2.], [5.], [1., 1., 4.], []]) == (pytest.approx(sqrt((2 + 6) / 3)), 3)
    assert S.expected_range([.99, .995], .1, 4)[1] == 1


def test_the_range_is_pooled_over_the_recipes_of_the_same_data(published):
    rows = {r['number']: r for r in S.among_seeds(Run(published / 'b_synthetic'), S.numbers_of_seeds('b_synthetic', published), 'synthetic', published)}
    deviation = sqrt((.001 + .0002) / 5)
    half = t.ppf(.995, 5) * deviation * sqrt(1.5)
    assert (rows['masks/val']['low'], rows['masks/val']['high']) == pytest.approx((.31 - half, .31 + half))
    assert list(rows) == ['tag AP/train', 'masks/val', 'network/val']  # in the order of the stages


@pytest.mark.parametrize('numbers, code, said', [
    (dict(masks=.50, network=.45), 0, 'verdict: the same to the bit'),
    (dict(masks=.501, network=.44), 3, 'verdict: within the spread: 3 numbers'),
    (dict(masks=.50, network=.20), 1, 'verdict: outside the spread, first in network: network/val 0.200, expected 0.3'),
    (dict(masks=.10, network=.20), 1, 'verdict: outside the spread, first in masks: masks/val 0.100, expected 0.4'),
    (dict(masks=.10, network=.20, ap=.2), 1, 'verdict: outside the spread, first in training: tag AP/train 0.200')])
def test_each_verdict_has_its_exit_code_and_names_the_first_stage(published, tmp_path, capsys, numbers, code, said):
    laid(tmp_path / 'runs', 'mine', 0, **numbers)
    assert main(['verify', 'mine', '--as-recorded', '--runs', str(tmp_path / 'runs')]) == code
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_the_first_line_says_in_what_it_differs(published, tmp_path, capsys):
    laid(tmp_path / 'runs', 'mine', 3, .5, .4, torch='2')
    made = json.loads((tmp_path / 'runs/mine/run.json').read_text())
    made['stages']['train']['rounding'], made['stages']['train']['parameters']['method'] = dict(capability='DEFAULT'), 'wrong.py:Wrong'
    (tmp_path / 'runs/mine/run.json').write_text(json.dumps(made))
    assert main(['verify', 'mine', '--as-recorded', '--runs', str(tmp_path / 'runs')]) == 3
    assert capsys.readouterr().out.splitlines()[0] == 'differs from the published a_synthetic_seed_3 in: train.method wrong.py:Wrong instead of m, torch 2 instead of 1, capability DEFAULT instead of AVX2'


def test_other_data_and_unknown_recipes_are_refused(published, tmp_path, capsys):
    laid(tmp_path / 'runs', 'mine', 0, .5, .4, data='other')
    laid(tmp_path / 'runs', 'new', 0, .5, .4, about='never seen')
    assert main(['verify', 'mine', '--as-recorded', '--runs', str(tmp_path / 'runs')]) == 2
    assert 'data: train of train has the fingerprint other here and d on record' in capsys.readouterr().err
    assert main(['verify', 'new', '--as-recorded', '--runs', str(tmp_path / 'runs')]) == 2
    assert 'no published run goes by this name or says the same about itself' in capsys.readouterr().err


def test_only_a_run_with_the_settings_of_the_seeds_is_held_against_them(published, tmp_path):
    assert len(S.seeds_for(laid(tmp_path, 'mine', 9, .5, .4))) == 5
    other = laid(tmp_path, 'mine', 9, .5, .4)
    other.stages['train']['parameters']['method'] = 'other'
    assert S.seeds_for(other) == {} and S.published_like(other) == 'a_synthetic'


def test_a_word_that_came_later_is_no_other_setting(published, tmp_path):
    "Older records say channels_last=False where today's say auto, which on a CPU is the same"
    for value, count in (('auto', 5), ('false', 5), ('true', 0)):
        run = laid(tmp_path, 'mine', 9, .5, .4, channels_last=value)
        for f in published.glob('a_synthetic*/run.json'):
            made = json.loads(f.read_text())
            made['stages']['train']['parameters']['channels_last'] = False
            f.write_text(json.dumps(made))
        assert len(S.seeds_for(run)) == count and ('channels_last' in S.differs_in(run, S.seeds_of('a_synthetic', published)[0])) == (not count)


def test_all_that_is_published_ends_with_the_worst_code(published, capsys):
    codes = {'a_synthetic': 3, 'b_synthetic': 0}
    told = lambda folder, runs: (codes[folder.name], f'verdict: {folder.name}')
    assert V.verify_published(True, verify=told, jobs=1) == 3 and capsys.readouterr().out.splitlines() == ['2 runs, 1 at a time', f'{"a_synthetic":25} a_synthetic', f'{"b_synthetic":25} b_synthetic']
    codes['b_synthetic'] = 1
    assert V.verify_published(True, verify=told, jobs=1) == 1 and len(V.embedded()) == 7


def test_one_seed_of_each_method_is_quick_and_one_of_this_version_where_there_is(published):
    laid(published, 'c-synthetic.row', 0, .3, .3)  # a row of a table
    laid(published, 'c-synthetic.row_seed_1', 1, .3, .3)
    laid(published, 'd_synthetic', 0, .3, .3)  # one seed alone
    laid(published, 'a_synthetic_seed_2', 2, .49, .44, torch=versions()['torch'])
    assert [f.name for f in V.embedded(quick=True)] == ['a_synthetic_seed_2', 'b_synthetic'] and len(V.embedded()) == 10


def test_a_cell_of_the_grid_is_the_published_run_with_another_seed():
    for name in ('cam', 'sipe', 'icd', 'ecsnet', 'ccmr'):
        base, cells = S.headline(Run(S.PUBLISHED / f'{name}_synthetic')), S.in_grid(f'{name}_synthetic')
        assert {k: base[k] for k in cells[0]} == cells[0] and set(cells) == {0, 1}


def test_published_seeds_have_the_settings_of_their_recipe():
    for f in S.PUBLISHED.glob('*_synthetic_seed_*/run.json'):
        run = Run(f.parent)
        base = S.seeds_of(S.published_like(run))[0]
        assert {k.rpartition('.')[2] for k in S.unlike_settings(base, run)} == {'seed'} and S.rounded_by(run)['capability']


def test_what_is_expected_stands_in_no_recipe_but_comes_from_published_seeds(published, tmp_path):
    from wsss_nb.results.report_numbers import expected_of
    recipes = S.PACKAGE.parent / 'runs/recipes'
    assert [f.name for f in recipes.rglob('*.yaml') if 'expected:' in f.read_text(encoding='utf-8')] == []
    run = laid(tmp_path / 'runs', 'mine', 0, .5, .4)
    low, high = S.expected_range([.50, .51, .49, .52, .48], *S.pooled([[.50, .51, .49, .52, .48], [.30, .32]]))
    assert expected_of(dict(recipe=run.recipe, place=run.folder), 'masks/val') == f'{low:.3f} to {high:.3f}'
    assert expected_of(dict(recipe=run.recipe, place=run.folder), 'score maps/val') == ''


def test_the_report_names_the_first_stage_that_left_the_range(published, tmp_path):
    from types import SimpleNamespace
    from wsss_nb.results.report_spread import spread_of
    runs = [laid(tmp_path / 'runs', name, 0, masks, .1) for name, masks in (('mine', .5), ('wrong', .1))]
    told = [line for _, line, _ in spread_of(SimpleNamespace(runs=[dict(place=r.folder, name=r.folder.name) for r in runs]))]
    assert told[0].startswith('The first number outside the spread: network/val 0.100') and ', in network.' in told[0]
    assert told[1].startswith('The first number outside the spread: masks/val 0.100') and ', in masks.' in told[1]


CLAIMS = re.compile(r'same metrics|same network bit|ends?,? .{0,30}with the same numbers|to the same numbers|seed gives the same|repeatable to')


def test_what_is_said_to_come_out_again_says_on_which_machine_and_lock():
    root, found = S.PACKAGE.parent, 0
    texts = {f: [''.join(c['source']) for c in json.loads(f.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown'] for f in root.glob('nbs/**/*.ipynb')}
    for file, cells in {**texts, root / 'README.md': [(root / 'README.md').read_text(encoding='utf-8')]}.items():
        for sentence in (s for cell in cells for s in re.split(r'(?<=[.|])\s+', cell) if CLAIMS.search(s)):
            found += 1
            assert re.search(r'machine|processor|one after the other', sentence), (file.name, sentence)
    assert found >= 6


RECIPES = ('cam', 'cam_crf', 'ccmr', 'ecsnet', 'icd', 'sipe', 'svm')


def test_every_method_has_five_published_seeds_of_masks_and_network():
    for name in RECIPES:
        found = {S.seed_of(r): S.headline(r) for r in S.seeds_of(f'{name}_synthetic')}
        assert sorted(found) == [0, 1, 2, 3, 4] and all({'masks/val', 'masks/train', 'network/val', 'tag AP/train'} <= {*n} for n in found.values()), name
    assert {S.SEED.sub('', f.name) for f in V.embedded(quick=True)} == {f'{n}_synthetic' for n in RECIPES}


def test_the_first_page_shows_drawings_beside_their_spread_and_says_of_how_many_seeds():
    readme = (S.PACKAGE.parent / 'README.md').read_text(encoding='utf-8')
    rows = [[c.strip() for c in line.split('|')[1:-1]] for line in readme.partition('<!-- table: methods -->')[2].partition('<!-- /table -->')[0].strip().splitlines()[2:]]
    assert len(rows) == 7 and 'mean ± half the range of five seeds' in readme
    for method, *_, masks, network in rows:
        name = {'CAM': 'cam', 'SIPE': 'sipe', 'SVM': 'svm', 'ICD': 'icd', 'ECS-Net': 'ecsnet', 'CCMR + SWP': 'ccmr'}.get(method[1:].partition(']')[0])
        for number, shown in (('masks/val', masks), ('network/val', network)) if name else ():
            x = [S.headline(r)[number] for r in S.seeds_of(f'{name}_synthetic')]
            assert len(x) == 5 and shown == f'{sum(x) / 5:.3f} ± {(max(x) - min(x)) / 2:.3f}'.replace('0.', '.'), (name, number, len(x))
    grid = json.loads((S.PUBLISHED / 'grid-photos/grid.json').read_text())
    of = {l: [c['miou'] for c in grid['cells'] if (c['localiser'], c['refiner'], c['segmenter']) == (l, 'none', 'none')] for l in grid['localisers']}
    photographs = (S.PACKAGE.parent / 'nbs/results/photographs.ipynb').read_text(encoding='utf-8')
    assert f'two seeds have a standard deviation of {100 * sqrt(sum((a - b) ** 2 / 2 for a, b in of.values()) / len(of)):.1f} points' in photographs


def test_what_a_seed_lacks_comes_from_the_grid_and_a_star_names_the_seeds_that_have_a_number(published):
    (published / 'grid-synthetic').mkdir()
    cell = lambda segmenter, miou: dict(localiser='b', refiner='none', segmenter=segmenter, seed=1, miou=miou)
    (published / 'grid-synthetic/grid.json').write_text(json.dumps(dict(cells=[cell('none', .9), cell('light', .8)])))
    made = json.loads((published / 'b_synthetic_seed_1/metrics.json').read_text())
    (published / 'b_synthetic_seed_1/metrics.json').write_text(json.dumps(dict(numbers=made['numbers'][:1])))
    assert S.numbers_of_seeds('b_synthetic', published)[1] == {'tag AP/train': .9, 'masks/val': .32, 'network/val': .8}
    assert S.named_runs('b_synthetic*,x', 'masks/val', published) == ['b_synthetic', 'b_synthetic_seed_1', 'x']
    assert S.named_runs('b_synthetic*', 'network/val', published) == ['b_synthetic'] and S.named_runs('no*', 'masks/val', published) == ['no*']


def test_each_verdict_was_produced_on_purpose():
    made = json.loads((S.PACKAGE.parent / 'runs/measured/verdicts.json').read_text())['rows']
    assert {k: r['code'] for k, r in made.items()} == dict(same=0, default=3, other=3, wrong=1)
    assert all(r['lines'][-1].startswith(said) for r, said in ((made['same'], 'verdict: the same to the bit'), (made['default'], 'verdict: within the spread'), (made['other'], 'verdict: within the spread'), (made['wrong'], 'verdict: outside the spread, first in seeds')))
    assert 'capability DEFAULT instead of AVX512' in made['default']['lines'][0] and 'torch 2.13.0' in made['other']['lines'][0] and 'train.method turned.py:Turned instead of cam' in made['wrong']['lines'][0]
    first = [r['stage'] for r in made['wrong']['rows'] if not r['inside']][0]
    assert first == 'seeds' and made['wrong']['report'].endswith('in seeds.') and made['wrong']['rows'][0]['stage'] == 'training' and made['wrong']['rows'][0]['inside']
