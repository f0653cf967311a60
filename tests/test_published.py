"""Published runs: nothing of a machine in them, the tables of the first page and of the results are theirs, and they can be made again."""
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
from wsss_nb.results import published as P
from wsss_nb.results import quoted as Q
from wsss_nb.results import readme as M
from wsss_nb.engine import verify as R
from wsss_nb.engine.parameters import parameters_of
from wsss_nb.engine.run import run_recipe
from wsss_nb.engine.stage import INPUTS
from wsss_nb.cli import main
from wsss_nb.base.core import UserError
from wsss_nb.results.table_recipes import known

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
    shown = {read(f / 'run.json')['stages'][p.stem]['folder'] for f in RUNS for p in f.glob('*.ipynb')}
    for folder in RUNS:
        run, names = read(folder / 'run.json'), {p.name for p in folder.iterdir()}
        assert run['name'] == folder.name and run['state'] == 'done' and run['versions']['torch'] and read(folder / 'metrics.json')['numbers']
        ours = {s['parameters']['data_name'] for s in run['stages'].values()} == {'synthetic'}
        pages, made = names - {'run.json', 'metrics.json', 'images.json'}, {f'{s}.ipynb' for s in run['stages']}
        assert names >= {'run.json', 'metrics.json'}
        if re.fullmatch(r'(icd|ecsnet|sipe|svm)_(\d|fig8)-synthetic\.\w+|sipe_synthetic_table\.\w+', folder.name): assert pages <= {'evaluate.ipynb'}, folder.name  # rows of the papers' tables
        elif re.search(r'_synthetic_seed_\d+$', folder.name): assert not pages, folder.name  # of a spread the numbers alone
        elif not ours: assert not pages, folder.name  # of photographs no notebook, no picture
        else:  # a stage that runs share is shown once
            assert pages <= made and all(run['stages'][p.removesuffix('.ipynb')]['folder'] in shown for p in made - pages), folder.name
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


# -- the tables of the pages

PAGES = [ROOT / 'nbs/index.ipynb', *sorted(p for p in (ROOT / 'nbs/results').glob('*.ipynb') if '#| default_exp' not in p.read_text())]

def tables_of(text): return {m[1]: m[2] for m in re.finditer(r'<!-- table: (\w+) -->\n(.*?)\n<!-- /table -->', text, re.S)}


def prose(path): return '\n\n'.join(''.join(c['source']) for c in read(path)['cells'] if c['cell_type'] == 'markdown')


def where_links_lead(text, folder):
    "The files that a text in this folder links to"
    found = re.findall(r'\]\(([^)]*)\)', re.sub(r'```.*?```', '', text, flags=re.S))
    return [(folder / link.partition('#')[0]).resolve() for link in found if not re.match(r'https?:|#', link)]


def test_the_pages_show_the_published_numbers(capsys):
    assert main(['published']) == 0 and 'out of step' not in capsys.readouterr().out


def test_the_readme_is_the_text_of_the_first_page():
    readme, index = (ROOT / 'README.md').read_text(), prose(ROOT / 'nbs/index.ipynb')
    bare = lambda text: re.sub(r'\]\([^)]*\)', ']()', text).strip()
    assert bare(readme) == bare(index) and where_links_lead(readme, ROOT) == where_links_lead(index, ROOT / 'nbs')
    assert re.findall(r'```python.*?```', readme, re.S) == re.findall(r'```python.*?```', index, re.S)


def test_the_first_page_can_be_read_at_once():
    readme, cells = (ROOT / 'README.md').read_text(), read(ROOT / 'nbs/index.ipynb')['cells']
    code = [c for c in cells if c['cell_type'] == 'code']
    assert readme.count('\n') <= 120 and len(readme.encode()) <= 9000
    assert 8 <= len(cells) <= 10 and len(code) >= 3 and all(c['outputs'] for c in code)


def test_what_the_first_page_says_does_not_work_does_not():
    "Counted from the cells of the published grids: masks alone, means over the seeds"
    def masks(grid):
        cells = [c for c in read(FOLDER / grid / 'grid.json')['cells'] if (c['refiner'], c['segmenter']) == ('none', 'none')]
        return {l: np.mean([c['miou'] for c in cells if c['localiser'] == l]) for l in {c['localiser'] for c in cells}}
    drawings, photographs, text = masks('grid-synthetic'), masks('grid-photos'), prose(ROOT / 'nbs/index.ipynb')
    assert "ECS-Net stays below the CAM on drawings and photographs; ICD's masks, SEAM and CCMR do not beat it in the grid on photographs" in text
    assert drawings['ecsnet'] < drawings['cam'] and all(photographs[l] < photographs['cam'] for l in ('ecsnet', 'icd', 'seam', 'ccmr'))
    assert 'All published numbers are from CPUs' in text and all(s['device'].startswith('cpu') for f in RUNS for s in read(f / 'run.json')['stages'].values())


