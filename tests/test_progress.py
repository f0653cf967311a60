"""Long work says that it began and how far it is: on a terminal, in a log, in Jupyter, and in the file of a process that shows it for another."""
import gc
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wsss_nb.engine import execute
from wsss_nb.base import tell
from wsss_nb.base.tell import LINE, File, Log, Progress, at_work, cut_to, place, written

ROOT = Path(__file__).resolve().parents[1]
QUICK = '''
import sys, time
from wsss_nb.base import tell
from wsss_nb.base.tell import Progress, at_work
for place in (tell.Terminal, tell.Log, tell.Jupyter): place.wait = place.every = .05
def work(n=4):
    for i in Progress(range(n), 'counting, step'):
        time.sleep(.12)
        if i == 1: print('a line of its own')
'''


def environment(): return {**{k: v for k, v in os.environ.items() if k not in ('WSSS_PROGRESS', 'WSSS_CORES')}, 'PYTHONPATH': str(ROOT), 'COLUMNS': '80', 'TERM': 'xterm'}


def on_a_terminal(code):
    "All that a script writes to a terminal"
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, '-c', code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment()) as p:
        os.close(theirs)
        out = b''
        while True:
            try: new = os.read(ours, 4096)
            except OSError: break  # Linux's way to say that nobody writes any more
            if not new: break
            out += new
    os.close(ours)
    assert p.returncode == 0, out
    return out.decode()


def screen(written):
    "What stands on the screen in the end, line by line"
    rows = ['']
    for part in re.split('(\r\n|\r|\n|\033\\[K)', written):
        if part in ('\r\n', '\n'): rows.append('')
        elif part == '\033[K': rows[-1] = ''
        elif part != '\r': rows[-1] += part
    return rows


def in_a_pipe(code):
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment())
    assert r.returncode == 0, r.stderr
    return r.stdout, r.stderr.splitlines()


@pytest.fixture
def shown(monkeypatch):
    "What the line of this process shows, at a quick pace"
    monkeypatch.delenv('WSSS_PROGRESS', raising=False)
    texts = []
    class Here(Log):
        wait = every = .01
        def show(self, text): texts.append(text)
    monkeypatch.setattr(tell, 'place', Here)
    return texts


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(.005)


def test_on_a_terminal_one_line_moves_and_leaves_room_for_others():
    out = on_a_terminal(QUICK + 'work()\nprint("done")')
    counts = [int(n) for n in re.findall(r'\r\033\[K(\d)/4 counting, step', out)]
    assert len(counts) >= 3 and counts == sorted(counts)
    assert screen(out) == ['a line of its own', 'done', '']


def test_in_a_pipe_there_are_lines_and_no_control_characters():
    out, err = in_a_pipe(QUICK + 'work()')
    assert out == 'a line of its own\n' and len(err) >= 3 and all(re.match(r'\d/4 counting, step', l) for l in err)


def test_a_log_begins_after_two_seconds_and_goes_on_every_ten(monkeypatch, capsys):
    assert (Log.wait, Log.every) == (2., 10.) and tell.Terminal.every <= 1 and tell.Jupyter.wait <= 2
    waits, line = [], tell.Line()
    class Stop:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) > 3
    line.work = [(lambda: '3/8 steps', False)]
    line.follow(Log(), Stop())
    assert waits == [2., 10., 10., 10.] and capsys.readouterr().err == '3/8 steps\n' * 3


def test_short_work_says_nothing():
    assert in_a_pipe('from wsss_nb.base.tell import Progress, at_work\nwith at_work("short"): list(Progress(range(3), "step"))') == ('', [])


def test_the_line_goes_on_while_one_step_takes_long(shown):
    with at_work('one long step'): until(lambda: len(shown) > 3)
    assert all(re.fullmatch(r'one long step \d+ s', t) for t in shown) and not LINE.work and LINE.thread is None


def test_several_jobs_stand_side_by_side_and_what_is_only_said_alone_is_left_out(shown):
    with at_work('wsss run', alone=True):
        until(lambda: shown)
        with at_work(lambda: 'cam train 40/125'), at_work(lambda: 'sipe masks 3/100'):
            shown.clear()
            until(lambda: len(shown) > 1)
            assert shown[-1] == 'cam train 40/125 · sipe masks 3/100'
        shown.clear()
        until(lambda: shown)
    assert re.fullmatch(r'wsss run \d+ s', shown[-1])


@pytest.mark.parametrize('width', range(25, 60))
def test_side_by_side_each_job_gets_its_share(width):
    text = cut_to('cam_synthetic train 40/125  loss 1.2345 · sipe_synthetic masks 3/100 · a · b', width)
    assert len(text) <= width and text.count(' · ') == 3
    parts = text.split(' · ')
    assert parts[0].startswith('ca') and parts[1].startswith('si') and parts[2][0] == 'a'


