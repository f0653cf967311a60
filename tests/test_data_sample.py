"wsss_nb.data.pixels and wsss_nb.data.sample: pictures of every kind, broken ones, records, score maps"
import io
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from wsss_nb.base.core import UserError
from wsss_nb.data.sample import Data, Record, as_image, file_ends, image_size, load_maps, read_image, read_mask, save_maps, save_mask

CLASSES = [f'class{k}' for k in range(1, 21)]


def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(width, height, depth, kind, rows, *chunks):
    "A PNG file made by hand"
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0)) + b''.join(chunk(*c) for c in chunks)
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + r for r in rows))) + chunk(b'IEND', b''))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path, picture):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9], mask[20:] = 15, 255
    for n in 'abc':
        Image.fromarray(picture).save(tmp_path/f'{n}.png')
        save_mask(tmp_path/f'{n}_mask.png', mask)
    return Data([Record(n, tmp_path/f'{n}.png', t, tmp_path/f'{n}_mask.png') for n, t in zip('abc', [(15,), (1, 15), ()])], CLASSES, 'toy', 'train')


def test_rgb_is_exact_and_writable(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path/'a.png')
    got = read_image(tmp_path/'a.png')
    got[0] = 0
    assert (got[1:] == picture[1:]).all()


def test_hand_made_files(tmp_path):
    (tmp_path/'palette.png').write_bytes(png(3, 1, 8, 3, [bytes([0, 1, 2])], (b'PLTE', bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))))
    assert read_image(tmp_path/'palette.png').tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert read_mask(tmp_path/'palette.png').tolist() == [[0, 1, 2]]
    (tmp_path/'two bits.png').write_bytes(png(4, 1, 2, 3, [bytes([0b00011011])], (b'PLTE', bytes(12))))
    assert read_mask(tmp_path/'two bits.png', 20, (1, 4)).tolist() == [[0, 1, 2, 3]]
    (tmp_path/'sixteen.png').write_bytes(png(3, 1, 16, 0, [struct.pack('>3H', 0, 25599, 65535)]))
    with pytest.raises(UserError, match='sixteen.png: 16 bits a channel, of which nobody says what is black and what is white; export it with 8 bits'): read_image(tmp_path/'sixteen.png')
    (tmp_path/'deep.png').write_bytes(png(1, 1, 16, 2, [struct.pack('>3H', 0, 25599, 65535)]))  # Pillow would drop the lower bytes
    with pytest.raises(UserError, match='deep.png: 16 bits a channel'): read_image(tmp_path/'deep.png')
    (tmp_path/'alpha.png').write_bytes(png(3, 1, 8, 6, [bytes([9, 8, 7, 255, 9, 8, 7, 0, 0, 0, 0, 128])]))
    assert read_image(tmp_path/'alpha.png').tolist() == [[[9, 8, 7], [255] * 3, [127] * 3]]
    (tmp_path/'clear.png').write_bytes(png(2, 1, 8, 3, [bytes([0, 1])], (b'PLTE', bytes([9, 9, 9, 5, 6, 7])), (b'tRNS', bytes([0]))))
    assert read_image(tmp_path/'clear.png').tolist() == [[[255] * 3, [5, 6, 7]]]


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'CMYK', 'YCbCr'])
def test_every_mode_gives_rgb(tmp_path, mode):
    level = 255 if mode == '1' else 200
    Image.new('L', (7, 5), level).convert(mode).save(tmp_path/'a.tif')
    got = read_image(tmp_path/'a.tif')
    assert got.shape == (5, 7, 3) and got.dtype == np.uint8 and abs(int(got.mean()) - level) <= 1


