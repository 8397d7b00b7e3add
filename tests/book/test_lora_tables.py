"""The chapters on LoRA: frames and tables of made-up runs and a made-up bench, and empty ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import cell
from transformers import AutoConfig, AutoModelForCausalLM

from tipmini.papers import lora
from tipmini_lab.book import lora_figures, lora_tables, tables
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.evaluation import assets
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results import store
from tipmini_lab.results.statistics import MISSING, Verdict

MINI = load_profile("mini")
GROUP = "lora-methods"
TASKS = ("openbookqa", "arc_challenge")
RIGHT = {"base": [0, 0, 0, 1], "full": [1, 1, 0, 1], "lora": [1, 1, 1, 1]}


@pytest.fixture
def profile(tmp_path):
    """Three ways with two seeds, LoRA's second one row worse; two rates of LoRA."""
    found = MINI.model_copy(update={"results": str(tmp_path / "results" / "mini")})
    at = tunings.folder(found, GROUP)

    def keep(name: str, task: str, values: list, **facts: float) -> None:
        made = cell(name, TASKS[0], values).model_copy(update={"task": task})
        bundle = {"name": name, "title": name, "settings": {}, "facts": facts, "cells": [made]}
        store.keep(at, store.Bundle(**bundle))

    spectrum = {f"update_{p}": [0.5] * len(tunings.RANKS) for p in tunings.PROJECTIONS}
    spectrum |= {f"weight_{p}": [0.25] * len(tunings.RANKS) for p in tunings.PROJECTIONS}
    for way, right in RIGHT.items():
        for task in TASKS:
            for seed in range(1 if way == "base" else 2):
                facts = {} if way == "base" else {"trained": 1000.0, "rate": 0.001}
                facts |= spectrum if way == "full" else {}
                own = [*right[:3], int(not (way == "lora" and seed))]
                keep(f"{way}-{task}-s{seed}", task, right if way != "lora" else own, **facts)
    for rate, loss in ((0.0003, 1.5), (0.001, 1.25)):
        keep(f"lora-rate-{rate:g}", "held-out", [loss], held_out=loss, rate=rate)
    return found


@pytest.fixture
def empty(tmp_path):
    return MINI.model_copy(update={"results": str(tmp_path / "none" / "mini")})


def test_runs_are_the_declared_ones_and_what_is_stored_of_them(profile):
    found = lora_tables.runs(profile, GROUP)
    many = tunings.Tunings(profile, GROUP)
    assert list(found.index) == [r.name for r in [*many.sweeps(), *many.runs()]]
    assert found.stored.sum() == 2 * (1 + 2 + 2) + 2
    assert found.value["lora-openbookqa-s1"] == 0.75
    table = lora_tables.way_table(found, whole=100_000)
    assert table.loc["LoRA"].to_list() == [
        *["0.875<br>0.750–1.000"] * 3,
        *("1,000", "1.000%", "0.001"),
    ]
    assert table.loc["not tuned", "mean"] == "0.250"
    assert table.loc["BitFit"].to_list() == [MISSING, *[EMPTY] * 2, "-", "-", "-"]


def test_rows_are_means_over_the_seeds_and_compared_row_by_row(profile):
    side = lora_tables.rows(profile, GROUP)
    assert side.loc["openbookqa", "lora"].tolist() == [1, 1, 1, 0.5]
    compared = lora_tables.against(lora_tables.runs(profile, GROUP), side).set_index("against")
    assert compared.value["full"] == pytest.approx((1 - 0.5) / 4)
    assert compared.value["base"] == pytest.approx((3 - 0.5) / 4)
    shown = lora_tables.against_table(compared.reset_index())
    assert shown.loc["BitFit", "LoRA is"] == MISSING
    assert shown.loc["not tuned", "difference, points"].startswith("+62.5<br>[")


def test_the_lowest_held_out_loss_is_bold(profile):
    found = lora_tables.runs(profile, GROUP)
    shown = lora_tables.rate_table(found)
    assert shown.loc["LoRA", ["0.0003", "0.001", "0.003"]].to_list() == [
        *("1.500", "**1.250**", MISSING)
    ]
    assert lora_tables.best_rates(found) == {}  # the third is missing
    known = found.assign(held_out=found.held_out.fillna(9.0))
    assert lora_tables.best_rates(known)["lora"] == 0.001


def test_spectra_are_read_of_full_tuning(profile):
    found = lora_tables.spectra(profile)
    assert (found.loc["update"] == 0.5).to_numpy().all()
    assert (found.loc["weight"] == 0.25).to_numpy().all()


