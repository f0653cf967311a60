"""Every table of the papers: the numbers add up, the recipes are in step and valid, and a table runs, goes on and shows both sides."""
import json
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from inside import inside
from wsss_nb.engine import run, sheet, stage
from wsss_nb.results import table_recipes as TR
from wsss_nb.results import tables as T
from wsss_nb.cli import main
from wsss_nb.base.core import UserError, save_json
from wsss_nb.data.synthetic import write_voc
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.engine.execute import StageFailed
from wsss_nb.engine.methods import check_network
from wsss_nb.engine.recipes import all_recipes, is_row, laid_over, read_recipe, rows_of, stage_parameters

NUMBERS = TR.known('paper_numbers')
ROWS = [(n, label, d) for n, t in TR.all_tables().items() for label in t['rows'] for d in TR.DATA if TR.base_of(n, label, d)]
OF_PAPERS = [r for r in ROWS if r[2] in TR.PAPERS]


# -- the papers' numbers

TEXTS = {'icd:fig5', *(f'{paper}:text' for paper in ('icd', 'ecsnet', 'sipe', 'ccmr', 'svm'))}  # there to be quoted


def test_every_table_of_the_papers_is_there():
    tables = {*(f'icd:{i}' for i in range(1, 9)), *(f'ecsnet:{i}' for i in range(1, 8)), *(f'sipe:{i}' for i in range(1, 6)), 'sipe:fig8', 'ccmr:1', 'ccmr:2', 'svm:1'}
    assert set(TR.all_tables()) == tables and set(NUMBERS) == tables | TEXTS
    for name, t in NUMBERS.items():
        place = name.split(':')[1]
        assert set(t) <= {'source', 'columns', 'rows', 'doubt', 'classes', 'where'}
        assert t['source'].endswith(place if place == 'text' else f'Fig. {place[3:]}' if place.startswith('fig') else (f'Tab. {place}', f'Table {place}'))
        for label in t['rows']:
            x = TR.printed_numbers(t, label)
            assert len(x) == len(t['columns']) and all(0 < v < 100 and round(v, 2 if place == 'text' else 1) == v for v in x), (name, label)
            assert ', ' not in label or label.rpartition(', ')[2] not in t['columns'], label  # a column is named behind a comma
        assert set(t.get('where', {})) == (set(t['rows']) if place == 'text' else set())
        if name in tables: assert set(TR.all_tables()[name].get('cannot', {})) <= set(t['rows'])


def test_what_the_texts_say_is_in_the_tables_or_in_doubt():
    "Headlines stand in a table too; differences are those of two rows, but where `doubt` says so"
    x = TR.printed_at
    for text, table in (('icd:text headline, saliency', 'icd:8 ICD, saliency, test'), ('icd:text headline', 'icd:8 ICD, test'), ('icd:text VGG16, val', 'icd:7 ICD'), ('icd:text VGG16, before', 'icd:7 AffinityNet'),
                        ('icd:fig5 CAM, mean of the classes', 'icd:1 CAM'), ('icd:fig5 ICD, mean of the classes', 'icd:1 ICD'), ('ecsnet:text headline, val', 'ecsnet:6 ECS-Net, ResNet-38'),
                        ('ecsnet:text headline, test', 'ecsnet:6 ECS-Net, ResNet-38, test'), ('ecsnet:text headline, VGG16, test', 'ecsnet:6 ECS-Net, VGG16, test'), ('sipe:text headline, val', 'sipe:2 SIPE, ResNet-101'),
                        ('sipe:text headline, test', 'sipe:2 SIPE, ResNet-101, test'), ('sipe:text ResNet-38, test', 'sipe:2 SIPE, ResNet-38, test'), ('sipe:text COCO, ResNet-38', 'sipe:3 SIPE, ResNet-38'),
                        ('sipe:text maps', 'sipe:1 SIPE'), ('sipe:text maps + CRF', 'sipe:1 SIPE + CRF'), ('sipe:text ECS-Net, localisation maps', 'sipe:1 ECS-Net'), ('sipe:text best threshold on the CAM', 'sipe:fig8 best threshold'),
                        ('ccmr:text headline', 'ccmr:1 CCMR, DeepLabV3+')): assert x(text) == x(table), text
    for text, a, b, off in (('icd:text top-down adds', 'icd:3 top-down', 'icd:3 bottom-up, superpixels', 0), ('icd:text over OAA, VGG16, val', 'icd:7 ICD, saliency', 'icd:7 OAA, saliency', 0), ('icd:text over OAA, ResNet-101, val', 'icd:8 ICD, saliency', 'icd:8 OAA, saliency', 0),
                            ('sipe:text IPE adds', 'sipe:4 CAM, IPE', 'sipe:4 CAM', 1.), ('sipe:text GSC adds', 'sipe:4 CAM, IPE, GSC', 'sipe:4 CAM, IPE', 0), ('sipe:text argmax over the best threshold', 'sipe:fig8 argmax', 'sipe:fig8 best threshold', 0),
                            ('sipe:text COCO, over CSE, ResNet-38', 'sipe:3 SIPE, ResNet-38', 'sipe:3 CSE, ResNet-38', 0), ('sipe:text COCO, over EPS, ResNet-101', 'sipe:3 SIPE, ResNet-101', 'sipe:3 EPS, saliency', 0),
                            ('sipe:text hierarchical without BPM costs, over', 'sipe:5 semantic, threshold', 'sipe:5 hierarchical, threshold', .1),
                            ('svm:text gain of the seeds', 'svm:1 SVM', 'svm:1 SIPE', .15), ('svm:text gain after the CRF', 'svm:1 SVM + CRF', 'svm:1 SIPE + CRF', .03)):
        assert round(x(a) - x(b) - x(text), 2) == off, text


