"""The page about some runs: its tables, the pictures side by side, the losses of trainings that runs share."""
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inside import execute
from wsss_nb import report as R
from wsss_nb import report_pictures as P
from wsss_nb.core import load_json, save_json
from wsss_nb.data.synthetic import synthetic
from wsss_nb.recipes import stage_notebook
from wsss_nb.show import overlay, plot_curves

PUBLISHED = load_json(Path(__file__).resolve().parents[1] / 'runs/published/cam_synthetic/run.json')
VAL, SHOWN = synthetic('val'), [0, 50, 99]


def write_run(runs, name, masks, miou=.5, network=None, train='train-a'):
    "A run as it lies on the disk, with one mask made by `masks` for each image that is shown; an oracle is above it"
    stages = {s: {**PUBLISHED['stages'][s], 'folder': train if s == 'train' else f'{s}-{name}'} for s in ('train', 'masks', *(['evaluate'] if network else []))}
    save_json(runs / name / 'run.json', {**PUBLISHED, 'name': name, 'stages': stages, 'recipe': dict(about=f'about {name}')})
    number = lambda what, split, m, oracle=False: dict(what=what, split=split, miou=m, iou=dict(background=m + .1, cat=m - .1, dog=None), oracle=oracle, data='synthetic', classes='bg+2', images=3, tags='scene', refine=[], crf='', threshold=None, threshold_from='',
                                                       use_image_labels=what != 'network', backbone='tiny', seed=0, device='cpu')
    save_json(runs / name / 'metrics.json', dict(numbers=[number('masks', 'train', .1), number('masks', 'val', miou), *([number('network', 'val', .7)] if network else []), number('score maps', 'val', .99, True)]))
    for s, made in stages.items(): save_json(runs / 'stages' / made['folder'] / 'stage.json', dict(made, results={}))
    save_json(runs / 'stages' / train / 'stage.json', dict(stages['train'], results=dict(history=[dict(step=i, loss=1. / (i + 1)) for i in range(3)])))
    for stage, make in (('masks', masks), ('evaluate', network)):
        for i in SHOWN if make else ():
            path = runs / 'stages' / f'{stage}-{name}' / 'val' / f'{VAL.names[i]}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make(i)).save(path)


def nothing(i): return np.zeros_like(VAL.mask(i))


@pytest.fixture
def drawn(monkeypatch):
    "What was handed to `grid` and `plot_curves`"
    calls = []
    monkeypatch.setattr(P, 'grid', lambda rows, **more: calls.append(dict(more, rows=[list(r) for r in rows])) or 'figure')
    monkeypatch.setattr(R, 'plot_curves', lambda history, **more: calls.append(dict(more, history=history)) or plot_curves(history, **more))
    return calls


def test_a_heat_table_colours_by_value_and_marks_the_best_of_a_column():
    text = R.heat_table({'a': [.2, .6, None], '<b>': [.4, None, None]}, ['x', 'y', 'never there'])
    assert re.findall(r'<th>(.*?)</th>', text) == ['', 'x', 'y']
    assert re.findall(r'<td[^>]*>(.*?)</td>', text) == ['a', '0.200', '0.600', '&lt;b&gt;', '<b>0.400</b>', '']
    assert re.findall(r',([\d.]+)\)"', text) == ['0.00', '0.60', '0.30']  # from the least to the most of the table
    assert '<b>' not in R.heat_table({'a': [.2, .6], 'b': [.2, .6]}, ['x', 'y']) + R.heat_table({}, ['x'])  # where all are alike there is no best


def test_the_summary_says_what_was_reached_on_the_last_split_and_no_oracle(tmp_path):
    write_run(tmp_path, 'a', nothing, .5, nothing)
    write_run(tmp_path, 'b', nothing, .6)
    report = R.Report(tmp_path, ['a', 'b'])
    rows = [re.findall('<td>(.*?)</td>', r) for r in report.summary().split('<tr>')[2:]]
    assert [r[:4] for r in rows] == [['a', 'about a', '0.500 on val', '0.700 on val'], ['b', 'about b', '0.600 on val', '']] and '0.990' not in report.summary()
    assert rows[0][-1] == PUBLISHED['written'][:10] + ' ' + PUBLISHED['written'][11:16]
    assert [report.reached(r, 'masks', 'val') for r in report.runs] == [.5, .6] and report.reached(report.runs[1], 'network', 'val') is None and report.reached(report.runs[0], 'score maps', 'val') is None


