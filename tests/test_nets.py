"The backbones: shapes, gradients, batch norm, parameter counts, and equality with torchvision and with slow evaluations"
import copy, math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from wsss_nb.base.core import UserError
from wsss_nb.nets import resnet38
from wsss_nb.nets.backbone import NORMALIZATIONS, Backbone
from wsss_nb.nets.mobilenet import padding_agrees
from wsss_nb.nets.vgg import decimate_fc
from wsss_nb.nets.zoo import BACKBONES, STRIDES, build, on_paper

LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')
EXPECTED = dict(  # name -> stages, channels, strides, trunk parameters
    vgg16=(('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7'), (64, 128, 256, 512, 512, 1024, 1024), (1, 2, 4, 8, 8, 8, 8),
           14_714_688 + 1024 * (512 * 9 + 1) + 1024 * 1025),
    resnet50=(LAYERS, (256, 512, 1024, 2048), (4, 8, 16, 16), 25_557_032 - 2049 * 1000),
    resnet101=(LAYERS, (256, 512, 1024, 2048), (4, 8, 16, 16), 44_549_160 - 2049 * 1000),
    resnet38=(('conv2', 'conv3', 'conv4', 'conv5', 'conv6'), (128, 256, 512, 1024, 4096), (2, 4, 8, 8, 8), None),
    mobilenet_v2=((*LAYERS, 'last'), (24, 32, 96, 320, 1280), (4, 8, 16, 16, 16), 3_504_872 - 1281 * 1000),
    tiny=(LAYERS, (24, 48, 96, 128), (2, 4, 8, 8), None),
)
DILATED = [(n, s, dict(dilate=True)) for n in ('resnet50', 'resnet101', 'mobilenet_v2') for s in (16, 8)]
VARIANTS = [(n, s, {}) for n in EXPECTED for s in STRIDES[n]] + DILATED + [('vgg16', 8, dict(fc6_dilation=12))]


def on_meta(name, stride=None, **options):
    with torch.device('meta'): return build(name, stride=stride, **options)


def count(net): return sum(p.numel() for p in net.parameters())


