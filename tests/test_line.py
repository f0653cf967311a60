"""The line of a recipe (`engine.line`), and a localiser in it once more, to be asked for names"""
import json, shutil

import numpy as np
import pytest

from inside import inside

from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.in_tiles import network_mask
from wsss_nb.engine.methods import load_localiser, load_segmenter
from wsss_nb.engine.named import NamedNet, with_names
from wsss_nb.engine.plan import plan
from wsss_nb.engine.recipes import resolved, stage_parameters
from wsss_nb.engine.record import localiser_behind
from wsss_nb.engine.run import lined_up, run_recipe
from wsss_nb.engine.scale import graph
from wsss_nb.results.predict import load

ALL = ['train', 'masks', 'segment', 'names', 'evaluate']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    small = ['limit=6', f'stages=[{", ".join(ALL)}]', 'epochs=1', 'batch_size=3', 'workers=1', 'device=cpu', 'masks.scales=[1.0]', 'masks.refine=[]',
             'names={method: frozen, options: {side: 64, lessons: 1}}', 'segment.crop=64']
    with inside(): return run_recipe('cam_synthetic', small, tmp_path_factory.mktemp('runs'), 'named', say=lambda text: None)


def test_a_run_has_each_stage_under_its_name(run):
    made = json.loads((run / 'run.json').read_text())
    stages, store = made['stages'], run.parent / 'stages'
    assert made['state'] == 'done' and list(stages) == ALL and all((run / f'{s}.ipynb').is_file() for s in ALL)
    assert {s: stages[s]['stage'] for s in ALL} == dict(zip(ALL, ('train', 'masks', 'segment', 'train', 'evaluate')))
    name = {s: stages[s]['folder'] for s in ALL}
    assert name['train'] != name['names'] and stages['masks']['inputs'] == dict(localiser=name['train'])
    assert stages['evaluate']['inputs'] == dict(masks=name['masks'], network=name['segment'], names=name['names'])
    assert localiser_behind(store / name['masks']) == store / name['train']
    assert (stages['train']['parameters']['method'], stages['names']['parameters']['method']) == ('cam', 'frozen')


def test_its_network_asks_the_localiser_that_learnt_for_it(run):
    stages, store, data = json.loads((run / 'run.json').read_text())['stages'], run.parent / 'stages', synthetic('val', n=6)
    at = {s: store / v['folder'] for s, v in stages.items()}
    net, who = load_segmenter(at['segment'])[0], load_localiser(at['names'])[0]
    assert type(who).__name__ == 'Frozen'
    for s in data: assert np.array_equal(read_mask(at['evaluate'] / f'val/{s.name}.png'), network_mask(NamedNet(net, who), s.image))


def test_a_run_that_moved_still_asks_its_own_localiser(run, tmp_path):
    shutil.copytree(run.parent, tmp_path / 'moved')
    shutil.rmtree(tmp_path / 'moved/stages' / json.loads((run / 'run.json').read_text())['stages']['train']['folder'])  # which is not asked
    image, here = synthetic('val', n=1).image(0), load(run, 'cpu')
    there = load(tmp_path / 'moved/named', 'cpu')
    assert isinstance(there.net, NamedNet) and np.array_equal(here(image), there(image))


def test_what_is_there_is_kept_and_a_dry_run_names_every_stage(run):
    said, recipe = [], json.loads((run / 'run.json').read_text())['recipe']
    with inside(): run_recipe('cam_synthetic', [f'{k}={json.dumps(v)}' for k, v in recipe.items() if k not in ('about', 'expected', 'paper')], run.parent, 'named', say=said.append)
    assert [t.split()[:2] for t in said] == [[s, 'kept'] for s in ALL]
    lines = [*plan(recipe, run.parent)]
    assert [t.partition(':')[0] for t in lines if not t.startswith(' ')] == ALL and sum(t.endswith('there already') for t in lines) == len(ALL)


def test_stages_side_by_side_wait_for_what_they_stand_on(tmp_path):
    recipe = resolved(dict(stages=ALL, limit=4, names=dict(method='frozen')))
    nodes = graph({'named': recipe}, tmp_path)
    at = {s.name: s.folder for s in lined_up(recipe, tmp_path)}
    waits = {name: {k for k, f in at.items() if f in nodes[folder].after} for name, folder in at.items()}
    assert waits == dict(train=set(), masks={'train'}, segment={'masks'}, names=set(), evaluate={'masks', 'segment', 'names'})


@pytest.mark.parametrize('recipe, said', [
    (dict(masks=dict(splits=['val'])), r"segment.split: train is to be learnt from, and masks.splits are \['val'\]"),
    (dict(stages=ALL, names=dict(method='frozen', options=dict(lesons=1))), 'names.options of frozen: .*lesons'),
    (dict(masks=dict(given='truth'), evaluate=dict(names='localiser')), 'evaluate.names: there is no localiser behind masks that were given'),
    (dict(stages=ALL, names=dict(treshold=.3)), "recipe, names: unknown name 'treshold'"),
])
def test_what_does_not_go_together_is_told_in_one_line(recipe, said):
    with pytest.raises(UserError, match=said) as e: stage_parameters(recipe)
    assert '\n' not in str(e.value)


def test_a_localiser_of_other_classes_is_not_asked(tmp_path, run):
    stages = json.loads((run / 'run.json').read_text())['stages']
    folder = run.parent / 'stages' / stages['train']['folder']
    shutil.copytree(folder, tmp_path / 'train-other')
    made = json.loads((folder / 'stage.json').read_text())
    made['results']['classes'] = [f'x{k}' for k in range(8)]
    save_json(tmp_path / 'train-other/stage.json', made)
    net = load_segmenter(run.parent / 'stages' / stages['segment']['folder'])[0]
    with pytest.raises(UserError, match='names: .*train-other has learnt other classes'): with_names(net, str(tmp_path / 'train-other'), tmp_path / 'segment-a', runs=run.parent)
    with pytest.raises(UserError, match="names: expected localiser, or the folder of a train stage that was made, got 'localizer'"): with_names(net, 'localizer', tmp_path / 'segment-a')
