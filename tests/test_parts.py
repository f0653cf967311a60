"""The second embedded set: frozen, its classes shown by several signs, its coats and grounds silent about them"""
import hashlib
import pickle
import time

import numpy as np
import pytest

from wsss_nb.base.core import UserError
from wsss_nb.data import figures
from wsss_nb.data import parts as P
from wsss_nb.data.draw import Dice
from wsss_nb.data.synthetic import SPLITS, synthetic, tags_of


def sha(scenes):
    h = hashlib.sha256()
    for s in scenes: h.update(s.image.tobytes() + s.mask.tobytes())
    return h.hexdigest()


@pytest.fixture(scope='module')
def train():
    data = P.parts()
    return data, [data.scene(i) for i in range(len(data))]


def test_the_whole_set_is_frozen(train):
    "Frozen before anything was trained on it; whoever changes a pixel raises EDITION and publishes its runs anew"
    val = P.parts('val')
    assert (P.EDITION, len(train[0]), len(val)) == (1, 400, 100)
    assert sha(train[1]) == 'f2a3e3a50d840113eb7f9528c189feaabcf0c6f46ba4d2a8b92a0d92e29c8ccb'
    assert sha(map(val.scene, range(100))) == 'cd1904350646a4ba2a14405b437ce39e9964a92ff0e159e6cb8de3bb0704897c'
    assert (train[0].fingerprint(), val.fingerprint()) == ('8734e4261f68232d', '9dd1012ed29bbfdc')


def test_tags_are_what_the_mask_shows_and_those_of_the_first_set(train):
    data, scenes = train
    assert [r.tags for r in data.records] == [r.tags for r in synthetic().records]
    for i, s in enumerate(scenes):
        assert set(np.unique(s.mask).tolist()) - {0, 255} == set(s.tags) == set(data.records[i].tags)
        assert s.image.dtype == s.mask.dtype == np.uint8 and s.image.shape == (*s.mask.shape, 3) and data.size(i) == s.mask.shape
        assert min((s.mask == t).sum() for t in s.tags) > 100


def test_a_figure_lacks_one_sign_at_most_and_half_of_them_lack_none(train):
    missing = [f.missing for s in train[1] for f in s.figures]
    share = {k: missing.count(k) / len(missing) for k in set(missing)}
    assert set(share) == {'', *figures.SIGNS} and abs(share[''] - .5) < .06 and all(abs(share[k] - p) < .05 for k, p in zip(figures.SIGNS, (.2, .15, .15)))
    for s in train[1]:
        if len(s.figures) == 1: assert set(np.unique(s.parts)) <= {0, 1, 2, 3} - {1 + figures.SIGNS.index(m) for m in [s.figures[0].missing] if m}


def test_signs_lie_inside_the_thing_and_leave_some_of_it(train):
    for s in train[1]: assert ((s.parts > 0) <= (s.mask > 0)).all() and (s.parts[s.mask > 0] == 0).mean() > .05


@pytest.mark.parametrize('what', ['image', 'coat'])
def test_colours_do_not_tell_the_class(train, what):
    "Mean colours of the classes' coats, and of what lies behind them, lie within the spread of a single class"
    _, scenes = train
    of = lambda s, k: (s.mask == k) & (s.parts == 0) if what == 'coat' else s.mask == 0
    values = {k: np.array([s.image[of(s, k)].mean(0) for s in scenes if s.tags == (k,)]) for k in range(1, 9)}
    means, spread = np.array([v.mean(0) for v in values.values()]), np.mean([v.std(0) for v in values.values()])
    assert means.std(0).max() < spread / 3


def test_grounds_know_the_number_of_the_image_and_nothing_of_its_tags(monkeypatch, train):
    seen = [P.grounds_of(0, 'train', i) for i in range(400)]
    counts = np.array([sum(s[0] == g for s in seen) for g in P.POOL])
    assert len(P.POOL) == 9 and counts.min() > 25 and abs(sum(len(s) == 2 for s in seen) / 400 - .5) < .06
    assert [s.grounds for s in train[1]] == seen
    monkeypatch.setattr(P, 'tags_of', lambda *key: (3,))
    other = P.draw_parts(0, 'train', 0)
    assert other.grounds == seen[0] != () and other.tags == (3,) != tags_of(0, 'train', 0)


