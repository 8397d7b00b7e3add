"""TIP's claims: arithmetic on a made-up table, and what the printed and the stored numbers say."""

from dataclasses import replace

import pytest
import torch
from claimed import found

from tipmini_lab.book import tables
from tipmini_lab.book.claims import Verdict, checks_tip
from tipmini_lab.book.claims.checks import Evidence
from tipmini_lab.experiments.profiles import load_profile

TEXTS = {"shown": "-", "words": "-"}


@pytest.mark.parametrize(
    ("first", "second", "rows", "z"),
    [
        (154 / 277, 148 / 277, 277, 0.512),  # by hand: 0.02166 / sqrt(2 * 0.5451 * 0.4549 / 277)
        (154 / 277, 149 / 277, 277, 0.427),
        (0.6, 0.4, 50, 2.0),  # 0.2 / sqrt(2 * 0.25 / 50)
        (0.5, 0.5, 100, 0.0),
        (0.0, 0.0, 100, 0.0),
        (1.0, 1.0, 100, 0.0),
    ],
)
def test_z_of_two_proportions(first, second, rows, z):
    assert checks_tip.z_score(first, second, rows) == pytest.approx(z, abs=1e-3)
    assert checks_tip.z_score(second, first, rows) == pytest.approx(-z, abs=1e-3)


@pytest.mark.parametrize(
    ("share", "rows", "count"),
    [
        *((0.4625, 1172, 542), (0.7774, 3270, 2542), (0.7600, 10042, 7632), (0.4420, 500, 221)),
        *((0.6282, 277, 174), (0.7905, 1838, 1453), (0.5560, 277, 154), (0.6388, 500, None)),
        (0.6290, 277, None),  # 174 rows print as 0.6282, 175 as 0.6318
    ],
)
def test_whole_counts(share, rows, count):
    assert checks_tip.whole_count(share, rows) == count


@pytest.mark.parametrize(("rows", "share"), [(1, 2 / 10001), (277, 278 / 10001), (10042, 1.0)])
def test_how_many_numbers_are_whole_counts_by_accident(rows, share):
    assert checks_tip.by_accident(rows) == pytest.approx(share, abs=1e-4)


def made_up(**tasks: dict[str, float]) -> Evidence:
    """Evidence of a made-up table over 1,000 rows a task, and no cell."""
    splits = {task: {"split": "test", "rows": 1000, "whole": True} for task in tasks}
    return Evidence({"table1": {"tasks": tasks}}, {"splits": splits}, load_profile("full"))


MADE_UP = made_up(
    rte={"single": 0.5, "linear": 0.2, "dare": 0.4, "tip": 0.6},
    piqa={"single": 0.6, "linear": 0.4, "dare": 0.4, "tip": 0.6},
)
CLOSE = made_up(rte={"single": 0.50, "linear": 0.50, "dare": 0.50, "tip": 0.51})


def test_tests_of_a_table():
    tests = checks_tip.tests(MADE_UP)
    assert len(tests) == 2 * len(checks_tip.COMPARED) * 2
    told, turned = tests.loc["tip", "linear", "piqa"], tests.loc["linear", "tip", "piqa"]
    assert told.difference == 0.2 == -turned.difference and told.clear and turned.clear
    assert told.z == pytest.approx(0.2 / (2 * 0.25 / 1000) ** 0.5) == -turned.z
    assert checks_tip.standard_error(0.5, 100) == 0.05
    shown = found(MADE_UP, "mean_above", "in_print", arguments=dict(higher="tip", lower="single"))
    error = (3 * 0.24 / 1000 + 0.25 / 1000) ** 0.5 / 2
    assert shown.recomputed == f"TIP − Single: +5.00 ± {100 * error:.2f} points"


GAINS = [
    ("piqa", 50.0, Verdict.HOLDS),  # (0.6 - 0.4) / 0.4
    ("piqa", 20.0, Verdict.IN_POINTS),
    ("piqa", 20.04, Verdict.IN_POINTS),
    ("piqa", 21.0, Verdict.DOES_NOT_HOLD),
    ("mean", 20.0, Verdict.IN_POINTS),
    ("rte", 40.0, Verdict.IN_POINTS),  # against linear; 20 against dare
]


