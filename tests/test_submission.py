"""The zip for the VOC server: its exact bytes, and every way in which it can be wrong."""
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.data.sample import save_mask
from wsss_nb.data.submission import check_submission, finding_lines, write_submission
from wsss_nb.data.voc import voc12

IDS = ['2008_000006', '2008_000011', '2009_000001', '2011_003287']
SIZES = [(500, 375), (333, 500), (7, 5), (1, 1)]  # width, height
PLACE = 'results/VOC2012/Segmentation/comp6_test_cls'
PALETTE = np.load(Path(__file__).parent / 'goldens/palette.npz')


@pytest.fixture
def kit(tmp_path):
    "A development kit of four test images, and their masks in tmp_path/masks"
    voc, draw = tmp_path / 'VOCdevkit/VOC2012', np.random.default_rng(0)
    for f in ('JPEGImages', 'ImageSets/Segmentation'): (voc / f).mkdir(parents=True)
    (voc / 'ImageSets/Segmentation/test.txt').write_text('\n'.join(IDS) + '\n')
    for n, (w, h) in zip(IDS, SIZES):
        Image.new('RGB', (w, h), 'teal').save(voc / f'JPEGImages/{n}.jpg')
        save_mask(tmp_path / f'masks/{n}.png', draw.integers(1, 21, (h, w)))
    return voc12(tmp_path, 'test')


def png(mask, mode='P', palette=None, **how):
    "A PNG of an array, written by Pillow alone"
    im, out = Image.fromarray(np.asarray(mask, np.uint8)), io.BytesIO()
    if mode == 'P': im.putpalette(bytes(range(256)) * 3 if palette is None else palette)
    else: im = im.convert(mode)
    im.save(out, format='PNG', **how)
    return out.getvalue()


def voc_png(mask, **how): return png(mask, palette=np.asarray(PALETTE['voc256'], np.uint8).tobytes(), **how)


