"""Runs side by side on a real Dask cluster: the numbers of runs one after the other, although a worker was killed in a training and a stage failed."""
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

pytest.importorskip('distributed')

import dask
from inside import in_kernels
from wsss_nb.base import tell, workers
from wsss_nb.engine import scale, warm
from wsss_nb.cli import main
from wsss_nb.base.core import UserError
from wsss_nb.engine.execute import StageFailed
from wsss_nb.engine.sheet import Sheet, runs_of
from wsss_nb.engine.checkpoint import read_checkpoint

TABLE = '''
stages: [train, masks, evaluate]
limit: 8
device: cpu
workers: 0
train: {epochs: 15, batch_size: 4, crop: 64, save_seconds: 0.0}
masks: {splits: [val], scales: [1.0]}
evaluate: {splits: [val], sweep: false}
rows:
  low: {}
  high: {stages: [train, masks], masks: {threshold: 0.5}}
'''
BAD = '  bad: {train: {lr: 1.0e+30, optimizer: sgd}}\n'


PLAIN = '''
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from inside import inside
from wsss_nb.engine.sheet import Sheet, runs_of
with inside(): print([f.name for f in Sheet(runs_of({recipe!r}), {runs!r}).run(say=lambda text: None)])
'''


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "In every kernel: a record names the threads, and numbers may depend on them"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('OMP_NUM_THREADS', '1')
        yield


@pytest.fixture(scope='module', autouse=True)
def forks():
    "Dask's workers are forked as those of `base.workers` are, from a process that has imported the package; begun from nothing, each imports torch"
    if workers.CONTEXT.get_start_method() != 'forkserver': yield; return
    assert list(workers.parallel(str, range(20), workers=2))[3] == '3'  # it is there
    with dask.config.set({'distributed.worker.multiprocessing-method': 'forkserver'}): yield


class Seen(scale.Watch):
    "What the workers have in hand, and their processes"
    def __init__(self, client, *more):
        super().__init__(client, *more)
        self.pids = client.run(os.getpid)
        SEEN.append(self)


SEEN = []


def kill_who_trains(runs, killed):
    "Wait for a checkpoint of a training that goes on, then kill the worker whose kernel writes it"
    import psutil
    for _ in range(20000):
        for f in (runs / 'stages').glob('train-*/checkpoint.pt'):
            try:
                kernel = psutil.Process(int((f.parent / '.holder').read_text().split()[1]))
                worker = psutil.Process(next(pid for at, pid in SEEN[0].pids.items() if f.parent in SEEN[0].at_work[at]))
            except (psutil.NoSuchProcess, IndexError, FileNotFoundError, StopIteration, KeyError): continue
            os.kill(worker.pid, signal.SIGKILL)
            killed.update(folder=f.parent, worker=worker.pid, made=(f.parent / 'stage.json').exists())
            worker.wait(10)
            kernel.wait(10)  # notices that its parent is gone
            killed['step'] = read_checkpoint(f)['step']
            return
        time.sleep(.02)


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "The table one after the other in a process without kernels, and side by side with a row that fails and a worker that is killed"
    d, killed, said = tmp_path_factory.mktemp('scale'), {}, []
    (d / 't.yaml').write_text(TABLE)
    (d / 'bad').mkdir(); (d / 'bad/t.yaml').write_text(TABLE + BAD)
    plain = PLAIN.format(tests=str(Path(__file__).parent), recipe=str(d / 't.yaml'), runs=str(d / 'plain'))
    assert in_kernels(plain)[0].splitlines()[-1] == "['t.low', 't.high']"
    killer = threading.Thread(target=kill_who_trains, args=(d / 'dask', killed), daemon=True)
    killer.start()
    with pytest.raises(StageFailed) as e, redirect_stderr(io.StringIO()) as lines, pytest.MonkeyPatch.context() as m:
        m.setattr(scale, 'Watch', Seen), m.setattr(tell.Log, 'wait', .1), m.setattr(tell.Log, 'every', .1), m.setenv('WSSS_PROGRESS', '')
        dask = dict(scale.share(0, 2), **warm.KEEP_MEMORY)  # what a worker has in its environment
        socket = warm.server({**os.environ, **dask})  # one for both workers, and for the one that comes for the dead
        if socket: m.setenv('WSSS_WARM', socket)
        Sheet(runs_of(str(d / 'bad/t.yaml')), d / 'dask').run(2, say=lambda text: (said.append(text), print(text, file=sys.stderr)))
    killer.join()
    killed['lines'] = lines.getvalue().splitlines()
    return d, killed, said, str(e.value)


