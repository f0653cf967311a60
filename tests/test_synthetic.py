import hashlib
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data import draw, things
from wsss_nb.data.grounds import COMPANIONS
from wsss_nb.data.synthetic import SPLITS, STAND_INS, draw_scene, drawn, drawings, synthetic, tags_of, write_voc
from wsss_nb.data.voc import voc12
from wsss_nb.base.show import VOC_PALETTE


def sha(*scenes):
    h = hashlib.sha256()
    for s in scenes: h.update(s.image.tobytes() + s.mask.tobytes())
    return h.hexdigest()


@pytest.fixture(scope='module')
def train():
    data = synthetic()
    return data, [data.scene(i) for i in range(len(data))]


@pytest.mark.parametrize('split, i, tags, expected', [
    ('train', 0, (5, 7), '249a4b938b114528b53ef7782307d13162e3e5f79c21fd2aa0cf999c289a9710'),
    ('train', 1, (3,), 'ed59667e7be2c5f4aad96ccb9d2822685ed5c63744aee451bef6f801ba4ec9f5'),
    ('train', 250, (7,), '1795b7c970df19fac5afc722db14263b0271bbf6a7f03ea018a4a603c78cc0a6')])
def test_pixels_are_frozen(split, i, tags, expected):
    assert tags_of(0, split, i) == tags and sha(draw_scene(0, split, i)) == expected


def test_the_whole_set_is_frozen(train):
    assert sha(*train[1]) == '490ecf5f38efea4f4c76fe5390a81b4e5cd5387d6fb602c92729f71ecb3b9590'
    val = synthetic('val')
    assert len(val) == 100 and sha(*map(val.scene, range(100))) == '15cef3fd1991a28321a7c65ceadb4ac1d03fdbad4d2d5cf72e280b02fc89bc07'
    assert train[0].fingerprint() == 'b6ac65b7f948de7d'


def test_tags_are_what_the_mask_shows(train):
    data, scenes = train
    for i, s in enumerate(scenes):
        assert set(np.unique(s.mask).tolist()) - {0, 255} == set(s.tags) == set(data.records[i].tags)
        assert s.image.dtype == s.mask.dtype == np.uint8 and s.image.shape == (*s.mask.shape, 3)
        assert min((s.mask == t).sum() for t in s.tags) > 150
    assert len({s.mask.shape for s in scenes}) == 4


def test_properties_that_make_it_hard(train):
    data, scenes = train
    labels = data.labels.numpy()
    assert labels.sum(0).min() >= 40 and .5 < (labels.sum(1) == 1).mean() < .6 and labels.sum(1).max() == 3
    share = [(s.parts & (s.mask == t)).sum() / (s.mask == t).sum() for s in scenes for t in s.tags]
    assert .2 < np.mean(share) < .35
    covered = np.array([((s.mask > 0) & (s.mask < 255)).mean() for s in scenes])
    assert (covered > .35).mean() > .08 and (covered < .1).mean() > .08
    assert .02 < np.mean([(s.mask == 255).mean() for s in scenes]) < .05
    for name in COMPANIONS:
        shown, there = labels[:, data.classes.index(name)] == 1, np.array([name in s.companions for s in scenes])
        assert .7 < there[shown].mean() < .9 and there[~shown].mean() < .1


def test_body_colours_do_not_tell_the_class(train):
    "Mean body colours of the classes lie within the spread of a single class"
    data, scenes = train
    bodies = {k: np.array([s.image[(s.mask == k) & ~s.parts].mean(0) for s in scenes if k in s.tags]) for k in range(1, 9)}
    means, spread = np.array([b.mean(0) for b in bodies.values()]), np.mean([b.std(0) for b in bodies.values()])
    assert means.std(0).max() < spread / 3


def test_behaves_as_a_data_set():
    data = synthetic('val', n=5)
    assert data.has_masks and data.split == 'val' and data.names[4] == 'val_0004' and len(data) == 5
    sample = data['val_0003']
    assert sample.tags == data.records[3].tags and (sample.image == data.image(3)).all() and (sample.mask == data.mask(3)).all()
    sample.image[:] = 0
    assert data.image(3).any(), 'a caller may write into its own copy only'
    part = data.subset([4, 'val_0001'])
    assert (part.image(0) == data.image(4)).all() and (part.mask(1) == data.mask(1)).all()
    assert (pickle.loads(pickle.dumps(part)).image(1) == data.image(1)).all()


def test_fewer_images_are_the_first_and_fingerprints_tell_sets_apart():
    few, many = synthetic(n=6), synthetic(n=11)
    assert few.fingerprint() == many.subset(range(6)).fingerprint() and (few.image(5) == many.image(5)).all()
    assert len({d.fingerprint() for d in (few, many, synthetic('val', 6), synthetic(n=6, seed=1))}) == 4
    assert not np.array_equal(synthetic(n=6, seed=1).image(0), few.image(0))


def test_other_seeds_keep_the_promise_of_the_tags():
    for s in (draw_scene(seed, 'train', i) for seed in (1, 2 ** 32 - 1) for i in range(24)):
        assert set(np.unique(s.mask).tolist()) - {0, 255} == set(s.tags)


