"""The elastic chapters' frames, tables and figures: of made-up networks, and of nothing."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml

from tipmini_lab import paths
from tipmini_lab.book import elastic_tables, tables
from tipmini_lab.book.claims import checks_elastic
from tipmini_lab.book.claims.checks import Evidence, NotMeasured
from tipmini_lab.book.elastic_tables import MET, QUESTIONS, SQUARE
from tipmini_lab.experiments import elastic
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import MISSING
from tipmini_lab.results.statistics import Verdict as Compared
from tipmini_lab.results.store import Bundle, Cell

DECLARED = elastic.experiments(load_profile("mini"))
ROWS = 40


def cell(name: str, measure: str, values: list[float], metric: str = "acc") -> Cell:
    told = {"key": "k", "inputs": {}, "code": {}, "profile": "mini", "dtype": "float32"}
    told |= {"seconds": 1.0, "date": "2026-01-31", "machine": {}, "versions": {}}
    return Cell(method=name, task=measure, metric=metric, values=values, **told)


def right(count: int) -> list[float]:
    """So many rows right of ROWS, the first ones."""
    return [float(row < count) for row in range(ROWS)]


def outcomes(**counts: int) -> dict[str, Bundle]:
    """Every network; `counts` right rows of a task for NETWORK__MODEL, 20 of the others."""
    found = {}
    for name, each in DECLARED.items():
        cells, facts = [], {"seconds": 60.0, "loss": [1.0], "steps": 48, "trained": 1000}
        for place, model in enumerate(each.network.models):
            count = counts.get(f"{each.network.name}__{model}".replace("-", "_"), 20)
            cells += [cell(name, f"{model}.{t}", right(count)) for t in each.recipe.rows]
            size = 1e8 - 1e7 * place
            facts |= {f"{model}.parameters": size, f"{model}.nonzero": size / 2}
            facts |= {f"{model}.macs": size, f"{model}.sparsity": 0.5}
        for model in each.network.timed:
            cells.append(cell(name, f"{model}.speed", [1.0, 1.25, 1.5], elastic.RATIO))
        if each.network.cost:
            cells.append(cell(name, "whole.cost", [2.0, 2.5, 3.0], elastic.RATIO))
        if "search" in each.network.models:
            facts |= {"searched.seconds": 30.0, "searched.scores": [0.5, 0.7]}
            facts["searched.macs"] = [9, 8]
        made = {"name": name, "title": name, "settings": {}}
        found[name] = Bundle(**made, facts=facts, cells=cells)
    return found


FOUND = outcomes(lonas__search=30, lonas__midpoint=22, lora__whole=25)
MODELS = elastic_tables.models(FOUND, DECLARED)
SIDE = elastic_tables.rows(FOUND, DECLARED)


def answered(side: pd.DataFrame) -> pd.DataFrame:
    return elastic_tables.compared(elastic_tables.tested(side))


NONE = elastic_tables.models({}, DECLARED)


def test_a_line_a_model_with_its_score_and_sizes():
    own = MODELS[(MODELS.model == "lonas.search") & (MODELS.seed == 1)].iloc[0]
    assert own.score == own.openbookqa == 30 / ROWS
    assert (own.parameters, own.nonzero, own.sparsity) == (7e7, 3.5e7, 0.5)
    assert own.speed == 1.25 and np.isnan(MODELS[MODELS.model == "lonas.whole"].speed).all()
    bits = MODELS.drop_duplicates("model").set_index("model").precision
    for model, told in {
        "lora.untuned": "32",
        "shears-50.midpoint": "32 + 32",
        "shears-50.midpoint+dense": "32",
        "sparsepeft-50.midpoint": "32",
        "sqft-50.midpoint": "4 + 32",
        "sqft-50.midpoint+grid": "4",
        "qa-50.midpoint": "4",
    }.items():
        assert bits[model] == told


def test_a_table_is_told_of_all_seeds_and_against_one_model():
    lines = {"LoRA": "lora.whole", "searched": "lonas.search"}
    table = elastic_tables.shown(MODELS, lines, ["parameters", "speed-up"], "lora.whole")
    assert table.loc["searched"].tolist() == ["75.0<br>75.0–75.0", "120.0%", "70.0 M", "1.25 ×"]
    assert table.loc["LoRA", "relative"] == "100.0%"
    empty = elastic_tables.shown(NONE, lines, ["parameters"], "lora.whole")
    assert empty.loc["LoRA"].tolist() == [MISSING, tables.EMPTY, tables.EMPTY]


def test_questions_are_of_declared_models_and_answered_by_one_test_each():
    known = set(NONE.model)
    assert {model for pair in QUESTIONS.values() for model in pair} <= known
    assert {model for own in SQUARE.values() for model in own} <= known
    assert {name for pair in MET.values() for name in pair} <= set(elastic.grid().merges)
    found = answered(SIDE)
    line = found.loc[elastic_tables.SEARCH]
    assert line["difference, points"].startswith("+20.0 [") and line["verdict"] == "better"
    assert found.loc["QA-SparsePEFT, SQFT"].tolist() == [
        "+0.0 [+0.0, +0.0]",
        "1.000",
        "not significant",
    ]
    missing = answered(elastic_tables.rows({}, DECLARED))
    assert set(missing.iloc[:, 0]) == {MISSING}


def test_a_model_that_lacks_a_seed_is_not_compared():
    fewer = {name: bundle for name, bundle in FOUND.items() if name != "lonas-s2"}
    side = elastic_tables.rows(fewer, DECLARED)
    assert "lonas.search" not in side and "lora.whole" in side
    found = answered(side)
    assert found.loc[elastic_tables.SEARCH, "difference, points"] == MISSING


def test_both_together_against_each_apart(monkeypatch):
    counts = {"elastic__midpoint": 32, "elastic_int4__midpoint": 28, "shears_50__midpoint": 24}
    made = outcomes(**counts, sqft_50__midpoint=16)
    found = elastic_tables.models(made, DECLARED)
    side = elastic_tables.rows(made, DECLARED)
    table = elastic_tables.square(found, side)
    # 80% dense, 70% in 4 bits, 60% sparse: apart they would leave 50%, and are 40%
    empty, told = table.loc["together less apart, points"].tolist()[:2]
    assert empty == tables.EMPTY and told.startswith("-10.0<br>[")
    assert table.loc["50%", "32 bits"] == "60.0<br>60.0–60.0"
    assert MISSING in elastic_tables.square(NONE, elastic_tables.rows({}, DECLARED)).to_numpy()
    one = elastic_tables.interaction(side)
    assert one.low < one.value < one.high and one.value == pytest.approx(-0.1)
    assert elastic_tables.interaction(side.drop(columns="qa.midpoint"), 2) is None
    monkeypatch.setattr(checks_elastic, "_rows", lambda: side)
    assert checks_elastic.together(None)["better"] is False
    monkeypatch.setattr(checks_elastic, "_rows", lambda: side[["lora.whole"]])
    with pytest.raises(NotMeasured):
        checks_elastic.together(None)


def test_what_a_model_takes_to_store():
    whole = {"parameters": 120, "nonzero": 120, "macs": 0, "sparsity": 0.0}
    half = whole | {"nonzero": 70, "sparsity": 0.5}  # 50 of 100 are zeros, 20 are beside
    sizes = [pd.Series(each) for each in (whole, half)]
    told = [elastic_tables.stored_bytes(each, on_grid=False) for each in sizes]
    assert told == [480, 4 * 70 + 100 / 8]
    on_grid = elastic_tables.stored_bytes(sizes[1], on_grid=True)
    assert on_grid == pytest.approx(4 * 20 + 50 + 100 / 64 * 5)


def test_what_is_not_zero_in_print_needs_one_adapter_beside():
    printed = yaml.safe_load(paths.PRINTED.read_text())
    found = checks_elastic.nonzero_left(Evidence(printed, {}, load_profile("mini")))
    assert found["both"] and found["shown"] == "7.94B, 6.67B"
    assert 0 < found["least"] < 20 < found["most"] < 90


def test_findings_are_three_lines_whatever_is_stored():
    told = elastic_tables.findings(MODELS, answered(SIDE))
    assert len(told) == 3 and "75.0%" in told[0] and "better than the midpoint" in told[1]
    assert "not significantly different from Shears'" in told[2]
    few = SIDE.drop(columns="shears-50.search")
    told = elastic_tables.findings(MODELS, answered(few))
    assert told[1] == f"**Searched**: {MISSING}." and "75.0%" in told[0]
    side = elastic_tables.rows({}, DECLARED)
    told = elastic_tables.findings(NONE, answered(side))
    assert told == [f"**{name}**: {MISSING}." for name in ("Smaller", "Searched", "Sparse")]


def test_the_speed_up_is_held_against_the_sizes():
    assert elastic_tables.ratio_note(NONE, 0) == ""
    few = MODELS.assign(macs=MODELS.macs.mask(MODELS.model == "narrow.untuned", 8e7))
    assert "1.25 times as fast" in elastic_tables.ratio_note(few, 0)
    assert "have 1.25 times fewer operations: here the speed-up is not above" in (
        elastic_tables.ratio_note(few, 0)
    )
    with_head = elastic_tables.ratio_note(few, -20_000_000)  # counted on top
    assert "1.20 times fewer operations: here the speed-up is above" in with_head


def test_the_learning_rates_that_were_best_are_told(monkeypatch):
    tried = elastic.sweeps(load_profile("mini"))
    losses = {n: abs(each.rate - 3e-4) for n, each in tried.items() if n.startswith("lora-")}
    find = lambda _, n, m: cell(n, m, [losses[n]], "loss") if n in losses else None  # noqa: E731
    monkeypatch.setattr(elastic.store, "cell_of", find)
    told = elastic_tables.rates_note(tried)
    assert told.count("(of") == 1 and "LoRA 0.0003 (of 0.0001, 0.0003, 0.001, 0.003, 0.01);" in told
    losses.popitem()
    assert elastic.best_rates(tried) == {}


def test_what_it_cost():
    costs = elastic_tables.costs(FOUND, DECLARED)
    assert costs.loc["lonas"].tolist() == ["60", "30", "2"]
    assert costs.loc["lora"].tolist() == ["60", tables.EMPTY, tables.EMPTY]
    assert elastic_tables.full_tuning(FOUND) == 2.5 and elastic_tables.full_tuning({}) is None


@pytest.mark.parametrize(
    ("macs", "scores", "places"),
    [([3, 2, 1], [0.9, 0.5, 0.7], [2, 0]), ([1, 1], [0.2, 0.3], [1]), ([5], [0.1], [0])],
)
def test_the_front_is_what_none_of_fewer_operations_reaches(macs, scores, places):
    assert elastic_tables.front(np.array(macs), np.array(scores)) == places


def test_figures_are_drawn_of_anything():
    searches = {"LoNAS": FOUND["lonas-s0"].facts}
    points = {"LoRA": ("lora.whole", "LoRA")}
    for figure in (
        elastic_tables.progress(searches),
        elastic_tables.progress({}),
        elastic_tables.trade(MODELS, points),
        elastic_tables.trade(NONE, points),
        elastic_tables.pictures({"a": np.eye(3), "zero": np.zeros((2, 2))}),
    ):
        assert tables.svg(figure).startswith("<?xml")


def test_the_chapter_names_declared_models_and_printed_rows_agree():
    source = (paths.NOTEBOOKS / "12_elastic_measured.ipynb").read_text()
    named = set(re.findall(r"\\\"([a-z0-9-]+\.[a-z+-]+)\\\"", source))
    assert len(named) > 20 and named - {"searched.macs", "searched.seconds", "config.json"} <= set(
        NONE.model
    )
    printed = yaml.safe_load(paths.PRINTED.read_text())["elastic"]
    for table in ("table1", "table2", "table3"):
        rows = printed[table]["rows"]
        base = rows["LoRA"]["score"]
        for row in rows.values():
            if "relative" in row:
                assert row["relative"] == pytest.approx(100 * row["score"] / base, abs=0.05)


@pytest.mark.parametrize(
    ("low", "verdict", "no_worse"),
    [(-0.019, Compared.OPEN, True), (-0.021, Compared.OPEN, False), (0, Compared.WORSE, False)],
)
def test_as_good_is_near_and_not_only_untold(monkeypatch, low, verdict, no_worse):
    """A wide interval around nothing is no evidence that two are alike."""
    line = {"name": "a", "against": "b", "value": 0.0, "low": low, "high": 0.05}
    told = pd.DataFrame([line | {"corrected": 0.5, "verdict": verdict}])
    monkeypatch.setattr(checks_elastic, "_stored", lambda: (told, MODELS, None))
    found = checks_elastic.scores(None, of="a", against="b")
    assert (found["no_worse"], found["better"]) == (no_worse, False)
    told["verdict"] = Compared.MISSING
    with pytest.raises(NotMeasured):
        checks_elastic.scores(None, of="a", against="b")


def test_claims_ask_the_questions_of_the_chapter():
    every = yaml.safe_load((paths.CLAIMS / "elastic.yaml").read_text())["claims"]
    asked = [c["here"] for c in every if c["here"].get("check") == "scores"]
    pairs = {(one["arguments"]["of"], one["arguments"]["against"]) for one in asked}
    assert len(pairs) > 5 and pairs <= {*QUESTIONS.values()}


def test_nothing_is_told_of_some_seeds_alone(monkeypatch):
    asked = {"of": "lonas.search", "against": "lora.whole"}
    monkeypatch.setattr(checks_elastic, "_stored", lambda: (SIDE, MODELS, None))
    assert checks_elastic.sizes(None, **asked)["both"]
    found = {name: bundle for name, bundle in FOUND.items() if name != "lonas-s2"}
    models = elastic_tables.models(found, DECLARED)
    monkeypatch.setattr(checks_elastic, "_stored", lambda: (SIDE, models, None))
    with pytest.raises(NotMeasured):
        checks_elastic.sizes(None, **asked)
    lines = {"LoNAS": "lonas.search", "LoRA": "lora.whole"}
    scores = elastic_tables.shown(models, lines, ["parameters"])["score, %"]
    assert scores["LoNAS"] == MISSING != scores["LoRA"]
    points = {"LoNAS": ("lonas.search", "LoNAS"), "LoRA": ("lora.whole", "LoRA")}
    (axes, _) = elastic_tables.trade(models, points).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["LoRA"]
