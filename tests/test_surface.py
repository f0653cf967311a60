"""What somebody types first: the names at the top of the package, labels and pictures in any form, a learner for its net, and one true line for each mistake."""
import configparser
import inspect
import json
import pickle
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import wsss_nb
from wsss_nb.cams import CamNet, grad_pp_weights, gradient_maps, layer_maps, net_of, write_score_maps
from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.catalog import open_data
from wsss_nb.data.sample import Data, ScoreMaps, as_image, as_images, load_maps, maps_with_keys, save_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tagged import label_matrix, tagged
from wsss_nb.data.tags import ids_of
from wsss_nb.engine.evaluate import count_masks, write_predictions
from wsss_nb.engine.methods import affinity_learner, load_localiser, load_segmenter, localiser_learner, segmenter_learner
from wsss_nb.metrics import Confusion
from wsss_nb.nets.zoo import build
from wsss_nb.papers.sipe import Sipe
from wsss_nb.results.predict import Predictor, load
from wsss_nb.refine.chain import refine, to_mask, with_threshold
from wsss_nb.refine.masks import WithMasks, refined_mask, write_masks

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(backbone='tiny', weights='', crop=48, batch_size=2, epochs=1, device='cpu')
PETS = ['cat', 'dog', 'sofa']
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
MAPS = np.random.default_rng(1).random((3, 24, 32)).astype(np.float32)
DATA = synthetic('train', n=4)


def message(f, *args, **kwargs):
    with pytest.raises(UserError) as e: f(*args, **kwargs)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


@pytest.fixture(scope='module')
def learner(tmp_path_factory):
    made = localiser_learner(DATA, long_side=(48, 64), folder=tmp_path_factory.mktemp('learner') / 'out', **SMALL)
    made.fit()
    return made


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    made = segmenter_learner(DATA, folder=tmp_path_factory.mktemp('network') / 'net', width=16, **SMALL)
    made.fit()
    return made


# -- the package

def test_import_brings_nothing_heavy():
    code = 'import sys, wsss_nb; print(sorted({"torch", "numpy", "PIL", "sklearn", "scipy", "matplotlib"} & set(sys.modules)), "open_data" in dir(wsss_nb)); wsss_nb.UserError; print("torch" in sys.modules); wsss_nb.localiser_learner; print("torch" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.split('\n')[:3] == ['[] True', 'False', 'True']


def test_the_version_is_that_of_the_settings():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini', encoding='utf-8')
    assert wsss_nb.__version__ == settings['DEFAULT']['version']


def test_the_names_at_the_top_are_those_of_the_modules():
    assert set(wsss_nb._homes) | {'refine'} == set(wsss_nb.__all__)
    for name, home in wsss_nb._homes.items(): assert getattr(wsss_nb, name) is getattr(__import__(f'wsss_nb.{home}', fromlist=[name]), name) and name in dir(wsss_nb)
    for name in 'open_data localiser_learner write_score_maps refine write_masks Confusion'.split(): assert name in wsss_nb.__all__ and name in wsss_nb.__doc__ + 'Confusion'
    assert wsss_nb.cams.CamNet is CamNet and wsss_nb.refine.chain.refine is refine
    space = {}
    exec('from wsss_nb import *', space)
    assert set(wsss_nb.__all__) <= set(space)


def test_help_says_what_there_is():
    text = re.sub('.\b', '', pydoc.render_doc(wsss_nb))
    for line in ("data = wsss_nb.open_data('folder', root='photos')", 'learner = wsss_nb.localiser_learner(data', 'learner.fit()', 'wsss_nb.write_score_maps(learner, data', 'wsss_nb.write_masks(data', 'wsss_nb.count_masks(data'): assert line in text
    for f in (open_data, localiser_learner, write_masks): assert f'{f.__name__}(' in text and inspect.getdoc(f).split('\n')[0] in text


def test_the_package_of_refinements_can_be_called():
    m = ScoreMaps(np.arange(3), MAPS)
    assert np.array_equal(wsss_nb.refine(IMAGE, m, ['pamr']).maps, refine(IMAGE, m, ['pamr']).maps)
    assert inspect.signature(wsss_nb.refine) == inspect.signature(refine) and 'crf, pamr, superpixels' in wsss_nb.refine.__doc__
    from wsss_nb.refine import crf
    import wsss_nb.refine.pamr as pamr
    assert crf.PRESETS and pamr.pamr


