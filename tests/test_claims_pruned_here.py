"""LoRAPrune's sentences checked on made-up pruned models and a made-up bench."""

import random

import made_up_prunings as made_up
import numpy as np
import pytest

from tipmini.errors import TipminiError
from tipmini.lab.bundles import Bundle
from tipmini.lab.claims import bench_here, combined, pruned_gaps, pruned_here, pruning_settings
from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence
from tipmini.lab.profiles import load_profile
from tipmini.lab.pruning.declared import grid, run_name
from tipmini.lab.pruning.perplexity import CORPORA

MINI = load_profile("mini")


def model(
    method: str,
    level: float,
    share: float = 0.5,
    tuned: bool = True,
    seed: int = 0,
    right: int = 10,
) -> Bundle:
    """Losses of 16 windows around a level, with noise of their own; of 20 rows `right` are."""
    name = run_name(method, share, tuned, seed)
    noise = random.Random(name)
    losses = [loss + noise.gauss(0, 0.01) for loss in made_up.losses(level)]
    cells = [made_up.cell(name, corpus, "nll", losses) for corpus in CORPORA]
    rows = [float(i < right) for i in range(20)]
    cells += [made_up.cell(name, task, "acc", rows) for task in grid().tasks]
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
    asked = {"of": ["lora-guided"], "against": list(others), "shares": [0.5], "tuned": [True]}
    assert pruned_here.perplexity_below(found, **asked).verdict == verdict


def test_a_model_that_is_not_measured_is_said():
    asked = {"of": ["lora-guided"], "against": ["wanda"], "shares": [0.5], "tuned": [True]}
    for check in (pruned_here.perplexity_below, pruned_here.accuracy_above):
        assert check(evidence(OURS), **asked).verdict == Verdict.NOT_RUN
    par = {"of": ["lora-guided", 0.5, True], "against": [["vanilla", 0.5, True]], "within": 5}
    assert pruned_here.on_a_par(evidence(OURS), **par).verdict == Verdict.NOT_RUN


def test_tuning_is_held_against_pruning_at_once():
    worse, better = (model("lora-guided", level, tuned=False) for level in (4.0, 2.0))
    asked = {"of": ["lora-guided"], "shares": [0.5]}
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


# Several seeds, and both ways of tuning -----------------------------------------------------------

ASKED = {"of": ["lora-guided"], "against": ["wanda"], "shares": [0.5], "tuned": [True]}


def seeded(method: str, levels: list[float]) -> list[Bundle]:
    return [model(method, level, seed=seed) for seed, level in enumerate(levels)]


@pytest.mark.parametrize(
    ("ours", "others", "verdict", "told"),
    [
        ([3.0], [3.2], Verdict.HOLDS, "(one seed)"),
        ([3.0, 3.05, 3.1], [3.2, 3.25, 3.3], Verdict.HOLDS, "(3 seeds)"),
        ([3.0, 3.0, 3.3], [3.2, 3.2, 3.2], Verdict.NOT_SUPPORTED, "(3 seeds)"),  # one turns over
        ([3.0, 3.05], [3.2], Verdict.HOLDS, "(one seed)"),
        ([3.5, 3.4], [3.2, 3.1], Verdict.CONTRARY, "(2 seeds)"),
    ],
)
def test_seeds_that_disagree_are_no_clear_difference(ours, others, verdict, told):
    """The windows alone would make every one of these differences clear."""
    found = evidence(*seeded("lora-guided", ours), *seeded("wanda", others))
    finding = pruned_here.perplexity_below(found, **ASKED)
    assert finding.verdict == verdict and f"50%, with fine-tuning {told}" in finding.words


def test_models_with_and_without_tuning_are_told_apart():
    tuned = [OURS, model("wanda", 3.2)]
    once = [model("lora-guided", 4.0, tuned=False), model("wanda", 3.8, tuned=False)]
    both = ASKED | {"tuned": [True, False]}
    finding = pruned_here.perplexity_below(evidence(*tuned, *once), **both)
    assert finding.verdict == Verdict.NOT_SUPPORTED  # two for it, two against it
    assert "50%, with fine-tuning (one seed): LoRAPrune -18." in finding.words
    assert "50%, without fine-tuning (one seed): LoRAPrune +21." in finding.words
    for way, verdict in ((True, Verdict.HOLDS), (False, Verdict.CONTRARY)):
        one = pruned_here.perplexity_below(evidence(*tuned, *once), **ASKED | {"tuned": [way]})
        assert one.verdict == verdict
    assert pruned_here.perplexity_below(evidence(*tuned), **both).verdict == Verdict.NOT_RUN


def test_shares_are_told_apart_and_large_gaps_as_factors():
    far = [model("wanda", 3.0 + 7), model("wanda", 3.1, share=0.2)]
    found = evidence(OURS, model("lora-guided", 3.0, share=0.2), *far)
    words = pruned_here.perplexity_below(found, **ASKED | {"shares": [0.2, 0.5]}).words
    assert words.startswith("Perplexity on wikipedia and books. 20%, with")
    first, second = words.split("; ")
    assert "20%, with" in first and "-9." in first and "÷" not in first
    assert "50%, with" in second and "÷1,1" in second  # exp(7) is 1097


