"""The notebooks in JupyterLab, in a real browser: all cells run from the menu without an error, figures and formulas are to be seen. `make browser` does all of them and leaves screenshots in build/browser."""
import json
from pathlib import Path

import pytest

from browser import ERRORS, ROOT, SEEN, choose, chromium, chromium_page, lab, open_notebook, run_all, screenshots

pytest.importorskip('playwright', reason='needs the extra [browser]: pip install -e .[browser]')
pytestmark = pytest.mark.skipif(not chromium(), reason='needs Chromium (Debian, Ubuntu: apt-get install chromium)')
PAPERS, TUTORIALS = ([f'{folder}/{p.name}' for p in sorted((ROOT / 'nbs' / folder).glob('*.ipynb')) if not p.name.startswith('benchmark')] for folder in ('papers', 'tutorials'))


BROKEN = dict(cells=[dict(cell_type='code', id='a', metadata={}, source='1 / 0', outputs=[], execution_count=None)], nbformat=4, nbformat_minor=5,
              metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))


WORKS = """
import time
from wsss_nb.base.tell import Progress
print('above')
for i in Progress(range(8), 'counting, step'): time.sleep(.5)
print('below')"""


def page_of(source): return dict(BROKEN, cells=[dict(BROKEN['cells'][0], source=source)])


@pytest.fixture(scope='module')
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    with lab(folder) as url:
        (folder / 'nbs/broken.ipynb').write_text(json.dumps(BROKEN))
        (folder / 'nbs/works.ipynb').write_text(json.dumps(page_of(WORKS)))
        yield url


@pytest.fixture
def page():
    with chromium_page() as page: yield page


def expected(notebook):
    "How many figures and pictures, and how many formulas, the saved notebook has"
    cells = json.loads((ROOT / 'nbs' / notebook).read_text())['cells']
    figures = [o for c in cells for o in c.get('outputs', []) if {'image/png', 'image/svg+xml', 'image/jpeg'} & set(o.get('data', {}))]
    texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    return len(figures) + sum(t.count('![') for t in texts), sum(t.count('$$') // 2 for t in texts)


def check(page, url, notebook):
    errors = run_all(page, url, notebook)
    seen, (figures, formulas) = page.evaluate(SEEN), expected(notebook)
    screenshots(page, ROOT / 'build' / 'browser', Path(notebook).with_suffix('').as_posix().replace('/', '_'))
    assert not errors
    assert len(seen['figures']) >= figures and all(w > 20 and h > 20 for w, h in seen['figures'])
    assert seen['formulas'] >= formulas and not seen['bad_formulas'] and not seen['raw']
    assert not seen['wide'] and not seen['tall']


def test_a_notebook_runs_in_the_browser(page, url): check(page, url, 'data/draw.ipynb')


def test_an_error_is_noticed(page, url):
    assert 'ZeroDivisionError' in ' '.join(run_all(page, url, 'broken.ipynb'))


def test_progress_is_seen_while_it_lasts_and_leaves_nothing_behind(page, url):
    open_notebook(page, url, 'works.ipynb')
    choose(page, 'Run', 'Run All Cells')
    line = page.locator('.jp-OutputArea-output', has_text='counting, step')
    line.wait_for()
    screenshots(page, ROOT / 'build' / 'browser', 'works_meanwhile')
    page.locator('.jp-OutputArea-output', has_text='below').wait_for()
    page.wait_for_timeout(500)
    screenshots(page, ROOT / 'build' / 'browser', 'works')
    assert line.count() == 0 and page.locator(ERRORS).count() == 0
    heights = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-child')].map(e => [e.textContent.trim(), Math.round(e.getBoundingClientRect().height)])")
    assert [t for t, h in heights if h > 2] == ['above', 'below'], heights


@pytest.mark.browser
@pytest.mark.parametrize('notebook', ['index.ipynb', *PAPERS, *TUTORIALS])
def test_it_runs_in_the_browser(page, url, notebook): check(page, url, notebook)
