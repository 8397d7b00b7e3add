"""LoRAPrune's sentences checked on made-up pruned models and a made-up bench."""

import random

import made_up_prunings as made_up
import numpy as np
import pytest

from tipmini.errors import TipminiError
from tipmini_lab.book import pruning_tables
from tipmini_lab.book.claims import here, pruned, pruned_here
from tipmini_lab.book.claims.declared import Verdict
from tipmini_lab.book.claims.evidence import Evidence
from tipmini_lab.book.pruning_tables import Gap
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments.declared import grid
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.store import Bundle

MINI = load_profile("mini")
RUNS = grid().runs("mini")


def model(name: str, level: float, right: int = 10) -> Bundle:
    """Losses of 16 windows around a level, with noise of their own; of 20 rows `right` are."""
    noise = random.Random(name)
    losses = [loss + noise.gauss(0, 0.01) for loss in made_up.losses(level)]
    cells = [made_up.cell(name, corpus, "nll", losses) for corpus in CORPORA]
    rows = [float(i < right) for i in range(20)]
    cells += [made_up.cell(name, task, "acc", rows) for task in grid().tasks]
    return Bundle(name=name, title=name, settings={}, facts={}, cells=cells)


def models(
    method: str,
    levels: float | list[float],
    share: float = 0.5,
    tuned: bool = True,
    right: int = 10,
) -> list[Bundle]:
    """One for every declared seed, of one level or of a level each."""
    names = [run.name for run in pruning_tables.planned(RUNS, method, share, tuned)]
    each = levels if isinstance(levels, list) else [levels] * len(names)
    return [model(name, level, right) for name, level in zip(names, each, strict=True)]


def evidence(*every: Bundle, benched: dict | None = None) -> Evidence:
    prunings = {one.name: one for one in every}
    return Evidence(None, {}, (0, 0), MINI, prunings=prunings, benched=benched or {})


OURS = models("lora-guided", 3.0)
ASKED = {"of": ["lora-guided"], "against": ["wanda"], "shares": [0.5], "tuned": [True]}


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
    rest = [one for name, level in others.items() for one in models(name, level)]
    asked = ASKED | {"against": list(others)}
    assert pruned_here.perplexity_below(evidence(*OURS, *rest), **asked).verdict == verdict


@pytest.mark.parametrize(
    ("least", "verdict"), [(17.0, Verdict.HOLDS), (20.0, Verdict.NOT_SUPPORTED)]
)
def test_a_sentence_may_ask_for_how_much(least, verdict):
    """1 - exp(-0.2) is 18%."""
    found = evidence(*OURS, *models("wanda", 3.2))
    finding = pruned_here.perplexity_below(found, **ASKED, least=least)
    assert finding.verdict == verdict and f"at least {least:g}% lower" in finding.words
    assert finding.recomputed.startswith("clearly lower 2, ")


def test_a_model_that_is_not_measured_with_every_seed_is_said():
    par = {"of": ["lora-guided", 0.5, True], "against": [["wanda", 0.5, True]], "within": 5}
    for rest in ([], models("wanda", 3.2)[:2]):
        found = evidence(*OURS, *rest)
        for check in (pruned_here.perplexity_below, pruned_here.accuracy_above):
            assert check(found, **ASKED).verdict == Verdict.NOT_RUN
        assert pruned_here.no_worse(found, **par).verdict == Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("once", "whole", "verdict"),
    [
        (4.0, 3.0, Verdict.HOLDS),
        (2.0, 3.0, Verdict.CONTRARY),
        (4.0, 4.0, Verdict.NOT_SUPPORTED),  # tuning gives the unpruned model as much
        (4.0, 4.5, Verdict.CONTRARY),
    ],
)
def test_tuning_recovers_where_it_lowers_more_than_the_unpruned_models(once, whole, verdict):
    """Tuned both are at 3; what pruning costs is held against what it costs without tuning."""
    found = [*OURS, *models("lora-guided", once, tuned=False), *models("lora-guided", 3.0, 0.0)]
    found += models("base", whole, 0.0, tuned=False)
    asked = {"of": ["lora-guided"], "shares": [0.5]}
    finding = pruned_here.tuning_recovers(evidence(*found), **asked)
    assert finding.verdict == verdict and "above the unpruned model's" in finding.words
    without = evidence(*(one for one in found if one.name != "base"))
    assert pruned_here.tuning_recovers(without, **asked).verdict == Verdict.NOT_RUN


