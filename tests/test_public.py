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
from wsss_nb.base.arguments import VERBS
from wsss_nb.base.core import UserError, check_shapes
from wsss_nb.papers import ccmr, ecsnet, icd, sipe, svm
from wsss_nb.refine import crf, irn, pamr, psa, superpixels

NBS = Path(__file__).resolve().parents[1] / 'nbs'
MODULES = {m.name: importlib.import_module(m.name) for m in pkgutil.walk_packages(wsss_nb.__path__, 'wsss_nb.')}
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
    functions = [x.__init__, getattr(x, 'update' if name.endswith('Confusion') else 'forward')] if inspect.isclass(x) else [x]
    for f in functions:
        assert all(len(c.strip('# ')) > 1 for c in parameters(f).values()), f'{name}: {[k for k, c in parameters(f).items() if not c]}'


# -- examples. A name is shown where a cell that is not exported uses it. The calls above must be shown; every other name must be shown, or be used by one that is.

UNSHOWN = {'wsss_nb.base.processes.train_job': 'what each process of a launcher executes; tests/test_processes.py launches some'}  # module.name -> why nothing shows it


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
        known = {n: (module, n) for n in vars(MODULES[module])} if module in MODULES else {}  # the package itself only passes on what its modules hold
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
    out['wsss_nb.cli', 'main'] |= {place(v.does) for v in VERBS.values()}  # it calls what the verbs registered
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
    assert mentioned(parsed('a.b(c)\nd.e'), imports(parsed('from wsss_nb import metrics as a\nfrom wsss_nb.base.core import digest as c'))) == {('wsss_nb.metrics', 'b'), ('wsss_nb.base.core', 'digest'), '.e'}


# -- arguments: each of these is one clear line that names the argument

Z, ONE = torch.zeros, torch.ones
RGB, PROBS = np.zeros((6, 8, 3), np.uint8), np.full((2, 6, 8), .5, np.float32)
MAPS, IDS = np.full((2, 6, 8), .5), np.zeros((6, 8), int)
NAN = torch.full((1, 2, 6, 8), torch.nan)


def bad(x): return np.where(np.indices(x.shape).sum(0) == 0, np.nan, x).astype(x.dtype)


