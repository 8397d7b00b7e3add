"""What the chapter shows of results/serving.json: ratios, tables, the figure."""

import pytest
from made_up import SIZES
from pydantic import ValidationError

from bench import serving as measured
from tipmini.errors import TipminiError
from tipmini_lab.book import serving, tables

WAYS = ["base", "mixed 1", "mixed 2", "one adapter", "weights"]


def stored(*places: tuple[str, str, int], drift: float = 1, **values: object) -> serving.Stored:
    """Two adapters; every way's prompt takes 1, 2, 3 ... times the base's 1 and 2 seconds.

    values: other ones of the points at the places (way, step, batch). drift: of the second round.
    """
    points = [
        {
            "way": way,
            "adapters": measured.adapters_of(way),
            "batch": batch,
            "step": step,
            "seconds": [n * scale, n * scale * (2 if n == 1 else 3) * drift],
            "operations": 100 + n * (n > 1),
            "bytes": 50,
            "memory": batch * 1e6,
        }
        | (values if (way, step, batch) in places else {})
        for batch in (1, 2)
        for step, scale in (("prompt", 1.0), ("token", 0.5))
        for n, way in enumerate(WAYS, start=1)
        if measured.adapters_of(way) <= batch
    ]
    speeds = {"matrix_product": 200.0, "bandwidth": 200.0}
    return serving.read().model_copy(update={"points": points, "sizes": SIZES} | speeds)


FOUND = stored()


def test_ratios_compare_times_of_the_same_round():
    """Rounds of 1 and 2 s beside rounds of 3 and 9 s: ratios 3 and 4.5."""
    assert serving.relative(FOUND, "prompt", 2)["mixed 2"] == (3.75, 3.0, 4.5)
    assert serving.relative(FOUND, "token", 2)["base"] == (1, 1, 1)
    assert list(serving.relative(FOUND, "prompt", 1)) == [way for way in WAYS if way != "mixed 2"]


def test_the_slope_is_what_one_more_adapter_adds_however_the_machine_drifts():
    """Ratios 2 and 3 with one and two adapters in the first round, 3 and 4.5 in the second."""
    assert serving.slope(FOUND, "prompt", 2) == pytest.approx((1.25, 1.0, 1.5))
    drifted = serving.slope(stored(drift=10), "token", 2)
    assert drifted == pytest.approx(serving.slope(FOUND, "token", 2))


@pytest.mark.parametrize(
    ("weights", "slower"), [([1, 2], True), ([2.9, 8.9], True), ([3, 1], False), ([1, 10], False)]
)
def test_slower_is_slower_than_one_program_twice_in_every_round(weights, slower):
    """Two adapters took 3 and 9 s, the base model 1 and 2 s."""
    found = stored(("weights", "prompt", 2), seconds=weights)
    assert found.frame["slower"]["prompt", 2, "mixed 2"] == slower


def test_the_memory_table_has_what_was_measured():
    places = ("mixed 2", "prompt", 2), ("mixed 1", "prompt", 1)
    table = serving.memory_table(stored(*places, memory=None))
    assert "2 unmerged adapters" not in table.index
    assert list(table.loc["1 unmerged adapter"]) == ["0.00", "-", "2"]
    assert list(table.loc["base model", ["batch 1", "batch 2"]]) == ["1", "2"]


def test_the_table_has_every_way_and_says_where_a_batch_is_too_small():
    table = serving.table(FOUND, (1, 2))
    assert list(table.index) == [
        *("base model", "1 unmerged adapter", "2 unmerged adapters"),
        *("one merged adapter", "merged into the weights"),
    ]
    row = table.loc["2 unmerged adapters"]
    assert row["prompt, batch 1"] == "-"
    assert row["prompt, batch 2"] == "6000 ms<br>3.75<br>(3.00–4.50)"
    assert row["matrix products"] == "31" and row["operations, token"] == "+3.00%"
    assert row["adapter weights, MB"] == f"{2 * 448 * 4 / 1e6:.2f}"


def test_the_floor_is_what_a_step_needs_at_least():
    """100 operations at 200 a second: half a second, of a median of 1.5 s."""
    point = FOUND.frame.loc["prompt", 2, "base"]
    assert (point["floor"], point["taken"]) == (0.5, 1.5)


def test_the_figure_marks_every_ratio_and_all_memory():
    figure = serving.figure(FOUND)
    one, two, memory = figure.get_axes()
    assert [a.get_title() for a in (one, two)] == ["batch 1", "batch 2"]
    # Of a panel: the dashed line at 1, then for each step one line of markers.
    assert [len(a.get_lines()[1].get_ydata()) for a in (one, two)] == [4, 5]
    assert two.get_lines()[1].get_ydata().tolist() == [1.0, 2.5, 3.75, 5.0, 6.25]
    assert [label.get_text() for label in two.get_xticklabels()] == ["0", "1", "2", "A", "W"]
    assert [line.get_ydata()[-1] for line in memory.get_lines()] == [2.0] * 4


def test_what_is_stored_is_whole_and_can_be_shown(tmp_path, monkeypatch):
    found = serving.read()
    assert tuple(serving.batches(found)) == measured.BATCHES
    for batch in measured.BATCHES:
        for step in serving.STEPS:
            own = found.seconds.loc[step, batch].dropna(axis="columns")
            assert list(own) == [way for way in found.seconds if measured.adapters_of(way) <= batch]
            assert len(own) == found.rounds
    assert found.machine["processor"] in serving.report(found)
    assert tables.svg(serving.figure(found))
    monkeypatch.setattr(serving, "STORED", tmp_path / "serving.json")
    with pytest.raises(TipminiError, match=r"run python -m bench serving"):
        serving.read()
    with pytest.raises(ValidationError):
        serving.Stored(**found.model_dump(), other=1)
