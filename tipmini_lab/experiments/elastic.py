"""The declared super-networks: experiments/elastic/*.yaml, each trained, searched and measured.

A measure is "MODEL.TASK": a model is a choice among a network's sub-adapters and, behind a +, how
it is merged. In a task's place "speed" and "cost" are ratios of times; "held-out" is the loss of
rows that nothing was trained on, by which learning rates are chosen.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from tipmini.errors import TipminiError
from tipmini.methods.subadapter import MERGES
from tipmini_lab import paths
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation import evaluator, objective, tasks
from tipmini_lab.evaluation.packing import batches
from tipmini_lab.experiments.catalogue import Named
from tipmini_lab.experiments.experiment import Experiment, Show, run
from tipmini_lab.experiments.lab import Bundled, Lab, run_all
from tipmini_lab.experiments.profiles import Profile, Rows
from tipmini_lab.experiments.searching import Found, SearchRecipe, search
from tipmini_lab.experiments.supernet import Configuration, NetworkRecipe, SuperNet
from tipmini_lab.experiments.tunings import finite
from tipmini_lab.experiments.variants import evaluation_code
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Cell

FILE = paths.EXPERIMENTS / "elastic" / "elastic.yaml"
SEARCHED = ("search", "search-small")  # at most the midpoint's operations; at least its score
CHOICES = ("untuned", "whole", "midpoint", "smallest", *SEARCHED)
AXES = ("ranks", "widths")
SPEED, COST, HELD_OUT = "speed", "cost", "held-out"  # in a task's place
RATIO = "times as fast"
ROUNDS, BATCH, LENGTH = 9, 4, 128  # of a comparison of times; prompts a pass, tokens of one


# What is declared ---------------------------------------------------------------------------------
class Size(Declared):
    """How much of it a profile measures."""

    results: str  # folder of the cells, below the repository
    rows: Rows  # train rows of each task, of which networks for all are trained
    recipe: dict[str, Any] = Field({})  # of every `NetworkRecipe`
    search: dict[str, int] = Field({})  # of a `SearchRecipe`
    own_search: dict[str, int] = Field({})  # of the networks that are trained for one task
    own_rows: Rows = Field({})  # their train rows, by task
    calibration: int = Field(32, ge=1)  # train rows a task for merges that need norms
    rates: dict[str, tuple[float, ...]] = Field({})  # by network, learning rates that are tried


class Network(Named):
    """A super-network, or plain LoRA where every axis has one value."""

    options: dict[str, Any] = Field({})  # of a `NetworkRecipe`
    models: tuple[str, ...] = Field(min_length=1)  # CHOICE or CHOICE+MERGE
    timed: tuple[str, ...] = ()  # of the models, those whose speed is measured
    cost: bool = False  # whether a step is compared with one of full tuning
    seeds: tuple[int, ...] = (0, 1, 2)

    @field_validator("models", "timed")
    @classmethod
    def _read(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for model in models:
            choice, _, merge = model.partition("+")
            if choice not in CHOICES or (merge and merge not in MERGES):
                known = f"one of {', '.join(CHOICES)}, with + and one of {', '.join(MERGES)}"
                raise ValueError(f"{model!r} is not {known}")
        return models

    @model_validator(mode="after")
    def _times_its_own(self) -> "Network":
        if unknown := set(self.timed) - set(self.models):
            raise ValueError(f"{min(unknown)!r} is timed and none of its models")
        return self


class Grid(Declared):
    """The file."""

    module: str  # what measures it: this one
    description: str
    version: int
    dtype: Literal["float32", "bfloat16"]  # zeros and grids are exact where sums are
    sizes: dict[str, Size]
    networks: tuple[Network, ...]
    own: Network  # trained for one task at a time, as many as `own_rows` has
    merges: tuple[str, ...]  # variants that merge what was searched of those

    @model_validator(mode="after")
    def _tries_its_own(self) -> "Grid":
        known = {network.name for network in self.networks}
        if unknown := {name for size in self.sizes.values() for name in size.rates} - known:
            raise ValueError(f"rates of {min(unknown)!r}, which is none of its networks")
        return self

    def size(self, profile: str) -> Size:
        if profile not in self.sizes:
            known = ", ".join(self.sizes)
            raise TipminiError(f"group {FILE.stem}: profile {profile!r} is not one of {known}")
        return self.sizes[profile]


def grid(file: Path = FILE) -> Grid:
    """Raises TipminiError, one line that names the file, for what is no valid declaration."""
    return read(Grid, file)


# A network with one seed --------------------------------------------------------------------------
class Elastic(Experiment):
    """One super-network of the grid with one seed; its cells are of all its models."""

    def __init__(
        self,
        lab: Lab,
        declared: Grid,
        network: Network,
        seed: int,
        task: str = "",
        rate: float | None = None,
    ):
        """task: the one that it is trained for alone; rate: of a learning rate that is tried."""
        self.lab, self.profile, self.grid, self.network = lab, lab.profile, declared, network
        self.size, self.task, self.rate = declared.size(lab.profile.name), task, rate
        self.family = network.name if rate is None else f"{network.name}-rate"
        which = task or f"s{seed}" if rate is None else f"{rate:g}"
        told = tasks.KNOWN[task].title if task else f"seed {seed}"
        self.name = f"{self.family}-{which}"
        self.title = f"{network.title}, {told if rate is None else f'learning rate {rate:g}'}"
        self.store = store_of(self.size)
        given = {"rows": {task: self.size.own_rows[task]} if task else self.size.rows}
        options = given | self.size.recipe | network.options
        options |= {} if rate is None else {"learning_rate": rate}
        options |= {k: tuple(v) for k, v in options.items() if k in AXES}
        self.recipe = NetworkRecipe(**options, seed=seed)
        looked = self.size.own_search if task else self.size.search
        self.searching = SearchRecipe(**looked)

    def settings(self, measured: bool = True) -> dict:
        return {
            "version": self.grid.version,
            "model": self.lab.model_hash,
            "recipe": asdict(self.recipe) | {k: list(getattr(self.recipe, k)) for k in AXES},
            "search": asdict(self.searching),
        }

    def measures(self) -> Sequence[str]:
        if self.rate is not None:
            return [f"midpoint.{HELD_OUT}"]
        found = [f"{model}.{task}" for model in self.network.models for task in self.recipe.rows]
        found += [f"{model}.{SPEED}" for model in self.network.timed]
        return [*found, f"whole.{COST}"] if self.network.cost else found

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        made = {"network": digests.digest(self.settings()), "model of it": measure.split(".")[0]}
        task = measure.split(".")[1]
        if task in (SPEED, COST):
            return made | {"rounds": ROUNDS, "batch": BATCH, "length": LENGTH}
        if task == HELD_OUT:
            return made
        return self.lab.inputs(None, self.lab.definition(task)) | made

    def code(self, measure: str) -> dict[str, str]:
        own = {"elastic": elastic_code()}
        return own if measure.endswith(HELD_OUT) else evaluation_code() | own

    def build(self, measure: str = "") -> Path:
        """The folder of the trained network; the network itself is kept for the next measures."""
        return self.net.out

    @cached_property
    def net(self) -> SuperNet:
        made = digests.digest([self.settings(), self.lab.dtype, elastic_code()])
        out = self.profile.scratch / "elastic" / f"{self.network.name}-{made[:12]}"
        return SuperNet(Path(self.lab.model_path), self.recipe, out, self.lab.dtype).run()

    @cached_property
    def found(self) -> Found:
        return search(self.net, self.searching)

    def configuration(self, choice: str) -> Configuration:
        ends = self.net.space.ends()
        if choice not in SEARCHED:
            return ends["whole" if choice == "untuned" else choice]
        middle = self.found.configurations.index(ends["midpoint"])
        if choice == "search":
            place = self.found.best(self.found.macs[middle])
        else:
            place = self.found.smallest(self.found.scores[middle])
        return self.found.configurations[place]

    def apply(self, model: str) -> None:
        """Let the network compute as a model of it."""
        choice, _, merge = model.partition("+")
        self.net.apply(self.configuration(choice), adapter=choice != "untuned")
        if choice != "untuned" and (merge or self.recipe.form != "beside"):
            self.net.merge(merge or self.recipe.form)

    def facts(self) -> dict[str, float | list[float]]:
        """Of every model its sizes, of the training and the search what they cost and saw."""
        found: dict[str, float | list[float]] = {
            "seconds": self.net.log["seconds"],
            "loss": finite(self.net.log["loss"]),
            "steps": len(self.net.steps),
            "trained": sum(p.numel() for p in self.net.factors.values()),
        }
        for model in self.network.models:
            found |= {f"{model}.{name}": value for name, value in self._sizes[model].items()}
        if "found" in self.__dict__:
            told = self.found
            found |= {"searched.seconds": told.seconds, "searched.scores": told.scores}
            found |= {"searched.macs": told.macs, "searched.population": self.searching.population}
        return found

    @cached_property
    def _sizes(self) -> dict[str, dict[str, float]]:
        sizes = {}
        for model in self.network.models:
            self.apply(model)
            sizes[model] = self.net.facts()
        return sizes

    @cached_property
    def lm(self) -> evaluator.PackedLM:
        told = {"tokens": self.profile.tokens, "answer_tokens": self.profile.answer_tokens}
        return evaluator.PackedLM(
            self.net.model, tokenizer=self.net.tokenizer, first_line=True, **told
        )

    def measure(self, measure: str, folder: Path | None) -> Cell:
        model, task = measure.split(".")
        start = time.perf_counter()
        if task == SPEED:
            metric, values = RATIO, self._speeds(model)
        elif task == COST:
            metric, values = RATIO, self._costs()
        elif task == HELD_OUT:
            self.apply(model)
            metric, values = "loss", self._losses()
        else:
            self.apply(model)
            metric = tasks.METRIC[task]
            values = evaluator.evaluate(self.lm, self.lab.definition(task), metric)
        place = {"profile": self.profile.name, "method": self.name, "task": measure}
        told = {"dtype": self.lab.dtype, "values": values, "metric": metric}
        return store.measured(start, self.inputs(measure), self.code(measure), **told, **place)

    @torch.no_grad()
    def _losses(self) -> list[float]:
        """Of every held-out row, task by task."""
        found: list[float] = []
        for task, held_out in self.net.held_out.items():
            degrees = self.net.log["temperature"][task]
            for part in batches([len(e.row) for e in held_out], self.net.tokens):
                group = [held_out[i] for i in part]
                found += objective.losses(self.net.model, group, degrees).tolist()
        return [round(loss, 5) for loss in finite(found)]

    @torch.no_grad()
    def _speeds(self, model: str) -> list[float]:
        """How many times as fast a pass over prompts is as the whole base's, the adapter merged."""
        choice, ids = model.partition("+")[0], torch.full((BATCH, LENGTH), 7)
        ways = {"base": "whole", "own": choice}

        def run(way: str) -> None:
            self.net.apply(self.configuration(ways[way]), adapter=False)
            self.net.model.base_model(ids, use_cache=False)

        return _ratios(run, *ways)

    def _costs(self) -> list[float]:
        """How many times as fast a step of the adapters is as one that trains the weights too."""
        rows = [example for _, example in self.net.train[: self.recipe.batch]]
        own = next(task for task, _ in self.net.train)
        group = [example for task, example in self.net.train if task == own][: len(rows)]
        weights = [layer.base_layer.weight for layer in self.net.layers.values()]
        self.net.apply(self.net.space.ends()["whole"])
        self.net.temperature = self.net.log["temperature"][own]

        def run(way: str) -> None:
            for weight in weights:
                weight.requires_grad_(way == "full")
            self.net.backward(group)
            self.net.model.zero_grad()

        try:
            return _ratios(run, "full", "own")
        finally:
            run("own")

    def run(self, only: Sequence[str] = ()) -> Iterator[Cell]:
        yield from super().run(only)
        for made in ("net", "found", "lm", "_sizes"):
            self.__dict__.pop(made, None)  # one network at a time