def mac38():
    "Parameters of model A1 from its published table: kernel area x in x out, and two per batch norm channel"
    convs = [(9, 3, 64)] + [c for i, m, o, more in ((64, 128, 128, 2), (128, 256, 256, 2), (256, 512, 512, 5), (512, 512, 1024, 2))
                            for c in [(9, i, m), (9, m, o), (1, i, o)] + more * [(9, o, m), (9, m, o)]]
    convs += [c for i, o in ((1024, 2048), (2048, 4096)) for c in ((1, i, o // 4), (9, o // 4, o // 2), (1, o // 2, o), (1, i, o))]
    norms = [n for i, m, o, more in ((64, 128, 128, 2), (128, 256, 256, 2), (256, 512, 512, 5), (512, 512, 1024, 2)) for n in [i, m] + more * [o, m]]
    norms += [n for i, o in ((1024, 2048), (2048, 4096)) for n in (i, o // 4, o // 2)] + [4096]
    return sum(k * i * o for k, i, o in convs) + 2 * sum(norms)


@pytest.mark.parametrize('name', EXPECTED)
def test_the_table_of_stages(name):
    names, channels, strides, parameters = EXPECTED[name]
    net = on_meta(name)
    assert (net.names, net.channels, net.strides, net.name) == (names, channels, strides, name)
    assert set(EXPECTED) == set(BACKBONES) and isinstance(net, Backbone)
    if parameters: assert count(net) == parameters
    if name == 'resnet38': assert count(net) == mac38() and 105e6 < count(net) < 106e6
    if name == 'tiny': assert 2e5 < count(net) < 4e5


@pytest.mark.parametrize('name,stride,options', VARIANTS)
@pytest.mark.parametrize('size', [(64, 96), (33, 45), (97, 130), (1, 7)])
def test_a_map_has_the_ceiling_of_size_over_stride(name, stride, options, size):
    net = on_meta(name, stride, **options).eval()
    assert net.strides[-1] == stride
    shapes = [tuple(m.shape) for m in net(torch.empty(2, 3, *size, device='meta'))]
    assert shapes == [(2, c, math.ceil(size[0] / s), math.ceil(size[1] / s)) for c, s in zip(net.channels, net.strides)]


@pytest.mark.parametrize('name', EXPECTED)
def test_each_parameter_is_on_the_way_to_the_last_map(name):
    net = on_meta(name)
    net(torch.empty(2, 3, 40, 40, device='meta'))[-1].sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', ['vgg16', 'resnet50', 'mobilenet_v2', 'tiny'])
def test_gradients_reach_every_parameter_and_the_image(name):
    torch.manual_seed(0)
    net, image = build(name), torch.rand(2, 3, 49, 66, requires_grad=True)
    sum((m**2).mean() for m in net(image)).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()) and image.grad.abs().sum() > 0
    assert [n for n, p in net.named_parameters() if p.dim() > 1 and p.grad.abs().max() == 0] == []


@pytest.mark.parametrize('name', ['mobilenet_v2', 'tiny'])
def test_batch_norm_frozen_and_live(name):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 32, 32)
    for mode, moves in (('frozen', False), ('live', True), ('', True)):
        net = build(name, batch_norm=mode)
        before = copy.deepcopy(net.state_dict())
        assert net.training and net.eval().train().training
        net(x)[-1].mean().backward()
        moved = [k for k, v in net.state_dict().items() if 'running' in k and not torch.equal(v, before[k])]
        assert len(moved) == (2 * len(net.norms()) if moves else 0)
        assert all(m.weight.grad is not None for m in net.norms()), 'scale and shift learn in either case'


def test_freeze_takes_gradients_and_statistics_away():
    net = build('mobilenet_v2').freeze('stem', 'layer1')
    net(torch.rand(2, 3, 32, 32))[-1].mean().backward()
    frozen = {n for n, p in net.named_parameters() if p.grad is None}
    assert frozen == {n for n, _ in net.named_parameters() if int(n.split('.')[1]) < 4}
    assert not net.features[2].conv[0][1].training and net.features[4].conv[0][1].training
    assert not net.train().features[2].conv[0][1].training
    with torch.device('meta'): net = resnet38.ResNet38().freeze('stem', 'conv2', 'batch_norm')
    open_ = {n for n, p in net.named_parameters() if p.requires_grad}
    assert not [n for n in open_ if 'bn' in n or n.startswith(('conv1a', 'b2'))] and 'b3.conv_branch2a.weight' in open_
    with pytest.raises(UserError, match="part of mobilenet_v2: unknown name 'layer0'.*Known: stem, layer1, layer2"): build('mobilenet_v2').freeze('layer0')


def test_double_precision_agrees_with_single():
    torch.manual_seed(0)
    net, x = build('tiny').eval(), torch.rand(1, 3, 40, 52)
    single, double = net(x), net.double()(x.double())
    assert all(d.dtype == torch.float64 and torch.allclose(s.double(), d, atol=1e-4) for s, d in zip(single, double))


@pytest.mark.parametrize('name,theirs', [('resnet50', torchvision.models.resnet50), ('mobilenet_v2', torchvision.models.mobilenet_v2)])
def test_stride_32_is_torchvisions_network(name, theirs):
    torch.manual_seed(0)
    net, theirs, x = build(name, stride=32).eval(), theirs().eval(), torch.rand(1, 3, 65, 90)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith(('fc', 'classifier'))}
    assert net.load_state_dict(state, strict=False) == (['mean', 'std'], [])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALIZATIONS['imagenet'])
    logits = theirs((x - mean) / std)
    head = theirs.fc if name == 'resnet50' else theirs.classifier
    assert torch.allclose(head(net(x)[-1].mean((2, 3))), logits, atol=1e-5)


@pytest.mark.parametrize('name,coarse,fine', [('resnet50', 32, 16), ('resnet50', 32, 8), ('mobilenet_v2', 32, 16), ('mobilenet_v2', 32, 8)])
def test_dilation_computes_the_same_numbers_at_more_places(name, coarse, fine):
    torch.manual_seed(0)
    a, b, x = build(name, stride=coarse).eval(), build(name, stride=fine, dilate=True).eval(), torch.rand(1, 3, 65, 99)
    b.load_state_dict(a.state_dict())
    want, got = a(x)[-1], b(x)[-1][..., ::coarse // fine, ::coarse // fine]
    assert (want - got).abs().max() < 1e-5 * want.abs().max()


def test_vgg_is_largefov_step_by_step():
    torch.manual_seed(0)
    net, x = build('vgg16', fc6_dilation=12).eval(), torch.rand(1, 3, 49, 66)
    w, i = net.state_dict(), iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    y, want = (x - net.mean) / net.std, []
    for block, (n, pool) in enumerate(((2, 2), (2, 2), (3, 2), (3, 1), (3, 1))):
        for k in [next(i) for _ in range(n)]: y = F.conv2d(y, w[f'features.{k}.weight'], w[f'features.{k}.bias'], padding=1 + (block == 4), dilation=1 + (block == 4)).relu()
        want.append(y)
        y = F.max_pool2d(y, 3, pool, 1)
    y = F.avg_pool2d(y, 3, 1, 1)
    want.append(F.conv2d(y, w['fc6.weight'], w['fc6.bias'], padding=12, dilation=12).relu())
    want.append(F.conv2d(want[-1], w['fc7.weight'], w['fc7.bias']).relu())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(net(x), want, strict=True))


def test_fc6_and_fc7_are_decimated_dense_layers():
    w6, w7 = (torch.arange(4096, dtype=torch.int16)[:, None] * 7 + torch.arange(25088, dtype=torch.int16)) % 251, torch.arange(4096. * 4096).view(4096, 4096)
    kept = decimate_fc({'classifier.0.weight': w6, 'classifier.0.bias': w7[0], 'classifier.3.weight': w7, 'classifier.3.bias': w7[1]})
    for o, c, r, s in ((0, 0, 0, 0), (5, 17, 1, 2), (1023, 511, 2, 2)): assert kept['fc6.weight'][o, c, r, s] == w6[4 * o, 49 * c + 7 * 3 * r + 3 * s]
    assert kept['fc7.weight'][3, 7, 0, 0] == w7[12, 28] and kept['fc6.bias'][2] == 8 and kept['fc7.bias'][1] == 4096 + 4
    assert decimate_fc({'classifier.0.weight': w6, 'classifier.3.weight': w7 * torch.nan}) == {}


def norm(x, w, name): return F.batch_norm(x, w[name + '.running_mean'], w[name + '.running_var'], w[name + '.weight'], w[name + '.bias']).relu()


@pytest.mark.parametrize('cout,stride,rates', [(10, 2, (1, 1)), (6, 1, (2, 2)), (10, 1, (1, 2))])
def test_resnet38_block(cout, stride, rates):
    torch.manual_seed(0)
    block = resnet38.Block(6, 4, cout, stride, *rates)
    x, w = torch.randn(2, 6, 9, 11), block.eval().state_dict()
    for k in w:
        if 'bn' in k and 'num' not in k: w[k].uniform_(.5, 1.5)
    p = norm(x, w, 'bn_branch2a')
    y = norm(F.conv2d(p, w['conv_branch2a.weight'], None, stride, rates[0], rates[0]), w, 'bn_branch2b1')
    y = F.conv2d(y, w['conv_branch2b1.weight'], None, 1, rates[1], rates[1])
    side = F.conv2d(p, w['conv_branch1.weight'], None, stride) if 'conv_branch1.weight' in w else x
    out, pre = block(x)
    assert torch.allclose(out, side + y, atol=1e-6) and torch.equal(pre, p)


def test_resnet38_bottleneck():
    torch.manual_seed(0)
    block, x = resnet38.Bottleneck(6, 8, dilation=4, dropout=.3).eval(), torch.randn(2, 6, 9, 11)
    w = block.state_dict()
    p = norm(x, w, 'bn_branch2a')
    y = norm(F.conv2d(p, w['conv_branch2a.weight']), w, 'bn_branch2b1')
    y = norm(F.conv2d(y, w['conv_branch2b1.weight'], None, 1, 4, 4), w, 'bn_branch2b2')
    assert torch.allclose(block(x)[0], F.conv2d(p, w['conv_branch1.weight']) + F.conv2d(y, w['conv_branch2b2.weight']), atol=1e-6)
    assert not torch.equal(block.train()(x)[0], block(x)[0]), 'dropout is alive in training'


def test_resnet38_maps_are_the_next_blocks_activations():
    "The order of the blocks and what the stages are, on a network whose blocks only count"
    class Count(nn.Module):
        def __init__(self, name): super().__init__(); self.name = name
        def forward(self, x): seen.append(self.name); return x + 1, x * 100
    seen = []
    with torch.device('meta'): net = resnet38.ResNet38()
    for n, _ in list(net.named_children()):
        if n[0] == 'b' and n != 'bn7': setattr(net, n, Count(n))
    net.to_empty(device='cpu'), net.set_normalization('imagenet')
    net.conv1a, net.bn7 = nn.Identity(), nn.Identity()
    maps = net(net.mean.expand(1, 3, 2, 2))
    assert seen == 'b2 b2_1 b2_2 b3 b3_1 b3_2 b4 b4_1 b4_2 b4_3 b4_4 b4_5 b5 b5_1 b5_2 b6 b7'.split()
    assert [float(m.mean()) for m in maps] == [300, 600, 1200, 1500, 17]


def test_resnet38_dilations():
    with torch.device('meta'): net = resnet38.ResNet38()
    rates = {n: m.dilation[0] for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)}
    twos = ['b5.conv_branch2b1'] + [f'b5_{i}.conv_branch2{c}' for i in (1, 2) for c in ('a', 'b1')]
    assert rates == dict.fromkeys(twos, 2) | {'b6.conv_branch2b1': 4, 'b7.conv_branch2b1': 4}
    assert net.b6.dropout.p == .3 and net.b7.dropout.p == .5


