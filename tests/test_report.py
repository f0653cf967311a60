"""The page about some runs: its tables, the pictures side by side, the losses of trainings that runs share."""
import re
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from inside import execute
from wsss_nb.results import report as R
from wsss_nb.results import report_pictures as P
from wsss_nb.base.core import UserError, load_json, save_json
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.execute import StageFailed
from wsss_nb.engine.gallery import ADVICE
from wsss_nb.engine.parameters import stage_notebook
from wsss_nb.base.show import overlay, plot_curves

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
    monkeypatch.setattr('wsss_nb.base.show.grid', lambda rows, **more: calls.append(dict(more, rows=[list(r) for r in rows])) or 'figure')
    monkeypatch.setattr('wsss_nb.base.show.plot_curves', lambda history, **more: calls.append(dict(more, history=history)) or plot_curves(history, **more))
    return calls


def test_the_summary_says_what_was_reached_on_the_last_split_and_no_oracle(tmp_path):
    write_run(tmp_path, 'a', nothing, .5, nothing)
    write_run(tmp_path, 'b', nothing, .6)
    report = R.RunReport(tmp_path, ['a', 'b'])
    rows = [re.findall('<td>(.*?)</td>', r) for r in report.summary().split('<tr>')[2:]]
    assert [r[:4] for r in rows] == [['a', 'about a', '0.500 on val', '0.700 on val'], ['b', 'about b', '0.600 on val', '']] and '0.990' not in report.summary()
    assert rows[0][-1] == PUBLISHED['written'][:10] + ' ' + PUBLISHED['written'][11:16]
    assert [report.reached(r, 'masks', 'val') for r in report.runs] == [.5, .6] and report.reached(report.runs[1], 'network', 'val') is None and report.reached(report.runs[0], 'score maps', 'val') is None


def test_classes_of_several_runs_are_compared_by_masks_and_network_and_those_of_one_run_together(tmp_path):
    write_run(tmp_path, 'a', nothing, .5, nothing)
    write_run(tmp_path, 'b', nothing, .6)
    read = lambda report: {title: [re.findall('<td[^>]*>(.*?)</td>', r) for r in table.split('<tr>')[2:]] for title, table in report.classes()}
    two = read(R.RunReport(tmp_path, ['a', 'b']))
    assert list(two) == ['synthetic, train, masks', 'synthetic, val, masks', 'synthetic, val, network']
    assert two['synthetic, val, masks'] == [['a', '0.500', '0.600', '0.400'], ['b', '<b>0.600</b>', '<b>0.700</b>', '<b>0.500</b>']]
    assert [r[0] for r in two['synthetic, val, network']] == ['a']
    one = read(R.RunReport(tmp_path, ['a']))
    assert {k: [r[0] for r in v] for k, v in one.items()} == {'synthetic, train': ['masks'], 'synthetic, val': ['masks', 'network']}


def test_pictures_of_several_runs_stand_side_by_side_between_image_and_truth(tmp_path, drawn):
    write_run(tmp_path, 'good', VAL.mask, .5, nothing)
    write_run(tmp_path, 'table.row', nothing, .6)
    (tmp_path / 'stages/masks-table.row/val' / f'{VAL.names[99]}.png').unlink()  # a run that has seen less
    shown = list(R.RunReport(tmp_path, ['good', 'table.row']).pictures(3))
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
    assert [title for title, _ in R.RunReport(tmp_path, ['a']).pictures(3)] == ['synthetic, val: 3 of 100 images', '']
    (call,) = drawn
    assert call['row_titles'] == ['image', 'masks\n0.500', 'network\n0.700', 'truth'] and [len(r) for r in call['rows']] == [3] * 4
    assert all((m == t).all() and (n == i).all() for i, m, n, t in zip(*call['rows']))


def test_a_training_that_runs_share_is_drawn_once(tmp_path, drawn):
    for name, train in (('a', 'train-a'), ('b', 'train-b'), ('c', 'train-a')): write_run(tmp_path, name, nothing, train=train)
    (title, figure), = R.RunReport(tmp_path, ['a', 'b', 'c']).curves()
    assert title == 'train' and list(drawn[0]['history']) == ['a and 1 more', 'b']
    assert [ax.get_title() for ax in figure.axes if ax.axison] == ['a and 1 more', 'b']
    assert [list(line.get_ydata()) for ax in figure.axes for line in ax.lines] == [[1, 1 / 2, 1 / 3]] * 2