def test_a_bar_that_is_given_up_says_no_more(shown):
    bar = Progress([], 'score maps, image', total=8)
    bar.step(3)
    until(lambda: shown and shown[-1].startswith('3/8 score maps, image'))
    del bar
    gc.collect()
    assert not LINE.work and LINE.thread is None
    def stops():
        for i in Progress(range(4), 'counting'): raise KeyError(i)
    with pytest.raises(KeyError): stops()
    assert not LINE.work and LINE.thread is None


def test_the_rest_is_estimated_from_what_is_new(monkeypatch):
    now = [100.]
    monkeypatch.setattr(tell.time, 'monotonic', lambda: now[0])
    p = Progress([], 'training, step', total=125)
    p.start_at(25)
    p.note('loss 1.2')
    assert p.line() == '25/125 training, step  loss 1.2'
    now[0] = 110.
    p.step(20)
    assert p.line() == '45/125 training, step  loss 1.2  40 s left'
    now[0] = 200.
    assert p.line() == '45/125 training, step  loss 1.2  7 min left'
    p.step(80)
    assert p.line() == '125/125 training, step  loss 1.2'
    p.close()
    assert [Progress([], 'x').line(), Progress([1], 'x').line()] == ['0 x', '0/1 x']


def test_a_kernel_writes_into_a_file_and_its_stage_is_told(tmp_path, shown, monkeypatch):
    file = tmp_path / 'progress'
    with execute.watched('train', file):
        assert os.environ['WSSS_PROGRESS'] == str(file) and written(file) == 'starting'
        until(lambda: shown and shown[-1] == 'train starting  (since 0 s)')
        file.write_text('3/8 training, step')
        until(lambda: shown[-1].startswith('train 3/8 training, step  (since '))
    assert 'WSSS_PROGRESS' not in os.environ and not file.exists()


@pytest.mark.parametrize('terminal, term, expected', [(True, 'xterm', tell.Terminal), (True, 'dumb', Log), (False, 'xterm', Log)])
def test_a_line_is_written_over_only_where_a_terminal_can(monkeypatch, terminal, term, expected):
    monkeypatch.delenv('WSSS_PROGRESS', raising=False)
    monkeypatch.setenv('TERM', term)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal, raising=False)
    before, there = (sys.stdout, sys.stderr), place()
    there.close()
    assert type(there) is expected and (sys.stdout, sys.stderr) == before


def test_off_is_off_and_a_file_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv('WSSS_PROGRESS', 'off')
    with at_work('quiet'): assert place() is None and LINE.thread is None
    monkeypatch.setenv('WSSS_PROGRESS', str(tmp_path / 'progress'))
    with at_work(lambda: '3/8 steps'): until(lambda: written(tmp_path / 'progress') == '3/8 steps')
    assert written(tmp_path / 'progress') == '' and isinstance(place(), File) and written(tmp_path / 'none') == ''
    File(tmp_path / 'no folder/progress').show('never a crash')


def test_in_jupyter_a_display_moves_and_is_empty_in_the_end(monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient
    monkeypatch.delenv('WSSS_PROGRESS', raising=False)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    seen = []
    class Client(NotebookClient):
        def process_message(self, msg, cell, index):
            if msg['msg_type'] in ('display_data', 'update_display_data'): seen.append((msg['msg_type'], msg['content']['data']))
            return super().process_message(msg, cell, index)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(QUICK + 'work()'), nbformat.v4.new_code_cell('assert "torch" not in sys.modules\nlist(Progress(range(3)))')])
    Client(nb, timeout=60, kernel_name='python3').execute()
    kinds = [k for k, _ in seen]
    assert kinds[0] == 'display_data' and set(kinds[1:]) == {'update_display_data'}
    assert re.match(r'\d/4 counting, step', seen[1][1]['text/plain']) and seen[-1][1] == {'text/plain': ''}
    assert [(o.output_type, o.get('data', o.get('text'))) for o in nb.cells[0].outputs if o.output_type != 'display_data'] == [('stream', 'a line of its own\n')]
    assert [o.data for o in nb.cells[0].outputs if o.output_type == 'display_data'] == [{'text/plain': ''}] and [o.output_type for o in nb.cells[1].outputs] == ['execute_result']


