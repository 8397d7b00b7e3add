"""Figures of the prunings: drawn alike twice, and saying where there is nothing to draw."""

import made_up_prunings as made_up
import pytest
import torch

from tipmini_lab.book import pruning_costs, pruning_figures, pruning_masks, tables
from tipmini_lab.experiments import declared
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(GRID)
BENCH = made_up.bench()


def drawn() -> dict:
    wanted = [("lora-guided", True), ("magnitude", False)]
    lines = {c: pruning_masks.lines(FOUND, GRID, RUNS, wanted, c) for c in ("wikipedia", "books")}
    marks = {c: pruning_masks.marks(FOUND, GRID, c) for c in lines}
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator)
    thin = torch.randn(2, 8, generator=generator)
    return {
        "perplexities": pruning_figures.perplexities(lines, marks),
        "no perplexities": pruning_figures.perplexities({"wikipedia": {}, "books": {}}, {}),
        "agreements": pruning_figures.agreements(
            pruning_costs.lines(BENCH), pruning_costs.chance(BENCH)
        ),
        "no agreements": pruning_figures.agreements({}, {}),
        "progress": pruning_figures.progress({"a": [3.0, 2.0]}, [0.0, 0.5]),
        "no progress": pruning_figures.progress({}, []),
        "schedules": pruning_figures.schedules({"cubic": [0, 0.1, 0.5]}),
        "criteria": pruning_figures.criteria(
            weight, weight, thin, thin.T, weight, {"a": [0.4, 0.6]}
        ),
        "sparsities": pruning_figures.merged_sparsities(
            {"x": {"a": weight, "b": weight, "c": weight}}
        ),
        "dependencies": pruning_figures.dependencies(
            {"heads": [("q", weight.abs(), 0, (0, 2)), ("o", weight.abs(), 1, (4, 6))]}
            | {"channels": [("up", weight.abs(), 0, (3, 4))]},
            1,
        ),
    }


@pytest.mark.parametrize("name", drawn())
def test_a_figure_is_drawn_the_same_twice(name):
    first, second = (tables.svg(drawn()[name]) for _ in range(2))
    assert first == second and first.startswith("<?xml")
    assert (name.startswith("no ")) == (MISSING in _texts(drawn()[name]))


def _texts(figure) -> str:
    import matplotlib.text

    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_zeros_are_counted_in_the_title():
    half = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    figure = pruning_figures.merged_sparsities({"way": {"W": half, "BA": half + 1, "merged": half}})
    assert [a.get_title() for a in figure.axes][:2] == ["W\n50% zeros", "BA\n0% zeros"]


def test_the_band_marks_the_groups_rows():
    weight = torch.ones(10, 4)
    parts = {"rows": [("q", weight, 0, (20, 40))], "columns": [("d", weight, 1, (0, 10))]}
    figure = pruning_figures.dependencies(parts, 10)
    first, second = (axes.patches[0].get_bbox() for axes in figure.axes)
    assert (first.y0, first.y1) == (1.5, 3.5) and (first.x0, first.x1) == (-0.5, 3.5)
    assert (second.x0, second.x1) == (-0.5, 0.5) and (second.y0, second.y1) == (-0.5, 9.5)
