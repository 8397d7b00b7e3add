"""Retention by hand, and the tasks on which it is not told."""

import made_up
import numpy as np
import pytest

from tipmini_lab.results import retention


def right(count: int, of: int = 80) -> list[int]:
    return [1] * count + [0] * (of - count)


ROWS = {
    "base": {"rte": right(20), "boolq": right(30), "piqa": right(40), "coqa": right(40)},
    "single": {"rte": right(60), "boolq": right(50), "piqa": right(41), "coqa": right(10)},
    "merged": {"rte": right(40), "boolq": right(25), "piqa": right(80), "coqa": right(80)},
}
CELLS = made_up.cells(ROWS)


def test_only_tasks_that_the_adapter_knows_are_told():
    """PIQA gains a row, CoQA loses thirty: neither is significantly above Base."""
    gains = retention.single_gains(CELLS)
    assert gains["rte"].value == 0.5 and gains["coqa"].value == -0.375
    assert gains["coqa"].corrected < 0.05 and gains["piqa"].corrected == 1.0
    assert retention.learnt(CELLS) == ["rte", "boolq"]


def test_retention_by_hand():
    found = retention.retention(CELLS, "merged")
    values = {task: interval.value for task, interval in found.tasks.items()}
    assert values == pytest.approx({"rte": 20 / 40, "boolq": -5 / 20})
    assert found.mean.value == pytest.approx((0.5 - 0.25) / 2)
    assert all(i.low < i.value < i.high for i in (found.mean, *found.tasks.values()))


@pytest.mark.parametrize(("name", "kept"), [("base", 0.0), ("single", 1.0)])
def test_base_keeps_nothing_and_single_all(name, kept):
    found = retention.retention(CELLS, name).mean
    assert (found.value, found.low, found.high) == (kept, kept, kept)


def test_the_interval_is_that_of_redrawn_rows():
    """Against the plain bootstrap of whole rows: Base, Single and merged of a row together."""
    rows = np.array([ROWS[name]["rte"] for name in ("base", "single", "merged")]).T
    chosen = np.random.default_rng(3).integers(0, len(rows), (10_000, len(rows)))
    base, single, merged = rows[chosen].mean(axis=1).T
    expected = np.quantile((merged - base) / (single - base), (0.025, 0.975))
    found = retention.retention(CELLS, "merged").tasks["rte"]
    assert (found.low, found.high) == pytest.approx(expected, abs=0.01)


def test_a_draw_without_a_gain_has_no_ratio():
    """Six rows won and 34 alike: now and then no won row is drawn; the bounds stay numbers."""
    cells = made_up.cells(
        {
            "base": {"rte": right(0, 40)},
            "single": {"rte": right(6, 40)},
            "merged": {"rte": right(3, 40)},
        }
    )
    found = retention.retention(cells, "merged")
    assert np.isfinite([found.mean.low, found.mean.high]).all()
    assert found.mean.value == 0.5


@pytest.mark.parametrize("hole", [("merged", "rte"), ("single", "rte")])
def test_a_hole_is_no_number(hole):
    some = {place: cell for place, cell in CELLS.items() if place != hole}
    if hole[0] == "merged":
        assert retention.retention(some, "merged") is None
    else:
        assert list(retention.retention(some, "merged").tasks) == ["boolq"]


def test_no_retention_where_no_adapter_knows_its_task():
    assert retention.retention(CELLS, "merged", ["piqa", "coqa"]) is None
    assert retention.retention({}, "merged") is None
