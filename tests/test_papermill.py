"""papermill by hand: it finds every parameter of every stage, and a value that cannot be meant is refused in one line, as everywhere else."""
import ast
import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsss_nb.cli import main
from wsss_nb.base.core import UserError
from wsss_nb.engine.parameters import STAGES, notebook_parameters, stage_notebook
from wsss_nb.engine.recipes import stage_parameters
from wsss_nb.engine.stage import parameters_in

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = [stage_notebook(s) for s in STAGES] + [p for p in sorted((ROOT / 'nbs').rglob('*.ipynb')) if 'run' not in p.parts and '"parameters"' in p.read_text() and '.ipynb_checkpoints' not in p.parts]
pages = pytest.mark.parametrize('path', [pytest.param(p, id=p.stem) for p in PARAMETERS])


@pages
def test_papermill_reads_the_same_parameters(path, caplog):
    from papermill import inspect_notebook
    ours = notebook_parameters(path)
    with caplog.at_level(logging.WARNING): theirs = inspect_notebook(str(path))
    assert not caplog.records and list(theirs) == list(ours)
    for k, (default, comment) in ours.items():
        assert ast.literal_eval(theirs[k]['default']) == default and theirs[k]['help'] == comment and len(comment) > 5
        assert theirs[k]['inferred_type_name'] == type(default).__name__


@pages
def test_papermill_prints_them(path):
    from papermill.cli import papermill
    out = CliRunner().invoke(papermill, ['--help-notebook', str(path)])
    words = out.output.split()
    assert out.exit_code == 0 and 'Unable to parse' not in out.output
    for k, (default, comment) in notebook_parameters(path).items(): assert f'{k}: {type(default).__name__} (default ' in out.output and ' '.join(comment.split()) in ' '.join(words)


def test_a_parameter_is_passed_without_a_warning(tmp_path, caplog):
    import papermill
    with caplog.at_level(logging.WARNING): papermill.execute_notebook(str(stage_notebook('train')), str(tmp_path / 'out.ipynb'), dict(limit=8), prepare_only=True)
    assert not caplog.records
    injected = next(''.join(c['source']) for c in json.loads((tmp_path / 'out.ipynb').read_text())['cells'] if 'injected-parameters' in c['metadata'].get('tags', []))
    assert injected.splitlines()[1:] == ['limit = 8']


REFUSED = [('train', 'epochs', 0, 'train.epochs: expected at least 1, got 0.'), ('segment', 'epochs', -3, 'segment.epochs: expected at least 1, got -3.'),
           ('train', 'crop', 0, 'train.crop: expected at least 1, got 0.'), ('segment', 'crop', 7, 'segment.crop: expected at least 8, the output stride of tiny, got 7.'),
           ('train', 'lr', -1, 'train.lr: expected a number above 0, got -1.0.'), ('irn', 'lr', 0., 'irn.lr: expected a number above 0, got 0.0.'), ('psa', 'lr', float('nan'), 'psa.lr: expected a number above 0, got nan.'),
           ('train', 'lr', float('inf'), 'train.lr: expected a number above 0, got inf.'), ('train', 'batch_size', 0, 'train.batch_size: expected at least 1, got 0.'),
           ('segment', 'accumulate', 0, 'segment.accumulate: expected at least 1, got 0.'), ('evaluate', 'test_batch', 0, 'evaluate.test_batch: expected at least 1, got 0.'),
           ('masks', 'refine', 'crf', "masks.refine: expected list (the default is []), got str 'crf'; a list is written [crf]."), ('masks', 'refine', '[crf', "masks.refine: expected list (the default is []), got str '[crf'."),
           ('masks', 'refine', '[crff]', "masks.refine: unknown name 'crff'. Did you mean 'crf'?"), ('train', 'optimizer', 'adam', "train.optimizer: unknown name 'adam'. Did you mean 'adamw'?")]


@pytest.mark.parametrize('stage, name, value, text', REFUSED)
def test_what_cannot_be_meant_is_refused_alike_in_a_notebook_and_in_a_recipe(stage, name, value, text):
    with pytest.raises(UserError) as notebook: parameters_in({name: value}, stage)
    with pytest.raises(UserError) as recipe: stage_parameters({'stages': [stage], stage: {name: value}})
    assert str(notebook.value) == str(recipe.value) and str(recipe.value).startswith(text) and '\n' not in str(recipe.value)


@pytest.mark.parametrize('option, text', [('train.epochs=0', 'train.epochs: expected at least 1, got 0.'), ('train.crop=0', 'train.crop: expected at least 1, got 0.'), ('train.lr=-1', 'train.lr: expected a number above 0, got -1.0.')])
@pytest.mark.parametrize('dry', [[], ['--dry-run']])
def test_the_command_line_refuses_it_too(tmp_path, capsys, option, text, dry):
    assert main(['run', 'cam_synthetic', '--runs', str(tmp_path / 'runs'), '-p', option, *dry]) == 2
    assert capsys.readouterr().err == f'wsss: {text}\n' and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('stage, name, text, value', [('masks', 'refine', '[pamr, crf]', ['pamr', 'crf']), ('masks', 'scales', '[1.0, 0.5]', [1., .5]), ('train', 'options', '{gsc: 4.0}', dict(gsc=4.)), ('train', 'long_side', '[]', [])])
def test_a_text_that_is_yaml_stands_for_a_list_or_a_dict(stage, name, text, value):
    assert parameters_in({name: text, **(dict(method='sipe') if name == 'options' else {})}, stage)[name] == value


def test_the_command_line_of_papermill_ends_with_our_line(tmp_path, monkeypatch):
    from papermill.cli import papermill
    monkeypatch.setenv('WSSS_RUNS', str(tmp_path / 'runs'))
    out = CliRunner().invoke(papermill, [str(stage_notebook('train')), str(tmp_path / 'out.ipynb'), '-p', 'lr', '-1', '--no-progress-bar', '-k', 'python3'])
    assert out.exit_code != 0 and 'train.lr: expected a number above 0, got -1.0.' in str(out.exception) and not (tmp_path / 'runs').exists()
