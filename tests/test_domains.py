"""What a parameter may be: every one has a domain; what lies inside passes the dry run, what lies outside ends in one line and leaves nothing on the disk."""
import contextlib
import io
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from wsss_nb.base.basics import environment
from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.cams import write_score_maps
from wsss_nb.data.maps import load_maps
from wsss_nb.data.synthetic import synthetic
from wsss_nb.engine import domains as d
from wsss_nb.engine.evaluate import write_predictions
from wsss_nb.engine.methods import METHODS, build_localiser, build_segmenter, localiser_learner, method_class, segmenter_learner
from wsss_nb.engine.options import check_call, options_of, readings_of
from wsss_nb.engine.parameters import STAGES, parameters_of
from wsss_nb.engine.recipes import resolved
from wsss_nb.refine.chain import refine
from wsss_nb.refine.masks import write_masks

OPTIONS = [('train.options', m, k, v, c) for m in METHODS for k, (v, c) in options_of(method_class(m)).items()]
READINGS = [('masks.reading', m, k, v, c) for m in METHODS for k, (v, c) in readings_of(method_class(m)).items()]
PROMPT = [('masks', k, v, c) for k, (v, c) in parameters_of('masks', ['prompt']).items() if k.startswith('prompt_')]
KNOWN = [(s, k, v, c) for s in STAGES if s != 'report' for k, (v, c) in parameters_of(s).items()]
ELSEWHERE = {'method', 'options', 'reading', 'backbone', 'crf_preset', 'crf', 'refine', 'stride', 'keep', 'crop'}  # further rules than their domain, or folders that must be there
quick = dict(deadline=None, derandomize=True, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))


def test_every_parameter_has_a_domain_that_holds_its_default():
    bare = [f'{s}.{k}' for s in STAGES for k, (v, c) in parameters_of(s).items() if type(v) is not bool and d.domain_in(c) is None]
    assert bare == [] and len(KNOWN) > 150
    for s, k, v, c in KNOWN: assert type(v) is bool or d.domain_in(c).allows(v), (s, k)


def test_every_option_reading_and_setting_has_a_domain_that_holds_its_default():
    own = [(f'{s} of {m}', k, v, c) for s, m, k, v, c in OPTIONS + READINGS] + PROMPT
    assert len(OPTIONS) > 60 and len(READINGS) > 15 and len(PROMPT) == 3
    for s, k, v, c in own: assert type(v) is bool or d.domain_in(c).allows(list(v) if type(v) is tuple else v), (s, k, c)
    with_networks = {m for m in METHODS if options_of(method_class(m))}
    assert with_networks == {*METHODS} - {'cam'}


def test_words_are_those_of_the_registries():
    from wsss_nb.data.catalog import READERS
    from wsss_nb.engine.train import SCHEDULES
    from wsss_nb.nets.deeplab import HEADS, NORMS
    from wsss_nb.nets.heads import CONVS
    from wsss_nb.nets.segmenter import FUSIONS
    from wsss_nb.refine.crf import PRESETS
    there = dict(data_name=READERS, schedule=SCHEDULES, head=('', *HEADS), norm=('', *NORMS), convs=('', *CONVS), fusion=FUSIONS)
    seen = Counter()
    for s, k, v, c in KNOWN:
        if k in there: assert {p.text for p in d.domain_in(c).parts} == set(there[k]), (s, k); seen[k] += 1
        if k == 'crf_preset' and s == 'masks': assert set(re.split(', | or | ', c.partition(' [')[0])) == set(PRESETS)
    assert set(seen) == set(there)


def inside_of(part):
    "A strategy of what a part of a domain allows"
    if isinstance(part, d.Word): return st.just(part.text) if part.text != 'N' and not part.text.endswith(':N') else st.integers(0, 7).map(lambda n: part.text[:-1] + str(n))
    if isinstance(part, d.Number): return st.just(int(part.value) if part.value == int(part.value) else part.value)
    if isinstance(part, d.Nothing): return st.just([])
    if isinstance(part, d.Range):
        high = min(part.high, 10 ** 6)
        if part.whole: return st.integers(int(part.low) + part.above, int(high) - part.below)
        return st.floats(part.low, high, exclude_min=part.above, exclude_max=part.below, allow_subnormal=False)
    if isinstance(part, d.Listed):
        low, high = (int(part.count),) * 2 if part.count.isdigit() else (1 if part.count == 'some' else 0, 4)
        return st.lists(inside_of(part.of), min_size=low, max_size=high).map(sorted if part.rising else list)
    return st.text(st.characters(categories=('L', 'N')), min_size=1, max_size=12)


