"The segmentation networks: layers counted from the papers, losses and fusion against slow evaluations, learning rates, mistakes"
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from wsss_nb.base.core import UserError
from wsss_nb.data.views import resize_image
from wsss_nb.nets.deeplab import HEADS, NATURAL, DeepLabV2, LightDeepLab, make_segmenter
from wsss_nb.nets.segmenter import labels_at, mask_loss
from wsss_nb.nets.zoo import BACKBONES, build
from wsss_nb.engine.rates import make_optimizer, parameter_groups, poly

C = 21
FAMILY = [('vgg16', 'largefov', {}), ('resnet38', 'v1', {}), ('resnet50', 'v2', {}), ('resnet101', 'v2', {}), ('resnet50', 'v3plus', {}), ('resnet101', 'v3plus', dict(stride=8)),
          ('mobilenet_v2', 'v3plus', {}), ('mobilenet_v2', 'v3plus', dict(convs='plain', stride=8)), ('mobilenet_v2', 'light', {}), ('tiny', 'light', {}), ('tiny', 'v1', {}), ('tiny', 'v2', {}), ('tiny', 'v3plus', {})]
IDS = ['-'.join([n, h, *map(str, o.values())]) for n, h, o in FAMILY]


def on_meta(name, head='', classes=20, **options):
    with torch.device('meta'): return make_segmenter(name, classes, head, **options)


def count(net): return sum(p.numel() for p in net.parameters())
def conv(k, i, o, bias=False): return k * k * i * o + o * bias
def norm(*channels): return 2 * sum(channels)


# The layers as the papers list them, counted without building them

def vgg16():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return sum(conv(3, i, o, True) for i, o in zip(widths, widths[1:])) + conv(3, 512, 1024, True) + conv(1, 1024, 1024, True)


def resnet(*depths):
    total = conv(7, 3, 64) + norm(64)
    for cin, mid, n in zip((64, 256, 512, 1024), (64, 128, 256, 512), depths):
        total += conv(1, cin, 4 * mid) + norm(4 * mid)  # the shortcut of the first block
        total += sum(conv(1, c, mid) + conv(3, mid, mid) + conv(1, mid, 4 * mid) + norm(mid, mid, 4 * mid) for c in [cin] + [4 * mid] * (n - 1))
    return total


def resnet38():
    total = conv(3, 3, 64)
    for i, m, o, n in ((64, 128, 128, 3), (128, 256, 256, 3), (256, 512, 512, 6), (512, 512, 1024, 3)):
        total += conv(1, i, o) + sum(conv(3, c, m) + conv(3, m, o) + norm(c, m) for c in [i] + [o] * (n - 1))
    for i, o in ((1024, 2048), (2048, 4096)): total += conv(1, i, o // 4) + conv(3, o // 4, o // 2) + conv(1, o // 2, o) + conv(1, i, o) + norm(i, o // 4, o // 2)
    return total + norm(4096)


def mobilenet_v2():
    total, cin = conv(3, 3, 32) + norm(32), 32
    for t, c, n in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):  # Table 2 of MobileNetV2
        for _ in range(n):
            mid = cin * t
            total += (conv(1, cin, mid) + norm(mid) if t > 1 else 0) + 9 * mid + norm(mid) + conv(1, mid, c) + norm(c)
            cin = c
    return total


def v3plus(top, early, split=False):
    def three(i, o): return 9 * i + norm(i) + conv(1, i, o) + norm(o) if split else conv(3, i, o) + norm(o)
    pyramid = 2 * (conv(1, top, 256) + norm(256)) + 3 * three(top, 256) + conv(1, 5 * 256, 256) + norm(256)
    return pyramid + conv(1, early, 48) + norm(48) + three(304, 256) + three(256, 256) + conv(1, 256, C, True)


