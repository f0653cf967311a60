"""Saliency maps from a folder stand in for ICD's background: found, checked, on the record."""
import json

import numpy as np
import pytest
from PIL import Image

from inside import inside
from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.data.sample import load_maps, save_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine import run as R
from wsss_nb.refine import signed as S

SMALL = ['limit=4', 'stages=[train, masks]', 'train.epochs=1', 'train.batch_size=4', 'masks.scales=[1.0]', 'masks.flip=false', 'masks.splits=[val]', 'workers=1', 'device=cpu']


@pytest.fixture
def salient(tmp_path):
    "The outlines of the things of four images, as saliency maps in a folder of the split"
    data, folder = synthetic('val').subset(range(4)), tmp_path / 'salient'
    (folder / 'val').mkdir(parents=True)
    for i, name in enumerate(data.names): Image.fromarray(np.where(data.mask(i) > 0, 255, 0).astype(np.uint8)).save(folder / f'val/{name}.png')
    return data, folder


def test_masks_take_their_background_from_the_folder_and_say_so_on_record(salient, tmp_path):
    data, folder = salient
    go = lambda name: R.run_recipe('icd_synthetic', [*SMALL, f'masks.saliency={folder}'], runs=tmp_path, run_name=name, say=lambda text: None)
    with inside() as made:
        run = json.loads((go('first') / 'run.json').read_text())
        known, masks = run['stages']['masks'], tmp_path / run['masks']['val']
        for i, name in enumerate(data.names):
            assert np.array_equal(np.asarray(Image.open(masks / f'{name}.png')) > 0, data.mask(i) > 0)  # background where nothing is salient, and only there
        assert set(known['data']) == {'val', 'val saliency'} and set(run['stages']['train']['data']) == {'train'}
        folder.rename(folder.with_name('moved'))
        folder = folder.with_name('moved')
        again = json.loads((go('again') / 'run.json').read_text())['stages']['masks']
        assert again['folder'] == known['folder'] and len(made) == 2  # not where they lie counts, but what they are
        Image.new('L', Image.open(folder / f'val/{data.names[0]}.png').size, 128).save(folder / f'val/{data.names[0]}.png')
        other = json.loads((go('other') / 'run.json').read_text())['stages']['masks']
    assert other['folder'] != known['folder'] and other['data']['val saliency'] != known['data']['val saliency'] and other['data']['val'] == known['data']['val']


def test_a_folder_below_the_root_is_found_and_one_for_all_splits(salient, tmp_path):
    data, folder = salient
    assert S.saliency_of(data, folder) == S.saliency_of(data, 'salient', tmp_path) == folder / 'val' and S.saliency_of(data, folder / 'val') == folder / 'val'


def test_what_is_missing_or_wrong_is_told_before_anything_is_trained(salient, tmp_path, capsys):
    data, folder = salient
    args = ['run', 'icd_synthetic', '--dry-run', '--runs', str(tmp_path / 'runs'), *(x for o in SMALL for x in ('-p', o))]
    assert main([*args, '-p', f'masks.saliency={folder}']) == 0
    (folder / f'val/{data.names[2]}.png').unlink()
    for given, text in ((folder, f'wsss: saliency: 1 of 4 images have no map in {folder / "val"} (first: {data.names[2]}); add <image id>.png.\n'),
                        ('nowhere', "wsss: saliency: 'nowhere' is no folder, here or in the root of the data; give the one with <image id>.png for every image, 0 = background, 255 = salient.\n")):
        capsys.readouterr()
        assert main([*args, '-p', f'masks.saliency={given}']) == 2 and capsys.readouterr().err.endswith(text)


def test_a_map_is_grey_readable_and_of_its_images_size(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(path)
    assert np.allclose(S.read_saliency(path, (1, 3)), [[0, .2, 1]])
    Image.new('1', (3, 1), 1).save(path)
    assert (S.read_saliency(path, (1, 3)) == 1).all()
    for image, got in ((Image.new('RGB', (3, 1)), 'mode RGB, 3x1'), (Image.new('L', (4, 2)), 'mode L, 4x2')):
        image.save(path)
        with pytest.raises(UserError) as e: S.read_saliency(path, (1, 3))
        assert str(e.value) == f'saliency: {path}: expected a grey PNG of 8 bits, 3x1 like its image, got {got}.'
    path.write_text('no picture')
    with pytest.raises(UserError, match='a.png cannot be read'): S.read_saliency(path, (1, 3))


def test_written_maps_differ_only_in_their_background(salient, tmp_path):
    data, folder = salient
    dice = np.random.default_rng(0)
    maps = [dice.random((4, *data.size(i))).astype(np.float16).astype(np.float32) for i in range(4)]
    for name, m in zip(data.names, maps): save_maps(tmp_path / f'in/{name}.npz', np.array([0, 2, 5, 255]), m)
    S.write_salient(data, tmp_path / 'in', tmp_path / 'out', S.saliency_of(data, folder))
    for i, name in enumerate(data.names):
        found = load_maps(tmp_path / f'out/{name}.npz')
        assert found.keys.tolist() == [0, 2, 5] and np.array_equal(found.maps[1:], maps[i][1:3]) and np.array_equal(found.maps[0], data.mask(i) == 0)
    save_maps(tmp_path / f'in/{data.names[0]}.npz', np.array([2, 5]), maps[0][:2])
    (tmp_path / f'out/{data.names[0]}.npz').unlink()
    with pytest.raises(UserError, match=r'maps with a background first, got .* and keys \[2, 5\]'): S.write_salient(data, tmp_path / 'in', tmp_path / 'out', S.saliency_of(data, folder))
