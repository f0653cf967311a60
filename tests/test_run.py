"""Runs as a user has them: cached, strict, locked, killed and resumed. Small, on the embedded set."""
import ast
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from inside import FORKS, inside, kernel_of_one_server
from wsss_nb.engine import key as K
from wsss_nb.engine import run as R
from wsss_nb.engine import stage as S
from wsss_nb.engine import verify as V
from wsss_nb.cli import main
from wsss_nb.engine.gallery import ADVICE
from wsss_nb.engine.execute import StageFailed, in_threads_of, locked, run_notebook
from wsss_nb.base.core import UserError
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.methods import build_localiser, check_network
from wsss_nb.engine.parameters import STAGES, notebook_parameters, stage_notebook
from wsss_nb.engine.recipes import all_recipes, is_row, laid_over, read_recipe, resolved, rows_of, stage_parameters
from wsss_nb.engine.record import Run
from wsss_nb.engine.sheet import RunsStopped, Sheet, runs_of
from wsss_nb.refine.crf import pick_backend

SMALL = ['limit=12', 'train.epochs=2', 'train.batch_size=4', 'train.save_seconds=0.0', 'segment.epochs=1', 'segment.batch_size=4', 'segment.save_seconds=0.0', 'masks.scales=[1.0]', 'workers=0']
RECIPE = 'stages: [train, masks, segment, evaluate]\n'


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A finished small run"
    d = tmp_path_factory.mktemp('runs')
    (d / 'small.yaml').write_text(RECIPE)
    R.run_recipe(str(d / 'small.yaml'), SMALL, runs=d / 'runs', say=print)
    return d


def made(d): return sorted(p.parent.name for p in (d / 'runs/stages').glob('*/stage.json'))


def test_a_run_leaves_its_record(small):
    folder = small / 'runs/small'
    run, metrics = (json.loads((folder / f).read_text()) for f in ('run.json', 'metrics.json'))
    assert run['state'] == 'done' and list(run['stages']) == ['train', 'masks', 'segment', 'evaluate']
    for made in run['stages'].values(): assert {'parameters', 'versions', 'code', 'data', 'device', 'seconds'} <= set(made)
    assert run['stages']['train']['parameters']['seed'] == 0 and run['stages']['train']['data']['train']
    for n in metrics['numbers']: assert {'what', 'split', 'miou', 'images', 'threshold', 'threshold_from', 'use_image_labels', 'seed', 'device', 'oracle'} <= set(n)
    assert {(n['what'], n['split'], n['oracle']) for n in metrics['numbers']} == {('masks', 'train', False), ('masks', 'val', False), ('network', 'train', False), ('network', 'val', False), ('score maps', 'train', True), ('score maps', 'val', True)}
    for stage in run['stages']: assert (folder / f'{stage}.ipynb').stat().st_size > 10_000


def test_the_miou_equals_an_independent_count_from_the_pngs(small):
    from wsss_nb.data.catalog import open_data
    data = open_data('synthetic', 'val', limit=12)
    masks = small / 'runs/stages' / next(s for s in made(small) if s.startswith('masks'))
    inter, union = np.zeros(len(data.classes) + 1), np.zeros(len(data.classes) + 1)
    for i, name in enumerate(data.names):
        p, t = np.array(Image.open(masks / 'val' / f'{name}.png')), data.mask(i)
        for k in range(len(inter)):
            a, b = (p == k) & (t != 255), t == k
            inter[k] += (a & b).sum()
            union[k] += (a | b).sum()
    slow = np.mean([i / u for i, u in zip(inter, union) if u])
    number = next(n for n in json.loads((small / 'runs/small/metrics.json').read_text())['numbers'] if n['what'] == 'masks' and n['split'] == 'val')
    assert abs(number['miou'] - slow) < 1e-9


def test_the_second_run_does_nothing(small):
    before = {p: p.stat().st_mtime_ns for p in (small / 'runs').rglob('*') if p.is_file() and p.name not in ('.lock', '.holder')}
    said = []
    R.run_recipe(str(small / 'small.yaml'), SMALL, runs=small / 'runs', say=said.append)
    assert all('kept' in s for s in said) and len(said) == 4
    assert before == {p: p.stat().st_mtime_ns for p in (small / 'runs').rglob('*') if p.is_file() and p.name not in ('.lock', '.holder')}


def test_a_crf_parameter_starts_again_at_the_masks(small):
    said = []
    with inside(): R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'masks.refine=[crf]', 'stages=[train, masks]'], runs=small / 'runs', run_name='crf', say=said.append)
    assert 'kept' in said[0] and 'kept' not in said[1]
    assert R.stage_record(R.Run(small / 'runs/crf').stage('masks'))['results']['crf'] == dict(backend=pick_backend(), device='cpu', seconds={}) and not list((small / 'runs/stages').rglob('crf.json'))
    assert len(list((small / 'runs/stages').glob('maps-*'))) == 2  # the score maps of both splits were not made again
    said.clear()
    with inside(): R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'masks.refine=[crf]', 'masks.crf_iters=5', 'stages=[train, masks]'], runs=small / 'runs', run_name='crf', say=said.append)
    assert 'kept' in said[0] and 'kept' not in said[1]


def test_the_key_knows_what_can_change_a_number(monkeypatch):
    p = stage_parameters({'limit': 4})['train']
    key = S.stage_key('train', p)[0]
    for neutral in (dict(runs='elsewhere'), dict(workers=3), dict(save_seconds=1.)): assert S.stage_key('train', {**p, **neutral})[0] == key
    for change in (dict(seed=1), dict(lr=.01), dict(limit=5), dict(device='cpu'), dict(options=dict(kind='grad_cam'))): assert S.stage_key('train', {**p, **change})[0] != key
    monkeypatch.setattr(S, 'code_digest', lambda *a: 'other')
    assert S.stage_key('train', p)[0] != key


