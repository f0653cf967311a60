"Superpixels, the greedy merge, and the chain of refinements"
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError
from wsss_nb.refine import superpixels as S
from wsss_nb.data.sample import ScoreMaps
from wsss_nb.refine.chain import from_mask, probabilities, refine, to_mask
from wsss_nb.refine.crf import crf_from_labels, dense_crf
from wsss_nb.refine.pamr import pamr

GOLDEN = {k.removeprefix('astro_small_'): v for k, v in np.load(Path(__file__).parent / 'goldens/icd_superpixels_official.npz').items()}
IMAGE = GOLDEN['image_rgb']


def test_golden_merge():
    got = S.merge_regions(GOLDEN['felz'], GOLDEN['features'], int(GOLDEN['max_num']))
    assert np.array_equal(got, GOLDEN['merged'])


def slow_merge(regions, f, most):
    "All pairs anew for each merge"
    f, size, regions = dict(enumerate(f)), dict(enumerate(np.bincount(regions.ravel()))), regions.copy()
    while len(f) > most:
        s = {(a, b): f[a] @ f[b] / np.linalg.norm(f[a]) / np.linalg.norm(f[b]) + 1 - (size[a] + size[b]) / regions.size for a in f for b in f if a < b}
        a, b = max(s, key=s.get)
        f[a], size[a] = (size[a] * f[a] + size[b] * f[b]) / (size[a] + size[b]), size[a] + size[b]
        regions[regions == b] = a
        del f[b], size[b]
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape)


@pytest.mark.parametrize('seed', range(5))
def test_merge_against_the_definition(seed):
    r = np.random.default_rng(seed)
    regions = r.permutation(30).reshape(5, 6).repeat(r.integers(1, 9, 6), 1).repeat(r.integers(1, 9, 5), 0)
    f = r.normal(size=(30, 4)) + (seed % 2)
    for most in (1, 3, 12, 29, 30, 64): assert np.array_equal(S.merge_regions(regions, f, most), slow_merge(regions, f, most))


def test_ties_go_to_the_smallest_pair():
    regions = np.arange(6).reshape(2, 3)
    assert S.merge_regions(regions, np.ones((6, 1)), 5).tolist() == [[0, 0, 1], [2, 3, 4]]


def test_unused_features_and_zero_features():
    regions = np.array([[0, 2], [5, 5]])
    got = S.merge_regions(regions, np.zeros((8, 3)), 2)
    assert len(np.unique(got)) == 2 and got[0].tolist() == [0, 0]


def test_region_mean():
    maps = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)
    regions = np.array([[0, 0, 1, 1, 7, 7]] * 4)
    want = np.concatenate([maps[:, :, i:i + 2].mean((1, 2), keepdims=True).repeat(2, 2).repeat(4, 1) for i in (0, 2, 4)], 2)
    got = S.region_mean(maps, regions)
    assert got.dtype == np.float32 and np.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('cells', [(5, 7), (1, 1), (1, 9), (40, 3)])
def test_region_features_are_means_of_the_enlarged_map(cells):
    r = np.random.default_rng(1)
    f, regions = r.normal(size=(3, *cells)), r.integers(0, 5, (24, 31))
    large = torch.nn.functional.interpolate(torch.tensor(f)[None], size=(24, 31), mode='bilinear')[0].numpy()
    np.testing.assert_allclose(S.region_features(f, regions), [large[:, regions == i].mean(1) for i in range(5)], atol=1e-10)


def test_superpixels():
    regions = S.superpixels(IMAGE)
    assert regions.shape == IMAGE.shape[:2] and np.array_equal(np.unique(regions), np.arange(regions.max() + 1)) and np.bincount(regions.ravel()).min() >= 75
    f = np.random.default_rng(0).random((6, 12, 15))
    assert S.superpixels(IMAGE, f, 9).max() == 8 and S.superpixels(IMAGE, method='slic', count=20).max() < 40
    assert S.superpixels(IMAGE[:1, :1]).tolist() == [[0]]


