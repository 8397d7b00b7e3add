"""Figures over many variants: what is given is drawn and named, and what is missing is said."""

from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from tipmini_lab.book import effect_figures, tables
from tipmini_lab.book.figures import BLUE, GREY, ORANGE
from tipmini_lab.results.statistics import MISSING

LONG = "the exact sum of all updates, scaled to the same norm block by block"
EFFECTS = {
    "1. W in Eq. 1": {"delta W": (1.0, 0.2, 1.8), "A only": (-2.0, -3.0, -1.0)},
    f"8. {LONG}?": {"inverted": (0.5, -0.5, 1.5), LONG: None},
}
LINE = ((0.1, 0.5, 0.9), ((0.3, 0.2, 0.4), (0.5, 0.4, 0.6), (0.4, 0.3, 0.5)))
SERIES = {"TIP": LINE, "random": LINE}
LEVELS = {"Base": (0.4, 0.39, 0.41), "Single": (0.5, 0.49, 0.51)}
METHODS = {"Linear": (0.3, 0.2, 0.4), "TIP": (0.4, 0.3, 0.5), "TIES": None}

DRAWN = {
    "effects": lambda: effect_figures.effects(EFFECTS, "difference in points"),
    "sweep": lambda: effect_figures.sweep(SERIES, "sparsity", levels=LEVELS),
    "doubling": lambda: effect_figures.sweep({"TIP": LINE}, "rows", logarithmic=True),
    "sweep_panels": lambda: effect_figures.sweep_panels({"RTE": SERIES, "PIQA": SERIES}, "S"),
    "methods": lambda: effect_figures.methods_by_retention(
        METHODS, {"TIP": (0.2, 0.1, 0.3)}, {"Base": 0.35, "Single": 0.45}
    ),
}


@pytest.fixture(params=DRAWN)
def draw(request):
    return DRAWN[request.param]


def test_two_drawings_are_the_same_bytes_without_a_box(draw):
    picture = tables.svg(draw())
    assert picture == tables.svg(draw())
    assert "fill: none" in picture.split('id="patch_1"')[1].split("</g>")[0]


def test_figures_stay_out_of_pyplot(draw):
    import matplotlib.pyplot as plt

    assert isinstance(draw(), Figure)
    assert plt.get_fignums() == []


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_effects_name_every_point_and_reading():
    (axes,) = DRAWN["effects"]().axes
    found = [text.replace("\n", " ") for text in texts(axes)]
    named = [*EFFECTS, *(reading for readings in EFFECTS.values() for reading in readings)]
    assert sorted(found) == sorted([*named, f" {MISSING}"])
    assert axes.get_xlabel() == "difference in points"


def test_effects_tell_the_side_of_zero_by_colour_and_marker():
    (axes,) = DRAWN["effects"]().axes
    points = [line for line in axes.get_lines() if line.get_marker() not in ("None", "")]
    found = [(p.get_xdata()[0], p.get_color(), p.get_marker()) for p in points]
    assert found == [(1.0, BLUE, ">"), (-2.0, ORANGE, "<"), (0.5, GREY, "o")]


def test_no_label_runs_into_another_or_out_of_the_figure():
    figure = effect_figures.effects(EFFECTS, "points")
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
    assert len(axes.collections) == 2
    assert len(figure.legends[0].get_texts()) == 4


def test_doubling_ticks_stand_at_the_numbers_taken():
    (axes,) = DRAWN["doubling"]().axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "0.5", "0.9"]


def test_methods_stand_by_accuracy_and_the_missing_last():
    left, right = DRAWN["methods"]().axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["TIP", "Linear", "TIES"]
    assert {"Base", "Single", MISSING} <= set(texts(left))
    assert right.get_xlabel() == "retention"


@pytest.mark.parametrize(
    "figure",
    [
        lambda: effect_figures.sweep({}, "S", levels=LEVELS),
        lambda: effect_figures.sweep({}, "rows", logarithmic=True),
        lambda: effect_figures.sweep_panels({}, "S"),
    ],
)
def test_what_is_not_measured_is_a_figure_that_says_so(figure):
    assert tables.svg(figure())
    assert texts(figure().axes[0]) == [MISSING]


def test_no_line_is_left_out_in_silence():
    with pytest.raises(ValueError, match="7 lines"):
        effect_figures.sweep({str(n): LINE for n in range(7)}, "S")
