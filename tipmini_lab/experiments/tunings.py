"""Declared tunings as experiments: a model is tuned, scored, and what there is to tell of it kept.

A file of experiments/*/ with `module: tunings` declares ways to tune a model. Each is run on every
task with every seed. Where a way has several learning rates, all are tried first, with one seed on
one task, and the one of the lowest loss on held-out rows is taken.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.models.factors import LoraFactors
from tipmini.papers import lora
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation import evaluator, model, objective, tasks
from tipmini_lab.experiments import tuning
from tipmini_lab.experiments.catalogue import Named
from tipmini_lab.experiments.experiment import Experiment, Show, run
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.merging import save_tensors
from tipmini_lab.experiments.profiles import Profile, Rows, known_tasks
from tipmini_lab.experiments.training import by_module
from tipmini_lab.experiments.tuning import Tuning, TuningRecipe, tunable
from tipmini_lab.experiments.variants import evaluation_code
from tipmini_lab.paths import own_groups
from tipmini_lab.results import checked, digests, store
from tipmini_lab.results.store import Cell

DIVERGED = 1e9  # stands for a loss that is no number, which JSON can't hold
HELD_OUT = "held-out"  # a measure beside the tasks: losses of rows that nothing is trained on
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)  # at which a spectrum is told
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Of an amplification, a layer: norms of W and of its update, what of W lies in its own first
# directions and in those of a random matrix, and the factor (LoRA Eq. 6).
NORMS = ("weight", "delta", "own", "random", "factor")


# What is declared ---------------------------------------------------------------------------------
class Size(Declared):
    """How much of it a profile measures."""

    rows: Rows  # trained on, by task
    held_out: int = Field(ge=1)  # the train rows after those
    scored: int = Field(ge=1)  # evaluation rows a task
    batch: int = Field(16, ge=1)
    epochs: int = Field(1, ge=1)


class Way(Named):
    """A way to tune: parts of `tuning.PARTS`, and learning rates to choose from."""

    parts: tuple[dict, ...] = ()  # none: the model as it is
    rates: tuple[float, ...] = ()  # none: the group's
    seeds: tuple[int, ...] | None = None  # None: the group's
    keep: bool = False  # its A and B, for subspaces


class Pair(Named):
    """Two ways of a group whose subspaces are compared; each with a seed."""

    ways: tuple[str, str]
    seeds: tuple[int, int]


class Group(Declared):
    """One file."""

    module: Literal["tunings"]
    description: str
    version: int
    sizes: dict[str, Size]
    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...]  # none: learning rates are tried, and that is all
    rates: tuple[float, ...] = Field((1e-3,), min_length=1)
    ways: tuple[Way, ...] = Field(min_length=1)
    scored: bool = True  # else of every run the held-out losses are all
    pairs: tuple[Pair, ...] = ()
    amplified: tuple[str, ...] = ()  # ways whose update is held against the weight

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_tasks(names)

    def way(self, name: str) -> Way:
        found = next((way for way in self.ways if way.name == name), None)
        if found is None:
            raise TipminiError(f"no way {name!r}: {', '.join(way.name for way in self.ways)}")
        return found

    def rates_of(self, way: Way) -> tuple[float, ...]:
        return way.rates or self.rates

    def recipe(self, profile: str, task: str, seed: int, rate: float) -> TuningRecipe:
        if profile not in self.sizes:
            known = ", ".join(self.sizes)
            raise TipminiError(f"{self.description}: profile {profile!r} is not one of {known}")
        size = self.sizes[profile]
        told = {"batch": size.batch, "epochs": size.epochs, "held_out": size.held_out}
        return TuningRecipe(size.rows[task], rate=rate, seed=seed, **told)


def group(name: str) -> Group:
    """Raises TipminiError, one line that names the file, for what is no valid declaration."""
    return read(Group, own_groups("tunings")[name])


def folder(profile: Profile, name: str) -> Path:
    """Where the bundles of a group are stored: beside the profile's other results."""
    return profile.store.parent / "lora" / name