def test_a_killed_worker_loses_nothing(table):
    d, killed, said, _ = table
    print('killed:', killed)
    assert killed and not killed['made'] and 0 < killed["step"] < 30
    for run in ('t.low', 't.high'):
        assert (d / 'plain' / run / 'metrics.json').read_bytes() == (d / 'dask' / run / 'metrics.json').read_bytes()
        assert json.loads((d / 'dask' / run / 'run.json').read_text())['state'] == 'done' and (d / 'dask' / run / 'masks.ipynb').exists()
    assert json.loads((d / 'plain/t.low/metrics.json').read_text())['numbers']
    names = lambda runs: sorted(p.parent.name for p in (d / runs / 'stages').glob('*/stage.json'))
    assert names('plain') == names('dask') and len(names('dask')) == 4  # the training once, and nothing of the row that failed
    assert not list((d / 'dask').rglob('*.part')) and not list((d / 'dask').glob('.seen-*'))


def test_each_stage_is_told_with_its_rows(table):
    lines = [l for l in table[2] if ' s  train-' in l and 't.low' in l]
    assert len(lines) == 1 and lines[0].endswith('t.low, t.high')


def test_a_row_that_fails_stops_no_other(table):
    d, _, said, error = table
    assert error.startswith('1 of 3 runs stopped (t.bad): train failed in cell') and 'images of this batch' in error and '\n' not in error
    assert sum(l.startswith('t.bad stopped: train failed') for l in said) == 1
    assert json.loads((d / 'dask/t.bad/run.json').read_text())['state'] == 'stopped in train' and (d / 'dask/t.bad/train.ipynb').exists()


def test_what_is_made_needs_no_worker(table, monkeypatch):
    def none(*a): raise AssertionError('a cluster was started')
    monkeypatch.setattr(scale, 'own_cluster', none)
    folders = Sheet(runs_of(str(table[0] / 't.yaml')), table[0] / 'dask').run(2)
    assert [f.name for f in folders] == ['t.low', 't.high']


def test_a_cluster_that_is_there(tmp_path, capsys):
    from distributed import LocalCluster
    (tmp_path / 'r.yaml').write_text('stages: [train]\nlimit: 4\ntrain: {epochs: 1, batch_size: 4, crop: 48}\n')
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50) as c:
        command = ['run', str(tmp_path / 'r.yaml'), '--no-report', '--runs', str(tmp_path / 'runs'), '--scheduler', c.scheduler_address]
        assert main(command) == 0
    assert ' s  train-' in capsys.readouterr().out and json.loads((tmp_path / 'runs/r/run.json').read_text())['state'] == 'done'


@pytest.mark.parametrize('threads, token, text', [(2, '', 'would execute 2 stages in one process; start it with `dask worker --nthreads 1`'), (1, 'gone', 'does not see the folder with runs .*; put it on a file system that all machines share')])
def test_a_worker_on_other_ground_is_told(tmp_path, monkeypatch, threads, token, text):
    from distributed import LocalCluster
    if token: monkeypatch.setattr(scale, 'wrong_ground', lambda runs, token, dask_worker=None, real=scale.wrong_ground: real(runs, 'gone', dask_worker))
    with LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None, silence_logs=50) as c:
        with pytest.raises(UserError, match=text): Sheet(dict(r=dict(stages=['train'])), tmp_path).run(scheduler=c.scheduler_address)
    assert not list((tmp_path / 'stages').glob('*'))


