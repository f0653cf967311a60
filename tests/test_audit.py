"wsss data audit: doubts, the page, the list, and the way back through corrections.csv"
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.data.folder import folder
from wsss_nb.data.synthetic import synthetic
from wsss_nb.data.tagged import tagged
from wsss_nb.nets.zoo import build
from wsss_nb.results.audit import Doubt, audit, doubts, foretold, how_doubtful, list_text, not_decided, largest_values

CLASSES = ['cat', 'dog']


def separable(n=60, seed=0):
    "Features that tell two classes, their labels, and labels with one tag off and one on"
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, 2, generator=g) < .4).float()
    x = torch.cat([3 * labels - 1.5, torch.randn(n, 3, generator=g)], 1)
    x[:, :2] += .3 * torch.randn(n, 2, generator=g)
    wrong = labels.clone()
    off, on = int(labels[:, 0].argmax()), int(labels[:, 1].argmin())
    wrong[off, 0], wrong[on, 1] = 0, 1
    return x, labels, wrong, off, on


def test_the_disturbed_tags_come_first():
    x, _, wrong, off, on = separable()
    p = foretold(x, wrong)
    names = [f'{i}' for i in range(len(x))]
    found = doubts(p, wrong, names, CLASSES)
    assert {d[:3] for d in found[:2]} == {(f'{off}', 'cat', 'missing'), (f'{on}', 'dog', 'wrong')}
    assert [d.doubt for d in found] == sorted((d.doubt for d in found), reverse=True) and all(d.doubt >= .5 for d in found)
    assert torch.equal(p, foretold(x, wrong)) and not torch.equal(p, foretold(x, wrong, seed=7))


def test_a_picture_has_no_say_in_its_own_foretelling():
    x, labels, *_ = separable()
    own = torch.zeros(len(x), 1)
    own[5] = 9.  # a feature that only one picture has
    flipped = labels.clone()
    flipped[5] = 1 - flipped[5]
    a, b = (foretold(torch.cat([x, own], 1), y, rounds=1)[5] for y in (labels, flipped))
    assert ((a > .5) == (b > .5)).all() and ((a > .5).float() == labels[5]).all()


def test_doubt_is_bayes_rule_for_as_many_missing_as_wrong():
    n, N, eps, p = 12, 100, .01, .3  # eps: errors of each kind, as a share of all pictures
    labels = torch.zeros(N, 1); labels[:n] = 1
    d = how_doubtful(torch.full((N, 1), p), labels)
    odds_missing, odds_wrong = p / (1 - p) * (eps / (n / N)), (1 - p) / p * (eps / (1 - n / N))  # P(error | tag, picture) / P(right | ...), for small eps
    odds = lambda v: float(v / (1 - v))
    assert abs(odds(d[0, 0]) / odds(d[-1, 0]) - odds_wrong / odds_missing) < 1e-5


def test_rare_classes_are_left_out_and_named(tmp_path):
    data = synthetic('train', n=40)
    tags = [('ball',) + (('rare',) if i < 3 else ()) if i % 2 else ('sun',) for i in range(40)]
    some = tagged([data.image(i) for i in range(40)], tags)
    torch.manual_seed(0)
    audit(some, build('tiny'), tmp_path, side=48)
    page = (tmp_path/'index.html').read_text()
    assert 'Not audited, because fewer than 10 pictures have the tag, or lack it: rare.' in page
    with pytest.raises(UserError, match=r'audit: tagged: no class has 10 pictures with its tag and 10 without; give more pictures'): audit(some.subset(range(12)), build('tiny'), tmp_path, side=48)
    with pytest.raises(UserError, match=r'1 of 1 images have no tags'): audit(tagged([data.image(0)], [None], classes=['ball']), build('tiny'), tmp_path)


def test_sizes_and_a_single_colour():
    images = [np.full((h, w, 3), c, np.uint8) for h, w, c in ((40, 90, 10), (90, 40, 200), (7, 5, 90))]
    x = largest_values(build('tiny'), tagged(images, ['a'] * 3), side=64)
    assert x.shape == (3, 272) and torch.isfinite(x).all()


