"""Every method, from files to masks, on the pictures that break things: trained, stopped, resumed, loaded, read twice, refined by every step that there is."""
import numpy as np
import pytest
import torch
from PIL import Image

from conformity import check_localiser, ground
from wsss_nb.cams import CamNet, Localiser, write_score_maps
from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.sample import Data, Record, load_maps, missing, read_mask
from wsss_nb.engine.methods import METHODS, build_affinity, build_localiser, load_localiser, localiser_learner
from wsss_nb.refine.chain import STEPS
from wsss_nb.refine.masks import write_masks
from wsss_nb.refine.steps import AFFINITIES, REFINERS, network_of, flat_settings, step_of
from wsss_nb.engine.refining import write_step
from wsss_nb.engine.train import Callback
from wsss_nb.nets.zoo import build
from wsss_nb.papers import conformity

CLASSES = ['cat', 'dog', 'never']  # no image has the third
SMALL = dict(backbone='tiny', weights='', crop=32, long_side=(24, 40), device='cpu', optimizer='adamw', lr=1e-3, head_lr=1., precision='fp32')


def blobs(h, w, seed=0):
    "A picture uint8 [h,w,3] with something to see, at any size"
    r = np.random.default_rng(seed)
    return np.kron(r.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)), np.ones((8, 8, 1))).astype(np.uint8)[:h, :w]


def picture(path, h, w, mode='RGB', **saved):
    im = Image.fromarray(blobs(h, w, len(path.name)))
    if mode == 'alpha': im.putalpha(Image.fromarray(blobs(h, w)[..., 0]))
    else: im = im.convert(mode)
    im.save(path, **saved)
    return path


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Image id -> size (h, w) upright, and the Data"
    d, turned = tmp_path_factory.mktemp('odd'), Image.Exif()
    turned[0x0112] = 6
    made = {
        'one class': (picture(d / 'a.jpg', 40, 48), (1,), (40, 48)),
        'all classes': (picture(d / 'b.png', 40, 48), (1, 2), (40, 48)),
        'no class': (picture(d / 'c.png', 40, 48), (), (40, 48)),
        'odd sides': (picture(d / 'd.jpg', 53, 71), (2,), (53, 71)),
        'one pixel wide': (picture(d / 'e.png', 37, 1), (1,), (37, 1)),
        'one pixel': (picture(d / 'f.png', 1, 1), (2,), (1, 1)),
        'smaller than the stride': (picture(d / 'g.png', 5, 7), (2,), (5, 7)),
        'a ribbon': (picture(d / 'h.png', 6, 200), (1,), (6, 200)),
        'grey': (picture(d / 'i.png', 33, 29, 'L'), (1,), (33, 29)),
        'two colours': (picture(d / 'j.png', 33, 30, '1'), (2,), (33, 30)),
        'alpha': (picture(d / 'k.png', 31, 32, 'alpha'), (1,), (31, 32)),
        'palette': (picture(d / 'l.png', 32, 31, 'P'), (2,), (32, 31)),
        'turned': (picture(d / 'm.jpg', 30, 44, exif=turned), (1, 2), (44, 30)),
    }
    Image.new('RGB', (36, 34)).save(d / 'n.png')
    made['black'] = (d / 'n.png', (1, 2), (34, 36))
    data = Data([Record(name, path, tags) for name, (path, tags, _) in made.items()], CLASSES, 'odd', 'train')
    return {name: size for name, (_, _, size) in made.items()}, data


class Stop(Callback):
    "Pull the plug in the second step"
    def after_step(self, learner, batch, losses):
        if learner.step == 2: raise KeyboardInterrupt


OWN = dict(frozen=dict(side=48, lessons=1))  # options that make a method's training two steps of little work


def learner(data, method, folder, **kw): return localiser_learner(data, method, cache=folder / 'cache', folder=folder, epochs=1, options=OWN.get(method), **{**SMALL, 'batch_size': 5, 'backbone': ground(method), **kw})


