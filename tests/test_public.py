"""Every public name explains itself: a docstring, a notebook that shows it, comments on the parameters of the calls that others rely on, and one clear line where an argument is wrong."""
import ast
import importlib
import inspect
import io
import json
import pkgutil
import re
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch

import wsss_nb
from wsss_nb import cams, metrics
from wsss_nb.papers import ccmr, ecsnet, icd, sipe, svm
from wsss_nb.refine import crf, irn, pamr, psa, superpixels

NBS = Path(__file__).resolve().parents[1] / 'nbs'
MODULES = {m.name: importlib.import_module(m.name) for m in pkgutil.walk_packages(wsss_nb.__path__, 'wsss_nb.') if not m.name.endswith('_modidx')}
API = {cams: 'normalize with_background', metrics: 'Confusion pixel_ap', pamr: 'pamr', crf: 'dense_crf crf_from_labels', superpixels: 'merge_regions', irn: 'boundary_walk', psa: 'pair_affinity affinity_walk',
       sipe: 'hierarchical locate_seeds prototypes is_cam gsc_loss', svm: 'initial_seed sampling_probability zscore background_cosine self_enhanced_svm', ccmr: 'ccmr ngwp focal_penalty swp',
       icd: 'directional_scores bottom_up_loss SignAligner superpixel_mean top_down_loss seeds', ecsnet: 'minmax_cam erased_region blur_erase reliable_labels segmentation_loss multi_dilated_overlay'}
CALLS = {f'{m.__name__.split(".")[-1]}.{n}': getattr(m, n) for m, names in API.items() for n in names.split()}


def place(x): return x.__module__, x.__qualname__
def is_public(module, name): return inspect.isfunction(getattr(module, name, None)) or inspect.isclass(getattr(module, name, None))


PUBLIC = {place(getattr(m, n)): getattr(m, n) for m in MODULES.values() for n in getattr(m, '__all__', []) if is_public(m, n) and getattr(m, n).__module__ == m.__name__}


# -- docstrings and comments

def words(text): return re.findall(r'[a-z0-9]+', text.lower())


def test_there_is_much_to_walk(): assert len(MODULES) > 60 and len(PUBLIC) > 700 and len(CALLS) == 37


@pytest.mark.parametrize('module', MODULES)
def test_every_name_says_what_it_does(module):
    for (m, name), x in PUBLIC.items():
        own = x.__dict__.get('__doc__') if inspect.isclass(x) else x.__doc__
        if m == module: assert own and len(words(own)) > 2 and words(own) != words(name), f'{m}.{name}: {own!r}'


def parameters(f):
    "Name -> the comment behind it, of a function as it stands in its file"
    source = inspect.getsource(f)
    tree = ast.parse(inspect.cleandoc('\n' + source)).body[0]
    arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
    comments = {t.start[0]: t.string for t in tokenize.generate_tokens(io.StringIO(inspect.cleandoc('\n' + source) + '\n').readline) if t.type == tokenize.COMMENT}
    return {a.arg: comments.get(a.lineno, '') for a in arguments if a.arg != 'self'}


@pytest.mark.parametrize('name', CALLS)
def test_every_parameter_of_a_call_has_its_comment(name):
    x = CALLS[name]
    functions = [x.__init__, x.update if hasattr(x, 'matrix') or name.endswith('Confusion') else x.forward] if inspect.isclass(x) else [x]
    for f in functions:
        assert all(len(c.strip('# ')) > 1 for c in parameters(f).values()), f'{name}: {[k for k, c in parameters(f).items() if not c]}'


# -- examples. A name is shown where a cell that is not exported uses it. The calls above must be shown; every other name must be shown, or be used by one that is.

UNSHOWN = {}  # module.name -> why nothing shows it


