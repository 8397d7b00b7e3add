"""What knowing nothing gets: by hand on made-up tasks."""

from types import SimpleNamespace

import pytest

from tipmini_lab.book import method_tables


def task(kind: str, rows: list[tuple[int, int]]):
    """(choices, right place) of every row; as many choices are the same ones."""
    return SimpleNamespace(
        OUTPUT_TYPE=kind,
        eval_docs=[{"choices": ["x"] * n, "right": place} for n, place in rows],
        doc_to_choice=lambda doc: doc["choices"],
        doc_to_target=lambda doc: doc["right"],
        config=SimpleNamespace(task="rte"),
    )


CHOOSING = task("multiple_choice", [(2, 0), (4, 1), (4, 1), (5, 0), (4, 1)])


def test_by_chance_and_always_the_same():
    assert method_tables.by_chance(CHOOSING) == pytest.approx((0.5 + 0.25 + 0.25 + 0.2 + 0.25) / 5)
    assert method_tables.same_answer(CHOOSING) is None  # every row has its own choices
    same = task("multiple_choice", [(2, 0), (2, 1), (2, 1), (2, 0), (2, 1)])
    assert list(method_tables.guessing_table([same]).loc["RTE"]) == ["0.500", "0.600"]
    assert list(method_tables.guessing_table([CHOOSING]).loc["RTE"]) == ["0.290", "–"]


def test_a_written_answer_is_not_guessed():
    written = task("generate_until", [(1, 0)])
    assert (method_tables.by_chance(written), method_tables.same_answer(written)) == (None, None)