@pytest.mark.parametrize('how', [dict(tiffinfo={33550: (1., 1., 0.)}), dict(tiffinfo={34735: (1, 1, 0, 0)})])
def test_a_geotiff_is_refused_wherever_a_picture_goes_in(tmp_path, how):
    Image.new('RGB', (4, 4)).save(tmp_path/'map.tif', **how)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path/'deep.tif')
    says = dict(map='a GeoTIFF, whose places on the earth a mask as PNG would lose', deep='16 bits a channel')
    for name, what in says.items():
        with pytest.raises(UserError, match=what): read_image(tmp_path/f'{name}.tif')
        with pytest.raises(UserError, match=what): as_image(tmp_path/f'{name}.tif')
        with pytest.raises(UserError, match=f'image: {what}'): as_image(Image.open(tmp_path/f'{name}.tif'))
        with pytest.raises(UserError, match=what): Data([Record('a', tmp_path/f'{name}.tif', (1,))], CLASSES)[0]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, picture, orientation):
    turn = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a)}[orientation]  # what the flag asks a viewer to do
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path/'a.png', exif=exif)
    assert (read_image(tmp_path/'a.png') == turn(picture)).all() and image_size(tmp_path/'a.png') == turn(picture).shape[:2]


LYING = {  # what a PNG may say of how it lies: turned by a quarter
    'Exif': lambda exif: chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0')),
    'hex text': lambda exif: chunk(b'tEXt', b'Raw profile type exif\0\nexif\n%8d\n' % len(exif.tobytes()) + exif.tobytes().hex().encode() + b'\n'),
    'XMP': lambda exif: chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    'words': lambda exif: chunk(b'tEXt', b'Comment\0it lies as it is'),
}


@pytest.mark.parametrize('behind', [False, True])
@pytest.mark.parametrize('way', LYING)
def test_the_size_of_a_png_follows_what_it_says_before_or_behind_its_pixels(tmp_path, way, behind, monkeypatch):
    exif, file = Image.Exif(), tmp_path / 'a.png'
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(file)
    raw = file.read_bytes()
    at = raw.index(b'IEND') - 4 if behind else raw.index(b'IDAT') - 4
    file.write_bytes(raw[:at] + LYING[way](exif) + raw[at:])
    assert image_size(file) == read_image(file).shape[:2] == ((20, 31) if way == 'words' else (31, 20))
    if way == 'words':  # nothing but Exif is worth decoding the pixels
        monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', lambda im: pytest.fail('decoded'))
        assert image_size(file) == (20, 31)


@pytest.mark.parametrize('size', [(1, 1), (6000, 4000)])
def test_smallest_and_large(tmp_path, size):
    Image.new('RGB', size, 'teal').save(tmp_path/'a.jpg')
    Image.new('P', size).save(tmp_path/'a.png')
    s = Data([Record('a', tmp_path/'a.jpg', (1,), tmp_path/'a.png')], CLASSES)[0]
    assert s.image.shape == (*size[::-1], 3) and s.mask.shape == size[::-1]


@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'bmp', 'tif'])
def test_truncated_images_are_named(tmp_path, picture, ending):
    Image.fromarray(picture).save(tmp_path/f'a.{ending}')
    whole = (tmp_path/f'a.{ending}').read_bytes()
    for n in (0, 3, 30, len(whole) // 2):
        (tmp_path/f'b.{ending}').write_bytes(whole[:n])
        with pytest.raises(UserError, match=rf'b\.{ending}: damaged or not a picture .*fetch or export this image again'): read_image(tmp_path/f'b.{ending}')


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match='x.jpg: no such image'): read_image(tmp_path/'x.jpg')
    with pytest.raises(UserError, match='damaged or not a picture'): read_image(tmp_path)
    Image.fromarray(np.full((4, 4), .5, np.float32)).save(tmp_path/'f.tif')
    with pytest.raises(UserError, match='f.tif: expected 8 bits a channel, got floating point'): read_image(tmp_path/'f.tif')


def test_saved_mask_is_a_voc_palette_png(tmp_path):
    ids = np.arange(256, dtype=np.int64).reshape(16, 16)
    save_mask(tmp_path/'m.png', ids)
    im = Image.open(tmp_path/'m.png')
    assert im.mode == 'P' and im.format == 'PNG' and (np.array(im) == ids).all() and (read_mask(tmp_path/'m.png') == ids).all()
    bits = lambda k, c: sum((k >> 3 * j + c & 1) << 7 - j for j in range(8))
    assert im.getpalette() == [bits(k, c) for k in range(256) for c in range(3)]
    for bad in (ids + 1, ids.astype(float), ids[0]):
        with pytest.raises(ValueError, match='expected integers 0..255'): save_mask(tmp_path/'m.png', bad)