def test_the_live_line_never_comes_into_the_middle_of_another(monkeypatch):
    import io
    out = io.StringIO()
    for name in ('stdout', 'stderr'): monkeypatch.setattr(sys, name, out)
    line = tell.Terminal()
    line.show('one')
    sys.stdout.write('look at')  # as print does it: the text, then its end
    line.show('two')
    sys.stdout.write(' it'), line.show('three'), sys.stdout.write('\n'), line.show('four')
    line.close()
    assert out.getvalue() == '\r\033[Kone\r\033[Klook at it\n\r\033[Kfour\r\033[K' and sys.stdout is out


DEMO = QUICK + '''
import builtins
from contextlib import contextmanager
from pathlib import Path
import wsss_nb.cli
from wsss_nb.verbs import demo
folder, first, say = Path({folder!r}), [], print

@contextmanager
def own_cluster(jobs, threads): yield None
def work_through(client, nodes, runs, say):  # stands for the workers: says how far each stage is, then lays it down
    for i in (1, 2, 3):
        for f in nodes: f.mkdir(parents=True, exist_ok=True), (f / '.progress').write_text(f'{{i}}/3 steps')
        time.sleep(.2)
    for f, n in nodes.items():
        (f / '.progress').unlink()
        (f / 'train.ipynb').write_text('{{"cells": []}}')
        save_json(f / 'stage.json', dict(stage='train', folder=f.name, parameters=n.params, device='', seconds=1., results={{}}))
        say(f'{{n.runs[0]}}: {{n.stage}} done')
        yield f, None

def noted(*texts, **more):
    first.append('torch' in sys.modules)
    say(*texts, **more)
    if len(first) > 1: return
    global save_json
    from wsss_nb.base.core import save_json
    from wsss_nb.engine import recipes, scale
    scale.own_cluster, scale.work_through = own_cluster, work_through
    recipes.read_recipe = lambda name: dict(stages=['train'], seed=ord(name[0]), limit=4)
builtins.print = noted
demo.DEMO[:] = [['a_synthetic', 'b_synthetic'], ['c_synthetic']]
demo.masks_first = lambda name, runs: None
import types  # the page is not the point
sys.modules['wsss_nb.results.report'] = types.SimpleNamespace(make_report=lambda names, runs: (folder / 'index.html', say('page of', *names))[0])
code = wsss_nb.cli.main(['demo', '--runs', str(folder / 'runs')])
assert first[0] is False, 'torch was imported before the first line'
sys.exit(code)
'''


@pytest.fixture
def stub(tmp_path): return DEMO.format(folder=str(tmp_path))


def test_the_demo_speaks_at_once_and_then_of_all_jobs_in_one_line(stub, tmp_path):
    out = on_a_terminal(stub)
    assert out.startswith('demo: 3 methods on the embedded set')
    assert re.search(r'\r\033\[Kc_synthetic train \d.* · a_synthetic train \d.* · b_synthetic train \d', out)
    rows = [r for r in screen(out) if r]
    assert rows.pop(1) == f'look at it as it fills: {tmp_path}/runs/report.html' and (tmp_path / 'runs/report.html').read_text().count('_synthetic') == 3
    assert rows[0].startswith('demo: ') and sorted(rows[1:4]) == [f'{n}_synthetic: train done' for n in 'abc'] and rows[4:] == ['page of c_synthetic a_synthetic b_synthetic', f'Open this page: {tmp_path}/index.html']
    assert sorted(f.parent.name for f in (tmp_path / 'runs').glob('*/run.json')) == [f'{n}_synthetic' for n in 'abc']


def test_the_demo_speaks_in_a_pipe_too(stub):
    out, err = in_a_pipe(stub)
    assert out.startswith('demo: 3 methods on the embedded set') and any(re.search(r'[abc]_synthetic train \d/3 steps', l) for l in err) and not any('\r' in l for l in err)


@pytest.mark.parametrize('dask, cores, jobs, each', [(True, 12, 5, 2), (True, 2, 2, 1), (False, 12, 5, 2)])
def test_each_job_of_the_demo_has_its_share_of_the_threads(dask, cores, jobs, each, tmp_path, monkeypatch, capsys):
    "with and without Dask the same number: the numbers of a training depend on it"
    from wsss_nb.engine import sheet
    from wsss_nb.verbs import demo
    seen = []
    def side_by_side(recipes, runs, jobs, scheduler, say, threads):
        for run in recipes: seen.append((run, jobs, threads)); yield run, tmp_path / run, None
    monkeypatch.setattr(sheet, 'side_by_side', side_by_side)
    monkeypatch.setattr(sheet, 'make_run', lambda run, *a, **more: seen.append((run, *(os.environ[k] for k in execute.THREADS))) or tmp_path / run)
    monkeypatch.setattr(demo, 'cores', lambda: cores)
    monkeypatch.setattr(demo, 'find_spec', lambda name: dask or None)
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    assert [f.name for f in demo.run_demo(['cam_synthetic', 'icd_synthetic'], tmp_path)] == ['cam_synthetic', 'icd_synthetic']
    assert seen == [(n, jobs, each) if dask else (n, '2', '2', '2') for n in ('cam_synthetic', 'icd_synthetic')]
    assert ('one after the other' in capsys.readouterr().out) != dask and os.environ['OMP_NUM_THREADS'] == '7'


