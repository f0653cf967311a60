"""The grid: cells share their stages, one that fails leaves the others, and the page, the tables and grid.json say what the runs say."""
import copy
import json
import re
from collections import Counter
from html import unescape
from statistics import mean

import pytest

from inside import inside
from wsss_nb.results import grid as G
from wsss_nb.results import grid_cells as C
from wsss_nb.results import grid_page as P
from wsss_nb.engine import stage as S
from wsss_nb.cli import main
from wsss_nb.base.core import UserError, load_json, save_json
from wsss_nb.engine.execute import StageFailed
from wsss_nb.engine.methods import check_network
from wsss_nb.results.readme import Tables
from wsss_nb.engine.parameters import notebook_parameters
from wsss_nb.engine.recipes import read_recipe, resolved, rows_of, stage_parameters
from wsss_nb.results.table_recipes import known

SMALL = ['limit=6', 'train.epochs=1', 'train.batch_size=2', 'psa.epochs=1', 'masks.scales=[1.0]', 'workers=1', 'device=cpu']


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Three localisers, two refiners; PSA is let loose on SIPE, whose maps it cannot take. The folder with runs, what was said, what was executed at first and once more, the error"
    rules, runs, said = copy.deepcopy(known('grid')), tmp_path_factory.mktemp('grid') / 'runs', []
    rules['cannot'].pop('sipe')
    with pytest.MonkeyPatch.context() as m, inside() as made:
        for module in (G, C): m.setattr(module, 'known', lambda name: rules)
        ask = dict(localisers=['cam', 'grad_cam_pp', 'sipe'], refiners=['none', 'psa'], seeds=['1'], options=SMALL, runs=runs, say=said.append)
        with pytest.raises(StageFailed) as e: G.run_grid('synthetic', **ask)
        first = list(made)
        with pytest.raises(StageFailed): G.run_grid('synthetic', **ask)
    return runs, said, first, made[len(first):], str(e.value)


def metric(runs, run): return next(n['miou'] for n in json.loads((runs / run / 'metrics.json').read_text())['numbers'] if (n['what'], n['split']) == ('masks', 'val'))


def test_what_cells_agree_on_is_made_once(small):
    runs, _, first, again, _ = small
    assert len(set(first)) == len(first)
    assert Counter(stage for stage, _ in first) == dict(train=2, psa=3, masks=5, evaluate=5)  # CAM and Grad-CAM++ share a network; PSA is trained for each way of reading it, and fails for SIPE
    assert sorted(folder for _, folder in first if not folder.startswith('psa')) == sorted(p.parent.name for p in (runs / 'stages').glob('*/stage.json') if p.parent.name[:3] != 'psa')
    assert Counter(again) == Counter(s for s in first if not (runs / 'stages' / s[1] / 'stage.json').exists()) and len(again) == 1  # goes on: what failed is tried again, nothing else
    made = load_json(runs / 'grid-synthetic/grid.json')
    done = [load_json(runs / c['run'] / 'run.json')['stages'] for c in made['cells'] if c['state'] == 'done']
    seconds = {v['folder']: v['seconds'] for stages in done for v in stages.values()}
    t = made['times']
    assert (t['cells'], t['named'], t['distinct']) == (5, 17, 14) and abs(t['shared'] - sum(seconds.values())) < 1e-6
    assert abs(t['alone'] - sum(v['seconds'] for stages in done for v in stages.values())) < 1e-6 and t['alone'] > t['shared']


