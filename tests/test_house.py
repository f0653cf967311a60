"""The house as CONTRIBUTING describes it: what each module says first, and how large a thing may grow."""
import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT / 'wsss_nb').rglob('*.py') if p.read_text(encoding='utf-8').strip())
TREES = {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding='utf-8')) for p in MODULES}
ROOMS = {'base', 'cams', 'cli', 'data', 'engine', 'metrics', 'nets', 'papers', 'refine', 'results', 'verbs'}
SHARED = {'prototypes', 'score_maps',  # of the papers' pages: the public calls have these names
          'forward', 'raw_maps', 'refine'}  # what each method, each step has


WIDE, SENTENCE = 120, 40  # characters of a line; of a text from which on it does not count
STARTS, ENDS = ({getattr(tokenize, f'{k}STRING_{w}', -1) for k in 'FT'} for w in ('START', 'END'))  # Python 3.12 on


def names(tree): return [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def test_the_top_has_these_rooms_and_no_more():
    there = {p.stem for p in (ROOT / 'wsss_nb').iterdir() if p.name[0] != '_' and (p.is_dir() or p.suffix == '.py')}
    assert there == ROOMS


@pytest.mark.parametrize('module', TREES)
def test_a_module_says_first_what_lives_in_it(module):
    if module == 'wsss_nb/__init__.py': return  # it has a page of its own: help(wsss_nb)
    first = (ast.get_docstring(TREES[module]) or '').partition('\n')[0]
    assert first and (first[0].isupper() or first[0].isdigit()), f'{module}: its notebook begins with `# name: what lives in it`'


@pytest.mark.parametrize('module', TREES)
def test_nothing_grows_into_a_pile(module):
    text = (ROOT / module).read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 250
    assert [(f.name, f.end_lineno - f.lineno + 1) for f in functions(TREES[module]) if f.end_lineno - f.lineno >= 30] == []


def test_a_name_is_defined_once():
    where = defaultdict(list)
    for module, tree in TREES.items():
        for name in names(tree): where[name].append(module)
    assert {n: m for n, m in where.items() if len(m) > 1 and n not in SHARED} == {}


def longest_texts(source):
    "Line -> characters of its longest text; docstrings and texts of several lines are none"
    longest, opened, before = defaultdict(int), [], tokenize.NEWLINE
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type in STARTS: opened.append(t.start)
        start = opened.pop() if t.type in ENDS else t.start
        docstring = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if t.type in {tokenize.STRING, *ENDS} and start[0] == t.end[0] and not docstring:
            longest[start[0]] = max(longest[start[0]], t.end[1] - start[1])
        if t.type not in (tokenize.NL, tokenize.COMMENT): before = t.type
    return longest


def wide_lines(source):
    "The lines that are too long without their longest text, below what nbdev writes at the top"
    longest, lines = longest_texts(source), source.split('\n')
    top = next((i for i, line in enumerate(lines) if line.startswith('# %% ../')), 0)
    free = lambda i: longest[i] if longest[i] >= SENTENCE else 0
    return [line for i, line in enumerate(lines, 1) if i > top and len(line) - free(i) > WIDE]


@pytest.mark.parametrize('module', sorted(TREES))
def test_a_line_is_read_at_one_glance(module):
    assert wide_lines((ROOT / module).read_text(encoding='utf-8')) == []


TOLD = "'expected a picture of the size that was asked for, got {x!r}'"


@pytest.mark.parametrize('line, told', [
    ('x = ' + 116 * '1', False), ('x = ' + 117 * '1', True),  # to the character
    ('y = 1  # ' + 112 * 'c', True), ('"' + 119 * 'd' + '"', True),  # comments and docstrings count
    (f"raise KeyError({TOLD}, {60 * '1'})", False), (f"raise KeyError(f{TOLD}, {60 * '1'})", False),  # one text does not
    (f"raise KeyError(f{TOLD}, {TOLD}, {TOLD})", True), (f"raise KeyError({TOLD}, {110 * '1'})", True),  # more do
    (f"d = dict({', '.join(f'key_{i}=' + repr('a short word') for i in range(7))})", True)])  # words are no sentence
def test_the_rule_of_lines_tells_long_ones(line, told):
    assert wide_lines(f'x = 1\n{line}\n') == ([line] if told else [])
