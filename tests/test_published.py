"""Published runs: nothing of a machine in them, the README's tables are theirs, and they can be made again."""
import base64
import hashlib
import io
import json
import platform
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from inside import inside
from wsss_nb import published as P
from wsss_nb import readme as M
from wsss_nb import verify as R
from wsss_nb.cli import main
from wsss_nb.core import UserError
from wsss_nb.tables import known

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'runs/published'
RUNS = sorted(f.parent for f in FOLDER.glob('*/run.json'))
GRIDS = sorted(FOLDER.glob('*/grid.json'))
FILES = sorted(p for p in FOLDER.rglob('*') if p.is_file())
read = lambda path: json.loads(path.read_text(encoding='utf-8'))


# -- what is published

def texts(x, key=''):
    "All texts in nested dicts and lists, pictures left out"
    if isinstance(x, dict): return [t for k, v in x.items() if k != 'image/png' for t in [k, *texts(v)]]
    if isinstance(x, list): return [''.join(x)] if x and all(isinstance(v, str) and v.endswith('\n') for v in x[:-1]) and isinstance(x[-1], str) else [t for v in x for t in texts(v)]
    return [x] if isinstance(x, str) else []


# written without the module's own patterns: folders of machines, homes, drives, addresses, and anything that begins like a path
TRACES = re.compile(r'/(home|Users|root|tmp|var|mnt|opt|usr|srv|scratch|work|media|Volumes|private)\b|(?:^|[\s"\'(=,])(~|\.\.)?/\w|[A-Z]:\\|\b\d{1,3}(\.\d{1,3}){3}\b|\.local\b|@[\w-]+\.\w')


