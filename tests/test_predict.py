"""A trained network at work: found, asked, and written as ONNX."""
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import wsss_nb.nets.export as E
from trained import lay_down
from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.synthetic import synthetic
from wsss_nb.results.predict import Predictor, export_onnx, find_pictures, load, predict_files
from wsss_nb.engine.methods import load_segmenter
from wsss_nb.refine.crf import dense_crf


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A folder with trained runs and some that have no network"
    runs = tmp_path_factory.mktemp('runs')
    shutil.copytree(lay_down(runs, 'drawn'), runs / 'stages/segment-measured')
    lay_down(runs, 'measured', scales=[.75, 1.], flip=False, max_side=640, crf='', measure=[])
    save_json(runs / 'stages/train-1/stage.json', dict(stage='train', parameters={}, results=dict(classes=['cat'])))
    save_json(runs / 'stopped/run.json', dict(name='stopped', state='stopped in train', stages={}))
    save_json(runs / 'seeds/run.json', dict(name='seeds', state='done', stages=dict(train={}, masks={})))
    save_json(runs / 'pruned/run.json', dict(name='pruned', state='done', stages=dict(segment=dict(folder='segment-2'))))
    return runs


@pytest.fixture(scope='module')
def net(runs): return load(runs / 'drawn', 'cpu')


@pytest.fixture
def photos(tmp_path):
    "Five pictures of every sort"
    data, d = synthetic('val', n=5), tmp_path / 'photos'
    (d / 'a b').mkdir(parents=True)
    for i, (name, mode) in enumerate((('one.png', 'RGB'), ('two.jpg', 'L'), ('a b/three #1.png', 'P'), ('a b/four%.webp', 'RGBA'), ('five.bmp', 'RGB'))): Image.fromarray(data.image(i)).convert(mode).save(d / name)
    return d


def test_the_mask_is_the_networks_own(runs):
    raw, made = load_segmenter(runs / 'stages/segment-drawn')
    for i in range(3):
        image = synthetic('val', n=3).image(i)
        expected = raw.predict([image])[0].argmax(0).numpy()
        assert len(np.unique(expected)) > 1
        for run in (runs / 'drawn', str(runs / 'stages/segment-drawn')): assert np.array_equal(load(run, 'cpu')(image), expected)
        assert np.array_equal(load('drawn', runs=runs)(Image.fromarray(image)), expected)


def test_it_tests_as_the_run_was_evaluated_unless_told_otherwise(runs):
    net, image = load('measured', 'cpu', runs), synthetic('val', n=1).image(0)
    assert (net.settings['scales'], net.settings['flip'], net.settings['max_side']) == ([.75, 1.], False, 640)
    raw = load_segmenter(runs / 'stages/segment-drawn')[0]
    assert np.allclose(net.probabilities(image), raw.predict([image], [.75, 1.], False, 640)[0].numpy(), atol=1e-6)
    assert np.allclose(net.probabilities(image, scales=[1.5], flip=True), raw.predict([image], [1.5], True)[0].numpy(), atol=1e-6)


def test_every_sort_of_input(net, photos):
    found = find_pictures(photos)
    assert list(found) == ['a b/four%', 'a b/three #1', 'five', 'one', 'two']
    masks = [net(str(p)) for p in found.values()]
    for many in (photos, list(found.values()), str(photos / '**/*')): 
        assert sorted(m.tobytes() for m in net(many)) == sorted(m.tobytes() for m in masks)
    for shape in ((1, 1), (1, 40), (37, 3)):
        mask = net(np.zeros((*shape, 3), np.uint8))
        assert mask.shape == shape and mask.dtype == np.uint8 and mask.max() <= len(net.classes)


def test_tags_leave_out_other_classes_and_the_crf_keeps_to_them(net):
    data = synthetic('val', n=4)
    for i in range(4):
        image, p = data.image(i), net.probabilities(data.image(i))
        for tags in ((), (3,), (1, 8), data[i].tags):
            keep = [0, *tags]
            assert np.array_equal(net(image, [net.classes[t - 1] for t in tags]), np.array(keep)[p[keep].argmax(0)])
            q = net.probabilities(image, tags, crf='psa')
            assert np.abs(q.sum(0) - 1).max() < 1e-4 and not q[[k for k in range(9) if k not in keep]].any()
        assert np.allclose(net.probabilities(image, crf='irn'), dense_crf(image, p / p.sum(0), preset='irn'), atol=1e-4)
    assert [m.tolist() for m in net([data.image(0), data.image(1)], [[], None])] == [np.zeros(data.image(0).shape[:2], int).tolist(), net(data.image(1)).tolist()]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == 'img': self.pictures.append(unquote(dict(attrs)['src']))
        if tag == 'a': self.links.append(unquote(dict(attrs)['href']))


