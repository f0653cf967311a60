"""Large pictures in tiles: equal to the whole where a tile sees enough, and no seam."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsss_nb.base.core import UserError
from wsss_nb.cams import Localiser
from wsss_nb.data.sample import read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tiles import check_photograph, fading, said_of_the_whole, tile_starts, tiled
from wsss_nb.nets.heads import ImagePool
from wsss_nb.nets.segmenter import Segmenter
from wsss_nb.results.in_tiles import needs_tiles, tiled_mask, tiled_score_maps
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
        assert np.array_equal(tiled_mask(predictor, PICTURE, ids, settings, 256)[sure], want[sure]) or ids
        if ids: assert set(np.unique(tiled_mask(predictor, PICTURE, ids, settings, 256))) <= {0, 1, 3}


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
        with said_of_the_whole(net, ImagePool, lambda: net.logits(x)): net.logits(x[..., :16, :16])
    hook.remove()
    ours = []
    with torch.no_grad(), said_of_the_whole(net, ImagePool, lambda: net.logits(x)):
        after = pools[0].register_forward_hook(lambda m, given, out: ours.append(out[0, :, 0, 0].clone()))
        net.logits(x[..., :16, :16])
        after.remove()
    assert torch.allclose(ours[0], said[0]) and not torch.allclose(said[2], said[0]) and not pools[0]._forward_hooks


def test_which_pictures_are_taken_in_tiles():
    assert [needs_tiles(s) for s in ((500, 375), (2048, 10), (2049, 10))] == [0, 0, 1024]
    assert [needs_tiles((3000, 100), t) for t in (0, 512, 4000)] == [0, 512, 0]


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
    assert np.array_equal(read_mask(tmp_path / 'o/masks/large.png'), tiled_mask(predictor, PICTURE, None, settings, 192))
    assert np.array_equal(read_mask(tmp_path / 'o/masks/small.png'), predictor(PICTURE[:40, :50], scales=(1.,), flip=False))
    with pytest.raises(UserError, match='were made with another settings'): predict_files(predictor, {}, tmp_path / 'o', scales=(1.,), flip=False, max_side=10**6)


def test_one_row_of_tiles_is_held():
    "a hundred rows of tiles, of which no more than one and its overlap are alive"
    seen = [(y, m.shape) for y, m in tiled(lambda y, x, h, w: np.ones((2, h, w), np.float32), (6432, 40), 128, 64)]
    assert sum(s[1] for _, s in seen) == 6432 and max(s[1] for _, s in seen) <= 128 and seen[0][0] == 0
