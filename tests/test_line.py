"""The line of a recipe (`engine.line`), and a localiser in it once more, to be asked for names"""
import json, shutil

import numpy as np
import pytest
import torch
from PIL import Image

from inside import inside

from wsss_nb.base.core import UserError, save_json
from wsss_nb.cli import main
from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.in_tiles import network_mask
from wsss_nb.engine.methods import load_localiser, load_segmenter
from wsss_nb.engine.named import NamedNet, opinion, with_names
from wsss_nb.engine.plan import plan
from wsss_nb.engine.recipes import resolved, stage_parameters
from wsss_nb.engine.record import Run, localiser_behind
from wsss_nb.engine.run import lined_up, make_run, run_recipe, where_masks
from wsss_nb.engine.scale import graph
from wsss_nb.nets.segmenter import agreed
from wsss_nb.results.doubt import doubts_of
from wsss_nb.results.handover import hand_over, masks_of_run
from wsss_nb.results.predict import find_pictures, load, predict_files

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


@pytest.fixture(scope='module')
def told(run):
    recipe = json.loads((run / 'run.json').read_text())['recipe']
    again = {**recipe, 'evaluate': {**recipe.get('evaluate', {}), 'use_image_labels': True, 'splits': ['val']}}
    with inside(): return make_run('told', again, run.parent, say=lambda text: None)


def test_told_the_tags_it_asks_which_thing_a_pixel_is_and_no_more(told):
    stages, store, data = json.loads((told / 'run.json').read_text())['stages'], told.parent / 'stages', synthetic('val', n=6)
    at = {s: store / v['folder'] for s, v in stages.items()}
    net, who, ready, free = load_segmenter(at['segment'])[0].eval(), load_localiser(at['names'])[0].eval(), load(told, 'cpu'), 0
    for i, s in enumerate(data):
        with torch.no_grad(): p = agreed(net.predict([s.image]), opinion(who, [s.image])[1].softmax(1))[0]
        keep = [0, *s.tags]
        mask = np.array(keep)[p[keep].argmax(0).numpy()]
        assert np.array_equal(mask, read_mask(at['evaluate'] / f'val/{s.name}.png')) and np.array_equal(mask, ready(s.image, s.tags)) and np.array_equal(mask, ready.mask(s.image, s.tags, 0))
        free += not np.array_equal(mask, np.array(keep)[ready.probabilities(s.image)[keep].argmax(0)])
    assert free  # what the localiser says of the tags would have changed some of them
    (told / 'p').mkdir()
    for s in data: Image.fromarray(s.image).save(told / f'p/{s.name}.png')
    assert not predict_files(ready, find_pictures(told / 'p'), told / 'out', {s.name: s.tags for s in data}, overlays=False)
    assert all(np.array_equal(read_mask(told / f'out/masks/{s.name}.png'), read_mask(at['evaluate'] / f'val/{s.name}.png')) for s in data)


def test_the_masks_of_a_network_that_was_told_the_tags_are_handed_on(run, told, tmp_path, capsys):
    stages, store = json.loads((told / 'run.json').read_text())['stages'], told.parent / 'stages'
    network, masks = (store / stages[s]['folder'] / 'val' for s in ('evaluate', 'masks'))
    split = stages['masks']['parameters']['splits'][0]
    assert split != 'val' and json.loads((told / 'run.json').read_text())['masks'] == {s: f'stages/{f.parent.name}/{s}' for s, f in Run(told).masks().items()}
    assert Run(told).masks() == {split: masks.parent / split, 'val': network} and Run(run).masks()['val'] == masks and Run(told).masks('masks')['val'] == masks
    with inside(): assert main(['handover', str(told), '--to', 'hf', '--out', str(tmp_path / 'a')]) == 0
    assert '12 pictures with masks of the network, told their tags (val), 8 classes' in capsys.readouterr().out
    found = masks_of_run(told)
    assert (found['val'].folder, found[split].folder, found[split].by) == (network, masks.parent / split, '') and found['val'].maps.is_dir() and found['val'].threshold == .25
    doubts = {of: doubts_of(masks_of_run(told, ['val'], of)['val']) for of in ('masks', 'network')}
    assert doubts['masks'].keys() == doubts['network'].keys() and doubts['masks'] != doubts['network']
    assert masks_of_run(run, of='network')['val'].maps is None  # told nothing, it may show what has no map
    pages = {k: (f / 'masks/index.html').read_text() for k, f in dict(run=run, told=told).items()}
    assert f'{network.parent.name}/val' in pages['told'] and f'{masks.parent.name}/{split}' in pages['told'] and network.parent.name not in pages['run']
    assert f'{network} (6 PNG, by the network)' in where_masks(told)[0] and 'by the network' not in where_masks(run)[0]
    for source, of, text in ((told, 'nets', "unknown name 'nets'"), (tmp_path / 'a', 'masks', 'is a folder of masks, made by no stage; leave --of out')):
        with pytest.raises(UserError, match=text): hand_over(source, 'hf', tmp_path / 'b', of=of)


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
