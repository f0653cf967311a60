"""Disks that fail and machines that die: whatever breaks, no half file is read, no lock is left, and going on ends with the same bits. The harness: faults.py."""
import faulthandler
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from faults import KINDS, first_of
from inside import FORKS, inside
from wsss_nb.base.core import UserError, load_json, save_json, whole_file
from wsss_nb.base.workers import close_pool, parallel
from wsss_nb.engine import execute as E
from wsss_nb.engine.checkpoint import read_checkpoint
from wsss_nb.engine.execute import StageFailed, is_locked, locked, run_notebook
from wsss_nb.engine.run import list_runs, make_run, unused
from wsss_nb.engine.stage import Stage

TINY = dict(stages=['train'], limit=2, epochs=1, batch_size=2, device='cpu', train=dict(method='cam', backbone='tiny', crop=32, long_side=[32, 64], save_seconds=0.))


def swept(stage, share):
    "What `python faults.py` finds, in a fork of this process, which has imported everything"
    from faults import ended, forked, sweep
    def found():
        os.environ.update(OMP_NUM_THREADS='1')
        torch.set_num_threads(1)
        return sweep(stage, share)
    return ended(forked(found))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
@pytest.mark.parametrize('stage, share', [('train', 39), ('masks', 81), *(pytest.param(s, 1, marks=pytest.mark.slow) for s in ('train', 'psa', 'irn', 'masks', 'segment', 'evaluate'))])
def test_after_any_fault_a_stage_goes_on_to_the_same_bits(stage, share):
    found = swept(stage, share)
    print(found)
    assert not found['wrong'] and sum(found['faults'].values()) >= (3 if share > 1 else .4 * sum(found['every'].values()))
    if share == 1: assert all(found['faults'][f'{kind} {how}'] == n for kind, n in found['counts'].items() if kind != 'read' for how in KINDS[kind])
    assert all(found['counts'][k] > 5 for k in ('write', 'fsync', 'rename'))


def test_the_harness_fails_the_nth_and_notices_half_a_file(tmp_path):
    from faults import Faults, content, forked
    def writes():
        for k in range(3): save_json(tmp_path / f'{k}.json', dict(k=k, text='x' * 1000))
    with Faults(tmp_path / 'a') as f: save_json(tmp_path / 'a/x.json', 1), load_json(tmp_path / 'a/x.json')
    assert dict(f.counts) == dict(write=1, fsync=1, rename=1, read=1)
    with Faults(tmp_path, 'rename', 2, 'error'), pytest.raises(UserError, match='1.json: Input/output error'): writes()
    assert [p.name for p in tmp_path.glob('*.json')] == ['0.json']
    with Faults(tmp_path, 'fsync', 1, 'full'), pytest.raises(UserError, match='the disk is full'): writes()
    def killed():
        with Faults(tmp_path, 'write', 3, 'kill'): writes()
    assert forked(killed) == dict(killed=99)
    part, = tmp_path.glob('.2.json.*.part')
    assert 400 < part.stat().st_size < 600 and not (tmp_path / '2.json').exists()
    part.rename(tmp_path / '2.json')
    with pytest.raises(ValueError): content(tmp_path)


def test_reads_that_cannot_differ_are_tried_once(tmp_path):
    from faults import Faults
    (tmp_path / 'a').write_bytes(b'x' * 4000), (tmp_path / 'b').write_bytes(b'x' * 4000)
    def read_twice(name):
        with open(tmp_path / name, 'rb', buffering=0) as f:
            for _ in range(3): f.readinto(bytearray(1000))
        with open(tmp_path / name, 'rb', buffering=0) as f: f.readall()
    with Faults(tmp_path) as f:
        read_twice('a'), read_twice('b')
        save_json(tmp_path / 'c.json', 1)
        read_twice('a')
    assert dict(f.counts) == dict(read=12, write=1, fsync=1, rename=1) and first_of(w for w, _ in f.reads) == [1, 9]
    errors = first_of(f.reads)  # each file, each line, on both sides of what was written; not again for the next piece of a file
    assert errors == [1, 4, 5, 8, 9, 12]