def test_padding_is_its_own_region():
    valid = np.zeros(IMAGE.shape[:2], bool)
    valid[:70, :100] = True
    f = np.random.default_rng(0).random((6, 12, 15))
    for features, most in ((None, 64), (f, 5)):
        regions = S.superpixels(IMAGE, features, most, valid)
        assert (regions[~valid] == regions.max()).all() and regions[valid].max() == regions.max() - 1
    assert regions.max() == 5


@pytest.mark.parametrize('call, text', [
    (lambda: S.superpixels(IMAGE, method='slick'), "Did you mean 'slic'"),
    (lambda: S.superpixels(IMAGE / 255), 'expected RGB uint8'),
    (lambda: S.superpixels(IMAGE, np.ones((1, 3, 4, 4))), 'expected [D,h,w]'),
    (lambda: S.merge_regions(GOLDEN['felz'], GOLDEN['features'][:9]), 'a row for each of the 24 regions'),
    (lambda: S.merge_regions(GOLDEN['felz'], GOLDEN['features'] * np.nan), 'NaN'),
    (lambda: S.merge_regions(GOLDEN['felz'] / 1., GOLDEN['features']), 'expected integers'),
    (lambda: S.merge_regions(GOLDEN['felz'], GOLDEN['features'], 0), 'max_regions: expected at least 1'),
    (lambda: refine(IMAGE, score_maps(0, 4, 9), ['parm']), "Did you mean 'pamr'"),
    (lambda: refine(IMAGE, score_maps(0, 4, 9), 'crf'), 'expected a list of steps'),
    (lambda: refine(IMAGE, score_maps(0, 4, 9), [], crf_presets='irn'), "Did you mean 'crf_preset'"),
    (lambda: refine(IMAGE, ScoreMaps(np.arange(3), maps()[:, 1:]), []), 'maps: expected the size of the image'),
])
def test_messages(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


def maps():
    p = np.random.default_rng(3).random((3, *IMAGE.shape[:2]), dtype=np.float32)
    return p / p.sum(0)


def score_maps(*keys): return ScoreMaps(np.array(keys), maps())


def test_chain_is_its_steps_in_order():
    x, m = torch.tensor(IMAGE).permute(2, 0, 1)[None] / 255, score_maps(0, 4, 9)
    after_pamr = pamr(x, torch.tensor(probabilities(m).maps)[None], 3, (1, 5))[0].numpy()
    got = refine(IMAGE, m, ['pamr', 'crf'], pamr_iters=3, pamr_dilations=[1, 5], crf_preset='psa', crf_iters=2)
    np.testing.assert_allclose(got.maps, dense_crf(IMAGE, after_pamr, 'psa', 2), atol=1e-5)
    assert np.array_equal(refine(IMAGE, m, []).maps, maps()) and got.keys.tolist() == [0, 4, 9]
    assert refine(IMAGE, m, ['superpixels', 'superpixels', 'pamr']).maps.dtype == np.float32


@pytest.mark.parametrize('preset, unary, hard', [('psa', '', False), ('irn', '', True), ('irn', 'scores', False), ('psa', 'labels', True)])
def test_a_crf_starts_from_what_its_code_base_starts_from(preset, unary, hard):
    m = score_maps(0, 4, 9)
    want = np.array([0, 4, 9])[crf_from_labels(IMAGE, maps().argmax(0), 3, preset)] if hard else m.keys[dense_crf(IMAGE, probabilities(m).maps, preset).argmax(0)]
    assert np.array_equal(to_mask(refine(IMAGE, m, ['crf'], crf_preset=preset, crf_unary=unary)), want)


def test_undecided_pixels_stay_undecided_through_a_chain():
    ids = np.full(IMAGE.shape[:2], 255)
    ids[:4, :4] = 0
    m = from_mask(ids, [0, 4, 255])
    assert (to_mask(m) == ids).all()
    got = to_mask(refine(IMAGE, m, ['crf'], crf_preset='irn'))
    assert np.array_equal(got, np.array([0, 4])[crf_from_labels(IMAGE, ids, 2, 'irn')])  # a label that could be anything is decided by its neighbours
