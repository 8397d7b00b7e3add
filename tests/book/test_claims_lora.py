"""LoRA's claims: what is asked of a made-up bench and of made-up runs, and what is printed."""

import pandas as pd
import pytest
import yaml

from tipmini_lab import paths
from tipmini_lab.book import lora_tables
from tipmini_lab.book.claims import Verdict, checks, checks_lora
from tipmini_lab.book.claims.checks import Evidence, NotMeasured
from tipmini_lab.book.claims.choices import readings
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import Verdict as Compared

PRINTED = yaml.safe_load(paths.PRINTED.read_text())
EVIDENCE = Evidence(PRINTED, {}, load_profile("mini"))
BENCH = {
    "points": [
        {"way": way, "batch": 1, "length": 128, "seconds": [seconds]}
        for way, seconds in {
            "base": 1.0,
            "merged": 1.01,
            "adapter-h": 1.3,
            "adapter-l": 1.2,
        }.items()
    ],
    "switching": {"seconds": {"a": [0.002], "b": [0.001], "c": [0.5]}},
    "training": {
        "ways": {
            "full": {"weights": 6, "risen": 9, "seconds": [2.0]},
            "lora": {"weights": 5, "risen": 1, "seconds": [1.6]},
        }
    },
}


@pytest.mark.parametrize(
    ("table", "cells", "verdict"),
    [
        ("glue", {"a": {"full": 1, "lora": 1}, "b": {"full": 1, "lora": 2}}, Verdict.HOLDS),
        ("glue", {"a": {"full": 1, "lora": 0}, "b": {"full": 1, "lora": 2}}, Verdict.IN_PART),
        ("e2e", {"a": {"full": 1, "lora": 0}}, Verdict.DOES_NOT_HOLD),
        (
            "gpt3",
            {"full": {"wikisql": 2, "mnli": 2}, "x": {"wikisql": 1, "mnli": 3}},
            Verdict.IN_PART,
        ),
    ],
)
def test_lora_beside_full_tuning_in_print(table, cells, verdict):
    made = Evidence({"lora": {table: cells}}, {}, load_profile("mini"))
    assert checks_lora.lora_at_least_full(made, table=table).verdict == verdict


def test_the_arithmetic_of_printed_numbers():
    assert checks_lora.lora_fewer(EVIDENCE, of="checkpoint")["times"] == 10_000
    made = checks_lora.lora_throughput(EVIDENCE)
    assert round(made["gained"], 1) == 32.6 and round(made["saved"], 1) == 24.6


def test_what_the_bench_measured(monkeypatch):
    monkeypatch.setattr(lora_tables, "bench", lambda: BENCH)
    asked = {"batch": 1, "length": 128}
    added = checks_lora.lora_pass_added(EVIDENCE, ways=["adapter-h", "adapter-l"], **asked)
    assert added == pytest.approx({"least": 20, "most": 30})
    assert checks_lora.lora_step(EVIDENCE) == {"memory": 2.5, "seconds": 1.25}
    switched = checks_lora.lora_switched(EVIDENCE)
    assert switched == pytest.approx({"merged": 2, "beside": 1, "whole": 500, "times": 250})
    monkeypatch.setattr(lora_tables, "bench", dict)
    with pytest.raises(NotMeasured, match="python -m bench lora"):
        checks_lora.lora_step(EVIDENCE)


NOT_BELOW, ABOVE = checks_lora.lora_not_below, checks_lora.lora_above


@pytest.mark.parametrize(
    ("check", "verdicts", "low", "expected"),
    [
        (NOT_BELOW, [Compared.OPEN, Compared.BETTER], 0.01, Verdict.HOLDS),
        (NOT_BELOW, [Compared.OPEN, Compared.OPEN], -0.05, Verdict.NOT_SUPPORTED),
        (NOT_BELOW, [Compared.OPEN, Compared.WORSE], -0.05, Verdict.IN_PART),
        (NOT_BELOW, [Compared.WORSE, Compared.WORSE], -0.05, Verdict.CONTRARY),
        (NOT_BELOW, [Compared.MISSING, Compared.BETTER], 0.01, None),
        (ABOVE, [Compared.BETTER, Compared.BETTER], 0.01, Verdict.HOLDS),
        (ABOVE, [Compared.OPEN, Compared.BETTER], 0.01, Verdict.IN_PART),
        (ABOVE, [Compared.OPEN, Compared.OPEN], -0.05, Verdict.NOT_SUPPORTED),
        (ABOVE, [Compared.WORSE, Compared.WORSE], -0.05, Verdict.CONTRARY),
        (ABOVE, [Compared.MISSING, Compared.BETTER], 0.01, None),
    ],
)
def test_lora_beside_other_ways(monkeypatch, check, verdicts, low, expected):
    lines = {"against": ["a", "b"], "title": ["A", "B"], "value": [0.1, -0.1], "verdict": verdicts}
    lines |= {"low": [-0.01, low]}
    monkeypatch.setattr(lora_tables, "against", lambda *_: pd.DataFrame(lines))
    if expected is None:
        with pytest.raises(NotMeasured):
            check(EVIDENCE, against=["a", "b"])
        return
    found = check(EVIDENCE, against=["a", "b"])
    assert found.verdict == expected and found.recomputed == "A +10.0; B -10.0"


def test_each_of_three_ways_is_left_out_in_turn():
    checks.modules()
    check = checks_lora.lora_not_below
    found = dict(readings(check, {"against": ["a", "b", "c"]}, EVIDENCE, {}))
    assert found["without b"] == {"against": ["a", "c"]} and len(found) == 3
    (words, _), *_ = readings(check, {"against": ["top2", "full", "norms"]}, EVIDENCE, {})
    assert words == "without last two layers"
    assert not [*readings(check, {"against": ["a", "b"]}, EVIDENCE, {})]


@pytest.mark.parametrize(
    ("verdict", "worse"),
    [(Compared.WORSE, True), (Compared.OPEN, False), (Compared.BETTER, False)],
)
def test_a_longer_prefix(monkeypatch, verdict, worse):
    line = {"against": "prefix-1", "value": -0.1, "low": -0.2, "high": 0.1, "verdict": verdict}
    monkeypatch.setattr(lora_tables, "against", lambda *_, of: pd.DataFrame([line | {"of": of}]))
    found = checks_lora.lora_longer_prefix(EVIDENCE, more=256, less=1)
    assert found["worse"] == worse
    assert found["shown"] == "-10.0 points [-20.0, +10.0]"
    line["verdict"] = Compared.MISSING
    with pytest.raises(NotMeasured, match="lora-prefixes"):
        checks_lora.lora_longer_prefix(EVIDENCE, more=256, less=1)


@pytest.mark.parametrize(("other", "one"), [(0.001, True), (0.003, False)])
def test_one_learning_rate_for_all_ranks(monkeypatch, other, one):
    rates = {"r8-both": 0.001, "r2-divided": 0.001, "r64-divided": other}
    monkeypatch.setattr(lora_tables, "best_rates", lambda _: rates)
    assert checks_lora.lora_one_rate(EVIDENCE)["value"] == one


def test_what_is_not_stored_is_not_measured(monkeypatch):
    monkeypatch.setattr(lora_tables, "spectra", lambda _: pd.DataFrame())
    with pytest.raises(NotMeasured):
        checks_lora.lora_update_rank(EVIDENCE)
