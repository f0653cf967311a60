"""Masks handed to other tools: what comes back equals the mask, read by readers of this file's own and, where they are installed, by the tools'."""
import importlib.util
import json
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools.coco import COCO

from wsss_nb.base.core import UserError, load_json, save_json
from wsss_nb.cli import main
from wsss_nb.data.sample import ScoreMaps, read_mask, save_maps, save_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.results.handover import FORMATS, hand_over
from wsss_nb.results.outlines import loops, polygons
from wsss_nb.results.run_lengths import score_in, studio_rle, zeros_first
from wsss_nb.results.to_label_studio import task_lines

CLASSES = ['cat', 'a "dog" & <more>', 'Möwe', 'background noise']


def odd_masks():
    "Rings in rings, parts that touch at a corner, a checkerboard, the whole picture, nothing, 255 in the middle and at the border"
    rng, masks = np.random.default_rng(0), {}
    ring = np.zeros((40, 60), np.uint8); ring[4:36, 5:50] = 1; ring[8:32, 10:45] = 0; ring[12:28, 15:40] = 2; ring[18:20, 20:30] = 255; ring[22:24, 20:22] = 0
    corner = np.zeros((9, 7), np.uint8); corner[:4, :3], corner[4:, 3:] = 3, 3; corner[0, 6] = 4
    masks['a b/ring #1'], masks['a b/corner'] = ring, corner
    masks['noise'] = rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (33, 41))
    masks['board'] = (np.indices((12, 13)).sum(0) % 2).astype(np.uint8)
    masks['full'], masks['nothing'], masks['row'] = np.full((5, 6), 2, np.uint8), np.zeros((8, 3), np.uint8), np.ones((1, 9), np.uint8)
    return masks


MASKS = odd_masks()
KEPT = {n: np.where(m == 255, 0, m) for n, m in MASKS.items()}  # what a format without 255 can keep


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('own')
    for i, (n, m) in enumerate(MASKS.items()):
        save_mask(d / f'masks/{n}.png', m)
        path = d / f'photos/{n}.{"png" if i % 2 else "jpg"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*m.shape, 3), np.uint8)).save(path)
    (d / 'masks/classes.txt').write_text('\n'.join(CLASSES), encoding='utf-8')
    return d


@pytest.fixture(scope='module')
def made(folder):
    "Format -> (folder, lines)"
    return {to: (folder / to, hand_over(folder / 'masks', to, folder / to, folder / 'photos')) for to in FORMATS}


def is_whole(out):
    "No picture is lost, none has another size than its mask"
    there = {p.relative_to(out).as_posix().split('images/', 1)[1].rsplit('.', 1)[0].removeprefix('train/'): Image.open(p).size[::-1] for p in out.rglob('*') if '/images/' in p.as_posix() and p.suffix in ('.jpg', '.png')}
    assert there == {n: m.shape for n, m in MASKS.items()}


# -- read back without the tools

