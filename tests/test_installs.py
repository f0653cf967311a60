"""Every advice to install something names what an index has, or this checkout: no index has wsss_nb."""
import ast
import configparser
import importlib.metadata
import json
import re
import sys
from types import SimpleNamespace
from pathlib import Path

import pytest

import wsss_nb
from wsss_nb.base.core import install_line, not_installed

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = configparser.ConfigParser(delimiters=['='])
SETTINGS.read(ROOT / 'settings.ini')
EXTRAS = {k.removesuffix('requirements').rstrip('_'): [re.match(r'[\w.-]+', r)[0] for r in v.split()] for k, v in SETTINGS['DEFAULT'].items() if k.endswith('requirements')}
PACKAGES = set(sum(EXTRAS.values(), []))
SOURCES = sorted((ROOT / 'wsss_nb').rglob('*.py')) + sorted((ROOT / 'nbs').rglob('*.ipynb'))


def code(path):
    "The code of a module or of a notebook's cells, parsed; cells with magics are left out"
    cells = [path.read_text()] if path.suffix == '.py' else [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    return [ast.parse(c) for c in cells if not re.search(r'^\s*[%!]', c, re.M)]


def found(kind): return [(p.relative_to(ROOT).as_posix(), n) for p in SOURCES for tree in code(p) for n in ast.walk(tree) if isinstance(n, kind)]


def wrong(text):
    "The words after `pip install` that are no option, no package of settings.ini, no folder and no address of the repository"
    advised = re.findall(r"pip install ((?:-*[\w./\[\]'\"<>=,@:-]+ ?)+)", text)
    words = [w.strip('\'".') for a in advised for w in a.split()]
    return [w for w in words if not w.startswith(('-', '/', SETTINGS['DEFAULT']['git_url'])) and re.match(r'[\w.-]*', w)[0] not in PACKAGES]


def test_every_advice_names_packages_that_an_index_has():
    texts = [(p, n.value) for p, n in found(ast.Constant) if isinstance(n.value, str) and 'pip install ' in n.value]
    assert {p for p, _ in texts} >= {'wsss_nb/base/core.py', 'nbs/base/core.ipynb', 'nbs/papers/icd.ipynb'} and not [t for t in texts if wrong(t[1])]
    assert wrong("Dask is not installed: pip install 'wsss_nb[scale]' for --jobs.")[0] == 'wsss_nb[scale]' and not wrong('mend it with: pip install --upgrade "torch>=2" torchvision')


def test_what_is_missing_belongs_to_the_extra_that_is_advised():
    calls = [(p, n.args) for p, n in found(ast.Call) if getattr(n.func, 'id', '') == 'not_installed' and p.startswith('wsss_nb/')]
    assert {p for p, _ in calls} == {f'wsss_nb/{m}.py' for m in ('engine/execute', 'base/workers', 'engine/worker', 'nets/export', 'nets/from_timm', 'refine/crf', 'refine/prompt', 'refine/told', 'engine/loggers', 'results/chooser')}
    for p, (package, extra, what) in calls: assert extra.value in EXTRAS and (not isinstance(package, ast.Constant) or package.value in EXTRAS[extra.value]), p


def test_in_a_checkout_it_is_its_folder_with_the_extra(monkeypatch):
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent))
    (pip, text), here = ('pip' if (Path(sys.executable).parent / 'pip').exists() else f'{sys.executable} -m pip', install_line('scale')), ROOT
    assert text == f'{pip} install -e "{here}[scale]"'
    assert str(not_installed('distributed', 'scale', '--jobs')) == f'distributed is not installed; for --jobs: {text}'


def test_another_pip_than_that_of_this_python_is_not_advised(monkeypatch, tmp_path):
    (tmp_path / 'pip').write_text('#!/bin/sh\n')
    (tmp_path / 'pip').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert install_line('scale').startswith(f'{sys.executable} -m pip install ')
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    assert install_line('scale').startswith('pip install ')


@pytest.mark.parametrize('requires, advised', [
    (['torch>=2.6', 'papermill<3,>=2.6; extra == "notebooks"', "nbconvert>=7; extra == 'notebooks'", 'dask; extra == "scale"'], '"papermill<3,>=2.6" "nbconvert>=7"'),
    (['torch>=2.6'], 'papermill'), (None, 'papermill'), (importlib.metadata.PackageNotFoundError('wsss_nb'), 'papermill')])
def test_elsewhere_it_is_the_packages_of_the_extra(monkeypatch, tmp_path, requires, advised):
    def answer(name):
        if isinstance(requires, Exception): raise requires
        return requires
    monkeypatch.setattr(wsss_nb, '__file__', str(tmp_path / 'wsss_nb/__init__.py'))
    monkeypatch.setattr(importlib.metadata, 'requires', answer)
    assert install_line('notebooks', 'papermill').endswith(f' install {advised}')


def test_that_pydensecrf_is_not_there_is_on_record(monkeypatch):
    from wsss_nb.base.core import versions
    from wsss_nb.engine.spread import unlike_records
    monkeypatch.setitem(sys.modules, 'pydensecrf.densecrf', None)
    now = versions()
    assert now['pydensecrf2'] == 'none: the CRF runs in torch'
    run = lambda **more: SimpleNamespace(made=dict(versions={**now, **more}), stages={})
    assert unlike_records(run(pydensecrf2='1.1'), run()) == {'pydensecrf2': ('1.1', 'none: the CRF runs in torch')}
