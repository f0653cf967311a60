"""Under several processes: fixtures of a module are made once, in the process that runs its file, and what takes long begins first."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARING = '''
import os
import pytest

@pytest.fixture(scope='module')
def made(): open(os.environ['MADE'], 'a').write('x')

@pytest.mark.parametrize('i', range(8))
def test_it_is_there(made, i): pass

@pytest.mark.parametrize('i', range(8))
def test_without(i): pass
'''
ALONE = '''
import pytest

@pytest.mark.parametrize('i', range(8))
def test_short(i): pass
'''


def test_a_fixture_of_a_module_is_made_once(tmp_path):
    pytest.importorskip('xdist')
    shutil.copy(HERE / 'conftest.py', tmp_path)
    for name, text in dict(test_sharing=SHARING, test_any=ALONE, test_alone=ALONE).items(): (tmp_path / f'{name}.py').write_text(text)
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTEST', 'COV'))}
    r = subprocess.run([sys.executable, '-m', 'pytest', '-v', '-n', '2', '-p', 'no:cacheprovider', '--rootdir', '.', '.'], cwd=tmp_path, env=dict(env, MADE=str(tmp_path / 'made')), capture_output=True, text=True)
    done = re.findall(r'\[(gw\d)\] \[ *\d+%\] PASSED (\w+)\.py::(\w+)', r.stdout)
    assert r.returncode == 0 and len(done) == 32, r.stdout + r.stderr
    assert (tmp_path / 'made').read_text() == 'x' and len({worker for worker, file, _ in done if file == 'test_sharing'}) == 1
    for worker in {worker for worker, *_ in done}:
        files = [file for w, file, _ in done if w == worker]
        assert files == sorted(files, key=['test_sharing', 'test_alone', 'test_any'].index)  # pieces of many tests, what takes long, the rest