# One run ------------------------------------------------------------------------------------------
class Tuned(Experiment):
    """A model tuned one way for one task, with one seed and rate; untuned if it has no parts."""

    def __init__(self, many: "Tunings", way: Way, task: str, seed: int, rate: float | None = None):
        self.many, self.lab, self.way, self.task, self.seed = many, many.lab, way, task, seed
        self.swept, self.given = rate is not None, rate
        self.name = f"{way.name}-rate-{rate:g}" if self.swept else f"{way.name}-{task}-s{seed}"
        self.title, self.store = way.title, many.store

    @cached_property
    def rate(self) -> float:
        return self.given if self.swept else self.many.best_rate(self.way)

    @property
    def recipe(self) -> TuningRecipe:
        return self.many.group.recipe(self.lab.profile.name, self.task, self.seed, self.rate)

    def settings(self, measured: bool = True) -> dict:
        found = {"version": self.many.group.version, "model": self.lab.model_hash}
        found |= {"parts": self.way.parts, "task": self.task}
        if self.way.parts:
            found["recipe"] = asdict(self.recipe)
            found["rows"] = self.many.digest(self.task, self.recipe)
        return json.loads(json.dumps(found))

    def measures(self) -> Sequence[str]:
        return [HELD_OUT if self.swept or not self.many.group.scored else self.task]

    def build(self, measure: str) -> None:
        """Nothing is made before it is known to be missing."""

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        tuned = {"tuned": digests.digest(self.settings())}
        if measure != HELD_OUT:
            return self.lab.inputs(None, self.many.definition(self.task)) | tuned
        return tuned | {"data": self.many.digest(self.task, self.recipe)}

    def code(self, measure: str) -> dict[str, str]:
        own = {"tuning": digests.code_digest(Tuning, tunable)}
        return own if measure == HELD_OUT else own | evaluation_code()

    @cached_property
    def tuning(self) -> Tuning:
        """The run itself, at its end."""
        every = self.many.examples(self.task, self.recipe)
        degrees = self.many.temperature(self.task, self.recipe)
        found = Tuning(self.lab.trainable, self.way.parts, self.recipe, every, degrees)
        found.run()
        if self.way.keep:
            save_tensors({n: f.detach() for n, f in found.factors.items()}, self.factors_file, {})
        return found

    def losses(self) -> list[float]:
        """Of every held-out row."""
        return finite(self.tuning.held_out_losses())

    @property
    def factors_file(self) -> Path:
        """What is trained, of a way that is to be kept: it can be made again."""
        made = digests.digest([self.settings(), self.lab.dtype, self.code(HELD_OUT)])
        return self.lab.profile.scratch / "tuned" / f"{self.name}-{made[:12]}.safetensors"

    def factors(self) -> dict[str, Tensor]:
        """A and B by PEFT's names."""
        if not checked.is_whole(self.factors_file):
            self.tuning  # noqa: B018  is run
        return load_file(self.factors_file)

    def facts(self) -> dict[str, float | list[float]]:
        if not self.way.parts:
            return {}
        done = self.tuning
        found = {"trained": sum(p.numel() for p in done.trained.values()), "rate": self.rate}
        found |= {"steps": len(done.steps), "loss": finite(done.log["loss"])}
        found |= {"seconds": round(done.log["seconds"], 1)}
        found["held_out"] = round(sum(own := self.losses()) / len(own), 5)
        whole = [part for part in self.way.parts if part == {"part": "weights"}]
        return found | (self.spectra() if whole and not self.swept else {})

    @torch.no_grad()
    def spectra(self) -> dict[str, list[float]]:
        """What share of an update's square the first `RANKS` of its directions have; layers' mean.

        Of each projection beside it the weight's own.
        """
        before, found = self.lab.base, {}
        for projection in PROJECTIONS:
            names = [n for n in self.tuning.factors if n.endswith(f"{projection}.weight")]
            old = [before.get_parameter(name).float() for name in names]
            new = [self.tuning.factors[name] - w for name, w in zip(names, old, strict=True)]
            found |= {f"update_{projection}": energies(new), f"weight_{projection}": energies(old)}
        return found

    def measure(self, measure: str, folder: Path | None) -> Cell:
        start = time.perf_counter()
        place = {"profile": self.lab.profile.name, "method": self.name, "task": measure}
        if measure == HELD_OUT:
            values, metric = [round(x, 5) for x in self.losses()], "loss"
        else:
            metric = tasks.METRIC[self.task]
            tuned = self.tuning.model if self.way.parts else self.lab.trainable
            lm = evaluator.PackedLM(
                tuned, tokenizer=self.lab.tokenizer, tokens=self.lab.profile.tokens
            )
            lm.flat = False  # adapters are hooks on modules, which flat rows pass by
            values = evaluator.evaluate(lm, self.many.definition(self.task), metric)
        told = {"dtype": self.lab.dtype, "values": values, "metric": metric}
        return store.measured(start, self.inputs(measure), self.code(measure), **told, **place)

    def run(self, only: Sequence[str] = ()) -> Iterator[Cell]:
        yield from super().run(only)
        self.__dict__.pop("tuning", None)  # one model at a time


