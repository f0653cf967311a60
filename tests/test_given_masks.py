"""Masks that come from elsewhere through the line, and the look at ground truth while a network trains."""
import numpy as np
import pytest
import torch
from PIL import Image

from inside import inside
from wsss_nb.base.core import UserError, load_json
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import read_mask, save_mask
from wsss_nb.data.synthetic import synthetic, write_voc
from wsss_nb.engine.evaluate import Validation
from wsss_nb.engine.methods import segmenter_learner
from wsss_nb.engine.recipes import stage_parameters
from wsss_nb.engine.run import make_run

RECIPE = dict(limit=6, masks=dict(given='truth', splits=['train']), segment=dict(epochs=2, batch_size=3, validate='val', keep='best'), evaluate=dict(splits=['train', 'val']))


def test_the_datas_own_masks_are_an_upper_bound_without_any_localiser(tmp_path):
    with inside(): folder = make_run('bound', RECIPE, str(tmp_path))
    run, numbers = load_json(folder / 'run.json'), load_json(folder / 'metrics.json')['numbers']
    assert list(run['stages']) == ['masks', 'segment', 'evaluate']
    (masks,), networks = [n for n in numbers if n['what'] == 'masks'], [n for n in numbers if n['what'] == 'network']
    assert masks['miou'] == 1 and masks['method'] == 'given masks' and not masks['oracle'] and masks['threshold'] is None
    assert len(networks) == 2 and all(n['oracle'] and n['chosen_on'] == 'val' for n in networks)
    history = load_json(tmp_path / 'stages' / run['stages']['segment']['folder'] / 'stage.json')['results']['history']
    seen = {h['step']: h['val_miou'] for h in history if 'val_miou' in h}
    assert list(seen) == [2, 4]
    data, predicted = synthetic('train').subset(range(6)), tmp_path / 'stages' / run['stages']['evaluate']['folder'] / 'train'
    counts = np.zeros((9, 9))  # counted again, from the files, with nothing of ours
    for i, name in enumerate(data.names):
        ours, truth = np.array(Image.open(predicted / f'{name}.png')).ravel().astype(int), data.mask(i).ravel().astype(int)
        np.add.at(counts, (truth[truth < 255], ours[truth < 255]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert abs(np.mean(counts.diagonal()[union > 0] / union[union > 0]) - next(n['miou'] for n in networks if n['split'] == 'train')) < 1e-9


@pytest.fixture
def voc(tmp_path):
    write_voc(tmp_path / 'voc', limit=3)
    return tmp_path / 'voc/VOCdevkit'


def given(voc, tmp_path, change=lambda folder, names: None):
    data, folder = open_data('voc12', 'train', str(voc), tags='masks'), tmp_path / 'given'
    for i, n in enumerate(data.names): save_mask(folder / f'{n}.png', data.mask(i))
    change(folder, data.names)
    recipe = dict(stages=['masks'], data=dict(name='voc12', root=str(voc), tags='masks'), masks=dict(given=str(folder), splits=['train']))
    with inside(): return make_run('given', recipe, str(tmp_path / 'runs'), lambda _: None), folder, data


def test_plain_files_are_taken_as_they_are_and_changed_ones_are_taken_anew(voc, tmp_path):
    def masks(run): return tmp_path / 'runs/stages' / load_json(run / 'run.json')['stages']['masks']['folder'] / 'train'
    run, folder, data = given(voc, tmp_path)
    first = masks(run)
    assert all(np.array_equal(read_mask(first / f'{n}.png'), data.mask(n)) for n in data.names)
    run, _, _ = given(voc, tmp_path, lambda f, names: save_mask(f / f'{names[0]}.png', np.zeros_like(data.mask(0))))
    assert masks(run) != first and not read_mask(masks(run) / f'{data.names[0]}.png').any()


@pytest.mark.parametrize('change, text', [
    (lambda f, names: (f / f'{names[1]}.png').unlink(), r'1 of 3 images have none in .* \(first: train_0001\); add <image id>.png'),
    (lambda f, names: save_mask(f / f'{names[0]}.png', np.zeros((5, 7), np.uint8)), r'7x5'),
    (lambda f, names: save_mask(f / f'{names[2]}.png', np.full((96, 96), 77, np.uint8)), r'77'),
    (lambda f, names: Image.fromarray(np.full((96, 96, 3), 40, np.uint8)).save(f / f'{names[0]}.png'), r'train_0000\.png'),
])
def test_masks_that_do_not_fit_are_named(voc, tmp_path, change, text):
    with pytest.raises(UserError, match=text): given(voc, tmp_path, change)


def learner(tmp_path, keep, folder=True, data=None):
    train = synthetic('train').subset(range(4))
    look = Validation(synthetic('val').subset(range(3)) if data is None else data, 1, keep)
    return segmenter_learner(train, 'tiny', '', crop=64, batch_size=2, epochs=3, lr=.01, optimizer='adamw', device='cpu', callbacks=[look], folder=tmp_path if folder else None)


def test_looking_changes_nothing_and_best_keeps_the_best(tmp_path):
    from wsss_nb.metrics import Confusion
    last, best = learner(tmp_path / 'last', 'last'), learner(tmp_path / 'best', 'best')
    a, b = last.fit(), best.fit()
    assert a == b and [h['step'] for h in a if 'val_miou' in h] == [2, 4, 6]
    blind = learner(tmp_path / 'blind', 'last')
    blind.callbacks = blind.callbacks[:2]
    blind.fit()
    assert all(torch.equal(x, y) for x, y in zip(blind.raw_net.state_dict().values(), last.raw_net.state_dict().values()))
    counts, data = Confusion(9), synthetic('val').subset(range(3))
    for i in range(3): counts.update(best.raw_net.predict([data.image(i)], flip=False)[0].argmax(0).numpy(), data.mask(i))
    assert counts.miou() == max(h['val_miou'] for h in a if 'val_miou' in h)


def test_a_choice_needs_masks_and_a_place(tmp_path):
    with pytest.raises(UserError, match='keep=best needs a folder'): learner(tmp_path, 'best', folder=False).fit()
    data = synthetic('val').subset(range(2))
    data.records = [r._replace(mask=None) for r in data.records]
    with pytest.raises(UserError, match='has no masks to compare with; leave validate empty'): learner(tmp_path, 'last', data=data)
    with pytest.raises(UserError, match="keep: unknown name 'first'"): learner(tmp_path, 'first')
    with pytest.raises(UserError, match='segment.keep: best of what'): stage_parameters(dict(segment=dict(keep='best')))
