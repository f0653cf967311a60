"""Warm kernels: forks of a process that has imported everything, alike to cold ones, and gone when they should be."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from inside import kernel_of_one_server
from wsss_nb.engine import warm
from wsss_nb.base.basics import environment
from wsss_nb.engine.execute import StageFailed, run_notebook
from wsss_nb.engine.serving import THREADS
from wsss_nb.nets.zoo import build

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks are used on Linux alone')


def cells(*sources): return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])


def answer(source, **env):
    "The value of the last line of a piece of code in a kernel of its own"
    nb = cells(source)
    with environment(**env), warm.own_kernel() as name: NotebookClient(nb, kernel_name=name).execute()
    return eval(nb.cells[0].outputs[-1]['data']['text/plain'])


def alive(pid): return Path(f'/proc/{pid}').exists() and ' Z ' not in Path(f'/proc/{pid}/stat').read_text()


def gone(*pids, seconds=20):
    "Wait until none of these processes lives"
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end: time.sleep(.05)
    return not any(map(alive, pids))


SEEN = '''
import os, random, sys, threading, numpy as np, torch, matplotlib
own = [os.getpid(), random.random(), np.random.rand(), torch.rand(1).item(), os.getsid(0)]
torch.manual_seed(3)
a = torch.nn.functional.conv2d(torch.randn(2, 3, 40, 40), torch.randn(8, 3, 3, 3)).sum().item()
alike = [a, torch.get_num_threads(), sys.argv[0], sys.path, os.getcwd(), matplotlib.rcParams['backend'], __name__, torch.cuda.is_initialized(), dict(os.environ, JPY_PARENT_PID='', JPY_SESSION_NAME='', WSSS_WARM='', JUPYTER_PATH='')]
[alike, own]
'''


def test_a_fork_is_like_a_cold_kernel_but_for_what_must_be_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kernels = [answer(SEEN, WSSS_WARM=w) for w in '110']
    assert kernels[0][0] == kernels[1][0] == kernels[2][0]
    assert all(len(set(values)) == 3 for values in zip(*[own for _, own in kernels]))


COMMAND = """
import os, sys, threading, torch
sys.path.insert(1, {tests!r})
from test_warm import SEEN, answer, warm; del sys.path[1]
from wsss_nb.base.tell import LINE, at_work
lock = open(os.devnull)
with at_work('a command'):
    warm.begin_server()
    here, line = len(warm.SERVERS), LINE.thread is not None and threading.active_count() == 2