def finite(losses: Sequence[float]) -> list[float]:
    return [loss if math.isfinite(loss) else DIVERGED for loss in losses]


@torch.no_grad()
def energies(matrices: Sequence[Tensor]) -> list[float]:
    """Share of the squared singular values in the first `RANKS`, the mean over the matrices."""
    squares = torch.stack([torch.linalg.svdvals(m).square() for m in matrices])
    shares = squares.cumsum(1) / squares.sum(1, keepdim=True)
    return [round(shares[:, min(r, shares.shape[1]) - 1].mean().item(), 5) for r in RANKS]


# What two runs, or a run and the model, have in common --------------------------------------------
class Compared(Experiment):
    """phi (LoRA Eq. 5) of two runs' A, a mean over the layers; a cell a projection."""

    def __init__(self, many: "Tunings", pair: Pair):
        self.many, self.lab, self.store = many, many.lab, many.store
        self.name, self.title = pair.name, pair.title
        task = many.group.tasks[0]
        self.runs = [
            Tuned(many, many.group.way(way), task, seed)
            for way, seed in zip(pair.ways, pair.seeds, strict=True)
        ]

    def settings(self, measured: bool = True) -> dict:
        return {"version": self.many.group.version, "runs": [r.settings() for r in self.runs]}

    def measures(self) -> Sequence[str]:
        return self.runs[0].way.parts[0]["targets"]

    def build(self, measure: str) -> None:
        """The runs are made where their factors aren't there."""

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        return {"tuned": digests.digest(self.settings()), "projection": measure}

    def code(self, measure: str) -> dict[str, str]:
        own = shared_directions, amplified_norms
        return {"tuning": digests.code_digest(*own, Tuning, tunable)}

    def facts(self) -> dict[str, float | list[float]]:
        """The ranks of the two."""
        return {"ranks": [float(r.way.parts[0]["rank"]) for r in self.runs]}

    def pairs(self, of: Tuned, projection: str) -> dict[str, LoraFactors]:
        """A and B of every layer's projection, by module."""
        part = of.way.parts[0]
        every = by_module(of.factors(), part["alpha"] / part["rank"])
        return {name: pair for name, pair in every.items() if name.endswith(projection)}

    def measure(self, measure: str, folder: Path | None) -> Cell:
        start = time.perf_counter()
        values = [round(v, 4) for v in self.values(measure)]
        place = {"profile": self.lab.profile.name, "method": self.name, "task": measure}
        told = {"dtype": self.lab.dtype, "values": values, "metric": type(self).__name__.lower()}
        return store.measured(start, self.inputs(measure), self.code(measure), **told, **place)

    def values(self, projection: str) -> list[float]:
        """The (r1, r2) similarities, row by row."""
        return shared_directions(*(self.pairs(run, projection) for run in self.runs))


class Amplified(Compared):
    """LoRA's Table 7 of a run: `NORMS` of every layer, one layer after the other."""

    def __init__(self, many: "Tunings", name: str):
        way = many.group.way(name)
        told = {"name": f"amplified-{name}", "title": way.title}
        super().__init__(many, Pair(**told, ways=(name, name), seeds=(0, 0)))
        self.runs = self.runs[:1]

    def values(self, projection: str) -> list[float]:
        pairs = self.pairs(self.runs[0], projection)
        weights = {name: self.lab.base.get_submodule(name).weight.float() for name in pairs}
        return amplified_norms(weights, pairs)


@torch.no_grad()
def shared_directions(
    first: Mapping[str, LoraFactors], second: Mapping[str, LoraFactors]
) -> list[float]:
    """phi of two adapters' A, (r1, r2) row by row, the mean over their modules."""
    every = [
        lora.subspace_similarity(*(lora.directions(of[name].a) for of in (first, second)))
        for name in first
    ]
    return torch.stack(every).mean(0).flatten().tolist()