def test_masks_that_are_refused(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path/'2007_000032.png')
    with pytest.raises(UserError, match=r'got mode RGB in .*2007_000032.png; is this a colour image rather than a palette PNG\? Save ids as palette PNG\.$'): read_mask(tmp_path/'2007_000032.png')
    save_mask(tmp_path/'m.png', np.eye(8, dtype=int) * 20)
    Image.open(tmp_path/'m.png').convert('RGB').save(tmp_path/'drawn.png')
    with pytest.raises(UserError, match='All its colours are VOC palette colours'): read_mask(tmp_path/'drawn.png')
    save_mask(tmp_path/'2007_000032.png', np.full((8, 8), 37))
    with pytest.raises(UserError, match=r'masks: expected 255 or 0\.\.20, got 37 in 2007_000032\.png; is this a colour image rather than a palette PNG\?'): read_mask(tmp_path/'2007_000032.png', 20)
    assert read_mask(tmp_path/'2007_000032.png', 37).max() == 37
    with pytest.raises(UserError, match=r'is 8x8 \(width x height\), its image is 9x8'): read_mask(tmp_path/'m.png', 20, (8, 9))
    Image.new('L', (8, 8)).save(tmp_path/'m.jpg')
    Image.new('1', (8, 8)).save(tmp_path/'one.png')
    for f, what in (('m.jpg', 'JPEG of mode L'), ('one.png', 'PNG of mode 1')):
        with pytest.raises(UserError, match=f'expected an 8-bit palette or grey PNG of class ids, got {what}'): read_mask(tmp_path/f)
    with pytest.raises(UserError, match='none.png: no such mask'): read_mask(tmp_path/'none.png')


def test_sbd_masks(tmp_path):
    scipy_io = pytest.importorskip('scipy.io')
    ids = np.array([[0, 3], [3, 20]], np.uint8)
    scipy_io.savemat(tmp_path/'2008_000002.mat', {'GTcls': {'Segmentation': ids, 'Boundaries': np.zeros(1)}})
    assert (read_mask(tmp_path/'2008_000002.mat', 20) == ids).all()
    (tmp_path/'bad.mat').write_bytes(b'nothing of the kind')
    with pytest.raises(UserError, match='bad.mat: not a class file of SBD'): read_mask(tmp_path/'bad.mat')


def test_data_access(data, picture):
    s = data['b']
    assert (s.name, s.tags) == ('b', (1, 15)) and (s.image == picture).all() and set(np.unique(s.mask)) == {0, 15, 255}
    assert [x.name for x in data] == data.names == ['a', 'b', 'c'] and data[-1].name == 'c' and data[np.int64(1)].name == 'b'
    assert (data.image('b') == picture).all() and data.mask('b').shape == (30, 40)
    want = torch.zeros(3, 20)
    want[0, 14] = want[1, 0] = want[1, 14] = 1
    assert data.labels.dtype == torch.float32 and torch.equal(data.labels, want)
    assert data.has_masks and not Data([data.records[0], data.records[1]._replace(mask=None)], CLASSES).has_masks
    with pytest.raises(IndexError): data[3]
    with pytest.raises(UserError, match="toy train: no image is called 'x'"): data['x']


def test_subset_and_pickle(data):
    part = data.subset(['c', 'a'])
    assert part.names == ['c', 'a'] and part.index('a') == 1 and data.names == ['a', 'b', 'c'] and data.subset(range(2)).names == ['a', 'b']
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint() == data.fingerprint() and again.records == data.records
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)))
    assert batch.name == 'a' and tuple(batch.image.shape) == (30, 40, 3)


def test_labels_need_tags(data):
    part = Data([r._replace(tags=None) for r in data.records] * 1, CLASSES, 'toy', 'train')
    assert part[0].tags is None
    with pytest.raises(UserError, match=r'toy train: 3 of 3 images have no tags \(a, b, c\); add them to the tags file'): part.labels


