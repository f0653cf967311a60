"Self-enhanced SVM: golden values, scikit-learn's labels in every cycle, and every case that is out of the ordinary"
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from wsss_nb.cams import CamNet
from wsss_nb.base.core import UserError
from wsss_nb.data.sample import ScoreMaps, load_maps, save_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.nets.zoo import BACKBONES, build
from wsss_nb.papers import svm as S
from wsss_nb.refine import svm as R

GOLDENS = {n: dict(np.load(Path(__file__).parent / f'goldens/{n}.npz')) for n in ('svm_1cls', 'svm_few_pixels')}


def rows(z): return np.asarray(z, np.float64).reshape(len(z), -1).T


@pytest.fixture(params=GOLDENS)
def g(request): return GOLDENS[request.param]


def test_golden_seed_and_probabilities(g):
    seed = S.initial_seed(g['A'], g['present'], float(g['t_fg']), float(g['t_bg']))
    assert np.array_equal(seed, g['M']) and seed.dtype.kind == 'i'
    for c in [0, *g['present']]:
        p = S.sampling_probability(g['A'], seed, c, float(g['t_fg']))
        assert p.dtype == np.float64 and abs(p - g[f'p_{c}']).max() < 1e-9 and abs(p.sum() - 1) < 1e-9
    absent = next(c for c in range(1, 21) if c not in g['present'])
    assert not S.sampling_probability(g['A'], seed, absent).any()


def test_golden_sample(g):
    parts = [S.draw(g[f'p_{c}'], int(g['n_per_class']), g['u']) for c in [0, *g['present']]]
    assert np.array_equal(np.concatenate(parts), g['J']) and all((np.diff(p) > 0).all() for p in parts)


@pytest.mark.parametrize('kind', ['z', 'raw'])
def test_golden_cosine(g, kind):
    f = S.zscore(g['S']) if kind == 'z' else g['S']
    prototype, w = S.background_cosine(f, g['M'], g['J'])
    assert abs(prototype - g[f'proto_{kind}']).max() < 1e-9 and abs(w - g[f'w_{kind}']).max() < 1e-9


def test_golden_zscore_and_exclusion(g):
    z = S.zscore(g['S'])
    assert abs(z[:len(g['Z'])] - g['Z']).max() < 1e-9
    K, notes = S.without_background(z, g['M'], g['J'], float(g['t_s']))
    assert np.array_equal(K, g['K_z']) and notes == []


def test_raw_features_would_lose_all_foreground(g):
    assert (g['w_raw'] > g['t_s']).all() and (g['M'].ravel()[g['K_raw']] == 0).all()
    K, notes = S.without_background(g['S'], g['M'], g['J'])
    assert np.array_equal(K, g['J']) and notes == [f'class {c}: all its pixels resemble the background, none is excluded' for c in g['present']]


def test_golden_svm(g):
    x_all = rows(S.zscore(g['S']))
    x, y = x_all[g['K_z']], g['M'].ravel()[g['K_z']]
    _, history, _ = R.train_cycles(x, y, 5, gamma=R.kernel_gamma(x))
    for t, want in enumerate(g['svc_y_history']): assert np.array_equal(history[min(t, len(history) - 1)], want)
    assert np.mean(S.self_enhanced_svm(x, y, x_all) == g['svc_pred'].ravel()) >= .995


def blobs(k=3, n=150, d=6, spread=1.5, wrong=.15, seed=0):
    "Training samples with some wrong labels, and more to be labelled"
    r = np.random.default_rng(seed)
    centres, y = r.normal(0, 1.2, (k, d)), r.integers(0, k, n)
    x = centres[y] + r.normal(0, spread, (n, d))
    return x, np.where(r.random(n) < wrong, r.integers(0, k, n), y) * 3, np.r_[x, r.normal(0, 2, (400, d))]


