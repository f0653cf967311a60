"wsss_nb.data.folder: layouts a practitioner may have, and what is said about the wrong ones"
import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data.folder import folder


def images(root, *names):
    for n in names:
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30), 'teal').save(root/n)


def table(root, text):
    (root/'tags.csv').write_text(text, encoding='utf-8')


def outline(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(ids, np.uint8), (30, 40))).save(path)


def tags(data):
    return {r.name: tuple(data.classes[t - 1] for t in r.tags) for r in data.records}


@pytest.fixture
def root(tmp_path):
    images(tmp_path, 'a b.jpg', 'garden/été.JPEG', 'garden/rex.v2.png', 'c.webp', 'd.bmp', 'e.tif', '.hidden.jpg')
    (tmp_path/'notes.txt').write_text('not an image')
    return tmp_path


def test_every_format_and_any_name(root):
    table(root, 'image,tags\na b.jpg,dog\ngarden/été,cat; dog\ngarden\\rex.v2.png,cat\nc,dog\nd.bmp,dog\ne.tif,none\n')
    data = folder(root)
    assert tags(data) == {'a b': ('dog',), 'garden/été': ('cat', 'dog'), 'garden/rex.v2': ('cat',), 'c': ('dog',), 'd': ('dog',), 'e': ()}
    assert data.classes == ['cat', 'dog'] and data.tags_from == 'tags.csv' and data.notes == [] and all(s.image.shape == (30, 40, 3) for s in data)


def test_accents_written_in_two_ways(root):
    table(root, 'image,tags\ngarden/e\u0301te\u0301.JPEG,cat\n')
    assert folder(root).names == ['garden/\xe9t\xe9']


@pytest.mark.parametrize('classes', [['dog', 'cat', 'cow'], 'dog, cat,cow', 'file', 'classes.txt'])
def test_classes_given(root, classes):
    table(root, 'image,tags\nc,cat\n')
    if classes in ('file', 'classes.txt'): (root/'classes.txt').write_text('background\ndog\ncat\n\ncow\n')
    data = folder(root, classes={'file': root/'classes.txt', 'classes.txt': ''}.get(classes, classes) if isinstance(classes, str) else classes)
    assert data.classes == ['dog', 'cat', 'cow'] and data.records[0].tags == (2,)


def test_json_and_columns_and_npy(root):
    (root/'t.json').write_text('{"c.webp": ["dog"], "d": "cat;dog"}')
    (root/'t.csv').write_text('image,dog,cat,cow\nc,1,0,0\nd,1,1,0\n')
    np.save(root/'t.npy', {'c': np.array([0, 1.]), 'd': np.array([1., 1])})
    assert tags(folder(root, root/'t.json')) == tags(folder(root, root/'t.csv')) == tags(folder(root, str(root/'t.npy'), classes='cat,dog')) == {'c': ('dog',), 'd': ('cat', 'dog')}
    assert folder(root, root/'t.csv').classes == ['cat', 'cow', 'dog']


def test_unlisted_images_are_left_out_and_counted(root):
    table(root, 'image,tags\nc,dog\n')
    assert folder(root).notes == ['left out, because not in the tags file: 5 (a b, d, e and 2 more)']


def test_images_folder(tmp_path):
    images(tmp_path, 'images/a.jpg', 'images/sub/b.jpg', 'extra.jpg')
    for form in ('{}', 'images/{}.jpg'):
        table(tmp_path, f'image,tags\n{form.format("a")},dog\n{form.format("sub/b")},cat\n')
        assert tags(folder(tmp_path)) == {'a': ('dog',), 'sub/b': ('cat',)}


def test_split_column(root):
    table(root, 'image,tags,split\na b,dog,train\nc,cat,val\nd,dog,train\ne,dog,\n')
    assert folder(root, split='train').names == ['a b', 'd'] and folder(root, split='val').names == ['c'] and len(folder(root)) == 4
    assert folder(root, split='val').classes == ['cat', 'dog']  # numbered alike in every split
    assert 'left out, because without a split: 1 (e)' in folder(root, split='train').notes
    with pytest.raises(UserError, match=r"split \(of .*\): unknown name 'vla'. Did you mean 'val'"): folder(root, split='vla')


def test_split_lists(root):
    table(root, 'image,tags\na b,dog\nc,cat\nd,dog\n')
    (root/'train.txt').write_text('a b.jpg\nd\n')
    (root/'val.txt').write_text('c\ngarden/rex.v2\n')
    assert folder(root, split='train').names == ['a b', 'd'] and [r.tags for r in folder(root, split='val').records] == [(1,), None]
    (root/'train.txt').write_text('a b.jpg\ne\n')
    with pytest.raises(UserError, match=r'folder train: 1 of 2 images have no tags \(e\)'): folder(root, split='train')
    (root/'train.txt').write_text('')
    with pytest.raises(UserError, match='folder train: the split has no images'): folder(root, split='train')


def test_no_split_is_not_guessed(root):
    table(root, 'image,tags\nc,cat\n')
    assert folder(root, split='train').names == ['c']
    for s in ('val', 'test'):
        with pytest.raises(UserError, match=f"split: '{s}' is neither in a column `split` of the tags file nor in a list .*{s}.txt"): folder(root, split=s)
    (root/'val.txt').write_text('c\n')
    with pytest.raises(UserError, match="split: 'train' is neither"): folder(root, split='train')


