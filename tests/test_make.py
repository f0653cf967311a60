"""What a fresh machine lacks is told in one line, with the package to install."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='needs make')


def check_machine(tmp_path, programs=('sh', 'c++'), python='exec "$REAL" "$@"', target='check-machine'):
    "`make` of this target on a machine that has only these programs and this python3"
    for p in programs:
        if shutil.which(p): (tmp_path / p).symlink_to(shutil.which(p))
    if python:
        (tmp_path / 'python3').write_text(f'#!/bin/sh\nREAL={sys.executable}\n{python}\n')
        (tmp_path / 'python3').chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')}
    r = subprocess.run([shutil.which('make'), '-C', str(ROOT), target], env={**env, 'PATH': str(tmp_path)}, capture_output=True, text=True)
    return r.returncode, [l for l in r.stdout.splitlines() if not l.startswith('make')]


@pytest.mark.parametrize('machine, text', [
    (dict(python=''), 'python3 is missing: install Python 3.10 or newer'),
    (dict(python='case "$*" in *version_info*) exit 1;; *) exec "$REAL" "$@";; esac'), 'python3 is too old'),
    (dict(python='case "$*" in *ensurepip*) exit 1;; *) exec "$REAL" "$@";; esac'), 'apt-get install python3-venv'),
    (dict(programs=('sh',)), 'A C++ compiler is missing (pydensecrf needs one): install it (Debian, Ubuntu: apt-get install g++'),
    (dict(python='case "$*" in *Python.h*) exit 1;; *) exec "$REAL" "$@";; esac'), 'Python.h is missing (pydensecrf needs it): install Python\'s headers (Debian, Ubuntu: apt-get install python3-dev'),
    (dict(target='check-browser'), 'Chromium is missing: install it (Debian, Ubuntu: apt-get install chromium)'),
])
def test_what_is_missing_is_named_in_one_line(tmp_path, machine, text):
    code, lines = check_machine(tmp_path, **machine)
    assert code != 0 and len(lines) == 1 and text in lines[0]


def test_this_machine_has_everything(tmp_path):
    if not shutil.which('c++'): pytest.skip('needs a C++ compiler')
    assert check_machine(tmp_path) == (0, [])


@pytest.mark.parametrize('name', ['chromium', 'google-chrome-stable'])
def test_a_browser_is_found_by_any_of_its_names(tmp_path, name):
    (tmp_path / name).write_text('#!/bin/sh\n')
    (tmp_path / name).chmod(0o755)
    assert check_machine(tmp_path, target='check-browser') == (0, [])


def test_a_pair_of_torch_and_torchvision_that_does_not_fit_is_told(monkeypatch):
    from wsss_nb.core import UserError, check_torch_pair
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.raises(UserError, match='do not fit .*install both from one index in one command: pip install'): check_torch_pair()
