"""What `make bench` stands on: its two sides compute the same, and what it stores can be shown."""

import functools

import pytest
import torch
from labs import llama

import tipmini as tm
from bench import costs, evaluation, merging, timing
from tipmini_lab import paths
from tipmini_lab.book import performance, tables
from tipmini_lab.experiments.catalogue import Distilled, Variant
from tipmini_lab.experiments.lab import Lab

ADAPTERS = {str(i): merging.random_adapter(i, blocks=1, size=96) for i in range(3)}
NORMS = {name: merging.random_norms(adapter, int(name)) for name, adapter in ADAPTERS.items()}


def test_wandas_sort_and_the_partition_merge_to_the_same_bits():
    ours, theirs = (f(ADAPTERS, NORMS) for f in (merging.over_delta, merging.wandas_merge))
    assert ours.keys() == theirs.keys() == set(merging.module_names(1))
    assert all(torch.equal(ours[module], theirs[module]) for module in ours)


def test_wandas_mask_is_that_of_a_stable_sort():
    score = torch.tensor([[3.0, 1.0, 1.0, 2.0]])
    assert merging.wandas_mask(score, 0.25).tolist() == [[True, False, True, True]]


def test_peft_merges_the_very_adapters_in_the_same_precision():
    model = merging.in_peft(ADAPTERS, blocks=1, size=96)
    model.add_weighted_adapter(list(ADAPTERS), [1.0] * len(ADAPTERS), "merged", "linear")
    merged = tm.merge(ADAPTERS, "linear")
    for name in merging.module_names(1):
        layer = model.base_model.model.get_submodule(name)
        theirs = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
        ours = merged.factors[name].a, merged.factors[name].b
        assert all(torch.equal(p, o) for p, o in zip(theirs, ours, strict=True))


def test_wandas_procedure_and_one_pass_measure_the_same_norms():
    model, rows = llama(vocabulary=64), [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    theirs = evaluation.wandas_norms(model, rows)
    ours = tm.calibrate(model, [{"input_ids": torch.tensor([row])} for row in rows], theirs)
    assert len(theirs) == 7 * model.config.num_hidden_layers
    for name, norm in theirs.items():
        torch.testing.assert_close(ours[name], norm, rtol=1e-4, atol=1e-6)


def test_every_token_that_a_model_computes_is_counted():
    model = llama(vocabulary=64)
    with evaluation.counted(model) as counter:
        model(torch.zeros(2, 5, dtype=torch.long))
        model(torch.zeros(1, 3, dtype=torch.long))
    assert counter == {"tokens": 13, "passes": 2}


LONG_IS_BEST = {
    "arguments": [("Q", " a"), ("Q", " abcd")],
    "filtered_resps": [(-2.0, False), (-3.0, False)],
}
SAID = {"filtered_resps": ["\n the cat \nQ: and then"]}


@pytest.mark.parametrize(
    ("task", "sample", "told"),
    [("boolq", LONG_IS_BEST, 0), ("piqa", LONG_IS_BEST, 1), ("coqa", SAID, "the cat ")],
)
def test_a_prediction_is_what_the_metric_takes(task, sample, told):
    assert evaluation.prediction(sample, task) == told


@pytest.mark.parametrize(("values", "tie"), [((-3.0, -3.0001, -9.0), True), ((-3.0, -3.1), False)])
def test_a_tie_is_what_rounding_can_turn(values, tie):
    assert evaluation.tied(values) == tie


@pytest.mark.parametrize(
    ("task", "scores", "clear"),
    [
        ("boolq", (-2.0, -2.1), False),
        ("boolq", (-2.0, -2.2), True),
        ("piqa", (-2.0, -8.4), False),  # -2 and -2.1 a letter, the shorter has one
        ("piqa", (-2.0, -8.6), True),
        ("coqa", (), True),
    ],
)
def test_an_answer_is_decided_when_a_step_of_a_logit_cannot_turn_it(task, scores, clear):
    sample = LONG_IS_BEST | {"filtered_resps": [(score, False) for score in scores]}
    assert evaluation.decided(sample, task) == clear


def test_peak_memory_is_what_was_held_at_once():
    """In a process of its own: a long one has freed memory to use again."""
    work = functools.partial(torch.ones, 1 << 24)  # 64 MiB
    peak = timing.in_new_process(timing.peak_memory, work)
    assert peak is None or 0.9 * 2**26 < peak < 1.6 * 2**26


def test_side_by_side_divides_ours_by_the_peers():
    found = timing.side_by_side(lambda: None, lambda: torch.ones(1 << 22).sum(), repeats=3)
    assert found["ratio"] == found["seconds"] / found["peer_seconds"] < 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_power(power):
    numbers = [2, 4, 8, 16]
    assert performance.exponent(numbers, [3 * n**power for n in numbers]) == pytest.approx(power)


def test_growth_lines_hold_all_but_one_number():
    points = [
        {"method": "tip", "adapters": a, "blocks": b, "seconds": a * b}
        for a, b in [(4, 8), (2, 8), (7, 8), (7, 4), (7, 16)]
    ]
    lines = functools.partial(performance.growth_lines, {"merging": {"growth": points}})
    assert lines("adapters", "blocks") == {"tip": ([2, 4, 7], [16, 32, 56])}
    assert lines("blocks", "adapters") == {"tip": ([4, 8, 16], [28, 56, 112])}


def test_the_page_names_what_is_stored_and_every_ratio():
    found, values = performance.read(), performance.page_values()
    page = (paths.BOOK / "performance.md").read_text()
    assert all(f"{{{{ {name} }}}}" in page for name in values)
    for row in found["merging"]["beside"]:
        assert row["name"] in values["bench_beside"]
        assert row["ratio"] == pytest.approx(row["seconds"] / row["peer_seconds"])
    assert all(part in values["bench_made"] for part in found)
    assert all(own["made"]["date"] in values["bench_made"] for own in found.values())
    assert all(tables.svg(picture) for picture in performance.pictures().values())


def test_parts_of_the_same_day_and_machine_are_named_together():
    machine = {"processor": "a CPU", "system": "Linux"}
    same = {"machine": machine, "threads": 2, "versions": {"torch": "2"}}
    dates = {"limits": "2026-01-01", "merging": "2026-01-01", "x": "later"}
    told = performance.made({name: {"made": same | {"date": d}} for name, d in dates.items()})
    assert told == "a CPU, 2 threads, Linux, torch 2: limits, merging on 2026-01-01, x on later"


def test_what_a_merge_costs(profile, monkeypatch):
    """Of one that reads the adapters alone, of one that reads inputs, of one that is learnt."""
    given = [{"method": "ties"}, {"method": "wanda"}, {"method": "cat", "distill": Distilled()}]
    compared = {v["method"]: Variant(name=v["method"], title="a", **v) for v in given}
    monkeypatch.setattr(costs.frontier, "variants", lambda known: compared)
    found = costs.measure(Lab(profile))["merges"]
    assert found.keys() == {"ties", "wanda"}
    assert found["ties"]["inputs"] == 0 < found["wanda"]["inputs"]
    assert all(each["seconds"] > 0 and each["rank"] == 4 for each in found.values())
