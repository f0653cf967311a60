"wsss_nb.data.sources and what it reads: keywords in and beside photographs, exports of labelling tools, synonyms and corrections, through the one door of a folder"
import json
import struct

import pytest
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.data.check import check_split
from wsss_nb.data.folder import folder
from wsss_nb.data.keywords import read_keywords

NAMES = {'garden/rex': ('dog',), 'garden/ann': ('dog', 'person'), 'sofa': ('sofa',), 'fog': ()}  # what each format is made to say
RDF = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/" xmlns:digiKam="http://www.digikam.org/ns/1.0/">{}</rdf:Description></rdf:RDF></x:xmpmeta>'


def packet(**fields):
    bag = lambda tag, words: f'<{tag}><rdf:Bag>{"".join(f"<rdf:li>{w}</rdf:li>" for w in words)}</rdf:Bag></{tag}>'
    return RDF.format(''.join(bag(k.replace('_', ':'), v) for k, v in fields.items())).encode()


def iptc(words):
    records = b''.join(b'\x1c\x02\x19' + struct.pack('>H', len(w)) + w for w in words)
    body = b'Photoshop 3.0\0' + b'8BIM' + struct.pack('>HH', 0x404, 0) + struct.pack('>I', len(records)) + records + bytes(len(records) % 2)
    return b'\xff\xed' + struct.pack('>H', len(body) + 2) + body


def photo(path, xmp=None, keywords=(), colour='teal'):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {'.jpg': 'JPEG', '.webp': 'WEBP', '.tif': 'TIFF', '.png': 'PNG'}[path.suffix]
    Image.new('RGB', (48, 36), colour).save(path, kind, **({} if not xmp else dict(tiffinfo={700: xmp}) if kind == 'TIFF' else dict(xmp=xmp)))
    if keywords:
        data = path.read_bytes()
        path.write_bytes(data[:2] + iptc(keywords) + data[2:])


def photos(root, ending='.jpg'):
    for n in NAMES: photo(root/f'{n}{ending}')


def in_xmp(root):
    for n, tags in NAMES.items(): photo(root/f'{n}.jpg', packet(dc_subject=tags) if tags else None)
    return root


def in_webp(root):
    for n, tags in NAMES.items(): photo(root/f'{n}.webp', packet(dc_subject=tags) if tags else None)
    return root


def in_tiff(root):
    for n, tags in NAMES.items(): photo(root/f'{n}.tif', packet(dc_subject=tags) if tags else None)
    return root


def in_lightroom(root):  # it writes the words above as subjects too
    for n, tags in NAMES.items(): photo(root/f'{n}.jpg', packet(dc_subject=['things', *tags], lr_hierarchicalSubject=[f'things|{t}' for t in tags]) if tags else None)
    return root


def in_digikam(root):
    for n, tags in NAMES.items():
        photo(root/f'{n}.jpg')
        if tags: (root/f'{n}.jpg.xmp').write_bytes(packet(digiKam_TagsList=[f'things/{t}' for t in tags]))
    return root


def beside(root):
    photos(root)
    for n, tags in NAMES.items(): (root/f'{n}.xmp').write_bytes(packet(dc_subject=tags))
    return root


def in_iptc(root):
    for n, tags in NAMES.items(): photo(root/f'{n}.jpg', keywords=[t.encode() for t in tags])
    return root


def in_label_studio(root):
    photos(root)
    results = {'garden/rex': [('choices', ['dog'])], 'garden/ann': [('taxonomy', [['things', 'dog']]), ('rectanglelabels', ['person'])], 'sofa': [('brushlabels', ['sofa'])], 'fog': []}
    tasks = [dict(id=k, data=dict(image=f'/data/local-files/?d=photos/{n}.jpg'), annotations=[dict(result=[dict(type=t, value={t: w}) for t, w in r])], predictions=[]) for k, (n, r) in enumerate(results.items())]
    (root/'export.json').write_text(json.dumps(tasks))
    return root/'export.json'


def in_label_studio_uploads(root):
    photos(root)
    tasks = [dict(data=dict(image=f'/data/upload/7/0a1b2c3d-{n.split("/")[-1]}.jpg'), annotations=[dict(result=[dict(type='choices', value=dict(choices=list(tags)))])]) for n, tags in NAMES.items()]
    (root/'export.json').write_text(json.dumps(tasks))
    return root/'export.json'