PAR = {"of": ["lora-guided", 0.5, True], "against": [["vanilla", 0.5, True]], "within": 5}


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (3.0, Verdict.HOLDS),
        (3.02, Verdict.HOLDS),
        (3.2, Verdict.NOT_SUPPORTED),
        (2.0, Verdict.HOLDS),  # far better is no worse
        ([3.0, 3.0, 3.1], Verdict.NOT_SUPPORTED),  # the mean is within, one seed of three is not
    ],
)
def test_no_worse_is_within_a_margin_with_every_seed(ours, verdict):
    found = evidence(*models("lora-guided", ours), *models("vanilla", 3.0))
    finding = pruned_here.no_worse(found, **PAR)
    assert finding.verdict == verdict and "3 seeds" in finding.words


def test_no_worse_names_both_models():
    found = evidence(
        *(*OURS, *models("lora-guided", 3.0, share=0.0), *models("lora-guided-int8", 3.0))
    )
    for other, name in (
        (["lora-guided", 0.0, True], "the unpruned model, fine-tuned, wikipedia"),
        (["lora-guided-int8", 0.5, True], "LoRAPrune, base in 8 bits, wikipedia"),
    ):
        words = pruned_here.no_worse(found, **PAR | {"against": [other]}).words
        assert "of LoRAPrune (50%, with fine-tuning; 3 seeds)" in words and name in words


# Several seeds, and both ways of tuning -----------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "others", "verdict"),
    [
        ([3.0, 3.05, 3.1], [3.2, 3.25, 3.3], Verdict.HOLDS),
        ([3.0, 3.0, 3.3], [3.2, 3.2, 3.2], Verdict.NOT_SUPPORTED),  # one turns over
        ([3.5, 3.4, 3.4], [3.2, 3.1, 3.1], Verdict.CONTRARY),
    ],
)
def test_seeds_that_disagree_are_no_clear_difference(ours, others, verdict):
    """The windows alone would make every one of these differences clear."""
    found = evidence(*models("lora-guided", ours), *models("wanda", others))
    finding = pruned_here.perplexity_below(found, **ASKED)
    assert finding.verdict == verdict and "50%, with fine-tuning (3 seeds)" in finding.words


def test_models_with_and_without_tuning_are_told_apart():
    tuned = [*OURS, *models("wanda", 3.2)]
    once = [*models("lora-guided", 4.0, tuned=False), *models("wanda", 3.8, tuned=False)]
    both = ASKED | {"tuned": [True, False]}
    finding = pruned_here.perplexity_below(evidence(*tuned, *once), **both)
    assert finding.verdict == Verdict.NOT_SUPPORTED  # two for it, two against it
    assert "50%, with fine-tuning (3 seeds): LoRAPrune -18." in finding.words
    assert "50%, without fine-tuning (3 seeds against one seed): LoRAPrune +2" in finding.words
    for way, verdict in ((True, Verdict.HOLDS), (False, Verdict.CONTRARY)):
        one = pruned_here.perplexity_below(evidence(*tuned, *once), **ASKED | {"tuned": [way]})
        assert one.verdict == verdict
    assert pruned_here.perplexity_below(evidence(*tuned), **both).verdict == Verdict.NOT_RUN


def test_shares_are_told_apart_and_large_gaps_as_factors():
    far = [*models("wanda", 3.0 + 7), *models("wanda", 3.1, share=0.2)]
    found = evidence(*OURS, *models("lora-guided", 3.0, share=0.2), *far)
    words = pruned_here.perplexity_below(found, **ASKED | {"shares": [0.2, 0.5]}).words
    assert words.startswith("Perplexity on wikipedia and books. 20%, with")
    first, second = words.split("; ")
    assert "20%, with" in first and "-9." in first and "÷" not in first
    assert "50%, with" in second and "÷1," in second  # exp(7) is 1097


@pytest.mark.parametrize(
    ("others", "verdict"), [(2, Verdict.HOLDS), (10, Verdict.NOT_SUPPORTED), (18, Verdict.CONTRARY)]
)
def test_accuracies_are_those_of_all_averaged_tasks(others, verdict):
    found = evidence(*OURS, *models("wanda", 3.0, right=others))
    finding = pruned_here.accuracy_above(found, **ASKED)
    assert finding.verdict == verdict
    assert f"{100 * (10 - others) / 20:+.1f} points against Wanda" in finding.words