def numbers_below(part):
    "What lies just outside a range"
    step = 1 if part.whole else 1e-3
    out = [part.low if part.above else part.low - step, math.nan, math.inf, -math.inf]
    return out + ([part.high if part.below else part.high + step] if part.high < math.inf else [])


def kept(f):
    "A strategy, made once for a domain and a default: making it costs more than drawing"
    made = {}
    def strategy(domain, default=None):
        at = repr((domain, default))
        if at not in made: made[at] = f(domain, default)
        return made[at]
    return strategy


@kept
def inside_all(domain, _): return st.one_of(*map(inside_of, domain.parts))


@kept
def outside_of(domain, default):
    "A strategy of values of the default's type, or of another, that a domain refuses"
    odd = st.one_of(st.none(), st.just({'a': 1}), st.text(max_size=5), st.integers(-5, 5), st.floats(-2, 2), st.lists(st.integers(-2, 2), max_size=3), st.booleans(),
                    *[st.sampled_from(numbers_below(p)) for p in domain.parts if isinstance(p, d.Range)],
                    *[st.lists(st.sampled_from(numbers_below(p.of)), min_size=1, max_size=3) for p in domain.parts if isinstance(p, d.Listed) and isinstance(p.of, d.Range)],
                    st.sampled_from(['../x', 'a\x00b', 'a\nb', '..', '/', 'x/y']))
    read = lambda v: float(v) if type(default) is float and type(v) is int else str(v).lower() if default == 'auto' and type(v) in (int, bool) else v
    meant = lambda v: default == 'auto' and type(v) in (int, bool) and str(v).isalnum() and domain.allows(str(v).lower())  # workers=2, channels_last=true
    return odd.filter(lambda v: not meant(v)).filter(lambda v: not (type(read(v)) is type(default) and domain.allows(read(v))) and not isinstance(v, str) or type(v) is str is type(default) and not domain.allows(v))


@kept
def set_outside(domain, default):
    "The same for a setting of a method, where a text may be read as what it writes"
    odd = outside_of(domain, default).filter(lambda v: not isinstance(v, str)) | st.sampled_from(['../x', 'a\nb', 'what?', '1e'])
    return odd.filter(lambda v: not domain.allows(v))


DRAWN = [(s, k, v, d.domain_in(c)) for s, k, v, c in KNOWN if type(v) is not bool]


def command(tmp_path, recipe, *more):
    "The exit code of a recipe's run, and what it leaves: the lines on both streams, the names on the disk"
    (tmp_path / 'r.yaml').write_text(yaml.safe_dump(recipe))
    out, err = io.StringIO(), io.StringIO()
    with environment(WSSS_PROGRESS='off'), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = main(['run', str(tmp_path / 'r.yaml'), '--runs', str(tmp_path / 'runs'), *more])
    return code, out.getvalue().splitlines(), err.getvalue().strip('\n').split('\n'), [p.name for p in tmp_path.iterdir()]


def shown(value, default):
    "How an error may show a value: as Python does, as the kind of the default, or its first part that is wrong"
    parts = value if isinstance(value, list) else []
    return {repr(value), str(value), repr(str(value).lower()), *([repr(float(value))] if type(default) is float and type(value) in (int, float) else []), *map(repr, parts), *(repr(float(v)) for v in parts if type(v) in (int, float))}


@settings(max_examples=1200, **quick)
@given(data=st.data())
def test_what_lies_outside_is_one_line_and_leaves_nothing(tmp_path, data):
    stage, name, default, domain = data.draw(st.sampled_from(DRAWN))
    value = data.draw(outside_of(domain, default))
    code, out, (text, *more), there = command(tmp_path, {'stages': [stage], stage: {name: value}})
    assert code == 2 and out == more == [] and there == ['r.yaml'] and text.startswith('wsss: ') and 'Traceback' not in text
    assert name.replace('data_', '') in text and ('expected' in text or 'Known' in text) and any(v in text for v in shown(value, default)), text


