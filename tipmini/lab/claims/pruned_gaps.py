"""Pruned models against one another, window by window or row by row, and which gaps are clear."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from tipmini.lab.bundles import Bundle
from tipmini.lab.claims.evidence import LEVEL, Evidence
from tipmini.lab.pruning import tables
from tipmini.lab.pruning.declared import Grid, Planned, grid
from tipmini.lab.statistics import holm_of

Model = Sequence  # [method, share, tuned], as experiments/pruning/grid.yaml has them
ACCURACY = "accuracy"  # a measure beside the corpora: the rows of all averaged tasks
PROFILE = "mini"


class Gap(NamedTuple):
    """What one model has more than another."""

    values: np.ndarray  # (windows,) or (rows,), averaged over the seeds
    seeds: np.ndarray  # (pairs,) means, of every seed of one against every seed of the other
    count: int  # seeds of the one that has fewer

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def p(self) -> float:
        """Of a t test over windows or rows; where all are the same, only 0 is no difference."""
        from scipy.stats import ttest_1samp

        if np.allclose(self.values, self.values[0], rtol=1e-9, atol=1e-12):
            return float(abs(self.values[0]) < 1e-12)
        return float(ttest_1samp(self.values, 0).pvalue)

    @property
    def alike(self) -> bool:
        """Whether every pair of seeds lies on the same side."""
        return bool((self.seeds > 0).all() or (self.seeds < 0).all())


Place = tuple[tuple, tuple, str]  # two models and a measure


def gap(evidence: Evidence, one: Model, two: Model, measure: str) -> Gap | None:
    """One's values minus two's; None where one is not measured. A loss: the log of a perplexity."""
    first, second = (_values(evidence, model, measure) for model in (one, two))
    if first is None or second is None:
        return None
    pairs = [a.mean() - b.mean() for a, b in product(first, second)]
    count = min(len(first), len(second))
    return Gap(first.mean(0) - second.mean(0), np.array(pairs), count)


def clear(gaps: Mapping[Place, Gap]) -> dict[Place, Gap]:
    """Those with p < 0.05 after Holm's correction whose seeds, every pair, agree on the sign."""
    corrected = holm_of({place: found.p for place, found in gaps.items()})
    return {place: g for place, g in gaps.items() if corrected[place] < LEVEL and g.alike}


def _values(evidence: Evidence, model: Model, measure: str) -> np.ndarray | None:
    """(seeds, windows or rows); None where nothing is measured."""
    every = tables.seeds(evidence.prunings, _runs(), *model)
    found = [_of_one(bundle, measure) for bundle in every]
    known = [values for values in found if values]
    return np.array(known) if known else None


def _of_one(bundle: Bundle, measure: str) -> list[float]:
    """Losses of windows, or of all averaged tasks' rows together; empty where one is missing."""
    wanted = _grid().averaged if measure == ACCURACY else (measure,)
    cells = [tables.cell(bundle, one) for one in wanted]
    return [v for cell in cells for v in cell.values] if all(cells) else []


@cache
def _grid() -> Grid:
    return grid()


@cache
def _runs() -> Mapping[str, Planned]:
    return grid().runs(PROFILE)


# In words ---------------------------------------------------------------------------------------


def name(model: Model) -> str:
    """A model as a sentence calls it: "LoRAPrune, base in 8 bits", "the unpruned model"."""
    method, share, tuned = model
    whole = "the unpruned model, fine-tuned" if tuned else "the unpruned model"
    return _grid().titles()[method] if share else whole


def setting(models: Iterable[Model]) -> str:
    """The share, and whether it is tuned, of models that a sentence sets against each other."""
    first, *others = models
    shares = {model[1] for model in (first, *others)} - {0.0}
    told = [f"{share:.0%}" for share in sorted(shares)]
    if len({model[2] for model in (first, *others)}) == 1:
        told += ["with fine-tuning" if first[2] else "without fine-tuning"]
    return ", ".join(told)


def seeds_told(counts: Iterable[int]) -> str:
    low, high = (f(counts := list(counts)) for f in (min, max))
    if high == 1:
        return "one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"
