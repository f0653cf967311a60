"""Outlines of some images: what comes back from the labelling tools, mistakes at the door, and that all networks learn from them beside the tags."""
import json

import numpy as np
import pytest
import torch

from conformity import ground
from inside import inside
from wsss_nb.base.core import UserError, load_json
from wsss_nb.cli import main
from wsss_nb.data.exports import by_end, picture_in
from wsss_nb.data.exported import name_in, of_brush, of_polygons, outlines_of_export
from wsss_nb.data.outlined import Outlined, with_outlines
from wsss_nb.data.sample import save_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.batches import Batches
from wsss_nb.engine.beside import Beside, shape_loss
from wsss_nb.engine.methods import METHODS, localiser_learner, segmenter_learner
from wsss_nb.engine.recipes import read_recipe
from wsss_nb.engine.run import make_run
from wsss_nb.results.handover import hand_over
from wsss_nb.results.run_lengths import studio_rle

CLASSES = ['cat', 'a dog', 'Möwe']
SMALL = dict(backbone='tiny', weights='', crop=48, batch_size=4, epochs=1, optimizer='adamw', lr=.002, head_lr=1., device='cpu', workers=0)


@pytest.fixture(scope='module')
def handed(tmp_path_factory):
    "Masks with holes, parts and noise, and what three tools would give back of them"
    from PIL import Image
    d, r, masks = tmp_path_factory.mktemp('back'), np.random.default_rng(0), {}
    ring = np.zeros((30, 41), np.uint8); ring[3:27, 4:30] = 1; ring[8:20, 9:20] = 0; ring[10:14, 11:15] = 3; ring[28:, 35:] = 2
    masks['pets/ring'], masks['noise'] = ring, r.integers(0, 4, (17, 23)).astype(np.uint8)
    for n, m in masks.items():
        save_mask(d / f'masks/{n}.png', m)
        (d / f'photos/{n}.png').parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(r.integers(0, 256, (*m.shape, 3), np.uint8)).save(d / f'photos/{n}.png')
    for to in ('coco', 'label-studio', 'cvat'): hand_over(d / 'masks', to, d / to, d / 'photos', ','.join(CLASSES))
    tasks = load_json(d / 'label-studio/tasks.json')  # a prediction that somebody took over
    (d / 'studio.json').write_text(json.dumps([dict(t, annotations=[dict(result=t['predictions'][0]['result'])]) for t in tasks]))
    return masks, dict(coco=d / 'coco/annotations/instances_default.json', studio=d / 'studio.json', cvat=d / 'cvat/annotations.xml')


@pytest.mark.parametrize('tool', ['coco', 'studio', 'cvat'])
def test_what_comes_back_equals_the_masks(handed, tool):
    masks, files = handed
    found = outlines_of_export(files[tool], dict.fromkeys(masks), CLASSES, lambda n: masks[n].shape)
    assert set(found) == set(masks) and all(np.array_equal(found[n], m) for n, m in masks.items())


def test_a_brush_of_runs_and_of_single_values():
    region = np.random.default_rng(1).random((40, 50)) < .5
    region[10:30] = True
    assert np.array_equal(of_brush(studio_rle(region), region.shape), region)


def test_polygons_are_filled_as_a_slow_test_of_points_says():
    from matplotlib.path import Path as Outline
    corners = [(3, 2), (17, 5), (9, 14)]
    y, x = np.mgrid[:20, :20] + .5
    inside_it = Outline(corners).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(20, 20)
    assert (of_polygons([sum(map(list, corners), [])], (20, 20)) != inside_it).mean() < .03


@pytest.mark.parametrize('file, names, found', [
    ('/data/local-files/?d=out/images/pets/r%20x.jpg', ['pets/r x'], 'pets/r x'), ('images/b.PNG', ['a', 'b'], 'b'),
    ('/data/upload/3/0a1b2c3d-rex.jpeg', ['rex'], 'rex'), ('C:\\photos\\tom.jpg', ['tom'], 'tom')])
def test_files_find_their_images(file, names, found): assert name_in(picture_in(dict(data=dict(id='7', image=file))), by_end(names), 'x.json') == found


def test_a_file_that_may_be_two_images_is_told():
    with pytest.raises(UserError, match="outlines: x.json: 'tom.jpg' may be 'garden/tom' or 'house/tom'; export it with its folder."): name_in('tom.jpg', by_end(['garden/tom', 'house/tom']), 'x.json')
    assert name_in('x/garden/tom.jpg', by_end(['garden/tom', 'tom']), 'x.json') == 'garden/tom' and name_in('ada.jpg', by_end(['tom']), 'x.json', part=True) is None