@pytest.mark.parametrize('path', [ROOT / 'README.md', ROOT / 'nbs/glossary.ipynb', *PAGES], ids=lambda p: p.name)
def test_every_link_leads_somewhere(path):
    links = where_links_lead(path.read_text() if path.suffix == '.md' else prose(path), path.parent)
    assert len(links) > (25 if path.name in ('README.md', 'index.ipynb') else 0) or path.name == 'glossary.ipynb'
    for file in links: assert file.is_file() and ROOT in file.parents, file


def of_grid(made):
    "What a grid's tables may say, counted in another way: means and half ranges over the seeds, gains over no refiner and their means over the localisers"
    cells = {(c['segmenter'], c['localiser'], c['refiner'], c['seed']): c['miou'] for c in made['cells'] if c['state'] == 'done'}
    over_seeds = {k: [x for (*place, _), x in cells.items() if tuple(place) == k] for k in {k[:3] for k in cells}}
    out = [f(v) for v in over_seeds.values() for f in (np.mean, lambda v: np.ptp(v) / 2)]
    for s, r in {(k[0], k[2]) for k in cells}:
        gains = {l: [x - cells[s, l, 'none', n] for (a, b, c, n), x in cells.items() if (a, b, c) == (s, l, r) and (s, l, 'none', n) in cells] for l in made['localisers']}
        out.append(abs(np.mean([np.mean(g) for g in gains.values() if g] or [0])))
    return out


def of_seeds(*runs):
    "The means, and half of what lies between them, of all numbers that some published runs share"
    first, *others = (R.numbers_in(read(f / 'metrics.json')) for f in runs)
    same = [[x, *(o[k] for o in others)] for k, x in first.items() if isinstance(x, float) and all(isinstance(o.get(k), float) for o in others)]
    return [x for values in same for x in (np.mean(values), np.ptp(values) / 2)]


def as_said_today(stage, made):
    "The parameters of a stage on a CPU: what came later than the run at its default, and channels_last in today's words"
    p = {k: v for k, (v, _) in parameters_of(stage).items()} | made['parameters']
    if 'channels_last' in p: p['channels_last'] = p['channels_last'] in (True, 'true')
    assert made['device'].startswith('cpu')  # where auto is no channels_last
    return p


def test_two_seeds_of_a_run_differ_in_nothing_else():
    pairs = [(f, f.parent / f'{f.name}_seed_1') for f in RUNS if '-synthetic.' in f.name and (f.parent / f'{f.name}_seed_1').is_dir()]
    for one, two in pairs:
        a, b = (read(f / 'run.json') for f in (one, two))
        settings = lambda r, seed: {s: {k: v for k, v in as_said_today(s, p).items() if k not in ('seed', 'runs', 'workers') and k not in INPUTS[s]} for s, p in r['stages'].items() if p['parameters'].get('seed', seed) == seed}
        assert settings(a, 0) == settings(b, 1) and len(settings(a, 0)) == len(a['stages']) and a['versions'] == b['versions'], one.name


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
    results = {p: prose(p) for p in PAGES[1:]}
    for text in results.values(): assert not re.search(r'(?m)^\|', re.sub(r'<!-- table.*?<!-- /table -->', '', text, flags=re.S)), 'a table without its comments'
    t, text = M.Tables(), '\n'.join([prose(PAGES[0]), *results.values()])
    assert sorted(re.findall(r'<!-- table: (\w+) -->', text)) == sorted(t.says['tables'])  # each in one place
    ours = [n for f in RUNS for n in [*R.numbers_in(read(f / 'metrics.json')).values()] if isinstance(n, float)] + [n for f in GRIDS for n in of_grid(read(f))]
    seeds = {f: [f, *(p for i in range(1, 9) if (p := f.parent / f'{f.name}_seed_{i}').is_dir())] for f in RUNS}
    ours += [x for places in seeds.values() for n in range(2, len(places) + 1) for x in of_seeds(*places[:n])]
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
    for table in tables_of('\n'.join(map(prose, PAGES))).values():
        head, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in table.splitlines()]
        cell = {r[0]: dict(zip(head, r)) for r in rows}.get(row, {}).get(column)
        if cell: break
    n = next(n for n in read(FOLDER / run / 'metrics.json')['numbers'] if (n['what'], n['split']) == what)
    assert np.isclose(float(cell), n['miou'], atol=.00051) and cell == f'{n["miou"]:.3f}'[1:]