def test_classes_of_several_runs_are_compared_by_masks_and_network_and_those_of_one_run_together(tmp_path):
    write_run(tmp_path, 'a', nothing, .5, nothing)
    write_run(tmp_path, 'b', nothing, .6)
    read = lambda report: {title: [re.findall('<td[^>]*>(.*?)</td>', r) for r in table.split('<tr>')[2:]] for title, table in report.classes()}
    two = read(R.Report(tmp_path, ['a', 'b']))
    assert list(two) == ['synthetic, train, masks', 'synthetic, val, masks', 'synthetic, val, network']
    assert two['synthetic, val, masks'] == [['a', '0.500', '0.600', '0.400'], ['b', '<b>0.600</b>', '<b>0.700</b>', '<b>0.500</b>']]
    assert [r[0] for r in two['synthetic, val, network']] == ['a']
    one = read(R.Report(tmp_path, ['a']))
    assert {k: [r[0] for r in v] for k, v in one.items()} == {'synthetic, train': ['masks'], 'synthetic, val': ['masks', 'network']}


def test_pictures_of_several_runs_stand_side_by_side_between_image_and_truth(tmp_path, drawn):
    write_run(tmp_path, 'good', VAL.mask, .5, nothing)
    write_run(tmp_path, 'table.row', nothing, .6)
    (tmp_path / 'stages/masks-table.row/val' / f'{VAL.names[99]}.png').unlink()  # a run that has seen less
    shown = list(R.Report(tmp_path, ['good', 'table.row']).pictures(3))
    assert [title for title, _ in shown] == ['synthetic, val: 3 of 100 images', 'masks', 'network']
    masks, network = drawn
    assert masks['titles'] == ['image', 'good\n0.500', 'table\nrow\n0.600', 'truth'] and network['titles'] == ['image', 'good\n0.700', 'truth']
    assert masks['row_titles'] == [', '.join(VAL.classes[t - 1] for t in VAL[i].tags) for i in SHOWN]
    for i, row in zip(SHOWN, masks['rows']):
        image, good, none, truth = row
        assert none is None if i == 99 else (none == image).all()
        assert (image == VAL.image(i)).all() and (good == truth).all() and (truth == overlay(VAL.image(i), VAL.mask(i))).all() and (truth != image).any()
    for i, row in zip(SHOWN, network['rows']): assert (row[1] == VAL.image(i)).all()


def test_pictures_of_one_run_go_from_image_to_truth(tmp_path, drawn):
    write_run(tmp_path, 'a', VAL.mask, .5, nothing)
    assert [title for title, _ in R.Report(tmp_path, ['a']).pictures(3)] == ['synthetic, val: 3 of 100 images', '']
    (call,) = drawn
    assert call['row_titles'] == ['image', 'masks\n0.500', 'network\n0.700', 'truth'] and [len(r) for r in call['rows']] == [3] * 4
    assert all((m == t).all() and (n == i).all() for i, m, n, t in zip(*call['rows']))


def test_a_training_that_runs_share_is_drawn_once(tmp_path, drawn):
    for name, train in (('a', 'train-a'), ('b', 'train-b'), ('c', 'train-a')): write_run(tmp_path, name, nothing, train=train)
    (title, figure), = R.Report(tmp_path, ['a', 'b', 'c']).curves()
    assert title == 'train' and list(drawn[0]['history']) == ['a and 1 more', 'b']
    assert [ax.get_title() for ax in figure.axes if ax.axison] == ['a and 1 more', 'b']
    assert [list(line.get_ydata()) for ax in figure.axes for line in ax.lines] == [[1, 1 / 2, 1 / 3]] * 2


def test_a_page_is_written_beside_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'run_notebook', lambda path, out, parameters, what, progress: execute(path, out, parameters, what, progress))
    write_run(tmp_path, 'a', VAL.mask, .5, nothing)
    with pytest.raises(Exception, match='no run is called'): R.make_report(['b'], tmp_path)
    page = R.make_report(['a'], tmp_path, pictures=3)
    assert page == tmp_path / 'a/report.html' and (tmp_path / 'a/report.ipynb').read_bytes() == stage_notebook('report').read_bytes() and 'src="http' not in page.read_text()