def test_a_page_is_written_beside_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'run_notebook', lambda path, out, parameters, what, progress: execute(path, out, parameters, what, progress))
    write_run(tmp_path, 'a', VAL.mask, .5, nothing)
    with pytest.raises(Exception, match='no run is called'): R.make_report(['b'], tmp_path)
    assert not list((tmp_path / 'a').glob('report*'))
    page = R.make_report(['a'], tmp_path, pictures=3)
    assert page == tmp_path / 'a/report.html' and (tmp_path / 'a/report.ipynb').read_bytes() == stage_notebook('report').read_bytes() and 'src="http' not in page.read_text()


def small_ones(run, names):
    "The small pictures of a run's page, empty"
    for f in (run / f'masks/val/{n}.jpg' for n in names):
        f.parent.mkdir(parents=True, exist_ok=True)
        f.touch()


def links_in(html): return [unquote(unescape(s)) for s in re.findall(r'src="([^"]*)"', html)]


def test_the_report_has_every_picture_and_two_thousand_make_a_small_page(tmp_path):
    names = [f'{i:04} <b>/#%"' for i in range(2000)]
    for run in ('a', 'b'): write_run(tmp_path, run, nothing)
    small_ones(tmp_path / 'a', names), small_ones(tmp_path / 'b', names[1:])
    one, two = (R.RunReport(tmp_path, r) for r in (['a'], ['a', 'b']))
    alone, both, moved = one.every(), two.every(), two.every(tmp_path / 'elsewhere/deep')
    assert [len(links_in(h)) for h in (alone, both)] == [2000, 3999] and both.count('loading="lazy"') == 3999 and '<b>' not in both
    assert both.count('<details') == 20 and both.count('<details open') == 1 and 'from left to right: a, b' in both and '1901 to 2000' in both and 'left to right' not in alone
    assert len(alone) < 700_000 and len(both) < 1_200_000
    for home, html in ((one.home, alone), (two.home, both), (tmp_path / 'elsewhere/deep', moved)):
        home.mkdir(parents=True, exist_ok=True)
        assert len(links := links_in(html)) > 1999 and all((home / s).is_file() for s in links[::97])
    assert R.RunReport(tmp_path, ['a']).every() != '' and '<img' not in str(RunsWithout(tmp_path).every())


def RunsWithout(runs):
    write_run(runs / 'bare', 'c', nothing)
    return R.RunReport(runs / 'bare', ['c'])


def test_a_report_elsewhere_still_finds_every_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(R, 'run_notebook', lambda path, out, parameters, what, progress: (Path(out).write_text('{"cells": []}'), None))
    def page(notebook): return f'<p>{R.RunReport(tmp_path, ["a"]).links()}</p>{R.RunReport(tmp_path, ["a"]).every()}'
    monkeypatch.setattr(R, 'executed_page', page), monkeypatch.setattr(R, 'write_own_pages', lambda report, run: None)
    write_run(tmp_path, 'a', nothing), small_ones(tmp_path / 'a', ['x', 'y'])
    made = R.make_report(['a'], tmp_path, tmp_path / 'other/place')
    assert sorted(links_in(made.read_text())) == ['../../a/masks/val/x.jpg', '../../a/masks/val/y.jpg'] and all((made.parent / s).exists() for s in links_in(made.read_text()))


# -- runs of several folders, without their stages, and mistakes

@pytest.fixture
def quick(monkeypatch):
    "The report's notebook is executed in the process of the test"
    monkeypatch.setattr(R, 'run_notebook', lambda path, out, parameters, what, progress: execute(path, out, parameters, what, progress))


def pieces(report): return report.summary(), report.table(), list(report.classes()), list(report.curves()), report.links(), report.provenance()


def test_runs_of_two_folders_are_compared(tmp_path, drawn, quick):
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    write_run(ours, 'mine', VAL.mask, .5, train='train-a')
    write_run(theirs, 'mine', nothing, .6, train='train-b')
    write_run(theirs, 'other', nothing, .7, train='train-c')
    (theirs / 'mine/train.ipynb').write_text('{}')
    report = R.RunReport(ours, [str(theirs / 'mine'), 'mine', theirs / 'other', theirs / 'mine'])
    assert [r['name'] for r in report.runs] == ['theirs/mine', 'ours/mine', 'other']
    assert [report.stage_folder(r, 'train') for r in report.runs] == [theirs / 'stages/train-b', ours / 'stages/train-a', theirs / 'stages/train-c'] and not list(report.notes())
    assert [title for title, _ in report.pictures(3)] == ['synthetic, val: 3 of 100 images', 'masks']
    assert drawn[0]['titles'] == ['image', 'theirs/mine\n0.600', 'ours/mine\n0.500', 'other\n0.700', 'truth']
    assert all((good == truth).all() and (none == image).all() for image, none, good, _, truth in drawn[0]['rows'])
    list(report.curves())
    assert list(drawn[1]['history']) == ['theirs/mine', 'ours/mine', 'other']
    assert 'href="../theirs/mine/train.ipynb"' in report.links() and 'href="../../theirs/mine/train.ipynb"' in report.links(tmp_path / 'far/away')
    before = {p for p in theirs.rglob('*')}
    assert R.make_report([str(theirs / 'mine'), 'mine'], ours, tmp_path / 'page') == tmp_path / 'page/report.html' and before == {p for p in theirs.rglob('*')}  # nothing is written into another's folder
    assert R.make_report([str(theirs / 'mine')], ours) == ours / 'report.html'