def of_coco(path):
    coco = COCO(str(path))
    for image in coco.dataset['images']:
        again = np.zeros((image['height'], image['width']), np.uint8)
        for a in coco.imgToAnns[image['id']]:
            region = coco.annToMask(a) > 0
            ys, xs = np.nonzero(region)
            assert not again[region].any() and a['area'] == region.sum() and a['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            again[region] = a['category_id']
        yield image['file_name'].rsplit('.', 1)[0], again


@pytest.mark.parametrize('parts', [False, True])
def test_coco_gives_back_the_masks(folder, tmp_path, parts, capsys):
    hand_over(folder / 'masks', 'coco', tmp_path / 'c', folder / 'photos', parts=parts)
    again, made = dict(of_coco(tmp_path / 'c/annotations/instances_default.json')), load_json(tmp_path / 'c/annotations/instances_default.json')
    assert again.keys() == KEPT.keys() and all(np.array_equal(again[n], KEPT[n]) for n in KEPT)
    assert [c['name'] for c in made['categories']] == CLASSES and len({a['id'] for a in made['annotations']}) == len(made['annotations'])
    ids = {i['file_name']: i['id'] for i in made['images']}
    of = lambda n: sum(a['image_id'] == ids[n] for a in made['annotations'])
    assert (of('a b/corner.png'), of('board.png'), of('nothing.png')) == ((2, 1, 0))  # parts that touch at a corner are one
    is_whole(tmp_path / 'c')


def painted(rle):
    "The bytes of Label Studio's run lengths, bit by bit"
    bits, at = np.unpackbits(np.array(rle, np.uint8)), 0
    def read(n):
        nonlocal at
        at += n
        assert at <= len(bits)
        return int(''.join(map(str, bits[at - n:at])), 2)
    n, width, out = read(32), read(5) + 1, []
    widths = [read(4) + 1 for _ in range(4)]
    while len(out) < n:
        run, m = read(1), read(widths[read(2)]) + 1
        out += [read(width)] * m if run else [read(width) for _ in range(m)]
    assert len(out) == n and len(bits) - at < 8
    return np.array(out, np.uint8)


def test_label_studio_gives_back_the_masks_and_its_names_agree(made):
    out, lines = made['label-studio']
    config = ET.fromstring((out / 'config.xml').read_text(encoding='utf-8'))
    image, brush = config.find('Image'), config.find('BrushLabels')
    assert [l.get('value') for l in brush] == CLASSES and image.get('value') == '$image'
    found = {}
    for task in json.loads((out / 'tasks.json').read_text()):
        place, (p,) = task['data']['image'], task['predictions']
        assert place.startswith('/data/local-files/?d=label-studio/images/') and (out.parent / unquote(place.partition('?d=')[2])).is_file() and ' ' not in place and '#' not in place
        name = unquote(place.partition('/images/')[2]).rsplit('.', 1)[0]
        again = found[name] = np.zeros_like(MASKS[name])
        for r in p['result']:
            assert (r['type'], r['from_name'], r['to_name'], r['value']['format']) == ('brushlabels', brush.get('name'), image.get('name'), 'rle') and (r['original_height'], r['original_width']) == again.shape
            rgba = painted(r['value']['rle']).reshape(*again.shape, 4)
            assert set(np.unique(rgba)) <= {0, 255} and (rgba == rgba[..., :1]).all()
            again[rgba[..., 3] > 0] = CLASSES.index(r['value']['brushlabels'][0]) + 1
    assert found.keys() == KEPT.keys() and all(np.array_equal(found[n], KEPT[n]) for n in KEPT)
    said = ' '.join(lines)
    for word in ('import tasks.json alone', 'not erased: copy it to an annotation first', f'LOCAL_FILES_DOCUMENT_ROOT={out.parent.resolve()}'): assert word in said
    is_whole(out)


def test_long_runs_are_cut(): assert painted(studio_rle(np.pad(np.ones((300, 301), bool), 1))).reshape(302, 303, 4)[1:-1, 1:-1].all()


def test_pictures_may_lie_elsewhere(folder, tmp_path):
    lines = hand_over(folder / 'masks', 'label-studio', tmp_path / 'x', folder / 'photos', url='s3://b/p/')
    assert {t['data']['image'] for t in load_json(tmp_path / 'x/tasks.json')} >= {'s3://b/p/a%20b/ring%20%231.jpg'} and 'DOCUMENT_ROOT' not in ' '.join(lines)


def test_cvat_gives_back_the_masks_and_names_no_background(made):
    out, lines = made['cvat']
    root = ET.parse(out / 'annotations.xml').getroot()
    assert root.findtext('version') == '1.1' and [l.findtext('name') for l in root.iter('label')] == [l['name'] for l in load_json(out / 'labels.json')] == CLASSES
    found = {}
    for image in root.iter('image'):
        again = np.zeros((int(image.get('height')), int(image.get('width'))), np.uint8)
        for m in image:
            runs, (x, y, w, h) = [int(r) for r in m.get('rle').split(',')], (int(m.get(k)) for k in ('left', 'top', 'width', 'height'))
            inside = np.concatenate([np.full(r, i % 2, bool) for i, r in enumerate(runs)]).reshape(h, w)
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()  # the box is tight
            again[y:y + h, x:x + w][inside] = CLASSES.index(m.get('label')) + 1
        found[image.get('name').rsplit('.', 1)[0]] = again
    assert found.keys() == KEPT.keys() and all(np.array_equal(found[n], KEPT[n]) for n in KEPT) and 'background' in ' '.join(lines)
    is_whole(out)


def iou(a, b, k): return ((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum()


def test_yolo_gives_back_the_masks(made):
    out, lines = made['yolo']
    said = yaml.safe_load((out / 'data.yaml').read_text(encoding='utf-8'))
    assert said['names'] == dict(enumerate(CLASSES)) and (Path(said['path']) / said['train']).is_dir() and 'one split' in lines[-1]
    for n, m in KEPT.items():
        h, w = m.shape
        middles, again = np.stack(np.meshgrid(np.arange(w) + .5, np.arange(h) + .5), -1).reshape(-1, 2), np.zeros_like(m)
        for line in (out / f'labels/train/{n}.txt').read_text().splitlines():
            k, *v = line.split()
            again[Outline(np.array(v, float).reshape(-1, 2) * (w, h)).contains_points(middles).reshape(h, w)] = int(k) + 1
        assert all(iou(again, m, k) >= .98 for k in np.unique(m[m > 0])), n
    is_whole(out)


def test_hf_keeps_the_masks_themselves(made):
    out, lines = made['hf']
    rows = [json.loads(line) for line in (out / 'train/metadata.jsonl').read_text(encoding='utf-8').splitlines()]
    assert {r['name'] for r in rows} == MASKS.keys() and 'undecided pixels' not in ' '.join(lines)
    for r in rows:
        assert (out / 'train' / r['file_name']).is_file() and np.array_equal(read_mask(out / 'train' / r['mask_file_name']), MASKS[r['name']])
        assert r['labels'] == [CLASSES[k - 1] for k in np.unique(MASKS[r['name']]) if 0 < k < 255]
    is_whole(out)


@pytest.mark.parametrize('to, words', [
    ('label-studio', 'brush masks do not show where the names in the configuration are others'), ('label-studio', 'a prediction can be looked at, not erased: copy it to an annotation first'),
    ('cvat', 'a label that the task lacks (`background` of other exports) stops the import, none is written here'), ('cvat', 'so neighbours have no gaps; do not convert them to polygons on import'),
    ('yolo', 'polygons are not simplified, so neighbours leave no gaps, and holes are cut out through a line of no width'),
    *((to, 'have undecided pixels (255), for which this format has no place: they are in no annotation, and count as background there') for to in ('coco', 'label-studio', 'cvat', 'yolo')),
    ('hf', '255 is undecided (ignore_index=255 of a loss)')])
def test_what_users_of_a_tool_hit_is_told_in_one_line(made, to, words):
    told = [line for line in made[to][1] if words in line]
    assert len(told) == 1 and '\n' not in told[0]


# -- read back by the tools, where they are

def installed(name): return importlib.util.find_spec(name) is not None


def test_the_readers_of_the_tools_agree(made):
    "those that are installed: label_studio_sdk, datumaro, datasets, ultralytics; pycocotools always"
    if installed('label_studio_sdk'):
        from label_studio_sdk.converter.brush import decode_rle
        from label_studio_sdk.label_interface import LabelInterface
        out = made['label-studio'][0]
        screen = LabelInterface((out / 'config.xml').read_text(encoding='utf-8'))
        tasks = json.loads((out / 'tasks.json').read_text(encoding='utf-8'))
        assert len(tasks) == len(KEPT) and all(screen.validate_prediction(p) for t in tasks for p in t['predictions'])
        for m in KEPT.values(): assert np.array_equal(decode_rle(studio_rle(m > 0)).reshape(*m.shape, 4)[..., 3] > 0, m > 0)
    if installed('datumaro'):
        import datumaro
        for to in ('coco', 'cvat'):
            data = datumaro.Dataset.import_from(str(made[to][0]), to)
            labels = [l.name for l in data.categories()[datumaro.AnnotationType.label]]
            assert labels == CLASSES
            for item in data:
                again = np.zeros_like(KEPT[item.id])
                for a in item.annotations:
                    if a.type == datumaro.AnnotationType.mask: again[a.image > 0] = a.label + 1
                assert np.array_equal(again, KEPT[item.id])
    if installed('datasets'):
        import datasets
        rows = datasets.load_dataset('imagefolder', data_dir=str(made['hf'][0]), drop_labels=True, cache_dir=str(made['hf'][0].parent / 'cache'))['train']
        for r in rows: assert np.array_equal(np.array(r['mask']), MASKS[r['name']])
    if installed('ultralytics'):
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.data.utils import check_det_dataset, polygon2mask
        said = check_det_dataset(str(made['yolo'][0] / 'data.yaml'))
        data = YOLODataset(img_path=said['train'], data=said, task='segment', augment=False)
        for cache in made['yolo'][0].rglob('*.cache'): cache.unlink()
        name = lambda label: str(Path(label['im_file']).relative_to(said['train']).with_suffix(''))
        assert {name(label) for label in data.labels} == {n for n, m in KEPT.items() if min(m.shape) > 9}  # it takes none below 10 pixels
        assert said['names'] == dict(enumerate(CLASSES))
        for label in data.labels:
            m = KEPT[name(label)]
            h, w = m.shape
            for k in np.unique(m[m > 0]):
                drawn = [polygon2mask((16 * h, 16 * w), [(s * (16 * w, 16 * h)).reshape(-1)])[8::16, 8::16] for c, s in zip(label['cls'][:, 0], label['segments']) if c == k - 1]  # at the middles: it draws the outline itself, too
                assert iou(np.max(drawn, 0) * k, m, k) >= .98
    assert dict(of_coco(made['coco'][0] / 'annotations/instances_default.json')).keys() == KEPT.keys()


# -- pieces

def test_run_lengths_and_outlines_by_hand():
    assert zeros_first(np.array([1, 1, 0])) == [0, 2, 1] and zeros_first(np.zeros(0, int)) == [] and zeros_first(np.array([0])) == [1]
    assert [len(p) for p in loops(np.eye(3, dtype=bool))] == [4, 4, 4]
    (plus,) = polygons(np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool))
    assert len(plus) == 12
    ring = np.ones((3, 3), bool); ring[1, 1] = False
    (p,) = polygons(ring)
    assert (.25, 1.5) in p and len(p) == 12


def test_the_score_is_the_mean_of_the_map():
    maps = ScoreMaps(np.array([0, 3]), np.stack([np.zeros((2, 2)), np.array([[.2, .4], [.6, 1]])]))
    assert score_in(np.array([[1, 1], [0, 0]], bool), 3, maps) == .3 and score_in(np.ones((2, 2), bool), 2, maps) is None and score_in(np.ones((2, 2), bool), 2, None) is None


def lay_down_masks(runs, name='drawn', n=3):
    "What a run with a masks stage leaves: its records, masks and maps"
    data, p = synthetic('val', n=n), dict(data_name='synthetic', data_root='', data_tags='', data_masks='', data_classes='', splits=['val'], limit=n, localiser='', refine=[], threshold=.25)
    for i, image in enumerate(data.names):
        save_mask(runs / f'stages/masks-1/val/{image}.png', data.mask(i))
        tags = np.array(data.records[i].tags)
        save_maps(runs / f'stages/maps-1/{image}.npz', tags, np.stack([(data.mask(i) == t) * .75 for t in tags]).astype(np.float32))
    save_json(runs / 'stages/masks-1/stage.json', dict(stage='masks', folder='masks-1', parameters=p, results=dict(maps=dict(val='maps-1'))))
    save_json(runs / name / 'run.json', dict(name=name, state='done', stages=dict(masks=dict(folder='masks-1', parameters=p)), recipe={}))
    return runs / name


def test_a_run_is_handed_over_with_scores(tmp_path, capsys):
    lay_down_masks(tmp_path)
    assert main(['handover', 'drawn', '--to', 'coco', '--out', str(tmp_path / 'c'), '--runs', str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f'3 pictures with masks, 8 classes: {tmp_path / "c"}\n')
    made = load_json(tmp_path / 'c/annotations/instances_val.json')
    assert {a['score'] for a in made['annotations']} == {.75}
    data = synthetic('val', n=3)
    for name, again in of_coco(tmp_path / 'c/annotations/instances_val.json'): assert np.array_equal(again, np.where(data[name].mask == 255, 0, data[name].mask))
    assert main(['handover', str(tmp_path / 'drawn'), '--to', 'label-studio', '--out', str(tmp_path / 'l'), '--split', 'val']) == 0
    assert {t['predictions'][0]['score'] for t in load_json(tmp_path / 'l/tasks.json')} == {.75}


DEEP = b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b)) for k, b in (  # 16 bits in colour, which Pillow opens as RGB
    (b'IHDR', struct.pack('>2I5B', 4, 4, 16, 2, 0, 0, 0)), (b'IDAT', zlib.compress((b'\0' + bytes(24)) * 4)), (b'IEND', b'')))