def test_tensorflow_padding_agrees_at_sizes_32k_plus_1():
    net = on_meta('mobilenet_v2', 32)
    def same(n, x): # TensorFlow's SAME for a 3x3 convolution with stride 2, in one dimension
        total = max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0)
        return F.conv1d(F.pad(x, (total // 2, total - total // 2)), torch.tensor([[[1., 2., 4.]]]), stride=2)
    def agrees(n):
        a = b = torch.arange(1., n + 1)[None, None]
        for _ in range(5): a, b = same(a.shape[-1], a), F.conv1d(b, torch.tensor([[[1., 2., 4.]]]), stride=2, padding=1)
        return torch.equal(a, b)
    assert [n for n in range(33, 140) if padding_agrees(net, n)] == [n for n in range(33, 140) if agrees(n)] == [33, 65, 97, 129]


def test_mistakes_are_told():
    with pytest.raises(UserError, match="backbone: unknown name 'resnet51'. Did you mean 'resnet50'"): build('resnet51')
    with pytest.raises(UserError, match='stride: vgg16 has the output strides 8, 16, got 4'): build('vgg16', stride=4)
    with pytest.raises(UserError, match="option of mobilenet_v2: unknown name 'dilated'. Did you mean 'dilate'"): build('mobilenet_v2', dilated=True)
    with pytest.raises(UserError, match="option of tiny: unknown name 'dilate'"): build('tiny', dilate=True)
    with pytest.raises(UserError, match="batch_norm: unknown name 'freeze'. Did you mean 'frozen'"): build('tiny', batch_norm='freeze')
    with pytest.raises(UserError, match="normalization: unknown name 'pytorch'"): build('tiny', normalization='pytorch')
    with pytest.raises(UserError, match=r'image: expected RGB in \[0,1\] as float \[B,3,H,W\], got torch.uint8'): build('tiny')(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize('name', ['mobilenet_v2', 'tiny'])
def test_a_network_on_paper_has_the_shapes_of_one_that_is_built_and_no_numbers(name):
    before = torch.get_rng_state()
    with on_paper(): drawn = build(name)
    assert torch.equal(torch.get_rng_state(), before) and all(p.is_meta for p in drawn.parameters())
    assert [(k, v.shape, v.dtype) for k, v in drawn.state_dict().items()] == [(k, v.shape, v.dtype) for k, v in build(name).state_dict().items()]
    assert not torch.equal(*(next(build(name).parameters()) for _ in range(2)))  # drawn again outside
