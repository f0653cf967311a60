"wsss_nb.data.coco on a small instances file, against pycocotools' own filling"
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from wsss_nb.base.core import UserError
from wsss_nb.data.coco import COCO_CLASSES, class_mask, coco14, make_masks

H, W = 48, 64


def polygon(seed):
    "A ragged ring of points around a random place"
    g = np.random.default_rng(seed)
    angle, r = np.linspace(0, 2 * np.pi, 17)[:-1], g.uniform(6, 16, 16)
    c = g.uniform([12, 12], [W - 12, H - 12])
    return [np.stack([c[0] + r * np.cos(angle), c[1] + r * np.sin(angle)], 1).ravel().tolist()]


@pytest.fixture
def coco(tmp_path):
    runs = [H * 40, H * 24]  # column-wise: the last 24 columns
    rows = [(9, 1, 1, dict(size=[H, W], counts=runs)), (9, 17, 0, polygon(1)), (9, 90, 0, polygon(2) + polygon(3)), (9, 17, 0, polygon(4)), (25, 3, 0, polygon(5)), (25, 2, 0, polygon(6)),
            (40, 18, 1, dict(size=[H, W], counts=runs))]
    categories = [dict(id=i, name=n) for i, n in {1: 'person', 2: 'bicycle', 3: 'car', 17: 'cat', 18: 'dog', 90: 'toothbrush'}.items()]
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012d}.jpg', height=H, width=W) for i in (40, 9, 30, 25)]
    annotations = [dict(id=k, image_id=i, category_id=c, iscrowd=crowd, segmentation=s, area=1, bbox=[0, 0, 1, 1]) for k, (i, c, crowd, s) in enumerate(rows, 1)]
    (tmp_path/'annotations').mkdir()
    (tmp_path/'train2014').mkdir()
    (tmp_path/'annotations/instances_train2014.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    for i in images: Image.new('RGB', (W, H), 'teal').save(tmp_path/'train2014'/i['file_name'])
    return tmp_path


def test_the_classes_are_cocos_in_order():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    assert [COCO_CLASSES.index(c) + 1 for c in ('person', 'stop sign', 'cat', 'backpack', 'wine glass', 'hot dog', 'dining table', 'tv', 'refrigerator', 'toothbrush')] == [1, 12, 16, 25, 41, 53, 61, 63, 73, 80]


def test_masks_agree_with_pycocotools(coco):
    data, api = coco14(coco), COCO(coco/'annotations/instances_train2014.json')
    assert data.names == [f'COCO_train2014_{i:012d}' for i in (9, 25, 40)]
    for i, name in zip((9, 25, 40), data.names):
        anns = api.loadAnns(api.getAnnIds(i))
        want = np.zeros((H, W), np.uint8)
        for a in reversed([a for a in anns if not a['iscrowd']]): want[api.annToMask(a) > 0] = COCO_CLASSES.index(api.cats[a['category_id']]['name']) + 1  # the first is painted last
        for a in anns: want[(want == 0) & (api.annToMask(a) > 0) & bool(a['iscrowd'])] = 255
        assert (data[name].mask == want).all() and len(np.unique(want)) >= 2
    assert Image.open(data.records[0].mask).mode == 'P'


def test_tags_count_crowds(coco):
    data = coco14(coco)
    assert [[COCO_CLASSES[t - 1] for t in r.tags] for r in data.records] == [['person', 'cat', 'toothbrush'], ['bicycle', 'car'], ['dog']]
    assert set(np.unique(data.mask(2))) == {0, 255} and data.tags_from == 'instances_train2014.json'


def test_both_lists(coco):
    data = coco14(coco, variant='all')
    assert data.names == [f'COCO_train2014_{i:012d}' for i in (9, 25, 30, 40)] and data.records[2].tags == () and not data.mask(2).any()
    assert data.notes == ['images: all', 'train has 4 images; the official list has 82783']
    assert coco14(coco).notes == ['images: annotated', 'train has 3 images; the official list has 82081']


def test_masks_are_made_once_and_where_one_says(coco, tmp_path):
    first = coco14(coco, limit=1)
    assert len(first) == 1 and [p.stem for p in (coco/'SegmentationClass/train2014').iterdir()] == first.names
    first.records[0].mask.write_bytes(b'mine')
    data = coco14(coco)
    assert data.records[0].mask.read_bytes() == b'mine' and data.mask(1).any()  # went on where it stopped
    assert coco14(coco, masks=tmp_path/'other').records[0].mask == tmp_path/'other'/f'{data.names[0]}.png'


def test_a_stopped_conversion_leaves_whole_files_only(tmp_path):
    good, bad = ([(1, polygon(1), 0)], H, W), ([(1, [[1, 2, 3]], 0)], H, W)
    with pytest.raises(UserError, match='b: an outline in the annotations cannot be drawn'): make_masks([(tmp_path/'a.png', *good), (tmp_path/'b.png', *bad)], workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ['a.png'] and Image.open(tmp_path/'a.png').size == (W, H)


def test_compressed_run_lengths():
    from pycocotools import mask as rle
    want = np.zeros((H, W), np.uint8)
    want[3:9, 5:20] = 1
    assert (class_mask([(7, rle.encode(np.asfortranarray(want)), 0)], H, W) == 7 * want).all()


def test_mistakes(coco, tmp_path):
    for kwargs, message in ((dict(split='test'), "split: unknown name 'test'"), (dict(variant='full'), "variant: unknown name 'full'"), (dict(split='val'), 'root: expected a folder at .*val2014')):
        with pytest.raises(UserError, match=message): coco14(coco, **kwargs)
    with pytest.raises(UserError, match='root: expected a folder at .*none with annotations/instances_train2014.json and train2014'): coco14(tmp_path/'none')
    (coco/'train2014/COCO_train2014_000000000025.jpg').unlink()
    with pytest.raises(UserError, match=r'train2014 lacks 1 of 3 images \(COCO_train2014_000000000025.jpg\); unpack train2014.zip again'): coco14(coco)
    path = coco/'annotations/instances_train2014.json'
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, 'categories': found['categories'] + [dict(id=5, name='aeroplane')]}))
    with pytest.raises(UserError, match="unknown category 'aeroplane'. Did you mean 'airplane'"): coco14(coco)
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match='not an instances file of COCO'): coco14(coco)
    path.unlink()
    with pytest.raises(UserError, match='instances_train2014.json: no such file'): coco14(coco)


