"Numbers with their sources: places, what is refused, orders beside the papers' orders, tables and settings"
import json
import math
from pathlib import Path

import numpy as np
import pytest

from wsss_nb.results import sources as S
from wsss_nb.base.core import UserError
from wsss_nb.results.table_recipes import all_tables, known

ROOT = Path(__file__).resolve().parents[1]


def test_an_order_is_compared_pair_by_pair(capsys):
    paper = dict(a=60., b=55., c=50., d=50.)
    ours = dict(a=40., b=44., c=39.5, d=30., e=99.)
    agree, turned, near = S.against_paper(ours, paper)
    assert agree == [('a', 'd'), ('b', 'c'), ('b', 'd')] and turned == [('a', 'b')] and near == [('a', 'c'), ('c', 'd')]  # c and d are equal in the paper
    text = capsys.readouterr().out
    assert 'here:  b 44.0 > a 40.0 > c 39.5 > d 30.0' in text and '3 of 6 pairs as in the paper, 1 reversed, 2 too close to tell (within 1 here)' in text
    assert 'reversed: a over b: -4.0 here, +5.0 there' in text and '99' not in text


def test_the_spread_of_seeds_takes_the_place_of_the_point():
    ours = {'square': 44.7, 'absolute': 36.4, 'sigmoid': 42.8}
    assert S.against_paper(ours, 'icd:4')[1] == [('absolute', 'sigmoid')]
    assert S.against_paper(ours, 'icd:4', 11.)[0::2] == ([], [('square', 'absolute'), ('square', 'sigmoid'), ('absolute', 'sigmoid')])


def test_without_masks_nothing_is_compared(capsys):
    assert S.against_paper(dict(a=math.nan, b=1.), dict(a=2., b=1.)) == ([], [], [])
    assert '0 of 0 pairs' in capsys.readouterr().out


def test_numbers_come_from_runs_and_papers():
    n = S.Numbers(classes='bg+6', images=222)
    assert n.text('icd_photos.CAM masks/val', 'CAM, here') == '46.9' and n('paper icd:1 ICD') == 57.0
    assert n.text('icd_photos.CAM score maps/val threshold', 'CAM, oracle') == '.24' and n.text('icd_photos.CAM pixel mAP/val cat', 'CAM, ap') == '70.7'
    for place, said, text in (('icd_photos.CAM score maps/val', 'CAM, here', 'oracle of the published number is True'), ('icd_photos.CAN masks/val', '', "Did you mean 'icd_photos.CAM'?"),
                              ('paper icd:1 IDC', '', "has no row 'IDC' in 'icd:1'"), ('cam_synthetic masks/val', 'CAM, here', 'classes of the published number is bg+8')):
        with pytest.raises(UserError) as e: n.text(place, said)
        assert text in str(e.value)


def test_a_papers_number_is_quoted_as_it_is_printed():
    n = S.Numbers()
    assert [n.text(f'paper {p}') for p in ('ecsnet:text AffinityNet on the maps, train', 'svm:text gain of the seeds', 'icd:8 ICD, saliency, test', 'icd:2 CAM T 0.5, recall')] == ['67.82', '2.65', '68.0', '6.5']
    t = n.table(['', 'paper'], [['SIPE on test', '{paper sipe:2 SIPE, ResNet-101, test}']])
    assert t.cells[1] == ['SIPE on test', '69.7'] and t.sources == 'From runs/paper_numbers.yaml: sipe:2.'


def test_runs_that_differ_in_their_seed_are_one_number_with_its_spread():
    n, (a, b) = S.Numbers(classes='bg+6', images=222), ('ccmr_photos.CRF', 'ccmr_photos.CRF_seed_1')
    one, two = (json.loads((ROOT / f'runs/published/{r}/metrics.json').read_text())['numbers'][0]['miou'] for r in (a, b))
    mean, half = (one + two) / 2, abs(one - two) / 2
    assert n.text(f'{a},{b} masks/val', 'SWP') == f'{100 * float(f"{mean:.3f}"):.1f} ± {100 * float(f"{half:.3f}"):.1f}' and abs(n(f'{a},{b} masks/val') - 100 * mean) <= .051


