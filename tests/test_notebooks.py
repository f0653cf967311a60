"""Every library notebook runs from top to bottom, and its saved form is fit to be read."""
import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from inside import execute_page, kernel_of_one_server

NBS = Path(__file__).resolve().parents[1] / 'nbs'
LIBRARY = sorted(p for p in NBS.rglob('*.ipynb') if 'run' not in p.relative_to(NBS).parts and '.ipynb_checkpoints' not in p.parts)
ALL = sorted(LIBRARY + list((NBS / 'run').glob('*.ipynb')))
name = lambda p: p.relative_to(NBS).as_posix()


def cells(path, kind='code'): return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind]


def run(path, left_out):
    "Execute a page without the cells that have one of these flags (those of settings.ini: timings are not for a busy machine)"
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not re.match(rf'#\|\s*({left_out})\b', c.source)]
    os.environ['WSSS_PROGRESS'] = 'off'
    end = 'graceful' if 'COVERAGE_FILE' in os.environ else 'immediate'  # nothing is left to be done, but for who counts lines
    with kernel_of_one_server() as kernel: execute_page(nb, kernel, shutdown_kernel=end, resources=dict(metadata=dict(path=str(path.parent))))


def flagged(path, flag): return any(''.join(c['source']).startswith(f'#| {flag}') for c in cells(path))


EXECUTED = [pytest.param(p, id=name(p)) for p in LIBRARY if cells(p) and 'skip_exec: true' not in p.read_text()]


@pytest.mark.parametrize('path', EXECUTED)
def test_it_runs(path): run(path, 'notest|slow|gpu|data')


@pytest.mark.slow  # some more trainings for a table of variants, or what a test of the module does anyway
@pytest.mark.parametrize('path', [p for p in EXECUTED if flagged(p.values[0], 'slow')])
def test_it_runs_with_its_slow_cells(path): run(path, 'notest|gpu|data')


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in ALL])
def test_its_saved_form_is_clean(path):
    assert path.stat().st_size < 1_000_000
    for c in cells(path):
        assert c['execution_count'] is None and c.get('id')
        for o in c['outputs']:
            assert o['output_type'] != 'error'
            assert o.get('name') != 'stderr', ''.join(o['text'])[:200]
    text = path.read_text()
    for trace in ('/tmp/', '/root/', '/home/'): assert trace not in text, trace


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in LIBRARY if cells(p)])
def test_it_was_executed_and_explains_itself(path):
    assert any(c['outputs'] for c in cells(path)), 'no outputs are saved'
    words = sum(len(''.join(c['source']).split()) for c in cells(path, 'markdown'))
    assert words > 60 and ''.join(cells(path, 'markdown')[0]['source']).startswith('# ')


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in sorted((NBS / 'run').glob('*.ipynb'))])
def test_a_stage_has_one_parameters_cell(path):
    assert sum('parameters' in c['metadata'].get('tags', []) for c in cells(path)) == 1 and not any(''.join(c['source']).startswith('#| export') for c in cells(path))


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in ALL if p.parent.name in ('run', 'tutorials')])
def test_no_line_of_code_has_to_be_scrolled(path):
    for c in cells(path):
        text = ''.join(c['source'])
        if 'find_spec' not in text: assert [l for l in text.splitlines() if len(l) > 120] == []  # but for the cell that installs, the same on all pages


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in ALL if p.parent.name == 'tutorials'])
def test_a_tutorial_says_how_long_it_takes(path):
    assert re.search(r'Run All takes (about )?\d+ (seconds|minutes?) on 2 cores', ''.join(cells(path, 'markdown')[0]['source']))