def in_cvat(root):
    photos(root)
    shapes = {'dog': '<tag label="dog" source="manual"/>', 'person': '<polygon label="person" points="1,1;9,1;9,9"/>', 'sofa': '<box label="sofa" xtl="1" ytl="1" xbr="9" ybr="9"/>'}
    (root/'annotations.xml').write_text('<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>' + ''.join(f'<image id="{k}" name="{n}.jpg" width="40" height="30">{"".join(shapes[t] for t in tags)}</image>' for k, (n, tags) in enumerate(NAMES.items())) + '</annotations>')
    return root/'annotations.xml'


def in_labelme(root):
    photos(root)
    for n, tags in NAMES.items():
        made = dict(version='5.4.1', flags={t: t in tags[1:] for t in ('dog', 'person', 'sofa')}, shapes=[dict(label=t, points=[[1, 1], [9, 9]], shape_type='rectangle', flags={}) for t in tags[:1]], imagePath=f'..\\{n.split("/")[-1]}.jpg', imageData=None)
        (root/f'{n}.json').write_text(json.dumps(made))
    return f'labelme:{root}'


def in_coco(root):
    photos(root)
    names, words = list(NAMES), ['dog', 'person', 'sofa']
    made = dict(images=[dict(id=k, file_name=f'{n}.jpg') for k, n in enumerate(names)], categories=[dict(id=9 - k, name=w) for k, w in enumerate(words)],
                annotations=[dict(id=i, image_id=names.index(n), category_id=9 - words.index(t)) for i, (n, t) in enumerate((n, t) for n in names for t in NAMES[n])])
    (root/'labels.json').write_text(json.dumps(made))
    return root/'labels.json'


@pytest.mark.parametrize('write', [in_xmp, in_webp, in_tiff, in_lightroom, in_digikam, beside, in_iptc, in_label_studio, in_label_studio_uploads, in_cvat, in_labelme, in_coco])
def test_every_place_says_the_same(tmp_path, write):
    tags = write(tmp_path)
    data = folder(tmp_path, tags)
    assert {r.name: tuple(data.classes[t - 1] for t in r.tags) for r in data.records} == {n: t for n, t in NAMES.items() if t}
    assert data.classes == ['dog', 'person', 'sofa'] and data.notes[0].startswith('tags: recognised ')
    assert 'left out, because nothing is said of them: 1 (fog)' in data.notes


def test_masks_in_the_folder_are_no_photographs(tmp_path):
    in_xmp(tmp_path)
    for n in NAMES: (tmp_path/f'masks/{n}.png').parent.mkdir(parents=True, exist_ok=True), Image.new('L', (48, 36)).save(tmp_path/f'masks/{n}.png')
    data = folder(tmp_path, tmp_path)
    assert data.names == ['garden/ann', 'garden/rex', 'sofa'] and data.notes[0] == f'tags: recognised keywords of photographs ({tmp_path.name}): 4 pictures, 4 of them are here'


def test_the_folder_of_a_class_is_asked_for(tmp_path):
    for n in ('dogs/1', 'cats/2'): photo(tmp_path/f'{n}.jpg', packet(dc_subject=['beach']))
    (tmp_path/'synonyms.csv').write_text('from,to\ndogs,dog\ncats,cat\n')
    assert folder(tmp_path).classes == ['cat', 'dog'] and '2 of the first 2 photographs hold keywords, which were not read; tags=' in folder(tmp_path).notes[0]
    assert folder(tmp_path, f'folders:{tmp_path}').classes == ['cat', 'dog'] and folder(tmp_path, tmp_path).classes == ['beach']


def test_what_lies_beside_is_newer_and_an_older_word_is_counted(tmp_path):
    photo(tmp_path/'a.jpg', packet(dc_subject=['dog']), [b'cat'])
    photo(tmp_path/'b.jpg', packet(dc_subject=['dog']), [b'dog'])
    photo(tmp_path/'c.jpg', packet(dc_subject=['dog']))
    (tmp_path/'c.xmp').write_bytes(packet(dc_subject=['sofa']))
    found = read_keywords(tmp_path)
    assert found.said == dict(a=(('dog',),), b=(('dog',),), c=(('sofa',),)) and found.older == ['a', 'c']
    assert 'an older place inside says something else, and was not read: 2 (a, c)' in folder(tmp_path).notes


def test_a_class_may_stand_above_the_word(tmp_path):
    photo(tmp_path/'a.jpg', packet(lr_hierarchicalSubject=['animal|dog|terrier', 'place|garden']))
    data = folder(tmp_path, classes='dog,animal')
    assert data.records[0].tags == (1,) and 'words that are no class, with their pictures: garden 1; a line in synonyms.csv takes one' in data.notes
    assert folder(tmp_path).classes == ['garden', 'terrier']


