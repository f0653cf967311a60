"wsss_nb.data.tags: JSON, tables, cls_labels.npy without running it, XML, masks"
import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data.tags import mask_tags, read_csv, read_tags, to_ids, xml_tags
from wsss_nb.data.voc import VOC_CLASSES

CLASSES = ['cat', 'dog', 'potted plant']


def write(path, text, encoding='utf-8'):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize('text', [
    'image,tags\na.jpg,cat;dog\nb,potted plant\nc.PNG,none\nd,\n',
    'image,tags\r\na.jpg,cat | dog\r\nb,potted plant\r\n\r\nc.PNG,none\r\nd,\r\n',
    'image,tags\na.jpg,"cat, dog"\nb,potted plant\nc.PNG,none\nd,\n',
    'image,tags\na.jpg,cat, dog\nb,potted plant\nc.PNG,none\nd,\n',
    'image;tags\na.jpg;cat|dog\nb;potted plant\nc.PNG;none\nd;\n',
    'image\ttags\na.jpg\tdog;cat\nb\tpotted plant\nc.PNG\tnone\nd\t\n',
    '\ufeffimage,tags\n./a.jpg,cat;dog;cat\n"b",potted plant;\nc.PNG,none\nd,\n',
    'split,tags,image\ntrain,cat;dog,a.jpg\n,potted plant,b\n,none,c\n,,d\n',
])
def test_csv_of_names(tmp_path, text):
    assert read_tags(write(tmp_path/'t.csv', text), CLASSES) == {'a': (1, 2), 'b': (3,), 'c': (), 'd': None}


def test_csv_of_columns(tmp_path):
    path = write(tmp_path/'t.csv', 'image,dog,potted plant,cat,split\nx 1.jpg,1,0,1,train\nsub\\été,0,1,0,val\nn,0,0,0,\n')
    assert read_tags(path, CLASSES) == {'x 1': (1, 2), 'sub/été': (3,), 'n': ()}
    assert read_csv(path)[1:] == ({'x 1': 'train', 'sub/été': 'val'}, ['dog', 'potted plant', 'cat'])


@pytest.mark.parametrize('text, message', [
    ('file,label\na,cat\n', r'has the header `file,label`; expected either the columns `image,tags` .* or `image` and one column for each class'),
    ('image\na\n', r'has the header `image`'),
    ('', 'has the header ``'),
    ('image,label\na,cat\n', r"line 2: column 'label' holds 'cat', expected 0 or 1; the header is `image,label`"),
    ('image,cat,dog\na,1\n', 'line 2: 2 cells under 3 columns'),
    ('image,tags\n,cat\n', 'line 2: the column `image` is empty'),
    ('image,tags\na.jpg,cat\nb,dog\na,dog\n', "image 'a' is on line 2 and on line 4; give all its tags on one line"),
    ('image,tags\na,catt\n', "image 'a' has the tag 'catt', which is no class. Did you mean 'cat'?"),
])
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(UserError, match=message): read_tags(write(tmp_path/'t.csv', text), CLASSES)


def test_csv_in_another_encoding(tmp_path):
    with pytest.raises(UserError, match='t.csv is not UTF-8 text; save the table as "CSV UTF-8"'): read_tags(write(tmp_path/'t.csv', 'image,tags\né,cat\n', 'latin1'), CLASSES)


def test_json(tmp_path):
    path = write(tmp_path/'t.json', json.dumps({'a.jpg': ['dog', 'cat'], 'b': 'potted plant; dog', 'c': [], 'd': '', 'e': None}))
    assert read_tags(path, CLASSES) == {'a': (1, 2), 'b': (2, 3), 'c': (), 'd': None, 'e': None}


@pytest.mark.parametrize('text, message', [
    ('{"a": ["cat"', 'not valid JSON'), ('["a"]', 'got a list'), ('{"a": [1]}', r"got \[1\] for 'a'"), ('{"a": {"cat": 1}}', r"got \{'cat': 1\} for 'a'"),
    ('{"a": ["cow"]}', "has the tag 'cow', which is no class"), ('{"a.jpg": ["cat"], "a": ["dog"]}', "image 'a' is listed twice"),
])
def test_bad_json(tmp_path, text, message):
    with pytest.raises(UserError, match=message): read_tags(write(tmp_path/'t.json', text), CLASSES)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match='expected a .json, .csv or .npy file'): read_tags(tmp_path/'t.xlsx', CLASSES)
    for f in ('t.json', 't.csv', 't.npy'):
        with pytest.raises(UserError, match=f'{f}: no such file'): read_tags(tmp_path/f, CLASSES)


def vectors(dtype):
    return {k: np.array(v, dtype) for k, v in {'2007_000032': [1, 0, 1], '2007_000039': [0, 0, 0], '2011_003276': [0, 1, 0]}.items()}


def by_protocol(array, protocol):
    "What np.save writes, with another pickle protocol (older NumPy wrote 2 and 3)"
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, {'descr': '|O', 'fortran_order': False, 'shape': ()})
    return f.getvalue() + pickle.dumps(array, protocol=protocol)


