"wsss_nb.data.check finds each fault it is given"
import json
from itertools import product

import matplotlib
import numpy as np
import pytest
from PIL import Image

from wsss_nb.cli import main
from wsss_nb.base.core import UserError, plain
from wsss_nb.data.catalog import open_data
from wsss_nb.data.check import check_data, check_split, save_sheet, shared_images, sheet
from wsss_nb.data.names import likely, one_letter
from wsss_nb.data.coco import COCO_CLASSES
from wsss_nb.data.sample import Data, Record
from wsss_nb.data.voc import VOC_CLASSES

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
    data.records = [r._replace(name=f'{r.name} {n}') for n in range(4) for r in data.records]
    r = check_data(data)
    faults = [p for p in r.problems if p.kind == 'mask']
    assert len(faults) == 24 and 'mask: and 4 more' in str(r) and 'problems: mask 24' in str(r) and sum(l.startswith('  mask: im') for l in str(r).splitlines()) == 20


def test_unknown_tags_are_counted(data):
    part = Data([r._replace(tags=None, mask=None) for r in data.records], CLASSES, 'toy', 'test')
    r = check_data(part)
    assert r.ok and r.by_number == {None: 6} and 'unknown: 6' in str(r) and '%' not in str(r)


def test_leaks_between_splits(data):
    a, b = check_data(data.subset([0, 1])), check_data(Data([data.records[1]._replace(name='x'), data.records[2]], CLASSES, 'toy', 'val'))
    assert [(p.name, p.text) for p in shared_images(a, b)] == [('x', 'the same picture as image im1 of toy train; take it out of toy val')] and shared_images(a) == []


def test_sheet(data, tmp_path):
    fig = sheet(data, n=3)
    shown = [image.get_array().shape for ax in fig.axes for image in ax.images]
    assert len(shown) >= 3
    assert Image.open(save_sheet(data, tmp_path/'out'/'sheet.png', n=3)).format == 'PNG'


# -- a folder of one's own

def photos(root, n=6):
    for k in range(n): Image.fromarray(np.full((40, 60, 3), 20 * k, np.uint8)).save(root/f'{k}.jpg')


def test_all_bad_lines_are_told_by_the_check_and_by_the_reader(tmp_path, capsys):
    photos(tmp_path)
    (tmp_path/'3.jpg').write_bytes(b'no picture')
    (tmp_path/'masks').mkdir()
    Image.new('L', (40, 60)).save(tmp_path/'masks/0.png')
    (tmp_path/'tags.csv').write_text('image,tags,split\n0,dog,train\n1\n2,dog;cat,train\n0,dog,train\n,dog,train\n3,cat,train\n4,,train\n8,dog,train\n9,cat,train\n')
    assert main(['data', 'check', 'folder', '--root', str(tmp_path), '--splits', 'train']) == 1
    out = capsys.readouterr().out
    assert 'problems: tags 3, missing 2, untagged 1, mask 1, image 1\n' in out
    for line in ('tags: line 3: 1 cells under 3 columns', "tags: line 5: image '0' is on line 2 and on line 5; give all its tags on one line", 'tags: line 6: the column `image` is empty',
                 'missing: 8: is listed and not in', 'missing: 9: is listed', 'untagged: 4: has no tags; add them', 'image: 3: ', 'mask: 0: '): assert f'\n  {line}' in out, line
    with pytest.raises(UserError, match=r'tags.csv: 3 faults: line 3: 1 cells .*; line 5: image .*; line 6: the column .*; the header is `image,tags,split`, expected either') as e: open_data('folder', 'train', tmp_path)
    assert '\n' not in str(e.value)