def test_a_record_without_its_stages_is_shown_as_it_is(tmp_path, drawn):
    report = R.RunReport(tmp_path, [Path(__file__).resolve().parents[1] / 'runs/published/cam_synthetic'])
    note, = report.notes()
    assert note.startswith('cam_synthetic: what train, masks, segment, evaluate made is not in ') and note.endswith('published/stages; shown is what its record says')
    summary, table, classes, curves, links, provenance = pieces(report)
    assert note in summary and 'cam_synthetic' in table and len(classes) == 2 and not curves and 'train' in provenance and not list(report.pictures()) and not drawn
    assert report.home == tmp_path  # not in the folder of published runs


def test_a_run_that_lost_some_stages_shows_the_others(tmp_path, drawn):
    for name in ('a', 'b'): write_run(tmp_path, name, VAL.mask, train=f'train-{name}')
    shutil.rmtree(tmp_path / 'stages/train-a')
    shutil.rmtree(tmp_path / 'stages/masks-b')
    (tmp_path / 'b/metrics.json').unlink()
    report = R.RunReport(tmp_path, ['a', 'b'])
    assert [n.partition(' made')[0] for n in report.notes()] == ['a: what train', 'b: what masks']
    pieces(report)
    list(report.pictures(3))
    assert list(drawn[0]['history']) == ['b'] and drawn[-1]['row_titles'] == ['image', 'masks\n0.500', 'truth']


def test_data_that_are_gone_are_told_where_the_pictures_would_be(tmp_path, drawn):
    write_run(tmp_path, 'a', VAL.mask)
    run = load_json(tmp_path / 'a/run.json')
    run['stages']['masks']['parameters'].update(data_name='folder', data_root='/gone/<b>')
    save_json(tmp_path / 'a/run.json', run)
    assert list(R.RunReport(tmp_path, ['a']).pictures()) == [('folder, val: no pictures: root: expected a folder at /gone/<b> with images and tags.csv, found nothing; correct the path.', None)]


def test_names_that_are_html_are_text_on_every_page(tmp_path):
    nasty = '<b>"&\'</b>'
    write_run(tmp_path, 'a', VAL.mask)
    run, metrics = (load_json(tmp_path / f'a/{x}.json') for x in ('run', 'metrics'))
    run['recipe'].update(about=nasty)
    run['stages']['masks']['parameters'].update(data_name='folder', data_root=f'/gone/{nasty}', data_classes=nasty)
    for n in metrics['numbers']: n.update(tags=nasty, backbone=nasty, iou={'background': .5, nasty: .5})
    save_json(tmp_path / 'a/run.json', run)
    save_json(tmp_path / 'a/metrics.json', metrics)
    for piece in (str(x) for x in pieces(R.RunReport(tmp_path, ['a'])) if not isinstance(x, list)): assert nasty not in piece
    assert any('&lt;b&gt;&#34;&amp;&#39;&lt;/b&gt;' in table for _, table in R.RunReport(tmp_path, ['a']).classes())
    outputs = [dict(output_type='error', ename=nasty, evalue=nasty), dict(output_type='stream', name='stdout', text=[nasty]), dict(output_type='display_data', data={'text/html': ['<i>', 'a</i>']})]
    save_json(tmp_path / f'{nasty[3:]}.ipynb'.replace('/', ''), dict(cells=[dict(cell_type='code', metadata={}, source='', outputs=outputs)]))
    page = R.executed_page(next(tmp_path.glob('*.ipynb')))
    assert nasty not in page and page.count('&lt;b&gt;&#34;&amp;&#39;&lt;/b&gt;') == 3 and '<i>a</i>' in page and '<title>&#34;&amp;&#39;&lt;b&gt;' in page


