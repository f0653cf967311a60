"""What a fresh machine lacks is told in one line, and `make setup` works without it where it can."""
import configparser
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='needs make')
TOOLS = ('sh', 'cat', 'cp', 'chmod', 'mkdir', 'touch', 'sed', 'grep', 'head', 'uname', 'sleep', 'make')
# A python3 whose `-m venv` puts itself into bin/, and whose pip writes down what it was asked for and answers from the environment. Whatever else it runs succeeds, but for pydensecrf.
STUB = f'''case "$*" in
*"-m venv"*) for d; do :; done; mkdir -p "$d/bin"; cp "$0" "$d/bin/python"; exit 0;;
*"pip index versions torchvision"*) echo "torchvision (9)
Available versions: $STUB_VISION"; exit 0;;
*"pip index versions torch"*) echo "torch (9)
Available versions: $STUB_TORCH"; exit 0;;
*"pip install"*--dry-run*) case "$*" in *"$STUB_NONE") exit 1;; esac; exit 0;;
*"pip install"*) echo "$*" >> "$STUB_ASKED"; case "$*" in *pydensecrf2*) echo "a compiler's words"; exit "$STUB_CRF";; esac; exit 0;;
*"import pydensecrf"*) exit 1;;
*Python.h*) exit "$STUB_HEADERS";;
*docs/newest.py*|*docs/lock.py*) exec {sys.executable} "$@";;
"-c "*) exit 0;;
esac
echo "$*" >> "$STUB_ASKED"
'''


def make(tmp_path, target, programs=('sh', 'c++'), python='exec "$REAL" "$@"', arguments=(), **environment):
    "`make` of this target on a machine that has only these programs and this python3"
    (tmp_path / 'bin').mkdir(exist_ok=True)
    for p in programs:
        (tmp_path / 'bin' / p).unlink(missing_ok=True)
        (tmp_path / 'bin' / p).symlink_to(shutil.which(p) or shutil.which('true'))
    if python:
        (tmp_path / 'bin/python3').write_text(f'#!/bin/sh\nREAL={sys.executable}\n{python}\n')
        (tmp_path / 'bin/python3').chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k not in ('CXX', 'PYTEST')}
    r = subprocess.run([shutil.which('make'), '-C', str(ROOT), target, *arguments], env={**env, 'PATH': str(tmp_path / 'bin'), **environment}, capture_output=True, text=True)
    return r.returncode, [l for l in r.stdout.splitlines() if not l.startswith('make')]


def setup(tmp_path, programs=(*TOOLS, 'c++'), target='setup', arguments=(), **environment):
    "Lines of `make setup` with the stub, and what pip was asked to install"
    asked = tmp_path / 'asked'
    asked.write_text('')
    code, lines = make(tmp_path, target, programs, STUB, (f'VENV={tmp_path / "venv"}', *arguments), **dict(STUB_ASKED=str(asked), STUB_TORCH='2.9.1, 2.9.0', STUB_VISION='0.24.1', STUB_CRF='0', STUB_HEADERS='0', STUB_NONE='nothing') | environment)
    assert code == 0, lines
    return lines, [l.partition('pip install ')[2] for l in asked.read_text().splitlines()]


def requirements(extra=''):
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    return settings['DEFAULT'][f'{extra}_requirements'.strip('_')].split()


@pytest.mark.parametrize('machine, text', [
    (dict(python=''), 'python3 is missing: install Python 3.10 or newer'),
    (dict(python='case "$*" in *version_info*) exit 1;; *) exec "$REAL" "$@";; esac'), 'python3 is too old'),
    (dict(python='case "$*" in *ensurepip*) exit 1;; *) exec "$REAL" "$@";; esac'), 'apt-get install python3-venv'),
    (dict(target='check-browser'), 'Chromium is missing: install it (Debian, Ubuntu: apt-get install chromium)'),
])
def test_what_is_missing_is_named_in_one_line(tmp_path, machine, text):
    code, lines = make(tmp_path, **{'target': 'check-machine', **machine})
    assert code != 0 and len(lines) == 1 and text in lines[0]


def test_a_compiler_is_not_demanded(tmp_path): assert make(tmp_path, 'check-machine', programs=('sh',)) == (0, [])


@pytest.mark.parametrize('name', ['chromium', 'google-chrome-stable'])
def test_a_browser_is_found_by_any_of_its_names(tmp_path, name): assert make(tmp_path, 'check-browser', ('sh', name)) == (0, [])


def test_setup_says_first_what_it_does_and_then_does_it(tmp_path):
    lines, asked = setup(tmp_path, (*TOOLS, 'c++', 'nvidia-smi'))
    assert lines[0].startswith(f'Building {tmp_path / "venv"}: torch, Jupyter and the rest; ') and 'GB' in lines[0] and 'minutes' in lines[0]
    assert lines[1:] == ['Building pydensecrf2, the dense CRF in C++ (40 s)', f'{tmp_path / "venv"} is ready: make demo, make lab, {tmp_path / "venv/bin/wsss"}']
    assert asked == ['-qq --upgrade pip', '-qq --editable .[dev]', requirements('crf')[0]]