@torch.no_grad()
def amplified_norms(weights: Mapping[str, Tensor], pairs: Mapping[str, LoraFactors]) -> list[float]:
    """`NORMS` of every module, one module after the other."""
    found, draw = [], torch.Generator().manual_seed(0)
    for name, pair in pairs.items():
        weight, delta, rank = weights[name], pair.delta(), len(pair.a)
        random = torch.randn(weight.shape, generator=draw)
        found += [weight.norm().item(), delta.norm().item()]
        found += [lora.projected_norm(weight, other, rank) for other in (weight, random)]
        found.append(lora.amplification(weight, delta, rank))
    return found


# All of a group -----------------------------------------------------------------------------------
class Tunings:
    """A group at a profile: its runs, and what they share."""

    def __init__(self, profile: Profile, name: str, declared: Group | None = None):
        self.group, self.lab = declared or group(name), Lab(profile)
        self.store, self.temperatures = folder(profile, name), {}

    def sweeps(self) -> list[Tuned]:
        """Every learning rate of the ways that have several."""
        task, rates_of = self.group.tasks[0], self.group.rates_of
        several = [way for way in self.group.ways if len(rates_of(way)) > 1]
        return [Tuned(self, way, task, 0, rate) for way in several for rate in rates_of(way)]

    def runs(self) -> list[Tuned]:
        return [
            Tuned(self, way, task, seed)
            for task in self.group.tasks
            for way in self.group.ways
            for seed in (self.seeds(way) if way.parts else (0,))
        ]

    def seeds(self, way: Way) -> tuple[int, ...]:
        return self.group.seeds if way.seeds is None else way.seeds

    def comparisons(self) -> list[Compared]:
        pairs = [Compared(self, pair) for pair in self.group.pairs]
        return pairs + [Amplified(self, name) for name in self.group.amplified]

    def best_rate(self, way: Way) -> float:
        """Of the lowest held-out loss; TipminiError where one is not measured."""
        if len(rates := self.group.rates_of(way)) == 1:
            return rates[0]
        losses = {}
        for rate in rates:
            cell = store.cell_of(self.store, f"{way.name}-rate-{rate:g}", HELD_OUT)
            if cell is None:
                raise TipminiError(f"way {way.name}: rate {rate:g} isn't measured; measure all")
            losses[rate] = cell.mean
        return min(losses, key=losses.__getitem__)

    def examples(self, task: str, recipe: TuningRecipe) -> list[objective.Example]:
        """Rows to train on, and the held-out ones after them."""
        return _examples(task, recipe.rows + recipe.held_out, self.lab.tokenizer)

    def digest(self, task: str, recipe: TuningRecipe) -> str:
        return _digest(task, recipe.rows + recipe.held_out, self.lab.tokenizer)

    def temperature(self, task: str, recipe: TuningRecipe) -> float:
        """Of the untuned model on the held-out rows; made once."""
        if task not in self.temperatures:
            held_out = self.examples(task, recipe)[recipe.rows :]
            made = tuning.temperature(self.lab.trainable, task, held_out, recipe.tokens)
            self.temperatures[task] = made
        return self.temperatures[task]

    def definition(self, task: str):
        """lm-eval's task over the rows that are scored."""
        return _definition(task, self.group.sizes[self.lab.profile.name].scored)


@lru_cache(maxsize=8)
def _examples(task: str, count: int, tokenizer) -> list[objective.Example]:
    return objective.examples(task, tokenizer, count)


@lru_cache(maxsize=8)
def _digest(task: str, count: int, tokenizer) -> str:
    return digests.digest([list(e.content) for e in _examples(task, count, tokenizer)])


@lru_cache(maxsize=8)
def _definition(task: str, count: int):
    return tasks.load(task, count)


def measure(
    profile: Profile, name: str, names: Sequence[str] = (), show: Show = lambda cell: None
) -> None:
    """Measure what is missing of a group, or of the runs in `names`: learning rates first.

    Raises TipminiError for an unknown name, and for a profile that the group has no size for.
    """
    model.keep_memory()
    many = Tunings(profile, name)
    claims = profile.scratch / "claims" / name
    every = [many.sweeps(), many.runs(), many.comparisons()]
    known = {each.name for part in every for each in part}
    if unknown := [each for each in names if each not in known]:
        raise TipminiError(f"group {name}: no run {unknown[0]!r} at profile {profile.name}")
    for part in every:
        run([each for each in part if not names or each.name in names], claims, show=show)
