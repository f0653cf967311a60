"wsss_nb.data.check finds each fault it is given"
import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

from wsss_nb.core import plain
from wsss_nb.data.check import check_data, leaks, save_sheet, sheet
from wsss_nb.data.sample import Data, Record

matplotlib.use('Agg')
CLASSES = ['cat', 'dog', 'cow']


@pytest.fixture
def data(tmp_path):
    g, records = np.random.default_rng(0), []
    for k in range(6):
        Image.fromarray(g.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path/f'{k}.png')
        ids = np.zeros((40, 60), np.uint8)
        ids[:10], ids[-4:] = 1 + k % 2, 255
        Image.fromarray(ids).save(tmp_path/f'm{k}.png')
        records.append(Record(f'im{k}', tmp_path/f'{k}.png', (1 + k % 2,), tmp_path/f'm{k}.png'))
    return Data(records, CLASSES, 'toy', 'train')


def test_a_clean_set(data):
    r = check_data(data.subset(range(5)))
    assert r.ok and r.images == 5 and r.by_class == dict(cat=3, dog=2, cow=0) and r.by_number == {1: 5} and r.sizes == [[40, 60]] * 3
    assert r.pixels == {0: 5 * 26 * 60, 1: 3 * 600, 2: 2 * 600, 255: 5 * 240}
    assert 'problems: none' in str(r) and 'note: no image has the tag cow' in str(r) and max(map(len, str(r).splitlines())) < 200
    assert json.loads(json.dumps(plain(r.as_dict())))['by_class'] == dict(cat=3, dog=2, cow=0)


def break_file(data, k): data.records[k].image.write_bytes(data.records[k].image.read_bytes()[:200])
def wrong_id(data, k): Image.new('L', (60, 40), 37).save(data.records[k].mask)
def wrong_size(data, k): Image.new('L', (40, 60)).save(data.records[k].mask)
def colour(data, k): Image.new('RGB', (60, 40)).save(data.records[k].mask)
def black(data, k): Image.new('L', (60, 40)).save(data.records[k].mask); data.records[k] = data.records[k]._replace(tags=())
def other_tag(data, k): data.records[k] = data.records[k]._replace(tags=(3,))
def copied(data, k): data.records[k] = data.records[k]._replace(image=data.records[4].image)
def lost(data, k): data.records[k].mask.unlink()
def tiny(data, k): Image.new('RGB', (9, 9)).save(data.records[k].image); Image.new('L', (9, 9), data.records[k].tags[0]).save(data.records[k].mask)
def long(data, k): Image.new('RGB', (9000, 40)).save(data.records[k].image); Image.new('L', (9000, 40), data.records[k].tags[0]).save(data.records[k].mask)


@pytest.mark.parametrize('fault, kind, text', [
    (break_file, 'image', '5.png: damaged or not a picture'), (wrong_id, 'mask', 'got 37 in m5.png'), (wrong_size, 'mask', 'm5.png is 40x60'), (colour, 'mask', 'got mode RGB'),
    (black, 'mask', 'm5.png shows no class at all'), (other_tag, 'tags', 'the mask shows dog, not in the tags; the tags say cow, not in the mask; correct'),
    (copied, 'twice', 'the same picture as image im4'), (lost, 'mask', 'm5.png: no such mask'), (tiny, 'size', '9x9 pixels: tiny'), (long, 'size', '9000x40 pixels: huge'),
])
def test_each_fault_is_found_and_named(data, fault, kind, text):
    fault(data, 5)
    r = check_data(data)
    assert [(p.kind, p.name) for p in r.problems] == [(kind, 'im5')] and text in r.problems[0].text and text in str(r) and not r.ok
    assert r.as_dict()['problems'][0]['name'] == 'im5'


def test_many_faults_of_a_kind_are_cut_in_the_text_only(data):
    for k in range(6): wrong_id(data, k)
    r = check_data(data)
    assert len(r.problems) == 6 and 'mask: and 1 more' in str(r) and 'problems: mask 6' in str(r)


def test_unknown_tags_are_counted(data):
    part = Data([r._replace(tags=None, mask=None) for r in data.records], CLASSES, 'toy', 'test')
    r = check_data(part)
    assert r.ok and r.by_number == {None: 6} and 'unknown: 6' in str(r) and '%' not in str(r)


def test_leaks_between_splits(data):
    a, b = check_data(data.subset([0, 1])), check_data(Data([data.records[1]._replace(name='x'), data.records[2]], CLASSES, 'toy', 'val'))
    assert [(p.name, p.text) for p in leaks(a, b)] == [('x', 'the same picture as image im1 of toy train; take it out of toy val')] and leaks(a) == []


def test_sheet(data, tmp_path):
    fig = sheet(data, n=3)
    shown = [ax.images[0].get_array().shape for ax in fig.axes if ax.images]
    assert len(shown) >= 3
    assert Image.open(save_sheet(data, tmp_path/'out'/'sheet.png', n=3)).format == 'PNG'
