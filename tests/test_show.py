import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox
from PIL import Image

from wsss_nb.base import pictures, show
from wsss_nb.base.core import UserError

GOLDENS = Path(__file__).parent / 'goldens'
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
MASK = np.zeros((20, 30), np.uint8)
MASK[5:12, 8:20], MASK[5, 8:20] = 3, 255


def png(fig):
    data = fig._repr_png_()
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    return data


def test_a_chart_is_sharp_and_a_large_one_is_no_heavier_than_before():
    assert show.Chart(5, 3).dpi == 120 and show.Chart(8, 9).dpi == 80 and 80 < show.Chart(7, 6).dpi < 120


def test_a_palette_from_an_eighth_of_the_pixels_is_about_as_good_as_one_from_all():
    noise = np.random.default_rng(0).normal(0, 12, (320, 480, 3))
    y, x = np.mgrid[:320, :480]
    paper = np.clip(np.stack([x / 2, y / 2, (x + y) / 4], -1) + noise, 0, 254).astype(np.uint8)
    paper[:, 200:240], paper[150:152] = 255, (213, 94, 0)  # a white column, and a thin line
    picture = Image.fromarray(paper)
    error = lambda q: np.abs(np.asarray(q.convert('RGB')).astype(int) - paper).max(-1)
    ours, whole = error(show.in_256_colours(picture)), error(picture.quantize(256, dither=Image.Dither.NONE))
    assert not np.array_equal(ours, whole) and ours.mean() < 1.1 * whole.mean()
    assert not ours[:150, 200:240].any() and ours[150:152].mean() < whole[150:152].mean() + 8
    few = Image.fromarray(paper // 64 * 64)
    assert np.array_equal(np.asarray(show.in_256_colours(few).convert('RGB')), np.asarray(few))


def test_golden_palette():
    assert (show.VOC_PALETTE == np.load(GOLDENS / 'palette.npz')['voc256']).all()
    assert (show.colorize(MASK)[6, 9] == [128, 128, 0]).all() and (show.colorize(torch.from_numpy(MASK))[5, 9] == [224, 224, 192]).all()


def test_pictures_of_tensors_and_arrays_agree():
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1) / 255.
    for same in (tensor, tensor[None], IMAGE / 255., IMAGE): assert (show.as_picture(same) == IMAGE).all()
    assert (show.as_picture(MASK) == show.colorize(MASK)).all()
    low, high = show.as_picture(np.array([[-3., 5.]]))[0]
    assert high.sum() > low.sum() + 200  # brighter where the map is higher


def test_overlay_blends_only_the_mask():
    out, edge = show.overlay(IMAGE, MASK, alpha=.5), pictures.mask_edges(MASK)
    assert (out[(MASK == 0) & ~edge] == IMAGE[(MASK == 0) & ~edge]).all() and (out[edge] == 255).all()
    inside = (MASK == 3) & ~edge
    assert abs(out[inside] - (IMAGE[inside] * .5 + np.array([128, 128, 0]) * .5)).max() <= .5


def test_heat_is_grey_below_and_warm_above():
    ramp = np.linspace(0, 1, 30)[None].repeat(20, 0)
    out = show.heat(np.full((20, 30, 3), 128, np.uint8), ramp).astype(int)
    assert out[:, -1].sum(-1).mean() > out[:, 0].sum(-1).mean() + 100
    assert show.heat(IMAGE, torch.rand(3, 4)).shape == IMAGE.shape


def test_every_figure_draws():
    samples = [SimpleNamespace(image=IMAGE, mask=MASK, tags=(3,)), SimpleNamespace(image=IMAGE[:10], mask=None, tags=None)]
    sweep = SimpleNamespace(thresholds=np.array([0, .5, 1]), miou=np.array([.1, .5, .2]))
    figures = [show.grid([[IMAGE, MASK, None], [MASK / 3.]], titles=['a', 'b'], row_titles=['x', 'y']), show.contact_sheet(samples, ['a', 'b', 'c'], columns=2),
               show.legend(['a', 'b', 'c']), show.plot_confusion(np.eye(3, dtype=int), ['a', 'b']), show.class_bars([.5, np.nan, .2], ['a', 'b'], reference=[.4, .4, .4]),
               show.plot_sweep(sweep, fixed=.25), show.plot_curves([dict(step=i, loss=1 / (i + 1)) for i in range(60)])]
    assert len({png(f) for f in figures}) == len(figures)
    assert any('oracle: 0.500 at 0.50' in t.get_text() for t in figures[5].axes[0].get_legend().get_texts())


def test_pictures_keep_their_shape_and_neither_they_nor_their_titles_touch():
    pictures, long = [[IMAGE, MASK[:, :10], None, IMAGE[:5]], [MASK]], 'a title that is a good deal wider than its picture'
    fig = show.grid(pictures, titles=[['a', long, 'gap', 'two\nlines'], ['below']], row_titles=['x', 'a row whose name is longer than it is high'], size=.8)
    png(fig)
    [ax], (w, h) = fig.axes, fig.get_size_inches()
    renderer = fig.canvas.get_renderer()
    boxes = [Bbox.from_extents(l, t, r, b) for l, r, b, t in (i.get_extent() for i in ax.images)] + [t.get_window_extent(renderer).transformed(ax.transData.inverted()) for t in ax.texts]
    shapes = [i.get_array().shape for i in ax.images]
    for box, shape in zip(boxes, shapes): assert abs(box.width - .8) < 1e-6 and np.isclose(abs(box.height) / box.width, shape[0] / shape[1])
    sides = [(min(b.x0, b.x1), max(b.x0, b.x1), min(b.y0, b.y1), max(b.y0, b.y1)) for b in boxes]
    assert len(shapes) == 4 and len(boxes) == 4 + 7 and all(l > -.01 and r < w + .01 and u > -.01 and d < h + .01 for l, r, u, d in sides)
    for k, a in enumerate(sides):
        for b in sides[:k]: assert a[0] >= b[1] - .02 or b[0] >= a[1] - .02 or a[2] >= b[3] - .02 or b[2] >= a[3] - .02, (a, b)


def test_paper_is_white():
    photographs = np.random.default_rng(0).integers(0, 256, (2, 90, 90, 3), np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(png(show.grid([list(photographs)], ['a', 'b'])))).convert('RGB'))
    assert (picture[:4] == 255).all() and (picture[:, :2] == 255).all() and len(np.unique(picture.reshape(-1, 3), axis=0)) > 200


def test_no_global_plotting_state():
    code = 'import sys, numpy as np\nfrom wsss_nb.base import show\nshow.grid([[np.zeros((4, 4))]])._repr_png_()\nassert "matplotlib.pyplot" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('call, text', [
    (lambda: show.colorize(MASK - 1.), 'mask: expected [H,W] integers, got float'),
    (lambda: show.colorize(np.array([[-1]])), 'expected ids 0..255, got -1..-1'),
    (lambda: show.overlay(IMAGE, MASK[1:]), 'image is [20, 30] but mask is [19, 30]'),
    (lambda: show.as_picture(np.zeros((2, 3, 4, 5))), 'picture: expected'),
    (lambda: show.heat(IMAGE, np.zeros((2, 3, 4))), 'show one channel at a time'),
    (lambda: show.contact_sheet([], ['a']), 'at least one sample'),
    (lambda: show.plot_confusion(np.eye(4), ['a']), 'got [4, 4]'),
    (lambda: show.plot_curves([]), 'no numbers to draw')])
def test_mistakes_are_named(call, text):
    with pytest.raises(UserError) as e: call()
    assert text in str(e.value)