@pytest.mark.parametrize('wrong, text', [('open_dat', "wsss_nb has no 'open_dat'. Did you mean 'open_data'?"), ('localizer_learner', "Did you mean 'localiser_learner'?"), ('refin', "Did you mean 'refine'?"), ('zzzz', "wsss_nb has no 'zzzz'. help(wsss_nb)")])
def test_a_misspelt_name_is_told_with_the_nearest(wrong, text):
    with pytest.raises(AttributeError, match=re.escape(text)): getattr(wsss_nb, wrong)


# -- labels in any form

@pytest.mark.parametrize('labels', [[[0, 1, 1]], [0, 1, 1], (0, 1, 1), torch.tensor([[0., 1, 1]]), np.array([[False, True, True]]), [['dog', 'sofa']], [('sofa', 'dog')], [{'dog', 'sofa'}], ['dog', 'sofa'], ['dog;sofa'], 'dog, sofa', [(2, 3)], [2, 3], [np.array([3, 2])]], ids=lambda x: re.sub(r'\{.*\}', 'a set of names', str(x)))
def test_labels_of_one_image(labels):
    assert label_matrix(labels, 1, 3, PETS).tolist() == [[0, 1, 1]]


def test_labels_of_several_images():
    assert label_matrix(['dog', 'cat;sofa', 'none'], 3, 3, PETS).tolist() == label_matrix([['dog'], [1, 3], []], 3, 3, PETS).tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert label_matrix(None, 2, 3).tolist() == [[1, 1, 1]] * 2 and label_matrix([[1], [1]], 2, 1).tolist() == [[1], [1]]
    given = torch.rand(2, 3)
    assert label_matrix(given, 2, 3) is given  # what has the form already is not touched


@pytest.mark.parametrize('make', [CamNet, Sipe])
def test_score_maps_take_what_is_at_hand(make, tmp_path):
    torch.manual_seed(0)
    net = make(build('tiny'), 3).eval()
    want = net.score_maps([IMAGE], torch.tensor([[0., 1, 0]]), (1.,))[0]
    Image.fromarray(IMAGE).save(tmp_path / 'a.png')
    for image in (tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(IMAGE), IMAGE / 255, torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255):
        got = net.score_maps(image, ['dog'], scales=1., classes=PETS)
        assert isinstance(got if not isinstance(got, list) else got[0], ScoreMaps) and np.array_equal((got[0] if isinstance(got, list) else got).maps, want.maps)
    net.classes = PETS
    two = net.score_maps([IMAGE, IMAGE[:16]], ['dog', 'none'], (1.,))
    assert np.array_equal(two[0].maps, want.maps) and two[1].maps.shape[1:] == (16, 32) and not set(two[1].keys) & {1, 2, 3}
    assert set(net.score_maps(IMAGE, scales=1.).keys) >= {1, 2, 3}


def test_own_methods_take_what_is_at_hand_too():
    class Mine(CamNet):
        "A localiser that overrides score_maps"
        def score_maps(self, images, labels, *args, **settings):
            assert torch.is_tensor(labels) and images[0].dtype == np.uint8
            return super().score_maps(images, labels, *args, **settings)
    net = Mine(build('tiny'), 3).eval()
    net.classes = PETS
    assert net.score_maps(IMAGE / 255, 'dog', (1.,)).keys.tolist() == [2]


# -- a learner stands for its net

def test_a_learner_stands_for_its_net(learner, tmp_path):
    assert learner.raw_net.classes == DATA.classes and net_of(learner) is learner.raw_net
    for net, out in ((learner, 'a'), (learner.raw_net, 'b')): write_score_maps(net, DATA, tmp_path / out, scales=(1.,))
    for name in DATA.names: assert np.array_equal(load_maps(tmp_path / f'a/{name}.npz').maps, load_maps(tmp_path / f'b/{name}.npz').maps)
    assert learner.score_maps(DATA[0], DATA[0].tags, (1.,)).keys.tolist() == list(DATA[0].tags)
    assert re.fullmatch(r'Learner: CamNet on synthetic train: 4 images, 8 classes, with masks; 2 of 2 steps, on cpu, in .*out', repr(learner))
    assert re.fullmatch(r'2 steps, loss \d\.\d{4} to \d\.\d{4}', repr(learner.history)) and learner.history == list(learner.history)


