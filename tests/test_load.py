"""Very many images and very many stages: bounded memory, and time that grows no faster than their number."""
import gc
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults import ended, forked, quiet
from inside import inside

from wsss_nb.base.core import save_json
from wsss_nb.data.catalog import open_data
from wsss_nb.data.check import check_data
from wsss_nb.engine.parameters import parameters_of
from wsss_nb.engine.record import Run
from wsss_nb.engine.recipes import resolved
from wsss_nb.engine.plan import plan
from wsss_nb.engine.run import list_runs, make_run, unused
from wsss_nb.refine.masks import copy_masks
from wsss_nb.results.report import RunReport, make_report


def many_images(root, n):
    "A folder data set of n tiny images with tags and masks: links to a few that were drawn"
    draw = np.random.default_rng(0)
    for kind in ('images', 'masks', 'drawn'): (root / kind).mkdir(parents=True)
    for i in range(16):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / f'drawn/i{i}.png')
        Image.fromarray(draw.integers(0, 3, (8, 8), dtype=np.uint8)).save(root / f'drawn/m{i}.png')
    for k in range(n):
        for kind in ('images', 'masks'): os.link(root / f'drawn/{kind[0]}{k % 16}.png', root / f'{kind}/{k:06}.png')
    (root / 'tags.csv').write_text('image,tags\n' + ''.join(f'{k:06}.png,{("cat", "dog", "cat;dog")[k % 3]}\n' for k in range(n)))
    return root


def timed(f):
    "What f() returns in a fork of this process, its seconds of CPU, and by how many MiB its memory grew at most"
    def counted():
        resident = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
        quiet()
        gc.freeze()  # what the tests before left behind is not looked through: in a large process one collection takes seconds
        began = time.process_time()
        made = f()
        return made, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - resident / 2**20
    return ended(forked(counted))


def recipe_of(root, **more):
    return resolved(dict(data=dict(name='folder', root=str(root)), splits=['all'], split='all', batch_size=16, device='cpu', **more))


def masks_made(root, n, runs):
    "The masks stage of n images, by a tiny network that saw eight"
    how = dict(stages=['train', 'masks'], train=dict(limit=8, epochs=1, crop=16, long_side=[8, 16], workers=0), masks=dict(limit=n, scales=[1.], flip=False, workers=1))
    with inside(): make_run('r', recipe_of(root, **how), runs, lambda text: None, shown=False)
    return len(list((Run(runs / 'r').stage('masks') / 'all').glob('*.png')))


def figures(root, n, masks):
    "Seconds and MiB of each thing that is done with n images, and of so many masks"
    many_images(root, n)
    out, recipe = {}, recipe_of(root, stages=['train', 'masks', 'segment'], masks=dict(given='truth'))
    data = open_data('folder', '', str(root))
    assert len(data) == n and data.has_masks
    _, *out['open'] = timed(lambda: len(open_data('folder', '', str(root))))
    (kinds, images), *out['check'] = timed(lambda: (lambda report: (sorted({p.kind for p in report.problems}), report.images))(check_data(data, workers=1)))
    assert 'twice' in kinds and images == n
    _, *out['keys'] = timed(data.fingerprint)
    lines, *out['dry run'] = timed(lambda: list(plan(recipe, root / 'runs')))
    assert any(f'{n} images' in line for line in lines) and not (root / 'runs').exists()
    _, *out['given masks'] = timed(lambda: copy_masks(data.subset(range(masks)), root / 'out'))
    made, *out['masks stage'] = timed(lambda: masks_made(root, masks, root / 'runs'))
    assert made == masks == len(list((root / 'out').glob('*.png')))
    return out


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='measures memory as Linux tells it')
@pytest.mark.parametrize('n, masks', [(250, 75), pytest.param(25000, 6250, marks=pytest.mark.slow)])
def test_time_grows_with_the_number_of_images_and_memory_hardly(tmp_path, n, masks):
    list(plan(recipe_of(many_images(tmp_path / 'few', 20), stages=['train', 'masks', 'segment']), tmp_path / 'none')), masks_made(tmp_path / 'few', 16, tmp_path / 'first')  # what they import is not counted
    found = [figures(tmp_path / str(k), k * n, k * masks) for k in (1, 2, 4)]
    for what in found[0]: print(f'{what:11}', '  '.join(f'{k * (masks if "masks" in what else n)}: {f[what][0]:.2f} s, {f[what][1]:.1f} MiB' for k, f in zip((1, 2, 4), found)))
    for what in found[0]:
        (first, few), _, (last, peak) = (f[what] for f in found)
        assert last < 6 * max(first, .3), f'{what}: {last:.2f} s for {4 * n} images, {first:.2f} s for {n}'
        # 4 KiB an image: its record, never its pixels. Pages of libraries that a fork touches for the first time are in both peaks
        assert peak < few + 8 + 3 * n * 4e-3, f'{what}: {peak:.0f} MiB for {4 * n} images, {few:.0f} MiB for {n}'


def many_stages(store, stages, runs):
    "A store with so many stages; the first of them belong to runs"
    p = {s: {k: v for k, (v, _) in parameters_of(s).items()} for s in ('train', 'masks')}
    text = {s: json.dumps(dict(stage=s, folder='NAME', parameters=p[s], inputs={}, uses=[], code='', data={}, results=dict(history=[dict(step=i, loss=1.) for i in range(20)]), device='cpu', versions={}, started=0, seconds=1.)) for s in p}
    for k in range(stages):
        kind = ('train', 'masks')[k % 2]
        folder = store / f'stages/{kind}-{k:012}'
        folder.mkdir(parents=True)
        (folder / 'stage.json').write_text(text[kind].replace('NAME', folder.name))
        (folder / '.lock').touch()
    for k in range(runs):
        made = {s: json.loads(text[s].replace('NAME', f'{s}-{2 * k + i:012}')) for i, s in enumerate(p)}
        save_json(store / f'run{k}/run.json', dict(name=f'run{k}', state='done', recipe=dict(about=f'run {k}'), code='1', seconds=2., written='2026-01-01T00:00:00', versions={}, stages=made))
        save_json(store / f'run{k}/metrics.json', dict(numbers=[]))


@pytest.mark.parametrize('stages, runs', [(200, 25), pytest.param(10000, 500, marks=pytest.mark.slow)])
def test_a_store_of_very_many_stages_is_listed_pruned_and_reported_in_seconds(tmp_path, stages, runs):
    many_stages(tmp_path, stages, runs)
    listed, *a = timed(lambda: list_runs(tmp_path))
    gone, *b = timed(lambda: [f.name for f in unused(tmp_path)])
    (summary, page), *c = timed(lambda: (RunReport(tmp_path).summary(), Path(make_report([], tmp_path)).stat().st_size))
    print(f'{stages} stages, {runs} runs: page of {page / 2**20:.1f} MiB')
    print(f'list {a[0]:.2f} s, prune {b[0]:.2f} s, report {c[0]:.2f} s')
    assert len(listed) == runs and len(gone) == stages - 2 * runs and summary.count('<tr>') == runs + 1
    assert Run(tmp_path / 'run0').stage('masks').name not in gone
    assert max(a[0], b[0]) < max(2, stages * 1e-3) and c[0] < max(10, stages * 3e-3)