WRONG = {
    'normalize: rank': (lambda: cams.normalize(Z(3)), r'normalize: cam: expected maps \[B,K,h,w\]'),
    'normalize: no pixel': (lambda: cams.normalize(Z(1, 2, 0, 3)), 'normalize: cam'),
    'with_background: rank': (lambda: cams.with_background(Z(2, 3, 4)), r'with_background: cam: expected \[B,K,h,w\], no side 0, got \[2, 3, 4\]'),
    'with_background: no class': (lambda: cams.with_background(Z(1, 0, 2, 2)), 'with_background: cam'),
    'with_background: labels with background': (lambda: cams.with_background(Z(2, 3, 4, 4), ONE(2, 4)), r'labels: expected \[B,K\] with B=2, K=3'),
    'with_background: one row of labels': (lambda: cams.with_background(Z(2, 3, 4, 4), ONE(1, 3)), 'labels: expected'),  # torch would repeat it
    'Confusion: no class': (lambda: metrics.Confusion(0), 'num_classes: expected an integer of at least 1, got 0'),
    'Confusion: text': (lambda: metrics.Confusion('21'), "num_classes: expected an integer .* got '21'"),
    'Confusion: sizes': (lambda: metrics.Confusion(3).update(IDS, IDS[:5]), 'prediction is .* but target is .*; resize'),
    'Confusion: a label out of range': (lambda: metrics.Confusion(3).update(IDS, IDS + 3), 'target: expected ids 0..2 or 255, got 3'),
    'Confusion: a negative id': (lambda: metrics.Confusion(3).update(IDS - 1, IDS), 'prediction: expected ids 0..2 or 255, got -1'),
    'Confusion: scores': (lambda: metrics.Confusion(3).update(MAPS[0], IDS), 'prediction: expected integer class ids, got float64'),
    'Confusion: mean over a class that is not there': (lambda: metrics.Confusion(3).miou([0, 3]), r'classes: expected ids 0..2, got \[0, 3\]'),
    'pixel_ap: rank': (lambda: metrics.pixel_ap(MAPS, MAPS > 0), 'expected two flat arrays of one length'),
    'pixel_ap: lengths': (lambda: metrics.pixel_ap(np.zeros(3), np.zeros(4)), 'expected two flat arrays of one length'),
    'pixel_ap: a label map': (lambda: metrics.pixel_ap(np.zeros(3), np.array([0, 1, 255])), 'positives: expected true and false'),
    'pixel_ap: nan': (lambda: metrics.pixel_ap(np.array([0, np.nan]), np.array([0, 1])), 'the scores hold nan'),
    'pamr: rank': (lambda: pamr.pamr(Z(3, 6, 8), Z(1, 2, 6, 8)), r'pamr: expected image \[B,3,H,W\]'),
    'pamr: bytes': (lambda: pamr.pamr(Z(1, 3, 6, 8).byte(), Z(1, 2, 6, 8)), 'expected floating-point tensors'),
    'pamr: batch': (lambda: pamr.pamr(Z(2, 3, 6, 8), Z(1, 2, 6, 8)), 'pamr: expected image'),
    'pamr: nan': (lambda: pamr.pamr(Z(1, 3, 6, 8), NAN), 'mask are NaN'),
    'pamr: iterations': (lambda: pamr.pamr(Z(1, 3, 6, 8), Z(1, 2, 6, 8), -1), 'pamr_iters: expected 0 or more, got -1'),
    'pamr: dilations': (lambda: pamr.pamr(Z(1, 3, 6, 8), Z(1, 2, 6, 8), 1, ()), 'pamr_dilations: expected distances'),
    'dense_crf: image in [0,1]': (lambda: crf.dense_crf(RGB / 255, PROBS), 'image_u8: expected RGB uint8'),
    'dense_crf: channels first': (lambda: crf.dense_crf(RGB.transpose(2, 0, 1), PROBS), 'image_u8: expected RGB uint8'),
    'dense_crf: sizes': (lambda: crf.dense_crf(RGB[:5], PROBS), 'probs: expected the size of the image'),
    'dense_crf: logits': (lambda: crf.dense_crf(RGB, 9 * PROBS), 'are these logits'),
    'dense_crf: nan': (lambda: crf.dense_crf(RGB, bad(PROBS)), 'probs: 1 values are NaN'),
    'dense_crf: preset': (lambda: crf.dense_crf(RGB, PROBS, 'pas'), "crf_preset: unknown name 'pas'. Did you mean 'psa'"),
    'dense_crf: iterations': (lambda: crf.dense_crf(RGB, PROBS, iters=-1), 'crf_iters: expected 0 or more, got -1'),
    'crf_from_labels: a label out of range': (lambda: crf.crf_from_labels(RGB, IDS + 2, 2), 'label_map: expected 0..1 or 255, got 2'),
    'crf_from_labels: sizes': (lambda: crf.crf_from_labels(RGB, IDS[:5], 2), 'label_map: expected the size of the image'),
    'crf_from_labels: confidence': (lambda: crf.crf_from_labels(RGB, IDS, 2, confidence=1), 'confidence: expected a probability'),
    'merge_regions: floats': (lambda: superpixels.merge_regions(MAPS[0], ONE(1, 2)), 'regions: expected integers'),
    'merge_regions: a region without features': (lambda: superpixels.merge_regions(IDS + 4, np.ones((4, 2))), 'features: expected .* each of the 5 regions'),
    'merge_regions: nan': (lambda: superpixels.merge_regions(IDS, np.full((1, 2), np.nan)), 'features: some values are NaN'),
    'merge_regions: none left': (lambda: superpixels.merge_regions(IDS, np.ones((1, 2)), 0), 'max_regions: expected at least 1'),
    'boundary_walk: sizes': (lambda: irn.boundary_walk(Z(2, 6, 8), Z(6, 9)), 'cam and boundary: expected one size'),
    'boundary_walk: logits': (lambda: irn.boundary_walk(Z(2, 6, 8), 2 * ONE(6, 8)), 'boundary: expected values in 0..1'),
    'boundary_walk: arrays': (lambda: irn.boundary_walk(MAPS, MAPS[0]), 'cam: expected a torch tensor, got ndarray'),
    'boundary_walk: rank': (lambda: irn.boundary_walk(Z(6, 8), Z(6, 8)), r'cam: expected .* maps \[C,h,w\]'),
    'boundary_walk: nan': (lambda: irn.boundary_walk(NAN[0], Z(6, 8)), 'cam: some values are NaN'),
    'affinity_walk: radius': (lambda: psa.affinity_walk(Z(2, 6, 8), Z(3, 6, 8), radius=1), 'radius: expected an integer of at least 2'),
    'affinity_walk: sizes': (lambda: psa.affinity_walk(Z(2, 6, 8), Z(3, 5, 8)), 'cam and features: expected one size'),
    'affinity_walk: steps': (lambda: psa.affinity_walk(Z(2, 6, 8), Z(3, 6, 8), log2_steps=-1), 'log2_steps: expected 0, 1, 2'),
    'pair_affinity: rank': (lambda: psa.pair_affinity(Z(3, 6, 8)), r'features: expected float \[B,D,h,w\]'),
    'pair_affinity: radius': (lambda: psa.pair_affinity(Z(1, 3, 6, 8), 1), 'radius: expected an integer of at least 2'),
    'hierarchical: nothing': (lambda: sipe.hierarchical([], []), 'stages: expected at least one'),
    'hierarchical: projections': (lambda: sipe.hierarchical([Z(1, 2, 4, 4)], []), 'projections: expected one for each of the 1 stages'),
    'hierarchical: kernel': (lambda: sipe.hierarchical([Z(1, 2, 4, 4)], [Z(5, 3)]), r'projections\[0\]: expected a kernel \[o,2,1,1\]'),
    'hierarchical: 3x3 kernel': (lambda: sipe.hierarchical([Z(1, 2, 4, 4)], [Z(5, 2, 3, 3)]), r'projections\[0\]: expected a kernel'),
    'hierarchical: batch': (lambda: sipe.hierarchical([Z(1, 2, 8, 8), Z(2, 2, 4, 4)]), r'stages\[0\]: expected \[2,c,h,w\]'),
    'locate_seeds: grids': (lambda: sipe.locate_seeds(Z(1, 5, 4, 4), Z(1, 3, 8, 8)), 'cam: expected .* on the grid of the features'),
    'prototypes: grids': (lambda: sipe.prototypes(Z(1, 5, 4, 4), Z(1, 4, 4)), 'seeds: expected .* on the grid of the features'),
    'is_cam: length': (lambda: sipe.is_cam(Z(1, 5, 4, 4), Z(1, 3, 6)), r'prototypes: expected \[1,K\+1,5\]'),
    'gsc_loss: shapes': (lambda: sipe.gsc_loss(Z(1, 3, 4, 4), Z(1, 3, 4, 5)), 'gsc_loss: expected two maps of one shape'),
    'gsc_loss: empty batch': (lambda: sipe.gsc_loss(Z(0, 3, 4, 4), Z(0, 3, 4, 4)), 'gsc_loss: cam: .* no side 0'),  # its mean would be nan
    'initial_seed: a class that is not there': (lambda: svm.initial_seed(MAPS, [3]), r'present: expected class ids 1..2, got \[3\]'),
    'initial_seed: rank': (lambda: svm.initial_seed(MAPS[0], [1]), r'cam: expected maps \[K,H,W\]'),
    'initial_seed: nan': (lambda: svm.initial_seed(bad(MAPS), [1]), 'cam: some values are NaN'),
    'initial_seed: thresholds': (lambda: svm.initial_seed(MAPS, [1], .1, .3), 't_bg, t_fg: expected t_bg <= t_fg'),
    'sampling_probability: class': (lambda: svm.sampling_probability(MAPS, IDS, 3), 'cls: expected 0, the background, or a class id 1..2, got 3'),
    'sampling_probability: sizes': (lambda: svm.sampling_probability(MAPS, IDS[:5], 1), 'seed: expected the size of the maps'),
    'zscore: rank': (lambda: svm.zscore(MAPS[0]), r'features: expected \[D,H,W\]'),
    'zscore: nan': (lambda: svm.zscore(bad(MAPS)), 'features: some values are NaN'),
    'background_cosine: sizes': (lambda: svm.background_cosine(MAPS, IDS[:5], [0]), 'features: expected .* the size of the seed'),
    'background_cosine: positions': (lambda: svm.background_cosine(MAPS, IDS, [48]), r'sampled: expected positions 0..47 in the seed, got 48..48'),
    'self_enhanced_svm: samples': (lambda: svm.self_enhanced_svm(ONE(3, 2), [0, 1], ONE(4, 2)), r'svm: expected x \[n,D\], y \[n\]'),
    'self_enhanced_svm: none': (lambda: svm.self_enhanced_svm(np.zeros((0, 2)), [], ONE(4, 2)), 'with n > 0'),
    'self_enhanced_svm: nan': (lambda: svm.self_enhanced_svm(np.full((2, 2), np.nan), [0, 1], ONE(4, 2)), 'svm: some features are NaN'),
    'self_enhanced_svm: gamma': (lambda: svm.self_enhanced_svm(ONE(2, 2), [0, 1], ONE(4, 2), gamma='auto'), "gamma: expected 'scale' or a positive number"),
    'self_enhanced_svm: cycles': (lambda: svm.self_enhanced_svm(ONE(2, 2), [0, 1], ONE(4, 2), cycles=-1), 'cycles: expected 0 or more'),
    'ccmr: sizes': (lambda: ccmr.ccmr(Z(1, 3, 6, 8), Z(1, 2, 3, 4), ONE(1, 2)), 'ccmr: expected image .* and mask .* of one size'),
    'ccmr: present': (lambda: ccmr.ccmr(Z(1, 3, 6, 8), Z(1, 2, 6, 8), ONE(1, 3)), r'ccmr: expected present \[1, 2\]'),
    'ccmr: nan': (lambda: ccmr.ccmr(Z(1, 3, 6, 8), NAN, ONE(1, 2)), 'NaN or infinite'),
    'ccmr: iterations': (lambda: ccmr.ccmr(Z(1, 3, 6, 8), Z(1, 2, 6, 8), ONE(1, 2), -1), 'iters: expected 0 or more'),
    'ccmr: scale': (lambda: ccmr.ccmr(Z(1, 3, 6, 8), Z(1, 2, 6, 8), ONE(1, 2), scale=0), 'scale: expected a number above 0'),
    'ngwp: shapes': (lambda: ccmr.ngwp(Z(2, 3, 4, 4), Z(2, 1, 4, 4)), 'ngwp: mask: expected'),  # torch would repeat it
    'focal_penalty: rank': (lambda: ccmr.focal_penalty(Z(3, 4, 4)), r'focal_penalty: mask: expected \[B,K,h,w\]'),
    'swp: labels': (lambda: ccmr.swp(*[Z(2, 3, 4, 4)] * 3, ONE(2, 2)), 'swp: labels: expected'),
    'directional_scores: channels': (lambda: icd.directional_scores(Z(1, 5, 4, 4), Z(3, 6)), r'weight: expected \[K,D\] with D=5, .*got \[3, 6\]'),
    'bottom_up_loss: labels': (lambda: icd.bottom_up_loss(Z(2, 5, 4, 4), Z(3, 5), ONE(1, 3)), 'bottom_up_loss: labels'),
    'bottom_up_loss: empty batch': (lambda: icd.bottom_up_loss(Z(0, 5, 4, 4), Z(3, 5), ONE(0, 3)), 'bottom_up_loss: features: .* no side 0'),
    'bottom_up_loss: kind': (lambda: icd.bottom_up_loss(Z(1, 5, 4, 4), Z(3, 5), ONE(1, 3), 'squares'), "kind: unknown name 'squares'. Did you mean 'square'"),
    'SignAligner: mode': (lambda: icd.SignAligner(3, mode='papers'), "Did you mean 'paper'"),
    'SignAligner: classes': (lambda: icd.SignAligner(3).eval()(Z(1, 1, 4, 4), Z(1, 1, 4, 4), None), r'SignAligner: scores: expected \[B,3,h,w\]'),
    'SignAligner: labels': (lambda: icd.SignAligner(3)(Z(1, 3, 4, 4), Z(1, 3, 4, 4), ONE(2, 3)), 'SignAligner: labels'),
    'superpixel_mean: batch': (lambda: icd.superpixel_mean(Z(2, 3, 4, 4), Z(1, 8, 8).long()), 'superpixel_mean: regions: expected'),
    'superpixel_mean: floats': (lambda: icd.superpixel_mean(Z(1, 3, 4, 4), Z(1, 8, 8)), 'superpixel_mean: regions: expected integers'),
    'top_down_loss: target': (lambda: icd.top_down_loss(Z(1, 3, 4, 4), Z(1, 1, 4, 4), ONE(1, 3)), 'top_down_loss: target'),
    'seeds: present': (lambda: icd.seeds(Z(2, 4, 4), Z(2, 4, 4), [1]), r'seeds: present: expected \[K\] with K=2'),
    'seeds: background among them': (lambda: icd.seeds(Z(2, 4, 4), Z(2, 4, 4), [0, 1]), 'present: expected class ids from 1 on'),
    'seeds: nobody': (lambda: icd.seeds(Z(0, 4, 4), Z(0, 4, 4), []), 'seeds: icd: .* no side 0'),
    'seeds: nan': (lambda: icd.seeds(NAN[0], Z(2, 6, 8), [1, 2]), 'some scores are NaN'),
    'minmax_cam: labels with background': (lambda: ecsnet.minmax_cam(Z(1, 4, 4, 4), ONE(1, 4)), r'minmax_cam: labels: expected \[B,K\] with B=1, K=3'),
    'erased_region: rank': (lambda: ecsnet.erased_region(Z(3, 4, 4)), 'erased_region: cam'),
    'blur_erase: sizes': (lambda: ecsnet.blur_erase(Z(1, 3, 6, 8), Z(1, 6, 9).bool(), 1., 2), 'blur_erase: region: expected'),
    'blur_erase: floats': (lambda: ecsnet.blur_erase(Z(1, 3, 6, 8), Z(1, 6, 8), 1., 2), 'region: expected bool'),
    'blur_erase: sigma': (lambda: ecsnet.blur_erase(Z(1, 3, 6, 8), Z(1, 6, 8).bool(), 0., 2), 'expected sigma > 0'),
    'reliable_labels: sizes': (lambda: ecsnet.reliable_labels(Z(1, 3, 6, 8), Z(2, 6, 8).bool()), 'reliable_labels: erased'),
    'reliable_labels: bytes': (lambda: ecsnet.reliable_labels(Z(1, 3, 6, 8), Z(1, 6, 8).byte()), 'erased: expected bool'),  # ~ would give other numbers
    'segmentation_loss: a label out of range': (lambda: ecsnet.segmentation_loss(Z(1, 3, 6, 8), torch.full((1, 6, 8), 3)), r'label_map: expected ids 0..2 or 255, got 3..3'),
    'segmentation_loss: batch': (lambda: ecsnet.segmentation_loss(Z(2, 3, 6, 8), Z(1, 6, 8).long()), 'segmentation_loss: label_map'),
    'multi_dilated_overlay: kernel': (lambda: ecsnet.multi_dilated_overlay(Z(1, 5, 6, 8), Z(3, 5, 1, 1), None), r'weight: expected \[C,D,3,3\]'),
    'multi_dilated_overlay: bias': (lambda: ecsnet.multi_dilated_overlay(Z(1, 5, 6, 8), Z(3, 5, 3, 3), Z(4)), r'bias: expected \[3\]'),
    'multi_dilated_overlay: rates': (lambda: ecsnet.multi_dilated_overlay(Z(1, 5, 6, 8), Z(3, 5, 3, 3), None, (0,)), 'rates: expected whole dilations'),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_wrong_argument_is_told_in_one_line(case):
    call, text = WRONG[case]
    with pytest.raises(UserError) as e: call()
    assert re.search(text, str(e.value)) and '\n' not in str(e.value) and len(str(e.value)) < 300, str(e.value)


def test_every_call_is_asked_something_wrong(): assert {c.split('.')[1] for c in CALLS} == {case.split(':')[0] for case in WRONG}


def test_checks_cost_microseconds():
    import timeit
    x, y = Z(8, 20, 4, 4), Z(8, 20)
    assert min(timeit.repeat(lambda: check_shapes('f', x=(x, 'B K h w'), y=(y, 'B K')), number=200, repeat=5)) / 200 < 1e-4
