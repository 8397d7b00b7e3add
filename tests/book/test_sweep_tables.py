"""What a sweep shows in numbers, on made-up cells of two tasks."""

from types import SimpleNamespace

import made_up
import pytest

from tipmini_lab.book import sweeps
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import MISSING

SMOKE = load_profile("smoke")  # openbookqa and rte
TITLES = {"tip": "TIP", "openbookqa": "OpenBookQA", "rte": "RTE"}


def right(count: int, of: int = 80) -> list[int]:
    return [1] * count + [0] * (of - count)


def both(openbookqa: int, rte: int) -> dict[str, list[int]]:
    return {"openbookqa": right(openbookqa), "rte": right(rte)}


def sweep(moves: str, *values) -> SimpleNamespace:
    return SimpleNamespace(
        name="s", moves=moves, values=values, lines=("tip",), place=lambda line, v: f"{line}-s-{v}"
    )


CELLS = made_up.cells(
    {
        "base": both(40, 40),
        "single": both(60, 41),
        "tip-s-1": both(50, 30),
        "tip-s-2": both(40, 40),
        "tip-s-3": both(80, 80),
        "tip-s-mean": both(40, 38),
    }
)
SPARSITY = sweep("sparsity", 1, 2, 3, 4)  # 4 is not measured


def against(swept, reference: str) -> sweeps.Found:
    return sweeps.compared(CELLS, swept, SMOKE, TITLES, lambda *_: reference)


FOUND = against(SPARSITY, "tip-s-2")


def test_every_value_is_held_against_one_and_none_against_itself():
    values = {place: one and one.value for place, one in FOUND.items()}
    assert values == {("TIP", 1): 0.0, ("TIP", 3): 0.5, ("TIP", 4): None}


def test_what_is_evaluated_at_a_value_is_compared_there():
    """One adapter: its own task alone, 10 of 80 rows more. Two: both, of which the gains cancel."""
    swept = sweep("adapters", 1)
    assert against(swept, "base")["TIP", 1].value == 10 / 80
    assert against(sweep("sparsity", 1), "base")["TIP", 1].value == 0


def test_the_table_marks_what_is_told_apart():
    frame = sweeps.table(FOUND, "sparsity")
    assert list(frame.index) == ["1", "3", "4"] and frame.index.name == "sparsity"
    plain, marked, missing = frame["TIP"]
    assert plain.startswith("+0.0<br>[-") and missing == sweeps.EMPTY
    assert marked.startswith("**+50.0**<br>[+4")


def test_rules_of_weights_stand_at_their_place_under_the_readers_name():
    """1 / T of two adapters is 0.5, below 1 and 3."""
    frame = sweeps.table(against(sweep("weights", 3, 1, "mean"), "base"), "weight")
    assert list(frame.index) == ["1/T", "1", "3"]


def test_what_is_told_apart_is_counted_and_named():
    said = sweeps.told(FOUND, "2")
    assert said == "1 of 2 differ significantly from 2: TIP at 3 (better)."
    none = sweeps.told(against(sweep("sparsity", 1), "base"), "Base")
    assert none == "0 of 1 differ significantly from Base."


def test_the_ends_of_a_line():
    said = sweeps.ends(FOUND, "2")
    assert said.startswith("- TIP: highest at 3, +50.0 points [+4")
    assert said.endswith("(better); lowest at 2 itself.")
    lower = sweeps.ends(against(sweep("weights", "mean"), "tip-s-2"), "2")
    assert "highest at 2 itself; lowest at 1/T, -1.2 points" in lower


def test_one_value_of_all_lines():
    said = sweeps.at_value(FOUND, 3, "two")
    assert said.startswith("- TIP at 3 minus two: +50.0 points") and said.count("\n") == 0


@pytest.mark.parametrize(
    "words",
    [
        lambda found: sweeps.told(found, "2"),
        lambda found: sweeps.ends(found, "2"),
        lambda found: sweeps.at_value(found, 4, "2"),
    ],
)
def test_a_sweep_that_is_not_measured_is_called_so(words):
    assert words(against(sweep("sparsity", 4), "base")) == f"The sweep is {MISSING}."


def test_retention_is_of_the_tasks_that_were_learnt():
    """OpenBookQA gains 20 rows, RTE one, which is no sure gain. Of 20 the merge keeps 10."""
    kept = sweeps.retentions(CELLS, sweep("adapters", 1, 2), SMOKE, TITLES)["TIP"]
    assert {v: list(one.tasks) for v, one in kept.items()} == {1: ["openbookqa"], 2: ["openbookqa"]}
    assert [one.mean.value for one in kept.values()] == [0.5, 0.0]
    said = sweeps.retained_tasks(CELLS, SMOKE, TITLES)
    assert said.endswith("on 1 of 2 tasks: OpenBookQA.")


def test_retention_as_lines_and_as_a_table():
    kept = sweeps.retentions(CELLS, sweep("adapters", 1, 2), SMOKE, TITLES)
    x, (first, second) = sweeps.retention_lines(kept)["TIP"]
    assert x == [1, 2] and first[0] == 0.5 and second == (0, 0, 0)
    frame = sweeps.retention_table(kept)
    assert list(frame.loc[2]) == ["1", "0%<br>[0, 0]"]
    assert frame.loc[1, "TIP"].startswith("50%<br>[")


def test_retention_where_no_task_was_learnt():
    level = {place: cell for place, cell in CELLS.items() if place != ("single", "openbookqa")}
    kept = sweeps.retentions(level, sweep("adapters", 1, 2), SMOKE, TITLES)
    assert sweeps.retention_lines(kept) == {}
    assert list(sweeps.retention_table(kept).loc[2]) == ["0", sweeps.EMPTY]
    assert sweeps.retained_tasks(level, SMOKE, TITLES).endswith("on 0 of 2 tasks.")
