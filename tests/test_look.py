"""A threshold chosen by looking: what the page and the sliders show is what the masks stage would make."""
import json
import re
import subprocess
import time

import numpy as np
import pytest

from browser import chromium
from test_handover import lay_down_masks
from wsss_nb.base.core import UserError, load_json, save_json
from wsss_nb.cli import main
from wsss_nb.data.sample import load_maps, read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.refine.masks import refined_mask
from wsss_nb.results import chooser
from wsss_nb.results.chooser import Chooser, sliders
from wsss_nb.results.look import stored_maps


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp('looked')
    lay_down_masks(runs, n=4)
    return runs


@pytest.fixture(scope='module')
def html(runs):
    assert main(['look', 'drawn', '--out', str(runs / 'page.html'), '--runs', str(runs), '--most', '3']) == 0
    return runs / 'page.html'


def counts_of(runs, threshold, n=3):
    "Pixels of each class, from the maps as the page has them: in steps of 1/255"
    out = np.zeros(9, int)
    for name in synthetic('val', n=n).names:
        keys, maps = load_maps(runs / f'stages/maps-1/{name}.npz')
        grey = (np.clip(maps, 0, 1) * 255).round()
        ids = np.append(0, keys)[np.concatenate([np.full((1, *grey.shape[1:]), 255 * threshold), grey]).argmax(0)]
        out += np.bincount(ids.ravel(), minlength=9)
    return out.tolist()


def test_the_page_is_whole_and_holds_no_truth(runs, html):
    text = html.read_text(encoding='utf-8')
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert len(data['pictures']) == 3 and data['threshold'] == .25 and set(data['pictures'][0]) == {'name', 'size', 'image', 'maps'}
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and not re.search('https?://', text)
    for p in data['pictures']: assert set(map(int, p['maps'])) == set(synthetic('val', n=4)[p['name']].tags)


@pytest.mark.browser
@pytest.mark.parametrize('threshold', [.3, .8])
def test_in_a_browser_the_masks_are_those_of_the_threshold(runs, html, threshold):
    out = subprocess.run([chromium(), '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=20000', '--dump-dom', f'file://{html}#t={threshold}'], capture_output=True, text=True, timeout=120).stdout
    assert re.search(r'data-counts="([\d ]+)"', out)[1].split() == [str(n) for n in counts_of(runs, threshold)]
    assert f'<code id="line">-p masks.threshold={threshold:.2f}</code>' in out and '<option value="1">cat</option>' in out


def test_sliders_make_what_the_masks_stage_makes(runs):
    c, data = Chooser.of('drawn', runs=runs), synthetic('val', n=4)
    for i, name in enumerate(data.names):
        maps = load_maps(runs / f'stages/maps-1/{name}.npz')
        maps = maps._replace(maps=maps.maps.astype(np.float32))
        for refiner, more in (('', {}), ('crf', dict(crf_iters=3)), ('superpixels', {})):
            assert np.array_equal(c.mask(i, .3, refiner, 3), refined_mask(data.image(i), maps, [refiner] if refiner else [], .3, **more))
    assert c.histogram(0).sum() == sum(m.size for m in c.there[0][2].maps)
    assert c.line(.3) == "-p masks.threshold=0.30 -p 'masks.refine=[]'" and c.line(.5, 'crf', 7) == "-p masks.threshold=0.50 -p 'masks.refine=[crf]' -p masks.crf_iters=7"


def test_widgets_follow_their_sliders(runs):
    try: import ipywidgets
    except ImportError:
        with pytest.raises(UserError, match='ipywidgets is not installed; for sliders'): sliders('drawn', runs=runs)
        return
    box = sliders('drawn', runs=runs)
    (i, k, t, refiner, iters, said), shown = box.children[0].children, box.children[1]
    before = shown.value
    t.value = .9
    assert shown.value != before and 'masks.threshold=0.90' in said.value and iters.disabled
    refiner.value = 'crf'
    assert not iters.disabled and 'crf_iters=10' in said.value


def test_a_run_without_maps_is_told(runs, tmp_path):
    run = lay_down_masks(tmp_path)
    file = tmp_path / 'stages/masks-1/stage.json'
    save_json(file, dict(load_json(file), results=dict(maps={})))
    with pytest.raises(UserError, match='its masks were not made from score maps of the store'): stored_maps(run)
