"""A run folder from somebody else is data: nothing in it is executed, nothing is written outside, and every text in it stays text."""
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from inside import inside
from test_page import NASTY, Read
from wsss_nb.base.basics import is_plain
from wsss_nb.base.core import UserError, save_json
from wsss_nb.cli import main
from wsss_nb.data.maps import load_maps
from wsss_nb.data.pixels import save_mask
from wsss_nb.data.sample import Data, Record
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.checkpoint import read_checkpoint
from wsss_nb.engine.execute import run_notebook
from wsss_nb.engine.methods import build_affinity, load_localiser
from wsss_nb.engine.record import Run
from wsss_nb.engine.recipes import resolved
from wsss_nb.engine.plan import plan
from wsss_nb.engine.run import list_runs, make_run
from wsss_nb.engine.verify import recorded
from wsss_nb.results import report as R
from wsss_nb.results.predict import load

OUT = ['../evil', '..', '.', '', 'a/b', 'a\\b', '/etc', 'a\nb', 'a\x00b', ' . ', 3]
PACKAGE = Path(R.__file__).parents[1]


def theirs(folder, name='r', **said):
    "A run of somebody else"
    made = dict(name=name, state='done', recipe=dict(about='a run'), code='1', seconds=1., written='2026-01-01T00:00', versions={}, stages={})
    save_json(folder / name / 'run.json', {**made, **said})
    save_json(folder / name / 'metrics.json', dict(numbers=[dict(what='masks', split='val', miou=.5)]))
    return folder / name


@pytest.mark.parametrize('name', OUT)
def test_a_name_is_one_part_of_a_path(name):
    assert not is_plain(name)
    for image in (f'{name}/x', f'x/{name}', f'x/{name}/y') if name not in ('a/b', 3) else ():
        with pytest.raises(UserError, match='expected a name, or names of folders with / between them'): Data([Record(image, Path('x.png'), ())], ['cat'], 'folder')


def test_ordinary_names_are_names(tmp_path):
    assert all(map(is_plain, ['t.CRF from labels', 'sipe_4-photos.CAM, IPE', '.hidden', 'müde', 'a b', '2007_000032', '<b>', "it's", '...x']))
    assert len(Data([Record('sub/photo 1', Path('x.png'), ()), Record('<i>/#1 %', Path('y.png'), ())], ['cat'], 'folder')) == 2


@pytest.mark.parametrize('stages', [{n: dict(folder='masks-1')} for n in OUT[:9]] + [dict(masks=dict(folder=n)) for n in OUT] + [dict(masks=dict(folder='masks-1', parameters=dict(splits=['val', n]))) for n in OUT], ids=repr)
def test_a_record_whose_names_lead_elsewhere_is_refused_by_every_verb(tmp_path, capsys, stages):
    run = theirs(tmp_path / 'runs', stages=stages)
    before = sorted(tmp_path.rglob('*'))
    for use in (lambda: list_runs(tmp_path / 'runs'), lambda: R.RunReport(tmp_path / 'runs', ['r']), lambda: load(run), lambda: recorded(str(run), tmp_path / 'mine', ())):
        with pytest.raises(UserError, match='run.json: expected names of stages, folders and splits, got .* nothing is done with it'): use()
    assert main(['list', '--runs', str(tmp_path / 'runs')]) == 2 and main(['report', '--runs', str(tmp_path / 'runs')]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith('wsss: ') for line in said) and before == sorted(tmp_path.rglob('*'))


@pytest.mark.parametrize('record', [[], 'x', 3, dict(stages=[])])
def test_what_is_no_record_is_told(tmp_path, record):
    save_json(tmp_path / 'r/run.json', record)
    with pytest.raises(UserError, match='r/run.json: expected the record of a run; this is something else'): Run(tmp_path / 'r').made