COUNTS = {
    'vgg16-largefov': (vgg16() + conv(1, 1024, C, True), 20.5),  # 20.5M: Table 2 of the paper
    'resnet38-v1': (resnet38() + conv(3, 4096, 512) + norm(512) + conv(3, 512, C, True), 124.0),
    'resnet50-v2': (resnet(3, 4, 6, 3) + 4 * conv(3, 2048, C, True), 25.1),
    'resnet101-v2': (resnet(3, 4, 23, 3) + 4 * conv(3, 2048, C, True), 44.0),
    'resnet50-v3plus': (resnet(3, 4, 6, 3) + v3plus(2048, 256), 40.4),
    'resnet101-v3plus-8': (resnet(3, 4, 23, 3) + v3plus(2048, 256), 59.3),
    'mobilenet_v2-v3plus': (mobilenet_v2() + v3plus(320, 24, split=True), 2.7),
    'mobilenet_v2-v3plus-plain-8': (mobilenet_v2() + v3plus(320, 24), 5.8),
}


@pytest.mark.parametrize('name,head,options', FAMILY[:8], ids=IDS[:8])
def test_parameters_are_those_of_the_papers_layers(name, head, options):
    wanted, rounded = COUNTS['-'.join([name, head, *map(str, options.values())])]
    assert count(on_meta(name, head, **options)) == wanted and round(wanted / 1e6, 1) == rounded


@pytest.mark.parametrize('name,head,options', FAMILY, ids=IDS)
@pytest.mark.parametrize('size', [(321, 321), (33, 46)])
def test_scores_have_the_ceiling_of_size_over_stride(name, head, options, size):
    net = on_meta(name, head, **options).eval()
    stride = 4 if head in ('light', 'v3plus') else 8
    assert net.logits(torch.empty(2, 3, *size, device='meta')).shape == (2, C, *[math.ceil(n / stride) for n in size])


@pytest.mark.parametrize('name,head,options', FAMILY, ids=IDS)
def test_every_parameter_gets_a_gradient(name, head, options):
    net = on_meta(name, head, **options)
    net.logits(torch.empty(2, 3, 49, 49, device='meta')).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []  # several processes would wait for it


def dilations(net): return [m.dilation[0] for m in net.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]


def test_rates():
    assert on_meta('vgg16').backbone.fc6.dilation == (12, 12) and on_meta('vgg16', 'light').backbone.fc6.dilation == (1, 1)
    assert dilations(on_meta('resnet50')) == 5 * [2] + [2, 4, 4] + [6, 12, 18, 24]
    assert dilations(on_meta('resnet50', 'v3plus')) == [2, 2] + [6, 12, 18] and dilations(on_meta('resnet50', 'v3plus', stride=8))[-3:] == [12, 24, 36]
    assert dilations(on_meta('resnet38'))[-2:] == [12, 12] and dilations(on_meta('mobilenet_v2')) == [2, 2, 2] + [6, 12, 18]
    assert [on_meta(n).backbone.strides[-1] for n in ('vgg16', 'resnet38', 'resnet50', 'resnet101', 'mobilenet_v2', 'tiny')] == [8, 8, 8, 8, 16, 8]
    assert set(NATURAL) == set(BACKBONES) and all(n in HEADS[h].goes_on for n, h in NATURAL.items())


# What they compute, against slow evaluations

def unsettled(net, seed=0):
    "The network in double precision with running statistics and scales that are not 0 and 1"
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .2), m.running_var.uniform_(.5, 2), nn.init.uniform_(m.weight, .5, 1.5), nn.init.normal_(m.bias, std=.2)
        if isinstance(m, nn.Conv2d) and m.weight.std() < .02: nn.init.normal_(m.weight, std=.2)
    return net.double().eval()


