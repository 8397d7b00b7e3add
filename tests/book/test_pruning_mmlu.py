"""MMLU of pruned models: its table and its claims, on made-up answers."""

import made_up_prunings as made_up
import pytest
from claimed import found

from tipmini_lab.book import pruning_mmlu
from tipmini_lab.book.claims.checks import Evidence
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import MISSING

OURS, OTHER = "lora-guided-20-once-s0", "wanda-20-once-s0"


def answers(name: str, right: int, count: int = 100):
    """The first questions are answered right."""
    return made_up.cell(name, "mmlu", "acc", [1.0] * right + [0.0] * (count - right))


def cells(**right: int) -> dict:
    names = {"base": "base", "ours": OURS, "other": OTHER}
    return {names[key]: answers(names[key], count) for key, count in right.items()}


def evidence(**right: int) -> Evidence:
    return Evidence({}, {}, load_profile("mini"), few_shot=cells(**right))


def test_the_table_has_chance_intervals_and_what_is_missing():
    titles = {"base": "unpruned", OURS: "LoRAPrune", OTHER: "Wanda"}
    table = pruning_mmlu.table(cells(base=50, ours=20), titles)
    assert list(table.index) == ["chance", "unpruned", "LoRAPrune", "Wanda"]
    assert table.loc["chance", "accuracy"] == "0.250"
    assert list(table.loc["unpruned"]) == ["0.500", "[0.402, 0.598]", "-", "-"]
    # 30 of 100 lost, none won: 0.3 ± 1.96 * sqrt(.3 * .7 / 99)
    assert list(table.loc["LoRAPrune"])[2:] == ["-30.0 ± 9.0", "< 0.001"]
    assert list(table.loc["Wanda"]) == [MISSING, "-", "-", "-"]
    assert (pruning_mmlu.table({}, titles)["accuracy"].iloc[1:] == MISSING).all()


def test_what_is_above_chance_is_counted():
    titles = {"base": "unpruned", OURS: "LoRAPrune", OTHER: "Wanda"}
    told = pruning_mmlu.told(cells(base=50, ours=20), titles)
    assert told.startswith("2 of 3 models are measured, 100 questions each. 1 of 1 differ")
    assert told.endswith("Intervals above chance: 1, the unpruned model's among them.")
    told = pruning_mmlu.told(cells(base=26, ours=25), titles)
    assert "0 of 1 differ" in told and "chance: 0, the" in told and "nothing to lose" in told
    told = pruning_mmlu.told(cells(base=26, ours=50), titles)
    assert "1 of 1 differ" in told and told.endswith("chance: 1, the unpruned model's not.")
    assert MISSING in pruning_mmlu.told({}, titles)
    assert "differ" not in pruning_mmlu.told(cells(base=26), titles)


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ({"base": 60, "ours": 50, "other": 30}, "holds"),
        ({"base": 60, "ours": 30, "other": 50}, "the contrary at this scale"),
        ({"base": 60, "ours": 32, "other": 30}, "not supported at this scale"),
        ({"base": 60, "ours": 32}, "not run"),
        ({"ours": 50, "other": 30}, "not run"),
    ],
)
def test_a_criterion_answers_more_than_another(right, verdict):
    asked = {"of": ["lora-guided"], "against": ["wanda"], "shares": [0.2]}
    told = found(evidence(**right), "few_shot_higher", arguments=asked)
    assert told.verdict == verdict
    if verdict == "holds":
        assert "20%, LoRAPrune against Wanda: +20.0 points." in told.words


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ({"base": 60, "ours": 58}, "holds"),
        ({"base": 60, "ours": 40}, "not supported at this scale"),
        ({"base": 27, "ours": 27}, "not supported at this scale"),  # nothing to keep
        ({"base": 60}, "not run"),
    ],
)
def test_a_pruned_model_answers_as_much_where_there_is_something_to_keep(right, verdict):
    asked = {"arguments": {"of": "lora-guided", "share": 0.2}, "words": "{unpruned}"}
    told = found(evidence(**right), "few_shot_kept", shown="{points}", **asked)
    assert told.verdict == verdict
    assert ("nothing that a pruned model could keep" in told.words) == (right["base"] == 27)


def test_the_claim_and_the_table_have_one_result():
    """6 of 100 lost: p is .03 alone, .06 as one of two."""
    asked = {"arguments": {"of": "lora-guided", "share": 0.2}, "words": "-", "shown": "{points}"}
    assert found(evidence(base=60, ours=54), "few_shot_kept", **asked).verdict != "holds"
    both = {"base": 60, "ours": 54, "other": 54}
    assert found(evidence(**both), "few_shot_kept", **asked).verdict == "holds"
    table = pruning_mmlu.table(cells(**both), {"base": "unpruned", OURS: "LoRAPrune"})
    assert table.loc["LoRAPrune"].iloc[-1] == "0.062"
    assert "0 of 1 differ" in pruning_mmlu.told(cells(**both), {"base": "", OURS: "LoRAPrune"})


def test_shots_are_counted_of_what_is_measured():
    words = "{questions} of {subjects} by {models}: {words}"
    told = found(evidence(base=50, ours=40), "shots", equals=5, words=words)
    assert told.verdict == "same setting here" and told.recomputed == "shots: 5"
    assert told.words.startswith("100 of 57 by 2: ")
    for known in (evidence(), evidence(base=50)):
        assert found(known, "shots", equals=5).verdict == "not run"