def test_a_network_is_trained_and_evaluated_over_81_classes(coco, tmp_path):
    from wsss_nb.engine.evaluate import count_masks, number_with_origin, write_predictions
    from wsss_nb.engine.methods import segmenter_learner
    data = coco14(coco)
    learner = segmenter_learner(data, 'tiny', '', crop=32, batch_size=3, epochs=2, lr=.01, optimizer='adamw', device='cpu')
    learner.fit()
    assert learner.raw_net.logits(learner.views[0, 0]['image'][None]).shape[1] == 81
    write_predictions(learner.raw_net, data, tmp_path / 'out')
    counts = count_masks(data, tmp_path / 'out')
    pairs = [(np.array(Image.open(tmp_path / f'out/{n}.png')), data.mask(n)) for n in data.names]
    assert counts.matrix.shape == (81, 81) and counts.matrix.sum() == sum((t != 255).sum() for _, t in pairs)
    inter, union = ([sum((f(p == k, t == k) & (t != 255)).sum() for p, t in pairs) for k in range(81)] for f in (np.logical_and, np.logical_or))
    n = number_with_origin('network', 'train', counts, data, [])
    assert n['classes'] == 'bg+80' and abs(n['miou'] - np.mean([i / u for i, u in zip(inter, union) if u])) < 1e-9
