"wsss_nb.data.voc on a small VOCdevkit made here"
import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data.voc import VOC_CLASSES, voc12

NAMES = ['2007_000032', '2007_000039', '2008_000002', '2008_000003']
TAGS = {'2007_000032': (12,), '2007_000039': (15, 18), '2008_000002': (20,), '2008_000003': (1,)}


@pytest.fixture
def voc(tmp_path):
    f = tmp_path/'VOCdevkit'/'VOC2012'
    for d in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'): (f/d).mkdir(parents=True)
    for n in NAMES:
        Image.new('RGB', (50, 40), 'teal').save(f/f'JPEGImages/{n}.jpg')
        objects = ''.join(f'<object><name>{VOC_CLASSES[t - 1]}</name><difficult>0</difficult></object>' for t in TAGS[n])
        (f/f'Annotations/{n}.xml').write_text(f'<annotation>{objects}<object><name>cow</name><difficult>1</difficult></object></annotation>')
    for n in NAMES[:3]: mask(f/f'SegmentationClass/{n}.png', TAGS[n])
    for split, names in dict(train=NAMES[:2], val=NAMES[2:3], test=NAMES[3:], mine=NAMES[1:3]).items(): (f/f'ImageSets/Segmentation/{split}.txt').write_text('\n'.join(names) + '\n\n')
    return f


def mask(path, tags):
    path.parent.mkdir(exist_ok=True)
    ids = np.full((40, 50), 255, np.uint8)
    ids[:20], ids[20:30, :10], ids[30:, 5:20] = 0, tags[0], tags[-1]
    Image.fromarray(ids).save(path)


@pytest.mark.parametrize('split', ['train', 'val', 'mine'])
@pytest.mark.parametrize('tags', ['', 'xml', 'masks'])
def test_tags_from_xml_and_from_masks(voc, split, tags):
    data = voc12(voc.parent, split, tags=tags)
    assert {r.name: r.tags for r in data.records} == {n: TAGS[n] for n in data.names}
    assert data.tags_from == (tags or 'xml') and data.has_masks and data.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert set(np.unique(data[0].mask)) == {0, 255, *TAGS[data.names[0]]}


def test_any_of_three_roots(voc):
    assert [voc12(r).names for r in (voc, voc.parent, voc.parent.parent, str(voc.parent))] == [NAMES[:2]] * 4


def test_home_folder(voc, monkeypatch):
    monkeypatch.setenv('HOME', str(voc.parent.parent))
    assert len(voc12('~/VOCdevkit')) == 2


def test_test_split_has_neither_tags_nor_masks(voc):
    data = voc12(voc, 'test')
    assert data.names == NAMES[3:] and data.records[0].tags is None and not data.has_masks and data[0].mask is None


def test_another_length_is_noted(voc):
    assert voc12(voc, 'train').notes == ['train has 2 images; the official list has 1464'] and voc12(voc, 'mine').notes == []


@pytest.mark.parametrize('name', ['trainaug', 'train_aug'])
@pytest.mark.parametrize('line', ['{0}', '/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png'])
def test_trainaug_lists(voc, name, line):
    names = NAMES[:2] + NAMES[3:]
    (voc/f'ImageSets/Segmentation/{name}.txt').write_text('\n'.join(line.format(n) for n in names))
    for n in names: mask(voc/f'SegmentationClassAug/{n}.png', TAGS[n])
    for split in ('trainaug', 'train_aug'):
        data = voc12(voc, split)
        assert data.names == names and {r.mask.parent.name for r in data.records} == {'SegmentationClassAug'}
        assert data.notes == [f'{split} has 3 images; the official list has 10582']


def test_trainaug_with_sbd(voc, tmp_path):
    savemat = pytest.importorskip('scipy.io').savemat
    (voc/'ImageSets/Segmentation/trainaug.txt').write_text('\n'.join([NAMES[0], NAMES[3]]))
    data = voc12(voc, 'trainaug')
    assert data.notes[1] == '1 of 2 images have a mask' and not data.has_masks
    cls = tmp_path/'sbd'/'cls'
    cls.mkdir(parents=True)
    for n in (NAMES[0], NAMES[3]): savemat(cls/f'{n}.mat', {'GTcls': {'Segmentation': np.full((40, 50), 1, np.uint8)}})
    data = voc12(voc, 'trainaug', masks=cls)
    assert data.records[0].mask.suffix == '.png' and (data.mask(1) == 1).all() and data.has_masks
    assert voc12(voc, 'trainaug', tags='masks', masks=cls).records[1].tags == (1,)


