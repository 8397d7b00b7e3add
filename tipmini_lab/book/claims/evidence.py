"""What a check may look at: printed cells, public records, this book's cells and layers."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml
from safetensors.torch import load_file
from torch import Tensor

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.book import pruning_costs, pruning_tables, tables
from tipmini_lab.book.claims import declared
from tipmini_lab.book.claims.declared import Verdict
from tipmini_lab.book.pruning_costs import Found
from tipmini_lab.book.pruning_tables import Outcomes
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results.statistics import holm_of
from tipmini_lab.results.store import Cell

LEVEL = 0.05  # of a difference that is called clear, after Holm's correction
# Whatever the TIP paper's text sets against each other: the family that printed tests belong to.
COMPARED = (
    *(("tip", "single"), ("tip", "linear"), ("tip", "dare")),
    *(("linear", "single"), ("dare", "single")),
)


class Finding(NamedTuple):
    """What a check came to: the recomputed value and the words of the page."""

    verdict: Verdict
    recomputed: str
    words: str


class Tested(NamedTuple):
    """A printed difference between two methods on a task."""

    difference: float  # a share; 0.01 is a point
    z: float
    p: float  # unpaired, two-sided
    corrected: float  # by Holm over all of `COMPARED` on all tasks

    @property
    def clear(self) -> bool:
        return self.corrected < LEVEL


@dataclass(frozen=True)
class Printed:
    """Table 1: accuracies by task and method, and the rows of the official splits."""

    accuracy: dict[str, dict[str, float]]
    splits: dict[str, dict]

    @property
    def tasks(self) -> list[str]:
        return list(self.accuracy)

    def rows(self, task: str) -> int:
        return self.splits[task]["rows"]

    def mean(self, method: str) -> float:
        return sum(row[method] for row in self.accuracy.values()) / len(self.accuracy)

    def value(self, method: str, task: str) -> float:
        """An accuracy; of task "mean" the mean of the column."""
        return self.mean(method) if task == "mean" else self.accuracy[task][method]

    @cached_property
    def tests(self) -> dict[tuple[str, str, str], Tested]:
        """{(first, second, task): test of first - second} of every compared pair, both ways."""
        places = [(*pair, task) for pair in COMPARED for task in self.tasks]
        scores = {place: self._z(*place) for place in places}
        p_values = {place: declared.two_sided(z) for place, z in scores.items()}
        corrected = holm_of(p_values)
        found = {}
        for first, second, task in places:
            place = (first, second, task)
            gap = round(self.value(first, task) - self.value(second, task), 4)
            tail = (p_values[place], corrected[place])
            found[place] = Tested(gap, scores[place], *tail)
            found[second, first, task] = Tested(-gap, -scores[place], *tail)
        return found

    def _z(self, first: str, second: str, task: str) -> float:
        pair = (self.value(first, task), self.value(second, task))
        return declared.z_score(*pair, self.rows(task))

    def mean_test(self, first: str, second: str) -> tuple[float, float, float]:
        """Difference of two column means, its standard error and p; tasks are independent."""
        pairs = [
            (self.value(m, task), self.rows(task)) for m in (first, second) for task in self.tasks
        ]
        error = sum(declared.standard_error(*pair) ** 2 for pair in pairs) ** 0.5
        error /= len(self.tasks)
        gap = self.mean(first) - self.mean(second)
        return gap, error, declared.two_sided(gap / error)


@dataclass
class Evidence:
    """All of it: what the papers print, and one profile of this book."""

    printed: Printed
    base_model: dict[str, dict]  # task -> public record of the model without an adapter
    usual_spread: tuple[float, float]  # points
    profile: Profile
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    pruned: dict = field(default_factory=dict)  # what LoRAPrune prints, as printed.yaml has it
    records: dict = field(default_factory=dict)  # records.yaml
    prunings: Outcomes = field(default_factory=dict)  # this book's pruned models
    benched: Found = field(default_factory=dict)  # what the bench measured of pruning

    @cached_property
    def importances(self) -> dict[str, Tensor]:
        """(L,) importance of every layer of every adapter of which norms are stored, TIP Eq. 2."""
        found = {}
        for task in self.profile.tasks:
            norms = self.profile.store / "norms" / f"{task}.safetensors"
            if norms.is_file():
                found[task] = tm.tip_importance(self.adapter(task), load_file(norms))
        return found

    def adapter(self, task: str) -> tm.LoraAdapter:
        return tm.load_adapter(paths.REPOSITORY / self.profile.adapters.format(task=task))


def gathered(profile: str = "full", records: Path = paths.RECORDS) -> Evidence:
    """What is printed, recorded and stored now; nothing is measured."""
    found = yaml.safe_load(records.read_text())
    printed = yaml.safe_load(paths.PRINTED.read_text())
    chosen = load_profile(profile)
    return Evidence(
        Printed(printed["table1"]["tasks"], found["splits"]),
        found["base_model"],
        tuple(found["usual_spread"]),
        chosen,
        tables.variant_cells(chosen),
        printed["loraprune"],
        found,
        pruning_tables.read(load_profile("mini").pruning_store),
        pruning_costs.read(),
    )
