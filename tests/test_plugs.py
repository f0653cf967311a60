"""What somebody adds: a refiner in two places, an option of a head in two places. The rest of the kit is not touched."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from inside import inside
from wsss_nb.base.core import UserError
from wsss_nb.data.sample import load_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine import execute, key, parameters, recipes, refining, stage
from wsss_nb.engine.methods import check_network, load_segmenter, segmenter_learner, segmenter_of
from wsss_nb.engine.parameters import STAGES, notebook_parameters, parameters_of, stage_notebook
from wsss_nb.engine.recipes import stage_parameters
from wsss_nb.engine.run import run_recipe
from wsss_nb.nets import deeplab
from wsss_nb.refine import steps
from wsss_nb.refine.chain import refine, to_mask
from wsss_nb.refine.masks import write_masks
from wsss_nb.refine.psa import confident_labels

# place one: a function, and the record beside it
BLUR = '''
from scipy.ndimage import gaussian_filter

from wsss_nb.refine.steps import Step


def blurred(image, maps, sigma=2., sides=(1, 1)):
    "The maps, blurred"
    return maps._replace(maps=gaussian_filter(maps.maps, (0, sigma * sides[0], sigma * sides[1])))


def gated(net, image, maps, least=.5):
    "The maps, cut off; the network is only asked how many classes it knows"
    return maps._replace(maps=(maps.maps > least).astype('float32') * len(net.classes) / 8)


blur, gate = Step(blurred), Step(gated, needs='localiser')
'''
# place two: the recipe
RECIPE = 'stages: [train, masks]\nmasks: {refine: [FILE:blur], blur_sigma: 1.5, splits: [val], scales: [1.0]}\n'
SMALL = ['limit=6', 'train.epochs=1', 'train.batch_size=3', 'masks.workers=1']


@pytest.fixture
def mine(tmp_path):
    (tmp_path / 'mine.py').write_text(BLUR)
    (tmp_path / 'r.yaml').write_text(RECIPE.replace('FILE', str(tmp_path / 'mine.py')))
    return tmp_path


def made_by(folder, stage):
    "What is on record of a stage of a run, and its folder"
    name = json.loads((folder / 'run.json').read_text())['stages'][stage]['folder']
    return json.loads((folder.parent / 'stages' / name / 'stage.json').read_text()), folder.parent / 'stages' / name


def test_a_refiner_from_a_file_runs_through_a_recipe(mine):
    with inside(): folder = run_recipe(str(mine / 'r.yaml'), SMALL, runs=mine / 'runs')
    made, place = made_by(folder, 'masks')
    assert made['parameters']['blur_sigma'] == 1.5 and made['parameters']['blur_sides'] == [1, 1]
    from wsss_nb.data.sample import read_mask
    from wsss_nb.refine.chain import probabilities, with_threshold
    for name in synthetic('val', n=6).names:  # what the record says, computed by hand
        maps = probabilities(with_threshold(load_maps(mine / 'runs/stages' / made['results']['maps']['val'] / f'{name}.npz'), .25))
        slow = maps._replace(maps=gaussian_filter(maps.maps, (0, 1.5, 1.5)).clip(0, 1))
        assert np.array_equal(read_mask(place / f'val/{name}.png'), to_mask(slow))


def test_its_code_and_its_settings_count_and_what_comes_before_is_kept(mine, capsys):
    with inside() as first: run_recipe(str(mine / 'r.yaml'), SMALL, runs=mine / 'runs')
    with inside() as again: run_recipe(str(mine / 'r.yaml'), SMALL, runs=mine / 'runs')
    with inside() as other: run_recipe(str(mine / 'r.yaml'), [*SMALL, 'masks.blur_sides=[1, 2]'], runs=mine / 'runs')
    (mine / 'mine.py').write_text(BLUR.replace("The maps, blurred", "The maps, smoothed"))
    with inside() as changed: run_recipe(str(mine / 'r.yaml'), SMALL, runs=mine / 'runs')
    assert [s for s, _ in first] == ['train', 'masks'] and again == [] and [s for s, _ in other] == [s for s, _ in changed] == ['masks']
    assert len({name for made in (first, other, changed) for s, name in made if s == 'masks'}) == 3


def test_one_that_asks_for_the_localiser_has_a_place_of_its_own_in_the_store(mine):
    file = mine / 'mine.py'
    options = [*SMALL, f'masks.refine=[{file}:blur, {file}:gate, crf]', 'masks.gate_least=0.4', 'masks.crf_iters=1']
    with inside(): folder = run_recipe(str(mine / 'r.yaml'), options, runs=mine / 'runs')
    made, place = made_by(folder, 'masks')
    assert [u.split('-')[0] for u in made['uses']] == ['maps', 'refined', 'gate'] and len(list((place / 'val').glob('*.png'))) == 6
    for file in (mine / 'runs/stages' / made['uses'][2]).glob('*.npz'):
        keys, maps = load_maps(file)
        before = load_maps(mine / 'runs/stages' / made['uses'][1] / file.name)
        assert np.array_equal(maps, before.maps > .4)


def test_processes_and_the_library_find_it_too(mine, monkeypatch):
    monkeypatch.chdir(mine)
    data, maps = synthetic('val', n=4), Path('maps')
    from wsss_nb.data.sample import ScoreMaps, save_maps
    for s in (data[i] for i in range(4)): save_maps(maps / f'{s.name}.npz', np.array(s.tags), np.stack([s.mask == t for t in s.tags]).astype(np.float32))
    for workers, out in ((1, 'one'), (2, 'two')): write_masks(data, maps, out, workers, steps=['mine.py:blur'], blur_sigma=3.)
    for name in data.names: assert Path(f'one/{name}.png').read_bytes() == Path(f'two/{name}.png').read_bytes()
    m = ScoreMaps(np.arange(2), np.stack([np.eye(8), 1 - np.eye(8)]).astype(np.float32))
    image = np.zeros((8, 8, 3), np.uint8)
    assert not np.allclose(refine(image, m, ['mine.py:blur']).maps, refine(image, m, ['mine.py:blur'], blur_sigma=1.).maps)
    with pytest.raises(UserError, match="refine setting: unknown name 'blur_sigmas'. Did you mean 'blur_sigma'"): refine(image, m, ['mine.py:blur'], blur_sigmas=1.)
    with pytest.raises(UserError, match="refine: unknown name 'psa'.*Known: crf, pamr, superpixels"): refine(image, m, ['psa'])


@pytest.mark.parametrize('option, text', [
    ('masks.refine=[FILE:blurr]', "refine: step of mine.py: unknown name 'blurr'. Did you mean 'blur'"),
    ('masks.refine=[FILE]', 'names a file and no step; expected file.py:step, such as FILE:blur. Steps in this file: blur, gate.'),
    ('masks.refine=[your.py:blur]', "refine: your.py: no such file; 'your.py:blur' is a file, relative to"),
    ('masks.blur_sigma=wide', "masks.blur_sigma: expected float (the default is 2.0), got str 'wide'."),
    ('masks.blur_sgima=1.0', "recipe, masks: unknown name 'blur_sgima'. Did you mean 'blur_sigma'"),
    ('masks.refine=[FILE:blur, crff]', "masks.refine: unknown name 'crff'. Did you mean 'crf'? Known: crf, pamr, superpixels, psa, irn, svm, ccmr, prompt."),
])
def test_what_is_wrong_with_it_is_told_before_anything_runs(mine, option, text):
    file = str(mine / 'mine.py')
    with pytest.raises(UserError) as e: run_recipe(str(mine / 'r.yaml'), [*SMALL, option.replace('FILE', file)], runs=mine / 'runs')
    assert text.replace('FILE', file) in str(e.value) and '\n' not in str(e.value) and not (mine / 'runs').exists()


def test_one_of_the_kits_own_is_its_module_and_a_line(mine, monkeypatch):
    "registered like ours: known by its name, its settings are the masks stage's, its code counts"
    sys.path.insert(0, str(mine))
    try:
        monkeypatch.setitem(steps.REFINERS, 'blur', 'mine:blur')
        p = stage_parameters(dict(masks=dict(refine=['blur', 'crf'], blur_sigma=4)))['masks']
        assert p['blur_sigma'] == 4. and refining.pixel_settings(['blur'], p) == dict(blur_sigma=4., blur_sides=(1, 1))
        assert refining.disagreements() == []
    finally:
        sys.path.remove(str(mine)), sys.modules.pop('mine', None)


def test_parameters_of_the_masks_stage_and_signatures_agree_and_a_difference_is_found(monkeypatch):
    assert refining.disagreements() == []
    known = notebook_parameters(stage_notebook('masks'))
    changed = {k: (v, c) for k, (v, c) in dict(known, psa_beta=(9., ''), crf_colour=(1, '')).items() if k != 'svm_t_s'}
    monkeypatch.setattr(refining, 'notebook_parameters', lambda path: changed)
    assert refining.disagreements() == ['crf_colour: a parameter of masks, but no setting of crf', 'psa_beta: 9.0 in masks, 8 in psa', 'svm_t_s: a setting of svm, but no parameter of masks']


# -- one notebook, two stages

def test_the_stages_of_affinities_keep_their_own_parameters():
    psa, irn, page = parameters_of('psa'), parameters_of('irn'), notebook_parameters(stage_notebook('psa'))
    assert stage_notebook('psa') == stage_notebook('irn') and stage_notebook('irn').name == 'affinity.ipynb' and STAGES[:4] == ('train', 'psa', 'irn', 'masks')
    assert set(psa) - set(irn) == {'alphas', 'head_lr'} and set(irn) - set(psa) == {'fg', 'bg'} and set(page) == set(psa) | set(irn) | {'kind'}
    assert {k: (psa[k][0], irn[k][0]) for k in psa if k in irn and psa[k][0] != irn[k][0]} == dict(crf_preset=('psa', 'irn'), batch_size=(8, 16))
    assert psa['alphas'] == ([4, 32], 'powers of the background score: for sure foreground, for sure background [2 of >0.0..]')


def test_papermill_alone_makes_either_of_them(tmp_path):
    page = dict({k: v for k, (v, _) in notebook_parameters(stage_notebook('irn')).items()}, localiser='x')
    assert stage.parameters_in(dict(page, kind='irn'), 'irn') == {**{k: v for k, (v, _) in parameters_of('irn').items()}, 'localiser': 'x'}
    assert stage.parameters_in(dict(page, kind='psa', epochs=7), 'psa')['epochs'] == 7
    with pytest.raises(UserError, match="psa: unknown parameter 'fg'"): stage.parameters_in(dict(page, kind='psa', fg=.4), 'psa')
    with pytest.raises(UserError, match="kind: unknown name 'pas'. Did you mean 'psa'"): stage.parameters_in(dict(page, kind='pas'), 'psa')


def test_what_a_stage_of_affinities_depends_on():
    p = {k: v for k, (v, _) in parameters_of('psa').items()}
    code = {s: key.code_digest(s, p) for s in ('psa', 'irn')}
    assert code['psa'] != code['irn']  # one notebook, but each hangs on its own module alone
    read = {'psa': 'refine.psa', 'irn': 'refine.irn'}
    cells = '\n'.join(key.notebook_code(stage_notebook('psa')))
    assert not any(m in cells for m in read.values())


# -- a head gains an option

class Gated(deeplab.LightDeepLab):
    "place one: an argument of the head's class"
    def __init__(self, backbone, num_classes, width=128, loss='plain', head_lr=0., norm='group', gate=1.):
        super().__init__(backbone, num_classes, width, loss, head_lr, norm)
        self.gate = gate

    def logits(self, images): return super().logits(images) * self.gate


@pytest.fixture
def gated(monkeypatch, tmp_path):
    "place two: a line among the parameters of the stage"
    monkeypatch.setitem(deeplab.HEADS, 'light', Gated)
    nb = json.loads(stage_notebook('segment').read_text())
    [cell] = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    cell['source'].insert(9, 'gate: float = 0.0  # of the head light: what its scores are multiplied with\n')
    (tmp_path / 'stages').mkdir()
    for s in STAGES: shutil.copy(stage_notebook(s), tmp_path / 'stages')
    (tmp_path / 'stages/segment.ipynb').write_text(json.dumps(nb))
    for module in (parameters, execute, key): monkeypatch.setattr(module, 'stage_notebook', lambda s, real=stage_notebook: tmp_path / 'stages' / real(s).name)
    return tmp_path


def test_an_option_of_a_head_arrives_from_a_recipe_and_in_the_network_that_is_loaded(gated):
    text = 'stages: [masks, segment]\nmasks: {given: truth, splits: [train]}\nsegment: {gate: 0.5, epochs: 1, batch_size: 4, limit: 4}\n'
    (gated / 'r.yaml').write_text(text)
    with inside(): folder = run_recipe(str(gated / 'r.yaml'), ['limit=4'], runs=gated / 'runs')
    net, made = load_segmenter(folder)
    assert type(net) is Gated and net.gate == .5 and made['parameters']['gate'] == .5
    again, _ = load_segmenter(folder)
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad(): whole = deeplab.LightDeepLab.logits(again, image)
    assert torch.allclose(net.logits(image), whole * .5)


def test_it_arrives_in_a_script_and_is_refused_where_it_has_no_meaning(gated):
    data = recipes.typed and synthetic('train', n=4)
    learner = segmenter_learner(data, 'tiny', '', gate=3., crop=48, batch_size=2, device='cpu')
    assert learner.raw_net.gate == 3 and learner.raw_net.made['parameters'] == dict(backbone='tiny', stride=0, head='', norm='', convs='', width=0, loss='plain', gate=3.)
    with pytest.raises(UserError, match='gate: the head v1 has nothing that it could change'): check_network('segment', dict(backbone='tiny', head='v1', gate=2.), 8)
    with pytest.raises(UserError, match="segmenter_learner: unknown argument 'gaet'. Did you mean 'gate'"): segmenter_learner(data, 'tiny', '', gaet=3.)


@pytest.mark.parametrize('p', [dict(backbone='tiny'), dict(backbone='tiny', head='v3plus', norm='group', width=32, convs='separable', loss='balanced', head_lr=5., stride=8),
                               dict(backbone='resnet50', head='v2'), dict(backbone='tiny', head='v1', width=64, stride=8)])
def test_names_build_what_positions_built(p):
    "the parameters of a stage, by name, and the call that was written out before"
    from wsss_nb.nets.deeplab import make_segmenter
    p = {**{k: v for k, (v, _) in parameters_of('segment').items()}, **p}
    build = lambda f: (torch.manual_seed(3), f())[1]
    one = build(lambda: segmenter_of(p, 5, weights='', normalization=''))
    two = build(lambda: make_segmenter(p['backbone'], 5, p['head'], p['norm'], p['convs'], p['width'], p['loss'], p['head_lr'], weights='', stride=p['stride'], normalization=''))
    assert (type(one), one.loss, one.head_lr) == (type(two), two.loss, two.head_lr)
    for (k, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True): assert torch.equal(a, b), k


# -- what there is

@pytest.mark.parametrize('what', ['methods', 'refiners', 'backbones', 'heads'])
def test_what_is_registered_is_listed_with_a_sentence_and_its_page(what, capsys):
    from wsss_nb.cli import main
    from wsss_nb.engine.methods import METHODS
    from wsss_nb.nets.zoo import BACKBONES
    assert main(['list', what]) == 0
    lines, known = capsys.readouterr().out.splitlines(), dict(methods=METHODS, refiners=steps.REFINERS, backbones=[*BACKBONES, 'timm:NAME'], heads=deeplab.HEADS)[what]
    assert [l.split()[0] for l in lines] == list(known)
    for line in lines:
        said, _, page = line.rstrip(']').rpartition('  [')
        assert len(said.split()) > 4 and (Path(__file__).parents[1] / f'nbs/{page}.ipynb').is_file()


def test_a_list_shows_what_was_added_and_refuses_what_it_does_not_know(monkeypatch, capsys):
    from wsss_nb.cli import main
    monkeypatch.setitem(deeplab.HEADS, 'gated', Gated)
    assert main(['list', 'heads']) == 0
    assert "gated     place one: an argument of the head's class; stands on any backbone" in capsys.readouterr().out
    assert main(['list', 'head']) == 2 and "list: unknown name 'head'. Did you mean 'heads'? Known: methods, refiners, backbones, heads." in capsys.readouterr().err


def test_a_list_alone_shows_the_runs(tmp_path, capsys):
    from wsss_nb.cli import main
    assert main(['list', '--runs', str(tmp_path)]) == 0 and capsys.readouterr().out == f'no runs in {tmp_path}\n'
