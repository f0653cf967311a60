"""A segmenter that is shown boxes and points of the maps."""
import json
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inside import inside
from wsss_nb.base.core import UserError, file_sha256
from wsss_nb.data.sample import ScoreMaps, load_maps, read_mask
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.record import Run, stage_record
from wsss_nb.engine.run import run_recipe
from wsss_nb.refine import prompt
from wsss_nb.refine.chain import to_mask
from wsss_nb.refine.prompt import overlap, prompted, segmenter_at, shown_places

DATA = synthetic('val', n=4)


def blurred(i):
    tags = DATA.records[i].tags
    return ScoreMaps(np.array(tags), np.stack([gaussian_filter((DATA.mask(i) == t).astype(np.float32), 2.5) for t in tags]))


@pytest.mark.parametrize('by', prompt.HOW)
def test_a_segmenter_that_answers_perfectly_gives_perfect_masks(by):
    for i in range(4):
        truth, asked = DATA.mask(i), []
        def knows(image, boxes, points):
            asked.append((boxes is not None, points is not None))
            return np.stack([np.zeros(truth.shape, bool), np.ones(truth.shape, bool), *[truth == t for t in DATA.records[i].tags]])
        found = to_mask(prompted(DATA.image(i), blurred(i), knows, by))
        for t in DATA.records[i].tags: assert ((found == t) & (truth == t)).sum() / ((found == t) | (truth == t)).sum() > .98
        assert set(asked) == {dict(box=(True, False), point=(False, True), both=(True, True))[by]}


def test_boxes_points_and_overlaps_by_hand():
    m = np.zeros((9, 12), np.float32); m[1:4, 2:6], m[2, 3], m[7, 10] = .6, 1, .4
    boxes, points = shown_places(m)
    assert boxes.tolist() == [[2, 1, 6, 4]] and points.tolist() == [[3, 2]]
    assert overlap(np.stack([m > .5, m < 0]), m).tolist() == pytest.approx([(11 * .6 + 1) / (12 + .4), 0])
    assert shown_places(m * 0)[0].shape == (0, 4)


def test_where_no_mask_overlaps_the_map_stays():
    i, far = 0, lambda image, boxes, points: np.zeros((2, *image.shape[:2]), bool)
    maps = blurred(i)
    after = prompted(DATA.image(i), maps, far)
    best = prompt.with_threshold(maps, .25)
    winner = best.keys[best.maps.argmax(0)]
    for k, before, now in zip(maps.keys, maps.maps, after.maps[1:]): assert np.array_equal(now, np.where((winner == k) | (winner == 0), before, 0).astype(np.float32))


def test_it_runs_in_a_recipe_and_its_origin_is_on_record(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('import numpy as np\ndef disc(image, boxes, points):\n    x0, y0, x1, y1 = boxes[0].astype(int)\n    m = np.zeros((1, *image.shape[:2]), bool); m[0, y0:y1, x0:x1] = True\n    return m\n')
    (tmp_path / 'r.yaml').write_text(f'stages: [train, masks]\nmasks: {{refine: [prompt], prompt_model: "{file}:disc", splits: [val], scales: [1.0]}}\n')
    with inside(): run = Run(run_recipe(str(tmp_path / 'r.yaml'), ['limit=4', 'train.epochs=1', 'train.batch_size=2', 'masks.workers=1'], tmp_path / 'runs'))
    made = stage_record(run.stage('masks'))
    place = tmp_path / 'runs/stages' / next(u for u in made['uses'] if u.startswith('prompt-'))
    origin = json.loads((place / 'origin.json').read_text())
    assert origin['model'] == f'{file}:disc' and origin['files'] == {'mine.py': file_sha256(file)} and made['parameters']['prompt_by'] == 'box'
    for p in (run.stage('masks') / 'val').glob('*.png'): assert np.array_equal(read_mask(p), to_mask(load_maps(place / f'{p.stem}.npz')))


@pytest.mark.parametrize('model, text', [('', 'the step prompt needs a segmenter: masks.prompt_model=FOLDER'), ('nowhere', 'nowhere: no such folder, and no file.py:name'), ('no.py:f', 'no.py: no such file')])
def test_a_missing_segmenter_is_told(model, text):
    with pytest.raises(UserError, match=text): segmenter_at(model)


def tiny_sam(folder):
    "A SAM of random weights, made on the spot"
    import torch, transformers as t
    torch.manual_seed(0)
    vision = t.SamVisionConfig(hidden_size=16, output_channels=8, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16, global_attn_indexes=[0], window_size=2, mlp_dim=16, num_pos_feats=4)
    prompts = t.SamPromptEncoderConfig(hidden_size=8, image_size=64, patch_size=16, image_embedding_size=4, mask_input_channels=4)
    decoder = t.SamMaskDecoderConfig(hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8)
    t.SamModel(t.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).save_pretrained(folder)
    t.SamProcessor(t.SamImageProcessor(size=dict(longest_edge=64), pad_size=dict(height=64, width=64), mask_size=dict(longest_edge=16), mask_pad_size=dict(height=16, width=16))).save_pretrained(folder)


def test_a_sam_of_random_weights_is_asked(tmp_path, monkeypatch):
    try: import transformers  # noqa: F401
    except ImportError:
        (tmp_path / 'sam').mkdir()
        with pytest.raises(UserError, match='transformers is not installed; for prompt_model=FOLDER'): segmenter_at(str(tmp_path / 'sam'))
        return
    tiny_sam(tmp_path / 'sam')
    ask = segmenter_at(str(tmp_path / 'sam'))
    image, maps = DATA.image(0), blurred(0)
    boxes, points = shown_places(maps.maps[0])
    for b, p in ((boxes[:1], None), (None, points[:1]), (boxes[:1], points[:1])):
        masks = ask(image, b, p)
        assert masks.shape[0] == 3 and masks.shape[1:] == image.shape[:2] and masks.dtype == bool
    for by in prompt.HOW: assert prompted(image, maps, ask, by, least=0).maps.shape == (1 + len(maps.keys), *image.shape[:2])
    assert set(prompt.segmenter_origin(str(tmp_path / 'sam'))['files']) >= {'config.json', 'model.safetensors'}
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no SAM of transformers'): segmenter_at(str(tmp_path / 'empty'))
