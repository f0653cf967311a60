"""Very many images and very many stages: bounded memory, and time that grows no faster than their number."""
import json
import os
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from wsss_nb.base.core import save_json
from wsss_nb.data.catalog import open_data
from wsss_nb.data.check import check_data
from wsss_nb.engine.methods import check_network
from wsss_nb.engine.parameters import parameters_of
from wsss_nb.engine.record import Run
from wsss_nb.engine.recipes import resolved
from wsss_nb.engine.run import list_runs, plan, unused
from wsss_nb.refine.masks import WithMasks, copy_masks
from wsss_nb.results.report import RunReport


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
    "What f() returns, seconds of CPU and peak of Python's memory in MiB"
    tracemalloc.start()
    began = time.process_time()
    made = f()
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return made, seconds, peak


def figures(root, n, masks):
    "Seconds and MiB of each thing that is done with n images"
    many_images(root, n)
    out, recipe = {}, resolved(dict(stages=['train', 'masks', 'segment'], data=dict(name='folder', root=str(root)), splits=['all'], split='all', masks=dict(given='truth'), batch_size=16))
    data, *out['open'] = timed(lambda: open_data('folder', '', str(root)))
    assert len(data) == n and data.has_masks
    report, *out['check'] = timed(lambda: check_data(data, workers=1))
    assert 'twice' in {p.kind for p in report.problems} and report.images == n
    _, *out['keys'] = timed(data.fingerprint)
    for stage in ('train', 'segment'): check_network(stage, recipe.parameters(stage), 2)  # what it imports is not counted
    lines, *out['dry run'] = timed(lambda: list(plan(recipe, root / 'runs')))
    assert any(f'{n} images' in line for line in lines) and not (root / 'runs').exists()
    some = data.subset(range(masks))
    _, *out['masks'] = timed(lambda: copy_masks(some, root / 'out'))
    assert len(WithMasks(some, root / 'out')) == masks
    return out


@pytest.mark.parametrize('n', [500, pytest.param(25000, marks=pytest.mark.slow)])
def test_time_grows_with_the_number_of_images_and_memory_hardly(tmp_path, n):
    found = [figures(tmp_path / str(k), k * n, k * min(n, 2500)) for k in (1, 2, 4)]
    for what in found[0]: print(f'{what:8}', '  '.join(f'{k * n}: {f[what][0]:.2f} s, {f[what][1]:.1f} MiB' for k, f in zip((1, 2, 4), found)))
    for what in found[0]:
        (first, _), (second, _), (last, peak) = (f[what] for f in found)
        assert last < 6 * max(first, .05), f'{what}: {last:.2f} s for {4 * n} images, {first:.2f} s for {n}'
        assert peak < 8 + 4 * n * 4e-3, f'{what}: {peak:.0f} MiB'  # 4 KiB an image: its record, never its pixels
    assert found[2]['masks'][1] < 8


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


@pytest.mark.parametrize('stages, runs', [(400, 50), pytest.param(10000, 500, marks=pytest.mark.slow)])
def test_a_store_of_very_many_stages_is_listed_pruned_and_reported_in_seconds(tmp_path, stages, runs):
    many_stages(tmp_path, stages, runs)
    listed, *a = timed(lambda: list_runs(tmp_path))
    gone, *b = timed(lambda: unused(tmp_path))
    summary, *c = timed(lambda: RunReport(tmp_path).summary())
    print(f'list {a[0]:.2f} s, prune {b[0]:.2f} s, report {c[0]:.2f} s')
    assert len(listed) == runs and len(gone) == stages - 2 * runs and summary.count('<tr>') == runs + 1
    assert Run(tmp_path / 'run0').stage('masks').name not in {f.name for f in gone}
    for seconds in (a[0], b[0], c[0]): assert seconds < max(2, stages * 2e-3)
