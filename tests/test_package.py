"""The package as somebody has it who only installed it: no notebook tools, the stage notebooks inside, the README's lines at work."""
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = ('nbdev', 'fastcore', 'execnb', 'IPython', 'ipykernel', 'jupyterlab', 'papermill', 'nbconvert', 'nbformat')
BLOCK = f'''
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {BLOCKED!r}: raise ImportError(f'{{name}} was imported')
sys.meta_path.insert(0, Blocked())
'''


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    out, copy = tmp_path_factory.mktemp('wheel'), tmp_path_factory.mktemp('checkout')
    for name in ('wsss_nb', 'nbs/run', 'runs/recipes'): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('runs/tables.yaml', 'runs/paper_numbers.yaml', 'runs/grid.yaml'): shutil.copy(ROOT / name, copy / name)
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT / name, copy)
    r = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', str(out), str(copy)], capture_output=True, text=True)
    assert r.returncode == 0 and 'BuildBackendWarning' not in r.stderr, r.stderr
    return next(out.glob('*.whl'))


def python(code, site, cwd): return subprocess.run([sys.executable, '-S', '-c', f'import sys; sys.path[:0] = {[str(site)] + [p for p in sys.path if "site-packages" in p]!r}\n' + BLOCK + code], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(wheel).extractall(out)
    return out


def test_the_wheel_holds_the_stages_and_the_recipes(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'wsss_nb/stages/{s}.ipynb' for s in ('train', 'masks', 'segment', 'evaluate', 'report')} <= names
    assert {f'wsss_nb/recipe_files/{p.relative_to(ROOT / "runs/recipes")}' for p in (ROOT / 'runs/recipes').rglob('*.yaml')} <= names
    assert {f'wsss_nb/table_files/{name}.yaml' for name in ('tables', 'paper_numbers', 'grid')} == {n for n in names if 'table_files' in n}
    assert {f'wsss_nb/{p.relative_to(ROOT / "wsss_nb")}' for p in (ROOT / 'wsss_nb').rglob('*.py')} <= names


def test_every_module_imports_without_notebook_tools(site, tmp_path):
    code = '''
import importlib, pkgutil, wsss_nb
assert wsss_nb.__file__.startswith({site!r}), wsss_nb.__file__
names = [m.name for m in pkgutil.walk_packages(wsss_nb.__path__, 'wsss_nb.') if not m.ispkg]
for n in names: importlib.import_module(n)
from wsss_nb.engine.parameters import stage_notebook
from wsss_nb.engine.recipes import all_recipes
assert str(stage_notebook('train')).startswith({site!r}) and 'cam_synthetic' in all_recipes()
from wsss_nb.results.table_recipes import row_recipe
from wsss_nb.results.tables import overview
assert str(all_recipes()['sipe_4_cam']).startswith({site!r}) and len(overview()) > 20 and row_recipe('sipe:4', 'CAM', 'photos')['backbone'] == 'mobilenet_v2'
print(len(names))
'''.format(site=str(site))
    r = python(code, site, tmp_path)
    assert r.returncode == 0, r.stderr
    assert int(r.stdout) > 20


def test_only_an_extra_has_to_be_built(wheel):
    meta = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith('METADATA'))).decode()
    assert re.findall(r'^Requires-Dist: pydensecrf2.*; (.*)$', meta, re.M) == ['extra == "crf"'] and 'Provides-Extra: crf\n' in meta


def test_a_missing_package_is_advised_by_the_names_that_an_index_has(site, tmp_path):
    r = python("from wsss_nb.engine.execute import run_notebook\ntry: run_notebook('', '', {}, '', '')\nexcept ValueError as e: print(e)", site, tmp_path)
    text, _, advised = r.stdout.strip().partition(' install ')
    assert text.startswith('papermill is not installed; for running a recipe: ') and re.findall(r'"([\w-]+)[<>=,.\d]+"', advised) == ['papermill', 'ipykernel', 'nbconvert', 'jupyterlab'], r


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A dozen pictures with tags: more than `few`, so that the masks are made by processes"
    from wsss_nb.data.synthetic import synthetic
    data, d = synthetic('train', n=12), tmp_path_factory.mktemp('photos')
    (d / 'holiday').mkdir()
    rows = ['image,tags']
    for i in range(12):
        name = f'holiday/beach {i}.png' if i < 2 else f'{i}.png'
        Image.fromarray(data.image(i)[:64, :80]).save(d / name)
        rows.append(f'{name},' + ';'.join(data.classes[t - 1] for t in data[i].tags))
    (d / 'tags.csv').write_text('\n'.join(rows))
    return d


def snippets():
    "The Python of the README that is complete, made small: a tiny network and one epoch"
    blocks = [b for b in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S) if 'wsss_nb' in b]
    small = [b.replace("backbone='mobilenet_v2', weights='imagenet'", "backbone='tiny', weights='', crop=64, long_side=(64, 96), epochs=1, device='cpu'") for b in blocks]
    assert any(a != b for a, b in zip(blocks, small)) and not any('imagenet' in b for b in small)
    return '\n'.join(small)


def as_notebook(code, cwd):
    "Run the code as a notebook's only cell, in a kernel of this Python"
    import nbformat
    from nbclient import NotebookClient
    from wsss_nb.engine.execute import own_kernel
    with own_kernel() as kernel:
        NotebookClient(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), timeout=300, kernel_name=kernel, resources=dict(metadata=dict(path=str(cwd)))).execute()


def as_script(code, cwd):
    (cwd / 'mine.py').write_text(code)
    return ['mine.py'], ''


WAYS = dict(script=as_script, typed=lambda code, cwd: (['-i', '-q'], code), notebook=None, command=None)


@pytest.mark.parametrize('way', [pytest.param(way, marks=pytest.mark.slow) if way in ('notebook', 'typed') else way for way in WAYS])  # the tutorials are such notebooks, and are executed anyway
def test_the_lines_of_the_readme_turn_tagged_images_into_masks(way, photos, site, tmp_path, monkeypatch):
    monkeypatch.setenv('WSSS_PROGRESS', 'off')
    shutil.copytree(photos, tmp_path / 'photos')
    code = snippets()
    if way == 'notebook': as_notebook(code, tmp_path)
    else:
        if way == 'command': r = python(code + '\nprint("the end")', site, tmp_path)
        else:
            arguments, stdin = WAYS[way](code + '\nprint("the end")\n', tmp_path)
            r = subprocess.run([sys.executable, *arguments], input=stdin, cwd=tmp_path, capture_output=True, text=True)
        assert r.returncode == 0 and r.stdout.split('\n').count('the end') == 1 and 'Traceback' not in r.stderr, r.stderr
    masks = sorted((tmp_path / 'out/masks').rglob('*.png'))
    assert len(masks) == 12
    for m in masks:
        image = Image.open(m)
        assert image.mode == 'P' and set(np.unique(image)) <= set(range(9))