def test_a_task_that_stands_apart_decides_no_mean():
    ours = models("lora-guided", 3.0)
    for cell in (cell for one in ours for cell in one.cells):
        if cell.task in grid().apart:
            cell.values[:] = [1.0] * 20
    finding = pruned_here.accuracy_above(evidence(*ours, *models("wanda", 3.0)), **ASKED)
    assert "+0.0 points" in finding.words


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.3, 0.0), (-0.3, 0.0)])
def test_a_gap_that_is_the_same_everywhere_is_sure_unless_it_is_none(gap, p):
    values = np.full(16, 1.0 + gap) - 1.0  # off by rounding
    assert Gap(values, np.array([gap]), (1, 1)).p == p


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
        (["same setting here", "another setting here"], "another setting here"),
        (["holds", "same setting here"], "holds"),
    ],
)
def test_a_sentence_of_several_parts(verdicts, verdict):
    assert here.together([Verdict(one) for one in verdicts]) == verdict


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "holds in part"], "holds in part"),
        (["holds", "not supported at this scale"], "not supported at this scale"),
        (["holds", "the contrary at this scale"], "not supported at this scale"),
        (["the contrary at this scale"] * 2, "the contrary at this scale"),
        (["holds", "not run"], "not run"),
    ],
)
def test_a_sentence_that_needs_all_of_its_parts(verdicts, verdict):
    assert here.none_failing([Verdict(one) for one in verdicts]) == verdict


def test_parts_have_checks_of_their_own():
    check, both = here.combining((*pruned_here.CHECKS, *pruned.BENCHED))
    memory = {"check": "memory_saved", "arguments": {"side": "lora-guided", "least": 20}}
    speed = {"check": "throughput_gained", "arguments": {"least": 60}}
    found = check(BENCHED, parts=[memory, speed])
    assert found.verdict == Verdict.IN_PART
    assert "27.8% less" in found.recomputed and "+50.0% rows a second" in found.recomputed
    cost, quality = ({"check": "all_of", "arguments": {"parts": [p]}} for p in (memory, speed))
    assert both(BENCHED, parts=[cost, quality]).verdict == Verdict.NOT_SUPPORTED
    assert both(BENCHED, parts=[cost, cost]).verdict == Verdict.HOLDS
    with pytest.raises(TipminiError, match="check 'memory' is not one of perplexity_below, "):
        check(BENCHED, parts=[{"check": "memory"}])
    with pytest.raises(
        TipminiError, match="throughput_gained: missing a required argument: 'least'"
    ):
        check(BENCHED, parts=[{"check": "throughput_gained"}])


BENCHED = evidence(benched=made_up.bench())
CASES = [  # made up: 1 - share of the time, half as much again unmerged; 790, 570, 470 MB, and
    # 540, 330, 230 MB where activations are made again
    (pruned.time_saved, {"share": 0.5, "least": 49.5}, Verdict.HOLDS),
    (pruned.time_saved, {"share": 0.5, "least": 50.5}, Verdict.NOT_SUPPORTED),
    (pruned.time_saved, {"share": 0.5, "least": 0}, Verdict.HOLDS),
    (pruned.time_saved, {"share": 0.0, "least": 0}, Verdict.NOT_SUPPORTED),
    (pruned.unmerged_costs, {"share": 0.0, "least": 49.0}, Verdict.HOLDS),
    (pruned.unmerged_costs, {"share": 0.2, "least": 0}, Verdict.HOLDS),
    (pruned.unmerged_costs, {"share": 0.2, "least": 21.0}, Verdict.NOT_SUPPORTED),
    (pruned.unmerged_costs, {"share": 0.5, "least": 0}, Verdict.NOT_SUPPORTED),
    (pruned.merging_spares, {"shares": [0.2, 0.5]}, Verdict.HOLDS),
    (pruned.memory_saved, {"side": "lora-guided", "least": 27.0}, Verdict.HOLDS),
    (pruned.memory_saved, {"side": "lora-guided", "least": 30.0}, Verdict.IN_PART),
    (pruned.memory_saved, {"side": "lora-guided", "least": 52.6}, Verdict.NOT_SUPPORTED),
    (
        pruned.memory_saved,
        {"side": "lora-guided int8", "against": "lora-guided", "least": 0},
        Verdict.HOLDS,
    ),
    (pruned.throughput_gained, {"least": 33.0}, Verdict.HOLDS),
    (pruned.throughput_gained, {"least": 49.0}, Verdict.IN_PART),
    (pruned.throughput_gained, {"least": 64.6}, Verdict.NOT_SUPPORTED),
    (pruned.masks_agree, {"share": 0.1}, Verdict.HOLDS),
    (pruned.masks_agree, {"share": 0.5}, Verdict.NOT_SUPPORTED),
    (pruned.masks_part, {"low": 0.1, "high": 0.5}, Verdict.HOLDS),
    (pruned.masks_part, {"low": 0.5, "high": 0.1}, Verdict.NOT_SUPPORTED),
]


