"""A network that is told words: its answers as maps, given to a run instead of a localiser's."""
import json

import numpy as np
import pytest

from inside import inside
from wsss_nb.base.core import UserError, file_sha256, load_json
from wsss_nb.data.sample import load_maps, read_mask, save_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine.evaluate import count_masks
from wsss_nb.engine.record import Run
from wsss_nb.engine.run import make_run
from wsss_nb.refine import told
from wsss_nb.refine.told import told_at, told_maps, prompts_of, write_told_maps
from wsss_nb.results.doubt import doubts_of, most_doubtful
from wsss_nb.results.handover import masks_of_run

DATA = synthetic('val', n=6)
KNOWS = '''import numpy as np
from wsss_nb.data.synthetic import synthetic
data = synthetic('val', n=6)
asked = []
def everything(image, word, blind=()):
    i = next(i for i in range(len(data)) if np.array_equal(data.image(i), image))
    asked.append((i, word))
    if word not in data.classes or i in blind: return np.zeros((0, *image.shape[:2]), bool), np.zeros(0)
    return (data.mask(i) == 1 + data.classes.index(word))[None], np.array([.9])
def all_but_one(image, word): return everything(image, word, blind=(4,))
'''


@pytest.fixture
def model(tmp_path):
    (tmp_path / 'knows.py').write_text(KNOWS)
    return f'{tmp_path}/knows.py:everything'


def slow_maps(image, words, ask, least):
    "Place by place, from the definition"
    answers = [[ask(image, w) for w in own] for own in words]
    at = lambda own, y, x: max([s for masks, scores in own for m, s in zip(masks, scores) if s >= least and m[y, x]], default=0)
    return np.array([[[at(own, y, x) for x in range(image.shape[1])] for y in range(image.shape[0])] for own in answers])


def test_maps_are_the_surest_instance_of_any_word_at_each_place():
    r, image = np.random.default_rng(0), np.zeros((7, 9, 3), np.uint8)
    said = {w: (r.random((n, 7, 9)) < .4, r.random(n)) for w, n in (('a', 3), ('b', 0), ('c', 4))}
    ask = lambda image, word: said[word]
    found = told_maps(image, [2, 5], [['a', 'b'], ['c']], ask, .3)
    assert found.keys.tolist() == [2, 5] and found.maps.dtype == np.float32
    assert np.allclose(found.maps, slow_maps(image, [['a', 'b'], ['c']], ask, .3)) and found.maps.max() > .3


def test_each_tag_is_asked_by_all_its_words_and_no_other(model, tmp_path, monkeypatch):
    ask = told_at(model)
    asked = ask.__globals__['asked']
    monkeypatch.setattr(told, 'told_at', lambda *a: ask)
    write_told_maps(DATA, tmp_path / 'maps', model, {'thing': DATA.classes[0], 'nothing': ''})
    more = {DATA.classes[0]: ['thing']}
    assert asked == [(i, w) for i, r in enumerate(DATA.records) for t in r.tags for c in [DATA.classes[t - 1]] for w in [c, *more.get(c, [])]]
    assert max(len(r.tags) for r in DATA.records) > 1  # several tags a picture
    for n, r in zip(DATA.names, DATA.records): assert load_maps(tmp_path / f'maps/{n}.npz').keys.tolist() == list(r.tags)
    origin = json.loads((tmp_path / 'maps/origin.json').read_text())
    assert origin['files'] == {'knows.py': file_sha256(tmp_path / 'knows.py')} and origin['words'][DATA.classes[0]] == [DATA.classes[0], 'thing'] and origin['told'] == 'tags'
    asked.clear()
    write_told_maps(DATA, tmp_path / 'maps', model)
    assert asked == []  # what is there is not made again