def test_files_are_read_for_each_key_and_what_is_drawn_once(tmp_path, monkeypatch):
    from wsss_nb.engine import splits
    picture = lambda grey: Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(tmp_path / 'a.png')
    picture(0), (tmp_path / 'tags.csv').write_text('image,tags\na.png,cat\n')
    folder = stage_parameters(dict(data=dict(name='folder', root=str(tmp_path)), split='all', splits=['all']))['train']
    keys = [S.stage_key('train', folder)[0]]
    assert S.stage_key('train', folder)[0] == keys[0]
    for change in (lambda: picture(9), lambda: (tmp_path / 'tags.csv').write_text('image,tags\na.png,dog\n')):
        change()
        keys.append(S.stage_key('train', folder)[0])
    assert len(set(keys)) == 3
    drawn = [stage_parameters(dict(data=dict(name=name), limit=limit))['train'] for name in ('synthetic', 'parts') for limit in (3, 4)]
    found = [splits.data_fingerprints(q) for q in drawn]
    assert found == [{'train': splits.open_split(q, 'train').fingerprint()} for q in drawn] and len({q['train'] for q in found}) == 4
    monkeypatch.setattr(splits, 'given_fingerprint', lambda p, split: 'read')
    assert [splits.data_fingerprints(q) for q in drawn] == found and splits.data_fingerprints(folder) == dict(all='read') == splits.data_fingerprints({**folder, 'split': 'all'})
    assert splits.data_fingerprints({**drawn[0], 'given': str(tmp_path)}) == dict(train='read')  # masks of a folder beside it


OWN = """from wsss_nb.papers.seam import Seam


class Mine(Seam):
    def __init__(self, backbone, num_classes, strength=1.): super().__init__(backbone, num_classes)
"""


def test_a_method_from_a_file_counts_with_all_that_it_imports(tmp_path, monkeypatch):
    from wsss_nb.base.core import UserError
    from wsss_nb.engine.methods import build_localiser
    file = tmp_path / 'mine.py'
    file.write_text(OWN)
    p = stage_parameters({'limit': 4, 'train': {'method': f'{file}:Mine', 'options': {'strength': 2.}}})['train']
    net = build_localiser(p['method'], 3, options=p['options'])
    assert type(net).__name__ == 'Mine' and type(net).__mro__[1].__name__ == 'Seam'
    key = S.stage_key('train', p)[0]
    assert S.stage_key('train', p)[0] == key
    file.write_text(OWN + '\n')
    changed = S.stage_key('train', p)[0]
    digest_of = K.digest_of
    monkeypatch.setattr(K, 'digest_of', lambda modules: digest_of(modules) + ('other' if 'papers.seam' in modules else ''))
    assert len({key, changed, S.stage_key('train', p)[0]}) == 3
    for method, text in ((f'{file}:Mein', "class of mine.py: unknown name 'Mein'. Did you mean 'Mine'"), (f'{tmp_path}/your.py:Mine', 'no such file'), ('mine:Mine', "unknown name 'mine:Mine'")):
        with pytest.raises(UserError, match=text): stage_parameters({'train': {'method': method}})
    file.write_text('import nothing_of_the_kind\n')
    with pytest.raises(UserError, match="cannot be imported .ModuleNotFoundError: No module named 'nothing_of_the_kind'"): stage_parameters({'train': {'method': f'{file}:Mine'}})


def test_code_counts_from_the_notebook_down():
    assert {'cams', 'engine.train', 'nets.tiny', 'data.catalog', 'base.core'} <= set(K.code_modules(['engine.recipes', 'cams', 'data.catalog']))
    assert not {'run', 'report', 'cli', 'show'} & set(K.code_modules(['recipes', 'evaluate']))


# -- the masks, where they are and what they look like

def test_a_run_says_where_its_masks_lie_and_how_to_look_at_them(small, capsys):
    folder = small / 'runs/small'
    stage = next(f for f in (small / 'runs/stages').glob('masks-*') if f.name == json.loads((folder / 'run.json').read_text())['stages']['masks']['folder'])
    assert R.where_masks(folder) == [f'masks: {stage / "train"} (12 PNG), {stage / "val"} (12 PNG)', f'look at them: {folder / "masks/index.html"}']
    assert json.loads((folder / 'run.json').read_text())['masks'] == {s: f'stages/{stage.name}/{s}' for s in ('train', 'val')}
    assert main(['run', str(small / 'small.yaml'), '--runs', str(small / 'runs'), '--no-report', *[x for o in SMALL for x in ('-p', o)]]) == 0  # every stage is kept
    assert capsys.readouterr().out.splitlines()[4:] == R.where_masks(folder)
    page = (folder / 'masks/index.html').read_text()
    for split in ('train', 'val'):
        for name in synthetic(split, n=12).names: assert f'src="{split}/{name}.jpg"' in page and f'href="../../stages/{stage.name}/{split}/{name}.png"' in page and (folder / f'masks/{split}/{name}.jpg').exists()
    assert page.count('<figure>') == 24 and all((folder / 'masks' / link).exists() for link in re.findall(r'(?:href|src)="([^"]+)"', page))
    before = (folder / 'masks/index.html').stat().st_mtime_ns
    R.masks_page(folder, json.loads((folder / 'run.json').read_text())['stages'])
    assert before == (folder / 'masks/index.html').stat().st_mtime_ns


def test_a_run_with_other_masks_has_a_page_of_these(small):
    with inside(): folder = R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'stages=[train, masks]', 'masks.splits=[val]'], runs=small / 'runs', run_name='again', say=lambda text: None)
    assert not (folder / 'masks/train').exists()
    with inside(): R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'stages=[train, masks]', 'masks.splits=[train]'], runs=small / 'runs', run_name='again', say=lambda text: None)
    made = json.loads((folder / 'run.json').read_text())['stages']['masks']['folder']
    assert (folder / 'masks/train').exists() and not (folder / 'masks/val').exists() and f'stages/{made}/train' in (folder / 'masks/index.html').read_text()


