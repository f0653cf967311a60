"""Views in bytes: the part of a resized image, floats made later, photographs that are kept decoded."""
import multiprocessing
import os
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data import decoded as D
from wsss_nb.data.folder import folder
from wsss_nb.data.pixels import read_image
from wsss_nb.data.resize import resize_image, resized_part, rows_first
from wsss_nb.data.scales import laid_together, resize_weights
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tagged import tagged
from wsss_nb.data.views import TrainingViews, padded, padded_at_once, training_view
from wsss_nb.engine.batches import Views, enough_workers, probed
from wsss_nb.refine.masks import WithMasks


def noise(seed, *shape): return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize('seed', range(4))
def test_a_part_of_a_resized_image_is_that_of_the_whole_to_the_bit(seed):
    r = np.random.default_rng(seed)
    assert rows_first()
    for k in range(150):
        image = noise(k, *(int(n) for n in r.integers(1, 150, 2)), 3)
        size = tuple(int(n) for n in r.integers(1, 300, 2)) if k % 2 else tuple(max(1, round(n * f)) for f in [r.uniform(.2, 3)] for n in image.shape[:2])
        (y, h), (x, w) = cut = [(a := int(r.integers(n)), int(r.integers(1, n - a + 1))) for n in size]
        for mirrored in (False, True):
            whole = resize_image(image, size)[:, ::-1] if mirrored else resize_image(image, size)
            assert np.array_equal(resized_part(image, size, *cut, mirrored), whole[y:y + h, x:x + w]), (image.shape, size, cut, mirrored)


def test_a_version_of_pil_with_another_order_gets_the_whole(monkeypatch):
    monkeypatch.setattr('wsss_nb.data.resize.rows_first', lambda: False)
    image = noise(0, 30, 40, 3)
    assert np.array_equal(resized_part(image, (50, 60), (7, 20), (9, 30)), resize_image(image, (50, 60))[7:27, 9:39])


def view_of_floats(image, rng, crop, mask=None, long_side=None, flip=True, fill=(0.485, 0.456, 0.406)):
    "The view written down plainly: the whole image, then everything in floats"
    h, w = image.shape[:2]
    factor = rng.integers(long_side[0], long_side[1] + 1) / max(h, w)
    h, w = max(1, round(h * factor)), max(1, round(w * factor))
    image, mirrored = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC)), flip and rng.random() < .5
    mask = np.asarray(Image.fromarray(mask).resize((w, h), Image.NEAREST))
    if mirrored: image, mask = image[:, ::-1], mask[:, ::-1]
    places = []
    for n in (h, w):
        start = int(rng.integers(abs(n - crop) + 1))
        places.append((start, 0) if n >= crop else (0, start))
    (y, to_y), (x, to_x) = places
    out, ids = np.empty((3, crop, crop), np.float32), np.full((crop, crop), 255, np.int64)
    out[:] = np.float32(fill)[:, None, None]
    part = image[y:y + crop, x:x + crop]
    out[:, to_y:to_y + part.shape[0], to_x:to_x + part.shape[1]] = part.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    ids[to_y:to_y + part.shape[0], to_x:to_x + part.shape[1]] = mask[y:y + crop, x:x + crop]
    return out, ids


@pytest.mark.parametrize('crop, long_side', [(40, (30, 90)), (64, (20, 60)), (33, (60, 120))])
def test_a_view_is_what_it_was_when_it_travelled_as_floats(crop, long_side):
    for seed in range(60):
        size = np.random.default_rng(seed).integers(5, 100, 2)
        image, mask, how = noise(seed, *size, 3), noise(seed + 1, *size) % 21, dict(crop=crop, long_side=long_side)
        view = training_view(image, np.random.default_rng(seed), mask=mask, **how)
        old, ids = view_of_floats(image, np.random.default_rng(seed), mask=mask, **how)
        assert np.array_equal(view['image'].numpy(), old) and np.array_equal(view['mask'].numpy(), ids)
        assert view['image'].is_contiguous() and view['mask'].dtype == torch.int64