@pytest.mark.parametrize(("task", "printed", "verdict"), GAINS)
def test_a_gain_is_relative_or_in_points(task, printed, verdict):
    asked = {"of": "tip", "against": ["dare", "linear"], "task": task}
    told = found(MADE_UP, "gain", "in_print", printed, arguments=asked, tolerance=0.05)
    assert told.verdict == verdict


@pytest.mark.parametrize(
    ("evidence", "higher", "lower", "options", "verdict"),
    [
        (MADE_UP, "tip", "linear", {}, Verdict.HOLDS),
        (MADE_UP, "tip", "single", {}, Verdict.IN_PART),  # equal on piqa
        (MADE_UP, "tip", "single", {"or_equal": True}, Verdict.HOLDS),
        (MADE_UP, "tip", "single", {"some": True}, Verdict.HOLDS),
        (MADE_UP, "tip", "single", {"tasks": ["piqa"]}, Verdict.WITHIN_ERROR),  # equal
        (MADE_UP, "linear", "tip", {}, Verdict.DOES_NOT_HOLD),
        (CLOSE, "tip", "linear", {}, Verdict.WITHIN_ERROR),
        (CLOSE, "linear", "tip", {}, Verdict.WITHIN_ERROR),  # refuting asks as confirming does
        (MADE_UP, "single", "tip", {"tasks": ["rte"]}, Verdict.DOES_NOT_HOLD),
    ],
)
def test_printed_columns_one_above_the_other(evidence, higher, lower, options, verdict):
    asked = {"higher": [higher], "lower": [lower]} | options
    assert found(evidence, "above", "in_print", arguments=asked).verdict == verdict


@pytest.mark.parametrize(
    ("evidence", "check", "asked", "verdict"),
    [
        (CLOSE, "mean_above", {"higher": "tip", "lower": "dare"}, Verdict.WITHIN_ERROR),
        (CLOSE, "mean_above", {"higher": "dare", "lower": "tip"}, Verdict.WITHIN_ERROR),
        (MADE_UP, "mean_above", {"higher": "single", "lower": "tip"}, Verdict.DOES_NOT_HOLD),
        (MADE_UP, "mean_above", {"higher": "tip", "lower": "single"}, Verdict.HOLDS),
        (MADE_UP, "largest_gains", {"tasks": ["rte"]}, Verdict.HOLDS),
        (MADE_UP, "largest_gains", {"tasks": ["piqa"]}, Verdict.DOES_NOT_HOLD),
    ],
)
def test_means_and_largest_gains(evidence, check, asked, verdict):
    own = {"of": "tip", "baseline": "linear"} if check == "largest_gains" else {}
    assert found(evidence, check, "in_print", arguments=own | asked).verdict == verdict


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("tip-mean-gain", "17.61 points, relative 37.3%"),
        ("tip-coqa-gain-abstract", "43.8 are the points against Linear, cut off"),
        ("tip-coqa-gain-text", "43.9 are the points against DARE, rounded"),
        ("tip-hellaswag-gain-abstract", "31.2 are the points against DARE, cut off"),
        ("tip-hellaswag-gain-text", "31.3 are the points against DARE, rounded"),
        ("tip-rte-above-merges", "z 0.51"),
        ("tip-no-information-lost", "-7.22 points"),
        ("tip-consistently-higher", "14 of 14"),
        ("tip-ensemble-effect", "+0.52"),
        ("tip-single-column", "7 of 7"),
        ("tip-official-splits", "24 of 24"),
    ],
)
def test_what_the_printed_cells_say(audited, claim, words):
    told = audited[claim].in_print
    assert words in f"{told.recomputed} {told.words}"


def test_a_record_that_differs_in_the_last_digit_is_not_identical(evidence):
    base = evidence.records["base_model"]
    source = next(name for name, row in base.items() if "rte" in row)
    changed = base | {source: base[source] | {"rte": {"acc": 0.6283}}}
    other = replace(evidence, records=evidence.records | {"base_model": changed})
    told, before = (checks_tip.numbers_of_the_table(known) for known in (other, evidence))
    assert (told["same"], told["tasks"], told["identical"]) == (6, 7, False)
    assert (before["same"], before["identical"], told["other"]) == (7, True, before["other"] + 1)


