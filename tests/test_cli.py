"""The command line, verb by verb."""
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss_nb.cli import main


def test_the_embedded_set_is_written_in_voc_layout_and_checks_clean(tmp_path, capsys):
    assert main(['data', 'synth', '--out', str(tmp_path / 'set')]) == 0
    assert main(['data', 'check', 'voc12', '--root', str(tmp_path / 'set'), '--sheet', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'voc12 train: 400 images' in out and 'voc12 val: 100 images' in out and out.count('problems: none') == 2
    assert Image.open(tmp_path / 'voc12_train.png').size[0] > 500


def test_the_embedded_set_itself_checks_clean(capsys):
    assert main(['data', 'check']) == 0
    assert 'synthetic train: 400 images' in capsys.readouterr().out


def test_a_damaged_set_is_told_file_by_file(tmp_path, capsys):
    for i in range(4): Image.fromarray(np.full((9, 8, 3), i * 9, np.uint8)).save(tmp_path / f'{i}.jpg')
    (tmp_path / '1.jpg').write_bytes((tmp_path / '1.jpg').read_bytes()[:200])
    (tmp_path / 'tags.csv').write_text('image,tags\n' + ''.join(f'{i}.jpg,cat\n' for i in range(4)))
    (tmp_path / 'masks').mkdir()
    for i in range(4): Image.fromarray(np.full((9, 7 if i == 2 else 8), 37 if i == 3 else 1, np.uint8)).save(tmp_path / f'masks/{i}.png')
    assert main(['data', 'check', 'folder', '--root', str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for name in ('1', '2', '3'): assert re.search(fr'^  [\w ]+: {name}: ', out, re.M), out
    assert 'got 37 in 3.png' in out and '7x9' in out


@pytest.mark.parametrize('args, text', [
    (['data', 'check', 'voc12', '--root', 'nowhere'], 'in nowhere, found: no such folder; unpack VOC 2012, or correct the path'),
    (['data', 'check', 'voc'], "data: unknown name 'voc'"),
    (['report', 'nothing', '--runs', 'nowhere'], "report: no run is called 'nothing'"),
])
def test_mistakes_end_in_one_line_and_code_2(tmp_path, monkeypatch, capsys, args, text):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith('wsss: ') and text in err and err.count('\n') == 1


def test_params_and_recipes_are_listed(capsys, tmp_path):
    assert main(['params']) == main(['recipes']) == main(['list', '--runs', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'rounds over the data' in out and 'cam_photos' in out and 'no runs in' in out


# -- using a trained run

@pytest.fixture(scope='module')
def voc_run(tmp_path_factory):
    "A run that was trained on VOC's classes and evaluated on the test split of a devkit of four images"
    from trained import lay_down
    from wsss_nb.data.synthetic import synthetic
    from wsss_nb.data.voc import VOC_CLASSES, voc12
    from wsss_nb.evaluate import write_predictions
    from wsss_nb.methods import load_segmenter
    d, drawn, test = tmp_path_factory.mktemp('voc'), synthetic('train', n=16), synthetic('val', n=4)
    drawn.classes = VOC_CLASSES
    voc = d / 'kit/VOC2012'
    for f in ('JPEGImages', 'ImageSets/Segmentation'): (voc / f).mkdir(parents=True)
    for i in range(4): Image.fromarray(test.image(i)).save(voc / f'JPEGImages/2008_00000{i}.jpg')
    (voc / 'ImageSets/Segmentation/test.txt').write_text('\n'.join(f'2008_00000{i}' for i in range(4)))
    stage = lay_down(d / 'runs', 'own', drawn, data_name='voc12', data_root=str(d / 'kit'), data_tags='', data_masks='', data_classes='', splits=['val', 'test'], limit=0)
    write_predictions(load_segmenter(stage)[0], voc12(d / 'kit', 'test'), d / 'runs/stages/evaluate-own/test')
    return d


def test_predict_goes_on_after_a_picture_that_cannot_be_read(voc_run, tmp_path, capsys):
    photos = tmp_path / 'photos'
    photos.mkdir()
    for i in range(3): Image.fromarray(np.full((40 + i, 30, 3), 80 * i, np.uint8)).save(photos / f'{i}.png')
    (photos / '1.png').write_bytes(b'\x89PNG')
    (tmp_path / 'tags.csv').write_text('image,tags\n0.png,aeroplane\n')
    command = ['predict', 'own', str(photos), str(photos / '2.png'), '--runs', str(voc_run / 'runs'), '--out', str(tmp_path / 'out'), '--device', 'cpu']
    assert main(command[:3] + command[4:] + ['--tags', str(tmp_path / 'tags.csv'), '--crf', 'psa', '--scales', '0.5', '1', '--no-flip', '--no-overlay']) == 1
    out, err = capsys.readouterr()
    assert '2 of 3 pictures are not in' in out and '2 of 3 pictures predicted' in out and not (tmp_path / 'out/overlays').exists()
    lines = [l for l in err.splitlines() if l.startswith('wsss: ')]
    assert len(lines) == 1 and '1.png: damaged or not a picture' in lines[0]
    for i in (0, 2): assert Image.open(tmp_path / f'out/masks/{i}.png').size == (30, 40 + i)
    assert set(np.unique(Image.open(tmp_path / 'out/masks/0.png'))) <= {0, 1}
    assert main(command[:3] + command[4:]) == 2 and 'its masks were made with another settings' in capsys.readouterr().err
    assert main(['predict', 'own', str(photos / '0.png'), '--runs', str(voc_run / 'runs'), '--out', str(tmp_path / 'other')]) == 0
    assert (tmp_path / 'other/overlays/0.jpg').exists() and (tmp_path / 'other/index.html').exists() and (tmp_path / 'other/classes.txt').read_text().startswith('aeroplane\n')


def test_export_tells_the_difference(voc_run, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    assert main(['export', 'own', '--runs', str(voc_run / 'runs'), '--out', str(tmp_path / 'a/n.onnx')]) == 0
    out = capsys.readouterr().out
    assert 'probabilities [batch,21,height,width]' in out and float(re.search('largest difference (.*)', out)[1]) < 1e-4 and (tmp_path / 'a/n.onnx').stat().st_size > 10_000


def test_a_run_on_test_becomes_a_zip_that_passes(voc_run, tmp_path, capsys):
    out, kit = tmp_path / 's.zip', str(voc_run / 'kit')
    assert main(['voc-zip', 'own', '--runs', str(voc_run / 'runs'), '--out', str(out)]) == 0
    assert 'nothing that the server would refuse was found' in capsys.readouterr().out
    names = zipfile.ZipFile(out).namelist()
    assert names == [f'results/VOC2012/Segmentation/comp6_test_cls/2008_00000{i}.png' for i in range(4)]
    assert main(['voc-check', str(out), '--root', kit]) == 0
    assert main(['voc-check', str(out)]) == 1 and '4 masks, the server expects 1456' in capsys.readouterr().out
    masks = voc_run / 'runs/stages' / json.loads((voc_run / 'runs/own/run.json').read_text())['stages']['evaluate']['folder'] / 'test'
    assert main(['voc-zip', str(masks), '--root', kit, '--out', str(tmp_path / 'folder.zip')]) == 0 and (tmp_path / 'folder.zip').read_bytes() == out.read_bytes()
    with zipfile.ZipFile(tmp_path / 'less.zip', 'w') as z: z.writestr(names[0], zipfile.ZipFile(out).read(names[0]))
    capsys.readouterr()
    assert main(['voc-check', str(tmp_path / 'less.zip'), '--root', kit]) == 1
    assert capsys.readouterr().out.startswith('the server would refuse it: missing image 3\n  missing image: 2008_000001: ')


@pytest.mark.parametrize('args, text', [
    (['voc-zip', 'own', '--competition', 'comp3'], "competition: unknown name 'comp3'"),
    (['voc-zip', 'owm'], "no run is called 'owm'"),
    (['voc-check', 'nothing.zip'], 'nothing.zip: no such file; expected the zip of a submission'),
    (['predict', 'own', 'nothing.jpg', '--out', 'out'], 'images: nothing.jpg: no such file or folder'),
    (['predict', 'own', '.', '--out', 'out', '--crf', 'pas'], 'there is no image'),
    (['export', 'own', '--output', 'scores'], "output: unknown name 'scores'"),
])
def test_mistakes_with_a_trained_run_end_in_one_line(voc_run, tmp_path, monkeypatch, capsys, args, text):
    monkeypatch.chdir(tmp_path)
    assert main([*args, '--runs', str(voc_run / 'runs')]) == 2
    err = [l for l in capsys.readouterr().err.splitlines() if l.startswith('wsss: ')]
    assert len(err) == 1 and text in err[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize('terminal, display, opened', [(True, ':0', True), (True, '', False), (False, ':0', False)])
def test_a_page_is_opened_where_somebody_looks(tmp_path, capsys, monkeypatch, terminal, display, opened):
    import sys
    import webbrowser
    from wsss_nb.cli import show_page
    asked = []
    monkeypatch.setattr(webbrowser, 'open', asked.append)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setenv('DISPLAY', display)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    show_page(tmp_path / 'a page.html')
    assert capsys.readouterr().out == f'\nOpen this page: {tmp_path / "a page.html"}\n' and asked == [(tmp_path / 'a page.html').as_uri()] * opened
