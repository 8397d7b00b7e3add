"""The declared networks on a tiny model: everything once, by its measures, and the merges."""

from functools import partial

import prunable
import pytest
import yaml
from pydantic import ValidationError

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models import int4
from tipmini_lab import paths
from tipmini_lab.evaluation import model
from tipmini_lab.experiments import catalogue, elastic, supernet
from tipmini_lab.experiments.elastic import Grid, Network
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import store as storage

TINY = """
module: elastic
description: a try
version: 1
dtype: float32
sizes:
  tiny:
    results: RESULTS
    rows: {openbookqa: 4, rte: 2}
    recipe: {batch: 3, held_out: 3, calibration: 4, ranks: [4, 2, 1], learning_rate: 0.05}
    search: {population: 4, generations: 2}
    own_rows: {openbookqa: 3, rte: 3}
    own_search: {population: 3, generations: 1}
    calibration: 2
    rates: {wide: [0.05, 1.0e-9]}
networks:
  - name: wide
    title: LoNAS
    options: {widths: [1.0, 0.75, 0.5]}
    models: [untuned, whole, midpoint, search, search-small]
    timed: [midpoint]
    cost: true
    seeds: [0]
  - name: plain
    title: Shears
    options: {sparsity: 0.5}
    models: [midpoint, midpoint+dense]
    seeds: [0]
own: {name: own, title: elastic, options: {}, models: [search], seeds: [0]}
merges: [base, single, cat, tip-cat]
"""


@pytest.fixture
def grid(tmp_path) -> Grid:
    text = TINY.replace("RESULTS", str(tmp_path / "results"))
    return Grid.model_validate(yaml.safe_load(text))


@pytest.fixture
def profile(tmp_path, embedded, tokenizer, monkeypatch) -> Profile:
    prunable.embed(monkeypatch, tmp_path, embedded, tokenizer)
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(int4, "grid", partial(int4.grid, group=8))
    for module in (model, supernet):
        monkeypatch.setattr(module, "keep_memory", lambda: None)
        monkeypatch.setattr(module, "load_tokenizer", lambda _: tokenizer)
    return Profile(name="tiny", description="tiny", results=str(tmp_path), evaluation_rows=3)


def measure(profile, grid, *names) -> list[tuple[str, str]]:
    shown: list[tuple[str, str]] = []
    show = lambda cell: shown.append((cell.method, cell.task))  # noqa: E731
    elastic.measure(profile, names=names, show=show, declared=grid)
    return shown


def test_everything_is_measured_once(profile, grid, tmp_path):
    tasks = ["openbookqa", "rte"]
    shown = measure(profile, grid)
    wide = [f"{m}.{t}" for m in grid.networks[0].models for t in tasks]
    wide += ["midpoint.speed", "whole.cost"]
    plain = [f"{m}.{t}" for m in ("midpoint", "midpoint+dense") for t in tasks]
    expected = [("wide-s0", m) for m in wide] + [("plain-s0", m) for m in plain]
    expected += [(f"wide-rate-{r}", "midpoint.held-out") for r in ("0.05", "1e-09")]
    expected += [(f"own-{t}", f"search.{t}") for t in tasks]
    expected += [(name, t) for name in grid.merges for t in tasks]
    assert sorted(shown) == sorted(expected)
    assert measure(profile, grid) == [] == measure(profile, grid, "wide-rate")
    trained = [*(profile.scratch / "elastic").glob("wide-*/training.json")]
    assert len(trained) == 2  # of two rates; seed 0 has one of them

    found = storage.read(tmp_path / "results", "wide-s0")
    facts = found.facts
    assert len(facts["searched.macs"]) == len(facts["searched.scores"]) >= 4
    assert facts["searched.macs"][0] == facts["midpoint.macs"] < facts["whole.macs"]
    assert facts["searched.macs"][1:3] == [facts["whole.macs"], min(facts["searched.macs"])]
    assert facts["search.macs"] in facts["searched.macs"]  # a model of that name has its own
    assert facts["untuned.parameters"] < facts["whole.parameters"]
    (speed,) = [c for c in found.cells if c.task == "midpoint.speed"]
    assert speed.count == elastic.ROUNDS and min(speed.values) > 0

    facts = storage.read(tmp_path / "results", "plain-s0").facts
    assert facts["midpoint.sparsity"] == 0.5 and facts["midpoint+dense.sparsity"] < 0.01

    stored = [storage.read(tmp_path / "results", f"wide-rate-{r}") for r in ("0.05", "1e-09")]
    assert not any("searched.macs" in bundle.facts for bundle in stored)  # nothing is searched
    losses = [bundle.cells[0] for bundle in stored]
    assert {(cell.metric, cell.count) for cell in losses} == {("loss", 6)}  # three a task
    assert losses[0].mean != losses[1].mean

    adapters = [tm.load_adapter(d) for d in (profile.scratch / "elastic/searched").glob("*/")]
    assert len(adapters) == 2
    merged = storage.cells(elastic.merged_store(grid.size("tiny")), grid.merges)
    assert len(merged) == 8 and {c.dtype for c in merged.values()} == {"float32"}


