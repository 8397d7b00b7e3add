"""Figures of the prunings: drawn alike twice, and saying where there is nothing to draw."""

import made_up_prunings as made_up
import matplotlib.text
import pytest
import torch

from tipmini.methods.groups import CHANNELS, HEADS
from tipmini_lab.book import pruning_costs, pruning_figures, pruning_masks, pruning_tables, tables
from tipmini_lab.experiments import declared
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
ROWS, SCORES = pruning_tables.frames(made_up.outcomes(GRID), GRID.runs("smoke"), GRID)
WANTED = {"LoRAPrune": ("lora-guided", True), "magnitude": ("magnitude", False)}
WEIGHT, PRODUCT = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
WHOLE = (slice(None), slice(None))
MODULE = "model.layers.1.self_attn.q_proj"


def perplexities(wanted: dict, marks: dict):
    lines = {c: pruning_tables.lines(ROWS, wanted, c) for c in ("wikipedia", "books")}
    return pruning_figures.perplexities(lines, {"books": marks})


def few_and_many(scores):
    points = pruning_tables.few_and_many(scores, GRID, "books")
    return pruning_figures.few_and_many(points, {"unpruned": 20.0})


def sparsities():
    kept = torch.tensor([True, False, True])
    return pruning_figures.merged_sparsities(WEIGHT, PRODUCT, kept, WHOLE)


def dependencies():
    parts = {"rows": [("q", torch.ones(10, 4), 0, (20, 40))]}
    return pruning_figures.dependencies(
        parts | {"columns": [("d", torch.ones(10, 4), 1, (0, 10))]}, 10
    )


DRAWN = {
    "perplexities": lambda: perplexities(WANTED, {"2:4": 40.0}),
    "no perplexities": lambda: perplexities({}, {}),
    "few and many": lambda: few_and_many(SCORES),
    "no few and many": lambda: few_and_many(SCORES[:0]),
    "agreements": lambda: pruning_figures.agreements(pruning_costs.alike(made_up.bench())),
    "no agreements": lambda: pruning_figures.agreements(pruning_costs.alike({})),
    "progress": lambda: pruning_figures.progress({"a": [3.0, 2.0]}, [0.0, 0.5]),
    "no progress": lambda: pruning_figures.progress({}, []),
    "schedules": lambda: pruning_figures.schedules({"cubic": [0, 0.1, 0.5]}),
    "criteria": lambda: pruning_figures.criteria(
        WEIGHT, WEIGHT, PRODUCT[:2], PRODUCT[:, :2], WEIGHT, {"a": [0.4, 0.6]}
    ),
    "sparsities": sparsities,
    "dependencies": dependencies,
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_the_same_twice(name):
    first, second = (DRAWN[name]() for _ in range(2))
    assert tables.svg(first) == tables.svg(second)
    texts = [text.get_text() for text in first.findobj(matplotlib.text.Text)]
    assert name.startswith("no ") == (MISSING in texts)


def test_a_merge_fills_scattered_zeros_and_leaves_those_of_groups():
    titles = [axes.get_title() for axes in sparsities().axes]
    assert titles[:3] == ["W pruned\n50% zeros", "sBA\n0% zeros", "merged\n0% zeros"]
    assert titles[3:] == ["W pruned\n33% zeros", "sBA\n33% zeros", "merged\n33% zeros"]


def test_the_band_marks_the_groups_rows():
    first, second = (axes.patches[0].get_bbox() for axes in dependencies().axes)
    assert (first.y0, first.y1) == (1.5, 3.5) and (first.x0, first.x1) == (-0.5, 3.5)
    assert (second.x0, second.x1) == (-0.5, 0.5) and (second.y0, second.y1) == (-0.5, 9.5)


# What is drawn of real models ---------------------------------------------------------------------


def test_gradients_are_of_the_tasks_own_adapter_and_follow_the_chain_rule(profile):
    """Which the chapter argues with: dL/dB = s g A^T and dL/dA = s B^T g."""
    lab = Lab(profile)
    seen = pruning_masks.observed(lab, "rte", MODULE, rows=3, length=12)
    assert seen.grad.abs().max() > 0 and seen.scaling == 2
    own = lab.adapters["rte"].factors[MODULE]
    for found, expected in (
        (seen.a, own.a),
        (seen.b, own.b),
        (seen.grad_b, seen.scaling * seen.grad @ seen.a.T),
        (seen.grad_a, seen.scaling * seen.b.T @ seen.grad),
    ):
        torch.testing.assert_close(found, expected)


def test_dependencies_mark_a_groups_rows_and_columns(profile):
    parts = pruning_masks.dependency_parts(Lab(profile).model_path, 0, {HEADS: 0, CHANNELS: 5})
    heads, channels = ([(m, dim, span) for m, _, dim, span in own] for own in parts.values())
    rows = [("q", 0, (0, 16)), ("k", 0, (0, 8)), ("v", 0, (0, 8))]
    assert heads == [*rows, ("o", 1, (0, 16))]
    assert channels == [("gate", 0, (5, 6)), ("up", 0, (5, 6)), ("down", 1, (5, 6))]
    assert "one of 24" in list(parts)[1]


def test_blocks_are_averaged():
    weight = torch.arange(24.0).view(4, 6)
    expected = [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]  # (0 + 1 + 6 + 7) / 4, ...
    assert pruning_masks.averaged(weight, 2).tolist() == expected
    assert pruning_masks.averaged(weight, 5).shape == (0, 1)