def test_a_mistake_leaves_nothing(tmp_path, monkeypatch):
    write_run(tmp_path / 'runs', 'a', VAL.mask)
    before = {p for p in tmp_path.rglob('*')}
    with pytest.raises(UserError, match="report: no run is called 'b' in .*"): R.make_report(['a', 'b'], tmp_path / 'runs', tmp_path / 'out')
    def fails(path, out, parameters, what, progress):
        out.write_text('{}')
        raise StageFailed(f'report failed in cell 2: oh (executed notebook: {out})')
    monkeypatch.setattr(R, 'run_notebook', fails)
    monkeypatch.setattr(R, 'masks_page', lambda *_: None)
    with pytest.raises(StageFailed, match='^report failed in cell 2: oh; no report was written$'): R.make_report(['a'], tmp_path / 'runs', tmp_path / 'out')
    assert before == {p for p in tmp_path.rglob('*')}


# -- small sets

@pytest.mark.parametrize('images, shown, figures', [(30, 30, 3), (60, 60, 6), (61, 8, 1)])
def test_a_small_set_is_shown_whole(tmp_path, drawn, images, shown, figures):
    write_run(tmp_path, 'a', VAL.mask)
    run = load_json(tmp_path / 'a/run.json')
    run['stages']['masks']['parameters']['limit'] = images
    save_json(tmp_path / 'a/run.json', run)
    (title, _), *rest = R.RunReport(tmp_path, ['a']).pictures()
    assert title == f'synthetic, val: {"all 30" if images == 30 else "all 60" if images == 60 else "8 of 61"} images' and len(rest) == len(drawn) == figures
    seen = [p for call in drawn for p in call['rows'][0]]
    assert len(seen) == shown and (images > 60 or all((p == VAL.image(i)).all() for i, p in enumerate(seen)))


def test_the_report_has_the_warnings_of_the_stages_and_the_page_of_the_masks(tmp_path):
    write_run(tmp_path, 'a', VAL.mask)
    for stage, folder, results in (('train', 'train-a', dict(steps=8, history=[])), ('masks', 'masks-a', dict(odd=dict(val=dict(images=30, blank=6, full=4))))):
        save_json(tmp_path / 'stages' / folder / 'stage.json', dict(PUBLISHED['stages'][stage], results=results))
    report = R.RunReport(tmp_path, ['a'])
    assert list(report.notes()) == ['a: warning: 8 steps of training, from which little is learnt; train.epochs=250 makes 100',
                                    'a: warning: of 30 masks of val 6 show nothing but background and 4 are filled by one class; ' + ADVICE]
    assert all(n in report.summary() for n in report.notes()) and 'picture by picture' not in report.links()
    (tmp_path / 'a/masks').mkdir()
    (tmp_path / 'a/masks/index.html').touch()
    assert '<a href="masks/index.html">all masks, picture by picture</a>' in report.links() and 'href="../a/masks/index.html"' in report.links(tmp_path / 'elsewhere')


def test_a_run_ends_with_its_numbers_its_masks_and_its_report(tmp_path, capsys, monkeypatch):
    write_run(tmp_path, 'a', VAL.mask)
    made = []
    monkeypatch.setattr(R, 'make_report', lambda *a: made.append(a) or tmp_path / 'report.html')
    R.finish_report(tmp_path / 'a', tmp_path)
    masks = f'masks: {tmp_path}/stages/masks-a/train (0 PNG), {tmp_path}/stages/masks-a/val (3 PNG)'
    assert capsys.readouterr().out.splitlines()[-2:] == [masks, f'report: {tmp_path}/a/report.html']  # a page that is not there is not named
    (tmp_path / 'a/masks').mkdir()
    (tmp_path / 'a/masks/index.html').touch()
    R.finish_report(tmp_path / 'a', tmp_path)
    assert capsys.readouterr().out.splitlines()[-3:] == [masks, f'look at them: {tmp_path}/a/masks/index.html', f'report: {tmp_path}/a/report.html']
    R.finish_table([tmp_path / 'a'], tmp_path)
    assert f'look at the masks of each row: {tmp_path}/a/masks/index.html and so on\nreport: {tmp_path}/report.html\n' in capsys.readouterr().out


def test_a_report_makes_the_pages_of_masks_that_are_not_there(tmp_path, quick):
    write_run(tmp_path, 'a', VAL.mask)
    run = load_json(tmp_path / 'a/run.json')
    run['stages']['masks']['parameters'].update(splits=['val'], limit=1)
    save_json(tmp_path / 'a/run.json', run)
    R.make_report(['a'], tmp_path)
    page = (tmp_path / 'a/masks/index.html').read_text()
    assert page.count('<figure>') == 1 and f'href="../../stages/masks-a/val/{VAL.names[0]}.png"' in page and (tmp_path / f'a/masks/val/{VAL.names[0]}.jpg').exists()
