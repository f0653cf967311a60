"""What is said of a method beside the CAM on the set with parts, and how much of each sign masks have found"""
import json
from math import sqrt

import numpy as np
import pytest
from scipy.stats import ttest_ind

from wsss_nb.data.parts import parts
from wsss_nb.data.sample import save_mask
from wsss_nb.engine import spread
from wsss_nb.engine.signs import found_by_sign
from wsss_nb.results import on_parts as O


def laid(folder, name, values):
    "A published run for each seed of a recipe"
    for seed, x in enumerate(values):
        here = folder / (f'{name}_parts' + f'_seed_{seed}' * (seed > 0))
        here.mkdir(parents=True)
        evaluate = dict(stage='evaluate', folder='e', parameters=dict(seed=seed, data_name='parts'), results=None)
        signs = {'masks/val': dict(trunk=x, head=.9, chest=x, limbs=x, ground=.1)}
        (here / 'run.json').write_text(json.dumps(dict(name=here.name, state='done', recipe={}, stages=dict(evaluate=evaluate))))
        (here / 'metrics.json').write_text(json.dumps(dict(numbers=[dict(what='masks', split='val', miou=x, iou={}, oracle=False)], signs=signs)))


def test_of_two_groups_alone_the_rule_is_students_test(monkeypatch):
    a, b = [.52, .56, .57], [.50, .51, .52]
    gap, half, said = O.apart_from_cam(dict(cam=b, x=a), 'x')
    interval = ttest_ind(a, b).confidence_interval(.95)
    assert (gap - half, gap + half) == pytest.approx((interval.low, interval.high))
    assert said == ('cannot be told from the CAM' if interval.low < 0 < interval.high else 'beats the CAM')
    assert O.apart_from_cam(dict(cam=[.5], x=[.9]), 'x')[2] == 'cannot be told from the CAM'  # one seed each says nothing


def test_spread_is_pooled_over_all_methods():
    groups = dict(cam=[.5, .52], x=[.6, .62], y=[.1, .5])
    wide, narrow = O.apart_from_cam(groups, 'x'), O.apart_from_cam({k: groups[k] for k in ('cam', 'x')}, 'x')
    assert wide[0] == narrow[0] == pytest.approx(.1) and wide[1] > narrow[1]
    assert (wide[2], narrow[2]) == ('cannot be told from the CAM', 'beats the CAM')


def test_a_sentence_is_made_from_published_runs(tmp_path):
    for name, values in dict(cam=(.50, .51, .52), icd=(.40, .41, .42), sipe=(.61, .62, .63), svm=(.51, .52, .53)).items(): laid(tmp_path, name, values)
    half = 2.306 * .01 * sqrt(2 / 3)
    assert O.said_on_parts('sipe', folder=tmp_path) == f'SIPE, masks: .620 (3 seeds), the CAM .510 (3 seeds); +11.0 ± {100 * half:.1f} points: beats the CAM.'
    assert O.said_on_parts('icd', folder=tmp_path).endswith('is below the CAM.') and O.said_on_parts('svm', folder=tmp_path).endswith('cannot be told from the CAM.')
    assert O.said_on_parts('ccmr', folder=tmp_path) == 'CCMR: no masks on the set with several parts are published here.'
    assert O.said_on_parts('icd', 'network/val', tmp_path) == 'ICD: no network on the set with several parts is published here.'
    for name, values in dict(cam=(.5,), icd=(.4,)).items(): laid(tmp_path / 'one', name, values)
    assert O.said_on_parts('icd', folder=tmp_path / 'one') == 'ICD, masks: .400 (1 seed), the CAM .500 (1 seed); −10.0 points: with so few seeds nothing can be said.'
    assert O.on_parts('icd', folder=tmp_path) == {0: .4, 1: .41, 2: .42}
    assert O.signs_on_parts('icd', folder=tmp_path) == pytest.approx(dict(trunk=.41, head=.9, chest=.41, limbs=.41, ground=.1)) and O.signs_on_parts('ccmr', folder=tmp_path) == {}


def test_what_masks_found_of_each_sign_is_counted_pixel_by_pixel(tmp_path):
    data, rng = parts('val', 5), np.random.default_rng(0)
    masks = {name: rng.choice([0, 1, 2, 5, 255], data.mask(i).shape).astype(np.uint8) for i, name in enumerate(data.names)}
    for i, (name, mask) in enumerate(masks.items()):
        masks[name] = np.where(rng.random(mask.shape) < .5, data.mask(i), mask)
        save_mask(tmp_path / f'{name}.png', masks[name])
    found = found_by_sign(data, tmp_path)
    counts = dict.fromkeys(found, (0, 0))
    for i, name in enumerate(data.names):
        for truth, sign, mask in zip(data.mask(i).ravel(), data.signs(i).ravel(), masks[name].ravel()):
            if truth == 255: continue
            place = ['trunk', 'head', 'chest', 'limbs'][sign] if truth else 'ground'
            right = mask == truth if truth else mask not in (0, 255)
            counts[place] = counts[place][0] + right, counts[place][1] + 1
    assert found == pytest.approx({k: a / b for k, (a, b) in counts.items()}) and list(found) == ['trunk', 'head', 'chest', 'limbs', 'ground']


def test_runs_on_parts_are_held_against_one_another():
    run = spread.Run('nowhere')
    run.made = dict(state='done', recipe={}, stages=dict(train=dict(parameters=dict(data_name='parts'))))
    assert spread.data_word(run) == 'parts'