def test_an_executed_notebook_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    import papermill
    seen = []
    def half(source, target, parameters, **settings):
        seen.append(settings['config'].KernelManager.transport)
        Path(target).write_text('{"cells": [')
        assert not (tmp_path / 'out.ipynb').exists()
        raise KeyboardInterrupt
    monkeypatch.setattr(papermill, 'execute_notebook', half)
    with pytest.raises(KeyboardInterrupt): run_notebook(tmp_path / 'in.ipynb', tmp_path / 'out.ipynb', {}, 'n', tmp_path / '.progress')
    assert not list(tmp_path.iterdir()) and seen == ['ipc']
    monkeypatch.setattr(papermill, 'execute_notebook', lambda source, target, parameters, **settings: Path(target).write_text('{"cells": []}'))
    run_notebook(tmp_path / 'in.ipynb', tmp_path / 'out.ipynb', {}, 'n', tmp_path / '.progress')
    assert [p.name for p in tmp_path.iterdir()] == ['out.ipynb']


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_two_processes_that_execute_one_notebook_leave_each_other_theirs(tmp_path, monkeypatch):
    import papermill
    from faults import forked
    out, this = tmp_path / 'out.ipynb', os.getpid()
    def execute(source, target, parameters, **settings):
        Path(target).write_text(f'{{"cells": [{os.getpid() == this}]}}'.lower())
        if os.getpid() != this: return
        assert forked(lambda: run_notebook(tmp_path / 'in.ipynb', out, {}, 'n', tmp_path / '.progress')) == dict(made=None)
        assert load_json(out) == dict(cells=[False]) and load_json(target) == dict(cells=[True])
    monkeypatch.setattr(papermill, 'execute_notebook', execute)
    run_notebook(tmp_path / 'in.ipynb', out, {}, 'n', tmp_path / '.progress')
    assert load_json(out) == dict(cells=[True]) and [p.name for p in tmp_path.iterdir()] == ['out.ipynb']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run of one tiny stage"
    runs = tmp_path_factory.mktemp('runs')
    with inside(): make_run('r', TINY, runs, lambda text: None)
    return runs


def test_a_stage_that_was_made_without_its_notebook_is_kept(trained, tmp_path):
    import shutil
    shutil.copytree(trained, tmp_path / 'runs')
    shutil.rmtree(tmp_path / 'runs/r')
    next((tmp_path / 'runs/stages').glob('train-*/train.ipynb')).unlink()
    said = []
    make_run('again', TINY, tmp_path / 'runs', said.append)
    assert 'kept' in said[0] and load_json(tmp_path / 'runs/again/run.json')['state'] == 'done'


