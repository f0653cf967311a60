"Reading weights: formats, checksums, normalisation, what does not fit, and code that must not run"
import os, pathlib, re, struct, urllib.error
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from wsss_nb.base.core import UserError, file_sha256
from wsss_nb.nets import weights
from wsss_nb.nets.resnet38 import ResNet38, read_params, rename
from wsss_nb.nets.tiny import Tiny
from wsss_nb.nets.weights import load_weights
from wsss_nb.nets.zoo import build


@pytest.fixture(scope='module')
def mobilenet():
    torch.manual_seed(1)
    return torchvision.models.mobilenet_v2().state_dict()


def tiny(seed=1):
    torch.manual_seed(seed)
    return {k: v for k, v in Tiny().state_dict().items() if k not in ('mean', 'std')}


def same(net, state): return all(torch.equal(net.state_dict()[k], v) for k, v in state.items())


WRAPPERS = dict(plain=lambda s: s, ordered=OrderedDict, state_dict=lambda s: dict(epoch=3, state_dict=s), parallel=lambda s: {f'module.{k}': v for k, v in s.items()},
                model=lambda s: dict(model=dict(state_dict=s), optimizer={'lr': .1}),
                cam=lambda s: {f'backbone.{k}': v for k, v in s.items()} | {'classifier.weight': torch.zeros(20, 128, 1, 1)})


@pytest.mark.parametrize('wrap', WRAPPERS)
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.pth.tar'])
def test_pytorch_checkpoints(tmp_path, wrap, suffix):
    torch.save(WRAPPERS[wrap](tiny()), path := tmp_path / f'a{suffix}', _use_new_zipfile_serialization=suffix != '.pt')
    net = build('tiny', str(path))
    assert same(net, tiny()) and net.frozen_norm and not build('tiny', str(path), batch_norm='live').frozen_norm
    assert net.origin == dict(weights=str(path), file=path.name, sha256=file_sha256(path), source='', normalization='imagenet', normalization_from='default',
                              dropped=['classifier.weight'] if wrap == 'cam' else [], random=[])


def test_npz_and_safetensors(tmp_path):
    np.savez(tmp_path / 'a.npz', **{k: v.numpy() for k, v in tiny().items()})
    save_file(tiny(), tmp_path / 'a.safetensors')
    for name in ('a.npz', 'a.safetensors'): assert same(build('tiny', tmp_path / name), tiny())
    assert same(build('tiny', tmp_path / 'a.npz').double(), {k: v.double() if v.is_floating_point() else v for k, v in tiny().items()})


def test_torchvision_file_loads_but_for_its_classifier(tmp_path, mobilenet):
    torch.save(mobilenet, tmp_path / 'm.pth')
    net = build('mobilenet_v2', tmp_path / 'm.pth', stride=8, dilate=True)
    assert net.origin['dropped'] == ['classifier.1.weight', 'classifier.1.bias'] and same(net, {k: v for k, v in mobilenet.items() if k.startswith('features')})


def test_normalisation_comes_from_argument_file_list_or_default(tmp_path, monkeypatch):
    torch.save(tiny(), path := tmp_path / 'a.pth')
    first = lambda net: round(float(net.std[0, 0]), 4)
    assert first(build('tiny', path)) == .229 and first(build('tiny', path, normalization='tf')) == .5 and first(build('tiny', path, normalization='caffe')) == round(1 / 255, 4)
    monkeypatch.setattr(weights, 'known_files', lambda: [dict(file='x', net='tiny', sha256=file_sha256(path)[:8], normalization='tf', url='', source='here')])
    assert first(net := build('tiny', path)) == .5 and net.origin['source'] == 'here' and net.origin['normalization_from'] == 'list of known files'
    own = build('tiny', normalization='caffe')
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    assert first(net := build('tiny', tmp_path / 'own.pth')) == first(own) and net.origin['normalization_from'] == 'file'
    assert first(build('tiny', tmp_path / 'own.pth', normalization='tf')) == .5


def test_random_weights_follow_the_seed_and_are_recorded():
    torch.manual_seed(3); a = build('tiny')
    torch.manual_seed(3); b = build('tiny')
    assert same(a, b.state_dict()) and a.origin['random'] == ['all'] and a.origin['weights'] == '' and not a.frozen_norm