@pytest.mark.parametrize('machine, reason', [
    (dict(programs=TOOLS), 'no C++ compiler (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)'),
    (dict(STUB_HEADERS='1'), 'no Python.h (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel)'),
    (dict(), 'pydensecrf2 could not be built, see {venv}/crf.log'),
])
def test_where_the_crf_cannot_be_built_setup_says_so_and_goes_on(tmp_path, machine, reason):
    lines, asked = setup(tmp_path, **dict(machine, STUB_CRF='1'))
    assert f'{reason.format(venv=tmp_path / "venv")}: the dense CRF runs in torch, which agrees and takes 0.53 s instead of 0.30 s an image; once that is mended: make setup' in lines
    assert asked[-1] == '--only-binary=:all: ' * bool(machine) + requirements('crf')[0] and 'is ready' in lines[-1]
    assert (tmp_path / 'venv/crf.log').read_text() == "a compiler's words\n"


def test_setup_tries_the_crf_again_once_and_nothing_else(tmp_path):
    setup(tmp_path, TOOLS, STUB_CRF='1')
    lines, asked = setup(tmp_path)
    assert lines[0] == 'Building pydensecrf2, the dense CRF in C++ (40 s)' and len(lines) == 2 and asked == requirements('crf')
    lines, asked = setup(tmp_path, target=str(tmp_path / 'venv/.ready'))
    assert asked == []  # make demo and make test do not ask again


def on_linux(tmp_path, **environment):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/uname').write_text('#!/bin/sh\necho Linux x86_64\n')
    (tmp_path / 'bin/uname').chmod(0o755)
    return setup(tmp_path, [t for t in TOOLS if t != 'uname'], **environment)


def test_without_a_gpu_the_cpu_build_of_the_index_is_taken(tmp_path):
    lines, asked = on_linux(tmp_path, STUB_TORCH='2.9.1, 2.9.1+cpu', STUB_VISION='0.24.1, 0.24.1+cpu, 0.24.0+cpu')
    assert lines[1] == 'No GPU here (nvidia-smi is missing): the CPU build of torch, torchvision 0.24.1+cpu' and asked[1:3] == ['-qq torchvision==0.24.1+cpu', '-qq --editable .[dev]']


def test_a_cpu_build_of_torch_alone_is_no_pair(tmp_path):
    lines, asked = on_linux(tmp_path, STUB_TORCH='2.9.1, 2.9.1+cpu')
    assert lines[1].startswith('No GPU here (nvidia-smi is missing), and the package index has no CPU build of both torch and torchvision: ') and 'make setup TORCH_INDEX=https://' in lines[1]
    assert asked[1] == '-qq --editable .[dev]'


def test_the_lock_pins_what_the_published_runs_had(tmp_path):
    lines, asked = setup(tmp_path, arguments=['LOCK=1'])
    pins = [l for l in (ROOT / 'constraints.txt').read_text().splitlines() if not l.startswith('#')]
    assert lines[1] == f'LOCK=1: {len(pins)} of {len(pins)} published versions' and (tmp_path / 'venv/constraints.txt').read_text().splitlines() == pins
    assert asked[1] == f'-qq -c {tmp_path / "venv/constraints.txt"} --editable .[dev]'
    run = json.loads((ROOT / 'runs/published/cam_synthetic/run.json').read_text())
    assert {f'{k}=={v}' for k, v in run['versions'].items() if k not in ('python', 'wsss_nb')} <= {*pins}


def test_every_published_run_was_made_with_the_lock():
    "All versions of all records, with one of the pairs of torch and torchvision"
    text = (ROOT / 'constraints.txt').read_text()
    pins, pairs = lock_py().pinned(text), lock_py().other_pairs(text)
    usual = [l for l in pins if not l.startswith('torch')]
    locks, found = [{*pins}, *({*usual, *pair} for pair in pairs)], set()
    for file in [*(ROOT / 'runs/published').glob('*/run.json'), *(ROOT / 'runs/published').glob('*/grid.json')]:
        had = json.loads(file.read_text())['versions']
        its = [i for i, lock in enumerate(locks) if {f'{k}=={v}' for k, v in had.items() if k not in ('python', 'wsss_nb')} <= lock]
        assert len(its) == 1 and f'Python {had["python"]}.' in text, file.parent.name
        found.add(its[0])
    assert len(pairs) == 1 and found == {0, 1}