def test_the_recall_is_what_the_executed_evaluation_printed():
    nb = json.loads((ROOT / 'runs/published/icd_synthetic/evaluate.ipynb').read_text())
    lines = ''.join(''.join(o.get('text', '')) for c in nb['cells'] for o in c.get('outputs', [])).split('masks on val, 100 images')[1].split('\n\n')[0].splitlines()
    by_hand = {line.split()[0]: [float(x) for x in line.split()[1:4]] for line in lines[2:] if line}
    report = S.report_of('icd_synthetic')
    assert {k: [*v.values()] for k, v in report.items()} == by_hand and len(by_hand) == 10
    mean = lambda column: sum(v[column] for k, v in report.items() if k != 'mean') / 9
    assert abs(mean('recall') - report['mean']['recall']) < .06 and abs(mean('precision') - report['mean']['precision']) < .06
    other = S.report_of('cam_synthetic')['mean']['recall']
    n = S.Numbers()
    assert n('icd_synthetic recall/val') == report['mean']['recall'] and n.text('icd_synthetic,cam_synthetic recall/val') == f'{(report["mean"]["recall"] + other) / 2:.1f} ± {abs(report["mean"]["recall"] - other) / 2:.1f}'
    for place, text in (('icd_photos.CAM recall/val', 'icd_photos.CAM: no executed evaluation is published of it'), ('icd_synthetic recall/test', 'its evaluation counts no masks on test')):
        with pytest.raises(UserError) as e: n.text(place)
        assert text in str(e.value)


def test_a_table_says_where_it_is_from(monkeypatch):
    rows = [['CAM', '{icd_photos.CAM masks/val}', '{paper icd:1 CAM}'], ['ICD', '', '{paper icd:3 top-down}']]
    t = S.Numbers().table(['', 'here', 'paper'], rows)
    assert t.cells[1] == ['CAM', '46.9', '46.3'] and t.sources == 'From runs/published: icd_photos.CAM; runs/paper_numbers.yaml: icd:1, icd:3.'
    assert '| ICD | | 59.9 |' in t._repr_markdown_() and '46.9' in repr(t)
    def gone(*_): raise UserError('published: no checkout')
    monkeypatch.setattr(S, 'Tables', gone)
    alone = S.Numbers()
    t = alone.table(['', 'here', 'paper'], rows)
    assert t.cells[1] == ['CAM', '–', '46.3'] and 'not here, but in the repository' in t.sources and math.isnan(alone('icd_photos.CAM masks/val'))


@pytest.mark.parametrize('paper', ['icd', 'ecsnet', 'sipe', 'ccmr', 'svm'])
def test_every_row_of_a_paper_is_in_its_overview(paper):
    t = S.paper_tables(paper)
    names = [k for k in known('paper_numbers') if k.startswith(f'{paper}:') and k in all_tables()]  # texts and bars are there to be quoted
    assert [row[-1] for row in t.cells[1:]] == [f'`wsss table {k}`' for k in names]
    for name, row in zip(names, t.cells[1:]):
        printed = set(known('paper_numbers')[name]['rows'])
        shown = {p.rpartition(' ')[0] for p in row[2].replace(' / ', '/').split('; ')} - {''}
        assert shown == printed & set(all_tables()[name]['rows']) and all(k in row[3] for k in all_tables()[name].get('cannot', {}))


def test_recipes_side_by_side():
    cells = {row[0]: row[1:] for row in S.settings_of('icd_voc12', 'icd_photos').cells}
    assert cells['train.epochs'] == ['20', '5'] and cells['train.backbone'] == ['vgg16', 'mobilenet_v2']
    assert 'train.lr' not in cells and not any('data_' in k or 'weights' in k for k in cells)  # the same in both, or of a machine


