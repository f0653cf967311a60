"""normalize and with_background against the values of SIPE's code; gradient methods against a loop over autograd."""
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb import cams

G = np.load(Path(__file__).parent / 'goldens/cams.npz')
t = lambda k: torch.from_numpy(G[k])


def test_normalize_and_background_match_the_authors_code():
    cam = cams.normalize(t('cam_raw'))
    assert torch.allclose(cams.with_background(cam), t('norm_cam_unmasked'), atol=2e-5)
    assert torch.allclose(cams.with_background(cam, t('label')), t('norm_cam'), atol=2e-5)


def test_absent_classes_keep_the_background_low():
    cam = torch.tensor([[[[.2]], [[.9]]]])
    out = cams.with_background(cam, torch.tensor([[1., 0.]]), alpha=.5)
    assert torch.allclose(out.flatten(), torch.tensor([.05, .2, 0.]))


def test_classification_loss_is_the_mean_over_classes_of_the_stable_form():
    score, label = t('score').flatten(1), t('label')
    p = torch.sigmoid(score.double())
    slow = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    assert abs(float(cams.multilabel_loss(score, label)) - float(slow)) < 1e-6 and abs(float(slow) - float(G['loss_cls'])) < 1e-6
    assert cams.multilabel_loss(torch.tensor([[200., -200.]]), torch.tensor([[0., 1.]])) == 200


@pytest.mark.parametrize('weights', [cams.grad_weights, cams.grad_pp_weights])
def test_gradient_maps_of_a_nonlinear_head_match_a_slow_loop(weights):
    torch.manual_seed(0)
    f, a, b = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    head = lambda f: torch.tanh(f.amax((2, 3)) @ a.T + f.mean((2, 3)) @ a.T) @ b.T
    fast = cams.gradient_maps(f, head, weights)
    for n in range(2):
        for k in range(2):
            x = f[n:n + 1].clone().requires_grad_()
            head(x)[0, k].backward()
            g = x.grad[0]
            if weights is cams.grad_weights: w = [20 * g[d].mean() for d in range(3)]
            else:
                w = []
                for d in range(3):
                    terms = [g[d, i, j]**2 / (2 * g[d, i, j]**2 + f[n, d].sum() * g[d, i, j]**3) * max(g[d, i, j], 0) for i in range(4) for j in range(5) if g[d, i, j] != 0]
                    w.append(sum(terms, torch.zeros((), dtype=torch.float64)))
            assert torch.allclose(fast[n, k], sum(w[d] * f[n, d] for d in range(3)), atol=1e-12)


def test_float64_in_is_float64_out():
    cam = torch.rand(1, 2, 3, 3, dtype=torch.float64)
    assert cams.normalize(cam).dtype == cams.with_background(cam, torch.ones(1, 2)).dtype == torch.float64