@settings(max_examples=600, **quick)
@given(st.data())
def test_what_lies_inside_is_taken(data):
    stage, name, default, domain = data.draw(st.sampled_from([x for x in DRAWN if x[1] not in ELSEWHERE]))
    value = data.draw(inside_all(domain))
    if name in ('scales', 'max_side'): return  # together: a test of their own
    assert resolved({'stages': [stage], stage: {name: value}}).stages[stage][name] == value


PLAIN = [x for x in DRAWN if x[1] not in ELSEWHERE | {'scales', 'max_side', 'data_name', 'head', 'norm', 'convs', 'width'} and not any(isinstance(p, d.Named) or isinstance(getattr(p, 'of', None), d.Named) for p in x[3].parts)]


@settings(max_examples=150, **quick)
@given(data=st.data())
def test_what_lies_inside_passes_the_dry_run(tmp_path, data):
    stage, name, default, domain = data.draw(st.sampled_from(PLAIN))
    value = data.draw(inside_all(domain))
    code, out, err, there = command(tmp_path, {'stages': [stage], stage: {name: value}}, '--dry-run')
    assert code == 0 and there == ['r.yaml'] and any(stage in line for line in out), (err, out)


SET = [x for x in OPTIONS + READINGS if type(x[3]) is not bool]
TOGETHER = {'freeze', 'sides', 'high', 'low', 'lesson', 'maps'}  # what else they depend on is asked by the network


def with_setting(section, method, name, value):
    stage, own = section.split('.')
    return {'stages': ['train', 'masks'], 'train': {'method': method}, **({'train': {'method': method, own: {name: value}}} if stage == 'train' else {stage: {own: {name: value}}})}


@settings(max_examples=600, **quick)
@given(st.data())
def test_a_setting_of_a_method_that_lies_outside_is_one_line(data):
    section, method, name, default, comment = data.draw(st.sampled_from(SET))
    domain = d.domain_in(comment)
    value = data.draw(set_outside(domain, list(default) if type(default) is tuple else default))
    with pytest.raises(UserError) as e: resolved(with_setting(section, method, name, value))
    text = str(e.value)
    assert '\n' not in text and text.startswith(f'{section}.{name}: ') and ('expected' in text or 'Known' in text), text


@settings(max_examples=400, **quick)
@given(st.data())
def test_a_setting_of_a_method_that_lies_inside_is_taken(data):
    section, method, name, default, comment = data.draw(st.sampled_from([x for x in SET if x[2] not in TOGETHER]))
    value = data.draw(inside_all(d.domain_in(comment)))
    stage, own = section.split('.')
    assert resolved(with_setting(section, method, name, value)).stages[stage][own][name] == value


@pytest.mark.parametrize('given, text', [
    (dict(lr=-1), 'lr: expected a number above 0, got -1.0.'), (dict(batch_size=0), 'batch_size: expected at least 1, got 0.'), (dict(crop=-5), 'crop: expected at least 1, got -5.'),
    (dict(long_side=(144, 72)), r'long_side: expected \[\] or a list of 2, each at least 1, rising, got \[144, 72\].'), (dict(seed=-1), 'seed: expected at least 0'), (dict(momentum=float('nan')), 'momentum: expected a number from 0, below 1, got nan.'),
    (dict(options=dict(gsc=-1), method='sipe'), 'options.gsc: expected at least 0, got -1.'), (dict(epochs=0), 'epochs: expected at least 1, got 0.'), (dict(workers=-1), 'workers: expected auto or a whole number'), (dict(device='gpu'), 'device: ')])
def test_a_call_in_python_is_asked_the_same(given, text):
    data = synthetic('train', n=2)
    with pytest.raises(UserError, match=text) as e: localiser_learner(data, backbone='tiny', weights='', **{**dict(device='cpu'), **given})
    assert '\n' not in str(e.value)
    if {'options', 'long_side', 'method'} & set(given): return
    with pytest.raises(UserError, match=text): segmenter_learner(data, backbone='tiny', weights='', **{**dict(device='cpu'), **given})


def test_what_python_writes_otherwise_is_meant():
    check_call('train', dict(lr=np.float64(.1), epochs=np.int64(3), long_side=(72, 144), weights=Path('a.npz'), device=torch.device('cpu'), workers=2, channels_last=True, options=None, backbone=torch.nn.Identity()))


@pytest.fixture(scope='module')
def things(tmp_path_factory):
    "Two images, a localiser, a segmenter, score maps of them"
    folder, data, net = tmp_path_factory.mktemp('calls'), synthetic('train', n=2), build_localiser('cam', 8)
    write_score_maps(net, data, folder / 'maps', scales=(1.,), flip=False)
    return folder, data, net, build_segmenter(8, width=16)