@pytest.mark.parametrize('recipe, option', [(dict(train=dict(method='EVIL:Mine')), 'train.method='), (dict(method='EVIL:Mine'), 'method='), (dict(masks=dict(refine=['crf', 'EVIL:step'])), 'masks.refine=')])
def test_verify_executes_no_code_that_the_record_names(tmp_path, capsys, recipe, option):
    evil = tmp_path / 'evil.py'
    evil.write_text(f'open({str(tmp_path / "executed")!r}, "w")\n')
    recipe = json.loads(json.dumps(recipe).replace('EVIL', str(evil)))
    run = theirs(tmp_path / 'theirs', recipe=recipe, stages=dict(train=dict(folder='train-1', device='')))
    for command in (['verify', str(run)], ['verify', str(run), '-p', 'limit=4']):
        assert main([*command, '--runs', str(tmp_path / 'mine')]) == 2
        assert f'its recipe names code of its own, {evil}:' in capsys.readouterr().err and not (tmp_path / 'executed').exists()
    assert main(['list', '--runs', str(tmp_path / 'theirs')]) == 0 and not (tmp_path / 'executed').exists() and not (tmp_path / 'mine').exists()
    named = next(t for t in json.dumps(recipe).split('"') if 'evil.py' in t)
    with pytest.raises(UserError): recorded(str(run), tmp_path / 'mine', [f'{option}[{named}]' if 'refine' in option else f'{option}{named}'])  # read now, for the user named it
    assert (tmp_path / 'executed').exists()


def test_resume_executes_no_code_that_a_foreign_record_names(tmp_path, capsys):
    evil = tmp_path / 'evil.py'
    evil.write_text(f'open({str(tmp_path / "executed")!r}, "w")\n')
    run = theirs(tmp_path / 'theirs', state='stopped in train', recipe=dict(train=dict(method=f'{evil}:Mine')))
    assert main(['resume', str(run), '--runs', str(tmp_path / 'mine')]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f'wsss: {run}: its recipe names code of its own, {evil}:Mine, which would be executed; read it, and say so if you trust it, by naming its folder as yours: --runs ') and '\n' not in said
    assert not (tmp_path / 'executed').exists() and not (tmp_path / 'mine').exists()
    assert main(['resume', 'r', '--runs', str(tmp_path / 'theirs')]) == 2 and (tmp_path / 'executed').exists()  # now it was said


def test_a_recipe_that_stands_on_a_foreign_localiser_is_refused_where_that_names_code(tmp_path):
    evil = tmp_path / 'evil.py'
    evil.write_text(f'open({str(tmp_path / "executed")!r}, "w")\n')
    save_json(tmp_path / 'train-1/stage.json', dict(stage='train', parameters=dict(method=f'{evil}:Mine', backbone='tiny', stride=0), results=dict(classes=['a'])))
    with pytest.raises(UserError, match=f'train-1: its recipe names code of its own, {evil}:Mine'): list(plan(resolved(dict(stages=['masks'], limit=2, masks=dict(localiser=str(tmp_path / 'train-1'), reading=dict(kind='x')))), tmp_path / 'runs'))
    assert not (tmp_path / 'executed').exists()


def test_what_is_pruned_behind_a_link_stays(tmp_path):
    (tmp_path / 'mine').mkdir(), (tmp_path / 'runs/stages').mkdir(parents=True)
    (tmp_path / 'mine/photo.jpg').touch()
    (tmp_path / 'runs/stages/train-1').symlink_to(tmp_path / 'mine')
    assert main(['prune', '--yes', '--runs', str(tmp_path / 'runs')]) == 0
    assert (tmp_path / 'mine/photo.jpg').exists() and not (tmp_path / 'runs/stages/train-1').is_symlink()