@pytest.mark.parametrize('file, text, said', [
    ('a.json', '{"images": [{"id": 1}', 'damaged or something else'), ('a.json', '{"tags": {}}', 'KeyError'), ('a.json', '7', 'expected an export of Label Studio'),
    ('a.json', '[]', 'nothing was drawn in it'), ('a.xml', '<annotations></annotations>', 'nothing was drawn in it'),
    ('a.xml', '<a><image name="train_0000" width="96" height="96"><mask label="cat" rle="0,9" left="3" top="2" width="4" height="2"/></image></a>', 'damaged or something else'),
    ('a.xml', '<a><image name="train_0000" width="96" height="96"><polygon label="lizard" points="1,1;9,1;9,9"/></image></a>', "class: unknown name 'lizard'"),
    ('a.xml', '<a><image name="rex.jpg" width="9" height="9"><polygon label="crab" points="1,1;9,1;9,9"/></image></a>', "'rex.jpg' is no image of these data"),
    ('a.xml', '<a><image name="train_0000" width="9" height="9"><polygon label="crab" points="1,1;9,1;9,9"/></image></a>', 'is 9x9, its image 96x96'),
    ('a.txt', 'x', 'expected a folder with <image id>.png, or an export')])
def test_damaged_exports_are_told_in_a_line(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said) as e: with_outlines(synthetic('train', n=2), tmp_path / file)
    assert '\n' not in str(e.value)


def studio_of(side, label='crab'):
    region = dict(original_height=side, original_width=side, value=dict(points=[[1, 1], [60, 1], [60, 60]], polygonlabels=[label]))
    return json.dumps([dict(data=dict(image='/data/train_0000.png'), annotations=[dict(result=[region])])])


def coco_of(side, label='crab'):
    drawn = dict(id=1, image_id=1, category_id=1, segmentation=[[1, 1, 8, 1, 8, 8]], iscrowd=0, area=24, bbox=[1, 1, 7, 7])
    return json.dumps(dict(images=[dict(id=1, file_name='train_0000.png', height=side, width=side)], categories=[dict(id=1, name=label)], annotations=[drawn]))


@pytest.mark.parametrize('door', [studio_of, coco_of])
def test_outlines_of_another_size_and_of_unknown_classes_are_told_at_every_door(tmp_path, door):
    file, data = tmp_path / 'a.json', synthetic('train', n=2)
    file.write_text(door(96))
    assert with_outlines(data, file).outlined == [0] and set(np.unique(with_outlines(data, file).mask(0))) == {0, 1 + data.classes.index('crab')}
    file.write_text(door(40))
    with pytest.raises(UserError, match="outlines: that of 'train_0000' is 40x40, its image 96x96; draw on the image itself, and export again."): with_outlines(data, file)
    file.write_text(door(96, 'crap'))
    with pytest.raises(UserError, match="a.json: class: unknown name 'crap'. Did you mean 'crab'?"): with_outlines(data, file)
    save_mask(tmp_path / 'few/train_0000.png', np.zeros((96, 40), np.uint8))
    with pytest.raises(UserError, match='few/train_0000.png.*40x96.*96x96'): with_outlines(data, tmp_path / 'few')
    save_mask(tmp_path / 'few/train_0000.png', np.full((96, 96), 9, np.uint8))
    with pytest.raises(UserError, match='expected 255 or 0..8, got 9 in train_0000.png'): with_outlines(data, tmp_path / 'few')


def test_the_command_tells_them_before_anything_is_made(tmp_path, capsys):
    save_mask(tmp_path / 'few/train_0001.png', np.zeros((96, 96), np.uint8)), save_mask(tmp_path / 'few/train_9999.png', np.zeros((5, 5), np.uint8))
    assert main(['run', 'cam_synthetic', '--dry-run', '--runs', str(tmp_path / 'runs'), '-p', f'outlines={tmp_path / "few"}']) == 2
    err = capsys.readouterr().err
    assert err.startswith(f'wsss: outlines: 1 of 2 files in {tmp_path / "few"} are of no image of synthetic train (train_9999).') and err.endswith('Name them <image id>.png, or take them out.\n')
    assert not (tmp_path / 'runs').exists()