@pytest.mark.parametrize('path', [p for p in FILES if p.suffix != '.yaml'], ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_nothing_in_it_names_a_machine_or_somebody(path):
    for text in texts(read(path)) if path.suffix != '.md' else [path.read_text()]:
        found = TRACES.search(text)
        assert not found, (found[0], text[max(0, found.start() - 40):][:120])
        assert len(platform.node()) < 4 or platform.node() == 'localhost' or not re.search(rf'\b{re.escape(platform.node())}\b', text)


def test_what_lies_there_is_what_should():
    assert len(RUNS) > 40 and {p.name for p in FILES if p.parent == FOLDER} == {'tables.yaml'}
    for folder in RUNS:
        run, names = read(folder / 'run.json'), {p.name for p in folder.iterdir()}
        assert run['name'] == folder.name and run['state'] == 'done' and run['versions']['torch'] and read(folder / 'metrics.json')['numbers']
        ours = {s['parameters']['data_name'] for s in run['stages'].values()} == {'synthetic'}
        assert names == {'run.json', 'metrics.json'} | ({f'{s}.ipynb' for s in run['stages']} if ours else set()), folder.name  # of photographs no notebook, no picture
        for s in run['stages'].values():
            weights = s['parameters'].get('weights') or ''
            assert '.' not in weights or re.fullmatch('[0-9a-f]{64}', run['files'][weights])
    for folder in (f.parent for f in GRIDS): assert {p.name for p in folder.iterdir()} == {'grid.json', 'grid.md'}


def test_it_is_small_and_the_notebooks_open():
    assert sum(p.stat().st_size for p in FILES) < 5_000_000
    for path in (p for p in FILES if p.suffix == '.ipynb'):
        assert path.stat().st_size < 200_000
        nb = nbformat.read(path, 4)
        nbformat.validate(nb)
        assert set(nb.metadata) == {'kernelspec'} and all(set(c.metadata) <= {'tags'} for c in nb.cells)
    for name in ('train', 'masks'): assert any('image/png' in o.get('data', {}) for c in nbformat.read(FOLDER / f'cam_synthetic/{name}.ipynb', 4).cells for o in c.get('outputs', []))


# -- the README's tables

def tables_of(text): return {m[1]: m[2] for m in re.finditer(r'<!-- table: (\w+) -->\n(.*?)\n<!-- /table -->', text, re.S)}


def test_the_readme_and_its_notebook_show_the_published_numbers(capsys):
    assert main(['published']) == 0 and 'out of step' not in capsys.readouterr().out
    readme, index = ((ROOT / 'README.md').read_text(), ''.join(read(ROOT / 'nbs/index.ipynb')['cells'][0]['source']))
    assert tables_of(readme) == tables_of(index) and readme.strip() == index.strip().replace('](pictures/', '](nbs/pictures/')
    assert all((ROOT / p).is_file() for p in re.findall(r'!\[.*?\]\((.*?)\)', readme)) and '](nbs/pictures/' in readme


def of_grid(made):
    "What a grid's tables may say, counted in another way: means and half ranges over the seeds, gains over no refiner and their means over the localisers"
    cells = {(c['segmenter'], c['localiser'], c['refiner'], c['seed']): c['miou'] for c in made['cells'] if c['state'] == 'done'}
    over_seeds = {k: [x for (*place, _), x in cells.items() if tuple(place) == k] for k in {k[:3] for k in cells}}
    out = [f(v) for v in over_seeds.values() for f in (np.mean, lambda v: np.ptp(v) / 2)]
    for s, r in {(k[0], k[2]) for k in cells}:
        gains = {l: [x - cells[s, l, 'none', n] for (a, b, c, n), x in cells.items() if (a, b, c) == (s, l, r) and (s, l, 'none', n) in cells] for l in made['localisers']}
        out.append(abs(np.mean([np.mean(g) for g in gains.values() if g] or [0])))
    return out


def test_a_grid_has_the_numbers_of_the_runs_that_are_published_alone():
    cells = {c['run']: c['number'] for c in read(FOLDER / 'grid-synthetic/grid.json')['cells'] if c['number']}
    for localiser in ('cam', 'icd', 'ecsnet', 'sipe', 'ccmr'):
        alone = next(n for n in read(FOLDER / f'{localiser}_synthetic/metrics.json')['numbers'] if (n['what'], n['split']) == ('masks', 'val'))
        assert cells[f'grid-synthetic.{localiser}.none.none.0']['iou'] == alone['iou']
    for path in GRIDS:
        made = read(path)
        for c in made['cells']:
            n = c['number']
            assert (c['state'] == 'done') == bool(n) == bool(c['stages']) and (not n or (n['seed'], n['miou'], n['oracle'], n['use_image_labels']) == (c['seed'], c['miou'], False, n['what'] == 'masks'))
        assert made['times']['cells'] == sum(c['state'] == 'done' for c in made['cells']) and all(re.search(r'\([0-9a-f]{7}\)$', x) for x in made['code'])


def test_every_table_of_results_is_made_and_every_number_is_somebodys():
    text = (ROOT / 'README.md').read_text().split('\n## Results')[1].split('\n## ')[0]
    left = re.sub(r'<!-- table.*?<!-- /table -->', '', text, flags=re.S)
    assert not re.search(r'(?m)^\|', left), 'a table without its comments'
    t = M.Tables()
    assert list(tables_of(text)) == list(t.says['tables'])
    ours = [n for f in RUNS for n in [*R.leaves(read(f / 'metrics.json')).values()] if isinstance(n, float)] + [n for f in GRIDS for n in of_grid(read(f))]
    papers = [x / 100 for paper in known('paper_numbers').values() for row in paper['rows'].values() for x in (row if isinstance(row, list) else [row])]
    numbers = re.findall(r'(?<![\d.])\.\d{3}\b', ''.join(tables_of(text).values()))
    assert len(numbers) > 100
    for x in numbers: assert min(abs(float(x) - n) for n in ours + papers) <= .0005 + 1e-12, x


@pytest.mark.parametrize('run, what, row, column', [
    ('sipe_photos.SIPE', ('masks', 'val'), 'SIPE', 'here'), ('icd_photos.top-down', ('masks', 'val'), '+ top-down', 'seeds, bg+6'), ('refiners_photos.IRN', ('masks', 'val'), 'IRN walk', 'mIoU, bg+6'),
    ('cam_synthetic', ('network', 'val'), '`cam_synthetic`', 'network, val'), ('ccmr_photos.PAMR_CRF', ('masks', 'val'), 'SWP + PAMR', 'here'), ('truth_photos', ('network', 'val'), 'ground truth (`truth_photos`), the upper bound', 'the network, told nothing'),
])
def test_a_cell_has_the_number_of_its_run(run, what, row, column):
    "Read by another way: the Markdown line by line, metrics.json by hand"
    for table in tables_of((ROOT / 'README.md').read_text()).values():
        head, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in table.splitlines()]
        cell = {r[0]: dict(zip(head, r)) for r in rows}.get(row, {}).get(column)
        if cell: break
    n = next(n for n in read(FOLDER / run / 'metrics.json')['numbers'] if (n['what'], n['split']) == what)
    assert np.isclose(float(cell), n['miou'], atol=.00051) and cell == f'{n["miou"]:.3f}'[1:]


