"""Every localiser on a transformer and on a Swin with random weights: every promise of conformity, or a line that says why not. On a convolutional network test_conformity asks them."""
import sys

import pytest

from conformity import ground
from wsss_nb.base.core import UserError
from wsss_nb.engine.methods import METHODS, method_class
from wsss_nb.nets.zoo import build
from wsss_nb.papers.conformity import PROMISES, Case

timm = pytest.importorskip('timm')
CASES = {}


def tiny_swin(pretrained=False, **kw):
    "A Swin of few channels: windows of four cells, four patches become one twice"
    from timm.models.swin_transformer import SwinTransformer
    net = SwinTransformer(img_size=64, patch_size=4, window_size=4, embed_dim=12, depths=(1, 2, 1), num_heads=(1, 2, 3), **{k: v for k, v in kw.items() if 'pretrained' not in k and k != 'cache_dir'})
    net.pretrained_cfg = dict(mean=(.5, .5, .5), std=(.25, .25, .25))
    return net


if 'tiny_swin' not in timm.list_models(): timm.models.register_model(tiny_swin)
FAMILIES = dict(ViT='timm:test_vit', Swin='timm:tiny_swin')
REFUSED = {('icd', 'ViT'): 'works on a map; the stages of timm:test_vit work on tokens', ('icd', 'Swin'): 'work on tokens',
           ('rollout', 'Swin'): 'attends within windows'}
OPTIONS = dict(frozen=dict(side=48, lessons=1))


def case(method, family):
    "A method on a network of a family, with what was computed of it so far"
    key = method, family
    if key not in CASES: CASES[key] = Case(lambda k: method_class(method)(build(FAMILIES[family]), k, **OPTIONS.get(method, {})), method)
    return CASES[key]


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('method', METHODS)
def test_every_promise_is_kept_or_refused(method, family):
    if (method, family) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method, family]) as e: case(method, family).net()
        assert '\n' not in str(e.value)
        return
    assert len(PROMISES) == 10
    for promise in PROMISES: promise(case(method, family))


def test_what_is_refused_is_refused_for_a_reason_and_nothing_else_is():
    assert sum((m, f) not in REFUSED for m in METHODS for f in FAMILIES) == 2 * len(METHODS) - 3
    assert ground('rollout') == FAMILIES['ViT'] and 'timm' in sys.modules
