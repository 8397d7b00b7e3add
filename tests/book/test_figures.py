"""Figures: every value given is drawn, the SVG is the same twice, and no white box is behind it."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tipmini_lab.book import figures, merge_figures, tables
from tipmini_lab.book.figures import BLUE, GREY, ORANGE
from tipmini_lab.results.statistics import MISSING, Interval

RANDOM = np.random.default_rng(0)
LAYERS = {f"task {n}": RANDOM.random(6) * 1.6 - 0.3 for n in range(3)}
MATRICES = {task: RANDOM.standard_normal((4, 9)) for task in ("one", "two")}
MASKS = {task: matrix > 0 for task, matrix in MATRICES.items()}
GROWTH = {"linear": ((2, 4), (0.1, 0.2)), "tip": ((2, 4), (0.3, 0.7))}
RATIOS = {step: {"0": (1.0, 1.0, 1.0), "1": (1.4, 1.2, 1.5)} for step in ("prompt", "token")}
SERVING = {f"batch {n}": RATIOS for n in range(3)}

LONG = "the exact sum of all updates, scaled to the same norm block by block"
EFFECTS = pd.DataFrame(
    [
        (1, "W in Eq. 1", "delta W", 0.010, 0.002, 0.018, "better"),
        (1, "W in Eq. 1", "A only", -0.02, -0.03, -0.01, "worse"),
        (8, f"{LONG}?", "inverted", 0.005, 0.001, 0.015, "not significant"),  # once corrected
        (8, f"{LONG}?", LONG, np.nan, np.nan, np.nan, MISSING),
    ],
    columns=["point", "question", "reading", "value", "low", "high", "verdict"],
)
LINE = ((0.1, 0.5, 0.9), ((0.3, 0.2, 0.4), (0.5, 0.4, 0.6), (0.4, 0.3, 0.5)))
LINES = {"TIP": LINE, "random": LINE}
LEVELS = {"Base": (0.4, 0.39, 0.41), "Single": (0.5, 0.49, 0.51)}
MEANS = {
    "TIP": Interval(0.4, 0.3, 0.5),
    "TIP (sign inverted, modules as layers)": Interval(0.3, 0.2, 0.4),
    "TIES": None,
}
MODULES = [f"model.layers.{i}.self_attn.{kind}" for i in (0, 1) for kind in ("q", "v")]
WEIGHTS = {"RTE": dict.fromkeys(MODULES, 0.5), "PIQA": dict.fromkeys(MODULES, -0.25)}

DRAWN = {
    "score_maps": lambda: figures.score_maps(MATRICES["one"], np.ones(9), abs(MATRICES["one"])),
    "layers_by_task": lambda: figures.layers_by_task(LAYERS, "importance"),
    "sparsity_lines": lambda: figures.sparsity_lines(LAYERS, 0.7),
    "sparsity_panels": lambda: figures.sparsity_panels(LAYERS, 0.7),
    "merging_steps": lambda: figures.merging_steps(MATRICES, MATRICES, MASKS, MATRICES["one"]),
    "growth": lambda: figures.growth({"adapters": GROWTH, "blocks": GROWTH}),
    "serving": lambda: figures.serving(SERVING, "01", {"base": ((1, 2), (5.0, 9.0))}),
    "weight_maps": lambda: figures.weight_maps(WEIGHTS),
    "effects": lambda: figures.effects(EFFECTS, "difference in points"),
    "sweep": lambda: figures.sweep(LINES, "sparsity", levels=LEVELS),
    "doubling": lambda: figures.sweep({"TIP": LINE}, "rows", logarithmic=True),
    "sweep_panels": lambda: figures.sweep_panels({"RTE": LINES, "PIQA": LINES}, "S"),
    "means": lambda: merge_figures.means(MEANS, {"Guessing": 0.3, "Base": 0.35, "Single": 0.45}),
    "by_size": lambda: merge_figures.by_size(LINES, {"Guessing": 0.3, "Base": 0.35}),
}


@pytest.fixture(params=DRAWN)
def draw(request):
    return DRAWN[request.param]


def test_a_drawing_is_the_same_bytes_without_a_box_and_stays_out_of_pyplot(draw):
    import matplotlib.pyplot as plt

    picture = tables.svg(draw())
    assert picture == tables.svg(draw()) and "<dc:date>" not in picture
    assert "fill: none" in picture.split('id="patch_1"')[1].split("</g>")[0]
    assert isinstance(draw(), Figure) and plt.get_fignums() == []


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


def test_weights_are_drawn_by_kind_of_module_and_task():
    panels = [axes for axes in DRAWN["weight_maps"]().axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["self_attn.q", "self_attn.v"]
    assert panels[0].images[0].get_array().tolist() == [[0.5, 0.5], [-0.25, -0.25]]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["RTE", "PIQA"]


# Many variants --------------------------------------------------------------------------------


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_effects_name_every_point_and_reading_and_tell_the_side_of_zero():
    (axes,) = DRAWN["effects"]().axes
    found = [text.replace("\n", " ") for text in texts(axes)]
    headings = ["1. W in Eq. 1", f"8. {LONG}?"]
    assert sorted(found) == sorted([*headings, *EFFECTS.reading, f" {MISSING}"])
    marks = [line for line in axes.get_lines() if line.get_marker() not in ("None", "")]
    found = [(m.get_xdata()[0], m.get_color(), m.get_marker()) for m in marks]
    assert found == [(1.0, BLUE, ">"), (-2.0, ORANGE, "<"), (0.5, GREY, "o")]


def test_no_label_runs_into_another_or_out_of_the_figure():
    figure = DRAWN["effects"]()
    axes = figure.axes[0]
    boxes = {t: t.get_window_extent() for t in axes.texts if MISSING not in t.get_text()}
    down = sorted(boxes.values(), key=lambda box: -box.y0)
    assert all(upper.y0 > lower.y1 - 2 for upper, lower in pairwise(down))
    assert all(b.x0 >= 0 and b.x1 < figure.bbox.width and b.y1 < figure.bbox.height for b in down)
    left = axes.get_window_extent().x0
    assert all(b.x1 <= left for t, b in boxes.items() if t.get_fontweight() != "bold")


def test_a_sweep_has_a_line_and_a_band_a_series():
    figure = DRAWN["sweep"]()
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == ["TIP", "random", "Base", "Single"]
    assert list(axes.get_lines()[0].get_ydata()) == [0.3, 0.5, 0.4]
    assert len(axes.collections) == 2 and len(figure.legends[0].get_texts()) == 4
    with pytest.raises(ValueError, match="7 lines"):  # none is left out in silence
        figures.sweep({str(n): LINE for n in range(7)}, "S")


def test_doubling_ticks_stand_at_the_numbers_taken():
    (axes,) = DRAWN["doubling"]().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "0.5", "0.9"]


def test_means_stand_in_their_order_beside_named_levels():
    (axes,) = DRAWN["means"]().axes
    named = [tick.get_text() for tick in axes.get_yticklabels()]
    assert named == ["TIP", "TIP (sign inverted, modules\nas layers)", "TIES"]
    assert {"Guessing", "Base", "Single", MISSING} == set(texts(axes))


def test_means_are_told_from_the_highest_on():
    told = merge_figures.in_words(MEANS, {"Base": 0.35})
    assert told == "TIP 0.400, TIP (sign inverted, modules as layers) 0.300; lines: Base 0.350."


def test_accuracy_by_size_has_a_tick_at_one_adapter():
    (axes,) = DRAWN["by_size"]().axes
    assert "1" in [tick.get_text() for tick in axes.get_xticklabels()]
    told = {text.get_text() for legend in DRAWN["by_size"]().legends for text in legend.texts}
    assert told == {"TIP", "random", "Guessing", "Base"}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.sweep({}, "S", levels=LEVELS),
        lambda: figures.sweep({}, "rows", logarithmic=True),
        lambda: figures.sweep_panels({}, "S"),
    ],
)
def test_what_is_not_measured_is_a_figure_that_says_so(draw):
    assert tables.svg(draw()) and texts(draw().axes[0]) == [MISSING]