def _ratios(run: Callable[[str], None], first: str, second: str) -> list[float]:
    """Of every round the first's time over the second's; a first round warms up."""
    found = []
    for _ in range(ROUNDS + 1):
        taken = []
        for way in (first, second):
            start = time.perf_counter()
            run(way)
            taken.append(time.perf_counter() - start)
        found.append(round(taken[0] / taken[1], 4))
    return found[1:]


def elastic_code() -> str:
    """What any network is made, searched and merged by."""
    return digests.code_digest(SuperNet, search)


def store_of(size: Size) -> Path:
    return paths.REPOSITORY / size.results


def merged_store(size: Size) -> Path:
    return store_of(size) / "merged"


# The papers meet: merges of what was searched, one adapter a task ---------------------------------
def searched_lab(profile: Profile, declared: Grid, made: Mapping[str, Elastic]) -> Bundled:
    """A lab whose adapters are the searched sub-adapters, in PEFT folders.

    They are written where they are not there, which needs their networks.
    """
    folder = profile.scratch / "elastic" / "searched"
    for task, each in made.items():
        key = digests.digest([each.settings(), each.lab.dtype, elastic_code()])
        note = folder / f"{task}.json"
        if not note.is_file() or note.read_text() != key:
            each.net.adapter(each.configuration("search")).save(folder / task, overwrite=True)
            store.write(note, key)
            each.__dict__.pop("net"), each.__dict__.pop("found", None)
    size = declared.size(profile.name)
    changes = {
        "name": f"{profile.name}-elastic",
        "adapters": f"{folder}/{{task}}",
        "variants": str(merged_store(size)),
        "results": str(profile.scratch / "elastic" / "merged"),
        "tasks": tuple(made),
        "calibration_rows": size.calibration,
    }
    return Bundled(profile.model_copy(update=changes))