def test_any_changed_digit_is_noticed():
    t, path = M.Tables(), Path('results.ipynb')
    text, tables, sentences = '\n'.join(map(prose, PAGES)), t.tables(), t.sentences()
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
        assert 'on no page stands: ' + sentence[:20] in M.out_of_step({path: shift(i, 1)}, tables, sentences)[0]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A copy of everything that `wsss published` reads and writes"
    (tmp_path / 'nbs/results').mkdir(parents=True)
    for path in (ROOT / 'README.md', *PAGES): shutil.copy(path, tmp_path / path.relative_to(ROOT))
    shutil.copytree(FOLDER, tmp_path / 'runs/published', ignore=shutil.ignore_patterns('*_synthetic*.ipynb', 'train.ipynb', 'masks.ipynb', 'segment.ipynb', 'evaluate.ipynb'))
    for module in (P, M): monkeypatch.setattr(module, 'PACKAGE', tmp_path / 'wsss_nb')
    return tmp_path


def test_the_command_tells_and_mends_what_is_out_of_step(checkout, capsys):
    page, metrics = checkout / 'nbs/results/photographs.ipynb', checkout / 'runs/published/sipe_photos.SIPE/metrics.json'
    files = [checkout / p.relative_to(ROOT) for p in (ROOT / 'README.md', *PAGES)]
    as_it_was = {p: p.read_text() for p in files}
    assert main(['published', '--write']) == 0 and {p: p.read_text() for p in files} == as_it_was  # nothing to do: nothing is done
    page.write_text(as_it_was[page].replace('| .642 |', '| .643 |'))
    assert page.read_text() != as_it_was[page] and main(['published']) == 1 and 'out of step: photographs.ipynb: table sipe\n' in capsys.readouterr().out
    assert main(['published', '--write']) == 0 and page.read_text() == as_it_was[page]
    seed = checkout / 'runs/published/icd_synthetic_seed_4/metrics.json'
    for file, was in ((metrics, '0.642'), (seed, '0.439')): file.write_text(file.read_text().replace(f'"miou": {was}', '"miou": 0.999'))  # other runs took their place
    capsys.readouterr()
    out = ['index.ipynb: table methods', 'drawings.ipynb: table embedded_seeds', 'photographs.ipynb: table gains', 'photographs.ipynb: table sipe', 'README.md: table methods']
    assert main(['published']) == 1 and re.findall('out of step: (.*)', capsys.readouterr().out) == out
    both = [100 * x for x in (miou('sipe_photos.SIPE') + .357 - miou('sipe_photos.CAM'), miou('sipe_photos.SIPE_seed_2') - miou('sipe_photos.CAM_seed_2'))]
    gain = f'| SIPE | CAM | +8.5 | +{np.mean(both):.1f} ± {np.ptp(both) / 2:.1f} |'
    others = [miou(f'icd_synthetic{s}') for s in ('', '_seed_1', '_seed_2', '_seed_3')]
    mean, half = ((sum(others) + miou('icd_synthetic_seed_4') + .56) / 5, (miou('icd_synthetic_seed_4') + .56 - min(others)) / 2)
    assert main(['published', '--write']) == 0 and '| SIPE | .999 | .586 |' in page.read_text() and gain in page.read_text()
    assert all('| CAM, pixel mAP | +10.7 | ' + f'{mean:.3f} ± {half:.3f} |'.replace('0.', '.') in (checkout / p).read_text() for p in ('README.md', 'nbs/index.ipynb'))
    shutil.rmtree(metrics.parent)
    assert main(['published']) == 2 and "no published run is called 'sipe_photos.SIPE'" in capsys.readouterr().err


def test_the_readme_is_made_from_the_first_page(checkout, capsys):
    readme, index = checkout / 'README.md', checkout / 'nbs/index.ipynb'
    nb = read(index)
    nb['cells'][-1]['source'].append('\n\nA [last](papers/sipe.ipynb) word.')
    index.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')
    assert main(['published']) == 1 and 'out of step: README.md: it is not what nbs/index.ipynb makes' in capsys.readouterr().out
    assert main(['published', '--write']) == 0 and readme.read_text().endswith('\n\nA [last](nbs/papers/sipe.ipynb) word.\n')


