"What every method's network promises, checked on one that `make` builds: `check_localiser(make, num_classes)`"
import numpy as np
import pytest
import torch

from wsss_nb.base.core import UserError, seed_everything

SCALES = (1., .5)


def fresh(make, num_classes, seed=0):
    "A network from fixed random weights"
    seed_everything(seed)
    return make(num_classes)


def random_labels(n, num_classes, seed=0):
    "Multi-hot [n,K]: first one class, then all classes, then random ones"
    labels = torch.tensor(np.random.default_rng(seed).random((n, num_classes)) < .5).float()
    labels[0], labels[1:2] = torch.eye(num_classes)[num_classes - 1], 1.
    return labels


def training_batch(net, labels, size=(64, 64), seed=0):
    "Training views; the last quarter of the second one is padding, as is one side of the others"
    g = torch.Generator().manual_seed(seed)
    image, valid = torch.rand(len(labels), 3, *size, generator=g), torch.ones(len(labels), *size, dtype=torch.bool)
    valid[:, :, -size[1] // 8:] = False
    valid[1:2, -size[0] // 4:] = False
    fill = net.backbone.mean.view(1, 3, 1, 1).expand_as(image)
    return dict(image=torch.where(valid[:, None], image, fill), valid=valid, labels=labels, name=[f'image {i}' for i in range(len(labels))], progress=.5, step=5, per_epoch=5)


def copy_of(batch):
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.items()}


def step(net, batch):
    "The losses and the gradients of one training step"
    seed_everything(1)
    net.train().zero_grad()
    losses = net(batch)
    losses['loss'].backward()
    return losses, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def check_training(make, num_classes, size):
    "Finite losses and gradients that reach the backbone and the new layers; the same twice; the batch is left alone"
    labels = random_labels(4, num_classes)
    net = fresh(make, num_classes)
    batch = training_batch(net, labels, size)
    before = copy_of(batch)
    losses, grads = step(net, batch)
    assert losses['loss'].dim() == 0 and all(np.isfinite(float(torch.as_tensor(v).detach())) for v in losses.values()), losses
    for k, v in before.items(): assert torch.equal(batch[k], v) if torch.is_tensor(v) else batch[k] == v, f'{k} of the batch was changed'
    assert all(g.isfinite().all() for g in grads.values()), [n for n, g in grads.items() if not g.isfinite().all()]
    moved = {n for n, g in grads.items() if g.abs().sum() > 0}
    assert any(n.startswith('backbone.') for n in moved) and any(not n.startswith('backbone.') for n in moved), 'the loss trains nothing'
    again, grads_again = step(fresh(make, num_classes), copy_of(before))
    assert float(losses['loss'].detach()) == pytest.approx(float(again['loss'].detach()), rel=1e-5)
    for n in grads: assert torch.allclose(grads[n], grads_again[n], rtol=1e-3, atol=1e-5 * float(grads[n].abs().max()) + 1e-9), n


def check_strange_batches(make, num_classes, size):
    "No class in any image; every class in every image; nothing but padding; a black image"
    none, every = torch.zeros(2, num_classes), torch.ones(2, num_classes)
    for labels, change in ((none, {}), (every, {}), (every, dict(valid=torch.zeros(2, *size, dtype=torch.bool))), (every, dict(image=torch.zeros(2, 3, *size)))):
        net = fresh(make, num_classes)
        losses, grads = step(net, dict(training_batch(net, labels, size), **change))
        assert torch.isfinite(losses['loss']) and all(g.isfinite().all() for g in grads.values())


def check_maps(maps, labels, size):
    "Keys, shape and range of the score maps"
    for m, row in zip(maps, labels):
        keys, present = list(m.keys), (row.nonzero().flatten() + 1).tolist()
        assert keys in (present, [0, *present], [0, *present, 255]), f'keys {keys} for the classes {present}'
        assert m.maps.shape == (len(keys), *size) and m.maps.dtype == np.float32
        assert np.isfinite(m.maps).all() and (not m.maps.size or m.maps.max() <= 1 + 1e-5)


def assert_same(a, b, atol, what):
    for x, y in zip(a, b, strict=True):
        assert list(x.keys) == list(y.keys) and np.abs(x.maps - y.maps).mean() < atol if x.maps.size else x.maps.shape == y.maps.shape, what


def check_reading(make, num_classes, size, **reading):
    "Score maps: form, determinism, no influence of the other images, a mirror image has the mirrored maps, a copy of the network gives the same"
    net = fresh(make, num_classes).eval()
    r = np.random.default_rng(0)
    images = [(255 * np.kron(r.random((4, 5, 3)), np.ones((size[0] // 4 + 1, size[1] // 5 + 1, 1)))).astype(np.uint8)[:size[0], :size[1]] for _ in range(4)]
    labels = torch.cat([random_labels(3, num_classes), torch.zeros(1, num_classes)])
    kept = [i.copy() for i in images], labels.clone()
    def read(net, images, labels, scales=SCALES, **more): return net.score_maps(images, labels, scales, **more, **reading)
    maps = read(net, images, labels)
    check_maps(maps, labels, size)
    assert all((a == b).all() for a, b in zip(images, kept[0])) and torch.equal(labels, kept[1]), 'the arguments were changed'
    assert_same(maps, read(net, images, labels), 1e-6, 'two readings differ')
    for i in range(4): assert_same(maps[i:i + 1], read(net, images[i:i + 1], labels[i:i + 1]), 1e-3, f'image {i}: other images of the batch matter')
    mirrored = read(net, [i[:, ::-1].copy() for i in images], labels)
    assert_same(maps, [type(m)(m.keys, m.maps[..., ::-1]) for m in mirrored], 5e-3, 'the mirror image has other maps')
    copy = fresh(make, num_classes, seed=7)
    copy.load_state_dict(net.state_dict())
    assert_same(maps, read(copy.eval(), images, labels), 1e-6, 'a copy of the network gives other maps')
    check_maps(read(net, images, labels, (1.,), flip=False, max_side=32), labels, size)
    raw = net.raw_maps(torch.rand(2, 3, *size))
    assert raw.shape[:2] == (2, num_classes) and raw.isfinite().all()


def check_settings(make, num_classes):
    "Every setting of the reading may be stated; an unknown one is refused"
    net = fresh(make, num_classes).eval()
    image, labels = [np.zeros((40, 40, 3), np.uint8)], torch.ones(1, num_classes)
    settings = getattr(type(net), 'reading', {})
    check_maps(net.score_maps(image, labels, (1.,), **settings), labels, (40, 40))  # a black image, too
    with pytest.raises((UserError, TypeError)): net.score_maps(image, labels, (1.,), no_such_setting=1)


def check_localiser(
    make,  # number of classes -> a Localiser
    num_classes=3,
    size=(64, 64),  # of the training views
    odd=(53, 71),  # of the images at test time
    **reading,  # settings of the reading that are not the defaults
):
    "Everything that every method promises"
    check_training(make, num_classes, size)
    check_strange_batches(make, num_classes, size)
    check_reading(make, num_classes, odd, **reading)
    check_settings(make, num_classes)
    check_training(make, 1, size)
    check_reading(make, 1, odd, **reading)