def test_any_changed_digit_is_noticed():
    t, path = M.Tables(), Path('README.md')
    text, tables, sentences = (ROOT / 'README.md').read_text(), t.tables(), t.sentences()
    assert M.out_of_step({path: text}, tables, sentences) == []
    digits = [m.start() for table in re.finditer(r'<!-- table: \w+ -->\n.*?<!-- /table -->', text, re.S) for m in re.finditer(r'\d', text[table.start():table.end()])]
    shift = lambda i, by: text[:i] + str((int(text[i]) + by) % 10) + text[i + 1:]
    starts = [m.start() for m in re.finditer('<!-- table: ', text)]
    for s, e in zip(starts, [*starts[1:], len(text)]):
        end = text.index('<!-- /table -->', s)
        for i in (i for i in range(s, min(e, end)) if text[i].isdigit()): assert len(M.out_of_step({path: shift(i, 1)}, tables, sentences)) == 1
    assert len(digits) > 300
    for sentence in sentences:
        i = text.index(sentence) + re.search(r'\.\d', sentence).start() + 1
        assert 'this does not stand there' in M.out_of_step({path: shift(i, 1)}, tables, sentences)[0]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A copy of everything that `wsss published` reads and writes"
    (tmp_path / 'nbs').mkdir()
    for name in ('README.md', 'nbs/index.ipynb'): shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(FOLDER, tmp_path / 'runs/published', ignore=shutil.ignore_patterns('*_synthetic*.ipynb', 'train.ipynb', 'masks.ipynb', 'segment.ipynb', 'evaluate.ipynb'))
    for module in (P, M): monkeypatch.setattr(module, 'PACKAGE', tmp_path / 'wsss_nb')
    return tmp_path


def test_the_command_tells_and_mends_what_is_out_of_step(checkout, capsys):
    readme, index, metrics = checkout / 'README.md', checkout / 'nbs/index.ipynb', checkout / 'runs/published/sipe_photos.SIPE/metrics.json'
    as_it_was = readme.read_text(), index.read_text()
    assert main(['published', '--write']) == 0 and (readme.read_text(), index.read_text()) == as_it_was  # nothing to do: nothing is done
    readme.write_text(as_it_was[0].replace('| .642 |', '| .643 |'))
    assert readme.read_text() != as_it_was[0] and main(['published']) == 1 and 'out of step: README.md: table sipe\n' in capsys.readouterr().out
    assert main(['published', '--write']) == 0 and readme.read_text() == as_it_was[0]
    metrics.write_text(metrics.read_text().replace('"miou": 0.642', '"miou": 0.999'))  # another run took its place
    capsys.readouterr()
    assert main(['published']) == 1 and capsys.readouterr().out.count('table sipe\n') == 2
    assert main(['published', '--write']) == 0 and '| SIPE | .999 | .586 |' in readme.read_text() and '| SIPE | .999 | .586 |' in index.read_text()
    shutil.rmtree(metrics.parent)
    assert main(['published']) == 2 and "sipe: SIPE, here: no published run is called 'sipe_photos.SIPE'" in capsys.readouterr().err


