"""Retention by hand, and the tasks on which it is not told."""

import made_up
import numpy as np
import pytest

from tipmini_lab.results import retention


def right(count: int, of: int = 80) -> list[int]:
    return [1] * count + [0] * (of - count)


TASKS = ("rte", "boolq", "piqa", "coqa")
VALUES = {
    "base": dict(zip(TASKS, map(right, (20, 30, 40, 40)), strict=True)),
    "single": dict(zip(TASKS, map(right, (60, 50, 41, 10)), strict=True)),
    "merged": dict(zip(TASKS, map(right, (40, 25, 80, 80)), strict=True)),
}
ROWS = made_up.rows(VALUES)


def test_only_tasks_that_the_adapter_knows_are_told():
    """PIQA gains a row, CoQA loses thirty: neither is significantly above Base."""
    gains = retention.single_gains(ROWS, TASKS)
    assert gains.value["rte"] == 0.5 and gains.value["coqa"] == -0.375
    assert gains.corrected["coqa"] < 0.05 and gains.corrected["piqa"] == 1.0
    assert retention.learnt(ROWS, TASKS) == ["rte", "boolq"]


def test_retention_by_hand():
    """The bounds follow from the very draws that the book's do."""
    found = retention.retention(ROWS, "merged", TASKS)
    assert found["rte"] == pytest.approx((20 / 40, 10 / 29, 25 / 38))
    assert found["boolq"] == pytest.approx((-5 / 20, -10 / 17, -0.05))
    assert found["mean"] == pytest.approx(((0.5 - 0.25) / 2, -0.060304626, 0.256115187))
    assert list(found) == ["rte", "boolq", "mean", "without"]
    assert found["without"] == found["boolq"]


@pytest.mark.parametrize(("name", "kept"), [("base", 0.0), ("single", 1.0)])
def test_base_keeps_nothing_and_single_all(name, kept):
    assert retention.retention(ROWS, name, TASKS)["mean"] == (kept, kept, kept)


def test_the_interval_is_that_of_redrawn_rows():
    """Against the plain bootstrap of whole rows: Base, Single and merged of a row together."""
    rows = ROWS.loc["rte", list(VALUES)].to_numpy()
    chosen = np.random.default_rng(3).integers(0, len(rows), (10_000, len(rows)))
    base, single, merged = rows[chosen].mean(axis=1).T
    expected = np.quantile((merged - base) / (single - base), (0.025, 0.975))
    found = retention.retention(ROWS, "merged", TASKS)["rte"]
    assert (found.low, found.high) == pytest.approx(expected, abs=0.01)


def test_a_draw_without_a_gain_has_no_ratio():
    """Six rows won and 34 alike: now and then no won row is drawn; the bounds stay numbers."""
    counts = {"base": 0, "single": 6, "merged": 3}
    rows = made_up.rows({name: {"rte": right(count, 40)} for name, count in counts.items()})
    found = retention.retention(rows, "merged", ["rte"])["mean"]
    assert np.isfinite(found).all() and found.value == 0.5


@pytest.mark.parametrize(
    ("hole", "told"), [("merged", []), ("single", ["boolq", "mean"]), ("base", ["boolq", "mean"])]
)
def test_a_hole_is_no_number(hole, told):
    rows = ROWS.copy()
    rows.loc["rte", hole] = np.nan
    assert list(retention.retention(rows, "merged", TASKS)) == told


def test_no_retention_where_no_adapter_knows_its_task():
    assert retention.retention(ROWS, "merged", ["piqa", "coqa"]) == {}
    assert retention.retention(made_up.rows({}), "merged", TASKS) == {}