def test_tasks_are_written_one_by_one():
    seen, items = [], [dict(a=1), dict(b=['ä', np.int64(2)]), dict(c=None)]
    lines = task_lines(x for x in items if not seen.append(x))
    first = next(lines)
    assert seen == items[:1] and json.loads(first + ''.join(lines)) == [dict(a=1), dict(b=['ä', 2]), dict(c=None)] and json.loads(''.join(task_lines([]))) == []


def test_turned_and_palette_pictures_are_written_anew(tmp_path):
    im = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    exif = Image.Exif(); exif[0x0112] = 6
    (tmp_path / 'p').mkdir()
    im.save(tmp_path / 'p/turned.jpg', exif=exif)
    Image.new('P', (5, 3)).save(tmp_path / 'p/deep.png')
    save_mask(tmp_path / 'm/turned.png', np.ones((6, 4), np.uint8)), save_mask(tmp_path / 'm/deep.png', np.ones((3, 5), np.uint8))
    hand_over(tmp_path / 'm', 'coco', tmp_path / 'c', tmp_path / 'p', 'cat')
    assert {p.name: Image.open(p).size for p in (tmp_path / 'c/images').iterdir()} == {'turned.png': (4, 6), 'deep.png': (5, 3)}


@pytest.mark.parametrize('change, text', [
    (lambda d: (d / 'masks/a.png').write_bytes(b'\x89PNG'), 'a.png: damaged or not a picture'),
    (lambda d: save_mask(d / 'masks/a.png', np.full((4, 4), 7, np.uint8)), 'masks: expected 255 or 0..1, got 7 in a.png'),
    (lambda d: save_mask(d / 'masks/a.png', np.ones((4, 5), np.uint8)), 'is 5x4 (width x height), its image is 4x4'),
    (lambda d: Image.new('RGB', (4, 4)).save(d / 'masks/a.png'), 'is this a colour image rather than a palette PNG?'),
    (lambda d: (d / 'photos/a.png').write_bytes(DEEP), 'photos/a.png: 16 bits a channel'),
    (lambda d: (d / 'photos/a.png').rename(d / 'photos/b.png'), 'images: 1 of 1 masks have no picture of their name in'),
    (lambda d: (d / 'masks/classes.txt').unlink(), 'classes: the ids in the masks have no names; give --classes cat,dog'),
    (lambda d: (d / 'masks/a.png').unlink(), 'is no run, and there is no .png in it'),
    (lambda d: (d / 'out').mkdir() or (d / 'out/x').write_text(''), 'is not empty; delete it, or name another folder.')])