def test_masks_that_know_nothing_do_not_part():
    """They agree on fewer groups at a higher share, and on no more than chance at either."""
    known = made_up.bench()
    for entry in known["masks"]["agreement"]:
        entry["same"] = entry["chance_same"]
    finding = pruned.masks_part(evidence(benched=known), low=0.1, high=0.5)
    assert finding.verdict == Verdict.IN_PART
    assert "0% of the way from chance to all" in finding.recomputed


def test_a_side_is_one_where_every_round_and_every_step_lies_there():
    noisy = made_up.bench()
    for entry in noisy["inference"]["inference"]:
        if entry["share"] == 0.5:
            entry["seconds"][0] *= 3
    for side, slow in (("vanilla", 30.0), ("vanilla recomputed", 40.0)):  # ours: 32 and 48
        noisy["criteria"]["cost"][side]["seconds"][0] = slow
    found = evidence(benched=noisy)
    assert pruned.time_saved(found, share=0.5, least=40).verdict == Verdict.HOLDS
    assert pruned.time_saved(found, share=0.5, least=0).verdict == Verdict.NOT_SUPPORTED
    faster = pruned.throughput_gained(found, least=0)
    assert faster.verdict == Verdict.NOT_SUPPORTED and "made again: +8.3%" in faster.recomputed


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
    assert pruned.memory_saved(evidence(benched=turned), **asked).verdict == Verdict.IN_PART


# Settings -----------------------------------------------------------------------------------------

STORED = evidence(*OURS, *models("lora-guided-int8", 3.0), benched=made_up.bench())
SETTINGS = [
    (pruned.pruning_has, {"setting": "decay", "value": 0.9}, Verdict.SAME_SETTING),
    (pruned.pruning_has, {"setting": "batch", "value": 128}, Verdict.OTHER_SETTING),
    (pruned.pruning_has, {"setting": "tasks", "value": ["coqa"]}, Verdict.SAME_SETTING),
    (pruned.pruning_has, {"setting": "tasks", "value": ["c4"]}, Verdict.OTHER_SETTING),
    (pruned.scores_tasks, {"tasks": ["piqa", "hellaswag"]}, Verdict.SAME_SETTING),
    (pruned.scores_tasks, {"tasks": ["piqa", "mmlu"]}, Verdict.OTHER_SETTING),
    (pruned.is_pruned, {"method": "lora-guided-int8"}, Verdict.SAME_SETTING),
]
SETTINGS += [
    (pruned.bench_has, {"part": part, "setting": setting, "value": value}, verdict)
    for part, setting, value, verdict in (
        ("masks", "rows", 96, Verdict.SAME_SETTING),
        ("inference", "prompt", 8, Verdict.SAME_SETTING),
        ("inference", "rounds", 100, Verdict.OTHER_SETTING),
        ("criteria", "rows_a_pass", 1, Verdict.SAME_SETTING),
    )
]


@pytest.mark.parametrize(("check", "asked", "verdict"), SETTINGS)
def test_how_it_was_measured(check, asked, verdict):
    assert check(STORED, **asked).verdict == verdict
    assert check(evidence(), **asked).verdict == Verdict.NOT_RUN


def test_a_mask_that_is_not_binary_is_noticed(monkeypatch):
    assert pruned.mask_is_binary(STORED).verdict == Verdict.SAME_SETTING
    monkeypatch.setattr(pruned, "threshold_mask", lambda scores, p: scores - p)
    assert pruned.mask_is_binary(STORED).verdict == Verdict.OTHER_SETTING


def test_what_is_kept_beside_is_counted():
    for least, verdict in ((1, Verdict.HOLDS), (2, Verdict.DOES_NOT_HOLD)):
        found = pruned.keeps_beside(STORED, method="PST", least=least)
        assert found.verdict == verdict and "LLaMA-65B: PST 194 GB" in found.recomputed
    ours = pruned.keeps_beside(STORED, method="LoRAPrune", least=0.01)
    assert ours.verdict == Verdict.DOES_NOT_HOLD


def test_the_gradient_of_the_product_has_the_weights_size(monkeypatch):
    check = pruned.gradient_of_product_is_as_large
    assert check(STORED).verdict == Verdict.HOLDS
    monkeypatch.setattr(pruned, "lora_gradient", lambda a, b, da, db: da)
    assert check(STORED).verdict == Verdict.DOES_NOT_HOLD