def test_links_lead_on_from_the_root():
    text = '[a](papers/a.ipynb#b) ![c](pictures/c.png) [d](../docs/d.md) [e](../LICENSE) [f](#f) [g](https://h.org/i) [j](mailto:k)\n```\n[l](m)\n```\n[n](o)'
    assert M.from_root(text) == '[a](nbs/papers/a.ipynb#b) ![c](nbs/pictures/c.png) [d](docs/d.md) [e](LICENSE) [f](#f) [g](https://h.org/i) [j](mailto:k)\n```\n[l](m)\n```\n[n](nbs/o)'


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
    with pytest.raises(UserError, match="table 'b': a page has a place for it, but tables.yaml has no such table"): M.with_tables('<!-- table: b -->\n|x|\n<!-- /table -->', {})
    with pytest.raises(UserError, match="table 'a': it is in tables.yaml, but no page has a place for it"): M.all_placed(['no place', '<!-- table: c -->\n<!-- /table -->'], {'a': '|x|', 'c': '|y|'})
    assert M.with_tables('<!-- table: a -->\n|x|\n<!-- /table -->', {'a': '|y|\n|z|'}) == '<!-- table: a -->\n|y|\n|z|\n<!-- /table -->' == M.with_tables('<!-- table: a -->\n<!-- /table -->', {'a': '|y|\n|z|'})


# -- gains and spreads

def miou(run, what='masks'): return next(n['miou'] for n in read(FOLDER / run / 'metrics.json')['numbers'] if (n['what'], n['split']) == (what, 'val'))


def test_the_gains_of_the_methods_counted_by_hand():
    "Paper and ours, from the files and not through Tables"
    def cells_of(path, name):
        head, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in tables_of(prose(path))[name].splitlines()]
        return {re.match(r'\[?([^\]]*)', r[0])[1]: dict(zip(head, r)) for r in rows}
    first, cells = cells_of(PAGES[0], 'methods'), cells_of(ROOT / 'nbs/results/photographs.ipynb', 'gains')
    larger = {k: cells.pop(f'{k}, views of 449') for k in ('ECS-Net', 'SEAM')} | {'ECS-Net at stride 8': cells.pop('ECS-Net, views of 449 at stride 8'), 'ICD': cells.pop('ICD, taught where the CAM is cut')}
    assert {k: c['paper'] for k, c in larger.items()} == {k: cells[k.partition(' at ')[0]]['paper'] for k in larger}
    assert {k: c['paper'] for k, c in first.items()} == {'CAM': '', **{k: c['paper'] for k, c in cells.items()}} == {'CAM': '', 'SIPE': '+8.5', 'SVM': '+2.8', 'ICD': '+10.7', 'ECS-Net': '+9.2', 'SEAM': '+8.0', 'CCMR + SWP': '+2.4'}
    signed = lambda x: float(x.replace('−', '-'))
    for cell, run, other in ((cells['ECS-Net'], 'ecsnet_4-photos.other_improvements', 'ecsnet_4-photos.baseline'), (cells['SEAM'], 'ecsnet_5-photos.seam', 'ecsnet_4-photos.baseline'),
                             (larger['ECS-Net at stride 8'], 'ecsnet_photos_stride_8.ECS-Net', 'ecsnet_photos_stride_8.CAM')):
        assert abs(signed(cell['gain here']) - 100 * (miou(run) - miou(other))) <= .0501
    ranks = lambda run: read(FOLDER / run / 'metrics.json')['pixel_map']['val']['mean']
    gains = lambda run, other, seeds, of=miou: [100 * (of(f'{run}{s}') - of(f'{other}{s}')) for s in seeds]
    all_of = '_again', '_seed_1', '_seed_2'
    for c, found in ((cells['SIPE'], gains('sipe_photos.SIPE', 'sipe_photos.CAM', ('', '_seed_2'))), (cells['SVM'], gains('sipe_photos.SIPE_SVM', 'sipe_photos.SIPE', ('', '_seed_2'))),
                     (cells['ICD'], gains('icd_photos.top-down', 'icd_photos.CAM', all_of, ranks)), (larger['ICD'], gains('icd_photos.taught_share', 'icd_photos.CAM', all_of, ranks)),
                     *((larger[m], gains(f'ecsnet_photos_449.{m}', 'ecsnet_photos_449.CAM', ('', '_seed_1', '_seed_2'))) for m in ('ECS-Net', 'SEAM')),
                     (cells['CCMR + SWP'], gains('ccmr_photos.CRF', 'ccmr_photos.nGWP_CRF', ('', '_seed_1', '_seed_2')))):
        mid, half = map(signed, c['gain here'].split(' ± '))
        assert abs(mid - np.mean(found)) <= .0501 and abs(half - np.ptp(found) / 2) <= .0501
    drawn = [miou(f'icd_synthetic{seed}') for seed in ('', *(f'_seed_{k}' for k in range(1, 5)))]
    mid, half = (float(x) for x in first['ICD']['drawings'].split(' ± '))
    assert abs(mid - np.mean(drawn)) <= .0005 and abs(half - np.ptp(drawn) / 2) <= .0005


