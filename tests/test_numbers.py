"Numbers in the prose of the papers' pages stand in an output above, in a published run, in the paper, or in the page's code"
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ['icd', 'ecsnet', 'seam', 'sipe', 'svm', 'ccmr']
NUMBER = re.compile(r'(?<![\w.$])[-+−]?(\d+\.\d+|\.\d+|\d+)(?![\w]|\.\d)')
# what is no measurement: formulas, code, links, equations, tables, figures and sections by their numbers, sizes, papers by their years
NOT_PROSE = [r'\$\$.*?\$\$', r'\$[^$\n]*\$', r'```.*?```', r'`[^`\n]*`', r'\]\([^)]*\)', r'\b(CVPR|ICCV|ICASSP|VOC|COCO) \d{4}',
             r'\b(Eq|Tab|Table|Tables|Fig|Sec|Exercise|seed|seeds)s?\.? ?\d+(\.\d+)*((-| to |, | and | or | x )\d+(\.\d+)*)*', r'\b\d+ ?x ?\d+( ?x ?\d+)?\b', r'^\s*\d+\. ', r'\b(ResNet|Conv|Fc|VGG|MobileNetV|DeepLab-?V|V|layer|Titan)-?\d+']


def prose(text):
    "The text of a markdown cell without formulas, code, links and references"
    for pattern in NOT_PROSE: text = re.sub(pattern, ' ', text, flags=re.S | re.M)
    return text


def bare(number): return number.removeprefix('0') if number.startswith('0.') else number
def values(text): return {bare(m[1]) for m in NUMBER.finditer(text)}


def written(x):
    "How a number of a record may be written: as a share or in percent, with up to three digits"
    return {bare(f'{v:.{d}f}') for v in (x, 100 * x) for d in range(4)}


def known_values(name):
    "The numbers of the page's paper, of the published runs of its method (means, background, thresholds), and of its recipes"
    out = set()
    for table, t in yaml.safe_load((ROOT / 'runs/paper_numbers.yaml').read_text(encoding='utf-8')).items():
        if table.startswith(f'{name}:'): out |= values(str(t))
    for f in ROOT.glob(f'runs/published/{name}_*/metrics.json'):
        m = json.loads(f.read_text(encoding='utf-8'))
        for n in m['numbers']:
            for x in (n['miou'], n.get('decided'), n.get('threshold'), n['iou']['background']): out |= written(x) if x is not None else set()
        for v in m.get('pixel_map', {}).values(): out |= written(v['mean'])
    for f in ROOT.glob(f'runs/recipes/{name}_*.yaml'): out |= values(f.read_text(encoding='utf-8'))
    return out


def unsupported(cells, known):
    "(cell, number) of the prose that stands neither in an output above, nor in the page's code, nor in `known`, and is no small count"
    settings = set().union(*(values(''.join(c['source'])) for c in cells if c['cell_type'] == 'code'))
    above, found = known | settings | {str(i) for i in range(13)}, []
    for i, c in enumerate(cells):
        source = ''.join(c['source'])
        if c['cell_type'] == 'code':
            outputs = [''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in c['outputs']]
            for text in outputs:
                above |= values(text)
                for v in values(text):
                    if '.' in v: above |= written(float(v))
        else: found += [(i, m[1]) for m in NUMBER.finditer(prose(source)) if bare(m[1]) not in above]
    return found


def page(name): return json.loads((ROOT / f'nbs/papers/{name}.ipynb').read_text(encoding='utf-8'))['cells']


HOLDS = ['icd', 'ecsnet', 'seam', 'sipe', 'svm', 'ccmr']  # pages without a number that somebody typed


def measured(found): return [(i, v) for i, v in found if '.' in v]


@pytest.mark.parametrize('name', HOLDS)
def test_every_measured_number_has_a_source(name):
    assert measured(unsupported(page(name), known_values(name))) == []


@pytest.mark.parametrize('name', HOLDS)
def test_a_number_put_in_on_purpose_is_found(name):
    cells = page(name)
    cells.append(dict(cell_type='markdown', source=['The masks reach 98.76 % here, the best of $3.14$ and of `2.71`, in Tab. 3.1.']))
    assert measured(unsupported(cells, known_values(name))) == [(len(cells) - 1, '98.76')]


def test_what_counts_as_a_source():
    cells = [dict(cell_type='code', source=['x = .25'], outputs=[dict(text=['mIoU 0.4321 here'])]), dict(cell_type='markdown', source=['.25, .432, 43.2 %, 43.21 and 17.1; 56.6 in the paper'])]
    assert unsupported(cells, {'56.6'}) == [(1, '17.1')] and ('43.2' in {v for _, v in unsupported(cells[::-1], {'56.6'})})  # an output below is no source


if __name__ == '__main__':  # python tests/test_numbers.py: what is left, page by page
    for name in PAGES:
        left = unsupported(page(name), known_values(name))
        print(name, len(left), left)
