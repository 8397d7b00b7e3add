"""The store of variants: one file a variant, cells added one by one."""

import json

import pytest
from made_up import cell

from tipmini_lab.results import store
from tipmini_lab.results.store import Bundle


def bundle(*cells, name="one", **changes) -> Bundle:
    made = {"name": name, "title": "One", "settings": {"a": 1}, "facts": {"norm": 2.5}}
    return Bundle(**made | changes, cells=list(cells))


RTE, BOOLQ = cell("one", "rte", [1, 0, 0.5]), cell("one", "boolq", [0, 1])


def test_what_is_kept_is_read(tmp_path):
    store.keep(tmp_path, bundle(RTE, BOOLQ))
    assert store.read(tmp_path, "one").cells == [BOOLQ, RTE]
    assert store.cell_of(tmp_path, "one", "rte") == RTE
    assert store.cells(tmp_path) == {("one", "boolq"): BOOLQ, ("one", "rte"): RTE}
    assert store.facts(tmp_path) == {"one": {"norm": 2.5}}
    assert store.names(tmp_path) == ["one"]


def test_cells_of_other_tasks_stay(tmp_path):
    for one in (RTE, BOOLQ):
        store.keep(tmp_path, bundle(one))
    again = RTE.model_copy(update={"values": [1.0]})
    store.keep(tmp_path, bundle(again))
    assert store.read(tmp_path, "one").cells == [BOOLQ, again]


def test_cells_of_another_merge_go(tmp_path):
    store.keep(tmp_path, bundle(RTE))
    store.keep(tmp_path, bundle(BOOLQ, settings={"a": 2}))
    assert store.read(tmp_path, "one").cells == [BOOLQ]


def test_another_title_alone_keeps_them(tmp_path):
    store.keep(tmp_path, bundle(RTE))
    store.keep(tmp_path, bundle(BOOLQ, title="Uno"))
    assert [c.task for c in store.read(tmp_path, "one").cells] == ["boolq", "rte"]


def test_the_file_is_small_json_with_a_line_a_cell(tmp_path):
    store.keep(tmp_path, bundle(RTE, BOOLQ))
    text = store.file_of(tmp_path, "one").read_text()
    assert json.loads(text)["cells"][1]["values"] == [1, 0, 0.5]
    assert len(text.splitlines()) == 4 and '"values":[0,1]' in text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "one"}'])
def test_another_format_is_as_nothing(tmp_path, text):
    store.file_of(tmp_path, "one").write_text(text)
    assert store.read(tmp_path, "one") is None and store.cells(tmp_path) == {}
    assert store.cell_of(tmp_path, "one", "rte") is None


def test_nothing_stored(tmp_path):
    assert store.cells(tmp_path / "none") == {} and store.names(tmp_path / "none") == []
    assert store.cells(tmp_path, ["one"]) == {}


def test_a_measurement_is_found_under_any_name(tmp_path):
    keyed = RTE.model_copy(update={"key": "abc"})
    store.keep(tmp_path, bundle(BOOLQ, name="other"))
    store.keep(tmp_path, bundle(keyed))
    assert store.find([tmp_path / "none", tmp_path], "abc") == keyed
    assert store.find([tmp_path], "abcd") is None
