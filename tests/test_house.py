"""The house as CONTRIBUTING describes it: what each module says first, and how large a thing may grow."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT / 'wsss_nb').rglob('*.py') if p.read_text(encoding='utf-8').strip() and p.parent != ROOT / 'wsss_nb' / 'stages')
TREES = {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding='utf-8')) for p in MODULES}


@pytest.mark.parametrize('module', TREES)
def test_a_module_says_first_what_lives_in_it(module):
    if module == 'wsss_nb/__init__.py': return  # it has a page of its own: help(wsss_nb)
    first = (ast.get_docstring(TREES[module]) or '').partition('\n')[0]
    assert first and first[0].isupper() or first[:1].isdigit(), f'{module}: its notebook begins with `# name: what lives in it`'