def test_the_page_of_many_masks_is_bounded_and_escapes_names(tmp_path):
    from wsss_nb.data.sample import Data, Record, save_mask
    from wsss_nb.engine.gallery import is_page_of, write_masks_page
    draw, records = np.random.default_rng(0), []
    for i in range(9):
        name = f'<b>&"{i}\'/#{i} %'
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (900, 1200, 3), dtype=np.uint8)).save(tmp_path / f'{name}.png')
        records.append(Record(name, tmp_path / f'{name}.png', (1, 2)))
        save_mask(tmp_path / f'stages/masks-1/all/{name}.png', np.full((900, 1200), 1))
    page = write_masks_page(tmp_path / 'run/masks', 'r<u>n', 'masks-1', {'all': (Data(records, ['<i>cat', 'dog'], 'folder'), tmp_path / 'stages/masks-1/all')}, shown=7)
    text = page.read_text()
    assert text.count('<figure>') == 7 and '9 masks' in text and '2 more are not shown' in text and text.count('without dog') == 7 and '&lt;i&gt;cat 100 %' in text
    assert is_page_of(page, 'masks-1') and not any(t in text for t in ('<b>', '<u>', '<i>cat'))
    small = sorted((tmp_path / 'run/masks').rglob('*.jpg'))
    assert len(small) == 7 and all(Image.open(f).size == (320, 240) for f in small) and sum(f.stat().st_size for f in small) < 7 * 60_000
    links = [unquote(html.unescape(l)) for l in re.findall(r'(?:href|src)="([^"]+)"', text)]
    assert len(links) == 22 and all((page.parent / l).exists() for l in links)


def test_masks_that_show_nothing_are_told_at_the_end_of_their_stage(small, tmp_path, capsys):
    said = []
    with inside(): folder = R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'stages=[train, masks]', 'masks.threshold=1.0'], runs=small / 'runs', run_name='blank', say=said.append)
    warnings = [f'warning: of 12 masks of {s} 12 show nothing but background; {ADVICE}' for s in ('train', 'val')]
    out = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f'{"":9} {w}' for w in warnings] and out[-2:] == warnings and 'val: 12 images, 12 with background only, 0 filled by one class' in out
    made = json.loads((folder.parent / 'stages' / json.loads((folder / 'run.json').read_text())['stages']['masks']['folder'] / 'stage.json').read_text())
    assert made['results']['odd'] == {s: dict(images=12, blank=12, full=0) for s in ('train', 'val')}
    assert all(not np.array(Image.open(p)).any() for p in (small / 'runs/stages' / made['folder']).rglob('*.png'))


# -- few steps

def test_a_short_training_is_told_with_the_parameter_that_makes_it_longer(small, tmp_path, capsys):
    Sheet(runs_of(str(small / 'small.yaml'), SMALL), tmp_path).dry()
    out = capsys.readouterr().out.splitlines()
    assert [l.strip() for l in out if 'warning' in l] == ['warning: 6 steps of training, from which little is learnt; train.epochs=34 makes 100', 'warning: 3 steps of training, from which little is learnt; segment.epochs=34 makes 100']
    Sheet(runs_of('cam_synthetic'), tmp_path).dry()
    assert 'warning' not in capsys.readouterr().out
    said = []
    with inside(): R.run_recipe(str(small / 'small.yaml'), [*SMALL, 'stages=[train]', 'train.lr=0.001'], runs=tmp_path, run_name='s', say=said.append)
    assert said[1:] == [f'{"":9} warning: 6 steps of training, from which little is learnt; train.epochs=34 makes 100']


@pytest.mark.parametrize('name, told', [('folder', ['warning: 4 steps of training, from which little is learnt; epochs=25 makes 100']), ('synthetic', [])])
def test_fit_tells_of_a_short_training_on_ones_own_photographs(capsys, name, told):
    from wsss_nb.engine.methods import localiser_learner
    data = synthetic('train', n=4)
    data.name = name
    localiser_learner(data, method='cam', backbone='tiny', weights='', crop=32, epochs=1, batch_size=1, device='cpu').fit()
    assert [l for l in capsys.readouterr().err.splitlines() if l.startswith('warning')] == told


def test_a_run_that_is_interrupted_names_the_command_that_goes_on(small, tmp_path):
    said = []
    def stops(s, say): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): R.make_run('my run', read_recipe(str(small / 'small.yaml'), SMALL), tmp_path, said.append, stops)
    assert said == [f"stopped in train; go on with: wsss resume 'my run' --runs {tmp_path}"] and json.loads((tmp_path / 'my run/run.json').read_text())['state'] == 'stopped in train'


def test_of_many_runs_that_stop_the_same_command_goes_on():
    errors = dict(a=StageFailed('train failed'), b=StageFailed('oh'))
    assert str(RunsStopped(errors, 3)) == '2 of 3 runs stopped (a, b): train failed; the same command goes on from here'
    assert str(RunsStopped(dict(a=StageFailed('oh')), 1)) == 'oh; mend what is said there and go on with: wsss resume a (or, with other parameters, with your wsss run and -p)'


# -- strictness

@pytest.mark.parametrize('option, text', [
    ('train.epoch=3', r"recipe, train: unknown name 'epoch'. Did you mean 'epochs'"),
    ('trian.epochs=3', r"unknown name 'trian'. Did you mean 'train'"),
    ('train.epochs=ten', r"train.epochs: expected int .the default is 3., got str 'ten'"),
    ('train.epochs=1.5', r'train.epochs: expected int'),
    ('masks.flip=1', r'masks.flip: expected bool'),
    ('masks.refine=crf', r"masks.refine: expected list .the default is .*got str 'crf'"),
    ('backbone=mobilnet', r"backbone: unknown name 'mobilnet'. Did you mean 'mobilenet_v2'"),
    ('method=cma', r"method: unknown name 'cma'. Did you mean 'cam'"),
    ('train={method: sipe, options: {gcs: 1.0}}', r"train.options of sipe: unknown name 'gcs'. Did you mean 'gsc'"),
    ('masks.reading={knd: cam}', r"masks.reading of cam: unknown name 'knd'. Did you mean 'kind'"),
    ('masks.refine=[crv]', r"masks.refine: unknown name 'crv'. Did you mean 'crf'"),
    ('data.name=voc', r"data.name: unknown name 'voc'"),
    ('train.epochs', r'expected name=value'),
])
def test_wrong_names_and_types_are_refused_before_anything_runs(tmp_path, capsys, option, text):
    (tmp_path / 'r.yaml').write_text(RECIPE)
    assert main(['run', str(tmp_path / 'r.yaml'), '--runs', str(tmp_path / 'runs'), '-p', option]) == 2
    err = capsys.readouterr().err
    assert re.search(text, err) and err.startswith('wsss: ') and err.count('\n') == 1
    assert not list(tmp_path.glob('runs/stages/*/*.ipynb'))


