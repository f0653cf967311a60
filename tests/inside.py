"""Where the process is not the point: stage notebooks executed in that of the test, without a kernel; kernels that a notebook starts as forks of the server of the test; and silence."""
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from matplotlib import pyplot

from wsss_nb.base.basics import environment
from wsss_nb.base.core import disk_error
from wsss_nb.base.until import TimeUp
from wsss_nb.engine import stage, warm
from wsss_nb.engine.execute import StageFailed, put_out, running_in
from wsss_nb.engine.key import notebook_code
from wsss_nb.engine.parameters import notebook_parameters


def execute(path, out, parameters, what, progress):
    names = {**{k: v for k, (v, _) in notebook_parameters(path).items()}, **parameters}
    try: running_in(out).write_bytes(path.read_bytes())
    except OSError as e: raise disk_error(e, out) from e
    put_out(running_in(out), out)  # without the lock, as papermill: the kernel that has it clears what ends in .part
    try:
        for cell in notebook_code(path): exec(compile('\n'.join(l for l in cell.splitlines() if not l.startswith('%')), path.name, 'exec'), names)
    except TimeUp: raise
    except Exception as e: raise StageFailed(f'{what} failed in cell 7: {e} (executed notebook: {out})') from None
    finally:
        pyplot.close('all')
        for folder in list(names['stage'].locks) if 'stage' in names else []: names['stage'].release(folder)


@contextmanager
def inside():
    "Runs are executed in this process; yields the stages that were: (stage, name of its folder)"
    made, real = [], stage.execute_in
    def noted(folder, name, parameters):
        made.append((name, folder.name))
        with pytest.MonkeyPatch.context() as m:
            m.setattr('wsss_nb.engine.execute.run_notebook', execute)
            real(folder, name, parameters)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stage, 'execute_in', noted)
        yield made


FORKS = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')  # a fork has imported everything


@contextmanager
def kernel_of_one_server():
    "A kernel, as `own_kernel` has it; kernels that are started from within it are forks of the same server"
    socket = warm.server({**os.environ, **{k: os.environ.get(k, v) for k, v in warm.KEEP_MEMORY.items()}})
    with environment(**dict(WSSS_WARM=socket) if socket else {}), warm.own_kernel() as kernel: yield kernel


def execute_page(nb, kernel, **settings):
    "Execute the cells of a notebook in a kernel of that name"
    from nbclient import NotebookClient
    with warm.private_sockets() as sockets: NotebookClient(nb, timeout=300, kernel_name=kernel, **sockets, **settings).execute()


def in_kernels(*codes):
    "What each of these codes prints, side by side in processes of their own, which have imported everything already"
    from nbformat.v4 import new_code_cell, new_notebook
    def printed(code):
        nb = new_notebook(cells=[new_code_cell(code)])
        execute_page(nb, kernel)
        return ''.join(o.text for o in nb.cells[0].outputs if o.get('name') == 'stdout')
    with kernel_of_one_server() as kernel, ThreadPoolExecutor(len(codes)) as pool: return list(pool.map(printed, codes))


@pytest.fixture
def quiet():
    "torch logs what a fake tensor refuses; the test tells it anyway"
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