def test_every_record_that_was_read_is_shown(evidence):
    """Whole rows, those that differ too; what equals the printed number is bold."""
    frame = checks_tip.records(evidence)
    assert list(frame.index) == ["Single, printed", *evidence.records["base_model"]]
    flat = frame.loc["FlatQuant (arXiv 2410.09426), Table 2"]
    assert flat["ARC-Challenge"] == "0.4616 accuracy" and flat["HellaSwag"] == "0.7598 accuracy"
    assert flat["PIQA"] == "**0.7905** accuracy" and flat["RTE"] == "-"
    bold = sum(text.count("**") for text in frame.to_numpy().ravel()) // 2
    told = checks_tip.numbers_of_the_table(evidence)
    assert bold == told["public"] - told["other"] >= 7 and told["sources"] == len(frame) - 1


def test_the_printed_table_of_means(evidence):
    frame = checks_tip.means(evidence)
    assert list(frame["mean"]) == [tables.printed().loc["mean", name] for name in frame.index]
    assert list(frame.loc["DARE"]) == ["0.4719", "+17.61", "+37.3%"]


# Layers and serving -------------------------------------------------------------------------------


@pytest.fixture
def lines(monkeypatch):
    """Importances in place of those of the stored adapters."""
    made = {}
    monkeypatch.setattr(checks_tip, "stored_adapters", lambda evidence: made)
    return lambda **given: made.update({t: (torch.tensor(own), {8}) for t, own in given.items()})


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"rte": [3.0, 2, 1], "piqa": [1, 2, 3.0], "boolq": [3.0, 2, 1]}, Verdict.HOLDS),
        ({"rte": [3.0, 2, 1], "piqa": [3, 2, 1.0], "boolq": [1.0, 2, 3]}, Verdict.NOT_SUPPORTED),
        ({"rte": [3.0, 2, 1], "piqa": [3, 2, 1.0], "boolq": [6.0, 2, 1]}, Verdict.NOT_SUPPORTED),
        ({"rte": [3.0, 2, 1]}, Verdict.NOT_RUN),
    ],
)
def test_layers_differ_where_their_orders_do(lines, given, verdict):
    lines(**given)
    asked = {"arguments": {"of": ["rte", "piqa"], "unlike": 0.1}}
    assert found(MADE_UP, "rank_correlation", **asked, **TEXTS).verdict == verdict


def test_shifts_and_importances_of_every_adapter(lines):
    asked = {"arguments": {"base": 0.7}, "equals": 0, **TEXTS}
    for check in ({"check": "adapters", **TEXTS}, {"check": "shifts", **asked}):
        assert found(MADE_UP, **check).verdict == Verdict.NOT_RUN
    lines(rte=[1.0, 3.0, 2.0], piqa=[0.0, 0.0, 1.0])
    assert found(MADE_UP, "shifts", **asked, tolerance=1e-6).verdict == Verdict.HOLDS
    told = "{outside} of {layers} layers, {leaving} of {adapters} adapters: {first}"
    told = found(MADE_UP, "shifts", **asked | {"number": "outside", "shown": told})
    assert told.verdict == Verdict.NOT_SUPPORTED
    assert told.recomputed == "2 of 6 layers, 2 of 2 adapters: 0.2, 1.2, 0.7"
    assert found(MADE_UP, "adapters", **TEXTS).verdict == Verdict.SAME_SETTING
    lines(coqa=[1.0, 2.0])
    assert found(MADE_UP, "adapters", **TEXTS).verdict == Verdict.OTHER_SETTING


@pytest.mark.parametrize(
    ("few", "many", "merged", "slower", "cheaper"),
    [
        (1.2, 1.5, 1.1, True, True),
        (1.2, 1.2, 1.1, False, True),  # no longer with more
        (0.9, 1.5, 1.1, False, True),  # one is not slower than the base
        (1.2, 1.5, 1.6, True, False),
    ],
)
def test_serving_costs_where_every_round_is_slower(few, many, merged, slower, cheaper, monkeypatch):
    """Two rounds, in both of which a way took so many times the base model's second."""
    stored = checks_tip.serving.read()
    each = {"base": 1, "mixed 1": few, "one adapter": merged, "weights": 1}
    points = [p | {"seconds": [each.get(p["way"], many)] * 2} for p in stored.points]
    made = stored.model_copy(update={"points": points})
    monkeypatch.setattr(checks_tip.serving, "read", lambda: made)
    told = checks_tip.serving_time(MADE_UP, step="token", rows=32)
    assert (told["slower"], told["cheaper"]) == (slower, cheaper)