def test_a_recipe_is_resolved_once_and_then_frozen(tmp_path, monkeypatch):
    from wsss_nb.engine import parameters as PA
    from wsss_nb.engine import recipes as RC
    resolved_now, read_now, one, cell = [], [], RC.stage_parameters, PA.parameters_cell
    monkeypatch.setattr(RC, 'stage_parameters', lambda recipe: resolved_now.append(recipe) or one(recipe))
    monkeypatch.setattr(PA, 'parameters_cell', lambda path: read_now.append(path) or cell(path))
    PA.parsed_parameters.cache_clear()
    sheet = Sheet(runs_of('refiners_synthetic', ['limit=4']), tmp_path)
    sheet.dry(lambda text: None)
    assert len(resolved_now) == len(sheet.recipes) == 7 and len(read_now) == len(set(read_now)) <= len(STAGES)
    recipe = sheet.recipes['refiners_synthetic.CAM']
    with pytest.raises(TypeError): recipe.stages['masks']['threshold'] = .9
    recipe.parameters('masks')['scales'].append(9.)  # of a copy
    assert 9. not in recipe.stages['masks']['scales'] and resolved(recipe) is recipe


def test_a_run_is_opened_by_its_record(small, tmp_path):
    run = Run.named('small', small / 'runs')
    assert (run.state, list(run.stages), run.name) == ('done', ['train', 'masks', 'segment', 'evaluate'], 'small') and run.there
    assert run.numbers == json.loads((small / 'runs/small/metrics.json').read_text())['numbers'] and run.notebook('train').exists()
    assert all(run.stage(s).is_dir() for s in run.stages) and Run(tmp_path / 'none').state == '' and not Run(tmp_path / 'none').numbers
    with pytest.raises(UserError, match="no run is called 'smal' in .*Did you mean 'small'"): Run.named('smal', small / 'runs')


def test_a_recorded_run_is_made_again_to_the_last_bit(small, tmp_path, capsys, monkeypatch):
    published = tmp_path / 'published/small'
    published.mkdir(parents=True)
    for name in ('run.json', 'metrics.json'): (published / name).write_bytes((small / 'runs/small' / name).read_bytes())
    with inside(): assert main(['verify', str(published), '--runs', str(tmp_path / 'runs')]) == 0
    out = capsys.readouterr().out
    assert 'each the same to the last bit' in out and 'kept' not in out and out.count(' s  ') == 4  # every stage was made again
    assert not list((tmp_path / 'runs').rglob('*verify*')) and not R.list_runs(tmp_path / 'runs') and not R.unused(tmp_path / 'runs')
    # the comparison itself: another number, and one too few
    metrics = json.loads((published / 'metrics.json').read_text())
    first = metrics['numbers'][0]
    first['miou'] += 2 ** -30
    del first['iou']['background']
    (published / 'metrics.json').write_text(json.dumps(metrics))
    monkeypatch.setattr(V, 'make_run', lambda *a, **k: small / 'runs/small')
    assert main(['verify', str(published), '--runs', str(tmp_path / 'runs')]) == 1
    out = capsys.readouterr().out
    assert f'numbers.{first["what"]}/{first["split"]}.miou' in out and 'iou.background' in out and '2 of ' in out and 'by 9.3e-10 at most' in out


def test_a_recorded_run_is_made_again_in_as_many_threads_as_then(small, tmp_path, capsys, monkeypatch):
    published, seen = tmp_path / 'published/small', []
    run, metrics = (json.loads((small / f'runs/small/{x}.json').read_text()) for x in ('run', 'metrics'))
    run['stages']['train']['device'], run['stages']['masks']['device'], run['versions']['torch'] = 'cpu (x86_64, 3 threads)', 'a GPU', '1.0'
    published.mkdir(parents=True)
    for name, x in (('run', run), ('metrics', dict(metrics, more=1.))): (published / f'{name}.json').write_text(json.dumps(x))
    def make_run(name, recipe, runs, say, make, shown):
        for stage in ('train', 'masks', 'psa'): make(SimpleNamespace(stage=stage, name=stage), say)
        return small / 'runs/small'
    monkeypatch.setattr(V, 'make_run', make_run)
    monkeypatch.setattr(V, 'execute', lambda s, say: seen.append((s.stage, os.environ.get('OMP_NUM_THREADS'), os.environ.get('MKL_NUM_THREADS'))))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.delenv('MKL_NUM_THREADS', raising=False)
    assert main(['verify', str(published), '--runs', str(tmp_path)]) == 1
    assert seen == [('train', '3', '3'), ('masks', '1', None), ('psa', '1', None)] and os.environ['OMP_NUM_THREADS'] == '1' and 'MKL_NUM_THREADS' not in os.environ
    here = json.loads((small / 'runs/small/run.json').read_text())
    lines = capsys.readouterr().out.splitlines()
    then, device = f'torch {here["versions"]["torch"]} instead of 1.0', lambda s: f'{s} {here["stages"][s]["device"]} instead of '
    assert lines[0] == f'differs from the record in: {then}, {device("train")}cpu (x86_64, 3 threads), {device("masks")}a GPU'
    assert lines[1].startswith('more ') and lines[2].startswith('1 of ') and lines[-1].startswith('verdict: different, and no seeds')