def test_a_cell_that_fails_leaves_the_others_and_says_why(small):
    runs, said, _, _, error = small
    assert error.startswith('1 of 6 runs stopped (grid-synthetic.sipe.psa.none.1): psa failed in cell') and 'PSA makes two backgrounds of its own' in error
    cells = {c['run']: c for c in load_json(runs / 'grid-synthetic/grid.json')['cells']}
    assert len(cells) == 6 and [r for r, c in cells.items() if c['state'] != 'done'] == ['grid-synthetic.sipe.psa.none.1']
    failed = cells['grid-synthetic.sipe.psa.none.1']
    assert failed['state'] == 'failed' and failed['miou'] is None and 'PSA makes two backgrounds' in failed['why'] and list(failed['stages']) == ['train']
    page = unescape((runs / 'grid-synthetic/grid.html').read_text())
    assert re.search(r'<td class="none failed" title="psa failed.*?"><a href="../grid-synthetic.sipe.psa.none.1/cell.html">failed</a></td>', page) and f'<li>failed: {failed["why"]}' in page
    cell = (runs / failed['run'] / 'cell.html').read_text()
    assert '<a href="psa.html">psa</a> (failed)' in cell and (runs / failed['run'] / 'psa.html').exists() and 'PSA makes two backgrounds' in cell
    assert re.search(r'^\| SIPE \| .* \| failed \|$', next(t for t in said if t.startswith('| | none | PSA |')), re.M)


def test_the_page_the_tables_and_the_file_say_what_the_runs_say(small):
    runs, said, *_ = small
    folder, value = runs / 'grid-synthetic', lambda l, r: metric(runs, f'grid-synthetic.{l}.{r}.none.1')
    for c in load_json(folder / 'grid.json')['cells']:
        if c['state'] == 'done': assert c['miou'] == c['number']['miou'] == metric(runs, c['run']) and c['number']['seed'] == c['seed'] == 1
    text = lambda x: f'{x:.3f}'.replace('0.', '.')
    page, table = (folder / 'grid.html').read_text(), (folder / 'grid.md').read_text()
    for l, name in dict(cam='CAM', grad_cam_pp='Grad-CAM++', sipe='SIPE').items():
        shown = text(value(l, 'none'))
        assert f'<a href="../grid-synthetic.{l}.none.none.1/cell.html"><b>{shown}</b></a>' in page and re.search(rf'\| {re.escape(name)} \| \**{re.escape(shown)}\**( \||$)', table, re.M)
    gains = {l: value(l, 'psa') - value(l, 'none') for l in ('cam', 'grad_cam_pp')}
    sign = lambda x: f'{x:+.3f}'.replace('0.', '.').replace('-', '−')
    for l, g in gains.items(): assert re.search(rf'{l}\.psa\.none\.1/cell\.html"><b>[^<]*</b></a><small><span{" class=.worse." if g < 0 else ""}>{re.escape(sign(g))}</span>', page)
    assert f'| mean gain | | {sign(mean(gains.values()))} |' in table
    assert 'synthetic val, 6 images, over bg+8. Masks are told the tags. Nothing was chosen with ground truth.' in table and 'limit=6' in table
    for target in set(re.findall(r'href="([^"]+)"', page)): assert (folder / target).exists(), target
    for cell in runs.glob('*/cell.html'):
        for target in re.findall(r'href="([^"]+)"', cell.read_text()): assert (cell.parent / target).exists(), target


def test_a_run_with_other_settings_is_not_a_cells(small):
    runs, cell = small[0], C.Cell('cam', 'none', 'none', 1)
    state = lambda options: G.result('synthetic', cell, resolved(C.cell_recipe('synthetic', cell, options)), runs)['state']
    assert state(SMALL) == state([*SMALL, 'data.root=/elsewhere']) == 'done' and state([*SMALL, 'masks.threshold=0.3']) == state(SMALL[1:]) == 'not run yet'


# -- without running anything