more = "from wsss_nb.base.tell import LINE\\nopen_files = [os.readlink(f'/proc/self/fd/{{n}}') for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{{n}}')]\\n[alike, own, [len(LINE.work), open_files.count(os.devnull)]]"
import sklearn.svm
forked, cold = [answer(SEEN + more, WSSS_WARM=w) for w in '10']
told = answer("import sys; 'sklearn.svm' in sys.modules", WSSS_WARM='1')
print([here, line, len(warm.SERVERS), type(next(iter(warm.SERVERS.values()))[0]).__name__, told, forked, cold])
"""


def bare(): return {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_') and k != 'WSSS_WARM'}


def test_a_command_forks_its_server_from_itself_and_the_kernels_are_like_cold_ones(tmp_path):
    (tmp_path / 'command.py').write_text(COMMAND.format(tests=str(Path(__file__).parent)))
    said = subprocess.run([sys.executable, tmp_path / 'command.py'], env=dict(bare(), WSSS_PROGRESS=''), check=True, capture_output=True, text=True).stdout
    begun, line, servers, kind, told, (forked, own, quiet), (cold, others, also_quiet) = eval(said)
    assert [begun, line, servers, kind, told] == [1, True, 1, '_Child', True]
    assert forked == cold and all(a != b for a, b in zip(own, others))
    assert quiet == also_quiet and quiet[0] == 0  # no line of the command's, no file of the command's


REFUSED = """
import os, threading, torch
from wsss_nb.engine import warm
def begun(): warm.begin_server(); return len(warm.SERVERS)
found, stop = [], threading.Event()
other = threading.Thread(target=stop.wait); other.start(); found.append(begun()); stop.set(); other.join()
for name, value in ('MALLOC_TRIM_THRESHOLD_', '1000000'), ('WSSS_WARM', '0'): os.environ[name] = value; found.append(begun()); del os.environ[name]
there, torch.cuda.is_initialized = torch.cuda.is_initialized, lambda: True; found.append(begun()); torch.cuda.is_initialized = there
real, os.path.realpath = os.path.realpath, lambda f: '/dev/nvidiactl'; found.append(begun()); os.path.realpath = real
from multiprocessing.resource_tracker import _resource_tracker as tracker
tracker.ensure_running(); found.append(begun()); tracker._stop()
print([*found, begun(), begun()])
"""


def test_a_command_with_a_thread_with_cuda_with_workers_or_with_a_setting_of_its_own_is_not_forked():
    said = subprocess.run([sys.executable, '-c', REFUSED], env=bare(), check=True, capture_output=True, text=True).stdout
    assert eval(said) == [0, 0, 0, 0, 0, 0, 1, 1]


ENDS = """
import os, sys, tempfile
sys.path.insert(1, {tests!r})
from test_warm import answer, gone, warm; del sys.path[1]
import torch
ours = tempfile.TemporaryDirectory()
warm.begin_server()
pid, theirs = answer("import os, tempfile; folder = tempfile.TemporaryDirectory(); [os.getpid(), folder.name]", WSSS_WARM='1')
print([len(warm.SERVERS), gone(pid), os.path.exists(ours.name), os.path.exists(theirs)])
"""


def test_a_kernel_takes_its_own_folders_down_and_none_of_the_command(tmp_path):
    (tmp_path / 'command.py').write_text(ENDS.format(tests=str(Path(__file__).parent)))
    said = subprocess.run([sys.executable, tmp_path / 'command.py'], env=bare(), check=True, capture_output=True, text=True).stdout
    assert eval(said) == [1, True, True, False]


ALREADY = """
import sys
sys.path.insert(1, {tests!r})
from test_warm import answer, warm; del sys.path[1]
import torch
before = warm.threads_begun()
from contextlib import nullcontext
from wsss_nb.engine.trial import in_one_thread
with in_one_thread() if {alone} else nullcontext(): torch.ones(10 ** 6).abs()
begun, _ = warm.threads_begun(), warm.begin_server()
print([before, begun, len(warm.SERVERS), answer("import torch; torch.ones(10 ** 6).abs().sum().item()", WSSS_WARM='1')])
"""


@pytest.mark.parametrize('alone', [False, True])
def test_a_command_that_has_computed_in_two_threads_is_not_forked(tmp_path, alone):
    (tmp_path / 'command.py').write_text(ALREADY.format(tests=str(Path(__file__).parent), alone=alone))
    said = subprocess.run([sys.executable, tmp_path / 'command.py'], env=dict(bare(), **dict.fromkeys(THREADS, '2')), check=True, capture_output=True, text=True, timeout=120).stdout
    assert eval(said) == [False, not alone, int(alone), 10 ** 6]


def test_a_file_of_weights_is_tried_in_one_thread(tmp_path):
    torch.save(build('mobilenet_v2').state_dict(), tmp_path / 'weights.pth')
    code = "import torch; from wsss_nb.engine import warm; from wsss_nb.engine.trial import check_weights; check_weights(dict(backbone='mobilenet_v2', stride=16, weights='weights.pth')); print([warm.threads_begun(), torch.get_num_threads()])"
    said = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=dict(bare(), **dict.fromkeys(THREADS, '2')), check=True, capture_output=True, text=True).stdout
    assert eval(said) == [False, 2]


def test_a_figure_is_shown(tmp_path):
    nb = cells('import matplotlib.pyplot as plt\nplt.plot([1, 2]);')
    with warm.own_kernel() as name: NotebookClient(nb, kernel_name=name).execute()
    assert 'image/png' in nb.cells[0].outputs[0]['data']


def test_what_counts_at_the_start_has_a_server_of_its_own(monkeypatch, tmp_path):
    before = set(warm.SERVERS)
    assert answer('import torch, threadpoolctl\n[torch.get_num_threads(), {p["num_threads"] for p in threadpoolctl.threadpool_info()}]', OMP_NUM_THREADS='1') == [1, {1}]
    assert warm.setting(dict(os.environ, PYTHONHASHSEED='6640')) == warm.setting(os.environ)  # as in a worker of Dask's
    assert warm.setting(dict(os.environ, OMP_NUM_THREADS='3')) != warm.setting(dict(os.environ, OMP_NUM_THREADS='4')) == warm.setting(dict(os.environ, OMP_NUM_THREADS='4', WSSS_RUNS='x'))
    edited = tmp_path / 'wsss_nb/core.py'
    edited.parent.mkdir(); edited.write_text('')
    monkeypatch.setattr(warm.wsss_nb, '__file__', str(tmp_path / 'wsss_nb/__init__.py'))
    key = warm.setting({})
    os.utime(edited, ns=(1, 1))
    assert warm.setting({}) != key and before <= set(warm.SERVERS)


COMPUTED = """
import numpy as np, torch, threadpoolctl, sklearn.svm
draw, net = torch.Generator().manual_seed(5), torch.nn.Conv2d(16, 32, 3)
for p in net.parameters(): p.data = torch.randn(p.shape, generator=draw)
net(torch.randn(8, 16, 64, 64, generator=draw)).square().sum().backward()
a = np.random.default_rng(0).standard_normal((400, 300))
[torch.get_num_threads(), sorted({p['num_threads'] for p in threadpoolctl.threadpool_info()}), net.weight.grad.sum().item(), net.weight.grad.abs().sum().item(), float((a @ a.T).sum()), float(np.linalg.svd(a)[1].sum())]
"""


def test_so_many_threads_in_all_libraries_are_taken_after_the_fork():
    def computed(n, w): return answer(COMPUTED, WSSS_WARM=w, **dict.fromkeys(warm.THREADS, str(n)))
    one, before = computed(1, '1'), set(warm.SERVERS)
    two, again = computed(2, '1'), computed(1, '1')
    assert set(warm.SERVERS) == before and one[:2] == again[:2] == [1, [1]] and two[:2] == [2, [2]]
    assert one == again and two == computed(2, '0')  # to the bit
    bare = {k: v for k, v in os.environ.items() if k not in warm.THREADS}  # as many as there are cores: another server
    assert warm.setting(dict(bare, **dict.fromkeys(warm.THREADS, '1'))) == warm.setting(dict(bare, **dict.fromkeys(warm.THREADS, '3'))) != warm.setting(bare)


def test_threads_that_libraries_are_told_differently_after_all_are_those_of_the_server(monkeypatch):
    monkeypatch.setattr(warm, 'SERVERS', {})  # one of its own, with one thread
    nb = cells('import torch\ntorch.get_num_threads()')
    with environment(**dict.fromkeys(warm.THREADS, '1')), kernel_of_one_server() as name, environment(OMP_NUM_THREADS='3'): NotebookClient(nb, kernel_name=name).execute()
    assert nb.cells[0].outputs[-1]['data']['text/plain'] == '1'
    warm._close_servers()


NESTED = '''
import sys, nbformat
from nbclient import NotebookClient
from wsss_nb.engine import warm
def answer(source):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with warm.own_kernel() as name: client = NotebookClient(nb, kernel_name=name); client.execute()
    return eval(nb.cells[0].outputs[-1]['data']['text/plain'])
import os
seen = answer('import os, sys; ["torch" in sys.modules, os.getpid()]')
[*seen, os.getpid(), len(warm.SERVERS)]
'''


def test_a_kernel_takes_the_server_of_the_process_that_started_it():
    before = set(warm.SERVERS)
    nb = cells(NESTED)
    with kernel_of_one_server() as name: NotebookClient(nb, kernel_name=name).execute()
    imported, inner, outer, servers = eval(nb.cells[0].outputs[-1]['data']['text/plain'])
    assert imported and inner != outer != os.getpid() and servers == 0 and len(set(warm.SERVERS) - before) <= 1 and 'WSSS_WARM' not in os.environ
    nb = cells(NESTED)
    with kernel_of_one_server() as name, environment(OMP_NUM_THREADS='3'): NotebookClient(nb, kernel_name=name).execute()  # another setting
    assert eval(nb.cells[0].outputs[-1]['data']['text/plain'])[::3] == [True, 1]


def test_a_kernel_that_dies_is_told_and_takes_nothing_with_it(tmp_path):
    for i, death in enumerate(('os._exit(3)', 'os.kill(os.getpid(), 9)')):
        (tmp_path / 'n.ipynb').write_text(nbformat.writes(cells('', 'import os\n' + death)))
        nb = json.loads((tmp_path / 'n.ipynb').read_text())
        nb['cells'][0]['metadata'] = dict(tags=['parameters'])
        nb['metadata'] = dict(kernelspec=dict(name='python3', display_name='', language='python'))
        (tmp_path / 'n.ipynb').write_text(json.dumps(nb))
        with pytest.raises(StageFailed, match='toy: its kernel died'): run_notebook(tmp_path / 'n.ipynb', tmp_path / 'out.ipynb', {}, 'toy', tmp_path / 'progress')
    assert answer('1 + 1') == 2


RUNS = '''
import nbformat, os, sys
from nbclient import NotebookClient
from wsss_nb.engine import warm
code = "import os, subprocess, sys, time\\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\\nopen({out!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\\nopen({out!r} + '.ready', 'w')\\ntime.sleep(600)"
nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
if {begin}: import torch; warm.begin_server()
with warm.own_kernel() as name:
    open({out!r} + '.server', 'w').write(str(next(iter(warm.SERVERS.values()))[0].pid))
    NotebookClient(nb, kernel_name=name).execute()
'''


@pytest.mark.parametrize('begin', [False, True])
def test_a_killed_command_leaves_neither_kernel_nor_server(tmp_path, begin):
    out = tmp_path / 'pids'
    command = subprocess.Popen([sys.executable, '-c', RUNS.format(out=str(out), begin=begin)], stderr=subprocess.DEVNULL, env=bare())
    end = time.monotonic() + 120
    while not (tmp_path / 'pids.ready').exists() and time.monotonic() < end: time.sleep(.1)
    kernel, child = map(int, out.read_text().split())
    server = int((tmp_path / 'pids.server').read_text())
    assert alive(kernel) and alive(child) and alive(server)
    command.send_signal(signal.SIGKILL); command.wait()
    assert gone(kernel, child, server)


def test_where_no_server_answers_the_kernel_is_a_cold_one(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, 'server', lambda env: str(tmp_path / 'nobody'))
    assert answer('import sys\n"torch" in sys.modules') is False


def test_papermill_finds_the_engine(tmp_path):
    from papermill.engines import NBClientEngine, papermill_engines
    papermill_engines.register('wsss', warm.Engine)
    import papermill
    nb = cells('x = 1', 'import sys\nprint(x, "torch" in sys.modules)')
    nb.cells[0].metadata['tags'] = ['parameters']
    nb.metadata['kernelspec'] = dict(name='python3', display_name='', language='python')
    nbformat.write(nb, tmp_path / 'n.ipynb')
    out = papermill.execute_notebook(str(tmp_path / 'n.ipynb'), str(tmp_path / 'out.ipynb'), dict(x=5), engine_name='wsss', progress_bar=False)
    assert out.cells[-1].outputs[0]['text'].split() == ['5', 'True']


def test_what_was_imported_for_good_says_nothing_at_the_end():
    "Triton's bindings list on stderr what is still there when Python ends; a network of timm imports them"
    pytest.importorskip('triton')
    code = 'from wsss_nb.base.basics import importing\nwith importing(): import triton'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
