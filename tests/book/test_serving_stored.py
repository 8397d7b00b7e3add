"""What the chapter shows of results/serving.json: ratios, tables, words, the figure."""

import json

import pytest
from made_up import SIZES

from bench import serving as measured
from tipmini.errors import TipminiError
from tipmini_lab.book import serving, tables


def made_up() -> dict:
    """Two adapters; every way's prompt takes 1, 2, 3 ... times the base's 1 and 2 seconds."""
    ways = ["base", "mixed 1", "mixed 2", "one adapter", "weights"]
    points = [
        {
            "way": way,
            "adapters": measured.adapters_of(way),
            "batch": batch,
            "step": step,
            "seconds": [n * scale, n * scale * (2 if n == 1 else 3)],
            "operations": 100 + n * (n > 1),
            "bytes": 50,
            "memory": batch * 1e6,
        }
        for batch in (1, 2)
        for step, scale in (("prompt", 1.0), ("token", 0.5))
        for n, way in enumerate(ways, start=1)
        if measured.adapters_of(way) <= batch
    ]
    return {
        "points": points,
        "sizes": SIZES.__dict__,
        "matrix_product": 200.0,
        "bandwidth": 200.0,
        "command": "measure",
        "date": "2026-01-01",
        "machine": {"processor": "P", "cores": 2},
        "threads": 2,
        "versions": dict.fromkeys(("torch", "transformers", "peft"), "1"),
        "dtype": "float32",
        "length": 4,
        "rounds": 2,
    }


FOUND = made_up()


def test_ratios_compare_times_of_the_same_round():
    """Rounds of 1 and 2 s beside rounds of 3 and 9 s: ratios 3 and 4.5."""
    assert serving.relative(FOUND, "prompt", 2)["mixed 2"] == (3.75, 3.0, 4.5)
    assert serving.relative(FOUND, "token", 2)["base"] == (1, 1, 1)


def test_the_slope_is_what_one_more_adapter_adds():
    """Ratios 2 and 3 with one and two adapters in the first round, 3 and 4.5 in the second."""
    assert serving.slope(FOUND, "prompt", 2) == pytest.approx((1.25, 1.0, 1.5))


def test_a_drifting_machine_does_not_change_the_slope():
    """Every way takes ten times as long in the second round."""
    found = made_up()
    for point in found["points"]:
        point["seconds"][1] *= 10
    assert serving.slope(found, "token", 2) == serving.slope(FOUND, "token", 2)


@pytest.mark.parametrize(
    ("weights", "slower"), [([1, 2], True), ([2.9, 8.9], True), ([3, 1], False), ([1, 10], False)]
)
def test_slower_is_slower_than_one_program_twice_in_every_round(weights, slower):
    """Two adapters took 3 and 9 s, the base model 1 and 2 s."""
    found = made_up()
    serving.points(found, "prompt", 2)["weights"]["seconds"] = weights
    assert serving.slower(found, "prompt", 2, "mixed 2") is slower
    said = serving.summary(found, 2).split("; ")[1]
    assert ("slower than both" in said) is slower
    assert ("not significant" in said) is not slower


def test_the_memory_table_has_what_was_measured():
    found = made_up()
    del serving.points(found, "prompt", 2)["mixed 2"]["memory"]
    serving.points(found, "prompt", 1)["mixed 1"]["memory"] = None
    table = serving.memory_table(found)
    assert "2 unmerged adapters" not in table.index
    assert list(table.loc["1 unmerged adapter"]) == ["0.00", "-", "2"]
    assert sorted(table.loc["base model", ["batch 1", "batch 2"]]) == ["1", "2"]


def test_one_programs_memory_in_two_processes_is_compared():
    found = made_up()
    serving.points(found, "prompt", 2)["weights"]["memory"] = 7.4e6
    assert "rose by 2 MB" in (said := serving.twice(found, 2))
    assert "by 7 MB. These are one program, so a difference of 5 MB tells nothing" in said
    serving.points(found, "prompt", 2)["weights"]["memory"] = None
    assert serving.twice(found, 2) == ""


def test_the_tables_notes_are_computed():
    """448 elements of an adapter beside 3840 of the layers; the base model's 1 and 2 s."""
    assert "14 linear layers alone, an adapter's are +11.67%" in serving.counted(FOUND)
    said = serving.drift(FOUND, 2)
    assert "own 2 passes over the prompt at batch 2 took 1000 to 2000 ms" in said


def test_the_table_has_every_way_and_says_where_a_batch_is_too_small():
    table = serving.table(FOUND, (1, 2))
    assert list(table.index) == [
        "base model",
        "1 unmerged adapter",
        "2 unmerged adapters",
        "one merged adapter",
        "merged into the weights",
    ]
    assert table.loc["2 unmerged adapters", "prompt, batch 1"] == "-"
    assert table.loc["2 unmerged adapters", "prompt, batch 2"].startswith("6000 ms<br>3.75 (")
    assert table.loc["2 unmerged adapters", "matrix products"] == "31"
    assert table.loc["2 unmerged adapters", "adapter weights, MB"] == f"{2 * 448 * 4 / 1e6:.2f}"
    assert table.loc["2 unmerged adapters", "operations, token"] == "+3.00%"


def test_the_floor_table_divides_by_what_a_step_needs_at_least():
    """100 operations at 200 a second: half a second, of a median of 1.5 s."""
    table = serving.floor_table(FOUND)
    assert table.loc["prompt, batch 2", "base model"] == "3.0 × 500.0 ms"
    assert table.loc["prompt, batch 1", "2 unmerged adapters"] == "-"


def test_the_words_carry_the_ratios():
    said = serving.summary(FOUND, 2)
    assert "3.75 with 2 unmerged adapters" in said
    assert "Each further adapter adds 125.0% of the base model's time" in said
    assert "750 ms that is 937.5 ms (750.0 ... 1125.0 over the rounds)" in said


def test_the_figure_marks_every_ratio_and_all_memory():
    figure = serving.figure(FOUND)
    one, two, memory = figure.get_axes()
    assert [a.get_title() for a in (one, two)] == ["batch 1", "batch 2"]
    # Of a panel: the dashed line at 1, then for each step one line of markers.
    assert [len(a.get_lines()[1].get_ydata()) for a in (one, two)] == [4, 5]
    assert two.get_lines()[1].get_ydata().tolist() == [1.0, 2.5, 3.75, 5.0, 6.25]
    assert [label.get_text() for label in two.get_xticklabels()] == ["0", "1", "2", "A", "W"]
    assert [line.get_ydata()[-1] for line in memory.get_lines()] == [2.0] * 4


def test_a_missing_file_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "STORED", tmp_path / "serving.json")
    with pytest.raises(TipminiError, match=r"run python -m bench serving"):
        serving.read()


def test_what_is_stored_is_whole_and_can_be_shown():
    found = serving.read()
    assert tuple(serving.batches(found)) == measured.BATCHES
    for batch in measured.BATCHES:
        for step in serving.STEPS:
            ways = serving.points(found, step, batch)
            assert {w for w in serving.ways(found) if measured.fits(w, batch)} == set(ways)
            assert all(len(p["seconds"]) == found["rounds"] for p in ways.values())
    assert json.dumps(found["machine"]["processor"])[1:-1] in serving.report(found)
    assert tables.svg(serving.figure(found))