@pytest.mark.parametrize('template, label, row, text', [
    ('{score maps/val}', 'CAM', 'sipe_photos.CAM', 'oracle of the published number is True, but the table says False; name another run, or say in the row or the column what it is'),
    ('{masks/val}', 'CAM (oracle)', 'sipe_photos.CAM', 'oracle of the published number is False, but the table says True'),
    ('{masks/val}', 'a row', 'cam_synthetic', 'classes of the published number is bg[+]8, but the table says bg[+]6'),
    ('{masks/val}', 'a row', 'ccmr_photos.plain_without_tags', 'use_image_labels of the published number is False, but the table says True'),
    ('.642', 'a row', 'sipe_photos.SIPE', "try: a row, here: '.642' has a number of its own"),
    ('{masks/val}', 'a row', 'sipe_photos.SIP', "no published run is called 'sipe_photos.SIP'. Did you mean 'sipe_photos.SIPE'.*wsss publish sipe_photos.SIP makes it one"),
    ('{network/val}', 'a row', 'sipe_photos.SIPE', 'sipe_photos.SIPE has no network/val'),
    ('{paper sipe:4 CAMs}', 'a row', {}, "paper_numbers.yaml has no row 'CAMs' in 'sipe:4'"),
    ('{by hand}', 'a row', {}, '{by hand} is no number of a run or of a paper'),
    ('{masks/val}', 'a row', dict(run='sipe_photos.SIPE', her=''), "try, a row: there is no column 'her'. Did you mean 'here'"),
])
def test_a_number_that_is_not_what_its_place_says_is_refused(template, label, row, text):
    t = M.Tables()
    t.says['tables']['try'] = dict(over=dict(classes='bg+6'), columns={'': None, 'here': template}, rows={label: row})
    with pytest.raises(UserError, match=text) as e: t.table('try')
    assert '\n' not in str(e.value)


def test_a_table_without_a_place_and_a_place_without_a_table_are_told():
    with pytest.raises(UserError, match="table 'b': it is in the README alone"): M.with_tables('<!-- table: b -->\n|x|\n<!-- /table -->', {})
    with pytest.raises(UserError, match="table 'a': it is in tables.yaml alone"): M.with_tables('no place', {'a': '|x|'})
    assert M.with_tables('<!-- table: a -->\n|x|\n<!-- /table -->', {'a': '|y|\n|z|'}) == '<!-- table: a -->\n|y|\n|z|\n<!-- /table -->' == M.with_tables('<!-- table: a -->\n<!-- /table -->', {'a': '|y|\n|z|'})


# -- publishing

@pytest.mark.parametrize('path, name', [('/data/mia/runs/stages/train-0b3aec87aa60', 'train-0b3aec87aa60'), ('~/VOCdevkit/', 'VOCdevkit'), ('C:\\Users\\mia\\my data\\w.pth', 'w.pth'), ('../shared/x y/tags.json', 'tags.json'), ('/home/mia', 'home'),
                                        ('read 3 of /a/b.jpg, D:/x/y.png; then /c', 'read 3 of b.jpg, y.png; then c'), ('masks/val, 3 images/s, </td> https://example.org/a/b', 'masks/val, 3 images/s, </td> https://example.org/a/b'), ('imagenet', 'imagenet')])
def test_of_a_path_its_last_name_stays(path, name):
    assert P.scrubbed(path) == name and P.scrubbed([dict(a=path)]) == [dict(a=name)] and not P.leaks(P.scrubbed(path))


def test_the_name_of_the_machine_goes(monkeypatch):
    monkeypatch.setattr(platform, 'node', lambda: 'node-07')
    assert P.scrubbed('on node-07 (2 GPUs), not on node-071') == 'on host (2 GPUs), not on node-071' and P.leaks(['on node-07']) == ['node-07']