@pytest.mark.parametrize(
    ("others", "verdict"), [(2, Verdict.HOLDS), (10, Verdict.NOT_SUPPORTED), (18, Verdict.CONTRARY)]
)
def test_accuracies_are_those_of_all_averaged_tasks(others, verdict):
    found = evidence(OURS, model("wanda", 3.0, right=others))
    finding = pruned_here.accuracy_above(found, **ASKED)
    assert finding.verdict == verdict
    assert f"{100 * (10 - others) / 20:+.1f} points against Wanda" in finding.words


def test_a_task_that_stands_apart_decides_no_mean():
    ours = model("lora-guided", 3.0)
    for cell in ours.cells:
        if cell.task in grid().apart:
            cell.values[:] = [1.0] * 20
    finding = pruned_here.accuracy_above(evidence(ours, model("wanda", 3.0)), **ASKED)
    assert "+0.0 points" in finding.words


@pytest.mark.parametrize(
    ("second", "verdict"), [(3.02, Verdict.HOLDS), (3.2, Verdict.NOT_SUPPORTED)]
)
def test_on_a_par_with_every_seed(second, verdict):
    found = evidence(*seeded("lora-guided", [3.0, second]), *seeded("vanilla", [3.0, 3.0]))
    par = {"of": ["lora-guided", 0.5, True], "against": [["vanilla", 0.5, True]], "within": 5}
    finding = pruned_here.on_a_par(found, **par)
    assert finding.verdict == verdict and "2 seeds" in finding.words


def test_on_a_par_names_both_models():
    found = evidence(OURS, model("lora-guided", 3.0, share=0.0), model("lora-guided-int8", 3.0))
    for other, name in (
        (["lora-guided", 0.0, True], "the unpruned model, fine-tuned, wikipedia"),
        (["lora-guided-int8", 0.5, True], "LoRAPrune, base in 8 bits, wikipedia"),
    ):
        par = {"of": ["lora-guided", 0.5, True], "against": [other], "within": 5}
        words = pruned_here.on_a_par(found, **par).words
        assert "of LoRAPrune (50%, with fine-tuning; one seed)" in words and name in words


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.3, 0.0), (-0.3, 0.0)])
def test_a_gap_that_is_the_same_everywhere_is_sure_unless_it_is_none(gap, p):
    values = np.full(16, 1.0 + gap) - 1.0  # off by rounding
    assert pruned_gaps.Gap(values, np.array([gap]), 1).p == p


# Several parts of a sentence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "not supported at this scale"], "holds in part"),
        (["holds in part", "the contrary at this scale"], "holds in part"),
        (
            ["not supported at this scale", "the contrary at this scale"],
            "not supported at this scale",
        ),
        (["the contrary at this scale"] * 2, "the contrary at this scale"),
        (["holds", "not run"], "not run"),
    ],
)
def test_a_sentence_of_several_parts(verdicts, verdict):
    assert combined.together([Verdict(one) for one in verdicts]) == verdict


def test_parts_have_checks_of_their_own():
    check = combined.combining((*pruned_here.CHECKS, *bench_here.CHECKS))
    memory = {"check": "memory_saved", "arguments": {"side": "lora-guided", "least": 20}}
    speed = {"check": "throughput_gained", "arguments": {"least": 60}}
    found = check(BENCHED, parts=[memory, speed])
    assert found.verdict == Verdict.IN_PART
    assert "27.8% less" in found.recomputed and "+50.0% rows a second" in found.recomputed
    with pytest.raises(TipminiError, match="check 'memory' is not one of perplexity_below, "):
        check(BENCHED, parts=[{"check": "memory"}])
    with pytest.raises(
        TipminiError, match="throughput_gained: missing a required argument: 'least'"
    ):
        check(BENCHED, parts=[{"check": "throughput_gained"}])


