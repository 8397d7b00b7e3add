"""LoRAPrune's claims: arithmetic on made-up cells, what its printed numbers say, and the page."""

import re
import sys
from dataclasses import replace
from inspect import signature

import made_up_prunings as made_up
import pytest

from tipmini_lab.book import pruning_costs
from tipmini_lab.book.claims import in_print, page, pruned, pruned_here
from tipmini_lab.book.claims.declared import Check, Claim, Verdict, declared
from tipmini_lab.book.claims.evidence import Evidence
from tipmini_lab.book.claims.page import CHECKS, run
from tipmini_lab.commands import main
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments import declared as grids

PRUNED_SETTINGS = (*(pruned.pruning_has, pruned.scores_tasks, pruned.is_pruned),)

PAPERS = declared().papers
CLAIMS = [claim for claim in declared().claims if claim.paper == "loraprune"]


def cell(value: float) -> dict[str, object]:
    return {"value": value, "source": "text"}


# A model of 2 layers, width 3, inner width 4: 2 * (4 * 9 + 3 * 12) = 144 linear weights.
TINY = {"layers": 2, "width": 3, "inner": 4, "vocabulary": 5, "source": "made up"}
MADE_UP = Evidence(
    None,
    {},
    (0, 1),
    None,
    pruned={
        "sources": {"text": "its text"},
        "perplexity": {
            "old": {"wikitext2": cell(20), "ptb": cell(30)},
            "new": {"wikitext2": cell(15), "ptb": cell(30)},
            "best": {"wikitext2": cell(10), "ptb": cell(29)},
        },
        "memory": {"old": {"gigabytes": cell(40)}, "new": {"gigabytes": cell(10)}},
    },
    records={
        "earlier_loraprune": {"reduction": {"wikitext2": 7.5, "ptb": 1}, "source": "its past"},
        "shapes": {"tiny": TINY, "large": TINY | {"layers": 2 * 10**9}},
        "cited": {"other": {"value": 4, "unit": " bits", "source": "its abstract"}},
    },
)
NAMES = {"old": "Old", "new": "New", "best": "Best"}


@pytest.fixture(autouse=True)
def _named(monkeypatch):
    monkeypatch.setattr(pruned, "NAMES", pruned.NAMES | NAMES)


# Arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [(5.0, Verdict.HOLDS), (5.004, Verdict.HOLDS), (4.9, Verdict.DOES_NOT_HOLD)],
)
def test_a_reduction_is_the_difference_of_two_cells(printed, verdict):
    asked = {"of": "new", "against": "old", "corpus": "wikitext2", "tolerance": 0.005}
    found = pruned.perplexity_gap(MADE_UP, printed=printed, **asked)
    assert found.verdict == verdict
    assert found.recomputed == "20.00 − 15.00 = 5.00, relative 25.0%"
    assert found.words == "Read in its text. An earlier version of the paper gave 7.5 (its past)."


@pytest.mark.parametrize(
    ("printed", "saved", "verdict"),
    [
        (75.0, True, Verdict.HOLDS),
        (25.0, True, Verdict.DOES_NOT_HOLD),
        (25.0, False, Verdict.HOLDS),
        (75.0, False, Verdict.SAVED_NOT_USED),
        (60.0, False, Verdict.DOES_NOT_HOLD),
    ],
)
def test_a_share_of_memory_is_saved_or_used(printed, saved, verdict):
    asked = {"of": "new", "against": "old", "saved": saved, "tolerance": 0.05}
    found = pruned.memory_share(MADE_UP, printed=printed, **asked)
    assert found.verdict == verdict
    assert found.recomputed == "10.0 of 40.0 GB: 25.0% used, 75.0% saved"