def test_a_printed_number_is_named_by_row_column_or_class():
    assert [TR.printed_at(p) for p in ('sipe:4 CAM, IPE', 'icd:2 ICD T 0.1, recall', 'icd:2 ICD T 0.1', 'sipe:2 SIPE, ResNet-101, test', 'ecsnet:7 SEAM, cat', 'ccmr:1 CCMR + CRF, background')] == [53.2, 78.8, 65.3, 69.7, 81.9, 89.2]
    for place, text in (('icd:2 ICD T 0.2', "has no row 'ICD T 0.2' in 'icd:2'. Did you mean 'ICD T 0.5'?"), ('icd:2 ICD T 0.1, precision', "has no row 'ICD T 0.1, precision'"), ('icd:99 CAM', "has no row 'CAM' in 'icd:99'")):
        with pytest.raises(UserError) as e: TR.printed_at(place)
        assert text in str(e.value)


def test_the_classes_add_up_to_the_printed_means():
    count = 0
    for name, t in NUMBERS.items():
        for label, iou in t.get('classes', {}).items():
            assert len(iou) == 1 + len(VOC_CLASSES) and abs(np.mean(iou) - t['rows'][label]) <= .05 + .05, (name, label)  # both sides are rounded
            count += 1
    assert count == 16  # ecsnet:7 and ccmr:1 have no exception


BACKBONES = {'icd:7': 'VGG16', 'icd:8': 'ResNet-101'}  # of all rows of these tables; ecsnet:6 and sipe:2 say it of each row, saliency rows of sipe:2 have ResNet-101
CLASS_TABLES = {'MIL+seg': 'MIL VGG16', 'SEC': 'SEC VGG16', 'AdvErasing': 'AE-PSL VGG16', 'SEAM': 'SEAM ResNet-38', 'SSDD': 'SSDD ResNet-38', 'BES': 'BES ResNet-101', 'ECS-Net': 'ECS-Net ResNet-38', 'PSA': 'PSA ResNet-38'}


def method_of(name, label):
    "Method and backbone of a row of a table that compares networks"
    if name in ('ecsnet:7', 'ccmr:1'): return CLASS_TABLES.get(label)
    if name not in ('icd:7', 'icd:8', 'ecsnet:6', 'sipe:2'): return None
    method, _, rest = label.partition(', ')
    return f'{method.removesuffix("+")} {BACKBONES.get(name) or rest.replace("saliency", "ResNet-101")}' + (' saliency' if (method, rest) == ('ICD', 'saliency') else '')