def test_unknown_classes_are_all_told(tmp_path):
    photos(tmp_path)
    (tmp_path/'tags.csv').write_text('image,tags\n0,dgo\n1,dgo;cat\n2,sofa\n3,dog\n')
    report, data = check_split('folder', 'all', str(tmp_path), classes='cat,dog')
    assert [(p.kind, p.name) for p in report.problems] == [('class', "'dgo'"), ('class', "'sofa'")] and "the tag of image '0' and 1 more is no class. Did you mean 'dog'?" in report.problems[0].text and [r.tags for r in data.records] == [(), (1,), (), (2,)]
    with pytest.raises(UserError, match=r"2 tags are no class: 'dgo' of image '0' and 1 more. Did you mean 'dog'\?; 'sofa' of image '2'. The 2 classes: cat, dog."): open_data('folder', '', tmp_path, classes='cat,dog')


def test_what_is_told_of_a_file_is_bounded(tmp_path):
    photos(tmp_path, 1)
    (tmp_path/'tags.csv').write_text('image,tags,split\n' + 'a\n' * 500)
    with pytest.raises(UserError, match='500 faults: line 2: .*line 21: 1 cells under 3 columns; and 480 more; ') as e: open_data('folder', '', tmp_path)
    assert len(str(e.value)) < 1500
    report, data = check_split('folder', 'all', str(tmp_path))
    assert data is None and len(report.problems) == 501 and report.problems[-1].kind == 'data' and 'tags: and 480 more' in str(report)
    (tmp_path/'tags.json').write_text(json.dumps({f'x{k}': k for k in range(30)}))
    with pytest.raises(UserError, match=r"30 faults: got 0 for 'x0'; .*; and 10 more; expected {"): open_data('folder', '', tmp_path, tmp_path/'tags.json')


def test_a_class_with_a_separator_of_folders_is_refused_with_its_remedy(tmp_path, capsys):
    photos(tmp_path)
    (tmp_path/'tags.csv').write_text('image,tags\n0,cat/person\n')
    assert main(['data', 'check', 'folder', '--root', str(tmp_path)]) == 2
    assert "a class is called 'cat/person'; expected a name without separators of folders and control characters; between several tags stands a semicolon." in (lambda c: c.out + c.err)(capsys.readouterr())


def test_likely_mistakes_are_warnings_and_nothing_is_merged(tmp_path, capsys):
    photos(tmp_path)
    (tmp_path/'tags.csv').write_text('image,tags\n0,Dog\n1,dog\n2,dogs;person\n3,dog person\n4,dog;person\n5,cat+person\n')
    assert main(['data', 'check', 'folder', '--root', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'problems: none\nlikely mistakes: 3; nothing was changed\n' in out and '6 images, 6 classes' in out
    for text in ("classes 'Dog' (1 image), 'dog' (2 images), 'dogs' (1 image) are told apart by capitals, spaces or plural only; if they are one, write 'dog' for all of them",
                 "class 'dog person' (1 image) is made of the classes 'dog', 'person'; if these are several tags, write dog;person", "class 'cat+person' (1 image) holds '+', which separates no tags; if these are several tags, write cat;person"): assert f'  warning: {text}\n' in out


def test_names_that_are_meant_are_left_alone():
    for classes in (VOC_CLASSES, COCO_CLASSES): assert not likely({c: 30 * (k + 1) for k, c in enumerate(classes)})
    text = lambda **count: [w.text for w in likely(count)]
    assert text(horse=30, hrose=1) == ["class 'hrose' (1 image) is one letter from 'horse' (30 images); if it is a slip, write 'horse'"] and not text(horse=30, house=29) and not text(cat=90, car=9)
    assert text(cherry=4, cherries=3)[0].startswith("classes 'cherry' (4 images), 'cherries' (3 images)") and text(fox=2, one=1) == ["class 'one' has one image; add more, or take its tag off"]


def test_one_letter_against_all_that_one_letter_makes():
    words = {'', *(''.join(w) for n in range(1, 5) for w in product('abc', repeat=n))}
    def near(a): return {a[:i] + x + a[i:] for i in range(len(a) + 1) for x in 'abc'} | {a[:i] + x + a[i + 1:] for i in range(len(a)) for x in ('', 'a', 'b', 'c')} | {a[:i] + a[i + 1] + a[i] + a[i + 2:] for i in range(len(a) - 1)}
    for a in sorted(words)[::7]: assert {b for b in words if one_letter(a, b)} == near(a) & words - {a}