def test_masks_beside(root):
    table(root, 'image,tags\nc,cat\ngarden/rex.v2,dog\n')
    outline(root/'masks/garden/rex.v2.png', [0, 2, 255])
    data = folder(root)
    assert data.notes[-1] == '1 of 2 images have a mask' and not data.has_masks and data['c'].mask is None and set(np.unique(data['garden/rex.v2'].mask)) == {0, 2, 255}
    outline(root/'other/c.png', [1])
    assert (folder(root, masks=root/'other')['c'].mask == 1).all()
    (root/'empty').mkdir()
    with pytest.raises(UserError, match='masks: .*empty has no .png file'): folder(root, masks=root/'empty')
    with pytest.raises(UserError, match='masks: expected a folder at .*nowhere'): folder(root, masks=root/'nowhere')


def test_mask_of_another_size_or_with_other_ids(root):
    table(root, 'image,tags\nc,cat\nd,dog\n')
    outline(root/'masks/c.png', [37])
    Image.new('L', (30, 40)).save(root/'masks/d.png')
    data = folder(root)
    with pytest.raises(UserError, match=r'masks: expected 255 or 0\.\.2, got 37 in c.png'): data['c']
    with pytest.raises(UserError, match=r'd.png is 30x40 \(width x height\), its image is 40x30'): data['d']


def test_tags_from_masks_alone(tmp_path):
    images(tmp_path, 'a.jpg', 'b.jpg')
    outline(tmp_path/'masks/a.png', [0, 2])
    outline(tmp_path/'masks/b.png', [1, 2, 255])
    data = folder(tmp_path, classes='cat,dog')
    assert tags(data) == {'a': ('dog',), 'b': ('cat', 'dog')} and data.tags_from == 'masks'
    with pytest.raises(UserError, match='classes: expected 1 to 254 names, got 0; give classes=dog,cat or write them into'): folder(tmp_path)
    (tmp_path/'masks/b.png').unlink()
    with pytest.raises(UserError, match=r'1 of 2 images have no tags \(b\)'): folder(tmp_path, classes='cat,dog')


def test_a_folder_for_each_class(tmp_path):
    images(tmp_path, 'dog/1.jpg', 'dog/deep/2.jpg', 'guinea pig/1.jpg')
    data = folder(tmp_path, split='train')
    assert tags(data) == {'dog/1': ('dog',), 'dog/deep/2': ('dog',), 'guinea pig/1': ('guinea pig',)} and data.tags_from == 'folders'
    images(tmp_path, 'loose.jpg')
    with pytest.raises(UserError, match=r'expected each image in the folder of its class, 1 are not \(loose, in'): folder(tmp_path)


def test_a_folder_for_each_split_and_class(tmp_path):
    images(tmp_path, 'train/dog/1.jpg', 'train/cat/1.jpg', 'val/dog/9.jpg', 'test/7.jpg')
    assert tags(folder(tmp_path, split='train')) == {'train/cat/1': ('cat',), 'train/dog/1': ('dog',)}
    assert tags(folder(tmp_path, split='val')) == {'val/dog/9': ('dog',)} and folder(tmp_path, split='val').classes == ['cat', 'dog']
    assert [(r.name, r.tags) for r in folder(tmp_path, split='test').records] == [('test/7', None)]


def test_images_to_predict_on(tmp_path):
    images(tmp_path, '1.jpg', 'x/2.jpg')
    data = folder(tmp_path, classes='cat,dog', split='test')
    assert data.names == ['1', 'x/2'] and data[0].tags is None and data[0].mask is None
    (tmp_path/'test.txt').write_text('x/2\n')
    assert folder(tmp_path, classes='cat,dog', split='test').names == ['x/2']


def test_listed_but_missing(root):
    table(root, 'image,tags\nc,dog\nrex.v2.png,dog\nmouse,dog\n')
    with pytest.raises(UserError, match=r"root: 2 of 3 listed images are not in .* \(rex.v2, mouse\). Did you mean 'garden/rex.v2'\? Put them there"): folder(root)


def test_images_without_tags(root):
    table(root, 'image,tags\na b,\nc,\nd,\ne,\ngarden/rex.v2,dog\n')
    with pytest.raises(UserError, match=r'folder train: 4 of 5 images have no tags \(a b, c, d and 1 more\); add them to the tags file'): folder(root, split='train')


def test_unknown_tag(root):
    table(root, 'image,tags\nc,dgo\n')
    with pytest.raises(UserError, match="image 'c' has the tag 'dgo', which is no class. Did you mean 'dog'"): folder(root, classes='dog,cat')


def test_two_files_of_one_id(root):
    images(root, 'c.jpg')
    table(root, 'image,tags\nc,dog\n')
    with pytest.raises(UserError, match=r"root: two files have the id 'c': .*c.jpg and .*c.webp; rename or remove one"): folder(root)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match='root: expected a folder at .*none with images and tags.csv, found nothing'): folder(tmp_path/'none')
    with pytest.raises(UserError, match=r'root: expected images \(.jpg, .*\) in .*, found none'): folder(tmp_path)
    images(tmp_path, 'a.jpg')
    with pytest.raises(UserError, match='tags: expected .*tags.csv .*a folder masks, a sub-folder for each class, or keywords in the photographs, found only images'): folder(tmp_path)
    table(tmp_path, 'image,tags\na,dog\n')
    (tmp_path/'tags.json').write_text('{"a": ["dog"]}')
    with pytest.raises(UserError, match='has both tags.csv and tags.json; say which by tags='): folder(tmp_path)
    for kwargs, message in ((dict(tags='list.xls'), 'tags: expected a .json, .csv, .npy or .xml file or a folder'), (dict(tags=str(tmp_path/'t.csv')), 't.csv: no such file'),
                            (dict(tags=tmp_path/'tags.csv', classes='names.txt'), 'classes: names.txt: no such file'), (dict(tags=tmp_path/'tags.csv', classes='dog,dog'), "'dog' is there twice")):
        with pytest.raises(UserError, match=message): folder(tmp_path, **kwargs)