def test_a_learner_is_loaded_from_its_folder(learner, tmp_path):
    for folder in (learner.folder, str(learner.folder)):
        net, made = load_localiser(folder)
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), learner.raw_net.state_dict().values(), strict=True))
        assert net.classes == DATA.classes and made['parameters']['backbone'] == 'tiny' and not net.training
    run = tmp_path / 'mine'
    save_json(run / 'run.json', dict(name='mine', stages=dict(train=dict(folder='train-1'))))
    (tmp_path / 'stages/train-1').mkdir(parents=True)
    (tmp_path / 'stages/train-1/checkpoint.pt').write_bytes((learner.folder / 'checkpoint.pt').read_bytes())
    save_json(tmp_path / 'stages/train-1/stage.json', dict(stage='train', parameters=made['parameters'], results=dict(classes=DATA.classes)))
    assert torch.equal(load_localiser(run)[0].head.weight, learner.raw_net.head.weight)
    assert message(load_segmenter, run) == f'{run}: this run has no segment stage (its stages: train).'
    assert 'expected the folder of a segment stage, this is one of train' in message(load_segmenter, learner.folder)
    assert message(load_localiser, tmp_path / 'nothing').endswith('found no folder.') and message(load_localiser, tmp_path).endswith('found no checkpoint.pt in it.')
    state = torch.load(learner.folder / 'checkpoint.pt', weights_only=True)
    del state['made']
    torch.save(state, tmp_path / 'checkpoint.pt')
    assert f"make the learner again with the same arguments and folder='{tmp_path}', then learner.resume() loads it" in message(load_localiser, tmp_path)


def test_a_network_predicts(network, tmp_path):
    by = Predictor(network)
    want = by(IMAGE)
    assert by.classes == DATA.classes and repr(by).startswith('Predictor : LightDeepLab, 8 classes: cat') and want.shape == (24, 32)
    for other in (Predictor(network.raw_net), Predictor(load_segmenter(network.folder)[0]), load(network.folder, 'cpu')): assert np.array_equal(other(IMAGE / 255), want)
    assert set(np.unique(by(IMAGE, 'cat; duck'))) <= {0, 1, 1 + DATA.classes.index('duck')} and network.predict(IMAGE / 255).shape == (1, 9, 24, 32)
    write_predictions(network, DATA.subset([0]), tmp_path)
    assert count_masks(DATA.subset([0]), tmp_path).matrix.sum() == (DATA.mask(0) != 255).sum()
    assert message(by, IMAGE, ['catt']).startswith("tags: unknown name 'catt'. Did you mean 'cat'?")


# -- maps that come from elsewhere

def test_refine_takes_arrays_that_say_what_they_are():
    want = refine(IMAGE, ScoreMaps(np.arange(3), MAPS), ['pamr'])
    for maps in (MAPS, torch.from_numpy(MAPS), torch.from_numpy(MAPS)[None], (range(3), MAPS)):
        got = refine(Image.fromarray(IMAGE), maps, ['pamr'], **({} if isinstance(maps, tuple) else dict(keys=range(3))))
        assert np.array_equal(got.maps, want.maps) and got.keys.tolist() == [0, 1, 2]
    assert np.array_equal(refined_mask(IMAGE, MAPS[1:], ['pamr'], keys=[4, 7]), to_mask(refine(IMAGE, ScoreMaps(np.array([4, 7]), MAPS[1:]), ['pamr'])))


# -- what is printed at a prompt

def test_each_is_one_line_at_a_prompt():
    assert repr(DATA[0]) == f"Sample('train_0000', {DATA[0].image.shape[1]}x{DATA[0].image.shape[0]}, tags {DATA[0].tags}, with mask)"
    assert repr(ScoreMaps(np.array([0, 4]), np.linspace(0, .5, 24, dtype=np.float32).reshape(2, 3, 4))) == 'ScoreMaps(keys [0, 4], maps float32 [2, 3, 4] in 0..0.5)'
    assert repr(ScoreMaps(np.array([], int), np.zeros((0, 3, 4), np.float16))) == 'ScoreMaps(keys [], maps float16 [0, 3, 4])'
    assert repr(DATA) == 'synthetic train: 4 images, 8 classes, with masks'
    assert repr(Confusion(3).update([0, 1, 2, 255], [0, 1, 1, 2])) == 'Confusion: 3 classes, 4 pixels, mIoU 0.500'