@pytest.mark.parametrize('given, text', [
    (dict(scales=[]), 'scales: expected a list of one or more, each a number above 0, at most 16, got [].'), (dict(scales=[-1.]), 'scales: expected a list'), (dict(scales=[float('nan')]), 'scales: expected a list'),
    (dict(batch_size=0), 'batch_size: expected at least 1, got 0.'), (dict(max_side=-1), 'max_side: expected at least 0, got -1.')])
def test_maps_and_predictions_ask_the_same_in_python(things, given, text):
    folder, data, net, segmenter = things
    for f, of in ((write_score_maps, net), (write_predictions, segmenter)):
        with pytest.raises(UserError, match=re.escape(text)): f(of, data, folder / 'none', **given)
    assert not (folder / 'none').exists()


@pytest.mark.parametrize('call, text', [
    (lambda f, data, net, seg: write_score_maps(net, data, f / 'none', reading=dict(kind='x')), "reading.kind: unknown name 'x'. Known: cam, grad_cam, grad_cam_pp."),
    (lambda f, data, net, seg: write_score_maps(net, data, f / 'none', reading=dict(knd='cam')), "reading: unknown name 'knd'. Did you mean 'kind'?"),
    (lambda f, data, net, seg: write_predictions(seg, data, f / 'none', fusion='sum'), "fusion: unknown name 'sum'."), (lambda f, data, net, seg: write_predictions(seg, data, f / 'none', crf='x'), "crf: unknown name 'x'."),
    (lambda f, data, net, seg: write_masks(data, f / 'maps', f / 'none', threshold=-1), 'threshold: expected a number from 0 to 1, got -1.'), (lambda f, data, net, seg: write_masks(data, f / 'maps', f / 'none', workers=-1), 'workers: expected at least 0, got -1.'),
    (lambda f, data, net, seg: refine(data.image(0), load_maps(f / f'maps/{data.names[0]}.npz'), ['crf'], crf_unary='x'), "crf_unary: unknown name 'x'. Known: '', scores, labels."),
    (lambda f, data, net, seg: refine(data.image(0), load_maps(f / f'maps/{data.names[0]}.npz'), ['crf'], threshold='x'), "threshold: expected a number from 0 to 1, got 'x'.")])
def test_readings_presets_and_thresholds_in_python(things, call, text):
    with pytest.raises(UserError, match=re.escape(text)): call(*things)


@pytest.mark.parametrize('option, text', [
    ('train.batch_size=0', 'train.batch_size: expected at least 1, got 0.'),
    ('train.lr=-1', 'train.lr: expected a number above 0, got -1.0.'),
    ('irn.batch_size=0', 'irn.batch_size: expected at least 1, got 0.'),
    ('train.lr=.nan', 'train.lr: expected a number above 0, got nan.'),
    ('masks.scales=[]', 'masks.scales: expected a list of one or more, each a number above 0, at most 16, got [].'),
    ('masks.scales=[0.0001]', 'masks.scales: 0.0001 of a side of at most 1024 (masks.max_side) leaves no pixel (0.1).'),
    ('train.long_side=[144, 72]', 'train.long_side: expected [] or a list of 2, each at least 1, rising, got [144, 72].'),
    ('masks.splits=[../val]', "masks.splits: expected a list of one or more, each the name of a split, got ['../val']."),
    ('segment.keep=best', 'segment.keep: best of what? Name a split with masks as segment.validate (its numbers become oracles), or keep the last.'),
    ('train.crop=2', 'train.crop: expected at least 8, the output stride of tiny, got 2.'),
    ('segment.split=val', "segment.split: val is to be learnt from, and masks.splits are ['train']; name it there too."),
    ('evaluate.splits=[nope]', "split: unknown name 'nope'. Known: train, val."),
    ('evaluate.measure=[circles]', "evaluate.measure: unknown name 'circles'. Known: background, cat, rabbit, duck, mouse, robot, house, flower, crab."),
    ('segment.width=12', 'width: expected a multiple of 8, got 12.'),
    ('segment.stride=5', 'stride: tiny has the output strides 8, got 5.'),
    ('masks.localiser=/nowhere', 'masks.localiser: expected the folder of a train stage that was made, got /nowhere; leave it out, and the stage is made first.'),
    ('masks.saliency=/nowhere', "saliency: '/nowhere' is no folder, here or in the root of the data; give the one with <image id>.png for every image, 0 = background, 255 = salient."),
    ('segment.log=nobody', "log: unknown name 'nobody'. Did you mean 'tensorboard'? Known: aim, comet_ml, mlflow, tensorboard, wandb, clearml, dvclive, swanlab, trackio."),
    ('train.options.gsc=1', "train.options of cam: unknown name 'gsc'. Known: none."),
    ('masks.reading.kind=cma', "masks.reading.kind: unknown name 'cma'. Did you mean 'cam'? Known: cam, grad_cam, grad_cam_pp."),
    ('masks.refine=[prompt]', "masks.prompt_model: the step prompt needs it; the segmenter: a folder with a SAM of transformers, or file.py:name ['' | <folder or function>]."),
    ('stages=[report]', "stages: unknown name 'report'. Known: train, psa, irn, masks, segment, names, evaluate."),
    ('about=3', "recipe, about: expected str (the default is ''), got int 3."),
    ('rows=3', 'recipe, rows: expected dict (the default is {}), got int 3.'),
    ('expected={masks/val: 2}', 'recipe, expected.masks/val: expected [] or a list of 2, each a number from 0 to 1, rising, got 2.'),
    ('workers=-1', "train.workers: expected auto or a whole number, got '-1'.")])