@pytest.fixture(scope='module', params=METHODS)
def method(request, odd, tmp_path_factory):
    "A method, trained by two steps on the odd images: its name and the folder of its stage"
    folder = tmp_path_factory.mktemp(request.param)
    losses = learner(odd[1], request.param, folder).fit()
    assert len(losses) == 2 and all(np.isfinite(v) for step in losses for v in step.values())
    save_json(folder / 'stage.json', dict(stage='train', parameters=dict(method=request.param, backbone=ground(request.param), stride=0, options=OWN.get(request.param, {})), results=dict(classes=CLASSES)))
    return request.param, folder


def test_stopped_and_resumed_it_is_the_same(method, odd, tmp_path):
    name, folder = method
    with pytest.raises(KeyboardInterrupt): learner(odd[1], name, tmp_path, callbacks=[Stop()], save_seconds=0.).fit()
    again = learner(odd[1], name, tmp_path)
    history, net = again.fit(), load_localiser(folder)[0]
    assert [h['step'] for h in history] == [1, 2]
    for (k, a), b in zip(net.state_dict().items(), again.raw_net.state_dict().values(), strict=True): assert torch.equal(a, b), k


def maps_of(folder, data): return {name: load_maps(folder / f'{name}.npz') for name in data.names}


def check_maps(found, data, sizes):
    "Finite, of the image's size, of the background and the tagged classes alone"
    for r in data.records:
        keys, maps = found[r.name]
        assert set(keys.tolist()) - {0, 255} == set(r.tags), r.name
        assert maps.shape == (len(keys), *sizes[r.name]) and maps.dtype == np.float16 and np.isfinite(maps).all() and (not maps.size or 0 <= maps.min() <= maps.max() <= 1.001), r.name


def check_masks(folder, data, sizes):
    for r in data.records:
        mask = read_mask(folder / f'{r.name}.png', len(CLASSES), sizes[r.name])
        assert mask.dtype == np.uint8 and set(np.unique(mask).tolist()) <= {0, 255, *r.tags}, r.name


def test_its_maps_and_masks(method, odd, tmp_path):
    (sizes, data), net = odd, load_localiser(method[1])[0]
    reads = {batch: tmp_path / str(batch) for batch in (1, 8)}
    for batch, out in reads.items(): write_score_maps(net, data, out, scales=(1., .5), batch_size=batch)
    alone, together = (maps_of(out, data) for out in reads.values())
    check_maps(alone, data, sizes)
    for name in data.names: assert np.abs(alone[name].maps.astype(float) - together[name].maps).max(initial=0) < 5e-3, f'{name}: the other images of the batch matter'
    write_score_maps(load_localiser(method[1])[0], data, tmp_path / 'again', scales=(1., .5), batch_size=1)
    for name in data.names: assert (alone[name].maps == load_maps(tmp_path / f'again/{name}.npz').maps).all(), name
    write_masks(data, reads[1], tmp_path / 'plain', workers=1)
    write_masks(data, reads[1], tmp_path / 'refined', workers=1, steps=list(STEPS), crf_iters=2, pamr_iters=2)
    for out in ('plain', 'refined'): check_masks(tmp_path / out, data, sizes)


def test_without_tags_it_looks_for_itself(method, odd, tmp_path):
    (sizes, data), net = odd, load_localiser(method[1])[0]
    write_score_maps(net, data, tmp_path, scales=(1.,), flip=False, use_image_labels=False)
    for name in data.names:
        keys, maps = load_maps(tmp_path / f'{name}.npz')
        assert set(keys.tolist()) <= {0, 1, 2, 3, 255} and maps.shape == (len(keys), *sizes[name]) and np.isfinite(maps).all()


@pytest.mark.parametrize('name', METHODS)
def test_one_image_of_one_class(name, odd, tmp_path):
    data = Data([odd[1].records[0]], CLASSES[:1], 'one', 'train')
    net = learner(data, name, tmp_path, batch_size=1)
    assert np.isfinite(net.fit()[-1]['loss']) and net.step == net.steps == (2 if name in OWN else 1)
    write_score_maps(net.raw_net, data, tmp_path / 'maps', scales=(1.,))
    write_masks(data, tmp_path / 'maps', tmp_path / 'masks', workers=1)
    check_masks(tmp_path / 'masks', data, odd[0])