def test_many_pictures_a_page_and_one_that_cannot_be_read(net, photos, tmp_path):
    (photos / 'torn.png').write_bytes((photos / 'one.png').read_bytes()[:300])
    pictures, out = find_pictures(photos), tmp_path / 'out'
    failed = predict_files(net, pictures, out, tags={'one': [net.classes[0]]})
    assert list(failed) == ['torn'] and 'torn.png: damaged or not a picture' in failed['torn']
    for name, path in pictures.items():
        if name == 'torn': continue
        im = Image.open(out / f'masks/{name}.png')
        assert im.mode == 'P' and np.array_equal(im, net(path, [net.classes[0]] if name == 'one' else None))
        assert Image.open(out / f'overlays/{name}.jpg').size == im.size
    assert (out / 'classes.txt').read_text().split() == net.classes
    page = Page((out / 'index.html').read_text())
    assert sorted(page.pictures) == sorted(f'overlays/{n}.jpg' for n in pictures if n != 'torn') and all((out / p).is_file() for p in page.pictures + page.links)
    assert 'torn.png: damaged' in (out / 'index.html').read_text()
    predict_files(net, {'one': pictures['one']}, tmp_path / 'other', scales=[.5, 1.], flip=False, crf='irn')
    for folder, used in ((out, 'scales 1.0; flip yes; max side 1024; fusion mean; crf none'), (tmp_path / 'other', 'scales 0.5, 1.0; flip no; max side 1024; fusion mean; crf irn')): assert f': {used}</p>' in (folder / 'index.html').read_text()


def test_finished_pictures_are_kept_and_changed_ones_made_anew(net, photos, tmp_path, monkeypatch):
    pictures, out, asked = find_pictures(photos), tmp_path / 'out', []
    scores = Predictor.scores
    monkeypatch.setattr(Predictor, 'scores', lambda self, image, *more: asked.append(image.shape) or scores(self, image, *more))
    predict_files(net, pictures, out, overlays=False)
    assert len(asked) == 5 and not (out / 'overlays').exists() and all((out / p).is_file() for p in Page((out / 'index.html').read_text()).pictures)
    predict_files(net, pictures, out, overlays=False)
    predict_files(net, pictures, out)  # the overlays alone: from the masks
    assert len(asked) == 5 and len(list((out / 'overlays').rglob('*.jpg'))) == 5
    later = (out / 'masks/one.png').stat().st_mtime + 10
    os.utime(photos / 'one.png', (later, later))
    predict_files(net, pictures, out)
    assert len(asked) == 6
    with pytest.raises(UserError, match='out: its masks were made with another settings .*delete this folder, or choose another'): predict_files(net, pictures, out, scales=[2.])
    with pytest.raises(UserError, match='out: its masks were made with another tags'): predict_files(net, pictures, out, tags={'one': []})


@pytest.mark.parametrize('run, text', [
    ('drown', r"no run is called 'drown' in .*Did you mean 'drawn'\? Known: drawn, measured"),
    ('stopped', 'run stopped: it was stopped in train, before its segment stage was made; go on with: wsss resume stopped'),
    ('seeds', r"run seeds: it has no segment stage \(its stages: train, masks\); run its recipe again with -p 'stages="),
    ('pruned', 'run pruned: .*segment-2 is not there any more; make it again with: wsss resume pruned'),
    ('stages/train-1', 'expected the folder of a segment stage, this is one of train'),
])
def test_a_run_without_a_network_says_what_to_do(runs, run, text):
    with pytest.raises(UserError, match=text): load(run, 'cpu', runs)


