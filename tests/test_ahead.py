"""Reading, computing and writing at once: the same results in the same order, whatever goes wrong."""
import gc
import sys
import threading
import time

import numpy as np
import pytest
import torch

from wsss_nb.base.ahead import ReadAhead, ahead, telling
from wsss_nb.base.core import UserError
from wsss_nb.cams import CamNet, write_score_maps
from wsss_nb.data.maps import load_maps, save_maps
from wsss_nb.data.scales import resized_there
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.views import as_tensor, multi_scale, pair_views, resize_image
from wsss_nb.engine.evaluate import best_of_sweep, sweep_of
from wsss_nb.metrics import Confusion, threshold_sweep
from wsss_nb.nets.zoo import build


def test_results_come_in_order_and_few_items_are_under_way():
    under_way, most = set(), []
    def items():
        for i in range(30):
            under_way.add(i)
            most.append(len(under_way))
            yield i
    def f(i):
        time.sleep(.003 * (i % 3))
        return i * i
    for i, x in enumerate(ahead(f, items(), threads=3, waiting=5)):
        assert x == i * i
        under_way.discard(i)
    assert max(most) == 5


def test_an_error_is_raised_in_its_turn_and_the_others_are_finished():
    done = []
    def f(i):
        if i == 4: raise ValueError('the fourth')
        time.sleep(.01)
        done.append(i)
        return i
    seen = []
    with pytest.raises(ValueError, match='the fourth'):
        for x in ahead(f, range(20), threads=2, waiting=4): seen.append(x)
    assert seen == [0, 1, 2, 3] and {0, 1, 2, 3} <= set(done) and len(done) < 9


def test_an_interrupt_while_computing_leaves_what_was_made_written(tmp_path):
    def made():
        for i in range(5): yield i
        raise KeyboardInterrupt
    def write(i):
        time.sleep(.01)
        (tmp_path / str(i)).touch()
    with pytest.raises(KeyboardInterrupt):
        for _ in ahead(write, made()): pass
    assert len(list(tmp_path.iterdir())) == 5 and threading.active_count() < 20


def test_errors_name_the_images():
    with pytest.raises(RuntimeError, match='score maps of a, b: ZeroDivisionError'), telling('score maps', ['a', 'b']): 1 / 0
    with pytest.raises(UserError, match='^as it is$'), telling('score maps', ['a']): raise UserError('as it is')


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    data = synthetic('train').subset(range(7))
    return data, CamNet(build('tiny'), len(data.classes)).eval()


def test_score_maps_are_those_of_a_loop_to_the_bit(small, tmp_path):
    data, net = small
    write_score_maps(net, data, tmp_path, batch_size=3, scales=(1., .5))
    by_size = {}
    for s in data: by_size.setdefault(s.image.shape, []).append(s)
    for same in by_size.values():
        for part in (same[i:i + 3] for i in range(0, len(same), 3)):
            labels = torch.stack([data.labels[data.index(s.name)] for s in part])
            for s, m in zip(part, net.score_maps([s.image for s in part], labels, scales=(1., .5))):
                there = load_maps(tmp_path / f'{s.name}.npz')
                assert (there.keys == m.keys).all() and (there.maps == m.maps.astype(np.float16)).all()


def test_a_map_that_cannot_be_made_or_written_names_its_image(small, tmp_path, monkeypatch):
    data, net = small
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file'): write_score_maps(net, data, tmp_path / 'file', scales=(1.,))
    def broken(*args, **kwargs): raise IndexError('no such channel')
    monkeypatch.setattr(net, 'score_maps', broken, raising=False)
    with pytest.raises(RuntimeError, match=f'score maps of .*{data.names[0]}.*: IndexError: no such channel'):
        write_score_maps(net, data, tmp_path / 'maps')
    assert not list(tmp_path.rglob('*.npz')) + list(tmp_path.rglob('*.part'))


def test_an_image_that_cannot_be_read_stops_after_those_before_it(small, tmp_path):
    data, net = small
    class Torn(type(data)):
        def image(self, i):
            if self.index(i) == 5: raise UserError('photo 5: damaged')
            return super().image(i)
    torn = data.subset(range(7))
    torn.__class__ = Torn
    with pytest.raises(UserError, match='photo 5: damaged'): write_score_maps(net, torn, tmp_path, batch_size=1, scales=(1.,))
    assert {p.stem for p in tmp_path.glob('*.npz')} == set(data.names[:5])


def test_files_are_read_by_numpy_and_are_no_larger(tmp_path):
    maps = np.random.default_rng(0).random((2, 60, 80)).astype(np.float32)
    save_maps(tmp_path / 'a.npz', [1, 5], maps)
    np.savez_compressed(tmp_path / 'b.npz', keys=np.array([1, 5]), maps=maps.astype(np.float16))
    with np.load(tmp_path / 'a.npz') as a, np.load(tmp_path / 'b.npz') as b:
        assert set(a) == set(b) and all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in b)
    assert (tmp_path / 'a.npz').stat().st_size < 1.02 * (tmp_path / 'b.npz').stat().st_size


