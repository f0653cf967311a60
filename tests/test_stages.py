"""Strange images through the stages: one pixel, a very large photograph, no tag, no ground truth."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from inside import inside
from wsss_nb.cams import CamNet, write_score_maps
from wsss_nb.base.core import UserError
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import load_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.evaluate import write_predictions
from wsss_nb.nets.deeplab import LightDeepLab
from wsss_nb.nets.segmenter import mask_loss
from wsss_nb.nets.zoo import build
from wsss_nb.refine.masks import WithMasks, refined_mask, write_masks


def folder(tmp_path, sizes):
    root = tmp_path / 'photos'
    root.mkdir()
    rng = np.random.default_rng(0)
    for name, (w, h) in sizes.items(): Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(root / f'{name}.png')
    (root / 'tags.csv').write_text('image,tags\n' + ''.join(f'{n}.png,{"cat" if i % 2 else "dog;cat"}\n' for i, n in enumerate(sizes)))
    return open_data('folder', '', str(root))


@pytest.mark.parametrize('sizes', [dict(one=(1, 1), thin=(300, 2), two=(2, 3)), pytest.param(dict(large=(1200, 800)), id='1200x800'), pytest.param(dict(large=(6000, 4000)), id='6000x4000', marks=pytest.mark.slow)])
def test_images_of_any_size_get_maps_masks_and_predictions(tmp_path, sizes):
    data = folder(tmp_path, sizes)
    torch.manual_seed(0)
    write_score_maps(CamNet(build('tiny'), 2), data, tmp_path / 'maps')
    write_masks(data, tmp_path / 'maps', tmp_path / 'masks', steps=['crf'] if 'one' in sizes else [])
    write_predictions(LightDeepLab(build('tiny'), 2).eval(), data, tmp_path / 'predictions')
    for name, (w, h) in sizes.items():
        maps = load_maps(tmp_path / f'maps/{name}.npz')
        assert maps.maps.shape == (len(data[name].tags), h, w) and np.isfinite(maps.maps).all() and maps.maps.max() <= 1
        for out in ('masks', 'predictions'): assert Image.open(tmp_path / out / f'{name}.png').size == (w, h)


def test_the_network_names_the_classes_where_tags_are_not_to_be_used(tmp_path):
    data = folder(tmp_path, dict(a=(40, 30)))
    net = CamNet(build('tiny'), 2)
    with torch.no_grad(): net.head.weight[0], net.head.weight[1] = net.head.weight[0].abs(), -net.head.weight[1].abs()  # features are not negative
    write_score_maps(net, data, tmp_path / 'maps', use_image_labels=False)
    assert load_maps(tmp_path / 'maps/a.npz').keys.tolist() == [1] and data[0].tags == (1, 2)


@pytest.mark.parametrize('crf', ['', 'irn'])
def test_a_network_that_is_told_the_tags_predicts_no_other_class(tmp_path, crf):
    from wsss_nb.data.sample import read_mask
    from wsss_nb.refine.crf import dense_crf
    data = synthetic('val', n=4)
    torch.manual_seed(3)
    net = LightDeepLab(build('tiny'), 8).eval()
    write_predictions(net, data, tmp_path / 'free'), write_predictions(net, data, tmp_path / 'told', crf=crf, use_image_labels=True)
    for i, s in enumerate(data[k] for k in range(4)):
        p, ids = net.predict([s.image])[0].numpy(), np.array([0, *s.tags], np.uint8)
        q = p[ids] / p[ids].sum(0)
        assert np.array_equal(read_mask(tmp_path / f'told/{s.name}.png'), ids[(dense_crf(s.image, q, preset=crf) if crf else q).argmax(0)])
        assert np.array_equal(read_mask(tmp_path / f'free/{s.name}.png'), p.argmax(0))
    data.records = [r._replace(tags=None) for r in data.records]
    with pytest.raises(UserError, match='4 of 4 images have no tags'): write_predictions(net, data, tmp_path / 'more', use_image_labels=True)


def test_an_image_without_any_tag_is_background(tmp_path):
    maps = CamNet(build('tiny'), 3).eval().score_maps([np.zeros((4, 5, 3), np.uint8)], torch.zeros(1, 3))[0]
    mask = refined_mask(np.zeros((4, 5, 3), np.uint8), maps, ['crf'])
    assert mask.shape == (4, 5) and not mask.any()


def test_masks_of_other_images_are_refused(tmp_path):
    from wsss_nb.data.sample import save_mask
    data = folder(tmp_path, dict(a=(40, 30)))
    save_mask(tmp_path / 'masks/a.png', np.zeros((30, 41), np.uint8))
    with pytest.raises(UserError, match='a.png is 41x30, its image 40x30; were they made from other images'): WithMasks(data, tmp_path / 'masks').mask(0)


def test_only_ignored_pixels_give_no_loss_and_no_nan():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    for kind in ('plain', 'balanced'):
        loss = mask_loss(logits, torch.full((1, 4, 4), 255), kind)
        loss.backward()
        assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize('recipe', ['own_folder', 'own_folder_trained'])
def test_your_own_folder_without_ground_truth_from_tags_to_report(recipe, tmp_path, capsys):
    from wsss_nb.cli import main
    from wsss_nb.data.synthetic import synthetic
    drawn, root = synthetic('train', n=8), tmp_path / 'my photos'
    (root / 'sub').mkdir(parents=True)
    for i in range(8): Image.fromarray(drawn.image(i)).save(root / ('sub' if i % 2 else '.') / f'photo {i}.png')
    (root / 'tags.csv').write_text('image,tags\n' + ''.join(f'{"sub/" if i % 2 else ""}photo {i}.png,{";".join(drawn.classes[t - 1] for t in drawn[i].tags)}\n' for i in range(8)))
    assert main(['data', 'check', 'folder', '--root', str(root), '--sheet', str(tmp_path)]) == 0
    small = ['backbone=tiny', 'weights=', 'train.steps=2', 'train.batch_size=4', 'train.crop=64', 'train.long_side=[64, 96]', 'segment.steps=1', 'segment.batch_size=4', 'segment.crop=64', 'masks.scales=[1.0]', 'masks.workers=1', 'names.backbone=tiny', 'names.stride=0', 'names.options={side: 64}'] if recipe == 'own_folder_trained' else ['backbone=tiny', 'weights=', 'train.options={side: 64}', 'masks.workers=1']
    with inside(): assert main(['run', recipe, '--runs', str(tmp_path / 'runs'), '-p', f'data.root={root}', *[x for o in small for x in ('-p', o)]]) == 0
    run = json.loads((tmp_path / f'runs/{recipe}/run.json').read_text())
    masks = tmp_path / 'runs/stages' / run['stages']['masks']['folder'] / 'all'
    assert sorted(p.relative_to(masks).as_posix() for p in masks.rglob('*.png')) == sorted(f'{"sub/" if i % 2 else ""}photo {i}.png' for i in range(8))
    assert json.loads((tmp_path / f'runs/{recipe}/metrics.json').read_text())['numbers'] == []
    assert 'No ground truth, no numbers' in (tmp_path / f'runs/{recipe}/report.html').read_text()
    capsys.readouterr()
    new = str(root / 'photo 0.png')
    assert main(['predict', recipe, new, '--out', str(tmp_path / 'new'), '--runs', str(tmp_path / 'runs'), '--scales', '1', '--crf', 'none']) == 0  # by the network, or by the linear layers alone
    assert '1 of 1 pictures predicted' in capsys.readouterr().out and (tmp_path / 'new/masks/photo 0.png').is_file()
    steps = json.loads((tmp_path / 'runs/stages' / run['stages']['train']['folder'] / 'stage.json').read_text())['results']['steps']
    assert steps == (4 if recipe == 'own_folder' else 2)


def test_a_segmentation_network_can_go_on_with_the_localisers_backbone(tmp_path):
    from wsss_nb.base.core import save_json
    from wsss_nb.engine.methods import load_localiser, localiser_learner, segmenter_learner
    from wsss_nb.engine.record import localiser_behind
    data, train, masks = synthetic('train', n=8), tmp_path / 'stages/train-a', tmp_path / 'stages/masks-a'
    learner = localiser_learner(data, 'cam', 'tiny', '', crop=48, epochs=1, batch_size=4, lr=.01, device='cpu', folder=train)
    learner.fit()
    save_json(train / 'stage.json', dict(stage='train', parameters=dict(method='cam', backbone='tiny', stride=0, options={}), results=dict(classes=data.classes)))
    save_json(masks / 'stage.json', dict(stage='masks', inputs=dict(localiser=train.name)))
    start = load_localiser(localiser_behind(masks))[0].backbone
    assert all(torch.equal(v, learner.raw_net.backbone.state_dict()[k]) for k, v in start.state_dict().items())
    net = segmenter_learner(data, 'tiny', 'localiser', start=start, crop=48, epochs=1, device='cpu').raw_net
    fresh = segmenter_learner(data, 'tiny', '', crop=48, epochs=1, device='cpu').raw_net
    assert all(torch.equal(v, net.backbone.state_dict()[k]) for k, v in start.state_dict().items()) and not net.backbone.frozen_norm
    assert not torch.equal(net.backbone.layer1[0].weight, fresh.backbone.layer1[0].weight)
    assert net.backbone.layer1[0].weight.data_ptr() != start.layer1[0].weight.data_ptr()  # a copy
    with pytest.raises(UserError, match='mobilenet_v2 cannot begin with the weights of the localiser, which is a tiny'): segmenter_learner(data, 'mobilenet_v2', 'localiser', start=start)
    save_json(masks / 'stage.json', dict(stage='masks', inputs={}))
    with pytest.raises(UserError, match='no localiser behind the masks'): localiser_behind(masks)


def test_mobilenet_gives_its_backbone_to_a_head_that_takes_it_without_the_last_layer():
    from wsss_nb.engine.methods import begin_with
    from wsss_nb.nets.deeplab import make_segmenter
    torch.manual_seed(0)
    localiser, net = build('mobilenet_v2', stride=16), make_segmenter('mobilenet_v2', 2)
    localiser.set_normalization('tf')
    localiser.frozen_norm = True
    begin_with(net.backbone, localiser)
    assert torch.equal(net.backbone.mean, localiser.mean) and net.backbone.frozen_norm
    assert all(torch.equal(a, b) for a, b in zip(net.backbone.parameters(), localiser.parameters())) and len(list(net.backbone.parameters())) == len(list(localiser.parameters())) - 3
