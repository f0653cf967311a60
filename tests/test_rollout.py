"""A transformer's own maps: attention followed from the score of a class to the patches."""
import numpy as np
import pytest
import torch

from conformity import check_localiser
from wsss_nb.base.core import UserError
from wsss_nb.cli import main
from wsss_nb.nets.zoo import build
from wsss_nb.papers.rollout import Rollout, attending, attention_of, class_weighted, followed

pytest.importorskip('timm')
KINDS = ['timm:test_vit', 'timm:test_vit2', 'timm:eva02_tiny_patch14_224']  # a class token, none, positions that turn


def slow_map(net, x, image, k, kind):
    "The map of class k by the definition: full matrices, head by head, the row that the score is read from"
    with attention_of(net.backbone) as kept: scores, row, (h, w) = net.scored(x)
    grads = torch.autograd.grad(scores[image, k], kept)
    R = np.eye(kept[0].shape[-1])
    for g, a in zip(grads, kept):
        g, a = g[image].double().numpy(), a[image].detach().double().numpy()
        E = np.mean([np.maximum(gi * ai, 0) for gi, ai in zip(g, a)], 0) if kind == 'gradient' else np.mean(list(a), 0)
        R = (np.eye(len(R)) + E) @ R
    return (row[image].detach().double().numpy() @ R)[-h * w:].reshape(h, w)


@pytest.mark.parametrize('name', KINDS)
def test_maps_are_those_of_the_definition(name):
    torch.manual_seed(0)
    net, x = Rollout(build(name), 3).eval(), torch.rand(2, 3, 56, 70)
    for kind in ('gradient', 'rollout'):
        found = net.raw_maps(x, kind)
        for image, k in ((0, 2), (1, 0)): assert np.allclose(found[image, k], slow_map(net, x, image, k, kind), rtol=1e-3, atol=1e-9), kind
    assert net.raw_maps(x).shape == found.shape and torch.allclose(net.raw_maps(x).mean((2, 3)), net.scored(x)[0], atol=1e-5)


def test_rows_of_a_rollout_are_shares_and_the_last_blocks_can_be_taken_alone():
    torch.manual_seed(0)
    attentions = [torch.rand(2, 6, 6, dtype=torch.double).softmax(2) for _ in range(4)]
    row = followed(attentions, torch.eye(6, dtype=torch.double)[[0, 3]])
    assert torch.allclose(row.sum(1) / 2**4, torch.ones(2, dtype=torch.double))
    assert torch.allclose(followed(attentions[-1:], torch.eye(6, dtype=torch.double)[[0, 3]])[1], torch.eye(6)[3].double() + attentions[-1][1, 3])
    net, x = Rollout(build('timm:test_vit'), 2, blocks=1).eval(), torch.rand(1, 3, 32, 32)
    with attention_of(net.backbone) as kept: net.scored(x)
    assert torch.allclose(net.raw_maps(x, 'rollout')[0, 0].flatten(), kept[-1][0, :, 0, 1:].mean(0), atol=1e-6)


def test_what_takes_away_from_the_score_has_no_share():
    a, v = torch.rand(1, 2, 3, 3, requires_grad=True), torch.tensor([[2., -1., .5], [-3., 1., 0.]])
    (e,), = class_weighted([a], (a[:, :, 0] * v).sum((1, 2)).view(1, 1))
    assert torch.allclose(e[0, 0], (a[0, :, 0] * v).relu().mean(0)) and not e[0, 1:].any()


def test_maps_can_be_learnt_from_while_it_is_trained():
    torch.manual_seed(0)
    net, x = Rollout(build('timm:test_vit'), 2), torch.rand(1, 3, 32, 32)
    value = lambda: float(net.raw_maps(x, 'gradient')[0, 1, 0, 1].detach())
    net.train().raw_maps(x)[0, 1, 0, 1].backward()
    w = net.backbone.net.blocks[5].attn.qkv.weight
    at = divmod(int(w.grad.abs().argmax()), w.shape[1])
    around = []
    for eps in (1e-2, -1e-2):
        with torch.no_grad(): w[at] += eps
        around.append(value())
        with torch.no_grad(): w[at] -= eps
    assert np.isclose((around[0] - around[1]) / 2e-2, float(w.grad[at]), rtol=.05)


def test_a_network_that_learns_nothing_has_maps_as_well_and_is_left_as_it_was():
    torch.manual_seed(0)
    net, x = Rollout(build('timm:test_vit'), 2).eval(), torch.rand(1, 3, 48, 48)
    free = net.raw_maps(x, 'gradient')
    net.requires_grad_(False)
    with torch.no_grad(): assert torch.equal(net.raw_maps(x, 'gradient'), free) and free.max() > 0
    assert all(m.fused_attn and not m.attn_drop._forward_hooks for m in attending(net.backbone))


@pytest.mark.parametrize('name', ['timm:test_vit', 'timm:test_vit2'])
def test_every_promise_is_kept(name): check_localiser(lambda k: Rollout(build(name), k))


@pytest.mark.parametrize('name, why', [('tiny', 'and tiny has none'), ('timm:test_convnext', 'has none'), ('timm:test_efficientnet', 'has none'),
                                       ('timm:swin_tiny_patch4_window7_224', 'attends within windows or at several strides'), ('timm:test_maxvit', 'attends within windows or at several strides')])
def test_what_it_has_no_meaning_on_says_so_in_one_line_before_anything_runs(name, why, capsys):
    with torch.device('meta'), pytest.raises(UserError, match=why) as e: Rollout(build(name), 3)
    assert '\n' not in str(e.value) and str(e.value).startswith('backbone: rollout')
    assert main(['run', 'cam_synthetic', '--dry-run', '-p', 'train.method=rollout', '-p', f'backbone={name}', '-p', 'stride=0']) == 2
    err = capsys.readouterr().err
    assert why in err and err.startswith('wsss: ') and err.count('\n') == 1