def test_nothing_stored_says_so_and_breaks_nothing(empty, monkeypatch, tmp_path):
    monkeypatch.setattr(lora_tables, "STORED", tmp_path / "none.json")
    found = lora_tables.runs(empty, GROUP)
    assert not found.stored.any() and lora_tables.rows(empty, GROUP).empty
    compared = lora_tables.against(found, lora_tables.rows(empty, GROUP))
    ranks = lora_tables.rank_table(lora_tables.runs(empty, "lora-ranks"))
    shown = [lora_tables.way_table(found, 1), lora_tables.against_table(compared), ranks]
    shown += [lora_tables.rate_table(found), lora_tables.latency_table(lora_tables.ratios({}))]
    shown += [lora_tables.amplification_table(lora_tables.amplifications(empty))]
    shown += [lora_tables.switching_table({}), lora_tables.training_table({})]
    assert all(MISSING in tables.markdown_table(one) for one in shown)
    assert lora_tables.spectra(empty).empty and lora_tables.similarities(empty, "ranks") == {}
    assert lora_tables.step_gain({}) is None and lora_tables.bench() == {}
    for figure in (
        lora_figures.by_size(lora_tables.trained_means(found), None),
        lora_figures.subspaces({"a": {}}),
        lora_figures.lines({}, "x", "y"),
        lora_figures.latencies(lora_tables.ratios({}), lora_tables.WAYS),
    ):
        assert MISSING in [text.get_text() for text in figure.texts]


def test_means_over_seeds_and_names_that_do_not_cover_each_other():
    lines = [("LoRA", s, 4e5, 0.5 + s / 10) for s in range(3)] + [("full", 0, 1e8, 0.6)]
    lines += [("AdapterH", 0, 5e5, 0.6), ("AdapterL", 0, 5e5, 0.601)]
    found = pd.DataFrame(lines, columns=["title", "seed", "trained", "value"])
    means = lora_tables.trained_means(found.assign(swept=False, stored=True))
    assert means.loc["LoRA"].to_list()[:2] == [4e5, pytest.approx(0.6)]
    assert means.loc["LoRA", "reach"] == pytest.approx(1.96 * 0.1 / 3**0.5, rel=1e-3)
    assert means.loc["full", "reach"] == 0
    (axes,) = lora_figures.by_size(means, 0.4).axes
    near = [text.xy[1] for text in axes.texts if text.get_text() != "full"]
    low, high = axes.get_ylim()
    assert len(near) == 3 and min(np.diff(sorted(near))) > 0.03 * (high - low)