@pytest.mark.parametrize('step', [s for s in REFINERS if not step_of(s).pixels])
@pytest.mark.parametrize('method', ['cam', 'sipe'], indirect=True)  # maps without and with a background
def test_every_refinement_by_a_network(step, method, odd, tmp_path):
    (sizes, data), net = odd, load_localiser(method[1])[0]
    write_score_maps(net, data, tmp_path / 'maps', scales=(1.,), flip=False)
    network = method[1]
    if step in AFFINITIES:
        torch.manual_seed(0)
        network = tmp_path / 'network'
        network.mkdir()
        torch.save(dict(net=build_affinity(step, method[1]).state_dict(), settings={}, step=0), network / 'checkpoint.pt')
        save_json(network / 'stage.json', dict(stage=step, parameters=dict(localiser=str(method[1])), results=dict(classes=CLASSES)))
    (tmp_path / 'ask.py').write_text('import numpy as np\ndef whole(image, boxes, points): return np.ones((1, *image.shape[:2]), bool)')  # somebody's segmenter
    settings = dict(svm_per_class=50, svm_cycles=1, ccmr_iters=2, psa_log2_steps=2, irn_log2_steps=2, prompt_model=f'{tmp_path}/ask.py:whole')
    assert network_of(step) == (step if step in AFFINITIES else 'localiser') and flat_settings(step).keys() & settings.keys()
    p = dict(flat_settings(step), **{k: v for k, v in settings.items() if k.startswith(step)}, seed=0, workers=1, device='cpu', tile=1024, max_side=1024)
    for out in ('once', 'twice'): write_step(step, network, data, tmp_path / 'maps', tmp_path / out, p)
    assert not missing(data, tmp_path / 'once', '.npz')
    found = maps_of(tmp_path / 'once', data)
    for r in data.records:
        keys, maps = found[r.name]
        assert set(keys.tolist()) <= {0, 255, *r.tags} and keys[0] == 0 and maps.shape == (len(keys), *sizes[r.name]) and np.isfinite(maps).all(), r.name
        assert (maps == load_maps(tmp_path / f'twice/{r.name}.npz').maps).all(), r.name
    write_masks(data, tmp_path / 'once', tmp_path / 'masks', workers=1)
    check_masks(tmp_path / 'masks', data, sizes)


# -- what a network must keep before it sees a file

@pytest.mark.parametrize('name', METHODS)
def test_what_every_method_must_keep_as_it_comes(name): check_localiser(lambda k: build_localiser(name, k, ground(name), options=OWN.get(name)))


class Raises(CamNet):
    def forward(self, batch): return dict(loss=batch['image'][0, 0, 0, 99])


class Infinite(CamNet):
    def forward(self, batch): return dict(loss=super().forward(batch)['loss'], part=1 / batch['labels'].sum())


class RootOfNothing(CamNet):
    def forward(self, batch): return dict(loss=super().forward(batch)['loss'] + (0 * self.head.weight).sum().abs().sqrt())


class Nothing(CamNet):
    def forward(self, batch): return dict(loss=super().forward(batch)['loss'].detach())


class OwnOnly(CamNet):
    def forward(self, batch): return dict(loss=sum(f.mean() for f in self.backbone(batch['image'])))


class Renames(CamNet):
    def forward(self, batch): batch['name'].reverse(); return super().forward(batch)


class AnyKey(CamNet):
    def score_maps(self, images, labels, *a, **k): return super().score_maps(images, torch.ones_like(labels), *a, **k)


class Doubled(CamNet):
    def score_maps(self, images, labels, *a, **k): return [m._replace(maps=2 * m.maps) for m in super().score_maps(images, labels, *a, **k)]


class Wide(CamNet):
    def score_maps(self, images, labels, *a, **k): return [m._replace(maps=m.maps.astype(float)) for m in super().score_maps(images, labels, *a, **k)]


class Small(CamNet):
    def score_maps(self, images, labels, *a, **k): return [m._replace(maps=m.maps[:, 1:]) for m in super().score_maps(images, labels, *a, **k)]


class FirstOnly(CamNet):
    def score_maps(self, images, labels, *a, **k): return super().score_maps(images, labels, *a, **k)[:1]