# -- pictures and tags in memory

def test_tagged_is_a_data_set(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / 'rex.png')
    mask = np.zeros((24, 32), int); mask[3:9] = 2
    data = tagged([tmp_path / 'rex.png', IMAGE[:10] / 255], ['dog; sofa', ['dog']], masks=[mask, mask[:10]], classes=['dog', 'sofa'])
    assert repr(data) == 'tagged: 2 images, 2 classes, with masks' and data.names == ['rex', '1'] and data.classes == ['dog', 'sofa']
    assert np.array_equal(data.image(0), IMAGE) and np.array_equal(data['1'].image, IMAGE[:10]) and data.size(1) == (10, 32) and data.mask(0).dtype == np.uint8 and data.labels.tolist() == [[1, 1], [1, 0]]
    part = data.subset(['1'])
    assert len(pickle.dumps(part)) < 4000 + IMAGE[:10].nbytes + 320 and np.array_equal(part[0].mask, mask[:10]) and part.has_masks
    changed = tagged([tmp_path / 'rex.png', 255 - IMAGE[:10]], ['dog; sofa', ['dog']], masks=[mask, mask[:10]], classes=['dog', 'sofa'])
    assert len({d.fingerprint() for d in (data, changed, part, tagged([tmp_path / 'rex.png', IMAGE[:10]], ['dog;sofa', 'dog'], masks=[mask, 0 * mask[:10]], classes=['dog', 'sofa']))}) == 4
    assert not tagged([IMAGE], ['dog']).has_masks and tagged([IMAGE], [None], classes=PETS)[0].tags is None


def test_from_tagged_pictures_to_counted_masks(tmp_path, capfd):
    data = tagged([DATA.image(i) for i in range(3)], [[DATA.classes[t - 1] for t in DATA[i].tags] for i in range(3)], masks=[DATA.mask(i) for i in range(3)], classes=DATA.classes)
    learner = localiser_learner(data, long_side=(48, 64), **SMALL)
    learner.fit()
    write_score_maps(learner, data, str(tmp_path / 'maps'), scales=1.)
    write_masks(data, str(tmp_path / 'maps'), str(tmp_path / 'masks'), steps=['superpixels'], workers=1)
    assert 0 <= count_masks(data, str(tmp_path / 'masks')).miou() <= 1


# -- any classifier