def test_what_is_slower_than_the_axis_is_told_as_a_number():
    points = [
        {"way": way, "batch": batch, "length": 1, "seconds": [seconds] * 3}
        for batch in (1, 8)
        for way, seconds in {"base": 1.0, "lora": 1.1, "prompt": 2.0 * batch}.items()
    ]
    figure = lora_figures.latencies(lora_tables.ratios({"points": points}), lora_tables.WAYS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["× 2.0, 16.0"]


def test_ranks_are_a_pivot_of_the_names():
    lines = [(f"r{r}-{m}", 0, r / 100) for m in ("q", "q-k-v-o") for r in (2, 64)]
    found = pd.DataFrame(lines, columns=["way", "seed", "value"]).assign(swept=False)
    shown = lora_tables.rank_table(found)
    assert shown.loc["q, k, v, o"].to_dict() == {"r = 2": "0.020", "r = 64": "0.640"}


def test_amplification_is_the_median_over_the_layers(monkeypatch):
    norms = pd.DataFrame([[60, 6, 20, 0.02, 12], [62, 8, 22, 0.04, 4]], columns=tunings.NORMS)
    every = pd.concat({("r4-q-v", "q_proj"): norms}, names=["way", "projection", "layer"])
    (line,) = lora_tables.amplification_table(every).to_dict("index").values()
    assert line["‖ΔW‖"] == "7" and line["factor"] == "8" and line["of W along ΔW"] == "1.25"


# Counts -------------------------------------------------------------------------------------------


def test_counts_are_eq_4_where_matrices_are_square():
    found = lora_tables.counts()
    for shape in lora_tables.printed()["models"].values():
        if set(shape["outputs"]) == {shape["width"]}:
            matrices = shape["layers"] * len(shape["outputs"])
            expected = lora.lora_parameters(matrices, shape["width"], shape["rank"])
            assert found.trained[shape["title"]] == expected
    assert found.trained["GPT-3 175B"] == 18_874_368
    assert round(found.times["GPT-3 175B"]) == 9272
    assert lora_tables.counts_table().loc["GPT-3 175B", "of LoRA"] == "37.7 MB"


def test_the_packaged_models_shape_is_its_own(embedded):
    config = AutoConfig.from_pretrained(assets.embedded() / "model")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = lora_tables.printed()["models"]["smollm2"]
    attention = model.model.layers[0].self_attn
    assert shape["parameters"] == model.num_parameters()
    assert shape["outputs"] == [p.out_features for p in (attention.q_proj, attention.v_proj)]


def test_printed_latencies_are_the_percentages_of_the_paper():
    adds = [
        [100 * (row[of] / row["lora"] - 1) for of in ("adapter_l", "adapter_h")]
        for row in lora_tables.printed()["latency"]
    ]
    assert np.round(adds, 1).tolist() == [[2.2, 3.0], [5.0, 8.4], [20.7, 30.3]]


# The bench ----------------------------------------------------------------------------------------
BENCH = {
    "points": [
        {"way": "base", "batch": 1, "length": 128, "seconds": [1.0, 2.0]},
        {"way": "adapter-h", "batch": 1, "length": 128, "seconds": [1.5, 2.2]},
    ],
    "switching": {"seconds": {"BA swapped": [0.001, 0.003]}, "moved": 0.5},
    "training": {
        "ways": {
            "full": {"seconds": [3.0, 4.0], "trained": 9, "gradients": 36e6, "moments": 72e6}
            | {"weights": 36e6, "risen": 1e6},
            "lora": {"seconds": [2.0, 2.0], "trained": 1, "gradients": 4, "moments": 8}
            | {"weights": 36e6, "risen": None},
        }
    },
}


def test_ratios_are_of_the_same_round():
    """1.5 and 1.1 of the base's."""
    found = lora_tables.ratios(BENCH)
    assert found.loc[1, 128, "adapter-h"].to_list() == pytest.approx([1.3, 1.1, 1.5, 1.85])
    shown = lora_tables.latency_table(found)
    assert shown.loc["AdapterH", "1 × 128"] == "+30.0%<br>(+10% to +50%)"
    assert shown.loc["base model", "1 × 128"] == "1,500.0 ms"
    assert lora_tables.step_gain(BENCH) == (1.75, 1.5, 2)
    assert lora_tables.switching_table(BENCH).loc["BA swapped", "milliseconds"] == "2.0"
    assert lora_tables.training_table(BENCH).loc["LoRA", "rise in a step, MB"] == "-"


def test_lines_differ_in_colour_or_dash_and_several_values_have_a_bar():
    found = {f"line {n}": pd.Series([0.1, 0.3, 0.5], [1, 1, 4]) for n in range(8)}
    (axes,) = lora_figures.lines(found, "tokens", "accuracy").axes
    drawn = [box.lines[0] for box in axes.containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == len(found)
    assert drawn[0].get_ydata().tolist() == [0.2, 0.5]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0.1, 0.3], [0.5, 0.5]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]


def test_how_many_differ_is_told():
    compared = pd.DataFrame({"title": ["q", "o"], "verdict": [Verdict.OPEN, Verdict.BETTER]})
    assert "Of the 2 others 1 differ significantly" in lora_tables.differ_note(compared)
    assert lora_tables.differ_note(compared).endswith("corrected together: o.")
    compared.loc[0, "verdict"] = Verdict.MISSING
    assert lora_tables.differ_note(compared) == ""


def test_a_difference_stands_in_a_line_and_the_longest_prefix_beside_the_others():
    lines = {"title": ["prefix-layer, 4", "prefix-embedding, 1"], "verdict": [Verdict.OPEN] * 2}
    compared = pd.DataFrame(lines | {"value": 0.02, "low": -0.01, "high": 0.05})
    told = "+2.0 points [-1.0, +5.0], not significant"
    assert lora_tables.points_in_line(compared.iloc[0]) == told
    note = lora_tables.longest_note(compared)
    assert note.endswith(f"its accuracy minus that of prefix-layer, 4: {told}.")
    compared.loc[1, "verdict"] = Verdict.MISSING
    assert lora_tables.longest_note(compared) == ""


def test_whether_one_rate_is_best_at_every_rank():
    best = {"r8-both": 0.003, "r2-divided": 0.003, "r64-divided": 0.003}
    assert lora_tables.scalings_note(best) == ""
    note = lora_tables.scalings_note(best | {"r2-constant": 0.01, "r64-constant": 0.003})
    assert "0.003 at rank 2, 0.003 at rank 8, 0.003 at rank 64: one rate." in note
    assert note.endswith("0.01 at rank 2, 0.003 at rank 8, 0.003 at rank 64: no one rate.")
