"""Answers in a word: each word where it belongs, and what it stands on."""

import made_up
import pytest
from made_up import CELLS, SMOKE, TITLES, right

from tipmini_lab.book import method_tables
from tipmini_lab.results.statistics import MISSING, Pair


def asked(one: str, others: list[str]) -> str:
    pairs = [Pair(one, other, SMOKE.tasks) for other in others]
    return method_tables.answer(CELLS, "Is it?", pairs, TITLES)


@pytest.mark.parametrize(
    ("one", "others", "word"),
    [
        ("good", ["tip", "base"], "**Yes, by OpenBookQA alone.**"),
        ("tip", ["tip", "good"], "**No, by OpenBookQA alone.**"),
        ("good", ["tip", "good"], "**In part, by OpenBookQA alone.**"),
        ("base", ["tip"], "**No, the contrary, by OpenBookQA alone.**"),
        ("tip", ["tip"], "**Not significant.**"),
    ],
)
def test_an_answer_is_a_word_and_its_numbers(one, others, word):
    text = asked(one, others)
    assert text.startswith(f"*Is it?* {word} {TITLES[one]} minus {TITLES[others[0]]} ")
    assert text.count("(without OpenBookQA +0.0 [+0.0, +0.0])") == len(others)


def test_what_two_tasks_show_is_not_one_tasks_doing():
    rows = {"a": right(40), "b": right(10)}
    cells = made_up.cells({n: {"openbookqa": r, "rte": r} for n, r in rows.items()})
    text = method_tables.answer(cells, "Is it?", [Pair("a", "b", SMOKE.tasks)])
    assert text.startswith("*Is it?* **Yes.** a minus b +75.0 ")


def test_an_answer_names_what_is_missing():
    text = asked("good", ["tip", "ties"])
    assert "**So far: Yes, by" in text and text.endswith(f" Good minus TIES: {MISSING}.")
    nothing = method_tables.answer({}, "Is it?", [Pair("good", "tip", SMOKE.tasks)])
    assert nothing == f"*Is it?* {MISSING}."


@pytest.mark.parametrize(("of_tip", "end"), [(30, "no sign of that"), (21, "one would see")])
def test_what_dropping_the_cross_terms_speaks_for(of_tip, end):
    rows = {"tip": 20, "tip-cat": of_tip, "linear": 20, "cat": 25}
    cells = made_up.cells({name: {"rte": right(count)} for name, count in rows.items()})
    text = method_tables.thinned(cells, ["rte"])
    assert f"TIP {100 * (of_tip - 20) / 40:+.1f} points and Linear +12.5 (" in text
    assert text.endswith(f"{end}.")
    assert method_tables.thinned({}, ["rte"]).endswith(f"{MISSING}.")