@pytest.mark.parametrize('weights', [None, grad_pp_weights])
def test_maps_of_a_classifier_at_any_layer(weights):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3, 2), nn.Tanh(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double().eval()
    x, more = torch.rand(2, 3, 12, 14, dtype=torch.float64), {} if weights is None else dict(weights=weights)
    for at in (1, 3):
        want = gradient_maps(net[:at + 1](x), net[at + 1:], **more)
        for layer in (net[at], str(at)): assert torch.allclose(layer_maps(net, layer, x, **more), want, atol=1e-12)
    assert not any(m._forward_hooks for m in net.modules()) and all(p.grad is None for p in net.parameters())


# -- mistakes

BIG = IMAGE * 2.
NET = CamNet(build('tiny'), 3).eval()
BLIND = Data([r._replace(mask=None) for r in DATA.records], DATA.classes, 'blind')
WRONG = {
    'labels: misspelt': (lambda: NET.score_maps([IMAGE], ['dgo'], classes=PETS), "labels: unknown name 'dgo'. Did you mean 'dog'? Known: cat, dog, sofa."),
    'labels: names, but no classes': (lambda: NET.score_maps([IMAGE], ['dog']), "labels: got the names 'dog', but this network does not know those of its 3 classes; give classes=[...] as well, in their order."),
    'labels: too few': (lambda: NET.score_maps([IMAGE, IMAGE], [['dog']], classes=PETS), "labels: expected the labels of each of 2 images, [2,3] zeros and ones or 2 lists of names, got [['dog']]."),
    'labels: too many columns': (lambda: NET.score_maps([IMAGE], torch.ones(1, 4)), 'labels: expected names of classes or ids 1..3, got 1.0.'),
    'labels: an id that is none': (lambda: NET.score_maps([IMAGE], [[4]]), 'labels: expected names of classes or ids 1..3, got 4.'),
    'labels: unknown for an image': (lambda: NET.score_maps([IMAGE, IMAGE], ['dog', None], classes=PETS), 'labels[1]: the tags of an image are unknown (None)'),
    'classes: too few': (lambda: NET.score_maps([IMAGE], None, classes=['dog']), 'classes: expected the names of 3 classes, got 1.'),
    'images: bytes as floats': (lambda: NET.score_maps([BIG], None), 'images: expected a path, a Pillow picture or uint8 [H,W,3], got float64 [24, 32, 3] of values 0..510; floats are taken in [0,1], and grey and RGBA as well.'),
    'images: a missing file': (lambda: NET.score_maps('rex.jpg'), 'rex.jpg: no such image.'),
    'images: a data set': (lambda: NET.score_maps(DATA), 'images: expected pictures, got the data set synthetic train; write_score_maps and write_predictions go through a data set'),
    'image: nothing': (lambda: as_image(None), 'image: expected a path, a Pillow picture or uint8 [H,W,3], got NoneType'),
    'score_maps: misspelt': (lambda: NET.score_maps([IMAGE], None, scale=1.), "score_maps: unknown argument 'scale'. Did you mean 'scales'?"),
    'WithMasks: no data': (lambda: WithMasks('photos', 'x'), "data: expected a data set, got 'photos'"),
    'refine: an array without keys': (lambda: refine(IMAGE, MAPS, ['crf']), 'maps: expected ScoreMaps, got an array [3, 24, 32], which does not say what its channels are; give keys=range(3) if channel 0 is the background, keys=range(1, 4) if it has none.'),
    'refine: too few keys': (lambda: refine(IMAGE, MAPS, ['crf'], keys=[1]), 'maps: keys: expected 3 distinct class ids, 0 (the background) first where it is among them, got 1.'),
    'refine: names as keys': (lambda: refine(IMAGE, MAPS, ['crf'], keys=PETS), 'got cat, dog, sofa.'),
    'refine: a mask': (lambda: refine(IMAGE, MAPS[0] > .5, ['crf'], keys=[0]), 'maps: expected ScoreMaps, or floats [C,H,W] of one image, got bool [24, 32].'),
    'refine: no steps': (lambda: refine(IMAGE, MAPS, keys=range(3)), 'refine: expected a list of steps, got None; write [crf]. Known: crf, pamr, superpixels'),
    'refine: one step': (lambda: refine(IMAGE, MAPS, 'crf', keys=range(3)), "refine: expected a list of steps, got 'crf'; write [crf]."),
    'refine: a setting': (lambda: refine(IMAGE, MAPS, ['crf'], keys=range(3), crf_iter=1), "refine setting: unknown name 'crf_iter'. Did you mean 'crf_iters'?"),
    'to_mask: an array': (lambda: to_mask(MAPS), 'maps: expected ScoreMaps, got an array [3, 24, 32]'),
    'with_threshold: an array': (lambda: with_threshold(MAPS), 'maps: expected ScoreMaps, got an array [3, 24, 32]'),
    'localiser_learner: misspelt': (lambda: localiser_learner(DATA, epoch=3), "localiser_learner: unknown argument 'epoch'. Did you mean 'epochs'? All of them: help(localiser_learner)."),
    'localiser_learner: foreign': (lambda: localiser_learner(DATA, xyz=3), "localiser_learner: unknown argument 'xyz'. It takes: data, method, backbone, weights,"),
    'localiser_learner: no data': (lambda: localiser_learner('photos'), "data: expected a data set, got 'photos'; open one with open_data('folder', root=...), or make one of pictures and their tags with tagged(images, tags)."),
    'localiser_learner: an option': (lambda: localiser_learner(DATA, 'sipe', options=dict(gcs=1), **SMALL), "options of sipe: unknown name 'gcs'. Did you mean 'gsc'?"),
    'segmenter_learner: misspelt': (lambda: segmenter_learner(DATA, batchsize=3), "segmenter_learner: unknown argument 'batchsize'. Did you mean 'batch_size'?"),
    'segmenter_learner: no masks': (lambda: segmenter_learner(BLIND, **SMALL), 'data: not all images of blind have a mask to learn from; give WithMasks(data, folder) with the folder that write_masks wrote.'),
    'affinity_learner: misspelt': (lambda: affinity_learner(DATA, 'irn', 'x', raduis=3), "affinity_learner: unknown argument 'raduis'. Did you mean 'radius'?"),
    'write_score_maps: misspelt': (lambda: write_score_maps(NET, DATA, 'x', scale=(1.,)), "write_score_maps: unknown argument 'scale'. Did you mean 'scales'?"),
    'write_score_maps: a folder as net': (lambda: write_score_maps('out', DATA, 'x'), "net: expected a localiser or the learner that trained one, got 'out'; give the learner that was fitted, or a network that load_localiser or load_segmenter has read."),
    'write_score_maps: other classes': (lambda: write_score_maps(NET, DATA, 'x'), 'data: the network has 3 classes, synthetic train has 8'),
    'write_score_maps: arguments changed round': (lambda: write_score_maps(NET, 'out', DATA), "data: expected a data set, got 'out'"),
    'write_masks: misspelt': (lambda: write_masks(DATA, '.', 'x', step=['crf']), "write_masks: unknown argument 'step'. Did you mean 'steps'?"),
    'write_masks: a setting': (lambda: write_masks(DATA, '.', 'x', steps=['crf'], crf_present='irn'), "write_masks: unknown argument 'crf_present'. Did you mean 'crf_preset'?"),
    'write_masks: one step': (lambda: write_masks(DATA, '.', 'x', steps='crf'), "refine: expected a list of steps, got 'crf'; write [crf]."),
    'write_masks: a step': (lambda: write_masks(DATA, '.', 'x', steps=['cfr']), "refine: unknown name 'cfr'. Did you mean 'crf'?"),
    'write_masks: no maps': (lambda: write_masks(DATA, 'nowhere', 'x'), "maps_folder: expected the folder with <image id>.npz, got 'nowhere', which is no folder; write the score maps with write_score_maps(learner, data, folder)."),
    'write_masks: maps in memory': (lambda: write_masks(DATA, [MAPS], 'x'), 'maps_folder: expected the folder with <image id>.npz, got list'),
    'write_predictions: a path': (lambda: write_predictions('net', DATA, 'x'), "net: expected a segmentation network or the learner that trained one, got 'net'"),
    'write_predictions: misspelt': (lambda: write_predictions(NET, DATA, 'x', scale=1), "write_predictions: unknown argument 'scale'. Did you mean 'scales'?"),
    'count_masks: no truth': (lambda: count_masks(BLIND, 'x'), 'data: not all images of blind have a mask to compare with'),
    'count_masks: arguments changed round': (lambda: count_masks('x', DATA), "data: expected a data set, got 'x'"),
    'Confusion: names': (lambda: Confusion(PETS), "num_classes: expected an integer of at least 1, got ['cat', 'dog', 'sofa']; with the background it is len(classes) + 1 = 4."),
    'open_data: a folder': (lambda: open_data(str(ROOT)), "is a folder; open it with open_data('folder', root="),
    'open_data: the drawn set in a folder': (lambda: open_data(root='photos'), "data=synthetic: does not take root; leave it out, or choose another data set; a folder of your own is open_data('folder', root=...)."),
    'open_data: misspelt': (lambda: open_data('folder', rot='photos'), "open_data: unknown argument 'rot'. Did you mean 'root'?"),
    'open_data: tags in Python': (lambda: open_data('folder', root=str(ROOT / 'nbs/pictures'), tags={'methods': ['dog']}), 'tags: expected a .json, .csv or .npy file, got dict; for pictures and tags that Python holds there is tagged(images, tags).'),
    'tagged: lengths': (lambda: tagged([IMAGE, IMAGE], ['dog']), 'tagged: tags: expected an entry for each of 2 images, got 1.'),
    'tagged: a dictionary': (lambda: tagged([IMAGE], {'a': 'dog'}), 'tagged: tags: expected a list with an entry for each image, got dict.'),
    'tagged: one path': (lambda: tagged('rex.jpg', 'dog'), 'tagged: images: expected a list with an entry for each image, got str.'),
    'tagged: a misspelt tag': (lambda: tagged([IMAGE], ['dgo'], classes=PETS), "tagged: tags[0]: unknown name 'dgo'. Did you mean 'dog'?"),
    'tagged: a mask of another size': (lambda: tagged([IMAGE], ['dog'], masks=[np.zeros((5, 5), int)], classes=['dog']), 'tagged: masks[0]: expected class ids [H,W] of the size of the image [24, 32], got int64 [5, 5].'),
    'tagged: an id too many': (lambda: tagged([IMAGE], ['dog'], masks=[np.full((24, 32), 7)], classes=['dog']), 'tagged: masks[0]: expected ids 0..1 or 255, got 7.'),
    'tagged: masks without an order of classes': (lambda: tagged([IMAGE], ['dog'], masks=[IMAGE[..., 0]]), 'tagged: classes: the ids in masks are positions in the list of classes; give classes=[...] in that order, the first is id 1.'),
    'tagged: no class': (lambda: tagged([IMAGE], [[]]), 'tagged: classes: the tags name no class'),
    'load_maps: a folder': (lambda: load_maps(ROOT), 'expected the file of one image, this is a folder; give '),
    'Predictor: no classes': (lambda: Predictor(nn.Conv2d(3, 3, 1)), 'net: expected a segmentation network or the learner that trained one, got Conv2d'),
    'layer_maps: a layer of nobody': (lambda: layer_maps(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.ReLU(), torch.rand(1, 3, 4, 4)), 'layer: ReLU was not used when Sequential ran; give a layer of this network.'),
    'layer_maps: after the pooling': (lambda: layer_maps(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), '1', torch.rand(1, 3, 4, 4)), 'layer: expected one that gives features [B,D,h,w], Flatten gives [1, 32]; take the last one before the pooling.'),
    'layer_maps: no scores': (lambda: layer_maps(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), '0', torch.rand(1, 3, 4, 4)), 'net: expected class scores [B,K], got [1, 2, 4, 4].'),
}