def a_run(folder, state='done', data='voc12', numbers=1, **more):
    "A record as a run leaves it, on photographs"
    p = dict(data_name=data, data_root=f'{folder}/VOCdevkit', runs=str(folder), weights=f'{folder}/w.pth', text='')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'run.json').write_text(json.dumps(dict(name=folder.name, state=state, recipe=dict(data=dict(root=f'{folder}/VOCdevkit'), weights=f'{folder}/w.pth', **more), code='0.1.0', stages=dict(train=dict(parameters=p, folder='train-1', launch='srun -w node3 x')))))
    (folder / 'metrics.json').write_text(json.dumps(dict(numbers=[dict(what='masks', split='val', miou=.5)] * numbers)))
    return folder


def test_a_run_on_photographs_leaves_its_record_and_no_picture(tmp_path, capsys):
    run = a_run(tmp_path / 'runs/mine')
    (run / 'w.pth').write_bytes(b'weights')
    (run / 'train.ipynb').write_text('{}')
    assert main(['publish', 'mine', '--runs', str(tmp_path / 'runs'), '--to', str(tmp_path / 'out'), '--as', 'its_name']) == 0
    assert capsys.readouterr().out.startswith('its_name: metrics.json, run.json; no notebooks, no pictures;')
    out = tmp_path / 'out/its_name'
    assert sorted(p.name for p in out.iterdir()) == ['metrics.json', 'run.json'] and (out / 'metrics.json').read_text().strip() and read(out / 'metrics.json') == read(run / 'metrics.json')
    made = read(out / 'run.json')
    assert made['name'] == 'its_name' and made['recipe'] == dict(data=dict(root='VOCdevkit'), weights='w.pth') and made['files'] == {'w.pth': hashlib.sha256(b'weights').hexdigest()}
    assert made['stages']['train'] == dict(parameters=dict(data_name='voc12', data_root='VOCdevkit', runs='runs', weights='w.pth', text=''), folder='train-1', launch='srun')