def test_a_paper_row_that_ends_in_threshold_keeps_its_digits():
    filled = lambda text: Q.Tables().filled(text, None, 'try')
    assert filled('{paper sipe:5 semantic, threshold}') == '.560' and filled('{sipe_photos.CAM score maps/val threshold}') == '.26'


@pytest.mark.parametrize('text, error', [
    ('grid-photos.sipe.none.none masks/val minus sipe_photos.CAM masks/val', r'the two sides of `minus` have the seeds \[0, 1\] and \[0\]'),
    ('icd_photos.CAM,icd_photos.CRF masks/val', 'icd_photos.CAM,icd_photos.CRF: two of them have seed 0'),
    ('grid-photos.sipe.no.none masks/val', 'grid-photos.sipe.no.none has no masks/val'),
    ('sipe_photos.SIPE pixel mAP/val', 'sipe_photos.SIPE has no pixel mAP/val'),
    ('grid-photos.sipe.none.none pixel mAP/val', 'grid-photos.sipe.none.none has no pixel mAP/val'),
])
def test_what_has_no_gain_or_spread_is_refused(text, error):
    with pytest.raises(UserError, match=error): Q.Tables().filled(f'{{{text}}}', None, 'try: a row, here')


def test_bars_are_means_with_their_seeds_and_the_papers_numbers():
    ours, paper = dict(a={0: .2, 1: .4}, b={0: .5}), dict(b={None: .6})
    [ax] = Q.seed_bars(ours, paper).axes
    assert [round(b.get_width(), 6) for b in ax.patches] == [.3, .5] and [t.get_text() for t in ax.get_yticklabels()] == ['a', 'b']
    assert [sorted(line.get_xdata()) for line in ax.lines] == [[.2, .4], [.5, .5], [.6, .6]] and [t.get_text() for t in ax.texts] == ['.300', '.500']
    two = Q.seed_bars({'x': ours, 'y': dict(b={0: .1})}).axes[0]
    assert [round(b.get_width(), 6) for b in two.patches] == [.3, .5, .1] and two.patches[1].get_y() < two.patches[2].get_y() < 1.5
    assert Q.label_lines('[SIPE](papers/sipe.ipynb) + `crf`') == 'SIPE + crf' and '\n' in Q.label_lines('word ' * 12)


def test_the_map_of_a_grid_has_its_gains_as_colours_and_its_numbers():
    made = read(FOLDER / 'grid-synthetic/grid.json')
    ax = Q.grid_map(made, 'light').axes[0]
    shown, colours = np.array([t.get_text() for t in ax.texts]).reshape(7, 12), ax.images[0].get_array()
    cells = {(c['localiser'], c['refiner'], c['seed']): c['miou'] for c in made['cells'] if c['segmenter'] == 'light'}
    row, column = list(made['localisers']).index('ccmr'), list(made['refiners']).index('pamr')
    values = [[cells['ccmr', r, s] for s in (0, 1)] for r in ('pamr', 'none')]
    assert shown[row, column] == f'{np.mean(values[0]):.3f}'[1:] and np.isclose(colours[row, column], np.mean(values[0]) - np.mean(values[1]))
    assert (shown == '–').sum() == 6 and np.isnan(np.ma.filled(colours.astype(float), np.nan)[:, 0]).all()


# -- publishing