def test_a_clock_that_is_turned_back_changes_nothing_but_times(trained, tmp_path, monkeypatch):
    from faults import content
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, 'time', lambda: float(next(now)))
    with inside(): make_run('r', TINY, tmp_path, lambda text: None)
    theirs, ours = content(trained), content(tmp_path)
    assert ours == theirs and len(ours) > 4
    made, = (load_json(f) for f in tmp_path.glob('stages/*/stage.json'))
    assert made['seconds'] < 0 and list_runs(tmp_path)[0]['state'] == 'done' and not unused(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_two_runs_in_one_store_share_a_stage_and_one_makes_it(tmp_path):
    from faults import forked_at_once
    def one(name):
        torch.set_num_threads(1)
        Stage.take.__defaults__ = (300,)
        with inside() as made: make_run(name, TINY, tmp_path, lambda text: None)
        return len(made)
    ended = forked_at_once(*(partial(one, name) for name in 'ab'))
    assert all('made' in e for e in ended), ended
    assert len(list(tmp_path.glob('stages/train-*'))) == 1 and load_json(tmp_path / 'a/metrics.json') == load_json(tmp_path / 'b/metrics.json')
    assert [r['state'] for r in list_runs(tmp_path)] == ['done', 'done'] and not list(tmp_path.rglob('*.part'))


@pytest.mark.parametrize('kind, n', [('write', 2), ('write', 9), ('rename', 4)])
def test_a_store_that_becomes_read_only_in_the_middle_is_told_and_lost_nothing(trained, tmp_path, kind, n):
    import faults
    runs = tmp_path / 'runs'
    with pytest.raises((UserError, StageFailed), match='the file system is read-only: choose another folder') as e, inside(), faults.Faults(runs, kind, n, 'readonly'): make_run('r', TINY, runs, lambda text: None)
    assert '\n' not in str(e.value) and not faults.left_locked(runs) and faults.content(runs) is not None
    with inside(): faults.resumed(runs, TINY)
    assert faults.content(runs) == faults.content(trained) and not list(runs.rglob('*.part'))


def test_a_worker_that_is_killed_is_told_and_the_next_pool_works():
    def dies(x):
        if x == 5: os.kill(os.getpid(), signal.SIGKILL)
        return x
    with pytest.raises(UserError, match='masks, image: a worker process was killed, most likely for want of memory; use fewer workers'): list(parallel(dies, range(12), 'masks, image', workers=2))
    assert list(parallel(abs, range(-12, 0), 'again', workers=2)) == list(range(12, 0, -1))
    close_pool()


def slow_view(data, i, rng):
    if torch.utils.data.get_worker_info(): time.sleep(.05)  # so that the process is still at work when it is killed
    return dict(image=torch.tensor([data[i], rng.random()], dtype=torch.float32))


def test_a_process_that_prepares_batches_is_killed_and_the_training_goes_on_elsewhere(tmp_path):
    import torch
    from multiprocessing import active_children
    from test_on_a_card import Line, Numbers
    from wsss_nb.engine.train import Callback, Learner
    class Kills(Callback):
        def after_step(self, learner, batch, losses):
            if learner.step == 5: os.kill(active_children()[0].pid, signal.SIGKILL)
    def learner(folder, **how):
        torch.manual_seed(0)
        return Learner(Line(), Numbers([k / 40 for k in range(40)]), slow_view, epochs=2, batch_size=4, lr=.05, device='cpu', folder=tmp_path / folder, save_seconds=0., **how)
    with pytest.raises(UserError, match='^workers: a worker process was killed, most likely for want of memory; use fewer workers.$'): learner('a', workers=1, callbacks=[Kills()]).fit()
    whole, again = learner('b', workers=0), learner('a', workers=0)
    assert again.fit() == whole.fit() and 5 <= whole.step == 20 and torch.equal(again.raw_net.w.weight, whole.raw_net.w.weight)


def test_a_process_of_a_training_that_is_killed_is_told_and_what_it_saved_is_gone_on_with(tmp_path, monkeypatch):
    import torch
    from test_on_a_card import Line, Numbers
    from wsss_nb.engine.train import Learner
    dies = tmp_path / 'dies.py'  # trains to its fifth step, as one of several processes would, and is killed in it
    dies.write_text(f"""import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from wsss_nb.base import processes
from wsss_nb.engine import train
step = train.Learner.one_step
def killed(learner, *a):
    if learner.step == 5: os.kill(os.getpid(), signal.SIGKILL)
    return step(learner, *a)
train.Learner.one_step = killed
processes.train_job(sys.argv[-1])""")
    def learner(folder):
        torch.manual_seed(0)
        return Learner(Line(), Numbers([k / 40 for k in range(40)]), slow_view, epochs=2, batch_size=4, lr=.05, device='cpu', folder=tmp_path / folder, save_seconds=0., workers=0)
    monkeypatch.setenv('WSSS_LAUNCH', f'{sys.executable} {dies}')
    with pytest.raises(UserError, match='^launch: .*dies.py ended with -9; its last lines are in .*/a/.launch.log.$'): learner('a').fit()
    assert not (tmp_path / 'a/.launch.pt').exists() and 0 < read_checkpoint(tmp_path / 'a/checkpoint.pt')['step'] <= 5
    monkeypatch.delenv('WSSS_LAUNCH')
    whole, again = learner('b'), learner('a')
    assert again.fit() == whole.fit() and torch.equal(again.raw_net.w.weight, whole.raw_net.w.weight)


def interrupted(work, first, second):
    "A run in a fork of this process that is sent SIGINT after so many seconds, and again; returns whether it was still there"
    from faults import run
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the fork is where it ends by itself, and not as a second pytest
    pid = os.fork()
    if pid == 0:
        try:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(1, 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                run(work, TINY)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                os._exit(0)
            finally: os._exit(3)
        finally: os._exit(3)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for sent, seconds in enumerate((first, second)):
        time.sleep(seconds)
        if os.waitpid(pid, os.WNOHANG)[0]: return sent > 0  # the first was enough, or it had ended before
        os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (3, -signal.SIGINT, 0)
    return True


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
@pytest.mark.parametrize('times', [4, pytest.param(40, marks=pytest.mark.slow)])
def test_ctrl_c_at_random_moments_twice_leaves_what_resume_needs(trained, tmp_path, times):
    import random
    import faults
    draw, runs, cut = random.Random(times), tmp_path / 'runs', 0
    for k in range(times):
        there = interrupted(runs, draw.uniform(0, .6), draw.choice([.001, .01, .1]))
        cut += there
        assert not faults.left_locked(runs) and faults.content(runs) is not None
        if there: continue
        assert faults.content(runs) == faults.content(trained)
        faults.shutil.rmtree(runs)
    with inside(): faults.resumed(runs, TINY) if (runs / 'r/run.json').exists() else faults.run(runs, TINY)
    assert cut and faults.content(runs) == faults.content(trained) and not list(runs.rglob('*.part'))


def test_ctrl_c_at_any_step_and_again_while_it_ends_leaves_what_resume_needs(trained, tmp_path, monkeypatch):
    "An interrupt at the k-th of what is done to files, and a second one at the next of them"
    import shutil
    import faults
    for k in range(1, 20, 4):
        shutil.rmtree(tmp_path / 'runs', ignore_errors=True)
        f = faults.Faults(tmp_path / 'runs')
        def interrupted(kind, half=lambda: None):
            f.counts[kind] += 1
            if sum(f.counts.values()) in (k, k + 1): raise KeyboardInterrupt
        f.tick = interrupted
        with pytest.raises(KeyboardInterrupt), inside(), f: make_run('r', TINY, tmp_path / 'runs', lambda text: None)
        assert not faults.left_locked(tmp_path / 'runs') and faults.content(tmp_path / 'runs') is not None
        with inside(): faults.resumed(tmp_path / 'runs', TINY)
        assert faults.content(tmp_path / 'runs') == faults.content(trained) and not list((tmp_path / 'runs').rglob('*.part'))


def aborts(folder, held):
    faulthandler.disable()  # nobody wants to read where
    with locked(folder, 'r'): held.set(), os.abort()


def test_a_lock_goes_with_whoever_held_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, 'run r'): raise KeyboardInterrupt
    assert not is_locked(tmp_path)
    child = FORKS.Process(target=aborts, args=(tmp_path, held := FORKS.Event()))
    child.start(), child.join()
    assert held.is_set() and child.exitcode < 0 and not is_locked(tmp_path)