def test_a_name_does_not_move_the_cursor_of_a_terminal(tmp_path, capsys):
    theirs(tmp_path, name='r', state='done\x1b[2J\x1b]0;title\x07')
    assert main(['list', '--runs', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert '\x1b' not in said and '\x07' not in said and 'done' in said


class Boom:
    "Writes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_no_file_of_a_run_is_unpickled(tmp_path):
    mark = tmp_path / 'executed'
    torch.save(dict(net=Boom(mark), settings={}, step=1), tmp_path / 'checkpoint.pt')
    with pytest.raises(UserError, match='holds Python code besides numbers'): read_checkpoint(tmp_path / 'checkpoint.pt')
    np.savez(tmp_path / 'a.npz', keys=np.array([1]), maps=np.array([Boom(mark)], dtype=object))
    with pytest.raises(UserError, match='damaged or not score maps'): load_maps(tmp_path / 'a.npz')
    assert not mark.exists()


def test_the_package_unpacks_no_archive_and_starts_no_shell():
    "What reads pickles: workers and processes that it started itself; what reads others' does without calling anything"
    found = {}
    for file in PACKAGE.rglob('*.py'):
        for what in re.findall(r'extractall|unpack_archive|shell=True|os\.system|yaml\.(?:unsafe_|full_)?load\b|pickle\.loads?\(|weights_only=False|\b(?:eval|exec)\((?!\))', file.read_text()): found.setdefault(what, set()).add(file.relative_to(PACKAGE).as_posix())
    found.pop('eval(', None) if not found.get('eval(', {'x'}) - {'papers/conformity.py'} else None
    assert found == {'pickle.loads(': {'base/workers.py', 'engine/batches.py'}, 'weights_only=False': {'base/processes.py'}}


@pytest.mark.parametrize('text', [*NASTY, '<img src=x onerror=alert(1)>', '<iframe src="javascript:alert(1)">', '[a](javascript:alert(1))', '<svg onload=alert(1)>'])
def test_the_page_of_somebodys_notebook_executes_nothing(tmp_path, text):
    v4 = nbformat.v4
    html = v4.new_output('display_data', {'text/html': text})
    cells = [v4.new_markdown_cell(f'# {text}\n\n{text}\n\n`{text}`'), v4.new_code_cell('', outputs=[html, v4.new_output('stream', text=text), v4.new_output('error', ename=text, evalue=text)])]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / 'train.ipynb')
    page = R.executed_page(tmp_path / 'train.ipynb', ours=False)
    read = Read(page)
    assert not {'script', 'iframe', 'svg', 'object', 'embed', 'form', 'base'} & {tag for tag, _ in read.tags} and not any(k.startswith('on') for _, attrs in read.tags for k in attrs)
    assert not any('javascript' in str(v) for _, attrs in read.tags for k, v in attrs.items() if k in ('href', 'src')) and "script-src 'none'" in page
    assert ''.join(read.texts).count(text) >= 3  # code, HTML and what was printed: as text


def test_a_kernel_is_spoken_to_over_sockets_in_a_folder_of_its_own(tmp_path):
    v4 = nbformat.v4
    code = 'import os, ipykernel\nc = ipykernel.get_connection_info(unpack=True)\nprint(c["transport"], oct(os.stat(os.path.dirname(c["ip"])).st_mode & 0o777), os.path.exists(f"{c[\'ip\']}-{c[\'shell_port\']}"))\nprint(c["ip"])'
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)]), tmp_path / 'n.ipynb')
    run_notebook(tmp_path / 'n.ipynb', tmp_path / 'out.ipynb', {}, 'n', tmp_path / '.progress')
    first, ip = nbformat.read(tmp_path / 'out.ipynb', 4).cells[0].outputs[0].text.splitlines()
    assert first == 'ipc 0o700 True' and not Path(ip).parent.exists()