def test_earlier_decisions_stay_and_are_not_asked_again():
    found = [Doubt('a, b', 'dog', 'wrong', .9), Doubt('"c"', 'cat', 'missing', .8)]
    earlier = [dict(image='a, b', tag='dog', do='keep', why='wrong', doubt='.99', note='mine')]
    text = list_text(not_decided(found, earlier), earlier)
    assert list(csv.reader(io.StringIO(text))) == [['image', 'tag', 'do', 'why', 'doubt'], ['a, b', 'dog', 'keep', 'wrong', '.99'], ['"c"', 'cat', '', 'missing', '0.8']]


@pytest.fixture
def photos(tmp_path):
    drawn = synthetic('train', n=60)
    lines = ['image,tags']
    for i, r in enumerate(drawn.records):
        Image.fromarray(drawn.image(i)).save(tmp_path/f'{i}.png')
        lines.append(f'{i},{";".join(drawn.classes[t - 1] for t in r.tags)}')
    (tmp_path/'tags.csv').write_text('\n'.join(lines))
    return tmp_path


def test_the_way_round(photos, capsys):
    torch.manual_seed(0)
    line = ['data', 'audit', '--root', str(photos), '--backbone', 'tiny', '--weights', '', '--side', '48', '--most', '4', '--out', str(photos/'audit')]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert f'Open this page: {photos}/audit/index.html\nTick what is right and save the list as {photos}/corrections.csv' in said
    rows = list(csv.DictReader(open(photos/'audit/corrections.csv')))
    assert len(rows) == 4 and {r['do'] for r in rows} == {''}
    before = {r.name: r.tags for r in folder(photos).records}
    rows[0]['do'], rows[1]['do'] = dict(wrong='remove', missing='add')[rows[0]['why']], 'keep'
    with open(photos/'corrections.csv', 'w') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader(), w.writerows(rows)
    data = folder(photos)
    after = {r.name: r.tags for r in data.records}
    assert [n for n in before if before[n] != after[n]] == [rows[0]['image']] and '1 of 1 corrections from corrections.csv change a tag' in data.notes
    assert main(line) == 0  # again: what was decided stands first and is not among the doubts
    again = list(csv.DictReader(open(photos/'audit/corrections.csv')))
    assert again[:2] == rows[:2] and not {(r['image'], r['tag']) for r in rows[:2]} & {(r['image'], r['tag']) for r in again[2:]} and len(again) == 6


def test_what_the_page_holds(photos):
    (photos/'classes.txt').write_text('')
    text = (photos/'tags.csv').read_text()
    (photos/'tags.csv').write_text(text.replace('cat', '<img src=x onerror=alert(1)>'))
    torch.manual_seed(0)
    audit(folder(photos), build('tiny'), photos/'audit', most=6, side=48)
    page = (photos/'audit/index.html').read_text()
    assert '<img src=x' not in page and not re.search(r'(src|href)="(?!data:)[^"]', page) and "script-src 'unsafe-inline'; object-src 'none'" in page
    rows = json.loads(re.search(r'<script id="rows" type="application/json">(.*?)</script>', page, re.S)[1])
    assert rows == list(csv.reader(open(photos/'audit/corrections.csv'))) and [int(n) for n in re.findall(r'data-row="(\d+)"', page)] == list(range(1, 7))


@pytest.mark.parametrize('more, told', [(['--most', '0'], 'most: expected a whole number from 1 on'), (['--root', '/nowhere/at/all'], 'root: expected a folder at /nowhere/at/all'),
                                        (['--backbone', 'tinny'], "backbone: unknown name 'tinny'. Did you mean 'tiny'?"), (['--device', 'gpu'], "device")])
def test_wrong_words(photos, more, told, capsys):
    assert main(['data', 'audit', '--root', str(photos), '--backbone', 'tiny', '--weights', '', '--side', '32', '--out', str(photos/'audit'), *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith('wsss: ') and told in said and said.count('\n') == 1 and not (photos/'audit').exists()
