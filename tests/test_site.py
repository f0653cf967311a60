"""A small site of a few notebooks: its links lead somewhere, it asks for nothing from the network, formulas are MathML, and the search knows the words."""
import ast
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ('sphinx', 'myst_nb', 'furo', 'math_core', 'ziamath'): pytest.importorskip(package, reason='needs the extra [site]: pip install -e .[site]')
ROOT = Path(__file__).resolve().parents[1]
PAGES = ['cams', 'papers/ecsnet', 'refine/correlation', 'refine/compare', 'nets/weights']
START = '''# A start

## Where to go

The [paper](papers/ecsnet.ipynb#erasing), [from the README](nbs/cams.ipynb), [up](README.md#where-to-go); `cams.ipynb`, `nbs/refine/correlation.ipynb`, `Localiser.score_maps(...)`, `compare`, `train`, `papers/`.

Beside the notebooks: [cited](../docs/cite.md), [licence](../LICENSE), [file](../CITATION.cff).
'''


def build(source, out):
    "What `make site` does with this folder"
    return subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-c', str(ROOT / 'docs'), '-d', str(out.parent / 'doctrees'), str(source), str(out)], capture_output=True, text=True)


def stage(folder, start, pages):
    "A folder with a start page and these notebooks"
    for name in pages:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f'nbs/{name}.ipynb', folder / f'{name}.ipynb')
    for name in ('docs/cite.md', 'LICENSE', 'CITATION.cff'): shutil.copy(ROOT / name, folder)
    cells = [dict(cell_type='markdown', id='a', metadata={}, source=start)]
    (folder / 'index.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return folder


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('site')
    r = build(stage(tmp / 'src', START, PAGES), tmp / 'out')
    assert r.returncode == 0, r.stderr
    return tmp / 'out'


class Page(HTMLParser):
    "Links, what the page loads, and its anchors"
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids, self.tags = [], [], set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        self.loads += [a[k] for k in ('src', 'data', 'poster') if a.get(k)] + ([a['href']] if tag == 'link' and a.get('href') else [])


@pytest.fixture(scope='module')
def pages(site): return {p: Page(p) for p in site.rglob('*.html')}


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for url in page.links + page.loads:
            u = urlsplit(url)
            if u.scheme: continue
            there = (path.parent / unquote(u.path)).resolve() if u.path else path.resolve()
            if not there.is_file() or (u.fragment and there.suffix == '.html' and unquote(u.fragment) not in pages[there].ids): broken.append((path.name, url))
    assert not broken and len(pages) > len(PAGES)


def test_nothing_comes_from_the_network(site, pages):
    assert not [(path.name, url) for path, page in pages.items() for url in page.loads if urlsplit(url).scheme not in ('', 'data') or url.startswith('//')]
    styles = ' '.join(p.read_text(encoding='utf-8') for p in site.rglob('*.css'))
    assert not re.findall(r'(?:url\(\s*["\']?|@import\s+["\'])(?:https?:)?//[^)]*', styles)
    assert (site / '_static/STIXTwoMath-Regular.ttf').stat().st_size > 1e5


def test_code_in_prose_leads_to_where_it_is_defined(site):
    "A module, a function of the same page, a notebook; but not the word for an argument, or for a notebook that a function elsewhere is called like"
    text = (site / 'papers/ecsnet.html').read_text(encoding='utf-8')
    link = lambda word: re.findall(rf'<a class="reference internal" href="([^"]*)"><code[^>]*><span class="pre">{re.escape(word)}</span></code></a>', text)
    assert set(link('refine.correlation')) == {'../refine/correlation.html'} and link('cams') == ['../cams.html'] and set(link('passes')) == {'#wsss_nb.papers.ecsnet.passes'} and set(link('at_pixels')) == {'../refine/correlation.html#wsss_nb.refine.correlation.at_pixels'}
    assert '<span class="pre">theta</span>' in text and not link('theta') and not link('centre') and not link('heat')
    text = (site / 'index.html').read_text(encoding='utf-8')
    assert link('cams.ipynb') == ['cams.html'] and link('nbs/refine/correlation.ipynb') == ['refine/correlation.html'] and link('papers/') == ['papers/ecsnet.html']
    assert link('Localiser.score_maps(...)') == ['cams.html#wsss_nb.cams.Localiser.score_maps'] and not link('compare') and not link('train')
    assert all(f'href="{url}"' in text for url in ('papers/ecsnet.html#erasing', 'cams.html', '#where-to-go'))


def test_files_of_the_repository_lie_beside_the_pages(site, pages):
    "As the first page names them, seen from nbs/"
    links = [url for url in pages[site / 'index.html'].links if not urlsplit(url).scheme]
    assert 'cite.html' in links
    for name in ('LICENSE', 'CITATION.cff'): assert [(site / unquote(url)).read_bytes() for url in links if url.endswith('/' + name)] == [(ROOT / name).read_bytes()]


def defined(module):
    "Functions, classes and methods of an exported module, by their dotted names"
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding='utf-8'))
    names, inner = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))], lambda n: [f for f in n.body if isinstance(f, ast.FunctionDef)]
    return {f'{module}.{n.name}' for n in names} | {f'{module}.{n.name}.{f.name}' for n in names if isinstance(n, ast.ClassDef) for f in inner(n)}