def test_masks_given_come_first(voc, tmp_path):
    for n in NAMES[:2]: mask(tmp_path/f'own/{n}.png', (7,))
    assert [r.mask.parent.name for r in voc12(voc, masks=tmp_path/'own').records] == ['own', 'own']
    with pytest.raises(UserError, match='masks: expected a folder at .*nowhere'): voc12(voc, masks=tmp_path/'nowhere')


def test_tags_from_files(voc, tmp_path):
    (tmp_path/'t.csv').write_text('image,tags\n' + ''.join(f'{n},cow;bus\n' for n in NAMES))
    np.save(tmp_path/'cls_labels.npy', {int(n.replace('_', '')): np.eye(20, dtype=np.float32)[4] for n in NAMES})
    assert [r.tags for r in voc12(voc, tags=tmp_path/'t.csv').records] == [(6, 10)] * 2 and voc12(voc, tags=str(tmp_path/'t.csv')).tags_from == 't.csv'
    assert [r.tags for r in voc12(voc, tags=tmp_path/'cls_labels.npy').records] == [(5,)] * 2
    (tmp_path/'t.csv').write_text(f'image,tags\n{NAMES[0]},cow\n')
    with pytest.raises(UserError, match=rf'voc12 train: 1 of 2 images have no tags \({NAMES[1]}\)'): voc12(voc, tags=tmp_path/'t.csv')
    assert voc12(voc, 'val', tags=tmp_path/'t.csv').records[0].tags is None


def test_mistakes(voc, tmp_path):
    with pytest.raises(UserError, match='root: expected VOCdevkit/VOC2012 with JPEGImages and ImageSets/Segmentation in .*, found: no such folder'): voc12(tmp_path/'none')
    with pytest.raises(UserError, match='root: expected the folder of VOCdevkit, got nothing'): voc12('')
    (voc/'JPEGImages').rename(voc/'photographs')
    with pytest.raises(UserError, match='found: Annotations, ImageSets, SegmentationClass, photographs; unpack VOC 2012'): voc12(voc)


def test_mistakes_in_a_split(voc):
    with pytest.raises(UserError, match="unknown name 'trian'. Did you mean 'train'"): voc12(voc, 'trian')
    with pytest.raises(UserError, match="tags: expected 'xml', 'masks', or a .json, .csv or .npy file, got 'msaks'"): voc12(voc, tags='msaks')
    (voc/f'Annotations/{NAMES[0]}.xml').write_text('<annotation><object><name>dgo</name></object></annotation>')
    with pytest.raises(UserError, match=rf"image '{NAMES[0]}' has the tag 'dgo', which is no class. Did you mean 'dog'"): voc12(voc)
    (voc/f'Annotations/{NAMES[0]}.xml').unlink()
    with pytest.raises(UserError, match=rf'{NAMES[0]}.xml cannot be read .*give tags=masks or a file'): voc12(voc)
    (voc/f'SegmentationClass/{NAMES[0]}.png').unlink()
    with pytest.raises(UserError, match=rf'tags=masks: 1 of 2 images of train have no mask \({NAMES[0]}\)'): voc12(voc, tags='masks')
    (voc/f'JPEGImages/{NAMES[1]}.jpg').unlink()
    with pytest.raises(UserError, match=rf'JPEGImages lacks 1 of 2 images of train \({NAMES[1]}\)'): voc12(voc)
    (voc/'ImageSets/Segmentation/train.txt').write_text('\n')
    with pytest.raises(UserError, match='voc12 train: the split has no images'): voc12(voc)


def test_an_image_listed_twice(voc):
    (voc/'ImageSets/Segmentation/train.txt').write_text(f'{NAMES[0]}\n{NAMES[0]}\n')
    with pytest.raises(UserError, match=f"two images are called '{NAMES[0]}'"): voc12(voc)
