"""The command line, verb by verb."""
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss_nb.base import arguments as A
from wsss_nb.cli import main
from wsss_nb.base.core import UserError


# -- what can be typed

def line_of(capsys, *words):
    "The one line of a mistake"
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith('wsss: ') and err.count('\n') == 1 and not out.strip(), (out, err)
    return err.removeprefix('wsss: ').strip()


def test_wsss_alone_and_each_verb_are_helped(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(['--help']) == 0 and capsys.readouterr().out == alone
    order = [line.split('  ')[1] for line in alone.splitlines() if line.startswith('  ')]
    assert order[:5] == ['run', 'resume', 'list', 'report', 'verify'] and order[-4:] == ['prune', 'bench', 'publish', 'published'] and set(order) == set(A.VERBS)
    for name in A.VERBS:
        assert main([*name.split(), '--help']) == 0
        assert A.VERBS[name].text[1:] in ' '.join(capsys.readouterr().out.split())
    for verb in A.VERBS.values():
        assert verb.text and all(len(a.help) > 8 for a in verb.arguments), verb


def test_every_action_of_every_parser_has_a_help_or_is_an_old_spelling():
    import argparse
    for name, verb in A.VERBS.items():
        old = {o for a in verb.arguments for o in a.old}
        for action in A.parser_of(name)._actions: assert action.help and (action.help != argparse.SUPPRESS or {action.dest, *action.option_strings} & old), (name, action)


def test_the_version_is_that_of_the_runs(capsys):
    from wsss_nb.base.basics import code_version
    assert main(['--version']) == 0 and capsys.readouterr().out == f'wsss_nb {code_version()}\n'


QUICK = {0: ['', '--help', '--version', 'run --help', 'recipes', 'params train', 'list', 'tables', 'published', 'prune'],
         2: ['rum', 'run', 'run cam_syntetic', 'run cam_synthetic --scheduler tcp://127.0.0.1:1', 'run cam_synthetic -p epochs',
             'run cam_synthetic -p epoch=1', 'run cam_synthetic -p train.epochs=x', 'run cam_synthetic --row SIPE', 'list metods',
             'resume nobody', 'verify nobody', 'report nobody', 'publish nobody', 'predict nobody a.jpg --out x', 'export nobody',
             'voc-zip nobody', 'voc-check nothing.zip', 'table sipe:44', 'table sipe:4 --data cityscapes', 'grid --data cityscapes',
             'grid --refiners crff', 'data check --data cityscapes', 'data check --splits trian']}


def test_help_lists_and_slips_do_not_wait_for_torch(tmp_path):
    code = f"""import os, sys
os.environ['WSSS_RUNS'] = {str(tmp_path)!r}
from wsss_nb.cli import main
ends = {{w: main(w.split()) for words in {QUICK!r}.values() for w in words}}
assert ends == {{w: code for code, words in {QUICK!r}.items() for w in words}}, ends
heavy = 'torch torchvision matplotlib scipy skimage sklearn papermill nbconvert IPython accelerate distributed cloudpickle'
sys.exit(', '.join({{*heavy.split()}} & set(sys.modules)) or 0)"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def used(code, **env):
    "Seconds of processor time that a Python of its own takes for this"
    import os, resource
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-c', code], env={**os.environ, **env}, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope='module')
def torch_seconds(): return used('import torch')


@pytest.mark.parametrize('words', ['--help', 'list', 'tables', 'params', 'recipes', 'run cam_syntetic'])
def test_what_needs_no_network_answers_with_less_than_a_third_of_an_import_of_torch(words, tmp_path, torch_seconds):
    ask = lambda: used(f'from wsss_nb.cli import main; main({words.split()})', WSSS_RUNS=str(tmp_path))
    assert ask() < torch_seconds / 3 or ask() < torch_seconds / 3  # once more, if something else had the machine just then


def test_a_check_of_networks_does_not_import_the_compiler():
    code = """import sys
from wsss_nb.engine.methods import check_network
from wsss_nb.engine.recipes import read_recipe, resolved
for name in 'cam sipe svm icd ecsnet ccmr'.split():
    for stage, p in resolved(read_recipe(name + '_synthetic')).stages.items(): check_network(stage, p, 8)
sys.exit('torch._dynamo' in sys.modules)"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


@pytest.mark.parametrize('words, text', [
    ('rum x', "verb: unknown name 'rum'. Did you mean 'run'?"),
    ('--runs x list', "expected a verb first, such as wsss list, got '--runs'"),
    ('run', 'run: recipe is missing: a YAML file, or the name of a recipe'),
    ('resume', 'resume: run is missing: name or folder of a run'),
    ('verify', 'verify: run is missing'),
    ('export', 'export: run is missing'),
    ('voc-zip', 'voc-zip: run is missing'),
    ('voc-check', 'voc-check: zip is missing: the zip of a submission'),
    ('table', 'table: table is missing: paper:number'),
    ('publish', 'publish: run is missing: runs, or folders with'),
    ('predict', 'predict: --out is missing: folder for masks'),
    ('predict x --out y', 'predict: images is missing: files, folders, patterns'),
    ('data', 'data: expected check or synth or audit behind it'),
    ('data chek', "data: unknown name 'chek'. Did you mean 'check'?"),
    ('data synth', 'data synth: --out is missing: folder for the set'),
    ('params trian', "stage: unknown name 'trian'. Did you mean 'train'?"),
    ('run a --jobs 0', "run: --jobs: expected a whole number from 1 on, got '0'"),
    ('run a --jobs two', "run: --jobs: expected a whole number from 1 on, got 'two'"),
    ('predict a b --out c --scales 0.5,x', "predict: --scales: expected a number from 0.01 on, got 'x'"),
    ('run a --scheduller x', "run: unknown '--scheduller'. Did you mean '--scheduler'?"),
    ('run a --launch 0', "run: --launch: expected a whole number from 1 on, got '0'"),
    ('run cam_synthetic -p data=voc12 --dry-run', "recipe, data: expected its settings, such as data.name=voc12, got 'voc12'."),
    ('run cam_synthetic -p train=3 --dry-run', 'recipe, train: expected its settings, such as train.seed=1, got 3.'),
    ('run cam_synthetic -p stages=train --dry-run', "recipe, stages: expected a list such as [train, masks], got 'train'."),
    ('run cam_synthetic -p seed=1 -p seed.x=3', '-p seed.x=3: seed is 1 in this recipe, and has no parts'),
    ('run cam_synthetic -p =3', '-p =3: expected name=value'),
    ('list cam', "list: unknown name 'cam'. Known: methods, refiners, backbones, heads."),
    ('run a.yaml', "recipe: unknown name 'a'"),
    ('run no/a.yaml', 'no/a.yaml: no such recipe'),
    ('run cam_synthetic -p epochs', '-p epochs: expected name=value'),
    ('predict nothing . --out x --runs nowhere', "no run is called 'nothing'"),
    ('run cam_synthetic --dry-run -p data.name=voc', "data.name: unknown name 'voc'. Did you mean 'voc12'?"),
])
def test_a_slip_is_one_line(tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.chdir(tmp_path)
    assert text in line_of(capsys, *words.split()) and not list(tmp_path.iterdir())


def test_a_verb_takes_the_options_that_it_uses(capsys):
    "Each option is read by the function of its verb, and where nothing reads --runs it is not offered"
    import inspect
    for name, verb in A.VERBS.items():
        source = inspect.getsource(verb.does).partition('\ndef ')[2]
        for a in A.parser_of(name)._actions:
            if a.dest != 'help': assert f'a.{a.dest}' in source, (name, a.dest)
    for words in ('recipes', 'params', 'published', 'voc-check x.zip', 'data check', 'data synth --out x'): assert "unknown '--runs'" in line_of(capsys, *words.split(), '--runs', 'x')


@pytest.mark.parametrize('words, expected', [
    ('predict own photos --out o --scales 0.5,1', dict(images=['photos'], scales=[.5, 1])),
    ('predict own --out o --scales 0.5 photos', dict(images=['photos'], scales=[.5])),
    ('predict own --scales 0.5 1 photos/a.jpg --out o', dict(images=['photos/a.jpg'], scales=[.5, 1])),
    ('predict own --scales 0.5 2 --out o', dict(images=['2'], scales=[.5])),  # there is a folder of that name
    ('predict own a.jpg --out o b.jpg --no-flip', dict(images=['a.jpg', 'b.jpg'], flip=False, scales=None)),
    ('data check --data voc12 --splits train,val', dict(name='voc12', splits=['train', 'val'])),
    ('data check --splits train val --data voc12', dict(name='voc12', splits=['train', 'val'])),
    ('data check --splits train val voc12', dict(name='voc12', splits=['train', 'val'])),
    ('data check voc12 --root x', dict(name='voc12', root='x', splits=[])),
    ('data check', dict(name='synthetic')),
    ('publish a b --to x', dict(names=['a', 'b'], out='x')),
    ('publish a --out x --as b c', dict(names=['a', 'c'], out='x', name='b')),
    ('published --to x', dict(out='x', write=False)),
    ('published', dict(out='')),
    ('run r -p a=1 --row x -p b=2 --row y', dict(p=['a=1', 'b=2'], row=['x', 'y'], jobs=1, launch='')),
])
def test_lists_swallow_nothing_and_old_spellings_are_read(tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '2').mkdir()
    _, a = A.read_line(words.split())
    assert {k: getattr(a, k) for k in expected} == expected


def test_the_names_of_data_are_those_of_the_catalog():
    from wsss_nb.data.catalog import READERS
    assert A.DATA_NAMES == tuple(READERS)


def test_old_spellings_are_not_shown(capsys):
    main(['publish', '--help']), main(['data', 'check', '--help'])
    out = capsys.readouterr().out
    assert '--to' not in out and '--out DIR' in out and '--data NAME' in out and '[name]' not in out and '==SUPPRESS==' not in out


# -- data


def test_the_embedded_set_is_written_in_voc_layout_and_checks_clean(tmp_path, capsys):
    assert main(['data', 'synth', '--out', str(tmp_path / 'set')]) == 0
    assert main(['data', 'check', '--data', 'voc12', '--root', str(tmp_path / 'set'), '--sheet', str(tmp_path)]) == 0
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
    from wsss_nb.engine.evaluate import write_predictions
    from wsss_nb.engine.methods import load_segmenter
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
    assert main([*args, *(['--runs', str(voc_run / 'runs')] if args[0] != 'voc-check' else [])]) == 2
    err = [l for l in capsys.readouterr().err.splitlines() if l.startswith('wsss: ')]
    assert len(err) == 1 and text in err[0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize('terminal, display, opened', [(True, ':0', True), (True, '', False), (False, ':0', False)])
def test_a_page_is_opened_where_somebody_looks(tmp_path, capsys, monkeypatch, terminal, display, opened):
    import sys
    import webbrowser
    from wsss_nb.verbs.demo import show_page
    asked = []
    monkeypatch.setattr(webbrowser, 'open', asked.append)
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setenv('DISPLAY', display)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    show_page(tmp_path / 'a page.html')
    assert capsys.readouterr().out == f'\nOpen this page: {tmp_path / "a page.html"}\n' and asked == [(tmp_path / 'a page.html').as_uri()] * opened


# -- rows by their names

@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    "A recipe that is a table, with blanks in the names of its rows, run"
    from inside import inside
    d = tmp_path_factory.mktemp('rows')
    (d / 't.yaml').write_text("""about: two ways
stages: [train, masks, evaluate]
limit: 4
device: cpu
workers: 1
train: {epochs: 1, batch_size: 4, crop: 48}
masks: {splits: [val], scales: [1.0]}
evaluate: {splits: [val], sweep: false}
rows:
  CRF from labels: {masks: {threshold: 0.3}}
  plain_one: {}
""")
    with inside(): assert main(['run', str(d / 't.yaml'), '--runs', str(d / 'runs'), '--no-report']) == 0
    return d


def test_a_row_is_called_in_lists_as_in_its_recipe(rows, capsys):
    runs = ['--runs', str(rows / 'runs')]
    assert sorted(f.name for f in (rows / 'runs').glob('t.*')) == ['t.CRF_from_labels', 't.plain_one']
    assert main(['list', *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split('  +', l)[:2] for l in lines] == [['run', 'state'], ['t.CRF from labels', 'done'], ['t.plain_one', 'done']]
    for row in ('CRF from labels', 'CRF_from_labels'):
        assert main(['run', str(rows / 't.yaml'), '--row', row, '--dry-run', *runs]) == 0
        assert [l for l in capsys.readouterr().out.splitlines() if l.startswith('--')] == ['-- CRF from labels']
    assert "no row is called 'CRF of labels'. Did you mean 'CRF from labels'? Known: CRF from labels, plain_one." in line_of(capsys, 'run', str(rows / 't.yaml'), '--row', 'CRF of labels', *runs)
    assert "Did you mean 't.CRF from labels'?" in line_of(capsys, 'resume', 't.CRF of labels', *runs)


@pytest.mark.parametrize('name', ['t.CRF from labels', 't.CRF_from_labels'])
def test_a_run_is_found_by_either_name(rows, monkeypatch, name):
    from inside import inside
    from wsss_nb.results import report as R
    from wsss_nb.results.predict import find_run
    from wsss_nb.engine.record import Run
    from wsss_nb.engine.run import resume_run
    runs = rows / 'runs'
    assert Run.named(name, runs).folder == find_run(name, runs).resolve() == (runs / 't.CRF_from_labels').resolve()
    report = R.RunReport(runs, [name])
    assert report.runs[0]['name'] == 't.CRF from labels' and report.runs[0]['place'].name == 't.CRF_from_labels'
    both = R.RunReport(runs, [name, 't.plain_one'])
    assert '>t.CRF from labels<' in both.summary() and 'href="t.CRF_from_labels/train.html"' in both.links()
    with inside() as made: assert resume_run(name, runs).name == 't.CRF_from_labels' and not made
    monkeypatch.setattr(R, 'run_notebook', lambda path, out, *more: out.write_text('{"cells": []}'))
    assert R.make_report([name], runs) == runs / 't.CRF_from_labels/report.html' and not (runs / 't.CRF from labels').exists()


def test_a_table_prints_the_names_of_its_recipe(rows, monkeypatch, capsys):
    from wsss_nb.results import report
    monkeypatch.setattr(report, 'make_report', lambda *a: 'page')
    report.finish_table([rows / 'runs/t.CRF_from_labels', rows / 'runs/t.plain_one'], rows / 'runs')
    assert [re.split(r'  +', l)[0] for l in capsys.readouterr().out.splitlines()[1:3]] == ['CRF from labels', 'plain_one']


# -- own methods

OWN = """from torch import nn
from wsss_nb.cams import CamNet, Localiser
class Fine(CamNet): pass
class Scores(CamNet):
    def forward(self, batch): return self.scores(self.backbone(batch['image'])[-1])
class Named(CamNet):
    def forward(self, batch): return dict(total=self.scores(self.backbone(batch['image'])[-1]).mean())
class Each(CamNet):
    def forward(self, batch): return dict(loss=self.scores(self.backbone(batch['image'])[-1]))
class Flat(CamNet):
    def raw_maps(self, images): return self.head(self.backbone(images)[-1])[:, 0]
class Empty(Localiser): pass
class Mapless(Localiser):
    def forward(self, batch): return dict(loss=batch['image'].mean())
class Module(nn.Module): pass
class Picky(CamNet):
    def forward(self, batch): raise RuntimeError('needs more')
    def raw_maps(self, images): raise RuntimeError('needs more')
def function(): pass
"""


@pytest.mark.parametrize('name, text', [
    ('', "method: bad.py names a file and no class; expected file.py:Class, such as bad.py:Fine. Localisers in this file: Fine, Scores, Named,"),
    (':Module', 'method: Module of bad.py is no localiser; expected a class Module(Localiser) with the methods forward(batch) and raw_maps(images), Localiser from wsss_nb.cams. Localisers in this file: Fine,'),
    (':function', 'method: function of bad.py is no localiser;'),
    (':Fines', "method: class of bad.py: unknown name 'Fines'. Did you mean 'Fine'?"),
    (':Scores', 'method: bad.py:Scores: forward returned a Tensor [2, 3]; the trainer needs a dict of losses whose `loss`, a tensor of one number, is minimised'),
    (':Named', 'method: bad.py:Named: forward returned a dict without `loss`;'),
    (':Each', 'method: bad.py:Each: forward returned a `loss` that is no single number;'),
    (':Flat', 'method: bad.py:Flat: raw_maps returned a Tensor [2, '),
    (':Empty', 'method: bad.py:Empty has no forward; expected forward(batch) -> dict(loss=...) and raw_maps(images)'),
    (':Mapless', 'method: bad.py:Mapless has no raw_maps;'),
])
def test_a_method_that_is_none_is_told_before_anything_runs(tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.py').write_text(OWN)
    said = line_of(capsys, 'run', 'cam_synthetic', '-p', f'train.method=bad.py{name}')
    assert said.startswith(text), said
    assert {f.name for f in tmp_path.iterdir()} <= {'bad.py', '__pycache__'}


@pytest.mark.parametrize('name', ['Fine', 'Picky'])
def test_a_method_is_only_judged_by_what_it_gives(tmp_path, name):
    import torch
    from wsss_nb.engine.trial import check_localiser
    (tmp_path / 'bad.py').write_text(OWN)
    state = torch.get_rng_state()
    check_localiser(f'{tmp_path}/bad.py:{name}')
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_in_training_is_told_the_same(tmp_path):
    from wsss_nb.data.synthetic import synthetic
    from wsss_nb.engine.methods import localiser_learner
    (tmp_path / 'bad.py').write_text(OWN)
    learner = localiser_learner(synthetic('train', n=4), f'{tmp_path}/bad.py:Scores', 'tiny', '', crop=48, batch_size=2, device='cpu')
    with pytest.raises(UserError, match=r'forward of the network returned a Tensor \[2, 8\]; the trainer needs a dict'): learner.fit()