def test_the_death_of_a_worker_is_told_and_progress_goes_on(table):
    _, killed, said, _ = table
    told = [l for l in said if l.startswith('a worker died (')]
    assert len(told) == 1 and f'; done again, from what it had saved: {killed["folder"].name} (t.' in told[0]
    progress = [l for l in killed['lines'] if l not in said]
    assert all(re.match(r't\.\w+ (train|masks|evaluate) |\d runs, waiting', l) for l in progress) and any('t.low train ' in l and ' training, step' in l for l in progress), progress
    behind = killed['lines'][killed['lines'].index(told[0]):]
    assert any(' training, step' in l for l in behind if l in progress) and any(l.startswith('train ') for l in behind if l in said)


@pytest.mark.parametrize('lost', [True, False])
def test_a_worker_that_goes_is_named_with_what_it_had(tmp_path, lost, monkeypatch):
    "Without a cluster: what a client tells of its workers at three looks"
    nodes = {tmp_path / f'train-{i}': scale.Node('train', {}, [], [f't.{i}']) for i in range(2)}
    first, second = map(str, nodes)
    looks = [{'tcp://a:1': [first], 'tcp://b:1': [second, 'something else']}, {'tcp://b:1': [second]}, {'tcp://b:1': [first, second]}]
    class Client:
        status = 'running'
        def processing(self): return looks.pop(0)
    (tmp_path / 'train-1').mkdir()
    (tmp_path / 'train-1/.progress').write_text('training, step 3/9')
    said, clock = [], iter(range(0, 1000, 20))
    monkeypatch.setattr(scale.time, 'monotonic', lambda: next(clock))
    watch = scale.Watch(Client(), nodes, said.append)
    watch.look()
    if not lost: watch.ended.add(tmp_path / 'train-0')
    watch.look(), watch.look()
    assert said == ['a worker died (tcp://a:1); done again, from what it had saved: train-0 (t.0)' if lost else 'a worker is gone (tcp://a:1); it had nothing in hand']
    assert scale.at_work_now(nodes, {}) == 't.1 train training, step 3/9'


def test_a_scheduler_that_does_not_answer_is_told_within_three_seconds(tmp_path, capsys, monkeypatch):
    began = time.monotonic()
    assert main(['run', 'cam_synthetic', '--runs', str(tmp_path), '--scheduler', 'tcp://127.0.0.1:1']) == 2
    assert time.monotonic() - began < 3
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and err[0].startswith('wsss: --scheduler tcp://127.0.0.1:1: no Dask scheduler answers there') and 'start one with `dask scheduler`' in err[0]
    monkeypatch.setenv('WSSS_SCHEDULER', 'tcp://127.0.0.1:1')
    assert main(['table', 'sipe:4', '--data', 'synthetic', '--runs', str(tmp_path)]) == 2 and 'wsss: WSSS_SCHEDULER=tcp://127.0.0.1:1: no Dask' in capsys.readouterr().err
    assert main(['list', '--runs', str(tmp_path)]) == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('address', ['tcp://127.0.0.1:1', 'nonsense', 'tcp://nohost.invalid:8786', 'tcp://127.0.0.1:99999'])
def test_an_address_where_nobody_is(address):
    with pytest.raises(UserError, match='no Dask scheduler answers there'), scale.cluster(scheduler=address): pass


def test_somebody_else_behind_the_address(tmp_path):
    "A server that accepts and says nothing"
    with socket.create_server(('127.0.0.1', 0)) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match='no Dask scheduler answers there'), scale.cluster(scheduler='tcp://127.0.0.1:{}'.format(server.getsockname()[1])): pass
        assert time.monotonic() - began < 5


def test_without_dask_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    assert main(['run', 'cam_synthetic', '--runs', str(tmp_path), '--jobs', '2']) == 2
    assert re.search(r'wsss: distributed is not installed; for --jobs and --scheduler: .*pip install -e ".*\[scale]"$', capsys.readouterr().err, re.M)