class Moody(CamNet):
    def raw_maps(self, images, **k): return super().raw_maps(images, **k) + torch.rand(self.num_classes, 1, 1)


class Paints(CamNet):
    def score_maps(self, images, labels, *a, **k):
        images[0][:] = 0
        return super().score_maps(images, labels, *a, **k)


class Grows(CamNet):
    def __init__(self, backbone, num_classes):
        super().__init__(backbone, num_classes)
        self.register_buffer('drawn', torch.zeros(int(torch.randint(1, 10_000, ()))))


@pytest.mark.parametrize('cls, promise, text', [
    (Raises, 'finite', 'forward of a usual batch raised IndexError: index 99 is out of bounds'),
    (Localiser, 'finite', 'forward of a usual batch raised NotImplementedError: '),
    (Infinite, 'finite', 'images without a class: part is not finite; keep divisors'),
    (RootOfNothing, 'finite', 'a usual batch: the gradient of head.weight is not finite'),
    (Nothing, 'finite', 'backward of a usual batch raised RuntimeError: element 0 of tensors does not require grad'),
    (OwnOnly, 'trains', 'the loss has no gradient at a layer of its own; look for a detach'),
    (Renames, 'untouched', 'forward changes `name` of its batch; work on a copy.'),
    (AnyKey, 'formed', 'score_maps gives maps of [1, 2, 3] for an image of the classes [3]; expected these'),
    (Doubled, 'formed', 'score_maps: the largest score is 2; normalise'),
    (Wide, 'formed', 'score_maps: expected finite float32, got float64.'),
    (Small, 'formed', 'score_maps gives [1, 52, 71] for 1 classes and an image of (53, 71).'),
    (FirstOnly, 'formed', 'score_maps gives 1 results for 4 images.'),
    (Moody, 'alone', 'two readings of the same images differ; what is random belongs to the training'),
    (Paints, 'formed', 'score_maps changes the images or labels it is given; work on a copy.'),
    (Grows, 'saved', 'loading the saved weights raised RuntimeError: Error(s) in loading state_dict for Grows:'),
])
def test_a_broken_promise_is_told_in_one_line(cls, promise, text):
    promise = getattr(conformity, promise)
    assert promise in conformity.PROMISES
    with pytest.raises(UserError) as e: promise(conformity.Case(lambda k: cls(build('tiny'), k), cls.__name__))
    assert str(e.value).startswith(f'{cls.__name__}: {text}') and '\n' not in str(e.value)


@pytest.mark.parametrize('method, options, text', [('sipe', {}, "got 'sipe'."), (torch.nn.Linear, {}, 'got <class '), (lambda k: None, dict(patches=4), ' with patches.')])
def test_what_is_no_method_is_told(method, options, text):
    with pytest.raises(UserError, match='method: expected a class that is a Localiser, and its options, or a function: number of classes -> network, got ') as e: conformity.check(method, **options)
    assert text in str(e.value)


class Told(CamNet):
    def __init__(self, backbone, num_classes, strength=1): raise UserError(f'{backbone.name}, {num_classes} classes, strength {strength}')


def test_a_class_is_built_with_its_options_on_the_backbone_that_is_named():
    from wsss_nb.papers.seam import Seam
    said = []
    with pytest.raises(UserError, match='^Infinite: images without a class'): conformity.check(Infinite, say=said.append)
    assert not said
    with pytest.raises(UserError, match='scale: expected a number between 0 and 1, got 2'): conformity.check(Seam, scale=2)
    with pytest.raises(UserError, match="Seam: building the network raised TypeError: .*unexpected keyword argument 'scales'"): conformity.check(Seam, scales=.5)
    with pytest.raises(UserError, match='mobilenet_v2, 7 classes, strength 2'): conformity.check(Told, num_classes=7, backbone='mobilenet_v2', strength=2)
    conformity.check(CamNet, num_classes=1, size=(32, 32), odd=(33, 35), reading=dict(kind='grad_cam'), say=said.append)
    assert said[0] == 'CamNet: losses and gradients are finite, whatever the batch' and len(said) == 10