def step(x, w, conv, bn, rate=1, groups=1):
    k = w[conv + '.weight'].shape[-1]
    x = F.conv2d(x, w[conv + '.weight'], None, 1, rate * (k // 2), rate, groups)
    return F.batch_norm(x, *(w[f'{bn}.{p}'] for p in ('running_mean', 'running_var', 'weight', 'bias'))).relu()


def up(x, like): return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=False)


@pytest.mark.parametrize('convs', ['plain', 'separable'])
def test_v3plus_step_by_step(convs):
    net, x = unsettled(make_segmenter('tiny', 3, 'v3plus', width=16, convs=convs)), torch.rand(2, 3, 45, 38, dtype=torch.float64)
    w, maps = net.state_dict(), net.backbone(x)
    def three(x, name, rate=1):
        if convs == 'plain': return step(x, w, f'{name}.0', f'{name}.1', rate)
        return step(step(x, w, f'{name}.0', f'{name}.1', rate, x.shape[1]), w, f'{name}.3', f'{name}.4')
    top, early = maps[3], maps[1]
    branches = [step(top, w, 'aspp.branches.0.0', 'aspp.branches.0.1'), *[three(top, f'aspp.branches.{i}', r) for i, r in ((1, 12), (2, 24), (3, 36))],
                step(top.mean((2, 3), keepdim=True), w, 'aspp.branches.4.project.0', 'aspp.branches.4.project.1').expand(-1, -1, *top.shape[2:])]
    y = step(torch.cat(branches, 1), w, 'aspp.project.0', 'aspp.project.1')
    y = torch.cat([up(y, early), step(early, w, 'from_early.0', 'from_early.1')], 1)
    y = F.conv2d(three(three(y, 'join.0'), 'join.1'), w['classify.weight'], w['classify.bias'])
    assert torch.allclose(net.logits(x), y, atol=1e-12) and y.shape == (2, 4, 12, 10)


def test_v1_and_v2_step_by_step():
    x = torch.rand(1, 3, 70, 85, dtype=torch.float64)
    net = unsettled(make_segmenter('tiny', 3, 'v1', width=16))
    w, top = net.state_dict(), net.backbone(x)[-1]
    assert torch.allclose(net.logits(x), F.conv2d(step(top, w, 'see.0', 'see.1', 12), w['classify.weight'], w['classify.bias'], padding=12, dilation=12), atol=1e-12)
    net = unsettled(make_segmenter('tiny', 3, 'v2'))
    w, top = net.state_dict(), net.backbone(x)[-1]
    wanted = sum(F.conv2d(top, w[f'aspp.branches.{i}.weight'], w[f'aspp.branches.{i}.bias'], padding=r, dilation=r) for i, r in enumerate((6, 12, 18, 24)))
    assert torch.allclose(net.logits(x), wanted, atol=1e-12)


def thin(mask, size): return torch.from_numpy(np.stack([np.asarray(Image.fromarray(m.numpy().astype(np.uint8)).resize(size[::-1], Image.NEAREST)) for m in mask]).astype(np.int64))


@pytest.mark.parametrize('size', [((65, 49), (49, 37), (33, 25)), ((30, 44), (23, 33), (15, 23))])
@pytest.mark.parametrize('kind', ['plain', 'balanced'])
def test_v2s_loss_is_the_sum_over_scales_and_their_maximum(size, kind):
    net = unsettled(make_segmenter('tiny', 3, 'v2', loss=kind))
    image, mask = torch.rand(2, 3, *size[0], dtype=torch.float64), torch.randint(0, 4, (2, *size[0]))
    mask[torch.rand(mask.shape) < .3] = 255
    scores = [net.logits(F.interpolate(image, s, mode='bilinear')) for s in size]
    scores.append(torch.from_numpy(np.maximum.reduce([up(s, scores[0]).detach().numpy() for s in scores])))
    total = 0.
    for s in scores:
        labels, each = thin(mask, s.shape[2:]), {False: [], True: []}
        for b, y, x in (labels != 255).nonzero().tolist(): each[bool(labels[b, y, x] > 0)].append(-s[b, :, y, x].log_softmax(0)[labels[b, y, x]].item())
        total += np.mean(each[False] + each[True]) if kind == 'plain' else (np.mean(each[False]) + np.mean(each[True])) / 2
    out, small = net(dict(image=image, mask=mask)), thin(mask, scores[0].shape[2:])
    assert abs(out['loss'].item() - total) < 1e-9
    assert abs(out['background'].item() - (scores[3].argmax(1) == 0)[small != 255].double().mean()) < 1e-6


def test_labels_are_thinned_like_an_image_and_kept_whole_for_v3plus():
    mask = torch.randint(0, 256, (2, 37, 50))
    for size in ((5, 7), (19, 25), (37, 50), (40, 51)): assert torch.equal(labels_at(mask, size), thin(mask, size))
    net, mask = unsettled(make_segmenter('tiny', 3, 'v3plus', width=16)), torch.full((1, 33, 33), 255)
    mask[0, 7, 9] = 2  # a label that every thinning to stride 4 loses
    image = torch.rand(1, 3, 33, 33, dtype=torch.float64)
    scores = F.interpolate(net.logits(image), (33, 33), mode='bilinear')
    assert torch.allclose(net(dict(image=image, mask=mask))['loss'], -scores[0, :, 7, 9].log_softmax(0)[2])


@pytest.mark.parametrize('fusion', ['mean', 'max'])
@pytest.mark.parametrize('flip', [True, False])
def test_fusion_is_a_loop_over_views(fusion, flip):
    net, rng, views = unsettled(make_segmenter('tiny', 3, 'v2')).float(), np.random.default_rng(0), []
    images = [rng.integers(0, 256, (41, 54, 3), dtype=np.uint8) for _ in range(2)]
    got = net.predict(images, (1., .75, .5), flip, fusion=fusion)
    for i, image in enumerate(images):
        views = []
        for s in (1., .75, .5):
            small = resize_image(image, (round(41 * s), round(54 * s)))
            for arr in (small, small[:, ::-1])[:1 + flip]:
                with torch.no_grad(): y = net.logits(torch.from_numpy(arr.copy()).permute(2, 0, 1)[None].float() / 255)
                if fusion == 'mean': y = y.softmax(1)
                y = y if arr is small else y.flip(-1)
                views.append(F.interpolate(y, (41, 54), mode='bilinear')[0])
        views = torch.stack(views)
        wanted = views.mean(0) if fusion == 'mean' else views.amax(0).softmax(0)
        assert torch.allclose(got[i], wanted, atol=1e-5) and torch.allclose(got[i].sum(0), torch.ones(41, 54), atol=1e-5)


@pytest.mark.parametrize('size', [(1, 1), (2, 75), (33, 8)])
@pytest.mark.parametrize('head', ['light', 'v1', 'v2', 'v3plus'])
def test_images_of_any_size_are_predicted(head, size):
    net = make_segmenter('tiny', 3, head).eval()
    for fusion in ('mean', 'max'): assert net.predict([np.zeros((*size, 3), np.uint8)], (1., .5), fusion=fusion).shape == (1, 4, *size)


# Training

@pytest.mark.parametrize('head', ['light', 'v1', 'v2', 'v3plus'])
@pytest.mark.parametrize('kind', ['plain', 'balanced'])
def test_a_batch_without_labels_gives_no_loss_and_no_nan(head, kind):
    net = make_segmenter('tiny', 3, head, loss=kind)
    out = net(dict(image=torch.rand(2, 3, 33, 33), mask=torch.full((2, 33, 33), 255)))
    out['loss'].backward()
    assert out['loss'] == 0 and not any(p.grad.any() for p in net.parameters())


def test_equal_scores_cost_the_logarithm_of_the_classes():
    batch = dict(image=torch.rand(2, 3, 33, 41), mask=torch.randint(0, 4, (2, 33, 41)))
    for head, losses in (('light', 1), ('v1', 1), ('v2', 4), ('v3plus', 1)):
        net = make_segmenter('tiny', 3, head)
        for n, p in net.named_parameters():
            if n.startswith(('classify', 'aspp.branches')): nn.init.zeros_(p)
        assert abs(float(net(batch)['loss'].detach()) - losses * math.log(4)) < 1e-5


def test_double_stays_double():
    logits, mask = torch.randn(1, 4, 3, 3, dtype=torch.float64), torch.randint(0, 4, (1, 3, 3))
    assert mask_loss(logits, mask).dtype == torch.float64 and mask_loss(logits.bfloat16(), mask).dtype == torch.float32


def test_resnet101_learns_from_one_step():
    torch.manual_seed(0)
    net = make_segmenter('resnet101', 20)
    batch = dict(image=torch.rand(1, 3, 33, 41), mask=torch.randint(0, 21, (1, 33, 41)))
    optimizer = make_optimizer(parameter_groups(net, 2.5e-4, 1., 5e-4), 'sgd', .9)
    for g in optimizer.param_groups: g['lr'] = g['base_lr']
    first = net(batch)['loss']
    first.backward()
    assert type(net) is DeepLabV2 and all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    before = {n: p.detach().clone() for n, p in net.aspp.named_parameters()}
    optimizer.step()
    rate = {n: (p - before[n]).norm() / (p.grad + (5e-4 * before[n] if n.endswith('weight') else 0)).norm() for n, p in net.aspp.named_parameters()}
    assert all(abs(r.item() - (2.5e-3 if n.endswith('weight') else 5e-3)) < 1e-5 for n, r in rate.items())


MULTIPLIERS = {'largefov': (1, 2, 10, 20), 'v1': (1, 2, 10, 20), 'v2': (1, 1, 10, 20), 'v3plus': (1, 1, 1, 1), 'light': (1, 1, 1, 1)}


@pytest.mark.parametrize('name,head,options', FAMILY, ids=IDS)
@pytest.mark.parametrize('head_lr', [0., 5.])
def test_every_parameter_has_its_learning_rate_and_decay(name, head, options, head_lr):
    net = on_meta(name, head, head_lr=head_lr, **options)
    given = {id(p): (g['lr_mult'], g['decay_mult']) for g in net.groups() for p in g['params']}
    assert sum(len(g['params']) for g in net.groups()) == len(given) == len(list(net.parameters()))
    kernels = {id(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d)}
    biases = {id(m.bias) for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    m = MULTIPLIERS[head]
    for n, p in net.named_parameters():
        old = n.startswith('backbone.')
        rate = m[(0 if old else 2) + (id(p) in biases)] * (head_lr / m[2] if head_lr and not old else 1)
        assert given[id(p)] == (rate, 1. if id(p) in kernels or head == 'light' else 0.), n


def test_a_frozen_part_is_in_no_group():
    net = make_segmenter('tiny', 3, 'v2')
    net.backbone.freeze('layer1', 'batch_norm')
    assert {id(p) for g in net.groups() for p in g['params']} == {id(p) for p in net.parameters() if p.requires_grad} and len(net.groups()) == 3


def test_the_schedule_is_that_of_the_golden_values_in_every_group():
    from pathlib import Path
    recorded = np.load(Path(__file__).parent / 'goldens/schedules.npz')['irn_poly_max50'][:, 1]
    groups = parameter_groups(make_segmenter('tiny', 3, 'v2'), 2.5e-4, 1., 5e-4)
    assert sorted(g['lr'] for g in groups) == pytest.approx([2.5e-4, 2.5e-4, 2.5e-3, 5e-3])
    assert np.allclose([[g['base_lr'] * poly(t, 50) for g in groups] for t in range(50)], np.outer(recorded[:50], [g['lr'] for g in groups]), rtol=1e-12)


@pytest.mark.parametrize('head', ['light', 'v1', 'v3plus'])
def test_group_norm_knows_no_batch_and_batch_norm_does(head):
    x = torch.rand(3, 3, 33, 33)
    for norm_, same in (('group', True), ('batch', False)):
        torch.manual_seed(0)
        net = make_segmenter('tiny', 3, head, norm=norm_, batch_norm='frozen')
        for m in net.modules():
            if isinstance(m, nn.Dropout): m.p = 0.
        assert torch.allclose(net.logits(x)[:2], net.logits(x[:2]), atol=1e-5) == same


@pytest.mark.parametrize('head', ['light', 'v1', 'v2', 'v3plus'])
def test_synchronised_norm(head):
    nets = []
    for norm_ in ('' if head == 'v2' else 'batch', 'sync'):
        torch.manual_seed(0)
        nets.append(make_segmenter('tiny', 3, head, norm=norm_))
    batch = dict(image=torch.rand(2, 3, 33, 33), mask=torch.randint(0, 4, (2, 33, 33)))
    if head != 'v3plus': assert torch.allclose(nets[0](batch)['loss'], nets[1](batch)['loss'])
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    assert not any(type(m) is nn.BatchNorm2d for m in nets[1].modules()) and any(type(m) is nn.SyncBatchNorm for m in nets[1].modules())
    frozen = make_segmenter('tiny', 3, head, norm='sync', batch_norm='frozen').train()
    assert not any(m.training for m in frozen.backbone.norms()) and all(type(m) is nn.SyncBatchNorm for m in frozen.backbone.norms())


def test_light_is_what_it_was():
    torch.manual_seed(0)
    a = LightDeepLab(build('tiny'), 8)
    torch.manual_seed(0)
    b = make_segmenter('tiny', 8)
    assert type(b) is LightDeepLab and all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert [k.split('.')[0] for k in a.state_dict() if not k.startswith('backbone')] == 3 * ['from_top'] + 3 * ['from_early'] + 3 * ['join'] + 2 * ['classify']


# Mistakes

def test_mistakes_are_told():
    for text, mistake in {
        "head: v2 stands on resnet101, resnet50, tiny, not on vgg16; leave head empty for vgg16's own .largefov., or use head=light": dict(backbone='vgg16', head='v2'),
        'head: largefov stands on vgg16, not on tiny': dict(backbone='tiny', head='largefov'),
        "head: unknown name 'v3'. Did you mean 'v3plus'": dict(backbone='resnet50', head='v3'),
        "backbone: unknown name 'resnet52'. Did you mean 'resnet5": dict(backbone='resnet52'),
        'stride: the head v2 works at output stride 8, got 16; leave stride at 0': dict(backbone='resnet50', stride=16),
        'stride: the head v3plus works at output stride 16 or 8, got 32': dict(backbone='mobilenet_v2', stride=32),
        'backbone: the head v2 needs resnet50 with dilate=True; build it so, or give its name alone': dict(backbone=build('resnet50', stride=8)),
        'backbone: the head largefov needs vgg16 with fc6_dilation=12': dict(backbone=build('vgg16')),
        'weights: the backbone is built already': dict(backbone=build('tiny'), weights='imagenet'),
        "norm: unknown name 'instance'. Did you mean 'sync'[?] Known: batch, group, sync": dict(backbone='tiny', norm='instance'),
        'norm: the head v2 has nothing that it could change; leave it empty': dict(backbone='resnet50', norm='group'),
        'norm: there is no batch norm in this network that could be synchronised': dict(backbone='vgg16', norm='sync'),
        'convs: the head light has nothing that it could change': dict(backbone='tiny', convs='separable'),
        'convs: the head v2 has nothing that it could change': dict(backbone='tiny', head='v2', norm='sync', convs='plain'),
        "convs: unknown name 'depthwise'": dict(backbone='mobilenet_v2', convs='depthwise'),
        'width: the head v2 has nothing that it could change': dict(backbone='resnet50', width=128),
        'width: expected a multiple of 8, got 100': dict(backbone='tiny', width=100),
    }.items():
        with pytest.raises(UserError, match=text): make_segmenter(num_classes=20, **mistake)
    with pytest.raises(UserError, match="fusion: unknown name 'sum'. Known: mean, max"): make_segmenter('tiny', 2).predict([np.zeros((9, 9, 3), np.uint8)], fusion='sum')
    with pytest.raises(UserError, match="loss: unknown name 'ce'"): mask_loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1).long(), 'ce')


def test_one_image_and_batch_norm_is_told():
    batch = dict(image=torch.rand(1, 3, 33, 33), mask=torch.zeros(1, 33, 33).long())
    with pytest.raises(UserError, match='batch_size: batch norm of the image pooling needs two images or more per process, got 1; use a larger batch_size, or norm=group'):
        make_segmenter('tiny', 3, 'v3plus')(batch)
    assert make_segmenter('tiny', 3, 'v3plus', norm='group')(batch)['loss'].isfinite() and make_segmenter('tiny', 3, 'v3plus').eval()(batch)['loss'].isfinite()