def test_drawing_is_quick():
    start = time.process_time()
    for i in range(50): draw_scene(0, 'train', i)
    assert time.process_time() - start < 10  # 0.4 s on a quiet core, several times that on a crowded one


def test_written_as_voc_it_is_read_back(tmp_path):
    voc = write_voc(tmp_path, limit=5)
    assert voc == tmp_path/'VOCdevkit'/'VOC2012'
    for split in SPLITS:
        source, read = synthetic(split, 5), voc12(tmp_path, split)
        assert read.names == source.names and read.tags_from == 'xml'
        for i in range(5):
            ids = [STAND_INS[source.classes[t - 1]] for t in source.records[i].tags]
            assert sorted(k for _, k in ids) == list(read.records[i].tags) and {read.classes[k - 1] for _, k in ids} == {n for n, _ in ids}
            mask = source.mask(i)
            for t, (_, k) in zip(source.records[i].tags, ids): assert ((read.mask(i) == k) == (mask == t)).all()
            assert abs(read.image(i).astype(int) - source.image(i)).mean() < 12
    palette = Image.open(voc/'SegmentationClass'/'train_0000.png')
    assert palette.mode == 'P' and (np.array(palette.getpalette()).reshape(-1, 3) == VOC_PALETTE[:len(palette.getpalette()) // 3]).all()
    assert voc12(tmp_path, 'trainaug').names == voc12(tmp_path, 'train').names


def test_shapes_are_distances():
    y, x = np.mgrid[-3:3:61j, -3:3:61j]
    np.testing.assert_allclose(draw.box(x, y, 0, 0, 1, 1, 0)[30, 55], 1.5)  # right of the edge
    np.testing.assert_allclose(draw.box(x, y, 0, 0, 1, 1, 0)[60, 60], np.hypot(2, 2))  # from the corner
    np.testing.assert_allclose(draw.capsule(x, y, -1, 0, 1, 0, .5)[30, 60], 1.5)
    np.testing.assert_allclose(draw.polygon(x, y, (-1, 1), (-1, -1), (1, -1), (1, 1))[30], np.abs(x[30]) - 1)
    for shape, args in ((draw.polygon, ((-1, .8), (.2, -1), (1.5, .8))), (draw.capsule, (-.5, .2, 1, 0, .3)), (draw.ellipse, (.5, .1, 1, .4))):
        np.testing.assert_allclose(shape(x, y, *draw.mirror_args(shape, args)), shape(-x, y, *args), atol=1e-12)


def test_thing_coordinates_are_inverse():
    thing = things.Thing(draw.Dice(4), 'duck', (80, 112), 'medium')
    x, y = np.random.default_rng(0).random((2, 20)) * 80
    np.testing.assert_allclose(thing.to_image(*thing.to_body(x, y)), (x, y), atol=1e-9)


@pytest.mark.parametrize('call, text', [
    (lambda: synthetic('trian'), "Did you mean 'train'?"),
    (lambda: synthetic(n=0), 'n: expected a number of images, at least 1, got 0'),
    (lambda: synthetic(seed=-1), 'seed: expected an integer 0..4294967295, got -1')])
def test_mistakes_are_named(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


@pytest.fixture()
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    drawings.cache_clear()
    yield tmp_path
    drawings.cache_clear()


def same(a, b): return all(np.array_equal(x, y) for x, y in zip(a[:2], b[:2])) and np.array_equal(a.parts, b.parts) and (a.tags, a.companions) == (b.tags, b.companions)


def test_scenes_come_back_from_the_disk_as_they_were_drawn(cache):
    for i in range(12):
        first, again = drawn(0, 'val', i), drawn(0, 'val', i)
        assert same(first, draw_scene(0, 'val', i)) and same(again, first)
    assert len(list(cache.rglob('val_*.npz'))) == 12
    drawn(1, 'val', 0), drawn(0, 'val', 100)  # another set, and a continuation: not kept
    assert len(list(cache.rglob('*.npz'))) == 12


def test_a_damaged_or_forbidden_cache_is_no_harm(cache, monkeypatch):
    expected = draw_scene(0, 'train', 3)
    drawn(0, 'train', 3)
    file, = cache.rglob('train_0003.npz')
    for damage in (b'', file.read_bytes()[:500], b'<html>'):
        file.write_bytes(damage)
        assert same(drawn(0, 'train', 3), expected) and same(drawn(0, 'train', 3), expected)
    (cache / 'file').write_bytes(b'')
    monkeypatch.setenv('XDG_CACHE_HOME', str(cache / 'file'))
    drawings.cache_clear()
    assert same(drawn(0, 'train', 3), expected)


def test_size_is_known_before_a_scene_is_drawn(train):
    data, scenes = train
    assert [data.size(i) for i in range(len(data))] == [s.mask.shape for s in scenes]


def test_a_scene_cannot_be_painted_over(train):
    with pytest.raises(ValueError, match='read-only'): train[0].scene(0).image[:] = 0
    image = train[0].image(0)
    image[:] = 0
    assert train[0].image(0).any()