def test_methods_that_several_papers_cite_have_the_same_numbers_everywhere():
    "Different hands typed the papers: where two of them print the same number, it was read off right"
    seen = {}
    for name, t in NUMBERS.items():
        for label in t['rows']:
            for column, x in zip(t['columns'], TR.printed_numbers(t, label)): seen.setdefault((method_of(name, label), column), []).append((name, x))
    seen = {k: v for k, v in seen.items() if k[0] and len(v) > 1}
    assert len(seen) == 29 and {k: v for k, v in seen.items() if len({x for _, x in v}) > 1} == {('SEC VGG16', 'test'): [('icd:7', 51.7), ('ecsnet:6', 51.1)]}
    assert '51.1' in NUMBERS['ecsnet:6']['doubt']
    for label in ('SEC', 'PSA', 'SEAM', 'SSDD', 'BES'): assert NUMBERS['ccmr:1']['classes'][label] == NUMBERS['ecsnet:7']['classes'][label]
    shared = {('icd:3', 'top-down + CRF'): ('icd:4', 'square'), ('icd:3', 'top-down'): ('icd:6', 'structure c'), ('icd:3', 'bottom-up'): ('icd:5', 'Conv5'), ('icd:6', 'structure c + CRF'): ('icd:3', 'top-down + CRF'),
              ('ecsnet:1', 'beta 1'): ('ecsnet:2', 'theta 0.8'), ('ecsnet:3', 'CAM heatmap'): ('ecsnet:4', 'CE loss'), ('ecsnet:5', 'ECS-Net'): ('ecsnet:4', 'other improvements'), ('sipe:1', 'ECS-Net + CRF'): ('ecsnet:4', 'other improvements + CRF'),
              ('sipe:4', 'CAM, IPE, GSC'): ('sipe:5', 'hierarchical, BPM, estimated'), ('sipe:4', 'CAM'): ('sipe:1', 'baseline'), ('svm:1', 'SIPE + CRF'): ('sipe:1', 'SIPE + CRF'), ('ccmr:2', 'CCMR with SWP'): ('ccmr:2', 'SWP with CCMR')}
    for (a, x), (b, y) in shared.items(): assert NUMBERS[a]['rows'][x] == NUMBERS[b]['rows'][y], (a, x, b, y)


OURS = re.compile(r'(ICD|ECS-Net|SIPE|CCMR|SWP|SVM|SEAM|PSA|AffinityNet|IRN|IRNet|Single|CAM|Grad-CAM\+\+|baseline|best threshold)\b')  # methods whose parts are all in the package


def test_every_row_can_be_run_or_says_why_not(tmp_path):
    for name, t in TR.all_tables().items():
        for label in NUMBERS[name]['rows']:
            if OURS.match(label): assert label in t['rows'] or label in t.get('cannot', {}), (name, label)
        rows = {r['row']: r for r in T.results(name, T.data_of(name)[0], tmp_path)}
        assert set(rows) == {*NUMBERS[name]['rows'], *t['rows']} and not set(t.get('cannot', {})) & set(t['rows'])
        for label, r in rows.items(): assert r['note'] == ('not run yet' if r['runnable'] else f'not on {TR.DATA[T.data_of(name)[0]]}' if label in t['rows'] else t.get('cannot', {}).get(label) or 'another method' + ', with saliency maps' * ('saliency' in label)), (name, label)
    assert 'Of test only the server of VOC has the ground truth.' in T.heading('sipe:2', 'voc12', []) and 'server' not in T.heading('sipe:4', 'voc12', [])