def slow_loss(maps, mask, labels):
    "Eq. 1 of engine/beside, cell by cell"
    losses, (h, w) = [], maps.shape[2:]
    sy, sx = mask.shape[1] // h, mask.shape[2] // w
    for b in range(len(maps)):
        for k in range(maps.shape[1]):
            sums, top = [[0., 0.], [0., 0.]], np.abs(maps[b, k]).max()
            if not labels[b, k] or (mask[b] == 255).all(): continue
            for y in range(h):
                for x in range(w):
                    cell, z = mask[b, y * sy:(y + 1) * sy, x * sx:(x + 1) * sx], 10 * (maps[b, k, y, x] / top - .25)
                    shares = (cell == k + 1).mean(), ((cell != k + 1) & (cell != 255)).mean()
                    for side in (0, 1): sums[side][0] += shares[side] * np.log1p(np.exp((-z, z)[side])); sums[side][1] += shares[side]
            losses.append(sum(.5 * s / max(n, 1e-5) for s, n in sums))
    return np.mean(losses) if losses else 0.


def test_the_loss_of_a_map_is_what_the_equation_says():
    r = np.random.default_rng(0)
    maps, mask, labels = r.normal(size=(3, 2, 4, 5)), r.choice([0, 1, 2, 255], (3, 8, 15)), np.array([[1, 0], [1, 1], [0, 1]])
    mask[2] = 255
    assert abs(float(shape_loss(*map(torch.tensor, (maps, mask, labels)))) - slow_loss(maps, mask, labels)) < 1e-4


def some(n=12, outlined=(2, 5)):
    data = synthetic('train', n=n)
    return Outlined(data, {data.names[i]: data.mask(i) for i in outlined})


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'frozen'])
def test_every_trained_localiser_learns_from_outlines(method, tmp_path):
    learner = localiser_learner(some(), method, long_side=(48, 64), cache=tmp_path / 'regions', **{**SMALL, 'backbone': ground(method)})
    assert learner.plan == '3 steps of 4 and 1 outlined in the last third' and isinstance(learner.net, Beside)
    learner.raw_net.train()
    batch = {k: torch.stack([v, v]) if torch.is_tensor(v) else v for k, v in learner.views[-1, 2].items()}
    learner.net.outlines(batch).backward()  # by this loss alone the weights are moved
    assert sum(float(p.grad.abs().sum()) for p in learner.raw_net.parameters() if p.grad is not None) > 0
    learner.net.zero_grad()
    history = learner.fit()
    assert len(history) == 3 and np.isfinite(history[2]['outlines']) and history[2]['outlines'] > 0 and not any('outlines' in h for h in history[:2])


def test_outlines_make_maps_better():
    data, how = some(12, range(12)), {**SMALL, 'epochs': 40, 'long_side': (48, 64)}
    plain, taught = localiser_learner(data.source, **how), localiser_learner(data, **how)
    histories = plain.fit(), taught.fit()
    assert [['outlines' in h for h in history] for history in histories] == [[False] * 120, [False] * 80 + [True] * 40]
    views = [taught.views[-1000 - i, i] for i in range(12)]  # that neither has seen
    batch = {k: torch.stack([v[k] for v in views]) for k in ('image', 'mask', 'labels')}
    with torch.no_grad(): without, beside = (float(Beside(learner.raw_net, 12).outlines(batch)) for learner in (plain, taught))
    assert beside < .7 * without


@pytest.mark.parametrize('after', [7, 23])
def test_a_training_stopped_before_or_beside_outlines_goes_on_to_the_bit(tmp_path, after):
    data, how = some(12, range(12)), {**SMALL, 'epochs': 10, 'long_side': (48, 64)}
    taught = localiser_learner(data, **how)
    taught.fit()
    half, stop = localiser_learner(data, **how, folder=tmp_path), iter(range(after))
    go = half.one_step
    def some_steps(batch):
        if next(stop, None) is None: raise KeyboardInterrupt
        out = go(batch)
        half.save()
        return out
    half.one_step = some_steps
    with pytest.raises(KeyboardInterrupt): half.fit()
    again = localiser_learner(data, **how, folder=tmp_path)
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(again.raw_net.state_dict().values(), taught.raw_net.state_dict().values()))