def experiments(profile: Profile, declared: Grid | None = None) -> dict[str, Elastic]:
    """The declared networks with their seeds, by name."""
    declared, lab = declared or grid(), Lab(profile)
    size = declared.size(profile.name)
    every = [Elastic(lab, declared, n, seed) for n in declared.networks for seed in n.seeds]
    every += [Elastic(lab, declared, declared.own, 0, task) for task in size.own_rows]
    return {each.name: each for each in every}


def sweeps(profile: Profile, declared: Grid | None = None) -> dict[str, Elastic]:
    """Every learning rate that is tried, each with the first seed and of its midpoint, by name."""
    declared, lab = declared or grid(), Lab(profile)
    known = {network.name: network for network in declared.networks}
    every = [
        Elastic(
            lab, declared, known[name].model_copy(update={"models": ("midpoint",)}), 0, rate=rate
        )
        for name, rates in declared.size(profile.name).rates.items()
        for rate in rates
    ]
    return {each.name: each for each in every}


def best_rates(tried: Mapping[str, Elastic]) -> dict[str, tuple[float, list[float]]]:
    """{network: the learning rate of the lowest held-out loss, and all}, where all are stored."""
    losses: dict[str, dict[float, float]] = {}
    for name, each in tried.items():
        cell = store.cell_of(each.store, name, f"midpoint.{HELD_OUT}")
        losses.setdefault(each.network.name, {})[each.rate] = cell.mean if cell else math.nan
    whole = {name: own for name, own in losses.items() if not math.isnan(sum(own.values()))}
    return {name: (min(own, key=own.__getitem__), [*own]) for name, own in whole.items()}


def measure(
    profile: Profile,
    group: str = FILE.stem,
    names: Sequence[str] = (),
    show: Show = lambda cell: None,
    declared: Grid | None = None,
) -> None:
    """Measure the declared networks, or those that are in `names`, and the merges of the searched.

    A name is a network's, with or without its seed, NETWORK-rate for the learning rates that are
    tried of it, or "merges". Raises TipminiError for an unknown one.
    """
    declared = declared or grid(paths.own_groups("elastic")[group])
    profile = profile.model_copy(update={"dtype": declared.dtype})
    known = sweeps(profile, declared) | experiments(profile, declared)
    families = {name: each.family for name, each in known.items()}
    for name in names:
        if name not in {*known, *families.values(), "merges"}:
            raise TipminiError(f"group {group}: no network {name!r} at profile {profile.name}")
    wanted = [e for n, e in known.items() if not names or n in names or families[n] in names]
    claims = profile.scratch / "claims" / "elastic"
    run(wanted, claims, show=show)
    if not names or "merges" in names:
        own = {each.task: each for each in known.values() if each.task}
        lab = searched_lab(profile, declared, own)
        run_all(lab, declared.merges, show=show)