@pytest.mark.parametrize('dry', [['--dry-run'], []])
def test_the_command_line_says_so_and_makes_nothing(option, text, dry, tmp_path, capsys):
    more = {'segment.split=val': ['-p', 'masks.splits=[train]'], 'irn.batch_size=0': ['-p', 'stages=[train, irn, masks]']}.get(option, [])
    assert main(['run', 'cam_synthetic', '-p', option, *more, '--runs', str(tmp_path / 'runs'), *dry]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == f'wsss: {text}' and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('dry', [['--dry-run'], []])
@pytest.mark.parametrize('options, text', [
    (['train.split=val'], 'the split has no images; check its list, or name another split.'),
    (['segment.validate=test'], 'has no masks to compare with; leave validate empty.'),
    (['data.classes=a/b'], "a class is called 'a/b'; expected a name without separators of folders and control characters; between several tags stands a semicolon.")])
def test_a_split_without_images_or_masks_and_a_class_that_is_no_name_are_told_first(options, text, dry, tmp_path, capsys):
    from PIL import Image
    for k in range(4):
        for kind in ('images', 'masks') if k < 3 else ('images',):
            (tmp_path / 'set' / kind).mkdir(parents=True, exist_ok=True)
            Image.new('RGB' if kind == 'images' else 'L', (40, 40)).save(tmp_path / f'set/{kind}/{k}.png')
    (tmp_path / 'set/tags.csv').write_text(f'image,tags\n' + ''.join(f'{k}.png,a\n' for k in range(4)).replace('a\n', 'a/b\n' if options == ['data.classes=a/b'] else 'a\n'))
    for split, lines in dict(train='0\n1\n', val='', test='3\n').items(): (tmp_path / f'set/{split}.txt').write_text(lines)
    recipe = ['splits=[train]', 'data.name=folder', f'data.root={tmp_path}/set', *options]
    assert main(['run', 'cam_synthetic', '--runs', str(tmp_path / 'runs'), *dry, *(x for o in recipe for x in ('-p', o))]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(text) and not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('name', ['../evil', 'a/b', '..', '.', ' ', 'a\x07b', 'a\\b'])
def test_nothing_is_written_outside_the_folder_of_runs(name, tmp_path, capsys):
    assert main(['run', 'cam_synthetic', '--name', name, '--runs', str(tmp_path / 'runs'), '-p', 'limit=2']) == 2
    assert 'name of the run: expected a name without separators' in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_file_of_weights_is_opened_before_anything_runs(tmp_path, capsys):
    import numpy as np
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    for dry in (['--dry-run'], []):
        assert main(['run', 'cam_synthetic', '-p', 'train.backbone=mobilenet_v2', '-p', f'train.weights={tmp_path}/other.npz', '--runs', str(tmp_path / 'runs'), *dry]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f'wsss: train.weights: {tmp_path}/other.npz does not fit mobilenet_v2: 0 of 314 names match') and not (tmp_path / 'runs').exists()