def test_outlined_images_are_shared_out_and_others_stay():
    plain, more = list(Batches(20, 8, 5, 3)), list(Batches(20, 8, 5, 3, beside=[4, 9]))
    assert [b[:8] for b in more] == plain and {i for b in more for _, i in b[8:]} == {4, 9}
    assert [len(b) for b in more] == [8] * 6 + [10] * 4  # in the last third of ten steps
    first, second = (list(Batches(20, 8, 5, 3, 0, rank, 2, [4, 9])) for rank in (0, 1))
    assert all([len(b) for b in of] == [4] * 6 + [5] * 4 for of in (first, second))
    assert [sorted(a[:4] + b[:4]) for a, b in zip(first, second)] == [sorted(b[:8]) for b in more]
    assert [b[4] for b in first[6:]] != [b[4] for b in second[6:]]


def test_the_segmentation_network_takes_them_instead_of_pseudo_masks():
    source = synthetic('train', n=8)
    data = Outlined(source, {source.names[3]: np.full(source.size(3), 2, np.uint8)}, keep=True)
    assert data.has_masks and (data.mask(3) == 2).all() and np.array_equal(data.mask(1), source.mask(1))
    learner = segmenter_learner(data, **SMALL)
    assert learner.plan == '2 steps of 4 and 1 outlined in the last third'
    batch = torch.utils.data.default_collate([learner.views[e, i] for e, i in list(learner.order(0))[1]])
    learner.raw_net.eval()
    with torch.no_grad():
        found, own = learner.net(batch), learner.raw_net({k: v[:4] for k, v in batch.items()})['loss']
        outlined = learner.raw_net({k: v[4:] for k, v in batch.items()})['loss']
    assert (batch['mask'][4][batch['valid'][4]] == 2).all() and torch.allclose(found['loss'], own / 3 + outlined * 2 / 3)


def test_the_frozen_line_learns_from_them_and_goes_on(tmp_path):
    how = dict(method='frozen', backbone='tiny', weights='', options=dict(side=64, lessons=2), crop=48, device='cpu')
    plain, taught = localiser_learner(some().source, **how), localiser_learner(some(), **how, folder=tmp_path)
    plain.fit()
    h = taught.fit()
    assert h[1]['outlined'] == h[2]['outlined'] > 0 and h[1]['share'] == h[2]['share'] and 'share' not in plain.history[1]
    assert torch.equal(plain.raw_net.tags.weight, taught.raw_net.tags.weight) and not torch.equal(plain.raw_net.lessons[0].weight, taught.raw_net.lessons[0].weight)
    again = localiser_learner(some(), **how, folder=tmp_path / 'again')
    kept = dict(h[1])
    again.resume = lambda: (setattr(again, 'step', 2), again.history.extend(map(dict, h[:2])), again.raw_net.load_state_dict({**taught.raw_net.state_dict(), **{k: v * 0 for k, v in taught.raw_net.state_dict().items() if 'lessons.1' in k}}))
    again.fit()  # the last lesson alone, with the share that is on record
    assert torch.equal(again.raw_net.lessons[1].weight, taught.raw_net.lessons[1].weight) and again.history[2]['share'] == kept['share']


def test_a_run_with_outlines_and_without(tmp_path):
    data, folder = synthetic('train', n=6), tmp_path / 'few'
    for i in (1, 4): save_mask(folder / f'{data.names[i]}.png', data.mask(i))
    recipe = dict(read_recipe('cam_synthetic'), limit=6, stages=['train', 'masks', 'segment'], crop=48, epochs=1, batch_size=3)
    recipe = {**recipe, 'train': dict(epochs=1), 'masks': dict(scales=[1.0], splits=['train']), 'segment': dict(epochs=1)}
    def stages(**more):
        with inside(): run = make_run('some', {**recipe, **more}, str(tmp_path / 'runs'), lambda _: None)
        return {k: load_json(tmp_path / 'runs/stages' / v['folder'] / 'stage.json') for k, v in load_json(run / 'run.json')['stages'].items()}
    plain, taught = stages(), stages(outlines=str(folder))
    for s in ('train', 'segment'):
        assert 'outlines' in taught[s]['results']['history'][-1] and 'outlines' not in taught[s]['results']['history'][0] and 'outlines' not in plain[s]['results']['history'][0]
        assert list(taught[s]['data']) == ['train', 'train outlines'] and list(plain[s]['data']) == ['train'] and taught[s]['folder'] != plain[s]['folder']
    folder.rename(tmp_path / 'moved')
    assert stages(outlines=str(tmp_path / 'moved'))['train']['folder'] == taught['train']['folder']  # their place is no part of the key
    save_mask(tmp_path / f'moved/{data.names[1]}.png', data.mask(1) * 0)
    assert stages(outlines=str(tmp_path / 'moved'))['train']['folder'] != taught['train']['folder']  # their pixels are