def test_a_name_that_is_no_network_is_refused(profile, grid):
    with pytest.raises(TipminiError, match="group elastic: no network 'thin' at profile tiny"):
        measure(profile, grid, "thin")
    with pytest.raises(TipminiError, match="profile 'other' is not one of tiny"):
        grid.size("other")


@pytest.mark.parametrize(
    ("models", "timed", "told"),
    [
        (["centre"], [], "'centre' is not one of untuned, whole"),
        (["midpoint+glue"], [], r"'midpoint\+glue' is not one of"),
        (["midpoint"], ["whole"], "'whole' is timed and none of its models"),
    ],
)
def test_models_that_there_are_not_are_refused(models, timed, told):
    with pytest.raises(ValidationError, match=told):
        Network(name="n", title="N", models=models, timed=timed)


def test_the_committed_file_declares_what_the_chapter_shows():
    declared = elastic.grid()
    assert paths.own_groups("elastic") == {"elastic": elastic.FILE}
    assert not {"elastic"} & {*paths.experiment_files(True), *paths.experiment_files(False)}
    assert {"mini", "smoke"} <= declared.sizes.keys()
    profile = Profile(name="mini", description="mini", results="nowhere")
    every = elastic.experiments(profile, declared)
    assert len(every) == 3 * len(declared.networks) + len(declared.size("mini").own_rows)
    for each in every.values():
        assert each.measures() and each.recipe.rows
    assert set(declared.merges) <= catalogue.catalogue().variants.keys()


def trained_like(network: Network) -> str:
    """The network whose rates were tried for it: of the same form, with the same axes elastic."""
    recipe = supernet.NetworkRecipe(**network.options)
    if recipe.form == "grid":
        return "qa-50"
    return "lonas" if len(recipe.widths) > 1 else "shears-50" if len(recipe.ranks) > 1 else "lora"


def test_every_network_has_the_rate_that_was_best_on_held_out_rows(embedded):
    """Which is neither the least nor the highest of those that were tried."""
    profile, declared = load_profile("mini"), elastic.grid()
    size, tried = declared.size("mini"), elastic.sweeps(profile, declared)
    best = elastic.best_rates(tried)
    assert best.keys() == size.rates.keys()
    for name, (rate, rates) in best.items():
        assert min(rates) < rate < max(rates), name
    for network in (*declared.networks, declared.own):
        recipe = supernet.NetworkRecipe(**size.recipe | network.options)
        assert recipe.learning_rate == best[trained_like(network)][0], network.name


def test_rates_of_what_is_no_network_are_refused():
    text = TINY.replace("rates: {wide:", "rates: {thin:")
    with pytest.raises(ValidationError, match="rates of 'thin', which is none of its networks"):
        Grid.model_validate(yaml.safe_load(text))