@pytest.mark.parametrize('run, args, text', [
    (dict(state='stopped in masks'), [], 'publish: mine: stopped in masks; only a run that is done can be published: wsss resume mine.'),
    (dict(numbers=0), [], 'publish: mine has no numbers'),
    (dict(), ['--as', 'a/b'], "publish: 'a/b' is to be the name of a folder"),
    (dict(), ['other', '--as', 'b'], 'publish --as: it names one run, but 2 were given'),
])
def test_what_is_not_fit_to_be_published_is_refused(tmp_path, capsys, run, args, text):
    a_run(tmp_path / 'runs/mine', **run)
    assert main(['publish', 'mine', *args, '--runs', str(tmp_path / 'runs'), '--to', str(tmp_path / 'out')]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count('\n') == 1 and not list(tmp_path.glob('out/*/*'))


def test_what_still_names_the_machine_is_refused(tmp_path, monkeypatch):
    a_run(tmp_path / 'runs/mine', about='weights of /data/mia/w.pth')
    monkeypatch.setattr(P, 'scrubbed', lambda x: x)
    with pytest.raises(UserError, match='publish: mine/run.json would still hold .*which belongs to this machine'): P.publish('mine', tmp_path / 'runs', folder=tmp_path / 'out')
    assert not list(tmp_path.glob('out/*/*'))
    for file in ('grid.md', 'run.json'):  # that a text speaks of a notebook's format makes it none
        with pytest.raises(UserError, match=f'{file} would still hold'): P.refuse_leaks(file, '"nbformat": 4, "cells": [], /data/mia/w.pth')
    P.refuse_leaks('train.ipynb', dict(nbformat=4, cells=[dict(source='/data/mia/w.pth', outputs=[])]))  # its code is the package's


def test_a_picture_gets_small_or_is_left_out():
    def png(image):
        out = io.BytesIO()
        Image.fromarray(image).save(out, 'png')
        return base64.b64encode(out.getvalue()).decode()
    flat, noise = np.full((60, 90, 3), [200, 30, 30], np.uint8), np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    same = np.array(Image.open(io.BytesIO(base64.b64decode(P.picture(png(flat))['image/png']))).convert('RGB'))
    assert (same == flat).all()
    small = P.picture(png(noise), 50_000)['image/png']
    w, h = Image.open(io.BytesIO(base64.b64decode(small))).size
    assert len(small) <= 50_000 and (w, h) in [(280, 210), (200, 150), (140, 105)]
    assert P.picture(png(noise), 1000) == {'text/plain': 'picture of 400 x 300 left out'}


def test_a_run_on_the_embedded_set_is_published_with_its_notebooks_and_made_again_from_there(tmp_path, capsys):
    (tmp_path / 'small.yaml').write_text('stages: [train, masks, evaluate]\n')
    options = ['limit=12', 'train.epochs=2', 'train.batch_size=4', 'masks.scales=[1.0]', 'workers=1']
    R.run_recipe(str(tmp_path / 'small.yaml'), options, runs=tmp_path / 'runs')
    assert main(['publish', 'small', '--runs', str(tmp_path / 'runs'), '--to', str(tmp_path / 'out')]) == 0 and 'run.json, 3 executed notebooks;' in capsys.readouterr().out
    shutil.rmtree(tmp_path / 'runs')
    out = tmp_path / 'out/small'
    for f in out.iterdir(): assert str(tmp_path) not in f.read_text() and not any(TRACES.search(t) for t in texts(read(f)))
    for stage in ('train', 'masks', 'evaluate'): nbformat.validate(nbformat.read(out / f'{stage}.ipynb', 4))
    cells = read(out / 'masks.ipynb')['cells']
    injected = next(''.join(c['source']) for c in cells if 'injected-parameters' in c['metadata'].get('tags', []))
    assert re.search(r'(?m)^localiser = "train-[0-9a-f]{12}"$', injected) and 'runs = "runs"' in injected
    with inside() as made: assert main(['verify', str(out), '--runs', str(tmp_path / 'again')]) == 0
    assert [stage for stage, _ in made] == ['train', 'masks', 'evaluate'] and 'each the same to the last bit' in capsys.readouterr().out


def test_verify_refuses_other_weights(tmp_path, capsys):
    (tmp_path / 'w.npz').write_bytes(b'other')
    assert main(['verify', str(FOLDER / 'sipe_photos.SIPE'), '--runs', str(tmp_path / 'runs'), '-p', f'weights={tmp_path}/w.npz']) == 2
    err, name = capsys.readouterr().err, next(iter(read(FOLDER / 'sipe_photos.SIPE/run.json')['files']))
    assert f'w.npz: its SHA-256 is not that of {name}, with which the run began' in err and err.count('\n') == 1 and not (tmp_path / 'runs').exists()
    R.same_weights(tmp_path / 'w.npz', dict(w=hashlib.sha256(b'other').hexdigest()))
    R.same_weights(tmp_path / 'w.npz', dict(gone=''))


def test_verify_is_told_where_data_and_weights_lie_here(tmp_path, monkeypatch):
    asked = {}
    def run_recipe(name, runs, recipe, **more):
        asked.update(recipe)
        runs.mkdir(parents=True)
        return FOLDER / 'sipe_photos.SIPE'
    monkeypatch.setattr(R, 'run_recipe', run_recipe)
    assert main(['verify', str(FOLDER / 'sipe_photos.SIPE'), '--runs', str(tmp_path), '-p', 'data.root=here/VOCdevkit', '-p', 'weights=w.npz']) == 0
    assert asked == {**(as_published := read(FOLDER / 'sipe_photos.SIPE/run.json')['recipe']), 'data': dict(as_published['data'], root='here/VOCdevkit'), 'weights': 'w.npz'}


@pytest.mark.slow
def test_a_published_run_can_be_made_again(tmp_path, capsys):
    assert main(['verify', str(FOLDER / 'cam_synthetic'), '--runs', str(tmp_path)]) == 0, capsys.readouterr().out