def test_a_batch_is_finished_as_each_of_its_views():
    data, views = synthetic('train', n=6), TrainingViews(48, long_side=(30, 90), masks=True)
    lines = Views(data, views, seed=3)
    cut = [lines.cut((0, i)) for i in range(6)]
    assert cut[0]['pixels'].dtype == torch.uint8 and sum(v.numel() * v.element_size() for k, v in cut[0].items() if torch.is_tensor(v)) < 2 * 48 * 48 * 3
    batch = lines.finish(torch.utils.data.default_collate(cut))
    from wsss_nb.base.core import rng
    for i in range(6):
        alone = views(data, i, rng('view', 3, 0, i))
        assert all(torch.equal(batch[k][i], alone[k]) for k in ('image', 'valid', 'mask', 'labels')) and batch['name'][i] == data.names[i]


def test_views_resized_on_the_device_are_those_of_pil_but_for_roundings(photographs):
    data, view = tagged(photographs, [['x']] * 4), TrainingViews(120, long_side=(40, 300))
    on_core, there = (Views(data, view, 1, there=t) for t in (False, True))
    keys = [(epoch, i) for epoch in range(6) for i in range(len(data))]
    cut = [there.cut(key) for key in keys]
    assert len({c['part'].shape for c in cut}) > 1 and all('pixels' not in c for c in cut)
    mine, pil = there.finish(laid_together(cut)), on_core.finish(laid_together([on_core.cut(key) for key in keys]))
    assert torch.equal(mine['valid'], pil['valid']) and torch.equal(mine['labels'], pil['labels']) and mine['name'] == pil['name']
    off = 255 * (mine['image'] - pil['image']).abs()
    assert off.mean() < .01 and off.max() < 2.5 and (mine['image'][~mine['valid'][:, None].expand_as(mine['image'])] == pil['image'][~pil['valid'][:, None].expand_as(pil['image'])]).all()
    assert torch.equal(there[keys[3]]['image'], mine['image'][3])


def test_rows_of_the_matrices_are_weights():
    whole = torch.tensor([[0, 40, 100, 250, 100, 0, 0], [3, 20, 5, 60, 30, 0, 0], [2, 30, 4, 50, 80, 7, 1]])
    made = resize_weights(whole, 40, 100)
    inside = torch.stack([torch.arange(40).ge(a) & torch.arange(40).lt(a + n) for a, n in whole[:, :2].tolist()])
    assert torch.allclose(made.sum(-1), inside.float(), atol=1e-6) and not made[~inside].any()
    ramp = made @ torch.arange(100.)  # a straight line stays one where it is enlarged, away from the ends
    assert torch.allclose(ramp[0], (torch.arange(100, 140) + .5) * .4 - .5, atol=1e-4)
    assert (ramp[2, 4:30].diff() < 0).all() and (ramp[1, 6:20].diff() > 0).all()


def test_of_a_photograph_that_is_much_larger_than_its_view_the_core_sends_the_view():
    view, image = TrainingViews(32, long_side=(30, 40), flip=False), np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    data = tagged([image], [['x']])
    cut, plain = (view.cut(data, 0, np.random.default_rng(5), there=t) for t in (True, False))
    assert cut['part'].numel() <= 3 * 32 ** 2
    finish = lambda v: view.finish(laid_together([v]))['image']
    assert torch.equal(finish(cut), finish(plain))


def test_padding_at_once_is_padding_one_by_one():
    image, window, colour = torch.rand(4, 3, 9, 7), torch.tensor([[0, 0, 9, 7], [2, 0, 3, 7], [0, 4, 9, 1], [3, 3, 0, 2]]), torch.tensor([.1, .2, .3]).view(3, 1, 1)
    at_once, one_by_one = padded_at_once(image, window, colour), padded(image.clone(), window, colour)
    assert all(torch.equal(a, b) for a, b in zip(at_once, one_by_one)) and at_once[1].sum((1, 2)).tolist() == [63, 21, 9, 0]


class Grey(TrainingViews):
    "A view of one's own, made of ours"
    def __call__(self, data, i, rng): return {k: v * 0 if k == 'image' else v for k, v in super().__call__(data, i, rng).items()}


def test_a_view_of_ones_own_is_asked_itself():
    lines = Views(synthetic('train', n=2), Grey(32, long_side=(32, 40)), 0)
    assert not lines[0, 1]['image'].any() and lines.finish(lines[0, 1])['image'].shape == (3, 32, 32)


