"""Stored cells: what they hold, what their key depends on, and that a kill cannot damage them."""

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr
from pydantic import ValidationError
from scipy.stats import binom

from tipmini.errors import TipminiError
from tipmini_lab.results import store
from tipmini_lab.results.store import Cell

VALUES = [1.0, 0.0, 0.25, 1.0, 1 / 3]
PROVENANCE = {
    "date": store.today(),
    "machine": store.machine(),
    "versions": store.versions(),
}
values = st.lists(st.sampled_from([0.0, 1.0, 0.5, 1 / 3]), min_size=2, max_size=40)


def cell(numbers: list[float], **fields) -> Cell:
    given = {
        "key": "k",
        "inputs": {"model": "m", "adapter": None},
        "code": {"evaluation": "e"},
        "profile": "mini",
        "method": "tip",
        "task": "coqa",
        "metric": "em",
        "dtype": "float32",
        "values": numbers,
        "seconds": 1.5,
    }
    return Cell(**given | PROVENANCE | fields)


# Numbers --------------------------------------------------------------------------------------


@given(values)
def test_mean_and_error_are_lm_evals(numbers):
    found = cell(numbers)
    assert found.count == len(numbers)
    assert found.mean == pytest.approx(sum(numbers) / len(numbers))
    assert found.correct == pytest.approx(sum(numbers))
    assert found.stderr == pytest.approx(mean_stderr(numbers))


def test_one_row_has_no_spread():
    assert cell([1.0]).stderr == 0.0


def slow_mcnemar(first: list[float], second: list[float]) -> float:
    """Exact: twice the smaller tail of a fair coin thrown once for each row that differs."""
    wins = sum(a > b for a, b in zip(first, second, strict=True))
    losses = sum(a < b for a, b in zip(first, second, strict=True))
    return min(1.0, 2 * binom.cdf(min(wins, losses), wins + losses, 0.5))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_paired_p_is_mcnemars(pairs):
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    expected = slow_mcnemar(first, second) if first != second else 1.0
    assert store.paired_p(cell(first), cell(second)) == pytest.approx(expected)
    assert store.paired_p(cell(second), cell(first)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([1, 1, 0], [1, 1, 0], 1.0),  # nothing differs
        ([1] * 5, [0] * 5, 2 / 2**5),  # five heads of five
        ([1] * 8 + [0], [0] * 8 + [1], 2 * (1 + 9) / 2**9),
        ([0.5, 0.2], [0.4, 0.1], 0.5),  # by how much does not count
    ],
)
def test_paired_p_by_hand(first, second, p):
    assert store.paired_p(cell(first), cell(second)) == pytest.approx(p)


def test_formats_are_not_compared():
    """Which number format it is moves rows: a comparison would take that for the methods' doing."""
    one, other = cell([1.0, 0.0]), cell([1.0, 0.0], dtype="bfloat16", method="linear")
    told = "coqa: tip in float32, linear in bfloat16: measure both with one --dtype"
    with pytest.raises(TipminiError, match=told):
        store.paired_p(one, other)


def test_paired_p_wants_the_same_rows():
    with pytest.raises(ValueError, match="shorter"):
        store.paired_p(cell([1.0, 0.0]), cell([1.0]))


# On disk --------------------------------------------------------------------------------------


@given(values)
def test_saved_and_loaded_alike(tmp_path_factory, numbers):
    file = tmp_path_factory.getbasetemp() / "cells" / "tip-coqa.json"
    store.save(file, cell(numbers))
    assert store.load(file) == cell(numbers)


def test_a_cell_of_another_format_counts_as_none(tmp_path):
    (tmp_path / "cell.json").write_text('{"key": "k", "values": [1, 0]}')
    assert store.load(tmp_path / "cell.json") is None


def test_a_right_row_takes_one_letter(tmp_path):
    store.save(tmp_path / "c.json", cell(VALUES))
    assert '"values":[1,0,0.25,1,0.3333333333333333]' in (tmp_path / "c.json").read_text()


def test_no_cell(tmp_path):
    assert store.load(tmp_path / "nothing.json") is None


def test_a_cell_with_something_unknown_in_it_is_no_cell():
    with pytest.raises(ValidationError, match="colour"):
        cell(VALUES, colour="red")


def test_a_kill_leaves_the_old(tmp_path, monkeypatch):
    """Before the rename the new text stands under another name only."""
    file = tmp_path / "c.json"
    store.write(file, "old")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write(file, "new")
    assert file.read_text() == "old"
    store.write(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_provenance():
    machine = store.machine()
    assert machine["cores"] == os.cpu_count() and machine["processor"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(store.versions()) == {"torch", "transformers", "peft", "lm_eval", "datasets"}
