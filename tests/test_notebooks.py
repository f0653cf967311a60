"""Every library notebook runs from top to bottom, and its saved form is fit to be read."""
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from inside import kernel_of_one_server

NBS = Path(__file__).resolve().parents[1] / 'nbs'
LIBRARY = sorted(p for p in NBS.rglob('*.ipynb') if 'run' not in p.relative_to(NBS).parts and '.ipynb_checkpoints' not in p.parts)
ALL = sorted(LIBRARY + list((NBS / 'run').glob('*.ipynb')))
name = lambda p: p.relative_to(NBS).as_posix()


def cells(path, kind='code'): return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind]


@pytest.mark.parametrize('path', [pytest.param(p, id=name(p)) for p in LIBRARY if cells(p) and 'skip_exec: true' not in p.read_text()])
def test_it_runs(path):
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(notest|slow|gpu|data)\b', c.source)]  # the flags of settings.ini: timings are not for a busy machine
    os.environ['WSSS_PROGRESS'] = 'off'
    with kernel_of_one_server() as kernel: NotebookClient(nb, timeout=300, kernel_name=kernel, resources=dict(metadata=dict(path=str(path.parent)))).execute()


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
