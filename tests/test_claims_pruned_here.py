"""LoRAPrune's sentences checked on made-up pruned models and a made-up bench."""

import random

import made_up_prunings as made_up
import pytest

from tipmini.lab.bundles import Bundle
from tipmini.lab.claims import bench_here, pruned_here
from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence
from tipmini.lab.profiles import load_profile
from tipmini.lab.pruning.declared import run_name
from tipmini.lab.pruning.perplexity import CORPORA

MINI = load_profile("mini")


def model(method: str, level: float, share: float = 0.5, tuned: bool = True) -> Bundle:
    """Losses of 16 windows around a level, with noise of their own beside the windows'."""
    name = run_name(method, share, tuned, 0)
    noise = random.Random(name)
    losses = [loss + noise.gauss(0, 0.01) for loss in made_up.losses(level)]
    cells = [made_up.cell(name, corpus, "nll", losses) for corpus in CORPORA]
    return Bundle(name=name, title=name, settings={}, facts={}, cells=cells)


def evidence(*models: Bundle, benched: dict | None = None) -> Evidence:
    prunings = {one.name: one for one in models}
    return Evidence(None, {}, (0, 0), MINI, prunings=prunings, benched=benched or {})


OURS = model("lora-guided", 3.0)


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ({"wanda": 3.2, "taylor": 3.1}, Verdict.HOLDS),
        ({"wanda": 3.2, "taylor": 3.0}, Verdict.IN_PART),
        ({"wanda": 3.0, "taylor": 3.0}, Verdict.NOT_SUPPORTED),
        ({"wanda": 2.8, "taylor": 2.9}, Verdict.CONTRARY),
    ],
)
def test_perplexities_are_compared_window_by_window(others, verdict):
    found = evidence(OURS, *(model(name, level) for name, level in others.items()))
    asked = {"of": ["lora-guided"], "against": list(others), "shares": [0.5]}
    assert pruned_here.perplexity_below(found, **asked).verdict == verdict


def test_a_model_that_is_not_measured_is_said():
    asked = {"of": ["lora-guided"], "against": ["wanda"], "shares": [0.5]}
    assert pruned_here.perplexity_below(evidence(OURS), **asked).verdict == Verdict.NOT_RUN
    par = {"of": ["lora-guided", 0.5, True], "against": [["vanilla", 0.5, True]], "within": 5}
    assert pruned_here.on_a_par(evidence(OURS), **par).verdict == Verdict.NOT_RUN


def test_tuning_is_held_against_pruning_at_once():
    worse, better = (model("lora-guided", level, tuned=False) for level in (4.0, 2.0))
    asked = {"of": "lora-guided", "shares": [0.5]}
    assert pruned_here.tuning_lowers(evidence(OURS, worse), **asked).verdict == Verdict.HOLDS
    assert pruned_here.tuning_lowers(evidence(OURS, better), **asked).verdict == Verdict.CONTRARY


@pytest.mark.parametrize(
    ("level", "verdict"),
    [(3.0, Verdict.HOLDS), (3.02, Verdict.HOLDS), (3.2, Verdict.NOT_SUPPORTED)],
)
def test_on_a_par_is_within_a_margin(level, verdict):
    found = evidence(OURS, model("vanilla", level))
    par = {"of": ["lora-guided", 0.5, True], "against": [["vanilla", 0.5, True]], "within": 5}
    assert pruned_here.on_a_par(found, **par).verdict == verdict


BENCHED = evidence(benched=made_up.bench())
CASES = [  # made up: 1 - share of the time, half as much again unmerged; 790, 570, 470 MB
    (bench_here.time_saved, {"share": 0.5, "printed": 49.5}, Verdict.HOLDS),
    (bench_here.time_saved, {"share": 0.5, "printed": 50.5}, Verdict.NOT_SUPPORTED),
    (bench_here.time_saved, {"share": 0.5}, Verdict.HOLDS),
    (bench_here.unmerged_costs, {"share": 0.0, "printed": 49.0}, Verdict.HOLDS),
    (bench_here.unmerged_costs, {"share": 0.2, "printed": 21.0}, Verdict.NOT_SUPPORTED),
    (bench_here.memory_saved, {"side": "lora-guided", "printed": 27.0}, Verdict.HOLDS),
    (bench_here.memory_saved, {"side": "lora-guided", "printed": 52.6}, Verdict.NOT_SUPPORTED),
    (
        bench_here.memory_saved,
        {"side": "lora-guided int8", "against": "lora-guided"},
        Verdict.HOLDS,
    ),
    (bench_here.throughput_gained, {"printed": 49.0}, Verdict.HOLDS),
    (bench_here.throughput_gained, {"printed": 64.6}, Verdict.NOT_SUPPORTED),
    (bench_here.masks_agree, {"share": 0.1}, Verdict.HOLDS),
    (bench_here.masks_agree, {"share": 0.5}, Verdict.NOT_SUPPORTED),
    (bench_here.masks_part, {"low": 0.1, "high": 0.5}, Verdict.HOLDS),
    (bench_here.masks_part, {"low": 0.5, "high": 0.1}, Verdict.NOT_SUPPORTED),
]


@pytest.mark.parametrize(("check", "asked", "verdict"), CASES)
def test_what_the_bench_says(check, asked, verdict):
    assert check(BENCHED, **asked).verdict == verdict
    assert check(evidence(), **asked).verdict == Verdict.NOT_RUN
