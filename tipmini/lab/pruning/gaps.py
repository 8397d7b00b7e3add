"""Stored prunings against one another, window by window or row by row, and which gaps are clear."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning import tables
from tipmini.lab.pruning.declared import Grid, Planned, grid
from tipmini.lab.pruning.tables import Outcomes
from tipmini.lab.statistics import LEVEL, holm_of

Model = Sequence  # [method, share, tuned], as experiments/pruning/grid.yaml has them
Place = tuple[tuple, tuple, str]  # two models and a measure
ACCURACY = "accuracy"  # a measure beside the corpora: the rows of all averaged tasks


class Gap(NamedTuple):
    """What one model has more than another."""

    values: np.ndarray  # (windows,) or (rows,), averaged over the seeds
    seeds: np.ndarray  # (pairs,) means, of every seed of one against every seed of the other
    counts: tuple[int, int]  # seeds of either

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


def gap(
    outcomes: Outcomes,
    runs: Mapping[str, Planned],
    one: Model,
    two: Model,
    measure: str,
    declared: Grid | None = None,
) -> Gap | None:
    """One's values minus two's; None where one is not measured. A loss: the log of a perplexity."""
    both = [values(outcomes, runs, model, measure, declared or grid()) for model in (one, two)]
    if any(found is None for found in both):
        return None
    first, second = both
    pairs = [a.mean() - b.mean() for a, b in product(first, second)]
    return Gap(first.mean(0) - second.mean(0), np.array(pairs), (len(first), len(second)))


def clear(gaps: Mapping[Place, Gap]) -> dict[Place, Gap]:
    """Those with p < 0.05 after Holm's correction whose seeds, every pair, agree on the sign."""
    corrected = holm_of({place: found.p for place, found in gaps.items()})
    return {place: g for place, g in gaps.items() if corrected[place] < LEVEL and g.alike}


def values(
    outcomes: Outcomes,
    runs: Mapping[str, Planned],
    model: Model,
    measure: str,
    declared: Grid,
) -> np.ndarray | None:
    """(seeds, windows or rows); None unless every declared seed is measured.

    A part of the seeds may agree where all would not.
    """
    wanted = declared.averaged if measure == ACCURACY else (measure,)
    asked = tables.planned(runs, *model)
    found = [_of_one(outcomes[run.name], wanted) for run in asked if run.name in outcomes]
    known = [row for row in found if row]
    return np.array(known) if known and len(known) == len(asked) else None


def _of_one(bundle: Bundle, wanted: Sequence[str]) -> list[float]:
    """Losses of windows, or of several tasks' rows together; empty where one is missing."""
    cells = [tables.cell(bundle, one) for one in wanted]
    return [v for cell in cells for v in cell.values] if all(cells) else []