def test_synonyms_are_a_table_of_the_users(tmp_path):
    (tmp_path / 's.csv').write_text('from,to\ncouch,sofa\nboard,dining_table\nblurred,\n')
    from wsss_nb.data.words import read_synonyms
    assert prompts_of(['sofa', 'dining_table'], read_synonyms(tmp_path / 's.csv')) == dict(sofa=['sofa', 'couch'], dining_table=['dining table', 'board'])
    with pytest.raises(UserError, match="synonyms: class of 'couch': unknown name 'sofa'. Did you mean 'sofas'"): prompts_of(['sofas'], {'couch': 'sofa'})


def test_told_nothing_it_is_asked_for_every_class_and_keeps_what_it_finds(model, tmp_path):
    write_told_maps(DATA, tmp_path / 'maps', model, use_image_labels=False)
    for i, n in enumerate(DATA.names): assert load_maps(tmp_path / f'maps/{n}.npz').keys.tolist() == sorted(set(np.unique(DATA.mask(i)).tolist()) - {0, 255})


def run(tmp_path, folder, **masks):
    recipe = dict(stages=['masks', 'evaluate'], limit=6, masks=dict(given=str(folder), splits=['val'], **masks), evaluate=dict(splits=['val']))
    with inside(): return Run(make_run('told', recipe, str(tmp_path / 'runs'), lambda _: None))


def test_a_perfect_answer_is_a_perfect_row_with_thresholds_to_choose(model, tmp_path):
    write_told_maps(DATA, tmp_path / 'maps', model)
    made = run(tmp_path, tmp_path / 'maps')
    numbers = load_json(made.folder / 'metrics.json')['numbers']
    masks, sweep = (next(n for n in numbers if n['what'] == what) for what in ('masks', 'score maps'))
    assert masks['miou'] == 1 and masks['threshold'] == .25 and masks['method'] == 'given masks' and not masks['oracle'] and sweep['oracle'] and sweep['miou'] == 1
    for i, n in enumerate(DATA.names): assert np.array_equal(read_mask(made.stage('masks') / f'val/{n}.png'), np.where(DATA.mask(i) == 255, 0, DATA.mask(i)))


def test_refinement_goes_on_from_them(model, tmp_path):
    write_told_maps(DATA, tmp_path / 'maps', model)
    made = run(tmp_path, tmp_path / 'maps', refine=['pamr'], pamr_iters=1)
    assert .5 < count_masks(DATA, made.stage('masks') / 'val').miou() < 1
    with pytest.raises(UserError, match='refine: svm asks a network that was trained, and the maps in .* were given'): run(tmp_path, tmp_path / 'maps', refine=['svm'])


def test_what_it_did_not_find_is_first_in_the_review(model, tmp_path):
    write_told_maps(DATA, tmp_path / 'maps', model.replace('everything', 'all_but_one'))
    assert not load_maps(tmp_path / f'maps/{DATA.names[4]}.npz').maps.any()
    masks = masks_of_run(run(tmp_path, tmp_path / 'maps').folder)['val']
    doubts = doubts_of(masks)
    assert most_doubtful(doubts)[0] == DATA.names[4] and doubts[DATA.names[4]] > 2 * sorted(doubts.values())[-2]


@pytest.mark.parametrize('change, text', [
    (lambda f: (f / f'{DATA.names[0]}.npz').unlink(), 'given: 1 of 6 images have no score maps in'),
    (lambda f: save_maps(f / f'{DATA.names[0]}.npz', [1], np.zeros((1, 3, 3), np.float32)), 'has maps of 3x3, its image is'),
    (lambda f: save_maps(f / f'{DATA.names[0]}.npz', [9], np.zeros((1, *DATA.size(0)), np.float32)), r'has maps of the classes \[9\], synthetic val has 8'),
    (lambda f: save_maps(f / f'{DATA.names[0]}.npz', [1], np.full((1, *DATA.size(0)), 2, np.float32)), 'has scores from 2 to 2; expected 0 to 1')])
def test_maps_that_do_not_fit_are_told(model, tmp_path, change, text):
    write_told_maps(DATA, tmp_path / 'maps', model)
    change(tmp_path / 'maps')
    with pytest.raises(Exception, match=text): run(tmp_path, tmp_path / 'maps')