@pytest.mark.parametrize('spoil, text', [
    (lambda f: f.write_bytes(f.read_bytes()[:5000]), 'checkpoint.pt is damaged'),
    (lambda f: f.write_bytes(b'<html>'), 'checkpoint.pt is not a PyTorch checkpoint'),
    (lambda f: f.unlink(), 'checkpoint.pt: no such checkpoint'),
    (lambda f: torch.save({'a': torch.zeros(1)}, f), 'checkpoint.pt: not a checkpoint written by wsss_nb'),
    (lambda f: torch.save(dict(net={}, settings={}, step=0), f), 'checkpoint.pt: a checkpoint of another network'),
])
def test_a_broken_checkpoint_is_named(runs, tmp_path, spoil, text):
    shutil.copytree(runs / 'stages/segment-drawn', tmp_path / 'segment-drawn')
    spoil(tmp_path / 'segment-drawn/checkpoint.pt')
    with pytest.raises(UserError, match=text): load(tmp_path / 'segment-drawn', 'cpu')


def test_mistakes_are_named(net, photos):
    image = np.zeros((4, 5, 3), np.uint8)
    for call, text in (
        (lambda: net(photos / 'on.png'), r"on.png: no such file or folder, and no image matches it. Did you mean 'one.png'\?"),
        (lambda: find_pictures(photos, photos / 'a b/../one.png'), r"two files have the id 'one'"),
        (lambda: net(image, ['catt']), "tags: unknown name 'catt'. Did you mean 'cat'"),
        (lambda: net([image, image], [['cat']]), 'tags: expected one list of tags for each of 2 images, got 1'),
        (lambda: net(image + 300.), r'image: expected a path, a Pillow picture or uint8 \[H,W,3\], got float64 \[4, 5, 3\] of values 300..300'),
        (lambda: net(image, crf='pas'), "crf: unknown name 'pas'. Did you mean 'psa'"),
        (lambda: net(image, scale=2), "predict: unknown name 'scale'. Did you mean 'scales'"),
        (lambda: net(image, scales=[0.]), 'scales: expected positive numbers'),
        (lambda: load('drawn', 'tpu', photos), 'no run is called'),
    ):
        with pytest.raises(UserError, match=text): call()


# -- ONNX

@pytest.mark.parametrize('output', ['probabilities', 'logits'])
def test_the_onnx_file_computes_what_the_network_does(net, tmp_path, output):
    ort = pytest.importorskip('onnxruntime')
    made = export_onnx(net, tmp_path / 'n.onnx', output)
    assert made.difference < 1e-4 and made.classes == ['background', *net.classes]
    session = ort.InferenceSession(made.path, providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width'] and session.get_outputs()[0].shape == ['batch', 9, 'height', 'width']
    draw = np.random.default_rng(0)
    for b, h, w in ((1, 37, 51), (3, 64, 64), (2, 8, 100), (1, 1, 1)):
        images = [draw.integers(0, 256, (h, w, 3), dtype=np.uint8) for _ in range(b)]
        ours, = session.run(None, {'image': np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255})
        if output == 'probabilities': assert np.abs(ours - net.net.predict(images, (1.,), False).numpy()).max() < 1e-4
        else: assert ours.shape == (b, 9, h, w) and np.abs(ours).max() > 1


@pytest.mark.slow  # half a minute; the tiny network's file is asked above, at odd sizes too
def test_onnx_of_mobilenet_at_odd_sizes(tmp_path):
    pytest.importorskip('onnxruntime')
    from wsss_nb.engine.methods import build_segmenter
    torch.manual_seed(0)
    net = build_segmenter(20, 'mobilenet_v2').eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    whole = E.Whole(net, 'logits')
    model = E.onnx_model(whole)
    assert E.difference(model, whole, ((1, 33, 47), (2, 65, 129))) < 1e-4
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_file_that_differs_is_not_written(net, tmp_path, monkeypatch):
    monkeypatch.setattr(E, 'difference', lambda model, whole: .5)
    monkeypatch.setattr(E, 'onnx_model', lambda whole, **about: None)
    with pytest.raises(UserError, match='n.onnx was not written: onnxruntime and torch differ by 0.5'): export_onnx(net, tmp_path / 'n.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('package', ['onnx', 'onnxscript'])
def test_a_missing_package_is_named(net, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape(f'{package} is not installed; for export: ') + '.*pip install -e ".*\\[onnx]"$'): export_onnx(net, tmp_path / 'n.onnx')


def test_without_onnxruntime_nothing_is_compared(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert E.difference(None, None) is None