def test_all_of_a_figure_wears_one_coat(train):
    "Within a thing the head, the limbs and the plain trunk differ less in hue than two things do"
    def hue(c):
        low, high = c.min(), c.max()
        return (c - low) / max(high - low, 1e-9)
    within, between, last = [], [], None
    for s in train[1]:
        if len(s.figures) != 1: continue
        plain, limbs = (s.image[(s.mask > 0) & (s.mask < 255) & (s.parts == k)] for k in (0, 3))
        if len(limbs) < 40 or 'robot' == s.figures[0].name: continue
        a, b = hue(plain.mean(0)), hue(limbs.mean(0))
        within.append(abs(a - b).sum())
        if last is not None: between.append(abs(a - last).sum())
        last = a
    assert len(within) > 80 and np.mean(within) < np.mean(between) / 3


def test_behaves_as_a_data_set():
    data = P.parts('val', n=5)
    assert data.has_masks and data.where == 'parts val' and data.classes == figures.FIGURES and data.names[4] == 'val_0004'
    sample = data['val_0003']
    assert sample.tags == data.records[3].tags and (sample.image == data.image(3)).all() and (sample.mask == data.scene(3).mask).all()
    sample.image[:] = 0
    assert data.image(3).any(), 'a caller may write into its own copy only'
    part = data.subset([4, 'val_0001'])
    assert (part.image(0) == data.image(4)).all() and (pickle.loads(pickle.dumps(part)).mask(1) == data.mask(1)).all()
    assert len({d.fingerprint() for d in (data, part, P.parts('train', 5), P.parts('val', 5, 1), synthetic('val', 5))}) == 5
    assert data.fingerprint() == P.parts('val').subset(range(5)).fingerprint()


def test_other_seeds_keep_the_promise_of_the_tags():
    for s in (P.draw_parts(seed, 'train', i) for seed in (1, 2 ** 32 - 1) for i in range(16)):
        assert set(np.unique(s.mask).tolist()) - {0, 255} == set(s.tags)


def test_drawing_is_quick():
    start = time.process_time()
    for i in range(50): P.draw_parts(0, 'train', i)
    assert time.process_time() - start < 10  # 0.5 s on a quiet core


@pytest.fixture()
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    P.parts_folder.cache_clear(), P.pixels.cache_clear()
    yield tmp_path
    P.parts_folder.cache_clear(), P.pixels.cache_clear()


def test_images_come_back_from_the_disk_as_they_were_drawn(cache):
    drawn = P.draw_parts(0, 'train', 3)
    same = lambda: P.pixels.cache_clear() or all(np.array_equal(a, b) for a, b in zip(P.pixels(0, 'train', 3), drawn[:2]))
    assert same() and same() and [p.name for p in cache.rglob('*.npz')] == ['train_0003.npz']
    file, = cache.rglob('*.npz')
    for damage in (b'', file.read_bytes()[:500], b'<html>'):
        file.write_bytes(damage)
        assert same() and same()
    P.pixels(1, 'train', 3), P.pixels(0, 'train', SPLITS['train'][1])
    assert len(list(cache.rglob('*.npz'))) == 1, 'other sets and what goes beyond the set are not kept'


def test_each_sign_is_drawn_or_missing():
    f = figures.Figure(Dice(4), 'robot', (80, 112), 'medium')
    x, y = np.random.default_rng(0).random((2, 20)) * 80
    np.testing.assert_allclose(f.to_image(*f.to_body(x, y)), (x, y), atol=1e-9)
    f.missing = ''
    whole = f.distance(x, y)
    f.missing = 'limbs'
    assert f.limbs(x, y) == [] and (f.distance(x, y) >= whole).all()
    f.missing = 'head'
    assert len(f.head(x, y)) == 1


@pytest.mark.parametrize('call, text', [
    (lambda: P.parts('trian'), "Did you mean 'train'?"),
    (lambda: P.parts(n=0), 'n: expected a number of images, at least 1, got 0'),
    (lambda: P.parts(seed=-1), 'seed: expected an integer 0..4294967295, got -1')])
def test_mistakes_are_named(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)
