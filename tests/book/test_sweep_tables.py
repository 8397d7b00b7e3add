"""What a sweep shows as lines and in numbers, on made-up cells of two tasks."""

from types import SimpleNamespace

import made_up
import numpy as np
import pytest

from tipmini_lab.book import sweeps
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.experiments.profiles import load_profile

SMOKE = load_profile("smoke")  # openbookqa and rte
TITLES = {"tip": "TIP", "openbookqa": "OpenBookQA", "rte": "RTE"}
COUNTS = {  # right rows of 80 on the two tasks
    "base": (40, 40),
    "single": (60, 41),
    "tip-s-1": (50, 30),
    "tip-s-2": (40, 40),
    "tip-s-3": (80, 80),
    "tip-s-mean": (40, 38),
    "tip-s-5": (80, None),
}
ROWS = made_up.rows(
    {
        name: {
            task: [1] * count + [0] * (80 - count)
            for task, count in zip(SMOKE.tasks, counts, strict=True)
            if count is not None
        }
        for name, counts in COUNTS.items()
    }
)


def swept(moves: str, *values, lines=("tip",)) -> list[sweeps.Place]:
    return sweeps.places(declared(moves, *values, lines=lines), SMOKE, TITLES)


def declared(moves: str, *values, lines=("tip",)) -> SimpleNamespace:
    return SimpleNamespace(
        name="s", moves=moves, values=values, lines=lines, place=lambda line, v: f"{line}-s-{v}"
    )


# Lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moves", "values", "x", "means"),
    [
        ("weights", ("mean", 2, 4), [0.5, 2], [0.4875, 0.5]),  # 1 / T of two; 4 isn't measured
        ("adapters", (2, 1), [1, 2], [0.625, 0.5]),  # one adapter: its own task alone
        ("sparsity", (5, 1), [1], [0.5]),  # 5 has a hole
    ],
)
def test_a_sweep_is_a_line_over_what_is_measured(moves, values, x, means):
    xs, bands = sweeps.lines(ROWS, swept(moves, *values))["TIP"]
    assert xs == x and [band.value for band in bands] == pytest.approx(means)
    assert all(band.low <= band.value <= band.high for band in bands)


def test_lines_are_named_and_left_out_where_nothing_is_measured():
    own = SimpleNamespace(name="tip", title="TIP once more")
    assert list(sweeps.lines(ROWS, swept("rows", 2, lines=("none", own)))) == ["TIP once more"]
    assert sweeps.lines(made_up.rows({}), swept("rows", 1, 2)) == {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((1, 3), "TIP 0.500 at 1, 1.000 at 3"),
        ((1, 3, 4), "TIP 0.500 at 1, 1.000 at 3"),  # 4 isn't measured
        ((0.5, 1, 2), "TIP 0.500 at 1, 0.500 at 2"),
        (("mean", 1, 2), "TIP 0.487 at 0.5, highest 0.500 at 1, 0.500 at 2"),
        ((1,), "TIP 0.500 at 1"),
        ((4,), sweeps.MISSING),
    ],
)
def test_a_line_is_told_by_its_ends_and_its_highest_value(values, told):
    assert sweeps.in_words(sweeps.lines(ROWS, swept("weights", *values))) == told


def test_what_the_setting_does_not_touch_is_of_the_same_tasks():
    places = sweeps.beside(declared("adapters", 1, 2), SMOKE, {"single": "Single"})
    xs, bands = sweeps.lines(ROWS, places)["Single"]
    assert xs == [1, 2] and [band.value for band in bands] == [0.75, 101 / 160]


def test_small_panels_leave_out_what_is_not_measured():
    tasks = {task: TITLES[task] for task in SMOKE.tasks}
    found = sweeps.by_task(ROWS, swept("adapters", 1, 2), tasks)
    assert found["OpenBookQA"]["TIP"][0] == [1, 2] and found["RTE"]["TIP"][0] == [2]
    assert list(sweeps.by_task(ROWS, swept("sparsity", 5), tasks)) == ["OpenBookQA"]


# Every value against one ----------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "against"), [(2, "tip-s-2"), ("tip-s-2", "tip-s-2")])
def test_every_value_is_held_against_one_and_none_against_itself(reference, against):
    found = sweeps.compared(ROWS, swept("sparsity", 1, 2, 3, 4), reference)
    assert list(found["at"]) == ["1", "3", "4"] and set(found.against) == {against}
    assert list(found.value[:2]) == [0, 0.5] and np.isnan(found.value[2])
    assert set(sweeps.compared(ROWS, swept("sparsity", 1), 9).verdict) == {"not measured yet"}


def test_what_is_evaluated_at_a_value_is_compared_there():
    """One adapter: its own task alone, 10 of 80 rows more. Two: both, of which the gains cancel."""
    found = [sweeps.compared(ROWS, swept(m, 1), "base") for m in ("adapters", "sparsity")]
    assert [one.value[0] for one in found] == [10 / 80, 0]


def test_the_table_is_bold_where_a_difference_is_significant():
    """1 / T of two adapters is 0.5, below 1 and 3; 4 is not measured."""
    frame = sweeps.table(sweeps.compared(ROWS, swept("weights", 3, 1, 4, "mean"), "base"), "weight")
    assert list(frame.index) == ["1/T", "1", "3", "4"] and frame.index.name == "weight"
    _, plain, marked, missing = frame["TIP"]
    assert plain.startswith("+0.0<br>[-") and missing == EMPTY
    assert marked.startswith("**+50.0**<br>[+4")


# Retention ------------------------------------------------------------------------------------


def test_retention_is_of_the_tasks_that_were_learnt():
    """OpenBookQA gains 20 rows, RTE one, which is no sure gain. Of 20 the merge keeps 10."""
    kept = sweeps.retained(ROWS, swept("adapters", 1, 2), SMOKE)
    assert list(kept.tasks) == [1, 1] and [one.value for one in kept.kept] == [0.5, 0.0]
    x, (first, second) = sweeps.retention_lines(kept)["TIP"]
    assert x == [1, 2] and first[0] == 0.5 and second == (0, 0, 0)
    frame = sweeps.retention_table(kept)
    assert list(frame.loc[2]) == ["1", "0%<br>[0, 0]"]
    assert frame.loc[1, "TIP"].startswith("50%<br>[") and frame.index.name == "adapters"


def test_retention_where_no_task_was_learnt():
    kept = sweeps.retained(ROWS.drop(columns="single"), swept("adapters", 1, 2), SMOKE)
    assert sweeps.retention_lines(kept) == {}
    assert list(sweeps.retention_table(kept).loc[2]) == ["0", EMPTY]