@pytest.mark.parametrize('case', WRONG)
def test_a_mistake_is_one_line_that_names_the_argument(case):
    call, text = WRONG[case]
    assert text in message(call)


def test_forms_of_a_picture():
    grey, clear = IMAGE[..., 0], np.dstack([IMAGE, np.full((24, 32), 0, np.uint8)])
    assert (as_image(grey) == grey[..., None]).all() and (as_image(grey[None] / 255) == grey[..., None]).all() and (as_image(clear) == 255).all() and as_image(IMAGE) is IMAGE
    assert as_images((IMAGE, grey))[1] is False and as_images(torch.rand(3, 3, 8, 9))[0][0].shape == (8, 9, 3)
    turned = Image.fromarray(IMAGE)
    turned.getexif()[0x0112] = 6
    assert as_image(turned).shape == (32, 24, 3)
    for wrong in (np.full((4, 4, 3), np.nan), np.full((4, 4, 3), -.1), np.zeros((6, 6, 5), np.uint8), np.zeros((0, 4, 3), np.uint8), np.full((4, 4), 256), IMAGE > 3): assert 'image: expected' in message(as_image, wrong)


def test_the_nearest_file_of_maps_is_named(tmp_path):
    save_maps(tmp_path / 'rex.npz', [1], MAPS[:1])
    assert message(load_maps, tmp_path / 'rex') == f"{tmp_path / 'rex'}: no such score maps; run the stage that writes them, or write_score_maps. Did you mean 'rex.npz'?"


def test_the_page_of_the_library_is_in_the_contents_and_asserts():
    contents = {}
    exec((ROOT / 'docs/conf.py').read_text().split('\n# caption -> pages')[1].split('\n', 1)[1], contents)
    assert 'tutorials/use_as_a_library' in contents['contents']['Tutorials'] and 'api' in contents['contents']['Foundations']
    code = [''.join(c['source']) for c in json.loads((ROOT / 'nbs/tutorials/use_as_a_library.ipynb').read_text())['cells'] if c['cell_type'] == 'code']
    assert sum(c.count('assert ') for c in code) >= 5
    ten = next(c for c in code if c.startswith('data = wsss_nb.tagged'))
    assert len([l for l in ten.splitlines() if l]) <= 11