@pytest.mark.parametrize('tiles, gpu, precision', [(True, False, 'bf16'), (False, False, None), (True, True, None)])
def test_the_demo_trains_in_bf16_where_the_cpu_is_made_for_it(tiles, gpu, precision, monkeypatch):
    "but for the localiser of SIPE, which the SVM shares; elsewhere its recipes are as they are"
    from wsss_nb.engine.recipes import read_recipe
    from wsss_nb.verbs import demo
    monkeypatch.setattr('torch.cpu._is_amx_tile_supported', lambda: tiles)
    monkeypatch.setattr('wsss_nb.base.core.pick_device', lambda asked: torch.device('cuda' if gpu else 'cpu'))
    for name in (name for job in demo.DEMO for name in job):
        got, own = demo.demo_recipe(name), read_recipe(name)
        asked = {stage: got[stage].pop('precision', None) for stage in ('train', 'segment')}
        assert got == own and asked == dict(train=None if name in ('sipe_synthetic', 'svm_synthetic') else precision, segment=precision)


@pytest.mark.parametrize('cores, precision, ahead', [(1, 'auto', ['cam_synthetic']), (4, 'auto', ['cam_synthetic']), (5, 'auto', []), (12, 'auto', []), (2, 'bf16', []), (12, 'bf16', [])])
def test_the_baseline_goes_ahead_where_cores_are_fewer_than_trainings_and_more_threads_help(cores, precision, ahead, tmp_path, monkeypatch):
    from wsss_nb.verbs import demo
    begun = []
    monkeypatch.setattr(demo, 'precision_here', lambda: precision)
    monkeypatch.setattr(demo, 'cores', lambda: cores)
    monkeypatch.setattr(demo, 'masks_first', lambda name, runs: begun.append(name))
    monkeypatch.setattr(demo, 'run_demo', lambda names, runs: begun.append(names))
    monkeypatch.setattr(demo, 'show_page', lambda path: begun.append('page'))
    monkeypatch.setattr('wsss_nb.results.report.make_report', lambda names, runs: tmp_path)
    demo.make_demo(names := [name for job in reversed(demo.DEMO) for name in job], tmp_path)
    assert begun[:-2] == ahead and begun[-1] == 'page'
    assert begun[-2] == [f'{n}_synthetic' for n in ('cam', 'sipe', 'ecsnet', 'svm', 'icd', 'ccmr')] and sorted(begun[-2]) == sorted(names)


def test_what_goes_ahead_has_all_cores_and_makes_no_more_than_the_masks(tmp_path, monkeypatch, capsys):
    from wsss_nb.verbs import demo
    made = []
    monkeypatch.setattr(demo, 'cores', lambda: 3)
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    monkeypatch.setattr('wsss_nb.engine.stage.execute', lambda s: (made.append((s.stage, *(os.environ[k] for k in execute.THREADS))), s.folder.mkdir(parents=True), (s.folder / 'stage.json').write_text('{}')))
    for k in 'ab': demo.masks_first('cam_synthetic', tmp_path)
    assert made == [('train', '3', '3', '3'), ('masks', '3', '3', '3')] and os.environ['OMP_NUM_THREADS'] == '7'
    assert [l.split()[0] for l in capsys.readouterr().out.splitlines()] == ['train', 'masks']


def test_stages_on_a_cluster_are_told_by_what_they_write_into_their_folders(tmp_path):
    from wsss_nb.engine.scale import Node, at_work_now
    nodes = {tmp_path / n: Node(s, {}, [], [r]) for n, s, r in (('train-a', 'train', 'cam'), ('masks-b', 'masks', 'sipe'), ('train-c', 'train', 'svm'))}
    for folder in nodes: folder.mkdir()
    assert at_work_now(nodes, dict(cam=1, sipe=1, svm=1)) == '3 runs, waiting for a worker'
    (tmp_path / 'train-a/.progress').write_text('40/125 training, step  loss 1.23')
    (tmp_path / 'masks-b/.progress').write_text('')
    assert at_work_now(nodes, {}) == 'cam train 40/125 training, step  loss 1.23 · sipe masks at work'
