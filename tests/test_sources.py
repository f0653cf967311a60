"Numbers with their sources: places, what is refused, orders beside the papers' orders, tables and settings"
import math

import pytest

from wsss_nb.results import sources as S
from wsss_nb.base.core import UserError
from wsss_nb.results.table_recipes import all_tables, known


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
    names = [k for k in known('paper_numbers') if k.startswith(f'{paper}:')]
    assert [row[-1] for row in t.cells[1:]] == [f'`wsss table {k}`' for k in names]
    for name, row in zip(names, t.cells[1:]):
        printed = set(known('paper_numbers')[name]['rows'])
        shown = {p.rpartition(' ')[0] for p in row[2].replace(' / ', '/').split('; ')} - {''}
        assert shown == printed & set(all_tables()[name]['rows']) and all(k in row[3] for k in all_tables()[name].get('cannot', {}))


def test_recipes_side_by_side():
    cells = {row[0]: row[1:] for row in S.settings_of('icd_voc12', 'icd_photos').cells}
    assert cells['train.epochs'] == ['20', '5'] and cells['train.backbone'] == ['vgg16', 'mobilenet_v2']
    assert 'train.lr' not in cells and not any('data_' in k or 'weights' in k for k in cells)  # the same in both, or of a machine