def test_a_row_with_another_network_or_data_has_its_own_settings():
    "PSA, IRN, Single and SEAM on COCO: the parts, one by one"
    get = lambda *row: stage_parameters(TR.row_recipe(*row))
    p = get('icd:7', 'AffinityNet', 'voc12')
    assert (p['train']['method'], p['train']['options'], p['train']['backbone'], p['masks']['refine'], p['psa']['split'], p['segment']['head']) == ('icd', dict(structure='none'), 'vgg16', ['psa'], 'trainaug', 'largefov')
    assert p['masks']['reading'] == p['psa']['reading'] == dict(kind='cam')  # PSA learns from the maps that it refines
    for name in ('ecsnet:7', 'ccmr:1'):
        p = get(name, 'PSA', 'voc12')
        assert (p['train']['method'], p['train']['options'], p['train']['backbone'], p['masks']['refine'], p['segment']['backbone'], p['segment']['head']) == ('cam', {}, 'resnet38', ['psa'], 'resnet38', 'v1')
    p = get('sipe:2', 'IRN, ResNet-50', 'voc12')
    assert (p['train']['method'], p['train']['clip'], p['masks']['refine'], p['masks']['irn_power'], p['segment']['backbone'], p['segment']['head']) == ('cam', 0., ['irn'], 1., 'resnet50', 'v2')
    p = get('sipe:3', 'IRN, ResNet-50', 'coco14')
    assert {s: (v['data_name'], v.get('split') or v['splits']) for s, v in p.items()} == dict(train=('coco14', 'train'), irn=('coco14', 'train'), masks=('coco14', ['train']), segment=('coco14', 'train'), evaluate=('coco14', ['val'])) and p['masks']['refine'] == ['irn']
    p, voc = get('sipe:3', 'SEAM, ResNet-38', 'coco14'), stage_parameters(read_recipe('seam_voc12'))
    assert {s: (v['data_name'], v.get('split') or v['splits']) for s, v in p.items()} == dict(train=('coco14', 'train'), psa=('coco14', 'train'), masks=('coco14', ['train']), segment=('coco14', 'train'), evaluate=('coco14', ['val']))
    assert {k: v for k, v in p['train'].items() if k not in ('data_name', 'split')} == {k: v for k, v in voc['train'].items() if k not in ('data_name', 'split')} and p['masks']['refine'] == ['psa'] and p['masks']['psa_alpha'] == 6.
    p = get('ccmr:1', 'Single', 'voc12')
    assert p['train']['options'] == dict(head='single_stage', pooling='ngwp', refinement='pamr') and (p['train']['backbone'], p['masks']['refine'], p['masks']['use_image_labels'], p['masks']['reading'], list(p)) == ('resnet38', ['crf'], False, dict(cleaned=False), ['train', 'masks', 'evaluate'])
    for name in ('icd:7', 'icd:8'): assert {label: get(name, label, 'voc12')['masks']['saliency'] for label in ('ICD', 'ICD, saliency')} == {'ICD': '', 'ICD, saliency': 'saliency'}
    assert [get('svm:1', label, 'synthetic')['masks']['svm_cycles'] for label in ('SVM, 0 cycles', 'SVM, 1 cycle', 'SVM, 2 cycles', 'SVM, 3 cycles', 'SVM', 'SVM, 10 cycles')] == [0, 1, 2, 3, 5, 10]


# -- the recipes

def test_what_a_row_says_is_added_to_its_base():
    base = dict(train=dict(method='sipe', lr=.1, options=dict(a=1, b=2)), masks=dict(reading=dict(kind='x'), refine=['irn']), seed=3)
    assert laid_over(base, dict(train=dict(options=dict(b=5, c=6)), masks=dict(refine=[]))) == dict(train=dict(method='sipe', lr=.1, options=dict(a=1, b=5, c=6)), masks=dict(reading=dict(kind='x'), refine=[]), seed=3)
    other = laid_over(base, dict(train=dict(method='cam', lr=.2)))
    assert other == dict(train=dict(method='cam', lr=.2, options={}), masks=dict(reading={}, refine=['irn']), seed=3)
    assert base['train']['options'] == dict(a=1, b=2)  # nothing was changed in place
    assert not set(TR.OWN) & set(TR.row_recipe('sipe:4', 'CAM, IPE', 'photos'))  # words of tables.yaml are not a recipe's


def test_the_same_words_mean_the_same_in_a_base_a_row_and_a_table(tmp_path, monkeypatch):
    start, more = read_recipe('ccmr_synthetic'), dict(train=dict(options=dict(refinement='none', warmup=None)), masks=dict(reading=dict(cleaned=False)))
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(dict(base='ccmr_synthetic', **more)))
    row = rows_of(dict(start, rows=dict(mine=more)))['mine']
    for recipe in (read_recipe(str(tmp_path / 'mine.yaml')), row): assert stage_parameters(recipe) == stage_parameters(laid_over(start, more))
    before, options = stage_parameters(start)['train']['options'], stage_parameters(row)['train']['options']
    assert options == {**{k: v for k, v in before.items() if k != 'warmup'}, 'refinement': 'none'} and 'warmup' in before and len(options) > 1  # one by one; null takes away
    (tmp_path / 'other.yaml').write_text(yaml.safe_dump(dict(base='ccmr_synthetic', train=dict(method='cam'))))
    assert stage_parameters(read_recipe(str(tmp_path / 'other.yaml')))['train']['options'] == {}  # another method knows none of them


def test_the_written_recipes_are_in_step():
    written = {p.name: p.read_text(encoding='utf-8') for p in all_recipes().values() if is_row(p)}
    made = TR.row_recipes()
    assert set(written) == set(made), 'run: wsss tables --write'
    assert not [n for n in made if made[n] != written[n]], 'run: wsss tables --write'
    assert len(made) == len(OF_PAPERS) > 90
    for text in made.values(): assert re.match(r'# wsss run \w+ -p data.root=~/\w+ +\(made by `wsss tables --write`', text) and text.count('\n') <= 11