@pytest.mark.parametrize(
    ("of", "against", "complete", "verdict"),
    [
        ("best", ["old", "new"], True, Verdict.HOLDS),
        ("best", ["old", "new"], False, Verdict.AT_HAND),
        ("new", ["old"], True, Verdict.IN_PART),  # equal on PTB
        ("old", ["new"], False, Verdict.DOES_NOT_HOLD),
    ],
)
def test_cells_below_others(of, against, complete, verdict):
    asked = {"table": "perplexity", "of": of, "against": against, "complete": complete}
    found = pruned.below(MADE_UP, **asked)
    assert found.verdict == verdict
    assert found.recomputed.count(";") == 2 * len(against) - 1


@pytest.mark.parametrize(
    ("saved", "added", "verdict", "times"),
    [(50, 150, Verdict.AT_HAND, "1.25"), (50, 50, Verdict.DOES_NOT_HOLD, "0.75")],
)
def test_time_saved_by_pruning_and_added_by_unmerged_lora(saved, added, verdict, times):
    found = pruned.unmerged_slower(MADE_UP, saved=saved, added=added)
    assert found.verdict == verdict and found.recomputed.endswith(f"= {times} times the time")


@pytest.mark.parametrize(
    ("of", "told"),
    [
        ("time saved", "1.33 times as fast"),
        ("time added", "1.25 times the time"),
        ("throughput added", "0.80 of the time for as much"),
    ],
)
def test_per_cent_as_a_speed(of, told):
    found = pruned.as_speed(MADE_UP, printed=25.0, of=of, note="a table")
    assert found == (Verdict.NOT_AT_HAND, told, "a table")


def test_weights_are_counted_as_in_a_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **shape, **heads))
    counted = {"layers": 2, "width": 8, "inner": 20, "vocabulary": 11}
    sizes = {name: p.numel() for name, p in model.named_parameters() if "norm" not in name}
    assert pruned.all_weights(counted) == sum(sizes.values())
    assert pruned.linear_weights(counted) == sum(
        size for name, size in sizes.items() if "_proj" in name
    )


def test_counts_from_shapes():
    # 144 billion linear weights and 30 of the embeddings; in 8 bits more than one A100
    assert pruned.linear_weights(TINY) == 144 and pruned.all_weights(TINY) == 174
    asked = {"model": "large", "tolerance": 0.5}
    assert pruned.weights_of(MADE_UP, printed=144.0, **asked).verdict == Verdict.HOLDS
    assert pruned.weights_of(MADE_UP, printed=140.0, **asked).verdict == Verdict.DOES_NOT_HOLD
    assert pruned.weights_fit(MADE_UP, model="large").verdict == Verdict.DOES_NOT_HOLD
    assert pruned.weights_fit(MADE_UP, model="tiny").verdict == Verdict.NOT_AT_HAND


@pytest.mark.parametrize(
    ("printed", "verdict"),  # 144e9 weights, BA in 16 bits and a mask in 8: 432 GB
    [(6.0, Verdict.HOLDS), (8.0, Verdict.DOES_NOT_HOLD), (5.0, Verdict.DOES_NOT_HOLD)],
)
def test_gpus_that_intermediates_fill(printed, verdict):
    found = pruned.intermediates(MADE_UP, printed=printed, model="large")
    assert found.verdict == verdict and found.recomputed == "432 GB, 6 GPUs"


def test_a_mask_has_as_many_bits_in_every_count(evidence):
    """The chapter's Table 1 and the claim on three GPUs count the same things."""
    shape = evidence.records["shapes"]["llama_65b"]
    table = pruning_costs.memory_table([pruning_costs.LLAMA_65B], rank=8)
    pst = table.loc["PST", "LLaMA-65B"]
    assert pst == "194 GB" == pruning_costs.size(3 * pruned.linear_weights(shape))


@pytest.mark.parametrize(("printed", "verdict"), [(4.0, "holds"), (8.0, "does not hold")])
def test_a_number_cited_of_another_work(printed, verdict):
    assert pruned.as_cited(MADE_UP, printed=printed, work="other").verdict == verdict


def test_eta_is_one_notices_another_step(monkeypatch):
    assert in_print.eta_is_one(MADE_UP).verdict == Verdict.SAME_SETTING
    monkeypatch.setattr(in_print.tm, "lora_gradient", lambda a, b, da, db: db @ a + b @ da)
    assert in_print.eta_is_one(MADE_UP).verdict == Verdict.OTHER_SETTING


