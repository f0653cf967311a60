"""Work shared by processes: whose functions they know, how they end, and what is said of it."""
import os
import signal
import subprocess
import sys
import threading
from types import ModuleType

import numpy as np
import pytest

from wsss_nb.base.core import UserError
from wsss_nb.base.workers import by_value, close_pool, no_script, parallel, pool_of, worker_context

SCRIPT = '''
import sys
print('begins')
from wsss_nb.base.workers import parallel
class Square:
    def __init__(self, x): self.x = x * x
def square(x):
    assert not hasattr(sys.modules['__main__'], 'parallel')  # the worker's own
    return Square(x)
squares = list(parallel(square, range(30), workers=2))
print(all(isinstance(s, Square) for s in squares), [s.x for s in squares] == [x * x for x in range(30)])

from wsss_nb.engine.train import Learner
import torch
class Numbers(list):
    names, where = [str(i) for i in range(12)], 'numbers'
class Mean(torch.nn.Linear):
    def forward(self, batch): return dict(loss=super().forward(batch['image']).pow(2).mean())
def view(data, i, rng): return dict(image=torch.tensor([data[i] + rng.random()]))
def losses(workers):
    torch.manual_seed(0)
    return Learner(Mean(1, 1), Numbers(range(12)), view, epochs=2, batch_size=4, device='cpu', workers=workers).fit()
print(losses(0) == losses(2))
'''


def test_a_script_begins_once_and_its_functions_travel(tmp_path):
    (tmp_path / 'mine.py').write_text(SCRIPT)
    r = subprocess.run([sys.executable, 'mine.py'], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, WSSS_PROGRESS='off'))
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines() == ['begins', 'True True', 'True']


def test_the_script_of_other_processes_is_left_alone(tmp_path, monkeypatch):
    from multiprocessing import spawn
    worker = worker_context().Process(target=abs, args=(1,))
    worker.start()
    worker.join()
    script = ModuleType('__main__')
    script.__file__, script.__spec__ = str(tmp_path / 'mine.py'), None
    monkeypatch.setitem(sys.modules, '__main__', script)
    told = lambda: any(k.startswith('init_main') for k in spawn.get_preparation_data('mine'))
    assert worker.exitcode == 0 and told()
    with no_script(): assert not told()
    assert told()


def exits(x):
    print('the licence server does not answer', file=sys.stderr, flush=True)
    os._exit(3)


def kills(x): os.kill(os.getpid(), signal.SIGKILL)


def crashes(x): os.kill(os.getpid(), signal.SIGSEGV)


class Shy(Exception):
    "Can be sent, but not read"
    def __init__(self, one, two): super().__init__(one)


def raises_shy(x): raise Shy(1, 2)


@pytest.mark.parametrize('f, text', [
    (exits, 'numbers: a worker process ended with exit code 3; its last line: the licence server does not answer; workers=1 does the work in this process.'),
    (crashes, 'numbers: a worker process ended by SIGSEGV; workers=1 does the work in this process.'),
    (kills, 'numbers: a worker process was killed, most likely for want of memory; use fewer workers.'),
    (raises_shy, "numbers: what a worker process sent cannot be read: TypeError: Shy.__init__() missing 1 required positional argument: 'two'"),
])
def test_a_worker_that_ends_is_told_with_its_cause(f, text):
    with pytest.raises(UserError) as e: list(parallel(f, range(20), 'numbers', workers=2))
    assert str(e.value) == text
    assert list(parallel(abs, range(-20, 0), workers=2)) == list(range(20, 0, -1))  # by new workers


def test_all_workers_begin_before_one_can_die():  # Python waits for ever for one that begins while another dies
    close_pool()
    pool = pool_of(3)
    first = pool.submit(abs, -1)
    assert len(pool.started) == 3 and first.result() == 1
    close_pool()
    assert not any(p.is_alive() for p in pool.started)


def test_a_worker_that_cannot_begin_is_told(monkeypatch):
    import wsss_nb.base.workers
    close_pool()
    monkeypatch.setattr(wsss_nb.base.workers, 'worker_begins', exits)
    with pytest.raises(UserError, match='numbers: a worker process ended with exit code 3'): list(parallel(abs, range(20), 'numbers', workers=2))


def test_an_error_arrives_as_itself():
    with pytest.raises(ZeroDivisionError): list(parallel((1).__truediv__, [0] * 20, workers=2))


def test_what_cannot_travel_is_told():
    with pytest.raises(UserError, match='^lock cannot travel to another process .*; workers=1 does the work in this one.$'): by_value(threading.Lock())


def lines(x): print('a line of', x, file=sys.stderr, flush=True)


def test_what_workers_write_arrives(capsys, monkeypatch):
    monkeypatch.setenv('WSSS_PROGRESS', 'off')  # its bar has no line of its own
    list(parallel(lines, range(20), workers=2))
    close_pool()
    assert sorted(l for l in capsys.readouterr().err.splitlines() if 'line' in l) == sorted(f'a line of {x}' for x in range(20))


def test_workers_are_kept_and_arrays_keep_every_bit():
    x = np.random.default_rng(0).normal(size=(20, 3, 4)).astype(np.float32)
    assert all(np.array_equal(a, np.exp(b)) for a, b in zip(parallel(np.exp, x, workers=2), x))
    pids = {p for p in parallel(pid_of, range(20), workers=2)}
    assert pids & {p for p in parallel(pid_of, range(20), workers=2)} and os.getpid() not in pids


def pid_of(x): return os.getpid()