@pytest.mark.parametrize('kernel', ['rbf', 'linear'])
@pytest.mark.parametrize('k,seed', [(2, 0), (3, 1), (5, 2)])
def test_labels_are_those_of_scikit_learn_in_every_cycle(k, seed, kernel):
    x, y, x_all = blobs(k, seed=seed)
    given = y
    for cycles in range(6):
        svc = SVC(kernel=kernel).fit(x, given)
        assert np.array_equal(S.self_enhanced_svm(x, y, x_all, cycles, kernel=kernel), svc.predict(x_all))
        given = svc.predict(x)


@pytest.mark.parametrize('C,gamma', [(.3, .05), (4., 'scale'), (1, 1)])
def test_price_and_gamma(C, gamma):
    x, y, x_all = blobs(4)
    want = SVC(C=C, gamma=gamma).fit(x, SVC(C=C, gamma=gamma).fit(x, y).predict(x)).predict(x_all)
    assert np.array_equal(S.self_enhanced_svm(x, y, x_all, 1, C, gamma), want)


@pytest.mark.parametrize('k', [2, 3, 5])
def test_decisions_are_those_of_scikit_learn(k):
    x, y, x_all = blobs(k, seed=4)
    gamma = R.kernel_gamma(x)
    svm, svc = R.fit_pairs(R.kernel_matrix(x, x, gamma), y), SVC(decision_function_shape='ovo').fit(x, y)
    want = svc.decision_function(x_all).reshape(len(x_all), -1)
    np.testing.assert_allclose(R.decide(svm, x, x_all, gamma, rows=37) * (-1 if k == 2 else 1), want, atol=1e-6)
    assert R.decide(svm, x, x_all[:0], gamma).shape == (0, k * (k - 1) // 2)


def test_kernel_by_its_definition():
    a, b = np.random.default_rng(0).normal(size=(2, 7, 5))
    want = [[np.exp(-.3 * sum((p - q)**2)) for q in b] for p in a]
    np.testing.assert_allclose(R.kernel_matrix(a, b, .3), want, atol=1e-12)
    assert R.kernel_matrix(a, a, .3).max() <= 1 and np.array_equal(R.kernel_matrix(a, b), a @ b.T)


def test_stopping_early_loses_nothing(monkeypatch):
    x, y, x_all = blobs(2, spread=.6, seed=3)
    fits, real = [], R.fit_pairs
    monkeypatch.setattr(R, 'fit_pairs', lambda *a: fits.append(1) or real(*a))
    got = S.self_enhanced_svm(x, y, x_all, 20)
    assert 1 < len(fits) < 8
    for _ in range(20): y = SVC().fit(x, y).predict(x)
    assert np.array_equal(got, SVC().fit(x, y).predict(x_all))


def test_arguments_stay_as_they_were_and_float32_is_fine():
    x, y, x_all = blobs(3)
    before = [a.copy() for a in (x, y, x_all)]
    want = S.self_enhanced_svm(x, y, x_all)
    assert want.dtype.kind == 'i' and want.shape == (len(x_all),) and all(np.array_equal(a, b) for a, b in zip((x, y, x_all), before))
    assert np.mean(S.self_enhanced_svm(np.float32(x), y, np.float32(x_all)) == want) > .99


def test_one_class_gives_a_constant():
    x = np.random.default_rng(0).normal(size=(9, 3))
    assert S.self_enhanced_svm(x, np.full(9, 7), np.zeros((5, 3))).tolist() == [7] * 5


def test_relabelling_to_one_class_keeps_the_last_svm():
    x = np.r_[np.zeros((40, 2)), [[.1, 0]]] + np.random.default_rng(0).normal(0, .3, (41, 2))
    y, x_all = np.r_[np.zeros(40, int), 5], np.r_[x, [[9., 9]]]
    once = SVC().fit(x, y)
    assert set(once.predict(x)) == {0}
    assert np.array_equal(S.self_enhanced_svm(x, y, x_all, 5), once.predict(x_all))
    svm, history, notes = R.train_cycles(x, y, 5, gamma=R.kernel_gamma(x))
    assert len(history) == 1 and list(svm.classes) == [0, 5] and notes == ['relabelling left class 0 alone: the SVM before it is kept']


def test_seed_rules():
    cam = np.array([[[.05, .2, .21, .01]], [[.01, .2, .21, .02]], [[1, 1, 1, 1.]]])
    for dtype in (np.float32, np.float64): assert S.initial_seed(cam.astype(dtype), [2, 1]).tolist() == [[-1, -1, 1, 0]]
    assert S.initial_seed(cam, []).tolist() == [[0] * 4] and S.initial_seed(cam, np.array([3])).tolist() == [[3] * 4]


def test_draw():
    u = np.random.default_rng(0).random(50)
    p = np.where(np.arange(50) % 2, .04, 0)
    assert S.draw(p, 99, u).tolist() == list(range(1, 50, 2)) and len(S.draw(p, 7, u)) == 7 and len(S.draw(0 * p, 7, u)) == 0
    slow = sorted(range(1, 50, 2), key=lambda i: -np.log(u[i]) / p[i])[:7]
    assert S.draw(p, 7, u).tolist() == sorted(slow)
    assert S.draw(np.array([.5, .5]), 1, np.array([0., .5])).tolist() == [1]


def test_zscore_of_constant_channels():
    f = np.random.default_rng(0).random((4, 5, 7)).astype(np.float32)
    f[1], f[2] = .1, 0
    z = S.zscore(f)
    assert z.dtype == np.float64 and z.shape == f.shape and not z[1:3].any()
    np.testing.assert_allclose([z[[0, 3]].mean((1, 2)), z[[0, 3]].std((1, 2))], [[0, 0], [1, 1]], atol=1e-9)
    assert not S.zscore(np.full((2, 3, 3), .1)).any()  # whose mean is not exactly .1


def test_background_cosine_without_background_and_with_zero_vectors():
    f, seed = np.random.default_rng(0).normal(size=(3, 2, 4)), np.array([[1, 1, 0, 0], [2, -1, 0, 0]])
    prototype, w = S.background_cosine(f, seed, np.array([0, 1, 4]))
    assert prototype is None and len(w) == 3
    K, notes = S.without_background(f, seed, np.array([0, 1, 4]), t_s=-1)
    assert K.tolist() == [0, 1, 4] and notes == ['no background pixel: no foreground is excluded']
    f[:, 0, 0] = 0
    prototype, w = S.background_cosine(f, seed, np.array([7, 0, 2, 4]))
    np.testing.assert_allclose(prototype, (f[:, 1, 3] + f[:, 0, 2]) / 2)
    a, b = prototype, f[:, 1, 0]
    np.testing.assert_allclose(w, [0, a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)])
    assert S.background_cosine(f * 0, seed, np.array([0, 2]))[1].tolist() == [0]