@pytest.fixture
def photographs(tmp_path):
    "Three photographs of 300 x 200, their decoded size 180 kB, and a small one"
    for i, size in enumerate([(200, 300)] * 3 + [(50, 60)]): Image.fromarray(noise(i, *size, 3)).save(tmp_path / f'{i}.png')
    return [tmp_path / f'{i}.png' for i in range(4)]


def test_photographs_are_kept_decoded_below_a_limit(tmp_path, photographs):
    store = D.Decoded(tmp_path / 'kept', limit=2 * 180_000 + 50)
    for p in photographs * 2: assert np.array_equal(store.read(p), read_image(p))
    assert [store.file_of(p).exists() for p in photographs] == [True, True, False, False]  # no room, and too small
    assert sum(n for _, n, _ in D.weighed(store.folder)) <= store.limit
    os.utime(store.file_of(photographs[1]), (0, 0))  # not used since 1970
    D.Decoded(store.folder, store.limit).read(photographs[2])
    assert [store.file_of(p).exists() for p in photographs] == [True, False, True, False]


def test_a_changed_photograph_is_read_again(tmp_path, photographs):
    store = D.Decoded(tmp_path / 'kept')
    before = store.read(photographs[0]).copy()
    Image.fromarray(before[::-1]).save(photographs[0])
    os.utime(photographs[0], ns=(0, time.time_ns()))
    assert np.array_equal(store.read(photographs[0]), before[::-1])
    photographs[1].unlink()
    with pytest.raises(UserError, match='no such image'): store.read(photographs[1])


def test_what_a_killed_process_left_is_no_photograph_and_goes_away(tmp_path, photographs):
    store = D.Decoded(tmp_path / 'kept')
    store.read(photographs[0])
    file = store.file_of(photographs[0])
    whole, part = file.read_bytes(), file.with_name(f'.{file.name}.part')
    for damaged in (b'', whole[:5], whole[:-1], whole + b'x'):
        file.write_bytes(damaged)
        assert D.mapped_pixels(file) is None and np.array_equal(store.read(photographs[0]), read_image(photographs[0])) and file.read_bytes() == whole
    part.write_bytes(whole[:99])
    (store.folder / '.bytes').unlink()  # unknown: everything is weighed again
    store.read(photographs[1])
    assert not part.exists() and len(D.weighed(store.folder)) == 2 and int((store.folder / '.bytes').read_text()) == 2 * len(whole)


def test_where_nothing_can_be_written_photographs_are_decoded_each_time(tmp_path, photographs):
    (tmp_path / 'file').write_text('no folder')
    assert np.array_equal(D.Decoded(tmp_path / 'file' / 'kept').read(photographs[0]), read_image(photographs[0]))
    none = D.Decoded(tmp_path / 'none', limit=0)
    assert np.array_equal(none.read(photographs[0]), read_image(photographs[0])) and not none.folder.exists()


def test_the_limit_is_a_setting(monkeypatch):
    assert D.decoded_limit() == 8_000_000_000
    monkeypatch.setenv('WSSS_DECODED_GB', '.5')
    assert D.decoded_limit() == 500_000_000
    monkeypatch.setenv('WSSS_DECODED_GB', 'many')
    with pytest.raises(UserError, match='WSSS_DECODED_GB: expected a number of GB, 0 for none, got .many.'): D.decoded_limit()


def read_all(kept, paths):
    store = D.Decoded(kept, limit=4 * 180_000)
    for _ in range(3):
        for p in paths: assert np.array_equal(store.read(p), read_image(p))


def test_several_processes_share_it(tmp_path):
    paths = [tmp_path / f'{i}.png' for i in range(8)]
    for i, p in enumerate(paths): Image.fromarray(noise(i, 200, 300, 3)).save(p)
    fork = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    started = [fork.Process(target=read_all, args=(tmp_path / 'kept', paths[k:] + paths[:k])) for k in range(4)]
    for p in started: p.start()
    for p in started: p.join()
    assert [p.exitcode for p in started] == [0] * 4
    weights = [n for _, n, _ in D.weighed(tmp_path / 'kept')]
    assert len(weights) == 3 and int((tmp_path / 'kept' / '.bytes').read_text()) == sum(weights)


