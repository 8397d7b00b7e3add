"""Figures: every value given is drawn, the SVG is the same twice, and no white box is behind it."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from tipmini_lab.book import figures, tables

RANDOM = np.random.default_rng(0)
LAYERS = {f"task {n}": RANDOM.random(6) * 1.6 - 0.3 for n in range(3)}
MATRICES = {task: RANDOM.standard_normal((4, 9)) for task in ("one", "two")}
MASKS = {task: matrix > 0 for task, matrix in MATRICES.items()}
ACCURACIES = {task: {"Base": (0.4, 0.05), "TIP": (0.5, 0.0)} for task in LAYERS}
GROWTH = {"linear": ((2, 4), (0.1, 0.2)), "tip": ((2, 4), (0.3, 0.7))}
RATIOS = {step: {"0": (1.0, 1.0, 1.0), "1": (1.4, 1.2, 1.5)} for step in ("prompt", "token")}
SERVING = {f"batch {n}": RATIOS for n in range(3)}

DRAWN = {
    "score_maps": lambda: figures.score_maps(MATRICES["one"], np.ones(9), abs(MATRICES["one"])),
    "layers_by_task": lambda: figures.layers_by_task(LAYERS, "importance"),
    "sparsity_lines": lambda: figures.sparsity_lines(LAYERS, 0.7),
    "sparsity_panels": lambda: figures.sparsity_panels(LAYERS, 0.7),
    "merging_steps": lambda: figures.merging_steps(MATRICES, MATRICES, MASKS, MATRICES["one"]),
    "growth": lambda: figures.growth({"adapters": GROWTH, "blocks": GROWTH}),
    "serving": lambda: figures.serving(SERVING, "01", {"base": ((1, 2), (5.0, 9.0))}),
    "accuracy_panels": lambda: figures.accuracy_panels(ACCURACIES, "Base"),
}


@pytest.fixture(params=DRAWN)
def draw(request):
    return DRAWN[request.param]


def test_two_drawings_are_the_same_bytes(draw):
    assert tables.svg(draw()) == tables.svg(draw())


def test_no_box_is_painted_behind_the_figure(draw):
    picture = tables.svg(draw())
    background = picture.split('id="patch_1"')[1].split("</g>")[0]
    assert "fill: none" in background
    assert "<dc:date>" not in picture


def test_clip_paths_of_other_names_make_the_same_picture():
    """In a layout whose last digits differ matplotlib names them otherwise."""
    path = '<clipPath id="{0}"/><g clip-path="url(#{0})"/>'
    one, two, other = (f"p{digit * 10}" for digit in "abc")
    picture = path.format(one) + path.format(two)
    named = tables._named_clips(picture)
    assert named == tables._named_clips(picture.replace(one, other)) != picture
    first, used, second, again = re.findall(r'(?:id="|#)([\w-]+)', named)
    assert first == used != second == again


@pytest.mark.parametrize("value", [18.0984375, 0.0625, 0.1875, -0.0625, 5.0, -1e-7])
def test_positions_that_differ_in_the_last_digits_are_written_alike(value):
    near, far = (tables._rounded(f'x="{value + noise:f}"') for noise in (-4e-7, 6e-7))
    assert near == far
    assert float(near.split('"')[1]) == pytest.approx(value, abs=6e-4)


def test_only_positions_are_rounded():
    assert tables._rounded('transform="scale(0.015625)"') == 'transform="scale(0.015625)"'
    assert tables._rounded("translate(0.015625 -0.000100)") == "translate(0.016 0.000)"


def test_every_axis_with_ticks_says_what_it_shows(draw):
    figure = draw()
    named = [figure._supxlabel, figure._supylabel]
    texts = [t.get_text() for t in named if t] + [a.get_xlabel() for a in figure.axes]
    assert any(texts)


def test_sparsity_lines_show_values_outside_the_bounds_as_they_are():
    lines = figures.sparsity_lines(LAYERS, 0.7).axes[0].get_lines()
    for line, values in zip(lines, LAYERS.values(), strict=False):
        assert line.get_ydata() == pytest.approx(values)


def test_sparsity_panels_show_both_readings():
    for axes, values in zip(
        figures.sparsity_panels(LAYERS, 0.7).axes, LAYERS.values(), strict=True
    ):
        before, after = (line.get_ydata() for line in axes.get_lines()[:2])
        assert before == pytest.approx(values)
        assert after == pytest.approx(np.clip(values, 0, 1))


def test_no_line_leaves_its_panel():
    """The panels share a scale that must fit the last task as well as the first."""
    figure = figures.layers_by_task({"small": [1, 2], "large": [10, 90]}, "importance")
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > 90


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_there_is_a_panel_for_every_task(count):
    values = {str(task): np.arange(4) for task in range(count)}
    titles = [axes.get_title() for axes in figures.layers_by_task(values, "importance").axes]
    assert titles == list(values)


def test_figures_stay_out_of_pyplot(draw):
    import matplotlib.pyplot as plt

    assert isinstance(draw(), Figure)
    assert plt.get_fignums() == []
