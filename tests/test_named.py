"""What a picture shows, said by a localiser to a network: `nets.segmenter.named`, `engine.named`, the frozen line's `predict`"""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from inside import inside

from wsss_nb.base.core import UserError, save_json
from wsss_nb.cams import CamNet, Localiser
from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.views import as_tensor
from wsss_nb.engine.evaluate import write_predictions
from wsss_nb.engine.in_tiles import network_mask, restricted
from wsss_nb.engine.methods import load_localiser, load_segmenter
from wsss_nb.engine.named import NamedNet, opinion, with_names
from wsss_nb.nets.deeplab import make_segmenter
from wsss_nb.nets.segmenter import agreed, named
from wsss_nb.nets.zoo import build
from wsss_nb.papers.frozen import Frozen


def slow_named(p, q):
    "p [K+1] of a pixel, q [K] of the picture"
    out = [p[0], *(a * b for a, b in zip(p[1:], q))]
    return [x / sum(out) for x in out]


def test_a_class_counts_as_much_as_it_is_likely_to_be_there():
    torch.manual_seed(0)
    scores, tags = torch.randn(2, 4, 3, 5, dtype=torch.float64) * 3, torch.randn(2, 3, dtype=torch.float64) * 3
    found = named(scores, tags).softmax(1)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                p, q = scores[b, :, y, x].exp() / scores[b, :, y, x].exp().sum(), 1 / (1 + (-tags[b]).exp())
                assert np.allclose(found[b, :, y, x], slow_named(p.tolist(), q.tolist()), atol=1e-12)


def test_who_is_sure_says_what_the_tags_say():
    torch.manual_seed(1)
    scores = torch.randn(1, 4, 6, 7)
    keep, p = restricted(scores.softmax(1)[0].numpy(), [1, 3])
    found = named(scores, torch.tensor([[300., -300., 300.]])).softmax(1)[0].numpy()
    assert keep == [0, 1, 3] and np.allclose(found[keep], p, atol=1e-6) and not found[2].any()


def nets(seed=0):
    torch.manual_seed(seed)
    net, localiser = make_segmenter('tiny', 8, 'light', width=16).eval(), CamNet(build('tiny'), 8).eval()
    for p in (net.classify.weight, localiser.head.weight): torch.nn.init.normal_(p, std=.5)
    return net, localiser


def test_both_as_one_predict_as_their_product_does():
    net, localiser = nets()
    images = [synthetic('val', n=2).image(0)]
    p, both = net.predict(images, scales=(1., .5)), NamedNet(net, localiser).predict(images, scales=(1., .5))
    x = as_tensor(images[0])[None]
    with torch.no_grad(): t = (localiser.raw_maps(x).mean((2, 3)) + localiser.raw_maps(x.flip(-1)).mean((2, 3)))[0] / 2
    expected = p[0] * torch.cat([torch.ones(1), t.sigmoid()])[:, None, None]
    assert torch.allclose(both[0], expected / expected.sum(0), atol=1e-3) and (both.argmax(1) != p.argmax(1)).any()


def test_pixels_of_which_the_network_is_altogether_sure_stay_finite():
    class Certain(torch.nn.Module):
        def predict(self, images, **_): return F.one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 9).movedim(-1, 1).float()
    _, localiser = nets()
    found = NamedNet(Certain(), localiser).predict([np.zeros((4, 4, 3), np.uint8)])
    assert torch.isfinite(found).all() and (found[:, 0] == 1).all()


def test_the_frozen_line_asks_its_own_layer_of_tags():
    torch.manual_seed(2)
    net = Frozen(build('tiny'), 3, side=48).eval()
    for layer in (net.tags, net.lessons[-1]): torch.nn.init.normal_(layer.weight, std=.5)
    image = np.random.default_rng(0).integers(0, 256, (36, 48, 3), np.uint8)
    found = net.predict([image], flip=False)[0]
    with torch.no_grad():
        z = net.standard(net.features(as_tensor(image)[None]))
        cells = F.conv2d(z, net.lessons[-1].weight[..., None, None], net.lessons[-1].bias)
        p = F.interpolate(cells, (36, 48), mode='bilinear', align_corners=False)[0].softmax(0)
        expected = p * torch.cat([torch.ones(1), net.tags(z.mean((2, 3)))[0].sigmoid()])[:, None, None]
    assert torch.allclose(found, expected / expected.sum(0), atol=1e-3) and not torch.allclose(found, p, atol=1e-3)


def slow_agreed(p, q):
    "p, q [K+1] of a pixel"
    both = [(a / sum(p[1:]) * b / sum(q[1:])) ** .5 for a, b in zip(p[1:], q[1:])]
    return [p[0], *((1 - p[0]) * x / sum(both) for x in both)]