@pytest.mark.parametrize('name', TR.all_tables())
def test_a_written_recipe_is_its_row(name):
    for n, label, d in OF_PAPERS:
        if n != name: continue
        read, row = read_recipe(TR.recipe_name(n, label, d)), TR.row_recipe(n, label, d)
        assert stage_parameters(read) == stage_parameters(row) and read['paper'] == row['paper'] and read['about'] == row['about'], label
        printed = NUMBERS[n]['rows'].get(label)
        if printed: assert [round(100 * v, 6) for v in row['paper'].values()] == [printed if isinstance(printed, float) else printed[0]]
        stages, what = stage_parameters(row), TR.counts_of(n, label)
        assert ('segment' in stages) == (what == 'network') and all(key == f'{what}/{split}' for key in row['paper'] for split in stages['evaluate']['splits'])
        if what != 'network': assert stages['masks']['splits'] == stages['evaluate']['splits']
    slugs = [TR.slug(label) for label in TR.all_tables()[name]['rows']]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize('name', TR.all_tables())
def test_every_row_on_other_data_is_valid(name):
    for n, label, d in ROWS:
        if n != name or d in TR.PAPERS: continue
        recipe = TR.row_recipe(n, label, d)
        assert not recipe['paper'] and 'expected' not in recipe and 'rows' not in recipe
        for name_of_stage, p in stage_parameters(recipe).items(): check_once(name_of_stage, p, 8)


BUILT = set()


def check_once(name, p, num_classes):
    "check_network, for networks that were not checked yet"
    key = name, repr([p.get(k) for k in ('method', 'options', 'backbone', 'stride', 'head', 'norm', 'convs', 'width', 'loss')])
    if key not in BUILT: check_network(name, p, num_classes)
    BUILT.add(key)


def test_what_papers_do_by_threshold_is_an_oracle_and_the_rest_is_not():
    oracles = {(n, label) for n, label, d in ROWS if TR.counts_of(n, label) == 'score maps'}
    assert oracles == {('sipe:1', 'baseline'), ('sipe:4', 'CAM')} | {('sipe:5', label) for label in NUMBERS['sipe:5']['rows'] if label.endswith('threshold')}