@pytest.mark.parametrize('row, tags', [('', {}), ('dogs,dog\n', {'a': (1,)}), ('dogs,none\n', {'a': ()}), (',none\n', {'b': ()}), ('dogs,\n,none\n', {'b': ()})])
def test_a_word_is_what_the_table_says_and_nothing_else(tmp_path, row, tags):
    photo(tmp_path/'a.jpg', packet(dc_subject=['dogs'])), photo(tmp_path/'b.jpg'), photo(tmp_path/'c.jpg', packet(dc_subject=['cat']))
    (tmp_path/'synonyms.csv').write_text('from,to\n' + row)
    data = folder(tmp_path, classes='dog,cat')
    assert {r.name: r.tags for r in data.records} == {**tags, 'c': (2,)}


def test_the_table_speaks_to_tables_too(tmp_path):
    for n in 'abcd': photo(tmp_path/f'{n}.jpg')
    (tmp_path/'tags.csv').write_text('image,tags\na,dogs;sofa\nb,Hund\nc,none\nd,beach;sofa\n')
    (tmp_path/'synonyms.yaml').write_text('dogs: dog\nHund: dog\nbeach:\n')
    assert folder(tmp_path).classes == ['dog', 'sofa'] and [r.tags for r in folder(tmp_path).records] == [(1, 2), (1,), (), (2,)]


def test_corrections_speak_wherever_the_tags_come_from(tmp_path):
    for name, write in (('a', in_xmp), ('b', in_cvat), ('c', in_label_studio)):
        tags = write(tmp_path/name)
        (tmp_path/name/'corrections.csv').write_text('image,tag,do,why\ngarden/rex.jpg,sofa,add,missing\ngarden/ann,dog,remove,\nfog,none,add,\nsofa,sofa,,wrong\n')
        data = folder(tmp_path/name, tags)
        assert {r.name: tuple(data.classes[t - 1] for t in r.tags) for r in data.records} == {'garden/rex': ('dog', 'sofa'), 'garden/ann': ('person',), 'sofa': ('sofa',), 'fog': ()}
        assert '3 of 3 corrections from corrections.csv change a tag' in data.notes


def test_a_file_of_tags_elsewhere_has_its_tables_beside_it(tmp_path):
    in_xmp(tmp_path/'photos'), (tmp_path/'mine').mkdir()
    (tmp_path/'mine/tags.csv').write_text('image,tags\nsofa,sofas\n')
    (tmp_path/'mine/synonyms.csv').write_text('from,to\nsofas,sofa\n')
    (tmp_path/'mine/corrections.csv').write_text('image,tag,do\nfog,sofa,add\n')
    assert {r.name: r.tags for r in folder(tmp_path/'photos', tmp_path/'mine/tags.csv').records if r.tags is not None} == {'sofa': (1,), 'fog': (1,)}


@pytest.mark.parametrize('text, told', [
    ('image,tag,do\nrxe,sofa,add\n', r"corrections.csv, line 2: no image is called 'rxe'; correct the list"),
    ('image,tag,do\nsofa,sofas,add\n', r"line 2: the tag 'sofas' is no class \(Did you mean 'sofa'\?\)"),
    ('image,tag,do\nsofa,dog,add\nsofa,dog,remove\n', r"2 faults: line 2: 'dog' of 'sofa' is added and removed, keep one of the two lines"),
    ('image,tag,do\nsofa,none,add\n', "line 2: image 'sofa' has tags, remove them instead of adding none"),
    ('image,tag,do\nsofa,sofa,weg\n', r"line 2: expected add, remove, keep or nothing in the column do, got 'weg'"),
    ('image,tags\nsofa,sofa\n', 'has the columns image, tags; expected image, tag and do')])
def test_bad_corrections(tmp_path, text, told):
    in_xmp(tmp_path)
    (tmp_path/'corrections.csv').write_text(text)
    with pytest.raises(UserError, match=told): folder(tmp_path, tmp_path)


@pytest.mark.parametrize('name, text, told', [
    ('synonyms.csv', 'word,class\na,b\n', 'has the header `word,class`, expected `from,to`'), ('synonyms.csv', 'from,to\na,b\na,c\n', "line 3: 'a' means 'b' and 'c'; keep one of the two"),
    ('synonyms.csv', 'from,to\na,b\nb,c\n', "'a' means 'b', which means 'c'; name the class at once"), ('synonyms.csv', 'from,to\na\n', 'line 2: 1 cells, expected a word and a class'),
    ('synonyms.yaml', '[a, b]', 'expected lines like `dogs: dog`, got a list'), ('synonyms.yaml', 'a: [b]', r"expected words, got 'a': \['b'\]; put it between quotes"), ('synonyms.yml', 'a: : b', 'not YAML')])
