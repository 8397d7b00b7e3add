"""Stored cells and bundles: what they hold, and that a kill cannot damage them."""

import json
import os
import sys

import made_up
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean_stderr
from pydantic import ValidationError

from tipmini.errors import TipminiError
from tipmini_lab.results import store
from tipmini_lab.results.store import Bundle, Cell

VALUES = [1.0, 0.0, 0.25, 1.0, 1 / 3]
RTE, BOOLQ = made_up.cell("one", "rte", VALUES), made_up.cell("one", "boolq", [0, 1])
values = st.lists(st.sampled_from([0.0, 1.0, 0.5, 1 / 3]), min_size=1, max_size=40)


def bundle(*cells: Cell, name: str = "one", **changes) -> Bundle:
    made = {"name": name, "title": "One", "settings": {"a": 1}, "facts": {"norm": 2.5}}
    return Bundle(**made | changes, cells=list(cells))


# Numbers --------------------------------------------------------------------------------------


@given(values)
def test_mean_and_error_are_lm_evals(numbers):
    found = made_up.cell("tip", "coqa", numbers)
    assert found.count == len(numbers)
    assert found.mean == pytest.approx(sum(numbers) / len(numbers))
    assert found.stderr == pytest.approx(mean_stderr(numbers) if numbers[1:] else 0)


def test_cells_are_compared_row_by_row_in_one_format():
    """Which number format it is moves rows: a comparison would take that for the methods' doing."""
    one, other = made_up.cell("tip", "coqa", [1, 1, 0.5]), made_up.cell("tip", "coqa", [0, 0, 0.5])
    assert store.paired_p(one, other) == store.paired_p(other, one) == 0.5
    with pytest.raises(ValueError, match="shorter"):
        store.paired_p(one, made_up.cell("tip", "coqa", [1]))
    told = "coqa: tip in float32, tip in bfloat16: measure both with one --dtype"
    with pytest.raises(TipminiError, match=told):
        store.paired_p(one, other.model_copy(update={"dtype": "bfloat16"}))


def test_provenance():
    machine = store.machine()
    assert machine["cores"] == os.cpu_count() and machine["processor"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(store.versions()) == {"torch", "transformers", "peft", "lm_eval", "datasets"}


# Cells on disk --------------------------------------------------------------------------------


@given(values)
def test_saved_and_loaded_alike(tmp_path_factory, numbers):
    file = tmp_path_factory.getbasetemp() / "cells" / "tip-coqa.json"
    cell = made_up.cell("tip", "coqa", numbers)
    store.save(file, cell)
    assert store.load(file) == cell


def test_a_right_row_takes_one_letter(tmp_path):
    store.save(tmp_path / "c.json", RTE)
    assert '"values":[1,0,0.25,1,0.3333333333333333]' in (tmp_path / "c.json").read_text()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "one"}', '{"key": "k"}', None])
def test_another_format_is_as_nothing(tmp_path, text):
    if text is not None:
        store.file_of(tmp_path, "one").write_text(text)
    assert store.load(tmp_path / "one.json") is None
    assert store.read(tmp_path, "one") is None and store.cells(tmp_path) == {}
    assert store.cell_of(tmp_path, "one", "rte") is None and store.cells(tmp_path, ["one"]) == {}
    assert store.find([tmp_path, tmp_path / "none"], "k") is None


def test_a_cell_with_something_unknown_in_it_is_no_cell():
    with pytest.raises(ValidationError, match="colour"):
        Cell(**RTE.model_dump(), colour="red")


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


# The store of variants: one file a variant, cells added one by one ----------------------------


def test_what_is_kept_is_read_and_is_small_json_with_a_line_a_cell(tmp_path):
    store.keep(tmp_path, bundle(RTE, BOOLQ))
    assert store.read(tmp_path, "one").cells == [BOOLQ, RTE]
    assert store.cell_of(tmp_path, "one", "rte") == RTE
    assert store.cells(tmp_path) == {("one", "boolq"): BOOLQ, ("one", "rte"): RTE}
    assert store.facts(tmp_path) == {"one": {"norm": 2.5}}
    assert [b.title for b in store.bundles(tmp_path, ["one", "two"])] == ["One"]
    assert store.names(tmp_path) == ["one"]
    text = store.file_of(tmp_path, "one").read_text()
    assert json.loads(text)["cells"][1]["values"] == VALUES
    assert len(text.splitlines()) == 4 and '"values":[0,1]' in text


AGAIN = RTE.model_copy(update={"values": [1.0]})


@pytest.mark.parametrize(
    ("kept", "then", "found"),
    {
        "of other tasks stay": (bundle(RTE), bundle(BOOLQ), [BOOLQ, RTE]),
        "of the same task goes": (bundle(RTE, BOOLQ), bundle(AGAIN), [BOOLQ, AGAIN]),
        "of another merge go": (bundle(RTE), bundle(BOOLQ, settings={"a": 2}), [BOOLQ]),
        "of another title stay": (bundle(RTE), bundle(BOOLQ, title="Uno"), [BOOLQ, RTE]),
    }.values(),
)
def test_cells_that_were_kept_before(tmp_path, kept, then, found):
    for one in (kept, then):
        store.keep(tmp_path, one)
    assert store.read(tmp_path, "one").cells == found


def test_a_measurement_is_found_under_any_name(tmp_path):
    keyed = RTE.model_copy(update={"key": "abc"})
    store.keep(tmp_path, bundle(BOOLQ, name="other"))
    store.keep(tmp_path, bundle(keyed))
    single = BOOLQ.model_copy(update={"key": "bcd"})
    store.save(tmp_path / "single.json", single)
    (tmp_path / "damaged.json").write_bytes(b"\xff\xfe abc")
    assert store.find([tmp_path / "none", tmp_path], "abc") == keyed
    assert store.find([tmp_path], "bcd") == single and store.find([tmp_path], "abcd") is None