def test_verify_leaves_nothing_unless_it_is_asked_to(small, tmp_path, capsys, monkeypatch):
    def published(name, **metrics):
        folder = tmp_path / 'published' / name
        folder.mkdir(parents=True)
        run, there = (json.loads((small / f'runs/small/{x}.json').read_text()) for x in ('run', 'metrics'))
        for f, x in (('run', run), ('metrics', dict(there, **metrics))): (folder / f'{f}.json').write_text(json.dumps(x))
        return str(folder)
    def made(name, recipe, runs, say, make, shown):
        shutil.copytree(small / 'runs/small', Path(runs) / 'small')
        seen.append((Path(runs), shown))
        assert any(f == Path(runs) for f in (tmp_path / 'runs/stages').iterdir()) and not R.unused(tmp_path / 'runs')  # at work: not to be deleted
        return Path(runs) / 'small'
    seen, runs = [], tmp_path / 'runs'
    monkeypatch.setattr(V, 'make_run', made)
    assert main(['verify', published('other', more=1.), '--runs', str(runs)]) == 1  # another number, and still nothing is left
    assert seen == [(runs / 'stages/verify-other', False)] and not list((runs / 'stages').iterdir())
    capsys.readouterr()
    assert main(['verify', str(tmp_path / 'published/other'), '--runs', str(runs), '--keep']) == 1
    assert f'kept: {runs / "stages/verify-other"}; wsss prune deletes it\n' in capsys.readouterr().out and (runs / 'stages/verify-other/small/run.json').exists()
    assert main(['prune', '--runs', str(runs)]) == 0 and 'verify-other' in capsys.readouterr().out
    def fails(name, recipe, runs, *a, **k):
        (Path(runs) / 'half').mkdir()
        raise StageFailed('train failed in cell 7: oh (executed notebook: gone)')
    monkeypatch.setattr(V, 'make_run', fails)
    assert main(['verify', published('fails'), '--runs', str(runs)]) == 1 and capsys.readouterr().err == 'wsss: train failed in cell 7: oh; with --keep what was made is left to look at\n'
    assert [f.name for f in (runs / 'stages').iterdir()] == ['verify-other']
    (runs / 'verify/old').mkdir(parents=True)  # from before, when it was left there
    assert main(['prune', '--runs', str(runs), '--yes']) == 0 and not list((runs / 'stages').iterdir()) and not (runs / 'verify').exists()


def half_verified(run, folder, there):
    "Verify a run, and stay where its first stage is half made"
    def make_run(name, recipe, runs, *a, **k):
        (Path(runs) / 'stages/train-1').mkdir(parents=True)
        (Path(runs) / 'stages/train-1/big').write_bytes(b'x' * 1000)
        there.set()
        time.sleep(60)
    V.make_run = make_run
    V.verify_run(str(run), str(folder))


def test_what_a_killed_verify_leaves_is_pruned(small, tmp_path):
    child = FORKS.Process(target=half_verified, args=(small / 'runs/small', tmp_path, there := FORKS.Event()))
    child.start()
    try: assert there.wait(60) and not R.unused(tmp_path)
    finally: child.kill(); child.join()
    (folder, size), = R.unused(tmp_path).items()
    assert folder == tmp_path / 'stages/verify-small' and size >= 1000 and not R.list_runs(tmp_path)
    R.delete_unused(tmp_path)
    assert not list((tmp_path / 'stages').iterdir())


@pytest.mark.skipif(os.cpu_count() < 2, reason='needs two cores')
def test_a_kernel_computes_in_the_threads_of_a_record(tmp_path, monkeypatch):
    import nbformat
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('import torch\nprint(torch.get_num_threads())')]), tmp_path / 'n.ipynb')
    with in_threads_of('cpu (x86_64, 2 threads)'): run_notebook(tmp_path / 'n.ipynb', tmp_path / 'out.ipynb', {}, 'n', tmp_path / '.progress')
    assert nbformat.read(tmp_path / 'out.ipynb', 4).cells[0].outputs[0].text == '2\n'


def test_only_a_finished_run_with_metrics_can_be_verified(tmp_path, capsys):
    folder = tmp_path / 'half'
    folder.mkdir()
    (folder / 'run.json').write_text(json.dumps(dict(name='half', state='stopped in masks', seconds=0, recipe={}, stages={})))
    (folder / 'metrics.json').write_text('{}')
    assert main(['verify', str(folder), '--runs', str(tmp_path)]) == 2 and 'half: stopped in masks; only a run that is done' in capsys.readouterr().err
    (folder / 'run.json').write_text(json.dumps(dict(name='half', state='done', seconds=0, recipe={}, stages={})))
    assert main(['verify', str(folder), '--runs', str(tmp_path)]) == 2 and 'no metrics to compare' in capsys.readouterr().err
    assert main(['verify', 'haf', '--runs', str(tmp_path)]) == 2 and "no run is called 'haf'" in capsys.readouterr().err


def test_two_trainings_may_share_what_is_prepared_but_one_makes_it(tmp_path, capsys):
    import threading
    params = stage_parameters({'limit': 4, 'method': 'icd'})['train']
    a, b = (S.Stage('train', dict(params, runs=str(tmp_path), seed=seed)) for seed in (0, 1))
    folder = a.part('prepared', ['core'], data='these')
    second = threading.Thread(target=lambda: b.part('prepared', ['core'], data='these'))
    second.start()
    second.join(.6)
    assert second.is_alive()  # waits while the first makes it
    a.release(folder)
    second.join(10)
    assert not second.is_alive() and list(b.locks) == [folder] and not a.locks
    b.release(folder)
    out = capsys.readouterr().out
    assert out.count('stage train: waiting for another process (pid ') == 1 and str(folder) in out


def test_unknown_recipe_and_run_are_told_with_the_nearest(tmp_path, capsys):
    assert main(['run', 'cam_synthetik', '--runs', str(tmp_path)]) == 2
    assert "Did you mean 'cam_synthetic'?" in capsys.readouterr().err
    assert main(['resume', 'nothing', '--runs', str(tmp_path)]) == 2
    assert "no run is called 'nothing'" in capsys.readouterr().err


def test_rows_of_a_table_can_be_named(capsys):
    every = runs_of('icd_photos')
    assert list(runs_of('icd_photos', rows=['top-down', 'abs CRF'])) == ['icd_photos.top-down', 'icd_photos.abs_CRF'] and runs_of('icd_photos', rows=['abs_CRF'], run_name='x') == {'x.abs_CRF': every['icd_photos.abs_CRF']} and len(every) > 2
    assert main(['run', 'ccmr_synthetic_ablation', '--row', 'nGWP CCMR', '--dry-run', '-p', 'limit=8']) == 0
    assert [l for l in capsys.readouterr().out.splitlines() if l.startswith('--')] == ['-- nGWP CCMR']
    for name, row, text in (('icd_photos', 'abs CRT', "icd_photos: no row is called 'abs CRT'. Did you mean 'abs CRF'? Known: CAM, "), ('cam_photos', 'CAM', "cam_photos: no row is called 'CAM'. This recipe is no table.")):
        assert main(['run', name, '--row', row]) == 2 and text in capsys.readouterr().err