BENCHED = evidence(benched=made_up.bench())
CASES = [  # made up: 1 - share of the time, half as much again unmerged; 790, 570, 470 MB, and
    # 540, 330, 230 MB where activations are made again
    (bench_here.time_saved, {"share": 0.5, "least": 49.5}, Verdict.HOLDS),
    (bench_here.time_saved, {"share": 0.5, "least": 50.5}, Verdict.NOT_SUPPORTED),
    (bench_here.time_saved, {"share": 0.5, "least": 0}, Verdict.HOLDS),
    (bench_here.time_saved, {"share": 0.0, "least": 0}, Verdict.NOT_SUPPORTED),
    (bench_here.unmerged_costs, {"share": 0.0, "least": 49.0}, Verdict.HOLDS),
    (bench_here.unmerged_costs, {"share": 0.2, "least": 0}, Verdict.HOLDS),
    (bench_here.unmerged_costs, {"share": 0.2, "least": 21.0}, Verdict.NOT_SUPPORTED),
    (bench_here.unmerged_costs, {"share": 0.5, "least": 0}, Verdict.NOT_SUPPORTED),
    (bench_here.merging_spares, {"shares": [0.2, 0.5]}, Verdict.HOLDS),
    (bench_here.memory_saved, {"side": "lora-guided", "least": 27.0}, Verdict.HOLDS),
    (bench_here.memory_saved, {"side": "lora-guided", "least": 30.0}, Verdict.IN_PART),
    (bench_here.memory_saved, {"side": "lora-guided", "least": 52.6}, Verdict.NOT_SUPPORTED),
    (
        bench_here.memory_saved,
        {"side": "lora-guided int8", "against": "lora-guided", "least": 0},
        Verdict.HOLDS,
    ),
    (bench_here.throughput_gained, {"least": 33.0}, Verdict.HOLDS),
    (bench_here.throughput_gained, {"least": 49.0}, Verdict.IN_PART),
    (bench_here.throughput_gained, {"least": 64.6}, Verdict.NOT_SUPPORTED),
    (bench_here.masks_agree, {"share": 0.1}, Verdict.HOLDS),
    (bench_here.masks_agree, {"share": 0.5}, Verdict.NOT_SUPPORTED),
    (bench_here.masks_part, {"low": 0.1, "high": 0.5}, Verdict.HOLDS),
    (bench_here.masks_part, {"low": 0.5, "high": 0.1}, Verdict.NOT_SUPPORTED),
]


@pytest.mark.parametrize(("check", "asked", "verdict"), CASES)
def test_what_the_bench_says(check, asked, verdict):
    assert check(BENCHED, **asked).verdict == verdict
    assert check(evidence(), **asked).verdict == Verdict.NOT_RUN


@pytest.mark.parametrize("kept", ["", " recomputed"])
def test_more_memory_is_not_less(kept):
    turned = made_up.bench()
    cost = turned["criteria"]["cost"]
    names = [f"{name}{kept}" for name in ("vanilla", "lora-guided")]
    cost[names[0]], cost[names[1]] = cost[names[1]], cost[names[0]]
    asked = {"side": "lora-guided", "least": 0}
    assert bench_here.memory_saved(evidence(benched=turned), **asked).verdict == Verdict.IN_PART


# Settings -----------------------------------------------------------------------------------------

STORED = evidence(OURS, model("lora-guided-int8", 3.0), benched=made_up.bench())
SETTINGS = [
    (pruning_settings.pruning_has, {"setting": "decay", "value": 0.9}, Verdict.SAME_SETTING),
    (pruning_settings.pruning_has, {"setting": "batch", "value": 128}, Verdict.OTHER_SETTING),
    (pruning_settings.pruning_has, {"setting": "tasks", "value": ["coqa"]}, Verdict.SAME_SETTING),
    (pruning_settings.pruning_has, {"setting": "tasks", "value": ["c4"]}, Verdict.OTHER_SETTING),
    (
        pruning_settings.bench_has,
        {"part": "masks", "setting": "rows", "value": 128},
        Verdict.SAME_SETTING,
    ),
    (
        pruning_settings.bench_has,
        {"part": "inference", "setting": "prompt", "value": 2048},
        Verdict.OTHER_SETTING,
    ),
    (pruning_settings.scores_tasks, {"tasks": ["piqa", "hellaswag"]}, Verdict.SAME_SETTING),
    (pruning_settings.scores_tasks, {"tasks": ["piqa", "mmlu"]}, Verdict.OTHER_SETTING),
    (pruning_settings.is_pruned, {"method": "lora-guided-int8"}, Verdict.SAME_SETTING),
]


@pytest.mark.parametrize(("check", "asked", "verdict"), SETTINGS)
def test_how_it_was_measured(check, asked, verdict):
    assert check(STORED, **asked).verdict == verdict
    assert check(evidence(), **asked).verdict == Verdict.NOT_RUN


def test_a_mask_that_is_not_binary_is_noticed(monkeypatch):
    assert pruning_settings.mask_is_binary(STORED).verdict == Verdict.SAME_SETTING
    monkeypatch.setattr(pruning_settings, "threshold_mask", lambda scores, p: scores - p)
    assert pruning_settings.mask_is_binary(STORED).verdict == Verdict.OTHER_SETTING


def test_what_is_kept_beside_is_counted():
    for least, verdict in ((1, Verdict.HOLDS), (2, Verdict.DOES_NOT_HOLD)):
        found = pruning_settings.keeps_beside(STORED, method="PST", least=least)
        assert found.verdict == verdict and "LLaMA-65B: PST 194 GB" in found.recomputed
    ours = pruning_settings.keeps_beside(STORED, method="LoRAPrune", least=0.01)
    assert ours.verdict == Verdict.DOES_NOT_HOLD


def test_the_gradient_of_the_product_has_the_weights_size(monkeypatch):
    check = pruning_settings.gradient_of_product_is_as_large
    assert check(STORED).verdict == Verdict.HOLDS
    monkeypatch.setattr(pruning_settings, "lora_gradient", lambda a, b, da, db: da)
    assert check(STORED).verdict == Verdict.DOES_NOT_HOLD