@pytest.mark.parametrize('paper, tables', [('icd', 8), ('ecsnet', 7), ('ccmr', 2)])
def test_every_row_has_a_number_or_a_reason(paper, tables):
    rows = S.every_row(paper).cells[1:]
    assert len({r[0] for r in rows}) == tables and all(any(r[3:]) for r in rows)
    for name in {r[0] for r in rows}:
        named = [k for r in rows if r[0] == name for k in ([r[1]] if r[2] or not r[1].endswith('of other authors') else r[5].split('; '))]
        for k in known('paper_numbers')[name]['rows']: assert any(n in k for n in named), (name, k)


def of_three_seeds(run, what='masks'):
    "By hand: mean and half of what lies between the published seeds, in percent"
    x = [next(100 * n['miou'] for n in json.loads((ROOT / f'runs/published/{r}/metrics.json').read_text())['numbers'] if n['what'] == what) for r in (run, f'{run}_seed_1', f'{run}_seed_2')]
    return f'{sum(x) / 3:.1f} ± {(max(x) - min(x)) / 2:.1f}'


def test_a_row_may_be_a_run_of_another_name_with_all_its_seeds(tmp_path):
    row = lambda also: next(r for r in S.every_row('icd', also).cells if r[:2] == ['icd:3', 'top-down'])
    assert row({'icd:3 top-down': 'icd_photos.top-down'})[2:4] == ['59.9', of_three_seeds('icd_photos.top-down')] and row({})[3] == ''


def test_rows_of_several_seeds_are_compared_seed_with_seed(capsys):
    ours, paper = {'a': [9., 9.4], 'b': [8., 6.], 'c': [5., 9.8]}, dict(a=4., b=3., c=2., d=1.)
    assert S.against_paper(ours, paper) == ([('a', 'b')], [], [('a', 'c'), ('b', 'c')])
    out = capsys.readouterr().out
    assert 'here:  a 9.2 ± 0.2 > c 7.4 ± 2.4 > b 7.0 ± 1.0' in out and 'too close: b over c: -0.4 ± 3.4 here, +1.0 there' in out and 'or within what lies between the seeds' in out
    assert S.against_paper({'a': [1., 2.], 'b': [3.5, 4.5]}, dict(a=2., b=1.))[1] == [('a', 'b')]  # both seeds say the opposite of the paper
    assert S.against_paper({'a': [1., 2.], 'b': [3.5, 4.5]}, dict(a=2., b=1.), close=3.)[2] == [('a', 'b')]
    assert S.against_paper({'a': np.float32(3), 'b': [np.float64(1)], 'c': []}, dict(a=2., b=1., c=0.)) == ([('a', 'b')], [], [])
    with pytest.raises(UserError, match='expected as many seeds in all rows, got 2 and 1'): S.against_paper({'a': [1., 2.], 'b': 3.}, dict(a=2., b=1.))


def test_the_seeds_of_a_table_are_those_that_are_published():
    n = S.Numbers(classes='bg+8', images=100)
    found = S.seeds_here('sipe:fig8', 'synthetic', n)
    for row, seeds in found.items():
        run = f'sipe_fig8-synthetic.{row.replace(" ", "_").replace(".", "_")}'
        assert seeds == [100 * json.loads((ROOT / f'runs/published/{r}/metrics.json').read_text())['numbers'][0]['miou'] for r in (run, f'{run}_seed_1')]
        assert n.seeds(f'{run} masks/val') == [round(x, 1) for x in seeds] and S.every_seed(run, n) == f'{run},{run}_seed_1'
    assert len(found) == 8
    n.tables = None
    assert S.seeds_here('sipe:fig8', 'synthetic', n) == {} and S.every_seed('x', n) == 'x'


def test_a_row_may_be_runs_of_other_names_one_on_each_data_set():
    value = lambda run, what: next(f'{100 * n["miou"]:.1f}' for n in json.loads((ROOT / f'runs/published/{run}/metrics.json').read_text())['numbers'] if n['what'] == what)
    runs = ['sipe_photos.IPE_without_GSC', 'sipe_synthetic_table.IPE_without_GSC']
    row = next(r for r in S.every_row('sipe', {'sipe:4 CAM, IPE': runs}).cells if r[:2] == ['sipe:4', 'CAM, IPE'])
    assert row[2:] == ['53.2', value(runs[0], 'masks'), value(runs[1], 'masks'), '']