def test_checksums(tmp_path):
    torch.save(tiny(), path := tmp_path / 'a.pth')
    good = file_sha256(path)
    assert build('tiny', f'{path}#sha256={good}').origin['sha256'] == good and same(load_weights(Tiny(), path, sha256=good[:8].upper()), tiny())
    with pytest.raises(UserError, match=f'has the SHA-256 {good}, expected 0123; it is another or a damaged file'): build('tiny', f'{path}#sha256=0123')
    os.rename(path, path := tmp_path / 'vgg16-397923af.pth')
    with pytest.raises(UserError, match=f'has the SHA-256 {good}, but the file of that name begins with 397923af; .* get it again from https://download.*-397923af.pth'):
        build('vgg16', path)


class Payload:
    def __init__(self, flag): self.flag = flag
    def __reduce__(self): return os.system, (f'touch {self.flag}',)


def test_code_in_a_file_is_not_run(tmp_path):
    flag = tmp_path / 'owned'
    for zipped in (True, False):
        torch.save(dict(state_dict=tiny(), x=Payload(flag)), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r'holds Python code besides numbers \(\w+\.system\), and it was not run; if you trust'): build('tiny', tmp_path / 'a.pth')
    torch.save(dict(state_dict=tiny(), args=pathlib.PurePosixPath('x')), tmp_path / 'b.pth')
    with pytest.raises(UserError, match=r'holds Python code besides numbers \(pathlib'): build('tiny', tmp_path / 'b.pth')
    np.savez(tmp_path / 'a.npz', x=np.array([Payload(flag)], dtype=object))
    with pytest.raises(UserError, match='not a readable .npz of plain arrays .*allow_pickle=False'): build('tiny', tmp_path / 'a.npz')
    assert not flag.exists()


@pytest.mark.parametrize('suffix,data,says', [
    ('.pth', b'<!doctype html>', 'is not a PyTorch checkpoint; is it a web page'), ('.pth', b'', 'is damaged or cut off'), ('.pth', b'PK\3\4 half', 'is damaged or cut off'),
    ('.pth', b'\x80\x02', 'damaged or cut off'),
    ('.npz', b'PK', 'is not a readable .npz'), ('.safetensors', b'\1\2\3', 'is not a readable .safetensors'),
    ('.params', b'<html>..', 'not an MXNet .params file'), ('.caffemodel', b'', "ends in '.caffemodel'; expected one of .pth"),
])
def test_broken_files(tmp_path, suffix, data, says):
    (tmp_path / f'a{suffix}').write_bytes(data)
    with pytest.raises(UserError, match=says): build('tiny', tmp_path / f'a{suffix}')


def test_a_checkpoint_cut_off_anywhere_is_told(tmp_path):
    torch.save(tiny(), tmp_path / 'a.pth')
    data = (tmp_path / 'a.pth').read_bytes()
    for part in (.1, .5, .99):
        (tmp_path / 'b.pth').write_bytes(data[:int(part * len(data))])
        with pytest.raises(UserError, match='damaged or cut off'): build('tiny', tmp_path / 'b.pth')


def test_what_does_not_fit(tmp_path, mobilenet):
    def message(state, net='tiny'):
        torch.save(state, tmp_path / 'a.pth')
        with pytest.raises(UserError) as e: build(net, tmp_path / 'a.pth')
        return str(e.value)
    n = len(tiny()) + 2
    assert f'does not fit tiny: 0 of {n} names match; first missing layer1.0.weight' in (m := message(mobilenet)) and 'It looks like mobilenet_v2.' in m
    less = tiny(); less.pop('layer3.0.conv1.0.weight')
    assert f'{n - 3} of {n} names match; first missing layer3.0.conv1.0.weight (1 in all). Choose' in message(less)
    assert 'first unexpected edge.weight (1 in all)' in message(tiny() | {'edge.weight': torch.zeros(1)})
    assert 'first misshaped layer1.0.weight (1 in all), [24, 1, 3, 3] where [24, 3, 3, 3] is expected' in message(tiny() | {'layer1.0.weight': torch.zeros(24, 1, 3, 3)})
    assert 'holds NaN or infinity in layer1.0.weight (1 parameters)' in message(tiny() | {'layer1.0.weight': torch.full((24, 3, 3, 3), torch.nan)})
    assert 'holds no parameters by name, but a list' in message([1, 2]) and "has 'lr' of type float among its parameters" in message(tiny() | {'lr': .1})
    assert 'It looks like tiny.' in message(tiny(), 'mobilenet_v2')
    looks = dict(resnet50='resnet50', resnet101='resnet101', vgg16='vgg16', vgg16_bn='VGG16 with batch norm', vgg19='VGG19',
                 resnet34='a ResNet of basic blocks', resnet152='ResNet-152')
    for make, name in looks.items():
        with torch.device('meta'): keys = torchvision.models.get_model(make).state_dict()
        assert f'It looks like {name}.' in message({k: torch.zeros(1) for k in keys})
    with torch.device('meta'): keys = ResNet38().state_dict()
    assert 'It looks like resnet38.' in message({k: torch.zeros(1) for k in keys})


