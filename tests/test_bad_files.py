"""Files by the hundred with bits flipped, cut off or filled with nonsense: each is read as it was, or refused in one line that names it."""
import io
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.base.core import UserError, load_json, save_json
from wsss_nb.data.exports import read_export
from wsss_nb.data.keywords import words_of
from wsss_nb.data.maps import load_maps, save_maps
from wsss_nb.data.pixels import image_size, read_image, read_mask, save_mask
from wsss_nb.data.tags import read_tags
from wsss_nb.engine.checkpoint import read_checkpoint

HOW_MANY = pytest.mark.parametrize('n', [40, pytest.param(1000, marks=pytest.mark.slow)])


def same(a, b):
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def damaged(good, n, seed=0):
    "`n` times these bytes with one to eight bits flipped, cut off, with a piece of zeros, or with a piece twice"
    draw = random.Random(seed)
    for k in range(n):
        bytes_, at, end = bytearray(good), draw.randrange(len(good)), draw.randrange(len(good))
        if k % 4 == 3: bytes_[at:] = [b'', bytes(64), good[end:end + 64]][k // 4 % 3]
        else:
            for _ in range(draw.choice([1, 1, 8])): bytes_[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        yield bytes(bytes_)


def refused_or(read, path, good, n, right):
    "Read every damaged file; returns how many were refused, each in one line with the file's name"
    refused = 0
    for bad in damaged(good, n):
        path.write_bytes(bad)
        try: assert right(read(path)), f'a damaged file was taken: {[i for i, (a, b) in enumerate(zip(bad, good)) if a != b][:8]} of {len(good)}'
        except UserError as e:
            refused += 1
            assert path.name in str(e) and '\n' not in str(e) and len(str(e)) < 1000
    return refused


@HOW_MANY
def test_score_maps_are_as_they_were_written_or_refused(tmp_path, n):
    maps = np.random.default_rng(0).random((2, 9, 7)).astype('float16')
    save_maps(tmp_path / 'a.npz', [1, 3], maps)
    right = lambda m: m.keys.tolist() == [1, 3] and np.array_equal(m.maps, maps)
    assert right(load_maps(tmp_path / 'a.npz')) and refused_or(load_maps, tmp_path / 'a.npz', (tmp_path / 'a.npz').read_bytes(), n, right) > n / 2


@HOW_MANY
def test_checkpoints_are_as_they_were_written_or_refused(tmp_path, n):
    torch.manual_seed(0)
    state = dict(net={f'{k}.weight': torch.randn(8, 9) for k in 'abc'}, settings=dict(parameters=dict(lr=.1), names=['a', 'b']), step=3, history=[dict(loss=.5)])
    torch.save(state, tmp_path / 'checkpoint.pt')
    assert same(read_checkpoint(tmp_path / 'checkpoint.pt'), state)
    assert refused_or(read_checkpoint, tmp_path / 'checkpoint.pt', (tmp_path / 'checkpoint.pt').read_bytes(), n, lambda found: same(found, state)) > n / 3


@HOW_MANY
def test_records_are_json_or_refused(tmp_path, n):
    save_json(tmp_path / 'stage.json', dict(stage='train', text='ä' * 40, results=dict(loss=[1.5, 2])))
    assert refused_or(load_json, tmp_path / 'stage.json', (tmp_path / 'stage.json').read_bytes(), n, lambda x: True) > n / 3


def encoded(kind):
    draw, out = np.random.default_rng(1), io.BytesIO()
    rgb = Image.fromarray(draw.integers(0, 255, (20, 31, 3), dtype=np.uint8))
    pictures = dict(jpg=lambda: rgb.save(out, 'JPEG', exif=turned(6)), png=lambda: rgb.save(out, 'PNG'), gif=lambda: rgb.quantize(16).save(out, 'GIF'), webp=lambda: rgb.save(out, 'WEBP'), cmyk=lambda: rgb.convert('CMYK').save(out, 'JPEG'),
                    grey=lambda: rgb.convert('L').save(out, 'PNG'), tif=lambda: rgb.save(out, 'TIFF', compression='tiff_lzw'))
    pictures[kind]()
    return out.getvalue()


def turned(k):
    exif = Image.Exif()
    exif[0x0112] = k
    return exif


@HOW_MANY
@pytest.mark.parametrize('kind', ['jpg', 'png', 'gif', 'webp', 'cmyk', 'grey', 'tif'])
@pytest.mark.filterwarnings('ignore')
def test_pictures_are_arrays_or_refused(tmp_path, kind, n):
    good, file = encoded(kind), tmp_path / f'a.{dict(cmyk="jpg", grey="png").get(kind, kind)}'
    file.write_bytes(good)
    assert read_image(file).shape == (*image_size(file), 3) == ((31, 20, 3) if kind == 'jpg' else (20, 31, 3))
    right = lambda x: x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3
    refused_or(read_image, file, good, n, right), refused_or(image_size, file, good, n, lambda size: len(size) == 2 and min(size) > 0)


@HOW_MANY
@pytest.mark.filterwarnings('ignore')
def test_masks_hold_ids_of_classes_or_are_refused(tmp_path, n):
    mask = np.random.default_rng(0).integers(0, 4, (13, 17))
    save_mask(tmp_path / 'a.png', mask)
    right = lambda x: x.shape == (13, 17) and set(np.unique(x)) <= {0, 1, 2, 3, 255}
    assert refused_or(lambda p: read_mask(p, 3, (13, 17)), tmp_path / 'a.png', (tmp_path / 'a.png').read_bytes(), n, right) > n / 2


@HOW_MANY
@pytest.mark.parametrize('name, text', [('tags.csv', 'image,tags\na.jpg,dog;cat\n"b, c.jpg",none\nd.jpg,cat\n'), ('tags.csv', 'image,dog,cat\na.jpg,1,0\nb.jpg,0,1\n'), ('tags.json', '{"a.jpg": ["dog", "cat"], "b.jpg": [], "c.jpg": ["cat"]}')])
def test_tags_are_ids_or_refused(tmp_path, name, text, n):
    right = lambda tags: all(t is None or set(t) <= {1, 2} for t in tags.values())
    (tmp_path / name).write_text(text)
    assert right(read_tags(tmp_path / name, ['cat', 'dog']))
    refused_or(lambda p: read_tags(p, ['cat', 'dog']), tmp_path / name, text.encode(), n, right)


EXPORTS = {
    'studio.json': '[{"id": 1, "data": {"image": "/data/upload/3/1f2e3d4c-rex.jpg"}, "annotations": [{"was_cancelled": false, "result": [{"type": "choices", "value": {"choices": ["dog"]}}, {"type": "taxonomy", "value": {"taxonomy": [["animal", "cat"]]}}]}]}]',
    'coco.json': '{"images": [{"id": 7, "file_name": "rex.jpg"}], "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}], "annotations": [{"image_id": 7, "category_id": 3}, {"image_id": 7, "category_id": 1}]}',
    'labelme.json': '{"version": "5.4.1", "flags": {"dog": true, "cow": false}, "shapes": [{"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle", "flags": {}}], "imagePath": "rex.jpg", "imageData": null}',
    'cvat.xml': '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><image id="0" name="rex.jpg" width="60" height="40"><tag label="dog" source="manual"/><box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/></image></annotations>'}


@HOW_MANY
@pytest.mark.parametrize('name', EXPORTS)
def test_exports_are_words_of_pictures_or_refused(tmp_path, name, n):
    def right(x):
        said = x[1] or {}
        return all(isinstance(k, str) and all(isinstance(w, str) and w for row in rows for w in row) for k, rows in said.items())
    (tmp_path / name).write_text(EXPORTS[name])
    assert [sorted(row[-1] for row in rows) for rows in read_export(tmp_path / name)[1].values()] == [['cat', 'dog']]
    refused_or(read_export, tmp_path / name, EXPORTS[name].encode(), n, right)


@HOW_MANY
@pytest.mark.parametrize('kind', ['jpg', 'webp', 'tif', 'xmp'])
def test_keywords_are_words_or_the_packet_is_refused(tmp_path, kind, n):
    packet = b'<x xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><r:Bag><r:li>dog</r:li><r:li>cat</r:li></r:Bag></dc:subject></x>'
    out = io.BytesIO()
    if kind == 'xmp': out.write(packet)
    else: Image.new('RGB', (16, 12)).save(out, dict(jpg='JPEG', webp='WEBP', tif='TIFF')[kind], **dict(tiffinfo={700: packet}) if kind == 'tif' else dict(xmp=packet))
    (tmp_path / 'a.jpg').write_bytes(b'')
    path = tmp_path / f'a.{kind}'
    read = lambda p: words_of(tmp_path / 'a.jpg' if kind == 'xmp' else p)[0]
    right = lambda words: all(isinstance(w, str) and w for row in words.rows for w in row)
    path.write_bytes(out.getvalue())
    assert read(path).rows == (('cat',), ('dog',))
    refused_or(read, path, out.getvalue(), n, right)


@pytest.mark.parametrize('size', [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', '1', 'CMYK', 'LA'])
def test_pictures_of_every_mode_and_of_odd_sizes(tmp_path, size, mode):
    file = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    (Image.new('L', size, 200).convert('P') if mode == 'P' else Image.new(mode, size)).save(file)
    assert read_image(file).shape == (size[1], size[0], 3) and image_size(file) == size[::-1]


@pytest.mark.parametrize('k', range(1, 9))
def test_a_picture_is_upright_whatever_its_exif_says(tmp_path, k):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=turned(k))
    upright = [None, pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.T, pixels.T[:, ::-1], pixels.T[::-1, ::-1], pixels.T[::-1]][k]
    assert np.array_equal(read_image(tmp_path / 'a.png')[..., 0], upright) and image_size(tmp_path / 'a.png') == upright.shape


def test_a_picture_that_claims_to_be_enormous_is_refused_before_it_is_read(tmp_path):
    import struct
    import zlib
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    png = lambda *chunks: b'\x89PNG\r\n\x1a\n' + b''.join(chunks)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
    (tmp_path / 'bomb.png').write_bytes(png(header, chunk(b'IDAT', zlib.compress(bytes(10**6))), chunk(b'IEND', b'')))
    for read in (read_image, image_size, read_mask):
        with pytest.raises(UserError, match='bomb.png: the .* is too large to read .*; make it smaller'): read(tmp_path / 'bomb.png')
    small = chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0))
    (tmp_path / 'text.png').write_bytes(png(small, chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**27), 9)), chunk(b'IDAT', zlib.compress(b'\0\7')), chunk(b'IEND', b'')))
    with pytest.raises(UserError, match='text.png: damaged or not a picture'): read_image(tmp_path / 'text.png')


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    "A maps file of some kilobytes whose array claims terabytes"
    import zipfile
    header = np.lib.format.magic(1, 0), "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1000000, 1000000), }".ljust(117) + '\n'
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as z:
        z.writestr('keys.npy', (lambda b: (np.save(b, np.array([1, 2])), b.getvalue())[1])(io.BytesIO()))
        z.writestr('maps.npy', header[0] + len(header[1]).to_bytes(2, 'little') + header[1].encode() + bytes(1000))
    with pytest.raises(UserError, match=re.escape('a.npz: damaged or not score maps')): load_maps(tmp_path / 'a.npz')