def test_seeds_are_put_together():
    cell = lambda r, s, x: dict(localiser='cam', refiner=r, segmenter='none', seed=s, miou=x, seconds=1., state='done')
    made = dict(cells=[cell('none', 0, .4), cell('none', 1, .5), cell('none', 2, .45), cell('crf', 1, .4), cell('crf', 3, .9)])
    s = P.summaries(made)['none']['cam']
    assert s['none']['mean'] == pytest.approx(.45) and s['none']['spread'] == pytest.approx(.05) and s['none']['gain'] is None
    assert s['crf']['mean'] == pytest.approx(.65) and s['crf']['gain'] == pytest.approx(-.1)  # seed 3 has nothing to be compared with
    assert P.text_of(s['none']) == '.450 ± .050' and P.short(-.0126, sign='+') == '−.013' and P.short(1.) == '1.000'


@pytest.mark.parametrize('data, segmenters', [('synthetic', ['none', 'light']), ('photos', ['none', 'v3plus']), ('voc12', ['none', 'paper'])])
def test_every_localiser_every_refiner_and_every_segmenter_is_valid(data, segmenters):
    cells = {*C.cells_of(data, refiners=['none'], segmenters=segmenters), *C.cells_of(data, ['cam'], segmenters=segmenters)}
    for run, recipe in C.recipes_of(data, cells).items():
        p, (_, refiner, segmenter) = recipe.stages, run.split('.')[1:4]
        assert ('segment' in p) == (segmenter != 'none') and p['masks']['refine'] == ([] if refiner == 'none' else refiner.split('+'))
        assert len({s for s in p['evaluate']['splits'] if s in p['masks']['splits']}) == 1  # one split is counted
        for a in {'psa', 'irn'} & set(p): assert all(p[a][k] == p['masks'][k] for k in ('scales', 'flip', 'reading', 'max_side')) and p[a]['split'] in ('train', 'train_aug', 'trainaug')
        if refiner == 'none':
            for stage, q in p.items(): check_network(stage, q, 20)


def test_a_cell_stands_on_its_localisers_recipe():
    for l in C.names_of('localisers'):
        p, base = stage_parameters(C.cell_recipe('synthetic', C.Cell(l, 'none', 'light', 3))), known('grid')['localisers'][l]['base']['synthetic']
        own = stage_parameters(read_recipe(base))
        assert {k: v for k, v in p['train'].items() if k != 'seed'} == {k: v for k, v in own['train'].items() if k != 'seed'} and {q['seed'] for q in p.values()} == {3}
        assert p['masks']['threshold'] == own['masks']['threshold'] and {**own['segment'], 'seed': 3} == p['segment']
    photos = rows_of(read_recipe('refiners_photos'))
    for row, step in (('PSA', 'psa'), ('IRN', 'irn')): assert stage_parameters(photos[row])[step] == stage_parameters(C.cell_recipe('photos', C.Cell('cam', step, 'none', 0)))[step]


def test_what_makes_no_sense_has_a_reason():
    assert 'background of their own' in C.why_not('synthetic', 'sipe', 'psa+crf') and not C.why_not('synthetic', 'cam', 'psa+crf')
    assert C.why_not('synthetic', 'cam', 'crf+irn') == 'CRF leaves a mask, IRN asks for scores'
    cells = C.cells_of('synthetic', ['sipe'], ['none', 'psa'])
    recipes = C.recipes_of('synthetic', cells)
    results = [G.result('synthetic', c, recipes.get(c.run('synthetic')), '/nowhere') for c in cells]
    assert [r['state'] for r in results] == ['not run yet', 'makes no sense']
    made = G.gathered('synthetic', results)
    assert '| SIPE | not run yet | – |' in P.grid_markdown(made) and 'PSA learns from two that it makes itself <small>(SIPE · PSA)' in P.grid_html(made)


