"""`make lab`: pages are copies, what a reader changed stays, and root is let in where nobody else can reach the server."""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('docs_lab', ROOT / 'docs/lab.py')
lab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lab)


@pytest.fixture
def nbs(tmp_path):
    for name, text in (('nbs/index.ipynb', 'one'), ('nbs/papers/sipe.ipynb', 'two'), ('nbs/pictures/methods.png', 'three'), ('nbs/.ipynb_checkpoints/index.ipynb', 'old')):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / 'nbs'


def files(folder): return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*') if p.is_file() and p.name != '.copied.json'}


def test_pages_are_copied_and_follow_the_source(nbs, tmp_path):
    assert lab.copy(nbs, tmp_path / 'lab') == []
    assert files(tmp_path / 'lab') == {'index.ipynb': 'one', 'papers/sipe.ipynb': 'two', 'pictures/methods.png': 'three'}
    (nbs / 'index.ipynb').write_text('newer')
    (nbs / 'papers/sipe.ipynb').unlink()
    assert lab.copy(nbs, tmp_path / 'lab') == [] and files(tmp_path / 'lab') == {'index.ipynb': 'newer', 'pictures/methods.png': 'three'}


def test_what_a_reader_changed_stays_and_is_named_once_there_is_a_newer_version(nbs, tmp_path):
    lab.copy(nbs, tmp_path / 'lab')
    (tmp_path / 'lab/index.ipynb').write_text('mine')
    (tmp_path / 'lab/own.ipynb').write_text('my own page')
    assert lab.copy(nbs, tmp_path / 'lab') == []
    (nbs / 'index.ipynb').write_text('newer')
    for _ in range(2): assert lab.copy(nbs, tmp_path / 'lab') == ['index.ipynb']
    assert files(tmp_path / 'lab')['index.ipynb'] == 'mine' and files(tmp_path / 'lab')['own.ipynb'] == 'my own page' and files(nbs)['index.ipynb'] == 'newer'
    (tmp_path / 'lab/index.ipynb').unlink()
    assert lab.copy(nbs, tmp_path / 'lab') == [] and files(tmp_path / 'lab')['index.ipynb'] == 'newer'
    (nbs / 'index.ipynb').write_text('newest')
    assert lab.copy(nbs, tmp_path / 'lab') == [] and files(tmp_path / 'lab')['index.ipynb'] == 'newest'


@pytest.mark.parametrize('root, options, expected', [
    (False, [], []), (True, [], ['--allow-root', '--ip=127.0.0.1']), (True, ['--port', '9000'], ['--allow-root', '--ip=127.0.0.1', '--port', '9000']),
    (True, ['--ip=0.0.0.0'], ['--ip=0.0.0.0']), (True, ['--ServerApp.ip=*'], ['--ServerApp.ip=*']), (True, ['--allow-root', '--ip=0.0.0.0'], ['--allow-root', '--ip=0.0.0.0'])])
def test_root_is_let_in_where_the_server_listens_to_this_machine_alone(root, options, expected):
    start = ['--ServerApp.root_dir=/checkout', '--LabApp.default_url=/lab/tree/lab/index.ipynb']
    assert lab.command(Path('/checkout/lab'), options, root) == [sys.executable, '-m', 'jupyterlab', *start, *expected]


@pytest.mark.parametrize('edit', [False, True])
def test_it_says_which_pages_these_are_and_opens_them(nbs, tmp_path, edit):
    (tmp_path / 'docs').mkdir()
    shutil.copy(ROOT / 'docs/lab.py', tmp_path / 'docs')
    (tmp_path / 'jupyterlab').mkdir()
    (tmp_path / 'jupyterlab/__init__.py').touch()
    (tmp_path / 'jupyterlab/__main__.py').write_text('import sys; print("opened", *sys.argv[1:])')
    r = subprocess.run([sys.executable, 'docs/lab.py', *['--edit'] * edit, '--no-browser'], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
    said, opened = r.stdout.splitlines()
    assert opened.startswith(f'opened --ServerApp.root_dir={tmp_path} --LabApp.default_url=/lab/tree/{"nbs" if edit else "lab"}/index.ipynb ') and opened.endswith('--no-browser') and ('--allow-root' in opened) == (os.geteuid() == 0)
    assert said.startswith('These are the pages of nbs/ themselves' if edit else 'Pages opened with `make lab` are copies in lab/') and (tmp_path / 'lab').exists() != edit


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
@pytest.mark.parametrize('given, called', [([], 'docs/lab.py'), (['EDIT=1'], 'docs/lab.py --edit'), (['EDIT=1', 'LAB=--no-browser --port 9000'], 'docs/lab.py --edit --no-browser --port 9000')])
def test_make_lab_calls_it(given, called):
    r = subprocess.run(['make', '-C', str(ROOT), '-n', 'lab', 'READY=', *given], env={k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k != 'PYTEST'}, capture_output=True, text=True)
    assert [' '.join(l.split()) for l in r.stdout.splitlines() if 'lab.py' in l] == [f'.venv/bin/python {called}']


def test_no_page_of_the_copy_is_part_of_the_checkout():
    assert '/lab/' in (ROOT / '.gitignore').read_text().splitlines()