def test_a_dry_run_checks_the_recipe_and_the_data_and_runs_nothing(tmp_path, capsys):
    assert main(['run', 'cam_synthetic', '--dry-run', '--runs', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'synthetic val: 100 images' in out and not list(tmp_path.iterdir())
    assert 'train: 500 steps of 16 images' in out and 'masks: 500 images in 6 views' in out and 'evaluate: 500 images in 2 views' in out and 'epochs=20' in out
    train, masks = (next(l for l in out.splitlines() if l.startswith('  out') and f'/{s}-' in l).split()[-1] for s in ('train', 'masks'))
    assert f'  in        localiser: {train}\n' in out and f'  in        masks: {masks}\n' in out
    assert main(['run', 'cam_voc12', '--dry-run', '-p', f'data.root={tmp_path}']) == 2
    assert 'wsss: root: expected' in capsys.readouterr().err


def test_a_dry_run_knows_where_everything_lies(small, capsys):
    Sheet(runs_of(str(small / 'small.yaml'), SMALL), small / 'runs').dry()
    out = capsys.readouterr().out
    assert out.count('there already') == 4
    run = json.loads((small / 'runs/small/run.json').read_text())
    for s in run['stages'].values(): assert f'stages/{s["folder"]}, there already' in out
    Sheet(runs_of(str(small / 'small.yaml'), [*SMALL, 'masks.threshold=0.3']), small / 'runs').dry()
    assert capsys.readouterr().out.count('there already') == 1  # the training alone


@pytest.mark.parametrize('recipe', [name for name, file in all_recipes().items() if not is_row(file)])  # the rows of the papers' tables: test_tables
def test_every_recipe_is_valid(recipe):
    r = read_recipe(recipe)
    assert r['about']
    for row in (rows_of(r) or {'': r}).values():
        for stage, p in stage_parameters(row).items(): check_network(stage, p, 20)


def readings():
    "What recipes train and how they read it: (method, options) and readings of it"
    out = {}
    for name in all_recipes():
        r = read_recipe(name)
        for p in (stage_parameters(row) for row in (rows_of(r) or {'': r}).values()):
            if 'train' in p and 'masks' in p: out.setdefault((p['train']['method'], repr(p['train']['options'])), set()).add(repr(p['masks']['reading']))
    return sorted((*k, tuple(sorted(v | {'{}'}))) for k, v in out.items())  # the last cell of a training reads it as it is


def test_what_recipes_read_from_a_network_is_there():  # one test: who lists tests need not read all recipes
    data, asked = synthetic('val', n=1), readings()
    for method, options, ways in asked:
        given = {k: v for k, v in ast.literal_eval(options).items() if k != 'freeze'}  # names parts of another backbone
        net = build_localiser(method, 8, options=given).eval()
        for reading in map(ast.literal_eval, ways):
            m = net.score_maps([data.image(0)], data.labels, scales=(1.,), **reading)[0]
            assert (set(data.records[0].tags) <= set(m.keys.tolist()) or not reading.get('cleaned', True)) and m.maps.shape == (len(m.keys), *data.image(0).shape[:2]) and np.isfinite(m.maps).all(), (method, options, reading)
    assert len(asked) > 20


def test_a_network_that_cannot_be_built_is_told_by_the_dry_run(tmp_path, capsys):
    assert main(['run', 'cam_synthetic', '--dry-run', '--runs', str(tmp_path), '-p', 'segment.head=v2', '-p', 'segment.width=0', '-p', 'segment.stride=16']) == 2
    assert 'stride: ' in capsys.readouterr().err


def test_a_notebook_without_the_tag_is_refused(tmp_path, monkeypatch):
    nb = json.loads(stage_notebook('train').read_text())
    for c in nb['cells']: c['metadata'].pop('tags', None)
    (tmp_path / 'train.ipynb').write_text(json.dumps(nb))
    with pytest.raises(UserError, match='expected one cell with the tag `parameters`, found 0; papermill would run it with the defaults'): notebook_parameters(tmp_path / 'train.ipynb')


@pytest.mark.parametrize('stage', STAGES)
def test_every_parameter_has_a_comment_or_speaks_for_itself(stage):
    for name, (default, comment) in notebook_parameters(stage_notebook(stage)).items():
        assert comment or name in ('seed', 'batch_size', 'weight_decay', 'crf_iters', 'pamr_iters', 'pamr_dilations'), name


def papermill(*args, cwd): return subprocess.run([sys.executable, '-m', 'papermill', *map(str, args)], cwd=cwd, capture_output=True, text=True)


def papermill_here(path, out, cwd, **parameters):
    "papermill in the process of the test, with a warm kernel"
    import papermill
    with kernel_of_one_server() as kernel: papermill.execute_notebook(str(path), str(out), parameters, cwd=str(cwd), kernel_name=kernel, progress_bar=False)


def test_papermill_alone_works_from_any_folder_and_is_strict_too(tmp_path):
    train = stage_notebook('train')
    assert papermill(train, tmp_path / 'out.ipynb', '-p', 'method', 'cam', '-p', 'limit', '8', '-p', 'epochs', '1', cwd=tmp_path).returncode == 0
    assert list(tmp_path.glob('runs/stages/train-*/stage.json'))
    with pytest.raises(Exception, match="train: unknown parameter 'epoch'. Did you mean 'epochs'?"): papermill_here(train, tmp_path / 'bad.ipynb', tmp_path, epoch=1)


def test_a_stage_alone_makes_what_it_stands_on(tmp_path):
    papermill_here(stage_notebook('evaluate'), tmp_path / 'out.ipynb', tmp_path, limit=2)
    assert sorted(p.parent.name.split('-')[0] for p in tmp_path.glob('runs/stages/*/stage.json')) == ['evaluate', 'masks', 'train']


# -- failures

def test_a_failing_cell_is_told_in_one_line_and_leaves_the_notebook(small, tmp_path, capsys):
    (tmp_path / 'small.yaml').write_text(RECIPE)
    options = [x for o in [*SMALL, 'train.lr=1e30', 'train.optimizer=sgd'] for x in ('-p', o)]
    assert main(['run', str(tmp_path / 'small.yaml'), '--runs', str(tmp_path / 'runs'), *options]) == 1
    err = [l for l in capsys.readouterr().err.splitlines() if l.startswith('wsss: ')]
    assert len(err) == 1 and 'train failed in cell' in err[0] and 'images of this batch' in err[0]
    assert err[0].endswith(f'; mend what is said there and go on with: wsss resume small --runs {tmp_path / "runs"} (or, with other parameters, with your wsss run and -p)')
    assert main(['resume', 'small', '--runs', str(tmp_path / 'runs')]) == 1 and [l for l in capsys.readouterr().err.splitlines() if l.startswith('wsss: ')] == err
    executed = json.loads((tmp_path / 'runs/small/train.ipynb').read_text())
    assert any(o['output_type'] == 'error' for c in executed['cells'] for o in c.get('outputs', []))
    assert json.loads((tmp_path / 'runs/small/run.json').read_text())['state'] == 'stopped in train'


def hold(folder, held):
    with locked(folder, 'run r'): held.set(), time.sleep(60)


def test_two_runs_into_one_folder(tmp_path, capsys):
    (tmp_path / 'r.yaml').write_text(RECIPE)
    holder = FORKS.Process(target=hold, args=(tmp_path / 'runs/r', held := FORKS.Event()))
    holder.start()
    try:
        assert held.wait(60)
        assert main(['run', str(tmp_path / 'r.yaml'), '--runs', str(tmp_path / 'runs')]) == 2
        assert f'run r: another process (pid {holder.pid}) is working in' in capsys.readouterr().err
    finally: holder.kill(); holder.join()
    with locked(tmp_path / 'runs/r', 'run r'): pass  # the lock went with its holder


def test_a_full_disk_is_told_with_its_remedy(tmp_path, monkeypatch):
    import errno
    from wsss_nb.base.core import whole_file
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='a.json: the disk is full: free some space and start again, finished work is kept'):
        with whole_file(tmp_path / 'a.json', 'w') as f: f.write('x')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='POSIX')