def zipped(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name, raw in files.items(): z.writestr(name, raw)
    return path


def good_files(place=PLACE): return {f'{place}/{n}.png': voc_png(np.full((h, w), 3)) for n, (w, h) in zip(IDS, SIZES)}


def kinds(findings): return {(f.kind, f.name) for f in findings if f.refused}


def test_the_zip_has_the_layout_and_the_pngs_are_indexed(kit, tmp_path):
    out = write_submission(tmp_path / 'masks', kit, tmp_path / 'out/s.zip')
    with zipfile.ZipFile(out) as z:
        assert z.namelist() == [f'{PLACE}/{n}.png' for n in IDS] and z.testzip() is None
        for n, (w, h) in zip(IDS, SIZES):
            raw = z.read(f'{PLACE}/{n}.png')
            assert struct.unpack('>IIBB', raw[16:26]) == (w, h, 8, 3)  # width, height, bits, indexed
            assert raw[raw.index(b'PLTE') + 4:][:768] == np.asarray(PALETTE['voc256'], np.uint8).tobytes()
            assert np.array_equal(Image.open(io.BytesIO(raw)), Image.open(tmp_path / f'masks/{n}.png'))
    assert check_submission(out, kit) == []
    assert zipfile.ZipFile(write_submission(tmp_path / 'masks', IDS, tmp_path / 'c.zip', 'comp5_test_cls')).namelist()[0] == f'results/VOC2012/Segmentation/comp5_test_cls/{IDS[0]}.png'


@pytest.mark.parametrize('change, text', [
    (lambda m: (m / f'{IDS[1]}.png').unlink(), r'masks lacks 1 of 4 test images \(2008_000011\)'),
    (lambda m: save_mask(m / f'{IDS[0]}.png', np.ones((375, 499), int)), '2008_000006.png is 499x375 .*its image is 500x375'),
    (lambda m: save_mask(m / f'{IDS[0]}.png', np.full((375, 500), 21)), 'expected 255 or 0..20, got 21 in 2008_000006.png'),
    (lambda m: save_mask(m / f'{IDS[3]}.png', np.full((1, 1), 255)), r'2011_003287.png: 1 pixels are 255 \(undecided\)'),
    (lambda m: Image.new('RGB', (500, 375)).save(m / f'{IDS[0]}.png'), 'got mode RGB in .*2008_000006.png'),
    (lambda m: (m / f'{IDS[0]}.png').write_bytes((m / f'{IDS[0]}.png').read_bytes()[:500]), '2008_000006.png: damaged'),
])
def test_masks_that_cannot_be_sent_are_named_and_no_zip_is_left(kit, tmp_path, change, text):
    change(tmp_path / 'masks')
    with pytest.raises(UserError, match=text): write_submission(tmp_path / 'masks', kit, tmp_path / 'out/s.zip')
    assert not list((tmp_path / 'out').iterdir() if (tmp_path / 'out').exists() else [])


A, B = (f'{PLACE}/{n}.png' for n in IDS[:2])
ONE = np.full((375, 500), 3)
BAD = dict(
    missing=(lambda f: f.pop(A), {('missing image', IDS[0])}),
    rgb=(lambda f: f.update({A: png(ONE, 'RGB')}), {('not indexed', f'{IDS[0]}.png')}),
    rgba=(lambda f: f.update({A: png(ONE, 'RGBA')}), {('not indexed', f'{IDS[0]}.png')}),
    grey=(lambda f: f.update({A: png(ONE, 'L')}), {('not indexed', f'{IDS[0]}.png')}),
    grey16=(lambda f: f.update({A: png(ONE, 'I;16')}), {('not indexed', f'{IDS[0]}.png')}),
    size=(lambda f: f.update({A: voc_png(ONE.T)}), {('wrong size', f'{IDS[0]}.png')}),
    beyond=(lambda f: f.update({A: voc_png(ONE + 18)}), {('wrong id', f'{IDS[0]}.png')}),
    void=(lambda f: f.update({A: voc_png(ONE + 252)}), {('wrong id', f'{IDS[0]}.png')}),
    cut=(lambda f: f.update({A: f[A][:-40]}), {('damaged file', f'{IDS[0]}.png')}),
    header_alone=(lambda f: f.update({A: f[A][:20]}), {('damaged file', f'{IDS[0]}.png')}),
    empty=(lambda f: f.update({A: b''}), {('damaged file', f'{IDS[0]}.png')}),
    jpeg=(lambda f: f.update({A: b'\xff\xd8\xff\xe0 a photograph'}), {('damaged file', f'{IDS[0]}.png')}),
    prefix=(lambda f: f.update({f'{PLACE}/pred_{IDS[0]}.png': f.pop(A)}), {('wrong name', f'pred_{IDS[0]}.png'), ('missing image', IDS[0])}),
    capitals=(lambda f: f.update({f'{PLACE}/{IDS[0]}.PNG': f.pop(A)}), {('wrong name', f'{IDS[0]}.PNG')}),
    unknown=(lambda f: f.update({f'{PLACE}/2007_000032.png': f[A]}), {('unknown image', '2007_000032.png')}),
    shadow=(lambda f: f.update({f'__MACOSX/{PLACE}/._{IDS[0]}.png': b'x', f'{PLACE}/.DS_Store': b'x'}), {('extra file', f'__MACOSX/{PLACE}/._{IDS[0]}.png'), ('extra file', f'{PLACE}/.DS_Store')}),
    notes=(lambda f: f.update({'readme.txt': b'hello'}), {('extra file', 'readme.txt')}),
    nested=(lambda f: f.update({'results.zip': b'PK'}), {('archive in it', 'results.zip')}),
    backslash=(lambda f: f.update({A.replace('/', '\\'): f.pop(A)}), {('wrong name', A.replace('/', '\\')), ('missing image', IDS[0])}),
)


@pytest.mark.parametrize('case', BAD)
def test_what_the_server_would_refuse(kit, tmp_path, case):
    files, (spoil, expected) = good_files(), BAD[case]
    assert check_submission(zipped(tmp_path / 'good.zip', files), kit) == []
    spoil(files)
    assert kinds(check_submission(zipped(tmp_path / 'bad.zip', files), kit)) == expected


@pytest.mark.parametrize('place', ['VOC2012/Segmentation/comp6_test_cls', f'submission/{PLACE}', '.', 'results/VOC2012/Segmentation/comp6_test', 'results/VOC2012/segmentation/comp6_test_cls'])
def test_a_wrong_folder_is_one_finding_and_its_files_are_looked_at(kit, tmp_path, place):
    files = good_files(place)
    files[f'{place}/{IDS[0]}.png'] = png(ONE, 'RGB')
    assert kinds(check_submission(zipped(tmp_path / 'bad.zip', files), kit)) == {('wrong folder', place), ('not indexed', f'{IDS[0]}.png')}


def test_both_competitions_in_one_zip_are_checked_each(kit, tmp_path):
    other = good_files(PLACE.replace('comp6', 'comp5'))
    assert check_submission(zipped(tmp_path / 'a.zip', good_files() | other), kit) == []
    other.popitem()
    assert kinds(check_submission(zipped(tmp_path / 'a.zip', good_files() | other), kit)) == {('missing image', IDS[3])}


def test_remarks_are_no_refusals(kit, tmp_path):
    files = good_files()
    files[A], files[B] = png(ONE), voc_png(np.ones((500, 333)), bits=4)
    found = check_submission(zipped(tmp_path / 'a.zip', files), kit)
    assert not kinds(found) and {(f.kind, f.name) for f in found} == {('other palette', f'{IDS[0]}.png'), ('bit depth', f'{IDS[1]}.png')}
    blank = {k: voc_png(np.zeros((h, w))) for k, (w, h) in zip(good_files(), SIZES)}
    found = check_submission(zipped(tmp_path / 'b.zip', blank), kit)
    assert not kinds(found) and {f.kind for f in found} == {'only background'}
    assert check_submission(zipped(tmp_path / 'c.zip', files | {A: blank[A], B: blank[B]}), kit) == []


def test_what_is_no_zip_is_told(tmp_path, kit):
    good = zipped(tmp_path / 'good.zip', good_files()).read_bytes()
    for raw, text in ((b'', 'empty'), (good[:200], 'damaged, cut off'), (b'\x1f\x8b\x08tar', 'tar.gz'), (b'<html>', 'something else')):
        (tmp_path / 'a.zip').write_bytes(raw)
        found, = check_submission(tmp_path / 'a.zip')
        assert (found.kind, found.name) == ('not a zip', 'a.zip') and text in found.text
    with pytest.raises(UserError, match='nothing.zip: no such file; expected the zip'): check_submission(tmp_path / 'nothing.zip')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w'): pass
    assert [f.kind for f in check_submission(tmp_path / 'a.zip', kit)] == ['missing image']
    broken = bytearray(good)
    broken[good.index(b'IDAT') + 10] ^= 255
    (tmp_path / 'a.zip').write_bytes(broken)
    found, = check_submission(tmp_path / 'a.zip', kit)
    assert found.kind == 'damaged file' and 'CRC' in found.text


def test_without_the_list_names_and_their_number_are_checked(tmp_path):
    raw = voc_png(np.full((3, 4), 2))
    files = {f'{PLACE}/2008_{i:06}.png': raw for i in range(1456)}
    assert check_submission(zipped(tmp_path / 'a.zip', files)) == []
    assert 'without the list of test images' in list(finding_lines([]))[-1]
    del files[f'{PLACE}/2008_000000.png']
    assert [(f.kind, f.text) for f in check_submission(zipped(tmp_path / 'a.zip', files))] == [('missing image', '1455 masks, the server expects 1456')]
    files[f'{PLACE}/2007_000032.png'] = raw
    found, = check_submission(zipped(tmp_path / 'a.zip', files))
    assert found.kind == 'unknown image' and 'those of 2007 are train and val' in found.text
    files = {f'{PLACE}/2008_{i:06}.png': voc_png(np.full((501, 4), 2)) if i == 7 else raw for i in range(1456)}
    assert kinds(check_submission(zipped(tmp_path / 'a.zip', files))) == {('wrong size', '2008_000007.png')}


def test_at_most_ten_lines_of_a_kind(tmp_path):
    found = check_submission(zipped(tmp_path / 'a.zip', {f'{PLACE}/2008_{i:06}.png': png(ONE[:4, :4], 'RGB') for i in range(25)}))
    lines = list(finding_lines(found))
    assert lines[0] == 'the server would refuse it: missing image 1, not indexed 25'
    assert sum(l.startswith('  not indexed: 2008') for l in lines) == 10 and '  not indexed: and 15 more' in lines