def lock_py():
    spec = importlib.util.spec_from_file_location('lock', ROOT / 'docs/lock.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_the_index_lacks_the_first_pair_the_other_published_one_is_taken(tmp_path):
    lines, asked = setup(tmp_path, arguments=['LOCK=1'], STUB_NONE='torch==2.15.0')
    assert lines[1].endswith('the package index has no torch==2.15.0, torchvision==0.29.2: torch==2.14.1 and torchvision==0.29.1 instead, with which other published runs were made') and lines[1].count('\n') == 0
    left = (tmp_path / 'venv/constraints.txt').read_text().split()
    assert [l for l in left if l.startswith('torch')] == ['torch==2.14.1', 'torchvision==0.29.1'] and 'numpy==2.4.6' in left and asked[1].startswith('-qq -c ')


def test_what_the_index_has_not_is_said_and_comes_from_its_range():
    text = 'torch==2\ntorchvision==2\nnumpy==2\n# or torch==1 torchvision==1\n'
    of = lambda *none: lock_py().chosen(text, lambda line: line not in none)
    assert of() == (['torch==2', 'torchvision==2', 'numpy==2'], 'LOCK=1: 3 of 3 published versions')
    assert of('numpy==2') == (['torch==2', 'torchvision==2'], 'LOCK=1: 2 of 3 published versions; the package index has no numpy==2: from the ranges of settings.ini instead, and numbers need not be the same to the bit')
    keeps, said = of('torchvision==2', 'numpy==2')
    assert keeps == ['torch==1', 'torchvision==1'] and said.endswith('no torch==2, torchvision==2, numpy==2: torch==1 and torchvision==1 instead, with which other published runs were made, the rest from the ranges of settings.ini instead, and numbers need not be the same to the bit')
    keeps, said = of('torch==2', 'torch==1')
    assert keeps == ['numpy==2'] and said.endswith('no torch==2, torchvision==2: from the ranges of settings.ini instead, and numbers need not be the same to the bit')


def test_an_index_that_is_named_gives_the_pair(tmp_path):
    lines, asked = setup(tmp_path, arguments=['TORCH_INDEX=https://example.org/cpu'])
    assert asked[1:3] == ['-qq --index-url https://example.org/cpu ' + ' '.join(r for r in requirements() if r.startswith('torch')), '-qq --editable .[dev]'] and len(lines) == 3


def test_newest_asks_for_every_package_without_its_range(tmp_path):
    lines, asked = setup(tmp_path, target='newest', arguments=[f'NEW={tmp_path / "new"}'])
    eager, bare = '-qq --upgrade --upgrade-strategy eager ', lambda *extras: ' '.join(re.match(r'[\w.-]+', r)[0] for e in extras for r in requirements(e))
    assert asked[:2] == [eager + 'pip', eager + bare('', 'notebooks', 'onnx', 'timm', 'weights', 'log', 'sam', 'look', 'scale', 'site', 'dev')] and asked[2:4] == [eager + '--no-deps --editable .', eager + bare('crf')]
    assert lines[0].startswith(f'Building {tmp_path / "new"}: the newest version of each package') and any(re.match(r'torch +\d[\w.+]+ +>=', l) for l in lines)
    assert (tmp_path / 'asked').read_text().splitlines()[4] == '-m pytest -q -n 2 tests'


def test_what_lies_beyond_its_range_is_marked(monkeypatch):
    spec = importlib.util.spec_from_file_location('newest', ROOT / 'docs/newest.py')
    newest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(newest)
    monkeypatch.setattr(newest, 'ranges', lambda: {'': {'torch': '>=2.6,<3', 'numpy': '>=1.26,<3', 'pillow': '>=10.3', 'nothing-of-that-name': ''}})
    monkeypatch.setattr(newest, 'version', lambda p: dict(torch='3.0', numpy='2.9', pillow='99').get(p) or importlib.metadata.version(p))
    assert [l.split() for l in newest.versions()] == [['torch', '3.0', '>=2.6,<3', 'beyond'], ['numpy', '2.9', '>=1.26,<3'], ['pillow', '99', '>=10.3']]


def test_a_pair_of_torch_and_torchvision_that_does_not_fit_is_told(monkeypatch):
    from wsss_nb.base.core import UserError, check_torch_pair
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.raises(UserError, match='do not fit .*install both from one index in one command: pip install'): check_torch_pair()


def dry(target, *arguments):
    "The commands that `make` would run, with a .venv that is ready"
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k != 'PYTEST'}
    return subprocess.run(['make', '-C', str(ROOT), '-n', target, 'READY=', *arguments], env=env, capture_output=True, text=True).stdout


def test_what_proves_endurance_has_a_target_of_its_own(tmp_path):
    quick = 'OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 .venv/bin/python -m pytest -q -n 2'
    assert f'{quick} --durations=10 tests\n' in dry('test', 'PYTEST=--durations=10')
    assert f"{quick} -m 'slow'  tests\n" in dry('test-slow', f'BROWSER={tmp_path}/none') and f"{quick} -m 'slow or browser'  tests\n" in dry('test-slow', f'BROWSER={ROOT}/Makefile')
    assert 'make test PYTEST=--durations=10\n' in (ROOT / '.ci/run').read_text() and "addopts = \"-m 'not slow and not browser'" in (ROOT / 'pyproject.toml').read_text()