def test_bad_records(data):
    a, b, _ = data.records
    with pytest.raises(UserError, match=re.escape(f"two images are called 'a': {a.image} and {b.image}")): Data([a, b._replace(name='a')], CLASSES, 'toy')
    with pytest.raises(UserError, match='toy val: the split has no images'): Data([], CLASSES, 'toy', 'val')
    with pytest.raises(UserError, match=r"tags of 'a' are \(21,\), expected ids 1..20"): Data([a._replace(tags=(21,))], CLASSES)


def test_fingerprint_follows_content(data, tmp_path):
    first = data.fingerprint()
    moved = tmp_path/'elsewhere'
    moved.mkdir()
    for p in tmp_path.glob('*.png'): (moved/p.name).write_bytes(p.read_bytes())
    assert Data([r._replace(image=moved/r.image.name, mask=moved/r.mask.name) for r in data.records], CLASSES).fingerprint() == first
    others = [data.subset([1, 0, 2]), data.subset([0, 1]), Data(data.records, CLASSES[::-1]), Data([data.records[0]._replace(tags=(1,)), *data.records[1:]], CLASSES),
              Data([data.records[0]._replace(mask=None), *data.records[1:]], CLASSES)]
    prints = [d.fingerprint() for d in others]
    with open(data.records[1].mask, 'ab') as f: f.write(b'x')
    assert len({first, *prints, data.fingerprint()}) == len(others) + 2
    data.records[0].image.unlink()
    with pytest.raises(UserError, match='a.png: cannot be read'): data.fingerprint()


def test_ends_of_large_files(tmp_path):
    prints = []
    for at in (None, 0, 4095, -1, -4096):
        content = bytearray(20000)
        if at is not None: content[at] = 1
        (tmp_path/'f').write_bytes(content)
        prints.append(file_ends(tmp_path/'f'))
    assert len(set(prints)) == 5 and all(len(p) == 5 + 8192 for p in prints)


def test_score_maps(tmp_path):
    maps = torch.rand(3, 5, 7, requires_grad=True)
    for dtype, eps in (('float16', 5e-4), ('float32', 0)):
        save_maps(tmp_path/'m.npz', (0, 3, 15), maps, dtype)
        got = load_maps(tmp_path/'m.npz')
        assert got.keys.tolist() == [0, 3, 15] and got.maps.dtype == dtype and np.abs(got.maps - maps.detach().numpy()).max() <= eps
    with np.load(tmp_path/'m.npz', allow_pickle=False) as z: assert set(z) == {'keys', 'maps'}


@pytest.mark.parametrize('keys, shape', [((1, 2), (3, 4, 4)), ((1, 1), (2, 4, 4)), ((1, 0), (2, 4, 4)), ((1,), (4, 4))])
def test_score_maps_that_do_not_fit(tmp_path, keys, shape):
    with pytest.raises(UserError, match=r'expected distinct `keys` \[C\] \(0 first\)'): save_maps(tmp_path/'m.npz', keys, np.zeros(shape))
    assert not list(tmp_path.iterdir())


def test_broken_score_maps(tmp_path):
    with pytest.raises(UserError, match='nan, or numbers beyond float16'): save_maps(tmp_path/'m.npz', [1], np.full((1, 2, 2), 1e6))
    with pytest.raises(UserError, match='expected dtype float16 or float32'): save_maps(tmp_path/'m.npz', [1], np.zeros((1, 2, 2)), 'int8')
    with pytest.raises(UserError, match='no such score maps'): load_maps(tmp_path/'m.npz')
    save_maps(tmp_path/'m.npz', [1], np.random.rand(1, 50, 50))
    whole = (tmp_path/'m.npz').read_bytes()
    pickled = io.BytesIO()
    np.savez(pickled, keys=np.array([{}], object), maps=np.zeros((1, 2, 2)))
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for bad in (whole[:100], whole[:-50], whole[:300] + bytes(100) + whole[400:], b'', b'text', pickled.getvalue(), single.getvalue()):
        Path(tmp_path/'b.npz').write_bytes(bad)
        with pytest.raises(UserError, match='b.npz: damaged or not score maps .*delete the file and run its stage again'): load_maps(tmp_path/'b.npz')