def test_a_dry_run_says_what_is_shared_and_runs_nothing(tmp_path, capsys):
    assert main(['grid', '--localisers', 'cam,grad_cam_pp', '--refiners', 'none,irn,irn+crf', '--dry-run', '--runs', str(tmp_path / 'runs')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [l.split('-')[0] for l in lines[:-1]] == ['train', 'irn', 'irn'] and lines[0].endswith('500 steps of 16 images, for 6 cells') and all(l.endswith('for 2 cells') for l in lines[1:-1])
    assert lines[-1] == '6 cells name 22 stages, 15 are different (1 train, 6 masks, 6 evaluate, 2 irn), 0 are there already' and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('args, text', [
    (['--localisers', 'sipes'], "grid: localisers: unknown name 'sipes'. Did you mean 'sipe'?"),
    (['--refiners', 'none,psa+crff'], "grid: refiners, psa+crff: unknown name 'crff'. Did you mean 'crf'?"),
    (['--refiners', 'none+crf'], 'grid: refiners, none+crf: expected steps joined by +, each once, such as psa+crf.'),
    (['--refiners', 'crf+crf'], 'grid: refiners, crf+crf: expected steps joined by +, each once'),
    (['--segmenters', 'heavy'], "grid: segmenters: unknown name 'heavy'"),
    (['--segmenters', 'paper'], 'grid: segmenters: paper is not for the embedded set; there: none, light.'),
    (['--data', 'coco14'], "grid: data: unknown name 'coco14'"),
    (['--seeds', '0,x'], "grid: seeds: expected whole numbers such as 0,1, got 'x'."),
    (['-p', 'masks.treshold=0.3'], "recipe, masks: unknown name 'treshold'. Did you mean 'threshold'"),
])
def test_mistakes_end_in_one_line(tmp_path, capsys, args, text):
    assert main(['grid', *args, '--runs', str(tmp_path / 'runs')]) == 2
    err = capsys.readouterr().err
    assert text in err and err.startswith('wsss: ') and err.count('\n') == 1 and not (tmp_path / 'runs').exists()


# -- published

def test_a_grid_is_published_and_the_readme_made_from_it(small, tmp_path, capsys):
    runs, said, *_ = small
    assert main(['publish', 'grid-synthetic', '--runs', str(runs), '--to', str(tmp_path)]) == 0 and capsys.readouterr().out.startswith('grid-synthetic: grid.json, grid.md; no notebooks')
    made, record = load_json(tmp_path / 'grid-synthetic/grid.json'), load_json(runs / 'grid-synthetic.cam.none.none.1/run.json')
    assert made['code'] == [record['code']] and made['versions'] == record['versions'] and made['devices'] == [record['stages']['train']['device']] and made['files'] == {}
    assert {c['run']: c['miou'] for c in made['cells'] if c['miou'] is not None} == {c: metric(runs, c) for c in (f'grid-synthetic.{l}.{r}.none.1' for l in ('cam', 'grad_cam_pp', 'sipe') for r in ('none', 'psa')) if c != 'grid-synthetic.sipe.psa.none.1'}
    for c in made['cells']:
        for stage, v in c['stages'].items(): assert (runs / 'stages' / v['folder']).is_dir() and v['folder'].startswith(stage)
    for name in ('grid.json', 'grid.md'): assert str(runs.parent) not in (tmp_path / 'grid-synthetic' / name).read_text()
    entry = dict(grid='grid-synthetic', segmenter='none', over=dict(classes='bg+8', images=6))
    tables = lambda **more: (tmp_path / 'tables.yaml').write_text(json.dumps(dict(tables=dict(g=dict(entry, **more))))) and Tables(tmp_path)
    t = tables()
    assert t.tables()['g'] == next(s for s in said if s.startswith('| | none | PSA |')) and len(t.used) == 5
    with pytest.raises(UserError, match='g: masks: images of the published number is 6, but the table says 7'): tables(over=dict(images=7)).tables()
    with pytest.raises(UserError, match="no published grid is called 'grid-synth'. Did you mean 'grid-synthetic'"): tables(grid='grid-synth').tables()


def parts_of(runs, folder, *parts, **more):
    "Folders with runs that hold a grid.json of some localisers each, and the records of all"
    made = load_json(runs / 'grid-synthetic/grid.json')
    for i, part in enumerate(parts):
        for c in made['cells']: save_json(folder / str(i) / c['run'] / 'run.json', load_json(runs / c['run'] / 'run.json'))
        save_json(folder / str(i) / 'grid-synthetic/grid.json', {**G.gathered('synthetic', [c for c in made['cells'] if c['localiser'] in part], more.get('options', SMALL)), **more})


def test_parts_of_a_grid_are_published_one_by_one(small, tmp_path, capsys):
    runs, whole, files = small[0], tmp_path / 'whole', ('grid.json', 'grid.md')
    parts_of(runs, tmp_path, ['sipe'], ['grad_cam_pp', 'cam'], ['cam', 'grad_cam_pp', 'sipe'])
    assert main(['publish', 'grid-synthetic', '--runs', str(runs), '--to', str(whole)]) == 0
    for i in '012': assert main(['publish', 'grid-synthetic', '--runs', str(tmp_path / i), '--to', str(tmp_path / 'out')]) == 0 and (i > '0') == all((tmp_path / 'out/grid-synthetic' / f).read_text() == (whole / 'grid-synthetic' / f).read_text() for f in files)
    later = load_json(tmp_path / '1/grid-synthetic/grid.json')
    for c in later['cells']: c.update(state='not run yet', miou=None, seconds=None, number={}, stages={}) if c['localiser'] == 'cam' else c.update(miou=.25)
    save_json(tmp_path / '1/grid-synthetic/grid.json', later)
    assert main(['publish', 'grid-synthetic', '--runs', str(tmp_path / '1'), '--to', str(tmp_path / 'out')]) == 0
    was, now = ({c['run']: c['miou'] for c in load_json(f / 'grid-synthetic/grid.json')['cells']} for f in (whole, tmp_path / 'out'))
    assert now == {r: .25 if '.grad_cam_pp.' in r else x for r, x in was.items()}  # a number gives way to a newer one, and to nothing else
    capsys.readouterr()


def test_a_part_with_other_settings_is_not_added(small, tmp_path, capsys):
    parts_of(small[0], tmp_path, ['cam'], ['sipe'])
    parts_of(small[0], tmp_path / 'other', ['sipe'], ['cam', 'sipe'], options=['limit=7'])
    parts_of(small[0], tmp_path / 'newer', ['sipe'])
    for f in (tmp_path / 'newer').glob('0/*.*.*/run.json'): save_json(f, {**load_json(f), 'versions': dict(torch='9')})
    ask = lambda runs: main(['publish', 'grid-synthetic', '--runs', str(runs), '--to', str(tmp_path / 'out')])
    assert ask(tmp_path / '0') == 0
    kept = (tmp_path / 'out/grid-synthetic/grid.json').read_text()
    assert ask(tmp_path / 'other/0') == 2 and (tmp_path / 'out/grid-synthetic/grid.json').read_text() == kept
    err = capsys.readouterr().err
    assert "publish: grid-synthetic: the cells that are published are of 'mIoU on synthetic val, 6 images" in err and "Changed: limit=7.'; run all of them again, or give another name with --as." in err and err.count('\n') == 1
    assert ask(tmp_path / 'newer/0') == 2 and "these of {'torch': '9'}; run all of them again" in capsys.readouterr().err
    assert ask(tmp_path / 'other/1') == 0 and load_json(tmp_path / 'out/grid-synthetic/grid.json')['options'] == ['limit=7']  # all of them again


def test_a_grid_with_nothing_done_is_not_published(tmp_path, capsys):
    G.Board('synthetic', [C.Cell('cam', 'none', 'none', 0)], {}, (), tmp_path).save()
    assert main(['publish', 'grid-synthetic', '--runs', str(tmp_path), '--to', str(tmp_path / 'out')]) == 2
    assert 'publish: grid-synthetic: none of its cells is done; run it first: wsss grid --data synthetic' in capsys.readouterr().err and not (tmp_path / 'out').exists()