CODE = '''from pathlib import Path
from wsss_nb.cams import CamNet
from wsss_nb.refine.steps import Step
class Mine(CamNet): "A method of somebody's own"
def kept(image, maps):
    "Maps as they are"
    return maps
keep = Step(kept)
'''


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    "A whole run with code of its own, as somebody hands it on: what a command names, and the file that is there once the code was executed"
    folder = tmp_path_factory.mktemp('foreign')
    evil, mark, runs = folder / 'evil.py', folder / 'executed', folder / 'theirs'
    evil.write_text(CODE)
    how = dict(limit=2, workers=1, device='cpu', epochs=1, batch_size=2, scales=[1.], flip=False, splits=['train'])
    train = dict(method=f'{evil}:Mine', backbone='tiny', crop=32, long_side=[32, 64])
    with inside(): make_run('r', dict(how, stages=['train', 'masks', 'evaluate'], train=train, masks=dict(refine=[f'{evil}:keep'])), runs, lambda text: None)
    evil.write_text(CODE + f'Path({str(mark)!r}).touch()\n')
    stage, = (runs / 'stages').glob('train-*')
    return dict(runs=runs, run=runs / 'r', train=stage, evil=evil, mark=mark)


READ = ['list --runs {runs}', 'report {run}', 'look {run} --out {out}/look.html', 'handover {run} --to coco --out {out}/coco', 'review {run} --out {out}/review --to coco',
        'estimate {run}', 'estimate {run} --outlines 2 --out {out}/drawn --to coco', 'prune --runs {runs}']
REFUSED = {'resume {run}': 'code of its own', 'verify {run}': 'code of its own', 'estimate {run} --outlines {out}/outlines': 'code of its own',
           'run cam_synthetic -p stages=[masks] -p masks.localiser={train} -p masks.splits=[train] -p limit=2 --dry-run': 'code of its own',
           'run cam_synthetic -p stages=[masks] -p masks.localiser={train} -p masks.splits=[train] -p limit=2': 'code of its own',
           'verify {run} --as-recorded': 'no published run goes by this name', 'predict {run} {out} --out {out}/predicted': 'no segment stage', 'predict {train} {out} --out {out}/predicted': 'is one of train', 'export {run} --out {out}/x.onnx': 'no segment stage'}


def test_what_reads_a_foreign_run_executes_nothing_of_it_and_what_would_says_so(foreign, tmp_path, capsys):
    def does(text): return main([*text.format(**foreign, out=tmp_path).split(), *([] if '--runs' in text else ['--runs', str(tmp_path / 'mine')])])
    for text in READ: assert does(text) in (0, None) and not foreign['mark'].exists(), text + capsys.readouterr().err
    (tmp_path / 'outlines').mkdir()
    for name, size in (('train_0000', synthetic('train').size(0)), ('train_0001', synthetic('train').size(1))): save_mask(tmp_path / f'outlines/{name}.png', np.zeros(size, np.uint8))
    capsys.readouterr()
    for text, why in REFUSED.items():
        assert does(text) == 2 and not foreign['mark'].exists(), text
        said = capsys.readouterr().err.strip()
        assert said.startswith('wsss: ') and why in said and '\n' not in said, said
        if why == 'code of its own': assert f'{foreign["evil"]}:Mine, which would be executed; read it, and say so if you trust it' in said and f'--runs {foreign["runs"]}' in said or 'verify' in text
    assert not (tmp_path / 'mine/stages').exists()


def test_a_network_with_code_of_its_own_is_loaded_from_the_folder_that_one_names_as_ones_own(foreign, tmp_path):
    runs, stage = foreign['runs'], foreign['train']
    for folder in (stage, foreign['run']):
        with pytest.raises(UserError, match='its recipe names code of its own, .*evil.py:Mine, which would be executed; .* by naming its folder as yours: --runs .*theirs, in Python runs='): load_localiser(folder)
    with pytest.raises(UserError, match='code of its own'): build_affinity('psa', stage)
    assert not foreign['mark'].exists()
    net, made = load_localiser(stage, runs=runs)
    assert foreign['mark'].exists() and type(net).__name__ == 'Mine' and made['parameters']['method'] == f'{foreign["evil"]}:Mine'
    foreign['mark'].unlink()
    with inside(): make_run('more', dict(stages=['masks'], limit=2, scales=[1.], flip=False, masks=dict(localiser=str(stage), splits=['train'], workers=1)), runs, lambda text: None)  # its folder is named
    assert foreign['mark'].exists()