def test_every_exported_name_has_its_anchor(pages, site):
    for module, page in (('wsss_nb.cams', 'cams'), ('wsss_nb.papers.ecsnet', 'papers/ecsnet'), ('wsss_nb.refine.correlation', 'refine/correlation')):
        assert defined(module) and defined(module) <= pages[site / f'{page}.html'].ids


def test_formulas_are_mathml_with_their_numbers(site, pages):
    text = (site / 'papers/ecsnet.html').read_text(encoding='utf-8')
    source = ''.join(''.join(c['source']) for c in json.loads((ROOT / 'nbs/papers/ecsnet.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')
    assert text.count('<math display="block"') == len(re.findall(r'\$\$.*?\$\$', source, flags=re.S)) > 3
    assert '<mfrac>' in text and '<span class="eqno">(1, 2)</span>' in text
    assert not re.search(r'\\(frac|mathbf|tag|sum)', re.sub(r'<script.*?</script>', '', text, flags=re.S))


def test_tables_that_cells_make_are_tables(site):
    assert not [p for p in site.rglob('*.html') if re.search(r'\|\s*(---|—)\s*\|', re.sub('<pre.*?</pre>|<code.*?</code>', '', p.read_text(encoding='utf-8'), flags=re.S))]
    cell = (site / 'papers/ecsnet.html').read_text(encoding='utf-8').partition('every_row')[2]
    assert re.search(r'<td><p>ecsnet:3</p></td>\s*<td><p>CAM heatmap</p></td>', cell)


def test_the_search_knows_words_and_names(site):
    index = (site / 'searchindex.js').read_text(encoding='utf-8')
    assert '"eras"' in index or 'eras:' in index  # words are searched by their stem
    assert 'minmax_cam' in index


def test_comments_for_nbdev_are_not_shown(site):
    assert not [p for p in site.rglob('*.html') if re.search(r'#\|\s*(export|default_exp|hide|notest)', re.sub('<[^>]*>', '', p.read_text(encoding='utf-8')))]


def test_a_broken_link_or_formula_stops_the_build(tmp_path):
    "All three in one build, which goes on after the first (`--keep-going`); each of them is told by itself, and what is whole is not"
    broken = {'[a](nowhere.ipynb)': 'nowhere.ipynb', '[a](cams.ipynb#no-such-heading)': 'no-such-heading', r'$\nosuchcommand$': 'nosuchcommand'}
    r = build(stage(tmp_path / 'src', '# Start\n\n' + '\n\n'.join([*broken, '[a](cams.ipynb)']), ['cams']), tmp_path / 'out')
    told = [l for l in r.stderr.splitlines() if 'WARNING' in l]
    assert r.returncode != 0 and len(told) == 3 and all(sum(text in l for l in told) == 1 for text in broken.values()), r.stderr