def test_views_of_kept_photographs_are_the_same(tmp_path, photographs):
    data = tagged([*photographs[:2], read_image(photographs[2])], [['cat']] * 3)
    plain, kept = (Views(data, TrainingViews(90, long_side=(80, 200)), 1, f) for f in (None, tmp_path / 'kept'))
    for key in [(e, i) for e in range(3) for i in range(3)]:
        assert all(torch.equal(plain.cut(key)[k], kept.cut(key)[k]) for k in ('pixels', 'window', 'labels'))
    assert len(D.weighed(tmp_path / 'kept')) == 2  # the third is in memory


def test_pictures_drawn_in_memory_and_masks_of_others_go_through(tmp_path):
    drawn = synthetic('train', n=2)
    lines = Views(drawn, TrainingViews(32, long_side=(32, 40)), 0, tmp_path / 'kept')
    assert lines.cut((0, 0))['pixels'].shape == (32, 32, 3) and not (tmp_path / 'kept').exists()
    (tmp_path / 'images').mkdir()
    Image.fromarray(noise(0, 200, 300, 3)).save(tmp_path / 'images' / 'a.png')
    (tmp_path / 'tags.csv').write_text('image,tags\na,cat\n')
    Image.fromarray(np.ones((200, 300), np.uint8)).save(tmp_path / 'a.png')
    lines = Views(WithMasks(folder(tmp_path), tmp_path), TrainingViews(32, scale=(1., 2.), masks=True), 0, tmp_path / 'kept')
    assert set(lines[0, 0]['mask'].unique().tolist()) == {1} and len(D.weighed(tmp_path / 'kept')) == 1


def test_as_many_workers_as_the_step_needs():
    assert enough_workers(.12, .15, 500, 1) == 0  # one core
    assert enough_workers(.5, .04, 500, 16) == 15 and enough_workers(.08, .04, 500, 16) == 3
    assert enough_workers(.12, 3., 500, 2, threads=1) == 0 and enough_workers(.12, .3, 500, 2, threads=1) == 1
    assert enough_workers(.12, .3, 500, 2, threads=2) == 0 and enough_workers(.5, .1, 500, 16, threads=12) == 4  # what the step leaves
    assert enough_workers(.12, .15, 50, 16) == 0  # over before they have started


@pytest.mark.parametrize('may', [True, False])
def test_the_first_steps_choose_and_every_batch_comes_once(may, monkeypatch):
    monkeypatch.setattr('wsss_nb.engine.batches.cores', lambda: 4)
    at, asked, chosen = [0], [], []
    def loader(n):
        asked.append(n)
        for k in range(at[0], 12):
            time.sleep(.02)
            yield k
    seen = []
    for batch in probed(loader, 1000, lambda: None, 0, chosen.append, may=lambda: may):
        seen.append(batch)
        at[0] += 1
    assert seen == list(range(12)) and asked == [0, *chosen] and (chosen[0] > 0) == may


def test_a_batch_is_cut_in_threads_where_views_are_large_and_is_the_same(monkeypatch):
    import threading
    from wsss_nb.engine import batches
    views, keys, by = Views(synthetic('train', n=4), TrainingViews(90, long_side=(80, 200)), 1), [(e, i) for e in range(3) for i in range(4)], []
    cut = views.cut
    views.cut = lambda key: by.append(threading.get_ident()) or cut(key)
    def all_cut(threads, small):
        by.clear()
        monkeypatch.setattr(batches, 'SMALL_VIEW', small)
        return batches.AsTheyTravel(views, threads).__getitems__(keys), {*by}
    (alone, one), (small, still), (large, several) = all_cut(1, 0.), all_cut(3, 60.), all_cut(3, 0.)
    assert one == still == {threading.get_ident()} and len(several) > 1 and [v['name'] for v in large] == [views.data.names[i] for _, i in keys]
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for a, b, c in zip(alone, small, large) for k in ('pixels', 'window', 'labels'))


def test_views_that_cannot_travel_stay_here():
    import threading
    data = synthetic('train', n=2)
    assert Views(data, TrainingViews(32), 0).travel()
    data.lock = threading.Lock()
    assert not Views(data, TrainingViews(32), 0).travel()


def test_what_is_kept_decoded_can_be_pruned(tmp_path, photographs):
    from wsss_nb.engine.run import delete_unused, unused
    D.Decoded(tmp_path / '.decoded').read(photographs[0])
    (folder, size), = unused(tmp_path).items()
    assert folder.name == '.decoded' and size > 180_000
    delete_unused(tmp_path)
    assert not folder.exists() and not unused(tmp_path)
