"""The command line, verb by verb."""
import re

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