@pytest.mark.parametrize('model, text', [('', 'expected a folder with a SAM 3'), ('nowhere', 'nowhere: no such folder, and no file.py:name'), ('no.py:f', 'no.py: no such file')])
def test_a_missing_model_is_told(model, text):
    with pytest.raises(UserError, match=text): told_at(model)


def tiny_sam3(folder):
    "A SAM 3 of random weights, and a tokenizer that spells, made on the spot"
    import torch, transformers as t
    from transformers.models.sam3 import configuration_sam3 as c
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16)
    eye = c.Sam3ViTConfig(**small, num_hidden_layers=1, image_size=56, patch_size=14, window_size=2, global_attn_indexes=[0], pretrain_image_size=28)
    text = t.CLIPTextConfig(**small, vocab_size=60, projection_dim=16, num_hidden_layers=1, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    net = t.Sam3Model(c.Sam3Config(
        vision_config=c.Sam3VisionConfig(backbone_config=eye, fpn_hidden_size=16, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]), text_config=text,
        geometry_encoder_config=c.Sam3GeometryEncoderConfig(num_layers=1, **small), detr_encoder_config=c.Sam3DETREncoderConfig(num_layers=1, **small),
        detr_decoder_config=c.Sam3DETRDecoderConfig(num_layers=1, num_queries=5, **small), mask_decoder_config=c.Sam3MaskDecoderConfig(hidden_size=16, num_attention_heads=2)))
    letters = [x + end for x in map(chr, range(97, 123)) for end in ('', '</w>')]
    tokenizer = t.CLIPTokenizer(vocab={w: k for k, w in enumerate(['<|startoftext|>', '<|endoftext|>', *letters])}, merges=[])
    net.save_pretrained(folder)
    t.Sam3Processor(t.Sam3ImageProcessor(size=dict(height=56, width=56), mask_size=dict(height=16, width=16)), tokenizer).save_pretrained(folder)


def test_a_sam3_of_random_weights_is_asked_as_its_own_processor_would(tmp_path):
    try: import transformers
    except ImportError:
        (tmp_path / 'sam3').mkdir()
        with pytest.raises(UserError, match='transformers is not installed; for model=FOLDER'): told_at(str(tmp_path / 'sam3'))
        return
    import torch
    tiny_sam3(tmp_path / 'sam3')
    ask, image = told_at(str(tmp_path / 'sam3')), DATA.image(0)
    net, processor = told.sam3_in(str(tmp_path / 'sam3'), 'cpu')
    assert type(net) is transformers.Sam3Model and type(processor) is transformers.Sam3Processor
    looks = []
    see, net.get_vision_features = net.get_vision_features, lambda *a, **k: looks.append(0) or see(*a, **k)
    for word in ('car', 'polar bear', 'car'):
        masks, scores = ask(image, word)
        given = processor(images=image, text=word, return_tensors='pt')
        with torch.no_grad(): out = net(pixel_values=given['pixel_values'], input_ids=given['input_ids'], attention_mask=given['attention_mask'])
        theirs, = processor.post_process_instance_segmentation(out, threshold=0., target_sizes=[image.shape[:2]])
        assert masks.shape == (5, *image.shape[:2]) and masks.dtype == bool and np.allclose(scores, theirs['scores'], atol=1e-5)
        assert (masks == theirs['masks'].bool().numpy()).mean() > .999
    assert looks == [0]  # one look for three questions
    write_told_maps(DATA, tmp_path / 'maps', str(tmp_path / 'sam3'), least=0.)
    assert json.loads((tmp_path / 'maps/origin.json').read_text())['files'].keys() >= {'config.json', 'model.safetensors', 'tokenizer.json'}
    found = run(tmp_path, tmp_path / 'maps')
    assert 0 <= next(n['miou'] for n in load_json(found.folder / 'metrics.json')['numbers'] if n['what'] == 'masks') < 1
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty: no SAM 3 of transformers'): told_at(str(tmp_path / 'empty'))