def test_batch_norm_counters_may_be_missing(tmp_path):
    torch.save({k: v for k, v in tiny().items() if 'num_batches' not in k}, tmp_path / 'a.pth')
    assert same(build('tiny', tmp_path / 'a.pth'), tiny())


def test_vgg_convolutions_alone_leave_fc6_and_fc7_random(tmp_path):
    features = {k: v for k, v in build('vgg16').state_dict().items() if k.startswith('features')}
    torch.save(features, tmp_path / 'a.pth')
    with pytest.warns(UserWarning, match='has nothing for fc6.weight, fc6.bias, fc7.weight, fc7.bias; they start from random'): net = build('vgg16', tmp_path / 'a.pth')
    assert net.origin['random'] == ['fc6.weight', 'fc6.bias', 'fc7.weight', 'fc7.bias'] and same(net, features)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / 'resnet50.pth').write_bytes(b'')
    with pytest.raises(UserError, match="there is no file '.*resnet50.pht'. Did you mean 'resnet50.pth'"): build('resnet50', tmp_path / 'resnet50.pht')
    with pytest.raises(UserError, match='There is no folder'): build('tiny', tmp_path / 'nowhere' / 'a.pth')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


def offline(url, dst, **kwargs): raise urllib.error.URLError('no route to host')


