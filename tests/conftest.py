"""Who runs which test under `pytest -n 2`: a file with fixtures of its module is one piece of work, so that they are made once; what takes long comes first, so that no process waits for the other at the end."""
import atexit
import gc
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

os.environ.setdefault('WSSS_PROGRESS', 'off')  # what a test reads on stderr is an error
os.environ.setdefault('WSSS_CORES', '1')  # `make test` has a process for each of two cores; tests of processes say how many they want
os.environ.setdefault('OMP_NUM_THREADS', '1')  # a fork of a process whose torch has had threads waits for them for ever: tests that fork, run without `make`
sys.modules.setdefault('rfc3987_syntax', None)  # a grammar of addresses, a second of work wherever notebooks are read; engine/execute leaves it out as well

# with kernels, processes and trainings of their own; all others are done in less than some seconds each
FIRST = ('test_notebooks.py::test_it_runs', 'test_scale.py', 'test_run.py', 'test_processes.py', 'test_faults.py', 'test_alone.py', 'test_sizes.py', 'test_published.py', 'test_stages.py', 'test_warm.py', 'test_workers.py', 'test_progress.py', 'test_papermill.py')


def pytest_configure(config):
    "A folder for the networks that pages begin with (engine/start): made by the process that starts the others, which find it in their environment"
    if not os.environ.get('WSSS_STARTS'): config.starts = os.environ['WSSS_STARTS'] = tempfile.mkdtemp(prefix='wsss-starts-')


def pytest_unconfigure(config):
    if hasattr(config, 'starts'): shutil.rmtree(os.environ.pop('WSSS_STARTS'))


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    "A million objects are made by importing and listing all tests: nobody looks for cycles among them while they are made (6 s of 16), or ever again"
    gc.disable()
    yield
    gc.freeze(), gc.enable()
    if 'triton' in sys.modules: atexit.register(gc.unfreeze)  # its bindings complain at the end of what is still there


def pytest_collection_modifyitems(items): items.sort(key=lambda item: not any(name in item.nodeid for name in FIRST))


def pytest_generate_tests(metafunc):
    "A test that asks for a `device` runs on the CPU, and on CUDA where there is a card (`make test-cuda`)"
    named = [m.args[0] for m in metafunc.definition.iter_markers('parametrize')]
    if 'device' not in metafunc.fixturenames or any('device' in str(names) for names in named): return
    import torch
    cuda = [pytest.param('cuda', marks=pytest.mark.cuda)] if torch.cuda.is_available() else []
    metafunc.parametrize('device', ['cpu', *cuda])


@lru_cache(None)
def shares(file):
    "Whether tests of this file stand on a fixture that is made once for all of them"
    return "scope='module'" in Path(file).read_text(encoding='utf-8')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "pytest-xdist's own groups (`--dist loadgroup`) are not seen by pytest 9.2: each process made the fixtures anew"
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition('::')[0]
            return file if shares(config.rootpath / file) else nodeid

    return Together(config, log)
