"""A page that was uploaded alone: it installs the package where it is missing, takes its images by parameters, and says which comparisons it leaves out."""
import configparser
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import papermill
import pytest
from PIL import Image

from inside import kernel_of_one_server
from wsss_nb.data.synthetic import synthetic

ROOT = Path(__file__).resolve().parents[1]
PAPERS = [ROOT / f'nbs/papers/{name}.ipynb' for name in ('icd', 'ecsnet', 'seam', 'sipe', 'svm', 'ccmr')]
TUTORIALS = sorted((ROOT / 'nbs/tutorials').glob('*.ipynb'))
pages = pytest.mark.parametrize('path', [pytest.param(p, id=p.stem) for p in PAPERS])
LEFT_OUT = dict(icd=2, ecsnet=2, seam=0, sipe=2, svm=1, ccmr=2)


def code(path): return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']


def alone(path, folder, **parameters):
    "Execute a copy of the page in a folder where nothing else is; its printed text"
    shutil.copy(path, folder)
    assert not any((p / 'tests/goldens').exists() for p in (folder, *folder.parents))
    os.environ['WSSS_PROGRESS'] = 'off'
    with kernel_of_one_server() as kernel: nb = papermill.execute_notebook(str(folder / path.name), str(folder / 'out.ipynb'), parameters, cwd=str(folder), kernel_name=kernel, progress_bar=False)
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    assert parameters or not [o for o in outputs if o.get('name') == 'stderr']  # without masks, NumPy warns that the mean of nothing is nan
    return ''.join(o.text for o in outputs if o.output_type == 'stream' and o.name == 'stdout')


def photographs(folder, n=16):
    "A folder of somebody's own: JPEGs of any size, tags of three classes, no masks and no splits"
    folder.mkdir()
    rows = ['image,tags']
    for i, s in enumerate(synthetic('train', n)):
        Image.fromarray(s.image).resize((140 + i, 190 - i)).save(folder / f'{i}.jpg')
        rows.append(f'{i}.jpg,' + ';'.join(sorted({('cat', 'dog', 'sofa')[t % 3] for t in s.tags})))
    (folder / 'tags.csv').write_text('\n'.join(rows))
    return str(folder)


# one that leaves nothing out and one that does; all of them in `make test-slow`
@pytest.mark.parametrize('path', [pytest.param(p, id=p.stem, marks=[] if p.stem in ('seam', 'sipe') else pytest.mark.slow) for p in PAPERS])
def test_it_shows_somebodys_own_photographs(path, tmp_path):
    text = alone(path, tmp_path, data_name='folder', data_root=photographs(tmp_path / 'photos'))
    assert text.count('Left out: ') == LEFT_OUT[path.stem] == text.count('It needs tests/goldens of the repository.')


@pytest.mark.slow
@pytest.mark.parametrize('path', [pytest.param(p, id=p.stem) for p in PAPERS + TUTORIALS])
def test_it_runs_alone_as_it_is(path, tmp_path):
    assert alone(path, tmp_path).count('Left out: ') == LEFT_OUT.get(path.stem, 0)


@pages
def test_its_parameters_are_in_the_words_of_the_stages(path):
    def parameters(path): return next(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if 'parameters' in c['metadata'].get('tags', []))
    lines = parameters(path).splitlines()
    assert [l.split(': ')[0] for l in lines] == ['data_name', 'data_root', 'data_tags', 'data_masks', 'data_classes']
    assert set(lines) <= set(parameters(ROOT / 'nbs/run/train.ipynb').splitlines())


def install_cell(path):
    cell = next(c for c in code(path) if 'pip' in c)
    assert cell == code(path)[0]
    return cell


def test_one_cell_installs_from_the_repository_of_the_settings():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    source = f"{settings['DEFAULT']['git_url']}/archive/refs/heads/main.zip"
    offline = {p: install_cell(p) for p in TUTORIALS if p.stem in ('kaggle', 'colab')}  # the network may be off there: from a folder of wheels
    assert len(offline) == 2 and all("'--no-index', f'--find-links={WHEELS}'" in cell for cell in offline.values())
    papers, tutorials = ({install_cell(p) for p in paths if p not in offline} for paths in (PAPERS, TUTORIALS))
    assert len(papers) == len(tutorials) == 1 and all(f"@ {source}'" in cell for cell in papers | tutorials)
    assert papers == {cell.replace('wsss_nb[notebooks] @', 'wsss_nb @') for cell in tutorials}


def test_nothing_is_installed_where_the_package_is(monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: pytest.fail('pip was called'))
    exec(install_cell(PAPERS[0]), {})


def test_a_missing_package_is_installed_and_a_failure_is_told_in_one_line(monkeypatch):
    calls, answer = [], SimpleNamespace(returncode=0, stderr='')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(subprocess, 'run', lambda command, **k: calls.append(command) or answer)
    exec(install_cell(PAPERS[0]), {})
    assert calls[0][1:4] == ['-m', 'pip', 'install'] and '-q' in calls[0] and calls[0][-1].startswith('wsss_nb @ https://')
    answer.returncode, answer.stderr = 1, 'WARNING: Retrying\nERROR: Could not install packages: Network is unreachable\n'
    with pytest.raises(SystemExit) as e: exec(install_cell(PAPERS[0]), {})
    assert str(e.value) == ('wsss_nb could not be installed (ERROR: Could not install packages: Network is unreachable); '
                            'switch the network on, or install it from its folder: pip install /path/to/wsss_nb')


def test_a_photograph_without_a_mask_counts_nowhere(tmp_path):
    from wsss_nb.data.demo import demo_data
    from wsss_nb.metrics import Confusion
    train, val = (demo_data(split, 50, 'folder', root=photographs(tmp_path / split, 10)) for split in ('train', 'val'))
    assert train.names == ['1', '2', '3', '4', '6', '7', '8', '9'] and val.names == ['0', '5'] and train.classes == ['cat', 'dog', 'sofa']
    assert {s.image.shape for s in train} == {(96, 96, 3)}
    counts = Confusion(4)
    for s in val: counts.update(np.ones((96, 96), np.uint8), s.mask)
    assert counts.matrix.sum() == counts.missed.sum() == 0