def test_bad_synonyms(tmp_path, name, text, told):
    in_xmp(tmp_path)
    (tmp_path/name).write_text(text)
    with pytest.raises(UserError, match=told): folder(tmp_path, tmp_path)


def test_two_kinds_in_a_folder_are_asked_about(tmp_path):
    in_labelme(tmp_path)
    photo(tmp_path/'sofa.jpg', packet(dc_subject=['dog']))
    with pytest.raises(UserError, match=r'holds keywords of photographs and files of labelme or X-AnyLabeling; say which: tags=keywords:\S+ or tags=labelme:\S+\.'): folder(tmp_path, tmp_path)
    assert folder(tmp_path, f'keywords:{tmp_path}').names == ['sofa'] and len(folder(tmp_path, f'labelme:{tmp_path}')) == 3


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotations>&y;</annotations>'
FETCH = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotations>&x;</annotations>'


@pytest.mark.parametrize('name, text, told', [
    ('a.xml', BOMB, 'a.xml: refused, because an export has no document type; export it as "CVAT for images 1.1"'), ('a.xml', FETCH, 'a.xml: refused'),
    ('a.xml', '<annotations><image name="a', 'not an XML export'), ('a.xml', '<annotations><track/></annotations>', 'got tracks of a video; export it as "CVAT for images 1.1"'),
    ('a.xml', '<annotation><object/></annotation>', 'got <annotation> without an <image>'),
    ('a.json', '[{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [', 'a.json: not valid JSON'),
    ('a.json', '[{"data": {"image": "a.jpg"}, "annotations": [{"result": 5}]}]', 'looks like an export of label-studio, but its parts do not fit'),
    ('a.json', '[{"image": "a.jpg", "choice": "dog", "annotator": 1}]', r'short export of Label Studio \(JSON-MIN\); export it as JSON'),
    ('a.json', '{"images": [], "categories": [], "annotations": [{"image_id": 4, "category_id": 1}]}', 'looks like an export of coco, but its parts do not fit'),
    ('a.json', '{"imagePath": "a.jpg", "shapes": [{}]}', 'looks like an export of labelme'),
    ('a.zip', 'PK', 'expected a .csv, .json, .npy or .xml file or a folder, got .*a.zip; unpack it'), ('a.txt', 'x', 'expected a .json, .csv, .npy or .xml file or a folder'),
    ('a.json', '[' * 100000, 'a.json: not valid JSON')])
def test_damaged_exports_end_in_one_line(tmp_path, name, text, told):
    photos(tmp_path)
    (tmp_path/name).write_text(text)
    with pytest.raises(UserError, match=told) as e: folder(tmp_path, tmp_path/name)
    assert '\n' not in str(e.value)


def test_a_damaged_packet_is_a_fault_of_its_picture(tmp_path):
    photo(tmp_path/'a.jpg', packet(dc_subject=['dog'])[:300]), photo(tmp_path/'b.jpg', BOMB.encode()), photo(tmp_path/'c.jpg', packet(dc_subject=['dog']))
    with pytest.raises(UserError, match='tags: 2 faults: .*a.jpg: not an XML packet .*; .*b.jpg: refused, because a packet has no document type; write the keywords of this picture again'): folder(tmp_path, tmp_path)
    report, data = check_split('folder', 'all', str(tmp_path), str(tmp_path))
    assert sorted(p.name for p in report.problems if p.kind == 'tags') == ['a', 'b'] and data.names == ['c']


def test_the_check_names_what_was_left_out(tmp_path, capsys):
    for k, (n, words) in enumerate(dict(a=['dogs', 'holiday'], b=['cat'], c=['holiday'], d=[]).items()): photo(tmp_path/f'{n}.jpg', packet(dc_subject=words), colour=(60 * k, 80, 90))
    assert main(['data', 'check', 'folder', '--root', str(tmp_path), '--tags', str(tmp_path), '--classes', 'dog,cat']) == 0
    said = capsys.readouterr().out
    for line in ('tags from keywords of photographs', 'note: left out, because nothing is said of them: 1 (d)', 'note: left out, because none of their words is a class: 2 (a, c)',
                 "warning: the word 'holiday' of 2 pictures is no class and was left out; `holiday,` in synonyms.csv says that it is none",
                 "warning: the word 'dogs' of 1 picture is no class and was left out; is it 'dog'? Then write `dogs,dog` into synonyms.csv"): assert line in said