def test_scores_agree_with_the_vote():
    r = np.random.default_rng(0)
    for k in (2, 3, 5):
        d = r.normal(size=(500, k * (k - 1) // 2))
        scores, label = R.narrowest_margins(d, k), R.vote(d, np.arange(k))
        assert np.array_equal(scores.argmax(0), label) and np.isfinite(scores).all()
        slow = [max(range(k), key=lambda c: (sum((row[p] > 0) == (c == i) for p, (i, j) in enumerate(R.pairs(k)) if c in (i, j)), -c)) for row in d]
        assert label.tolist() == slow


def test_maps_keep_their_labels_in_half_precision(tmp_path):
    scores = np.random.default_rng(0).normal(0, 1e-3, (3, 9, 13))
    maps = S.as_score_maps(scores, np.array([2, 5, 9]), (33, 50))
    big = torch.nn.functional.interpolate(torch.tensor(scores)[None], (33, 50), mode='bilinear')[0].numpy()
    save_maps(tmp_path / 'a.npz', *maps)
    for m in (maps, load_maps(tmp_path / 'a.npz')):
        assert m.keys.tolist() == [0, 2, 5, 9] and not m.maps[0].any() and m.maps.max() <= 1
        assert np.array_equal(m.maps[1:].argmax(0), big.argmax(0)) and np.array_equal(m.maps.argmax(0), big.argmax(0) + 1)


def scene(h=20, w=26, seed=0):
    "Features [6,h,w] and maps of the classes 3 and 7 at twice the size"
    r, (y, x) = np.random.default_rng(seed), np.mgrid[:2 * h, :2 * w]
    maps = np.stack([np.exp(-((y - h)**2 + (x - cx * w)**2) / 90) for cx in (.6, 1.4)]).astype(np.float32)
    truth = maps[:, ::2, ::2].max(0) > .3
    return (r.normal(0, 1, (6, h, w)) + 2 * truth * np.r_[1, -1, 1, 0, 0, 1][:, None, None]).astype(np.float32), ScoreMaps(np.array([3, 7]), maps), r.random(h * w)


def test_one_image_step_by_step():
    f, maps, u = scene()
    got, detail = S.svm_maps(f, maps, (41, 53), u, per_class=60, cycles=2)
    cam = np.zeros((7, 20, 26))
    cam[[2, 6]] = (maps.maps[:, ::2, ::2] + maps.maps[:, 1::2, ::2] + maps.maps[:, ::2, 1::2] + maps.maps[:, 1::2, 1::2]) / 4  # bilinear at half the size
    seed = S.initial_seed(cam, [3, 7])
    assert np.mean(seed != detail.seed) < .01 and detail.notes == []
    J = np.concatenate([S.draw(S.sampling_probability(cam, seed, c), 60, u) for c in (0, 3, 7)])
    assert len(J) == len(detail.sampled) and np.mean(np.isin(J, detail.sampled)) > .98
    x_all = rows(S.zscore(f))
    label = S.self_enhanced_svm(x_all[detail.kept], detail.seed.ravel()[detail.kept], x_all, cycles=2).reshape(20, 26)
    assert got.keys.tolist() == [0, 3, 7] and got.maps.shape == (3, 41, 53) and got.maps.dtype == np.float32
    same, _ = S.svm_maps(f, maps, (20, 26), u, per_class=60, cycles=2)
    assert np.array_equal(same.keys[same.maps.argmax(0)], label)


def test_order_of_keys_and_half_precision_change_nothing():
    f, maps, u = scene()
    ground = .5 * maps.maps.max(0, keepdims=True)[:, ::-1]
    for first, second in (([3, 7], [7, 3]), ([0, 3, 7], [7, 0, 3])):
        by = {0: ground[0], 3: maps.maps[0], 7: maps.maps[1]}
        want, got = (S.svm_maps(f, ScoreMaps(np.array(k), np.stack([by[c] for c in k])), (40, 52), u)[0] for k in (first, second))
        assert np.array_equal(got.keys, want.keys) and np.array_equal(got.maps, want.maps)
    assert S.svm_maps(f, ScoreMaps(maps.keys, maps.maps.astype(np.float16)), (40, 52), u)[0].maps.shape == (3, 40, 52)


def test_a_background_map_decides_where_classes_are_seeded_and_no_threshold_does():
    f, maps, u = scene()
    ground = (.2 + .6 * maps.maps.max(0, keepdims=True)[:, ::-1]).astype(np.float32)
    own = ScoreMaps(np.array([0, 3, 7]), np.concatenate([ground, maps.maps]))
    seeds = [S.svm_maps(f, own, (40, 52), u, t_fg=t, t_bg=t / 2)[1].seed for t in (.2, .8)]
    want = np.array([0, 3, 7])[S.resize_maps(np.float32(own.maps), f.shape[1:]).argmax(0)]
    assert np.array_equal(*seeds) and set(np.unique(want)) == {0, 3, 7}
    assert (seeds[0] == want).mean() > .999  # an exact tie is left open


def case(edit):
    f, maps, u = scene()
    keys, m = edit(maps.keys, maps.maps.copy())
    got, detail = S.svm_maps(f, ScoreMaps(np.array(keys, int), m), (40, 52), u)
    return got.keys.tolist(), set(np.unique(got.keys[got.maps.argmax(0)])), detail.notes


def test_cases_out_of_the_ordinary():
    def dropped(k, m): m[1] = 0; return k, m
    def nothing(k, m): return k, m * 0
    def unsure(k, m): return k, m * 0 + .1
    def no_ground(k, m): return k, m.clip(.1)
    def only_one(k, m): return k[:1], m[:1] * 0 + .9
    assert case(dropped) == ([0, 3], {0, 3}, ['class 7: no seeds, left out'])
    assert case(nothing) == ([0], {0}, ['class 3: no seeds, left out', 'class 7: no seeds, left out', 'class 0 is alone: constant map'])
    assert case(unsure) == ([0], {0}, ['class 3: no seeds, left out', 'class 7: no seeds, left out', 'no seeds at all: background everywhere'])
    keys, found, notes = case(no_ground)
    assert keys == [0, 3, 7] and found == {3, 7} and notes == ['no background pixel: no foreground is excluded']
    assert case(only_one) == ([0, 3], {3}, ['no background pixel: no foreground is excluded', 'class 3 is alone: constant map'])
    assert case(lambda k, m: ([], m[:0])) == ([0], {0}, ['class 0 is alone: constant map'])
    assert case(lambda k, m: ([0], m[:1]))[0] == [0]


def test_a_class_lost_by_relabelling_is_left_out():
    f, maps, u = scene()
    f[:] = np.random.default_rng(1).normal(size=f.shape)  # features that say nothing: the smallest class cannot hold out
    f[0] += 5 * (maps.maps[0, ::2, ::2] > .3)
    m = maps.maps.copy()
    m[1] = np.where(m[1] > .93, m[1], 0)
    got, detail = S.svm_maps(f, ScoreMaps(maps.keys, m), (40, 52), u)
    assert detail.notes == ['class 7: lost by relabelling'] and got.keys.tolist() == [0, 3]


@pytest.mark.parametrize('call,text', [
    (lambda: S.initial_seed(np.zeros((3, 2, 2)), [0, 2]), 'present: expected class ids 1..3, got [0, 2].'),
    (lambda: S.initial_seed(np.full((3, 2, 2), np.nan), [1]), 'cam: some values are NaN'),
    (lambda: S.zscore(np.full((3, 2, 2), np.inf)), 'features: some values are NaN or infinite'),
    (lambda: S.self_enhanced_svm(np.zeros((4, 2)), np.zeros(3, int), np.zeros((5, 2))), 'expected x [n,D], y [n] and x_all [N,D] with n > 0, got [4, 2], [3] and [5, 2].'),
    (lambda: S.self_enhanced_svm(np.zeros((0, 2)), np.zeros(0, int), np.zeros((5, 2))), 'with n > 0'),
    (lambda: S.self_enhanced_svm(np.full((4, 2), np.nan), np.arange(4), np.zeros((5, 2))), 'svm: some features are NaN'),
    (lambda: S.check_sampling(kernel='rbff'), "kernel: unknown name 'rbff'. Did you mean 'rbf'?"),
    (lambda: S.check_sampling(gamma='auto'), "gamma: expected 'scale' or a positive number, got 'auto'."),
    (lambda: S.check_sampling(t_fg=.05, t_bg=.2), 'expected 0 <= t_bg <= t_fg < 1, got 0.2 and 0.05.'),
    (lambda: S.check_sampling(t_s=2), 't_s: expected a cosine'),
    (lambda: S.check_sampling(per_class=0), 'per_class: expected at least 1'),
    (lambda: S.check_sampling(cycles=-1), 'cycles: expected 0 or more, got -1.'),
    (lambda: S.check_sampling(gamma=-1.), "gamma: expected 'scale' or a positive number, got -1.0."),
    (lambda: S.check_sampling(C=0), 'C: expected a positive number, got 0.')])
def test_errors(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)


@pytest.mark.parametrize('name,layer', [('tiny', 'layer1'), ('vgg16', 'conv3'), ('mobilenet_v2', 'layer1'), ('resnet38', 'conv3')])
def test_shallow_layer(name, layer):
    with torch.device('meta'): assert S.shallow_layer(BACKBONES[name]()) == layer


@pytest.fixture(scope='module')
def toy():
    torch.manual_seed(0)
    data = synthetic('train', n=5)
    return CamNet(build('tiny'), len(data.classes)).eval(), data


def test_shallow_features_are_those_of_the_whole_network(toy):
    net, data = toy
    image = data.image(0)
    with torch.no_grad(): maps = net.backbone(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    for name, m in zip(net.backbone.names, maps): np.testing.assert_allclose(S.shallow_features(net.backbone, image, name), m[0], atol=1e-5)
    assert S.shallow_features(net.backbone, image, 'layer1', max_side=48).shape[1:] == tuple(-(-n * 48 // max(image.shape) // 2) for n in image.shape[:2])
    with pytest.raises(UserError, match="layer of tiny: unknown name 'layer9'"): S.shallow_layer(net.backbone, 'layer9')


def fill(data, folder):
    "Maps with a hill in the middle for each class of the image"
    for i, name in enumerate(data.names):
        (h, w), tags = data.image(i).shape[:2], data.records[i].tags
        y, x = np.mgrid[:h, :w]
        save_maps(folder / f'{name}.npz', tags, np.stack([np.exp(-((y - h / 2)**2 + (x - w * (k + 1) / (len(tags) + 1))**2) / 300) for k in range(len(tags))]))


def test_write_svm_resumes_and_does_not_depend_on_the_number_of_processes(toy, tmp_path):
    net, data = toy
    fill(data, tmp_path / 'maps')
    save_maps(tmp_path / f'maps/{data.names[2]}.npz', [], np.zeros((0, *data.image(2).shape[:2])))
    settings = dict(per_class=150, cycles=2, layer='layer2', seed=3)
    notes = S.write_svm(net, data, tmp_path / 'maps', tmp_path / 'one', workers=1, **settings)
    assert notes == {data.names[2]: ['class 0 is alone: constant map']}
    assert (tmp_path / 'one/notes.txt').read_text() == f'{data.names[2]}: class 0 is alone: constant map\n'
    assert S.write_svm(net, data, tmp_path / 'maps', tmp_path / 'two', workers=2, **settings) == notes
    one, two = ([load_maps(tmp_path / d / f'{n}.npz') for n in data.names] for d in ('one', 'two'))
    for a, b, i in zip(one, two, range(5)):
        assert np.array_equal(a.keys, b.keys) and np.array_equal(a.maps, b.maps) and a.maps.shape[1:] == data.image(i).shape[:2]
        assert a.keys.tolist() == ([0] if i == 2 else [0, *data.records[i].tags])
    kept = (tmp_path / f'one/{data.names[0]}.npz').stat().st_mtime_ns
    (tmp_path / f'one/{data.names[4]}.npz').unlink()
    assert S.write_svm(net, data, tmp_path / 'maps', tmp_path / 'one', workers=1, **settings) == {}
    assert (tmp_path / f'one/{data.names[0]}.npz').stat().st_mtime_ns == kept
    again = load_maps(tmp_path / f'one/{data.names[4]}.npz')
    assert np.array_equal(again.maps, one[4].maps)
    S.write_svm(net, data.subset([4]), tmp_path / 'maps', tmp_path / 'other', workers=1, **dict(settings, seed=4))
    assert not np.array_equal(load_maps(tmp_path / f'other/{data.names[4]}.npz').maps, one[4].maps)


def test_write_svm_errors(toy, tmp_path):
    net, data = toy
    with pytest.raises(UserError, match='no such score maps; run the stage'): S.write_svm(net, data, tmp_path, tmp_path / 'out', workers=1)
    save_maps(tmp_path / f'{data.names[0]}.npz', [1], np.zeros((1, 7, 9)))
    with pytest.raises(UserError, match=r'maps: expected the size of image train_0000, .*, got \(7, 9\); were they made from other images'):
        S.write_svm(net, data, tmp_path, tmp_path / 'out', workers=1)
    with pytest.raises(UserError, match='per_class: expected at least 1 sample, got 0'): S.write_svm(net, data, tmp_path, tmp_path / 'out', per_class=0)
    with pytest.raises(UserError, match='Did you mean'): S.write_svm(net, data, tmp_path, tmp_path / 'out', layer='layer')