def test_imagenet_without_a_network_says_what_to_put_where(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    for name, digits in dict(vgg16='397923af', resnet50='0676ba61', resnet101='63fe2227', mobilenet_v2='b0353104').items():
        says = f'could not download https://download.pytorch.org/models/{name}-{digits}.pth .*no route to host.* put it into {re.escape(str(hub))}, or give its path'
        with pytest.raises(UserError, match=says): weights.imagenet_file(name)
    with pytest.raises(UserError, match=r"the file ilsvrc-cls_rna-a1_cls1000_ep-0001.params: model A1 .* Put it into .*hub"): weights.imagenet_file('resnet38')
    with pytest.raises(UserError, match="there are no 'imagenet' weights for tiny; leave weights empty"): build('tiny', 'imagenet')


def test_imagenet_takes_the_file_that_is_there_and_checks_it(hub, monkeypatch, mobilenet):
    hub.mkdir(parents=True)
    torch.save(mobilenet, path := hub / 'mobilenet_v2-b0353104.pth')
    with pytest.raises(UserError, match='but the file of that name begins with b0353104'): build('mobilenet_v2', 'imagenet')
    known = dict(file=path.name, net='mobilenet_v2', sha256=file_sha256(path)[:8], normalization='imagenet', url='https://x', source='torchvision')
    monkeypatch.setattr(weights, 'known_files', lambda: [known])
    net = build('mobilenet_v2', 'imagenet')
    assert net.origin['weights'] == 'imagenet' and net.origin['source'] == 'torchvision' and same(net, {k: v for k, v in mobilenet.items() if k.startswith('features')})


def test_list_of_known_files():
    known = weights.known_files()
    assert len({k['file'] for k in known}) == len(known)
    assert {k['net'] for k in known} == {'vgg16', 'resnet50', 'resnet101', 'mobilenet_v2', 'resnet38'}
    assert [k['normalization'] for k in known if 'amdegroot' in k['file']] == ['caffe'] and [k['normalization'] for k in known if k['file'].endswith('.npz')] == ['tf']
    assert all(re.fullmatch('([0-9a-f]{8}|[0-9a-f]{64}|)', k['sha256']) for k in known)


# MXNet's format, written byte by byte

def text(s): return struct.pack('<Q', len(s)) + s.encode()


def array(a, generation):
    kind = struct.pack('<iii', 1, 0, ['<f4', '<f8', '<f2', '|u1', '<i4', '|i1', '<i8'].index(a.dtype.str))
    dims = {0: 'I', 1: 'q', 2: 'q', 3: 'q'}[generation] * a.ndim
    magic = {0: b'', 1: struct.pack('<I', 0xF993FAC8), 2: struct.pack('<Ii', 0xF993FAC9, 0), 3: struct.pack('<Ii', 0xF993FACA, 0)}[generation]
    return magic + struct.pack(f'<I{dims}', a.ndim, *a.shape) + kind + a.tobytes()


def params(arrays, generation):
    return struct.pack('<QQQ', 0x112, 0, len(arrays)) + b''.join(array(a, generation) for a in arrays.values()) + struct.pack('<Q', len(arrays)) + b''.join(map(text, arrays))


@pytest.mark.parametrize('generation', [0, 1, 2, 3])
def test_params_file(tmp_path, generation):
    r = np.random.default_rng(0)
    kinds = (('<f4', (2, 3, 1, 1)), ('<f8', (5,)), ('<f2', (3, 2)), ('|u1', (4,)), ('<i4', (1,)), ('|i1', (2, 2)), ('<i8', (3,)))
    arrays = {f'arg:{t}': r.integers(0, 100, s).astype(t) for t, s in kinds}
    path = tmp_path / 'a.params'
    path.write_bytes(data := params(arrays, generation))
    got = read_params(path)
    assert list(got) == list(arrays) and all(np.array_equal(got[k], v) and got[k].dtype == v.dtype for k, v in arrays.items())
    for cut in range(8, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match='cut off or damaged near byte .* download it again'): read_params(path)
    path.write_bytes(data[:24] + struct.pack('<Ii', 0xF993FAC9, 1) + data[32:])
    with pytest.raises(UserError, match='a sparse array'): read_params(path)


def in_file(name):
    "The published file's word for one of our names, written down independently of `rename`"
    block, what = name.rsplit('.', 1)[0], name.rsplit('.', 1)[1]
    word = dict(running_mean='moving_mean', running_var='moving_var', bias='beta').get(what)
    lead = 'aux:' if what.startswith('running') else 'arg:'
    if block == 'conv1a': return 'arg:conv1a_weight'
    if block == 'bn7': return f'{lead}bn7_{word or "gamma"}'
    group, layer = block.split('.')
    kind, branch = layer.split('_', 1)
    place = group[1] + ('b' + group[3] if '_' in group else 'a')
    return f'arg:res{place}_{branch}_weight' if kind == 'conv' else f'{lead}bn{place}_{branch}_{word or "gamma"}'


def test_every_name_of_resnet38_has_its_place_in_the_file():
    with torch.device('meta'): net = ResNet38()
    own = [k for k in net.state_dict() if k not in ('mean', 'std') and 'num_batches' not in k]
    assert [rename(in_file(k)) for k in own] == own and len({in_file(k) for k in own}) == len(own) and rename('arg:linear1000_bias') == 'linear1000_bias'
    assert {in_file('b4_3.conv_branch2b1.weight'), in_file('b2.bn_branch2a.running_mean')} == {'arg:res4b3_branch2b1_weight', 'aux:bn2a_branch2a_moving_mean'}
    state = {in_file(k): torch.zeros(1) for k in own} | {'arg:linear1000_weight': torch.zeros(1)}
    found = weights.compare(net, net.convert(state))
    assert not found['missing'] and not found['unexpected'] and found['dropped'] == ['linear1000_weight']


class Short(ResNet38):
    "ResNet-38 with its first and last layer only, to load a file of a few bytes"
    def __init__(self):
        super(ResNet38, self).__init__('resnet38', (), (), ())
        self.conv1a, self.bn7 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(5)


def test_params_file_into_the_network(tmp_path):
    r = np.random.default_rng(0)
    arrays = {'arg:conv1a_weight': r.random((4, 3, 3, 3), 'float32')}
    for name in ('arg:bn7_gamma', 'arg:bn7_beta', 'aux:bn7_moving_mean', 'aux:bn7_moving_var'): arrays[name] = r.random(5, 'float32')
    path = tmp_path / 'ilsvrc-cls_rna-a1_cls1000_ep-0001.params'
    path.write_bytes(params(arrays | {'arg:linear1000_weight': r.random((2, 5), 'float32')}, 0))
    net = load_weights(Short(), path)
    loaded = dict(zip(arrays, (net.conv1a.weight, net.bn7.weight, net.bn7.bias, net.bn7.running_mean, net.bn7.running_var)))
    assert all(np.array_equal(loaded[k].detach(), v) for k, v in arrays.items())
    assert net.origin['dropped'] == ['linear1000_weight'] and net.origin['normalization'] == 'imagenet' and 'Wider or Deeper' in net.origin['source']