def cells(path): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def imports(tree):
    "The names of wsss_nb that import statements give: alias -> (module, name), or the module itself"
    out = {}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and not n.level and (n.module or '').split('.')[0] == 'wsss_nb':
            for a in n.names: out[a.asname or a.name] = f'{n.module}.{a.name}' if f'{n.module}.{a.name}' in MODULES else (n.module, a.name)
        if isinstance(n, ast.Import):
            for a in n.names:
                if a.asname and a.name in MODULES: out[a.asname] = a.name
    return out


def mentioned(tree, known):
    "What code uses: places in modules, and '.name' for attributes of something else"
    out = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and isinstance(known.get(n.id), tuple): out.add(known[n.id])
        elif isinstance(n, ast.Attribute): out.add((known[n.value.id], n.attr) if isinstance(n.value, ast.Name) and isinstance(known.get(n.value.id), str) else f'.{n.attr}')
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and re.fullmatch(r'wsss_nb[\w.]*:\w+', n.value): out.add(tuple(n.value.split(':')))
    return out


def parsed(source):
    source = '\n'.join(l for l in source.splitlines() if not re.match(r'\s*[%!]', l))
    return ast.parse(source)


def shown():
    "What the cells of all notebooks use that are not exported"
    out = set()
    for path in NBS.rglob('*.ipynb'):
        code = cells(path)
        module = next((f'wsss_nb.{m[1]}' for c in code for m in [re.search(r'#\|\s*default_exp\s+(\S+)', c)] if m), None)
        known = {n: (module, n) for n in vars(MODULES[module])} if module else {}
        for c in code: known.update(imports(parsed(c)))
        for c in code:
            if not c.startswith('#| export'): out |= mentioned(parsed(c), known)
    return {original(*x) if isinstance(x, tuple) else x for x in out}


def original(module, name):
    "Where a name was defined that a module may only have imported"
    x = getattr(MODULES.get(module), name, None)
    return place(x) if (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ in MODULES else (module, name)


def uses():
    "What the code of each function, class and constant of the package uses"
    out = {}
    for module, m in MODULES.items():
        tree = ast.parse(inspect.getsource(m)) if Path(m.__file__).stat().st_size else ast.Module([], [])
        own = {n: (module, n) for n in vars(m)}
        for part in tree.body:
            names = [part.name] if isinstance(part, (ast.FunctionDef, ast.ClassDef)) else [n.id for t in getattr(part, 'targets', []) for n in ast.walk(t) if isinstance(n, ast.Name)]
            found = {original(*x) if isinstance(x, tuple) else x for x in mentioned(part, {**own, **absolute(imports(part))})}
            for n in names: out.setdefault((module, n), set()).update(found)
    return out


def absolute(known): return {k: v for k, v in known.items() if isinstance(v, str) or v[0] in MODULES}


def reached(first, edges):
    "What can be come to from the first names; an attribute leads to the functions that a module hangs onto a class"
    hung = {}
    for p, x in PUBLIC.items():
        if inspect.isfunction(x) and next(iter(inspect.signature(x).parameters), '') == 'self': hung.setdefault(f'.{p[1]}', set()).add(p)
    done, todo = set(), list(first)
    while todo:
        x = todo.pop()
        if x in done: continue
        done.add(x)
        todo += edges.get(x, ()) if isinstance(x, tuple) else hung.get(x, ())
    return done


def test_every_call_is_shown_in_a_notebook():
    there = shown()
    assert not [name for name, x in CALLS.items() if place(x) not in there]


def test_every_name_is_shown_or_used_by_one_that_is():
    lost = sorted('.'.join(x) for x in PUBLIC.keys() - reached(shown(), uses()))
    assert lost == sorted(UNSHOWN), lost
    assert len(UNSHOWN) <= 5


def test_the_walk_would_notice():
    assert place(metrics.rank16) not in reached(set(), uses()) and place(metrics.rank16) in reached({place(metrics.PixelAP)}, uses())
    assert mentioned(parsed('a.b(c)\nd.e'), imports(parsed('from wsss_nb import metrics as a\nfrom wsss_nb.core import digest as c'))) == {('wsss_nb.metrics', 'b'), ('wsss_nb.core', 'digest'), '.e'}