def test_workers_of_this_machine_share_cores_and_gpus(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(scale, 'cores', lambda: 6)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    shares = [scale.share(i, 3) for i in range(3)]
    assert [s['CUDA_VISIBLE_DEVICES'] for s in shares] == ['3', '5', '3'] and all(s['OMP_NUM_THREADS'] == s['WSSS_CORES'] == '2' for s in shares)


# -- images

@pytest.fixture
def image_cluster(monkeypatch):
    "Two processes behind WSSS_SCHEDULER"
    from distributed import LocalCluster
    assert list(workers.parallel(str, range(20), workers=2))[3] == '3'  # a pool of this machine with as many processes is there already
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as c:
        monkeypatch.setenv('WSSS_SCHEDULER', c.scheduler_address)
        yield c
        workers.close_pool()
        while workers.CLUSTER: workers.CLUSTER.pop().close()


def test_images_are_shared_by_a_cluster(image_cluster, tmp_path, monkeypatch):
    import numpy as np
    from wsss_nb.data.sample import save_maps
    from wsss_nb.data.synthetic import synthetic
    from wsss_nb.refine.masks import write_masks
    def doubled(x):  # a function of the test travels by value; to find one of this file a worker would import all that the file does
        if x == 20 and not (tmp_path / 'died').exists():
            (tmp_path / 'died').touch()
            os.kill(os.getpid(), signal.SIGKILL)  # the first that comes to 20 dies with its worker
        return 2 * x

    data = synthetic('val', n=10)
    for s in (data[i] for i in range(10)): save_maps(tmp_path / f'maps/{s.name}.npz', s.tags, np.stack([.6 * (s.mask == t) + .2 for t in s.tags]))
    write_masks(data, tmp_path / 'maps', tmp_path / 'shared', steps=['crf'])
    assert workers.CLUSTER and list(workers.parallel(doubled, range(40))) == list(range(0, 80, 2)) and (tmp_path / 'died').exists()
    write_masks(data, tmp_path / 'maps', tmp_path / 'alone', 1, steps=['crf'])
    for name in data.names: assert (tmp_path / f'shared/{name}.png').read_bytes() == (tmp_path / f'alone/{name}.png').read_bytes()


def test_no_scheduler_for_images_is_told(monkeypatch):
    monkeypatch.setenv('WSSS_SCHEDULER', 'tcp://127.0.0.1:1')
    with pytest.raises(UserError, match='WSSS_SCHEDULER=tcp://127.0.0.1:1: no Dask scheduler answers there'): list(workers.parallel(abs, range(20)))


@pytest.mark.parametrize('ours, name, text', [(True, 'train-000000000000', 'train: the code or the data changed while it ran; start the run again.'),
                                              (True, '', 'train: the notebook ended without recording its stage; its last cell must call finish.'),
                                              (False, 'train-000000000000', r'has other code or other data than this machine \(it calls the stage train-\w{12}, here it is train-0{12}\)')])
def test_a_worker_looks_at_a_name_that_it_was_told_and_at_a_stage_that_was_not_made(ours, name, text, tmp_path, monkeypatch):
    from wsss_nb.engine import worker
    from wsss_nb.engine.stage import Stage, parameters_in
    done, params = [], parameters_in(dict(runs=str(tmp_path), limit=4), 'train')
    monkeypatch.setattr(worker, 'wrong_ground', lambda runs, token: None)
    monkeypatch.setattr(worker, 'execute_in', lambda folder, stage, p: done.append((folder.name, p['runs'])))
    monkeypatch.setattr(worker.os, 'environ', dict(os.environ))
    name = name or Stage('train', params).folder.name
    with pytest.raises(UserError, match=text): worker.make_node('train', params, name, 'token', {}, ours)
    assert done == ([(name, str(tmp_path))] if ours else [])


def test_a_worker_imports_nothing_that_computes():
    import subprocess
    code = 'import sys, wsss_nb.engine.worker; print(*[m for m in ("torch", "numpy", "matplotlib", "papermill") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []
