"""Tests that share a fixture of their module run in one process, where it is made once (`pytest -n 2 --dist loadgroup`)."""
import os

import pytest

os.environ.setdefault('WSSS_PROGRESS', 'off')  # what a test reads on stderr is an error


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    for item in items:
        fixtures = [f for named in item._fixtureinfo.name2fixturedefs.values() for f in named]
        if any(f.scope == 'module' for f in fixtures): item.add_marker(pytest.mark.xdist_group(item.path.stem))