def test_no_permission_is_told(tmp_path, capsys):
    (tmp_path / 'r.yaml').write_text(RECIPE)
    closed = tmp_path / 'closed'
    closed.mkdir()
    for p in (tmp_path, *tmp_path.parents): 
        if p.owner() == tmp_path.owner() and p != Path('/'): p.chmod(p.stat().st_mode | 0o055)
    closed.chmod(0o555)
    root = os.geteuid() == 0
    if root: os.seteuid(65534)
    try: assert main(['run', str(tmp_path / 'r.yaml'), '--runs', str(closed / 'runs')]) == 2
    finally:
        if root: os.seteuid(0)
    assert 'no permission to write there: choose another folder or change its permissions' in capsys.readouterr().err


def test_a_read_only_runs_folder_is_told(tmp_path, monkeypatch, capsys):
    import errno
    (tmp_path / 'r.yaml').write_text(RECIPE)
    def read_only(self, *a, **k): raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr(Path, 'mkdir', read_only)
    assert main(['run', str(tmp_path / 'r.yaml'), '--runs', str(tmp_path / 'runs')]) == 2
    assert 'the file system is read-only: choose another folder' in capsys.readouterr().err


def test_the_kernel_is_this_python(tmp_path, monkeypatch):
    "A kernel called python3 elsewhere must not be taken"
    fake = tmp_path / 'share/jupyter/kernels/python3'
    fake.mkdir(parents=True)
    (fake / 'kernel.json').write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='wrong', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'share/jupyter'))
    nb = dict(cells=[dict(cell_type='code', id='a', metadata=dict(tags=['parameters']), source='x = 1', outputs=[], execution_count=None),
                     dict(cell_type='code', id='b', metadata={}, source='import sys; print(sys.executable)', outputs=[], execution_count=None)],
              metadata=dict(kernelspec=dict(name='python3', display_name='', language='python')), nbformat=4, nbformat_minor=5)
    (tmp_path / 'n.ipynb').write_text(json.dumps(nb))
    run_notebook(tmp_path / 'n.ipynb', tmp_path / 'out.ipynb', {}, 'test', tmp_path / '.progress')
    assert json.loads((tmp_path / 'out.ipynb').read_text())['cells'][-1]['outputs'][0]['text'][0].strip() == sys.executable


# -- kill -9

def same_metrics(a, b): return (a / 'runs/small/metrics.json').read_bytes() == (b / 'runs/small/metrics.json').read_bytes()