@pytest.mark.parametrize('protocol', [2, 3, 4])
@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int64, np.uint8, bool, '>f4'])
@pytest.mark.parametrize('key', [str, lambda k: int(k.replace('_', '')), lambda k: np.int64(k.replace('_', '')), np.str_])
def test_cls_labels(tmp_path, protocol, dtype, key):
    array = np.array({key(k): v for k, v in vectors(dtype).items()}, object)
    (tmp_path/'cls_labels.npy').write_bytes(by_protocol(array, protocol))
    assert read_tags(tmp_path/'cls_labels.npy', CLASSES) == {'2007_000032': (1, 3), '2007_000039': (), '2011_003276': (2,)}


def test_cls_labels_as_numpy_writes_them_and_as_old_numpy_named_things(tmp_path):
    np.save(tmp_path/'a.npy', vectors(np.float32))
    (tmp_path/'b.npy').write_bytes((by_protocol(np.array(vectors(np.float32), object), 2)).replace(b'numpy._core', b'numpy.core'))
    assert read_tags(tmp_path/'a.npy', CLASSES) == read_tags(tmp_path/'b.npy', CLASSES) == {'2007_000032': (1, 3), '2007_000039': (), '2011_003276': (2,)}


class Runs:
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('call, args', [(os.mkdir, ()), (eval, ()), (exec, ()), (np.fromfile, ()), (getattr, ()), (np.load, ())])
def test_a_pickle_with_code_is_not_run(tmp_path, protocol, call, args):
    mark = tmp_path/'was run'
    args = {os.mkdir: (str(mark),), eval: (f'__import__("os").mkdir({str(mark)!r})',), exec: (f'import os; os.mkdir({str(mark)!r})',),
            np.fromfile: ('/dev/null',), getattr: (int, 'real'), np.load: ('x',)}[call]
    (tmp_path/'bad.npy').write_bytes(by_protocol(np.array({'2007_000032': np.ones(3), 'x': Runs(call, *args)}, object), protocol))
    with pytest.raises(UserError, match=r'bad.npy: holds code other than arrays \(.*\); it was not run'): read_tags(tmp_path/'bad.npy', CLASSES)
    assert not mark.exists()


def test_wrong_npy(tmp_path):
    np.save(tmp_path/'a.npy', np.zeros((4, 3)))
    with pytest.raises(UserError, match=r'expected a pickled dictionary, got an array float64 \[4, 3\]'): read_tags(tmp_path/'a.npy', CLASSES)
    np.save(tmp_path/'b.npy', vectors(np.float32))
    with pytest.raises(UserError, match=r"expected 20 numbers for each image, got shape \[3\] for '2007_000032'"): read_tags(tmp_path/'b.npy', VOC_CLASSES)
    for bad in ((tmp_path/'b.npy').read_bytes()[:-40], b'', b'\x93NUMPY\x01'):
        (tmp_path/'c.npy').write_bytes(bad)
        with pytest.raises(UserError, match='c.npy: damaged, or not a dictionary'): read_tags(tmp_path/'c.npy', CLASSES)


XML = '''<?xml version="1.0"?><annotation><filename>x.jpg</filename><object><name>person</name><difficult>0</difficult><part><name>head</name><difficult>0</difficult></part></object>
<object><name>dog</name><difficult>1</difficult></object><object><name>sofa</name></object><object><name>person</name><difficult>0</difficult></object></annotation>'''


def test_xml(tmp_path):
    assert xml_tags(write(tmp_path/'x.xml', XML)) == ['person', 'sofa', 'person']
    assert to_ids({'x': xml_tags(tmp_path/'x.xml')}, VOC_CLASSES, 'x') == {'x': (15, 18)}


@pytest.mark.parametrize('text, message', [
    ('<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', 'x.xml: refused, because an annotation has no document type'),
    (XML[:-20], 'x.xml: not an XML annotation'), ('', 'x.xml: not an XML annotation'),
])
def test_bad_xml(tmp_path, text, message):
    with pytest.raises(UserError, match=message): xml_tags(write(tmp_path/'x.xml', text))


def test_doctype_in_utf16_is_refused_too(tmp_path):
    with pytest.raises(UserError, match='refused'): xml_tags(write(tmp_path/'x.xml', '<!DOCTYPE a [<!ENTITY x "ha">]><annotation>&x;</annotation>', 'utf-16'))


def test_masks(tmp_path):
    ids = np.random.default_rng(0).choice([0, 2, 3, 255], (20, 30)).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path/'a.png')
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path/'b.png')
    assert mask_tags({'a': tmp_path/'a.png', 'b': tmp_path/'b.png'}, 3) == {'a': (2, 3), 'b': ()}
    with pytest.raises(UserError, match=r'expected 255 or 0\.\.2, got 3 in a.png'): mask_tags({'a': tmp_path/'a.png'}, 2)