def test_an_odd_source_is_one_line_and_leaves_nothing(tmp_path, capsys, change, text):
    save_mask(tmp_path / 'masks/a.png', np.ones((4, 4), np.uint8))
    (tmp_path / 'masks/classes.txt').write_text('cat')
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (4, 4)).save(tmp_path / 'photos/a.png')
    change(tmp_path)
    before = sorted(p for p in tmp_path.rglob('*'))
    assert main(['handover', str(tmp_path / 'masks'), '--to', 'yolo', '--out', str(tmp_path / 'out'), '--images', str(tmp_path / 'photos')]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count('\n') == 1 and sorted(p for p in tmp_path.rglob('*')) == before


def test_a_run_without_masks_or_of_another_split_is_told(tmp_path):
    run = lay_down_masks(tmp_path)
    for kw, text in ((dict(splits=['train']), "split of run drawn: unknown name 'train'"), (dict(to='cvatt'), "to: unknown name 'cvatt'. Did you mean 'cvat'?")):
        with pytest.raises(UserError, match=text): hand_over(run, **{**dict(to='coco', out=tmp_path / 'o'), **kw})
    save_json(tmp_path / 'bare/run.json', dict(name='bare', state='done', stages={}))
    with pytest.raises(UserError, match='run bare has no masks'): hand_over(tmp_path / 'bare', 'coco', tmp_path / 'o')
