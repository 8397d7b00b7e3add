"""Checks of LoRAPrune's sentences on zeros: on a made-up bench and on made-up prunings."""

import made_up_prunings
import pytest

from tipmini_lab.book import pruning_costs as costs
from tipmini_lab.book.claims import Verdict, checks_zeros, declared
from tipmini_lab.book.claims.checks import Evidence, NotMeasured, run
from tipmini_lab.experiments.declared import grid
from tipmini_lab.experiments.profiles import load_profile

PAPER = declared()["loraprune"]


@pytest.fixture
def evidence() -> Evidence:
    outcomes = made_up_prunings.outcomes(grid(), "mini")
    return Evidence({}, {}, load_profile("mini"), {}, outcomes, made_up_prunings.bench())


def test_the_fastest_of_all_kinds_and_lengths_counts(evidence):
    found = checks_zeros.zeros_pass(evidence, ways=[costs.ROWS, costs.CSR])
    assert (found["fastest"], found["smallest"], found["largest"]) == pytest.approx((1, 1, 1.5))
    assert found["refused"] and found["says"] == "Only CUDA."
    assert f"{costs.CSR}, 1 token: 3.00 of the time" in found["told"]
    faster = next(e for e in evidence.benched["zeros"]["passes"] if e["way"] == costs.CSR)
    faster["seconds"] = [0.5 * second for second in (8 * 2.0, 8 * 2.2)]
    assert checks_zeros.zeros_pass(evidence, ways=[costs.CSR])["fastest"] == pytest.approx(0.5)
    alone = checks_zeros.zeros_pass(evidence, ways=[costs.CSR], lengths=["token"])
    assert alone["fastest"] == pytest.approx(3)


def test_a_sentence_on_several_kinds_depends_on_which_are_asked(evidence):
    """No kind saves a twentieth but the last, which is made to take half of the time."""
    (claim,) = (c for c in PAPER.claims if c.id == "loraprune-special-hardware")
    for entry in evidence.benched["zeros"]["passes"]:
        if entry["way"] == costs.SPARSER:
            entry["seconds"] = [second / 2.2 for second in entry["seconds"]]
    found = run(claim, "here", evidence)
    assert found.between == (Verdict.NOT_SUPPORTED, Verdict.HOLDS)
    assert found.readings[f"without {costs.SPARSER}"] == Verdict.HOLDS
    assert found.readings[f"without {costs.CSR}"] == Verdict.NOT_SUPPORTED


def test_the_adapter_that_leaves_the_most_zeros_counts(evidence):
    found = checks_zeros.zeros_merged(evidence, way=costs.ROWS)
    assert found == {"after": 0.001, "of_delta": 0.002, "before": 0.5, "adapters": 2}


def test_nothing_is_told_of_what_is_not_measured(evidence):
    evidence.benched = {}
    for check, given in (
        (checks_zeros.zeros_pass, {"ways": [costs.ROWS]}),
        (checks_zeros.zeros_merged, {"way": costs.ROWS}),
    ):
        with pytest.raises(NotMeasured):
            check(evidence, **given)


def test_the_rate_of_tuned_runs_is_a_cosine(evidence, monkeypatch):
    assert checks_zeros.rate_decays(evidence)["value"]
    monkeypatch.setattr(checks_zeros, "cosine_rate", lambda recipe, step, steps: 1 - step / steps)
    assert not checks_zeros.rate_decays(evidence)["value"]


def test_both_settings_have_models_at_every_share(evidence):
    asked = {"shares": [0.2, 0.5]}
    assert checks_zeros.tuned_and_not(evidence, **asked)["value"]
    evidence.prunings = {n: b for n, b in evidence.prunings.items() if "20-once" not in n}
    assert not checks_zeros.tuned_and_not(evidence, **asked)["value"]