@pytest.mark.parametrize('path, name', [('/data/mia/runs/stages/train-0b3aec87aa60', 'train-0b3aec87aa60'), ('~/VOCdevkit/', 'VOCdevkit'), ('C:\\Users\\mia\\my data\\w.pth', 'w.pth'), ('../shared/x y/tags.json', 'tags.json'), ('/home/mia', 'home'),
                                        ('read 3 of /a/b.jpg, D:/x/y.png; then /c', 'read 3 of b.jpg, y.png; then c'), ('masks/val, 3 images/s, </td> https://example.org/a/b', 'masks/val, 3 images/s, </td> https://example.org/a/b'), ('imagenet', 'imagenet')])
def test_of_a_path_its_last_name_stays(path, name):
    assert P.scrubbed(path) == name and P.scrubbed([dict(a=path)]) == [dict(a=name)] and not P.private_parts(P.scrubbed(path))


def test_of_a_run_only_the_pages_that_are_asked_for_stay_and_without_pictures(tmp_path, capsys):
    run = tmp_path / 'runs/cam_synthetic'
    shutil.copytree(FOLDER / 'cam_synthetic', run)
    go = lambda *more: main(['publish', 'cam_synthetic', '--runs', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out'), *more])
    assert go() == 0 and {p.name for p in (tmp_path / 'out/cam_synthetic').iterdir()} == {p.name for p in run.iterdir()}
    assert go('--pages', 'none') == 0 and {p.name for p in (tmp_path / 'out/cam_synthetic').iterdir()} == {'run.json', 'metrics.json'}
    assert go('--pages', 'evaluate') == 0 and {p.name for p in (tmp_path / 'out/cam_synthetic').iterdir()} == {'run.json', 'metrics.json', 'evaluate.ipynb'}
    page = (tmp_path / 'out/cam_synthetic/evaluate.ipynb').read_text()
    assert 'image/png' not in page and re.search(r'picture of \d+ x \d+ left out', page) and 'precision    recall' in page and 'image/png' in (run / 'evaluate.ipynb').read_text()
    assert go('--pages', 'evaluat') == 2 and "publish: pages of cam_synthetic: unknown name 'evaluat'. Did you mean 'evaluate'?" in capsys.readouterr().err


def test_the_name_of_the_machine_goes(monkeypatch):
    monkeypatch.setattr(platform, 'node', lambda: 'node-07')
    assert P.scrubbed('on node-07 (2 GPUs), not on node-071') == 'on host (2 GPUs), not on node-071' and P.private_parts(['on node-07']) == ['node-07']


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
    (dict(), ['--as', 'a/b'], "publish: --as: expected a name without separators of folders and control characters, got 'a/b'"),
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
    with pytest.raises(UserError, match='publish: mine/run.json would still hold .*which belongs to this machine'): P.publish_run('mine', tmp_path / 'runs', folder=tmp_path / 'out')
    assert not list(tmp_path.glob('out/*/*'))
    for file in ('grid.md', 'run.json'):  # that a text speaks of a notebook's format makes it none
        with pytest.raises(UserError, match=f'{file} would still hold'): P.refuse_private(file, '"nbformat": 4, "cells": [], /data/mia/w.pth')
    P.refuse_private('train.ipynb', dict(nbformat=4, cells=[dict(source='/data/mia/w.pth', outputs=[])]))  # its code is the package's


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
    run_recipe(str(tmp_path / 'small.yaml'), options, runs=tmp_path / 'runs')
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
    def make_run(name, recipe, runs, *more, **most):
        asked.update(recipe.recipe)
        assert runs.is_dir()
        return FOLDER / 'sipe_photos.SIPE'
    monkeypatch.setattr(R, 'make_run', make_run)
    monkeypatch.setattr(R, 'data_fingerprints', lambda p: {})
    assert main(['verify', str(FOLDER / 'sipe_photos.SIPE'), '--runs', str(tmp_path), '-p', 'data.root=here/VOCdevkit', '-p', 'weights=w.npz']) == 0
    assert asked == {**(as_published := read(FOLDER / 'sipe_photos.SIPE/run.json')['recipe']), 'data': dict(as_published['data'], root='here/VOCdevkit'), 'weights': 'w.npz'}


@pytest.mark.slow
def test_a_published_run_can_be_made_again(tmp_path, capsys):
    code, out = main(['verify', str(FOLDER / 'cam_synthetic'), '--runs', str(tmp_path)]), capsys.readouterr().out
    why = '(.* instead of .*|.*that record does not name .*)'  # another machine, or one of which the record is too old to tell
    assert code == 0 or code == 3 and re.search(f'differs from the record in: {why}\n(.*\n)*verdict: within the spread', out), out