def test_images_resized_on_the_device_are_those_of_pil_within_a_step(small, monkeypatch):
    data, net = small
    images = [data[0].image, data[0].image[:, ::-1]]
    for s in (.5, 1., 1.3, 2.):
        size = tuple(round(n * s) for n in images[0].shape[:2])
        pil = torch.stack([as_tensor(resize_image(i, size)) for i in images])
        there = resized_there(images, size, 'cpu')
        assert there.shape == pil.shape and there.dtype == torch.float32
        steps = 255 * (there - pil).abs()  # PIL rounds to 8 bits between its two passes
        assert steps.mean() < .5 and (steps > 1.5).float().mean() < .01
    import wsss_nb.data.views as V
    before = multi_scale(net.raw_maps, images, device='cpu')
    monkeypatch.setattr(V, 'pair_views', lambda i, s, device, flip: (lambda x: torch.cat([x, x.flip(-1)]) if flip else x)(
        resized_there(i, [max(1, round(n * s)) for n in i[0].shape[:2]], 'cpu')))
    with torch.no_grad(): after = V.multi_scale(net.raw_maps, images)
    assert (after - before).abs().max() < .02 * before.abs().max()


def test_on_a_cpu_pil_resizes(small):
    image = small[0][0].image
    assert torch.equal(pair_views([image], .5)[0], as_tensor(resize_image(image, [round(n * .5) for n in image.shape[:2]])))


def test_a_sweep_counted_by_threads_is_that_of_one_image_after_the_other():
    r = np.random.default_rng(0)
    pairs = [((1, 2)[:k], r.random((k, 9, 7)), r.integers(0, 3, (9, 7)) if i % 2 else np.full((9, 7), 255)) for i, k in enumerate([2, 1, 0, 2, 2, 1])]
    whole, t = threshold_sweep(iter(pairs), [.3, .6], 3), np.array([.3, .6])
    for n, at in enumerate(t):
        matrix = np.zeros((3, 3), int)
        for keys, maps, target in pairs:
            full = np.concatenate([np.full((1, 9, 7), at), maps])
            pred = np.array([0, *keys])[full.argmax(0)]
            for a, b in zip(target.ravel(), pred.ravel()):
                if a != 255: matrix[a, b] += 1
        assert (whole.matrices[n] == matrix).all()


def test_the_best_threshold_is_the_best_of_the_classes_that_are_measured(tmp_path):
    "Two classes whose maps want different thresholds; the sweep of each choice of classes against masks counted one by one"
    data, draw, grid = synthetic('val', n=12), np.random.default_rng(3), np.arange(.1, .95, .1)
    for i, s in enumerate(data):
        made = np.stack([(s.mask == t) * (.9 if t % 2 else .35) + .6 * (t % 2) * draw.random(s.mask.shape) * (s.mask != t) for t in s.tags])
        save_maps(tmp_path / f'{s.name}.npz', np.array(s.tags), made.astype(np.float32))
    found = {}
    for measure in ([], data.classes[::2], data.classes[1::2]):
        ids = [0, *(data.classes.index(m) + 1 for m in measure)] if measure else None
        sweep, slow = sweep_of(data, tmp_path, grid, measure=measure), []
        for t in grid:
            counts = Confusion(9)
            for s in data:
                m = load_maps(tmp_path / f'{s.name}.npz')
                counts.update(np.where(m.maps.max(0) > t, m.keys[m.maps.argmax(0)], 0), s.mask)
            slow.append(counts.miou(ids))
        assert np.allclose(sweep.miou, slow) and best_of_sweep(sweep).miou(ids) == pytest.approx(max(slow))
        found[tuple(measure)] = sweep.best.threshold
    assert len({*found.values()}) > 1, found


def test_threads_read_at_once_whatever_is_collected_meanwhile(tmp_path):
    "CPython 3.11 and 3.12 before February 2024 count the depth of what they parse for all threads together"
    save_maps(tmp_path / 'a.npz', [1, 5], np.ones((2, 6, 8), np.float32))
    naps = []
    def nap(phase, info):
        "Let another thread go on in the middle of parsing"
        if sys._getframe(1).f_code.co_name != 'parse': return
        naps.append(phase)
        time.sleep(.001)
    thresholds = gc.get_threshold()
    gc.callbacks.append(nap)
    gc.set_threshold(1, 1000, 1000)
    try: found = list(ahead(load_maps, [tmp_path / 'a.npz'] * 20, threads=8, waiting=16))
    finally:
        gc.callbacks.remove(nap)
        gc.set_threshold(*thresholds)
    assert (naps or sys.version_info >= (3, 12)) and len(found) == 20  # from 3.12 on nothing is collected in there
    assert all((m.maps == 1).all() and m.keys.tolist() == [1, 5] for m in found)