@pytest.fixture(scope='module')
def devkits(tmp_path_factory):
    "A few images in the layout of VOC, and in that of COCO"
    d = tmp_path_factory.mktemp('kits')
    write_voc(d / 'voc', limit=4)
    (d / 'voc/VOCdevkit/saliency').mkdir()  # for the rows with saliency maps
    for f in (d / 'voc/VOCdevkit').rglob('*.jpg'):
        with Image.open(f) as image: Image.new('L', image.size, 128).save(d / f'voc/VOCdevkit/saliency/{f.stem}.png')
    (d / 'coco/annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        images = [dict(id=i, file_name=f'COCO_{split}2014_{i:012d}.jpg', height=48, width=64) for i in range(1, 4)]
        annotations = [dict(id=i, image_id=i, category_id=17, iscrowd=0, segmentation=[[4, 4, 40, 4, 40, 40, 4, 40]], area=1, bbox=[4, 4, 36, 36]) for i in range(1, 4)]
        save_json(d / f'coco/annotations/instances_{split}2014.json', dict(images=images, annotations=annotations, categories=[dict(id=17, name='cat')]))
        (d / f'coco/{split}2014').mkdir()
        for i in images: Image.new('RGB', (64, 48), 'teal').save(d / f'coco/{split}2014' / i['file_name'])
    return dict(voc12=d / 'voc/VOCdevkit', coco14=d / 'coco')


@pytest.mark.parametrize('name', TR.all_tables())
def test_the_dry_run_of_every_row_passes(devkits, tmp_path, monkeypatch, name):
    monkeypatch.setattr(stage, 'code_digest', lambda *_: '')  # what takes longest, and what no row changes
    monkeypatch.setattr(run, 'check_network', check_once)
    said = []
    data = T.data_of(name)[0]
    assert data in TR.PAPERS and T.run_table(name, options=[f'data.root={devkits[data]}'], runs=tmp_path, dry=True, say=said.append) is None
    assert sum(s.startswith('-- ') for s in said) == sum(n == name and d == data for n, _, d in ROWS) and not list(tmp_path.iterdir())
    assert sum(s.startswith('evaluate: ') for s in said) == sum(s.startswith('train: ') for s in said) == sum(s.startswith('-- ') for s in said)


# -- a table at work

SMALL = ['limit=8', 'train.epochs=1', 'train.batch_size=4', 'masks.scales=[1.0]', 'workers=1', 'device=cpu']
TINY = dict(tables=dict(settings=TR.known('tables')['settings'], tables={'tiny:1': dict(what='a small table', counts='masks', base=dict(voc12='cam_voc12', synthetic='cam_synthetic'), rows={
    'CAM': {}, 'CAM, best': dict(counts='score maps'), 'CAM + CRF': dict(masks=dict(refine=['crf']))}, cannot={'no one': 'needs a miracle'})}),
    paper_numbers={'tiny:1': dict(source='Somebody, Tab. 1', columns=['val', 'test'], rows={'CAM': [40.0, 41.0], 'no one': [99.0, 98.0], 'CAM, best': [42.5, 43.0], 'someone': [50.0, 51.0]},
                                  classes={'CAM': [40., 10., 20., 30., 40., 50., 60., 70., 40.]})})


@pytest.fixture
def small_files(monkeypatch): monkeypatch.setattr(TR, 'known', TINY.get)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Such a table, run: the folder with runs, and what was said"
    with pytest.MonkeyPatch.context() as m, inside():
        m.setattr(TR, 'known', TINY.get)
        runs, said = tmp_path_factory.mktemp('tiny') / 'runs', []
        T.run_table('tiny:1', 'synthetic', SMALL, runs, say=said.append)
    return runs, said


def number(runs, row, what): return next(n for n in json.loads((runs / f'tiny_1-synthetic.{row}/metrics.json').read_text())['numbers'] if n['what'] == what)


def test_a_table_shows_the_paper_and_ours_side_by_side(tiny, small_files):
    runs, said = tiny
    text = said[-2].splitlines()
    cam, best, crf = number(runs, 'cam', 'masks'), number(runs, 'cam_best', 'score maps'), number(runs, 'cam_crf', 'masks')
    assert [line.split()[0] for line in text[1:]] == ['CAM', 'no', 'CAM,', 'someone', 'CAM']
    assert text[1].split() == ['CAM', '40.0', '41.0', f'{100 * cam["miou"]:.1f}', f'{100 * cam["miou"] - 40:+.1f}']
    assert text[2].split()[2:] == ['99.0', '98.0', 'needs', 'a', 'miracle'] and text[4].endswith('another method')
    assert text[3].split()[2:5] == ['42.5', '43.0', f'{100 * best["miou"]:.1f}'] and text[3].endswith('oracle: threshold by ground truth') and best['oracle']
    assert text[5].split() == ['CAM', '+', 'CRF', f'{100 * crf["miou"]:.1f}'] and crf['miou'] != cam['miou']
    page = (runs / 'tiny_1-synthetic/table.md').read_text()
    assert 'Ours are from the embedded set: the two are not comparable' in page and 'limit=8' in page and 'device' not in page
    assert f'| CAM | 40.0 | 41.0 | {100 * cam["miou"]:.1f} |' in page and '| CAM, paper | 40.00 | 10.00 |' in page
    assert f'| CAM, ours | {100 * cam["iou"]["background"]:.2f} |' in page
    saved = json.loads((runs / 'tiny_1-synthetic/table.json').read_text())
    assert [r['ours'].get('value') for r in saved['rows']] == [cam['miou'], None, best['miou'], None, crf['miou']] and not saved['comparable']


def test_the_rows_of_a_table_share_their_stages_and_go_on(tiny, small_files):
    runs, said = tiny
    done = [s.split()[:2] for s in said if not s.startswith('--') and len(s.split()) > 1 and s.split()[0] in ('train', 'masks', 'evaluate')]
    assert [stage for stage, how in done if how == 'kept'] == ['train', 'masks', 'evaluate', 'train'] and len(done) == 9
    before = (runs / 'tiny_1-synthetic.cam_crf/metrics.json').read_bytes()
    # killed in the last row: its evaluation is gone, and its record says so
    record = json.loads((runs / 'tiny_1-synthetic.cam_crf/run.json').read_text())
    (runs / 'stages' / record['stages']['evaluate']['folder'] / 'stage.json').unlink()
    save_json(runs / 'tiny_1-synthetic.cam_crf/run.json', dict(record, state='stopped in evaluate', stages={k: v for k, v in record['stages'].items() if k != 'evaluate'}))
    assert T.overview(runs)[1] == ['tiny:1', '3/5', '0/3', '-', '-', '2/3', 'a small table']
    again = []
    with inside(): T.run_table('tiny:1', 'synthetic', SMALL, runs, say=again.append)
    assert sum(' kept ' in s for s in again) == 8 and again[-2] == said[-2] and (runs / 'tiny_1-synthetic.cam_crf/metrics.json').read_bytes() == before
    assert T.overview(runs)[1][5] == '3/3'


def test_a_table_runs_as_a_recipe_does(tiny, small_files, monkeypatch, capsys):
    "--jobs, --scheduler and --launch reach what executes the runs; a row that stops leaves the table written, and is told at the end"
    import os
    runs, asked = tiny[0], {}
    listening = socket.create_server(('127.0.0.1', 0))
    address = 'tcp://{}:{}'.format(*listening.getsockname())
    def speaks():  # as a scheduler does, to each who comes
        for _ in range(2):
            with listening.accept()[0] as s: s.sendall(b'hello')
    threading.Thread(target=speaks, daemon=True).start()
    def stopping(error):
        def side_by_side(recipes, runs, jobs, scheduler, say, threads):
            asked.update(recipes=list(recipes), jobs=jobs, scheduler=scheduler, launch=os.environ.get('WSSS_LAUNCH'))
            if not isinstance(error, StageFailed): raise error
            for run in recipes: yield run, None if run.endswith('.cam') else Path(runs) / run, error if run.endswith('.cam') else None
        return side_by_side
    table, args = runs / 'tiny_1-synthetic/table.md', ['table', 'tiny:1', '--data', 'synthetic', '--runs', str(runs), '--jobs', '3', '--scheduler', address, '--launch', '2', *(x for o in SMALL for x in ('-p', o))]
    table.unlink()
    monkeypatch.setattr(sheet, 'side_by_side', stopping(UserError('Dask is not installed')))  # nothing was run: there is nothing to show
    assert main(args) == 2 and not table.exists() and capsys.readouterr().out == ''
    monkeypatch.setattr(sheet, 'side_by_side', stopping(StageFailed('train failed')))
    assert main(args) == 1 and f'table: {table}' in capsys.readouterr().out
    assert asked == dict(recipes=[f'tiny_1-synthetic.{r}' for r in ('cam', 'cam_best', 'cam_crf')], jobs=3, scheduler=address, launch='2') and table.exists()


def test_numbers_on_the_papers_own_data_are_compared(tmp_path):
    n = dict(data='voc12', split='train', images=1464, classes='bg+20', backbone='resnet50', oracle=False, miou=.5, decided=.75, iou={})
    for label, what in (('CAM', 'score maps'), ('CAM, IPE', 'masks')): lay(tmp_path, TR.run_name('sipe:4', label, 'voc12'), dict(numbers=[dict(n, what=what, oracle=what != 'masks')]))
    rows = T.results('sipe:4', 'voc12', tmp_path)
    assert 'not comparable' not in T.heading('sipe:4', 'voc12', rows) and 'voc12 train, 1464 images, bg+20, resnet50' in T.heading('sipe:4', 'voc12', rows)
    assert [c[2:] for c in T.cells('sipe:4', rows)[1:]] == [['50.0', '-0.1', 'oracle: threshold by ground truth'], ['50.0', '-3.2', ''], ['', '', 'not run yet']]
    lay(tmp_path, TR.run_name('icd:2', 'ICD T 0.1', 'voc12'), dict(numbers=[dict(n, what='masks')]))
    assert T.results('icd:2', 'voc12', tmp_path)[3]['ours']['value'] == .75  # over the decided pixels
    lay(tmp_path, TR.run_name('icd:1', 'ICD', 'voc12'), dict(numbers=[dict(n, what='masks')], pixel_map=dict(train=dict(mean=.57))))
    assert T.cells('icd:1', T.results('icd:1', 'voc12', tmp_path))[2][1:4] == ['57.0', '57.0', '+0.0']


def lay(runs, run, metrics):
    save_json(T.make_folder(runs / run) / 'run.json', dict(state='done'))
    save_json(runs / run / 'metrics.json', metrics)


@pytest.mark.parametrize('args, text', [
    (['sipe:9'], r"table: there is no 'sipe:9'. Did you mean 'sipe:\d'\? wsss tables lists all."),
    (['sipe:4', '--data', 'photo'], r"table: there are no data 'photo'. Did you mean 'photos'\? Known: voc12, coco14, photos, synthetic."),
    (['icd:8', '--data', 'photos'], r'icd:8: has no rows on photographs; run it with --data voc12.'),
    (['sipe:4', '--data', 'coco14'], r'sipe:4: has no rows on COCO 2014; run it with --data voc12 or photos or synthetic.'),
    (['sipe:4', '--data', 'synthetic', '-p', 'train.epoch=3'], r"recipe, train: unknown name 'epoch'. Did you mean 'epochs'"),
    (['sipe:4', '--dry-run'], r'root: expected the folder of voc12, got nothing; give root='),
])
def test_mistakes_end_in_one_line(tmp_path, capsys, args, text):
    assert main(['table', *args, '--runs', str(tmp_path / 'runs')]) == 2
    err = capsys.readouterr().err
    assert re.search(text, err) and err.startswith('wsss: ') and err.count('\n') == 1 and not (tmp_path / 'runs').exists()


def test_without_data_all_rows_are_told_and_what_is_missing_once(tmp_path, capsys):
    labels = [label for n, label, d in ROWS if (n, d) == ('sipe:4', 'voc12')]
    assert main(['table', 'sipe:4', '--dry-run', '--runs', str(tmp_path / 'runs')]) == 2
    out, err = capsys.readouterr()
    assert err == f'wsss: {len(labels)} of {len(labels)} rows cannot run yet: root: expected the folder of voc12, got nothing; give root=/path/to/it (to a run: -p data.root=/path/to/it).\n'
    assert [l for l in out.splitlines() if l.startswith('-- ')] == [f'-- {label}' for label in labels] and len(labels) > 1
    assert out.count('train: 5 epochs\n  settings  method=') == out.count('evaluate\n  settings') == len(labels) and not (tmp_path / 'runs').exists()
    assert main(['table', 'sipe:4', '--dry-run', '--runs', str(tmp_path / 'runs'), '-p', f'data.root={tmp_path}']) == 2
    assert re.match(rf'wsss: {len(labels)} of {len(labels)} rows cannot run yet: root: expected .* in {tmp_path}', capsys.readouterr().err)


def test_a_recipe_with_rows_and_without_data_does_the_same(tmp_path, capsys):
    assert main(['run', 'refiners_photos', '--dry-run', '--runs', str(tmp_path / 'runs'), '-p', f'data.root={tmp_path}/nowhere', '-p', 'weights=']) == 2
    out, err = capsys.readouterr()
    rows = [l for l in out.splitlines() if l.startswith('-- ')]
    assert len(rows) > 3 and '-- CRF from labels' in rows and err.startswith(f'wsss: {len(rows)} of {len(rows)} rows cannot run yet: ') and err.count('\n') == 1


def test_a_network_that_cannot_be_built_is_told_without_data(tmp_path, capsys):
    assert main(['run', 'cam_voc12', '--dry-run', '-p', 'segment.head=v2', '-p', 'segment.width=8']) == 2
    assert 'width' in capsys.readouterr().err


def test_tables_are_listed_and_recipes_do_not_drown_in_them(tmp_path, capsys):
    assert main(['tables', '--runs', str(tmp_path)]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == 1 + len(TR.all_tables()) and lines['icd:7'][:5] == ['3/19', '0/3', '-', '0/2', '0/2'] and lines['sipe:3'][:5] == ['4/12', '-', '0/4', '0/1', '0/1']
    assert main(['recipes']) == 0
    out = capsys.readouterr().out
    assert 'sipe_voc12' in out and 'sipe_4_cam' not in out and out.splitlines()[-1] == f"and {len(OF_PAPERS)} rows of the papers' tables: wsss tables"


def test_recipes_are_only_written_in_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(TR, 'PACKAGE', tmp_path / 'site/wsss_nb')
    with pytest.raises(UserError, match='works in a checkout'): TR.write_recipes()


@pytest.mark.parametrize('name, label, data', [('sipe:4', 'CAM + IPE', 'voc12'), ('icd:2', 'CAM T 0.0', 'photos')])
def test_a_row_is_called_as_in_its_table_and_found_by_either_name(tmp_path, name, label, data):
    from wsss_nb.base.core import save_json
    from wsss_nb.engine.record import Run
    from wsss_nb.engine.run import list_runs
    label = next(l for l in TR.all_tables()[name]['rows'] if TR.slug(l) == TR.slug(label))
    folder = tmp_path / TR.run_name(name, label, data)
    save_json(folder / 'run.json', dict(name=folder.name, state='done', recipe=TR.row_recipe(name, label, data), seconds=1., stages={}))
    save_json(folder / 'metrics.json', {})
    shown = list_runs(tmp_path)[0]['name']
    assert shown == f'{TR.slug(name)}-{data}.{label}' and Run.named(shown, tmp_path).folder == Run.named(folder.name, tmp_path).folder == folder.resolve()
