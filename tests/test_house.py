"""The house as CONTRIBUTING describes it: what each module says first, and how large a thing may grow."""
import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT / 'wsss_nb').rglob('*.py') if p.read_text(encoding='utf-8').strip())
TREES = {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding='utf-8')) for p in MODULES}
ROOMS = {'base', 'cams', 'cli', 'data', 'engine', 'metrics', 'nets', 'papers', 'refine', 'results', 'verbs'}
SHARED = {'prototypes', 'score_maps',  # of the papers' pages: the public calls have these names
          'forward', 'raw_maps', 'refine'}  # what each method, each step has


def names(tree): return [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
def error_lines(tree): return {i for n in ast.walk(tree) if isinstance(n, ast.Raise) for i in range(n.lineno, n.end_lineno + 1)}


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
