"wsss_nb.data.catalog: one door to every data set"
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data.catalog import open_data


@pytest.fixture
def root(tmp_path):
    for n in 'cab': Image.new('RGB', (40, 30)).save(tmp_path/f'{n}.png')
    (tmp_path/'t.csv').write_text('image,tags,split\nc,dog,train\na,cat,train\nb,dog,val\n')
    return tmp_path


def test_arguments_arrive(root):
    data = open_data('folder', 'train', root=root, tags=root/'t.csv', classes='dog,cat')
    assert data.names == ['c', 'a'] and data.classes == ['dog', 'cat'] and [r.tags for r in data.records] == [(1,), (2,)]
    assert open_data('folder', 'val', root=str(root), tags=str(root/'t.csv')).names == ['b']


def test_limit_takes_the_first(root):
    assert open_data('folder', root=root, tags=root/'t.csv', limit=1).names == ['c'] and len(open_data('folder', root=root, tags=root/'t.csv', limit=99)) == 2
    with pytest.raises(UserError, match='limit: expected a number of images, 0 for all, got -1'): open_data('folder', root=root, tags=root/'t.csv', limit=-1)


def test_home_folder(root, monkeypatch):
    monkeypatch.setenv('HOME', str(root))
    assert open_data('folder', root='~', tags='~/t.csv').names == ['c', 'a']


def test_mistakes(root):
    with pytest.raises(UserError, match="data: unknown name 'voc2012'. Did you mean 'voc12'. Known: synthetic, parts, voc12, coco14, folder"): open_data('voc2012')
    for name in ('voc12', 'coco14', 'folder'):
        with pytest.raises(UserError, match=f'root: expected the folder of {name}, got nothing'): open_data(name)
    with pytest.raises(UserError, match='data=voc12: does not take classes'): open_data('voc12', root=root, classes='dog')
    with pytest.raises(UserError, match='data=synthetic: does not take root, tags'): open_data('synthetic', root=root, tags='x.csv')


def test_the_drawn_set():
    data = open_data('synthetic', limit=3)
    assert len(data) == 3 and data[0].image.ndim == 3 and data.labels.sum() >= 3