def test_which_thing_it_is_both_say_and_where_there_is_one_the_network():
    torch.manual_seed(3)
    p, q = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64).mul(3).softmax(2)
    found = agreed(p, q)
    for b in range(2):
        for y in range(3):
            for x in range(4): assert np.allclose(found[b, :, y, x], slow_agreed(p[b, :, y, x].tolist(), q[b, :, y, x].tolist()), atol=1e-12)
    assert torch.equal(found[:, 0], p[:, 0]) and torch.allclose(found.sum(1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert torch.allclose(agreed(p, p), p) and not torch.allclose(found, p)


def test_who_is_altogether_sure_of_another_thing_or_of_none_changes_nothing():
    p = torch.tensor([.2, .8, 0.]).view(1, 3, 1, 1)
    for other in ([0., 0., 1.], [1., 0., 0.]): assert torch.allclose(agreed(p, torch.tensor(other).view(1, 3, 1, 1)), p)
    nothing = torch.tensor([1., 0., 0.]).view(1, 3, 1, 1)
    assert torch.equal(agreed(nothing, p), nothing)


def frozen():
    torch.manual_seed(2)
    net = Frozen(build('tiny'), 8, side=48).eval()
    for layer in (net.tags, net.lessons[-1]): torch.nn.init.normal_(layer.weight, std=.5)
    return net


class TagsAlone(Localiser):
    "The same layer of tags, and no word about pixels"
    def __init__(self, other):
        super().__init__(other.backbone, other.num_classes)
        self.other, self.shown = other, other.shown
    def raw_maps(self, images): return self.other.raw_maps(images)


def test_the_frozen_line_is_asked_about_tags_and_pixels_in_one_look():
    who, images = frozen(), [np.random.default_rng(k).integers(0, 256, (36, 48, 3), np.uint8) for k in (0, 1)]
    tags, pixels = opinion(who, images)
    alone, none = opinion(TagsAlone(who), images)
    assert none is None and torch.allclose(tags, alone, atol=1e-4) and torch.allclose(pixels, who.cell_scores(images, (1.,), True), atol=1e-5)
    net, _ = nets()
    p = net.predict(images, scales=(1.,)).detach()
    for b in range(2):
        for y, x in ((0, 0), (20, 31)):
            both = slow_agreed(p[b, :, y, x].tolist(), pixels[b, :, y, x].softmax(0).tolist())
            assert np.allclose(NamedNet(net, who).predict(images)[b, :, y, x], slow_named(both, tags[b].sigmoid().tolist()), atol=1e-4)


def test_in_a_tile_it_is_asked_for_names_alone():
    net, _ = nets()
    who, large = frozen(), np.ascontiguousarray(np.tile(synthetic('val', n=1).image(0), (3, 3, 1)))
    how = dict(tile=64, max_side=128, scales=(1.,), flip=False)
    found, names = (network_mask(NamedNet(net, w), large, **how) for w in (who, TagsAlone(who)))
    assert (found != names).mean() < .005
    whole, names = (network_mask(NamedNet(net, w), large, tile=0, max_side=128, scales=(1.,), flip=False) for w in (who, TagsAlone(who)))
    assert (whole != names).mean() > .02  # of a picture that is shown as a whole the pixels are asked


def test_a_run_is_evaluated_with_names_and_predicts_with_them(tmp_path):
    from wsss_nb.engine.run import run_recipe
    from wsss_nb.results.predict import load
    drawn, root, runs = synthetic('train', n=4), tmp_path / 'photos', tmp_path / 'runs'
    (root / 'masks').mkdir(parents=True)
    for i in range(4): Image.fromarray(drawn.image(i)).save(root / f'{i}.png')
    (root / 'tags.csv').write_text('image,tags\n' + ''.join(f'{i}.png,{";".join(drawn.classes[t - 1] for t in drawn[i].tags)}\n' for i in range(4)))
    small = ['backbone=tiny', 'weights=', 'stride=0', 'train.options={side: 64}', 'workers=1', 'segment.steps=2', 'segment.batch_size=2', 'segment.crop=32', 'evaluate.crf=', 'device=cpu']
    with inside(): run = run_recipe('own_folder', [f'data.root={root}', 'stages=[train, masks, segment, evaluate]', *small], runs, say=lambda text: None)
    made = json.loads((run / 'run.json').read_text())
    assert made['state'] == 'done' and made['stages']['segment']['parameters']['split'] == 'all' and made['stages']['evaluate']['parameters']['names'] == 'localiser'
    net, localiser = (f(runs / 'stages' / made['stages'][s]['folder'])[0] for f, s in ((load_segmenter, 'segment'), (load_localiser, 'train')))
    predictor, image = load(run, 'cpu'), drawn.image(0)
    expected = network_mask(NamedNet(net.eval(), localiser), image)
    assert isinstance(predictor.net, NamedNet) and np.array_equal(predictor(image), expected)
    assert np.array_equal(read_mask(runs / 'stages' / made['stages']['evaluate']['folder'] / 'all/0.png'), expected)


def test_without_a_localiser_one_line_says_what_to_do(tmp_path):
    net, localiser = nets()
    save_json(tmp_path / 'masks-a/stage.json', dict(stage='masks', inputs={}))
    save_json(tmp_path / 'segment-a/stage.json', dict(stage='segment', inputs=dict(masks='masks-a')))
    with pytest.raises(UserError, match='names: there is no localiser behind the masks .*; name other names, or none'): with_names(net, 'localiser', tmp_path / 'segment-a')
    assert with_names(net, '', tmp_path / 'nowhere') is net


def test_the_file_for_other_programs_is_of_the_network_alone(tmp_path):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    from wsss_nb.results.predict import Predictor, export_onnx
    net, localiser = nets()
    made = export_onnx(Predictor(NamedNet(net, localiser), [f'c{k}' for k in range(8)]), tmp_path / 'net.onnx')
    assert made.path.is_file() and (made.difference or 0) < 1e-3


def test_predictions_with_names_can_be_written_and_are_told_the_tags_as_well(tmp_path):
    net, localiser = nets()
    data = synthetic('val', n=3)
    write_predictions(NamedNet(net, localiser), data, tmp_path, flip=False, use_image_labels=True)
    for i, name in enumerate(data.names): assert set(np.unique(read_mask(tmp_path / f'{name}.png'))) <= {0, *data.records[i].tags}
