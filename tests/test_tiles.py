"""Large pictures in tiles: equal to the whole where a tile sees enough, and no seam."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inside import inside
from wsss_nb.base.core import UserError, load_json
from wsss_nb.cams import Localiser, write_score_maps
from wsss_nb.data.sample import Data, Record, ScoreMaps, load_maps, read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tiles import IN_TILES, WHOLE, fading, of_the_whole, piece_by_piece, said_of_the_whole, tile_side, tile_starts, tiled
from wsss_nb.nets.heads import ImagePool
from wsss_nb.nets.segmenter import Segmenter
from wsss_nb.engine.evaluate import write_predictions
from wsss_nb.engine.in_tiles import mask_in_tiles, network_mask, tiled_score_maps
from wsss_nb.engine.methods import localiser_learner
from wsss_nb.engine.run import make_run
from wsss_nb.refine.masks import write_masks
from wsss_nb.results.predict import Predictor, predict_files

CLASSES = ['a', 'b', 'c']
PICTURE = np.ascontiguousarray(np.tile(synthetic('val', n=1).image(0), (4, 4, 1))[:320, :384])


class Near(Segmenter):
    "Sees 4 pixels at stride 4: less than a quarter of an overlap of 64"
    def __init__(self):
        super().__init__(None, 3)
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        for p in self.body.parameters(): nn.init.normal_(p, std=.3) if p.ndim > 1 else nn.init.zeros_(p)
        self.classes = CLASSES
    def logits(self, images): return self.body(images - .45)


@pytest.mark.parametrize('length, tile, overlap', [(100, 128, 32), (128, 128, 32), (129, 128, 32), (700, 128, 32), (1024 * 3 + 5, 1024, 256), (224, 128, 32), (225, 128, 32)])
def test_the_weights_are_1_everywhere(length, tile, overlap):
    total, starts = np.zeros(length), tile_starts(length, tile, overlap)
    for s in starts:
        n = min(tile, length - s)
        total[s:s + n] += fading(s, n, length, overlap)
    assert np.allclose(total, 1, atol=1e-6) and starts[-1] + tile >= length and all(s % 32 == 0 for s in starts)


@pytest.mark.parametrize('flip', [False, True])
def test_a_network_in_tiles_is_the_network_on_the_whole(flip):
    predictor = Predictor(Near().eval())
    settings = dict(scales=(1.,), flip=flip, max_side=10**6)
    whole = predictor.probabilities(PICTURE, **settings)
    parts = np.concatenate([p for _, p in tiled(lambda y, x, h, w: predictor.scores(np.ascontiguousarray(PICTURE[y:y + h, x:x + w]), predictor.chosen(settings)), PICTURE.shape[:2], 192, 64)], 1)
    assert np.abs(whole - parts).max() < 1e-4 and len(np.unique(whole.argmax(0))) > 1
    sure = np.sort(whole, 0)[-1] - np.sort(whole, 0)[-2] > 1e-3
    for ids in (None, (1, 3)):
        want = predictor.mask(PICTURE, ids, **settings)
        assert np.array_equal(predictor.mask(PICTURE, ids, tile=256, **settings)[sure], want[sure]) or ids
        if ids: assert set(np.unique(predictor.mask(PICTURE, ids, tile=256, **settings))) <= {0, 1, 3}


def test_a_localiser_in_tiles_is_the_localiser_on_the_whole():
    class Small(Localiser):
        "Three convolutions"
        def __init__(self):
            super().__init__(None, 3)
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        def raw_maps(self, images): return self.body(images)
    net = Small().eval()
    whole = net.score_maps([PICTURE], torch.tensor([[1., 0, 1]]), (1.,), max_side=10**6)[0]
    parts = tiled_score_maps(net, PICTURE, [[1, 3]], tile=128)
    assert parts.keys.tolist() == [1, 3] and np.abs(whole.maps - parts.maps).max() < 1e-5


def test_what_is_pooled_over_the_picture_is_that_of_the_picture():
    torch.manual_seed(0)
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = ImagePool(3, 16, "group")
        def logits(self, images): return self.pool(images)
    net = Pooled().eval()
    x = torch.rand(1, 3, 32, 40)
    pools = [net.pool]
    said = []
    hook = pools[0].register_forward_hook(lambda m, given, out: said.append(out[0, :, 0, 0].clone()))
    with torch.no_grad():
        net.logits(x)
        with said_of_the_whole(net, lambda: net.logits(x)): net.logits(x[..., :16, :16])
    hook.remove()
    ours = []
    with torch.no_grad(), said_of_the_whole(net, lambda: net.logits(x)):
        after = pools[0].register_forward_hook(lambda m, given, out: ours.append(out[0, :, 0, 0].clone()))
        net.logits(x[..., :16, :16])
        after.remove()
    assert torch.allclose(ours[0], said[0]) and not torch.allclose(said[2], said[0]) and not pools[0]._forward_hooks


class Near2(Localiser):
    "Three convolutions of stride 1"
    def __init__(self):
        super().__init__(None, 3)
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.classes = CLASSES
    def raw_maps(self, images): return self.body(images)


class Two(Data):
    "A large picture and a small one"
    def __init__(self):
        super().__init__([Record('large', 'large', (1, 3)), Record('small', 'small', (2,))], CLASSES, 'two', 'train')
    def image(self, i): return PICTURE if self.records[self.index(i)].name == 'large' else np.ascontiguousarray(PICTURE[:100, :90])
    def size(self, i): return self.image(i).shape[:2]


def test_score_maps_of_a_set_in_tiles_are_those_of_the_whole(tmp_path):
    net, data = Near2().eval(), Two()
    for name, own in dict(tiles=dict(max_side=128, tile=128), whole=dict(max_side=0), shrunk=dict(max_side=128, tile=0)).items(): write_score_maps(net, data, tmp_path / name, (1.,), **own)
    maps = {k: {n: load_maps(tmp_path / k / f'{n}.npz') for n in data.names} for k in ('tiles', 'whole', 'shrunk')}
    assert maps['tiles']['large'].keys.tolist() == [1, 3] and np.abs(maps['tiles']['large'].maps - maps['whole']['large'].maps).max() < 2e-3  # of float16
    assert np.abs(maps['shrunk']['large'].maps - maps['whole']['large'].maps).max() > .05
    for k in maps: assert np.array_equal(maps[k]['small'].maps, maps['whole']['small'].maps)


def test_masks_and_predictions_of_a_set_in_tiles(tmp_path):
    net, data = Near2().eval(), Two()
    write_score_maps(net, data, tmp_path / 'maps', (1.,), max_side=0)
    local = dict(steps=['pamr'], pamr_iters=1, pamr_dilations=(1, 2))
    for name, own in dict(tiles=dict(max_side=128, tile=128), whole=dict(tile=0)).items(): write_masks(data, tmp_path / 'maps', tmp_path / name, 1, **local, **own)
    masks = {k: [read_mask(tmp_path / k / f'{n}.png') for n in data.names] for k in ('tiles', 'whole')}
    assert np.array_equal(masks['tiles'][1], masks['whole'][1]) and (masks['tiles'][0] == masks['whole'][0]).mean() > .9999 and len(np.unique(masks['whole'][0])) > 1
    seg = Near().eval()
    write_predictions(seg, data, tmp_path / 'p', flip=False, max_side=192, tile=192)
    assert np.array_equal(read_mask(tmp_path / 'p/large.png'), network_mask(seg, PICTURE, tile=192, max_side=192, flip=False))
    assert np.array_equal(read_mask(tmp_path / 'p/small.png'), network_mask(seg, data.image(1), tile=0, flip=False))
    sure = network_mask(seg, PICTURE, tile=0, max_side=10**6, flip=False)
    assert (read_mask(tmp_path / 'p/large.png') == sure).mean() > .999


def test_a_step_that_divides_by_the_largest_is_told_of_the_whole():
    m = np.zeros((1, 64, 256), np.float32)
    m[:, :, :128], m[:, :, 128:] = 1, 4
    shares = lambda image, maps: ScoreMaps(np.array([0, 2]), np.stack([maps.maps[0] * 0, maps.maps[0] / of_the_whole('top', lambda: maps.maps.max())]))
    image, maps = np.zeros((64, 256, 3), np.uint8), ScoreMaps(np.array([2]), m)
    parts = piece_by_piece(shares, image, maps, 64)
    assert parts.keys.tolist() == [0, 2] and np.allclose(parts.maps, shares(image, maps).maps, atol=1e-6) and WHOLE.get() is None


def test_undecided_pixels_of_one_tile_keep_their_map():
    def f(image, maps):
        odd = (image[..., 0] > 0).any()
        return ScoreMaps(np.array([0, 2, 255] if odd else [0, 2]), np.zeros((3 if odd else 2, *image.shape[:2]), np.float32))
    image = np.zeros((64, 200, 3), np.uint8)
    assert piece_by_piece(f, image, ScoreMaps(np.array([2]), np.zeros((1, 64, 200), np.float32)), 64).keys.tolist() == [0, 2]
    image[:, 190:] = 9
    assert piece_by_piece(f, image, ScoreMaps(np.array([2]), np.zeros((1, 64, 200), np.float32)), 64).keys.tolist() == [0, 2, 255]


@pytest.mark.parametrize('method', ['cam', 'icd', 'sipe', 'ccmr', 'frozen'])
def test_every_method_takes_large_pictures(method):
    "what a method draws from the whole picture it is told in its tiles: no tile is a picture of its own"
    torch.manual_seed(0)
    data = synthetic('train', n=4)
    net = localiser_learner(data, method=method, backbone='tiny', weights='', crop=64, long_side=(64, 96), epochs=1, batch_size=4, device='cpu', options=dict(refine='none') if method == 'icd' else {}).raw_net.eval()
    image = np.ascontiguousarray(np.tile(data.image(0), (2, 3, 1)))
    tags = torch.zeros(1, len(data.classes))
    tags[0, [0, 4]] = 1
    whole = net.score_maps([image], tags, (1.,), False, 10**6)[0]
    parts = tiled_score_maps(net, image, tags, flip=False, tile=128)
    assert set(whole.keys) - {255} == set(parts.keys) - {255} and parts.maps.shape[1:] == image.shape[:2]
    assert np.isfinite(parts.maps).all() and 0 <= parts.maps.min() and parts.maps.max() <= 1
    assert IN_TILES.get() == 0 and WHOLE.get() is None and not any(m._forward_hooks for m in net.modules())
    if method == 'frozen': assert np.allclose(whole.maps, parts.maps, atol=1e-6)
    if method == 'cam': assert np.abs(whole.maps - parts.maps).mean() < .3 * whole.maps.mean()


def test_a_network_with_a_size_of_its_own_is_not_cut():
    class Own(Near):
        own_size = True
    image = np.ascontiguousarray(np.tile(PICTURE, (2, 2, 1)))
    found, ask = [], Near().eval()
    def seen(i):
        found.append(i.shape[:2])
        return ask.predict([i], flip=False)[0].numpy()
    mask = mask_in_tiles(Own(), image, seen, side=256)
    assert mask.shape == image.shape[:2] and len(found) == 1 and max(found[0]) == 256


def test_which_pictures_are_taken_in_tiles():
    assert [tile_side(s) for s in ((500, 375), (1024, 10), (1025, 10))] == [0, 0, 1024]
    assert [tile_side((3000, 100), t) for t in (0, 512, 4000)] == [0, 512, 1024]
    assert [tile_side((3000, 100), 1024, m) for m in (640, 3000, 10**6, 1)] == [640, 0, 0, 64]


def test_predict_takes_them_so_and_says_no_to_what_is_no_photograph(tmp_path):
    (tmp_path / 'p').mkdir()
    Image.fromarray(PICTURE).save(tmp_path / 'p/large.png')
    Image.fromarray(PICTURE[:40, :50]).save(tmp_path / 'p/small.png')
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / 'p/deep.png')
    Image.new('RGB', (4, 4)).save(tmp_path / 'p/map.tif', tiffinfo={33550: (1., 1., 0.)})
    predictor = Predictor(Near().eval())
    failed = predict_files(predictor, {p.stem: p for p in sorted((tmp_path / 'p').iterdir())}, tmp_path / 'o', tile=192, scales=(1.,), flip=False, max_side=10**6)
    assert set(failed) == {'deep', 'map'} and '16 bits a channel' in failed['deep'] and 'a GeoTIFF' in failed['map']
    settings = dict(scales=(1.,), flip=False, max_side=10**6)
    assert np.array_equal(read_mask(tmp_path / 'o/masks/large.png'), predictor.mask(PICTURE, tile=192, **settings))
    assert np.array_equal(read_mask(tmp_path / 'o/masks/small.png'), predictor(PICTURE[:40, :50], scales=(1.,), flip=False))
    with pytest.raises(UserError, match='were made with another settings'): predict_files(predictor, {}, tmp_path / 'o', scales=(1.,), flip=False, max_side=10**6)


def test_one_row_of_tiles_is_held():
    "a hundred rows of tiles, of which no more than one and its overlap are alive"
    seen = [(y, m.shape) for y, m in tiled(lambda y, x, h, w: np.ones((2, h, w), np.float32), (6432, 40), 128, 64)]
    assert sum(s[1] for _, s in seen) == 6432 and max(s[1] for _, s in seen) <= 128 and seen[0][0] == 0


def test_a_run_takes_large_pictures_in_tiles(tmp_path):
    recipe = lambda tile: dict(stages=['train', 'masks'], limit=2, data=dict(name='synthetic'), train=dict(backbone='tiny', weights='', epochs=1, crop=64, long_side=[72, 96]),
                               masks=dict(refine=['pamr'], scales=[1.0], flip=False, splits=['train'], max_side=80, tile=tile, workers=1))
    with inside():
        for tile in (64, 0): make_run(f'r{tile}', recipe(tile), tmp_path)
    made = {t: Path(load_json(tmp_path / f'r{t}/run.json')['stages']['masks']['folder']).name for t in (64, 0)}
    maps = {t: [load_maps(p) for p in sorted((tmp_path / 'stages' / load_json(tmp_path / f'stages/{made[t]}/stage.json')['results']['maps']['train']).glob('*.npz'))] for t in made}
    sizes = [m.maps.shape[1:] for m in maps[64]]
    assert len(sizes) == 2 and sizes == [m.maps.shape[1:] for m in maps[0]] and min(max(s) for s in sizes) > 80
    assert all(m.maps.max() <= 1 for m in maps[64]) and not all(np.array_equal(a.maps, b.maps) for a, b in zip(maps[64], maps[0]))
    with pytest.raises(UserError, match='masks.tile: expected 0 or at least 64, got 10'): make_run('odd', recipe(10), tmp_path)