def killed_runs(tmp_path, small, kills, seed, between=(5, 20)):
    "Kill the same run at random moments, let it finish, and begin anew until it was killed `kills` times; returns the moments"
    command = ['run', str(small / 'small.yaml'), '--runs', str(tmp_path / 'runs')] + [x for o in [*SMALL, 'train.workers=1', 'segment.workers=1'] for x in ('-p', o)]  # a process of a DataLoader dies, too
    rng, moments, env = np.random.default_rng(seed), [], {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}  # as a user's: the command forks its server from itself
    while len(moments) < kills:
        child = subprocess.Popen([str(Path(sys.executable).parent / 'wsss'), *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        moment = rng.uniform(*between)
        try: assert child.wait(moment) == 0
        except subprocess.TimeoutExpired:
            # every second time the runner alone dies and its kernel has to notice; otherwise everything dies, as in a power cut
            os.kill(child.pid, signal.SIGKILL) if len(moments) % 2 else os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            moments.append((round(moment, 1), sorted(p.parent.name.split('-')[0] for p in (tmp_path / 'runs/stages').glob('*/stage.json'))))
        else:  # it finished before its moment came
            assert same_metrics(tmp_path, small)
            shutil.rmtree(tmp_path / 'runs')
    with inside(): assert main(command) == 0
    return moments


@pytest.mark.parametrize('seed, kills', [(1, 1), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((1, 2), (1, 4), (2, 10)))])  # two: one death of either kind; that of the runner alone is in test_warm as well
def test_a_killed_run_ends_with_the_same_metrics(small, tmp_path, seed, kills):
    moments = killed_runs(tmp_path, small, kills, seed, (4, 9) if kills < 3 else (5, 20))  # a warm run takes some ten seconds: rarely one for nothing
    print('killed after (seconds, stages finished):', moments)
    assert len(moments) == kills and same_metrics(tmp_path, small)
    assert not list((tmp_path / 'runs').rglob('*.part'))


def test_prune_leaves_what_a_run_stands_on(small, capsys):
    shutil.copytree(small / 'runs', small / 'copy')
    shutil.copytree(next((small / 'copy/stages').glob('train-*')), small / 'copy/stages/train-old')
    before = {p.name for p in (small / 'copy/stages').iterdir()}
    assert main(['prune', '--runs', str(small / 'copy')]) == 0 and 'train-old' in capsys.readouterr().out
    assert before == {p.name for p in (small / 'copy/stages').iterdir()}
    assert main(['prune', '--yes', '--runs', str(small / 'copy')]) == 0
    left = {p.name for p in (small / 'copy/stages').iterdir()}
    assert 'train-old' not in left and {p.name for p in (small / 'copy/stages').iterdir()} >= {v['folder'] for f in (small / 'copy').glob('*/run.json') for v in json.loads(f.read_text())['stages'].values()}
    assert any(n.startswith('maps-') for n in left)


# -- tables, bases, and networks of affinities

def test_a_recipe_stands_on_its_base_and_a_table_has_rows(tmp_path, monkeypatch):
    from wsss_nb.engine.recipes import rows_of
    (tmp_path / 'ground.yaml').write_text('about: ground\ntrain: {epochs: 7, lr: 0.1}\nmasks: {threshold: 0.3}\n')
    (tmp_path / 'table.yaml').write_text(f"base: {tmp_path / 'ground.yaml'}\nabout: table\ntrain: {{epochs: 9}}\nrows:\n  a: {{}}\n  b c: {{masks: {{refine: [crf]}}, train: {{seed: 2}}}}\n")
    recipe = read_recipe(str(tmp_path / 'table.yaml'), ['train.lr=0.2'])
    rows = rows_of(recipe)
    assert list(rows) == ['a', 'b_c'] and rows['a']['train'] == dict(epochs=9, lr=.2) and rows['b_c']['train'] == dict(epochs=9, lr=.2, seed=2)
    assert rows['b_c']['masks'] == dict(threshold=.3, refine=['crf']) and rows['b_c']['about'] == 'table: b c' and rows_of(rows['a']) == {}
    (tmp_path / 'loop.yaml').write_text('base: loop\n')
    with pytest.raises(UserError, match='base: expected the name of another recipe'): read_recipe(str(tmp_path / 'loop.yaml'))
    with pytest.raises(UserError, match='recipe, rows: expected a name without separators'): rows_of(dict(rows={'a/b': {}}))
    with pytest.raises(UserError, match='and no dot in the name'): rows_of(dict(rows={'a.b': {}}))
    with pytest.raises(UserError, match=r"masks.reading of cam: .*'knd'.*Did you mean 'kind'"): stage_parameters(dict(masks=dict(reading=dict(knd='cam'))))


def test_affinity_networks_are_trained_only_where_a_refinement_walks_with_them():
    assert list(stage_parameters(dict(masks=dict(refine=['psa', 'crf'])))) == ['train', 'psa', 'masks', 'segment', 'evaluate']
    assert list(stage_parameters(dict(stages=['train', 'masks'], masks=dict(refine=['pamr', 'irn'])))) == ['train', 'irn', 'masks']
    assert list(stage_parameters(dict(stages=['train', 'masks']))) == ['train', 'masks']


def test_walks_are_stages_and_steps_of_a_table(small, capsys):
    """PSA and IRN from a recipe: trained once, their walks kept apart from what follows, masks of every image"""
    (small / 'walks.yaml').write_text('stages: [train, masks, evaluate]\nevaluate: {splits: [val], sweep: false}\nmasks: {splits: [val]}\n'
                                      'rows:\n  psa: {masks: {refine: [psa]}}\n  chain: {masks: {refine: [pamr, psa, crf]}}\n  irn: {masks: {refine: [irn, crf]}}\n')
    options = [o for o in SMALL if not o.startswith('segment')] + ['psa.limit=4', 'irn.limit=4', 'psa.epochs=1', 'irn.epochs=1', 'psa.scales=[1.0]', 'irn.scales=[1.0]', 'psa.batch_size=4', 'irn.batch_size=4', 'masks.psa_log2_steps=3', 'masks.irn_log2_steps=3', 'masks.psa_border=true']
    with inside(): assert main(['run', str(small / 'walks.yaml'), '--runs', str(small / 'runs'), *[x for o in options for x in ('-p', o)]]) == 0
    out = capsys.readouterr().out
    assert out.count('train     kept') == 3 and 'masks/val' in out  # the localiser is that of the run `small`
    for row, steps in (('psa', ['train', 'psa', 'masks', 'evaluate']), ('chain', ['train', 'psa', 'masks', 'evaluate']), ('irn', ['train', 'irn', 'masks', 'evaluate'])):
        run = json.loads((small / f'runs/walks.{row}/run.json').read_text())
        assert run['state'] == 'done' and list(run['stages']) == steps
        masks = small / 'runs/stages' / run['stages']['masks']['folder'] / 'val'
        assert len(list(masks.glob('*.png'))) == 12
    stages = [p.name for p in (small / 'runs/stages').iterdir()]
    assert sum(n.startswith('psa-') and (small / 'runs/stages' / n / 'stage.json').exists() for n in stages) == 1 and sum(n.startswith('refined-') for n in stages) == 1
    assert 'walks' in [p.name for p in (small / 'runs').iterdir()] and (small / 'runs/walks/report.html').exists()
    assert main(['prune', '--runs', str(small / 'runs')]) == 0
    assert not any(n in capsys.readouterr().out for n in stages if n.startswith(('psa-', 'irn-', 'refined-')))  # a run stands on its parts