# What is printed in the paper ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("loraprune-wikitext2-abstract", "16.41 − 11.60 = 4.81"),
        ("loraprune-ptb-abstract", "20.85 − 17.39 = 3.46"),
        ("loraprune-memory-abstract", "52.6% saved"),
        ("loraprune-memory-introduction", "47.4% used"),
        ("loraprune-memory-8-bit", "64.2% saved"),
        ("loraprune-unmerged-slower", "1.16 times the time"),
        ("loraprune-65-billion", "65.3 billion weights"),
        ("loraprune-three-gpus", "194 GB, 3 GPUs"),
        ("loraprune-time-at-50", "1.98 times as fast"),
        ("loraprune-8-bit-results", "PTB: LoRAPrune (8-bit) 17.41, LLM-Pruner 20.85"),
    ],
)
def test_what_the_printed_numbers_say(audited, claim, words):
    assert words in audited[claim].in_print.recomputed


def test_the_same_per_cent_saved_and_used_have_two_verdicts(audited):
    saved, used = (audited[f"loraprune-memory-{where}"] for where in ("abstract", "introduction"))
    assert saved.claim.printed == used.claim.printed
    assert saved.in_print.verdict == Verdict.HOLDS
    assert used.in_print.verdict == Verdict.SAVED_NOT_USED


def test_every_printed_cell_has_a_known_source(evidence):
    tables = [evidence.pruned[name] for name in (*pruned.DECIMALS, "time", "throughput")]
    cells = [cell for table in tables for row in table.values() for cell in row.values()]
    assert len(cells) == 9 + 3 + 1
    assert {cell["source"] for cell in cells} == set(evidence.pruned["sources"])


MEASURED = {
    "prunings": (*pruned_here.CHECKS, *PRUNED_SETTINGS),
    "benched": (*pruned.BENCHED, pruned.bench_has),
}


def _sources(check: Check) -> set[str]:
    """What the check looks at, or those that it is made of."""
    parts = [Check(**part, verdict="holds") for part in check.arguments.get("parts", [])]
    names = {source: {c.__name__ for c in checks} for source, checks in MEASURED.items()}
    own = {source for source, known in names.items() if check.check in known}
    return own.union(*map(_sources, parts))


RESTING = [claim for claim in CLAIMS if _sources(claim.here)]


@pytest.mark.parametrize("claim", RESTING, ids=lambda claim: claim.id)
def test_a_claim_is_decided_where_all_is_measured_and_only_there(evidence, claim: Claim):
    """Of made-up outcomes of every declared run, and without those or without a bench."""
    whole = {"prunings": made_up.outcomes(grids.grid(), "mini")}
    whole["benched"] = made_up.bench()
    decided = run(claim, "here", replace(evidence, **whole))
    assert decided.verdict != Verdict.NOT_RUN
    for source in _sources(claim.here):
        without = replace(evidence, **whole | {source: {}})
        assert run(claim, "here", without).verdict == Verdict.NOT_RUN


def test_most_claims_rest_on_what_is_measured():
    assert len(RESTING) > 50
    assert {source for claim in RESTING for source in _sources(claim.here)} == set(MEASURED)


# Numbers that a check asks for --------------------------------------------------------------


def test_a_printed_number_goes_to_checks_of_what_is_printed_alone():
    """A check of what is measured has its threshold as an argument of its own: the printed number
    of a sentence may be a share that is pruned, or a number of bits."""
    named = {
        level: {name for name, check in checks.items() if "printed" in signature(check).parameters}
        for level, checks in CHECKS.items()
    }
    ours = {check.__name__ for checks in MEASURED.values() for check in checks}
    ours |= {"all_of", "both_of"}
    assert not named["here"] & ours
    own = {check.__name__ for check in pruned.PRUNED}
    expected = {"perplexity_gap", "memory_share", "as_speed", "weights_of", "intermediates"}
    assert named["in_print"] & own == expected | {"as_cited"}


MARGINS = {"memory_saved": {26.3, 12.3, 0}, "throughput_gained": {32.3, 0}}
MARGINS |= {"time_saved": {0}, "unmerged_costs": {0}, "keeps_beside": {1}}
REDUCTIONS = {
    "wikipedia": 29.3,
    "books": 16.6,
}  # per cent, in place of WikiText2, PTB


def _asked(check: Check) -> list[tuple[str, float]]:
    parts = [Check(**part, verdict="holds") for part in check.arguments.get("parts", [])]
    own = [(check.check, check.arguments["least"])] if "least" in check.arguments else []
    return [*own, *(asked for part in parts for asked in _asked(part))]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_what_is_asked_for_is_the_printed_number_or_a_declared_margin(claim: Claim):
    for check, least in _asked(claim.here):
        margins = REDUCTIONS.values() if check == "perplexity_below" else MARGINS[check]
        assert least in margins or (least == claim.printed and claim.unit == "%")


def test_margins_are_half_of_what_is_printed(evidence):
    """52.6% and 64.6% of the text; 13.8 of 18.3 GB."""
    assert list(page.margins(evidence).values()) == [26.3, 12.3, 32.3]
    declared_margins = {least for asked in MARGINS.values() for least in asked} - {0, 1}
    assert declared_margins == set(page.margins(evidence).values())


def test_a_printed_reduction_is_asked_for_in_per_cent_of_llm_pruners(evidence):
    new, old = (evidence.pruned["perplexity"][row] for row in ("loraprune", "llm_pruner"))
    for corpus, printed in zip(CORPORA, ("wikitext2", "ptb"), strict=True):
        relative = 100 * (1 - new[printed]["value"] / old[printed]["value"])
        assert round(relative, 1) == REDUCTIONS[corpus]
    asked = [c.here.arguments for c in CLAIMS if {"least", "corpora"} <= c.here.arguments.keys()]
    assert len(asked) >= 5
    assert all(REDUCTIONS[one["corpora"][0]] == one["least"] for one in asked)


# The page -----------------------------------------------------------------------------------


def test_each_paper_has_its_own_counts(evidence, audited):
    values = page.page_values(evidence=evidence)
    for paper in PAPERS:
        own = [each for each in audited.values() if each.claim.paper == paper]
        assert values[f"claims_{paper}_count"] == str(len(own))
        rows = re.findall(
            r"^\| \*.*\* \| (\S+) \| (\S+) \|$", values[f"claims_{paper}_verdicts"], re.M
        )
        for column in zip(*rows, strict=True):
            assert sum(int(count) for count in column if count != "-") == len(own)
        others = [each.claim.id for each in audited.values() if each.claim.paper != paper]
        assert not any(f"(claim-{other})" in values[f"claims_{paper}_summary"] for other in others)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_quote_in_english_is_printed_once(audited, claim: Claim):
    shown = page._claim(audited[claim.id], PAPERS["loraprune"].language)
    english = claim.english is None
    assert f'<span lang="{"en" if english else "ko"}">' in shown
    assert ("\n*" in shown) != english
    assert shown.count(page._plain(claim.quote)) == 1


def test_the_tables_of_its_cells(evidence):
    frame = page.perplexities(evidence)
    assert list(frame.loc["LoRAPrune"]) == ["11.60", "17.39", "text, note"]
    frame = page.memories(evidence)
    assert list(frame["GPU memory, GB"]) == ["38.6", "18.3", "13.8"]


def test_the_command_lists_both_papers(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tipmini", "claims"])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0
    heads = [lines.index(f"{p.title}: {_count(name)} claims") for name, p in PAPERS.items()]
    starts = {
        claim.id: next(i for i, t in enumerate(lines) if t.startswith(f"{claim.id} "))
        for claim in CLAIMS
    }
    assert heads[0] < heads[1] < min(starts.values())


def _count(paper: str) -> int:
    return sum(claim.paper == paper for claim in declared().claims)
