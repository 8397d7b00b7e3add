"""Stored prunings against one another: window by window, and in order."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.pruning.tables import Outcomes, cell, seeds, three_digits, values
from tipmini.lab.statistics import COVERED, MISSING

SETTINGS = {  # (share, tuned) by the words for it
    f"{share:.0%}{', tuned' if tuned else ''}": (share, tuned)
    for tuned in (False, True)
    for share in (0.2, 0.5)
}


def against(
    outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned], first: str, corpus: str
) -> pd.DataFrame:
    """Every other method's perplexity over the first's, window by window.

    Losses of a window are averaged over the seeds; the interval is over the windows (95%).
    """
    rows = {
        method.title: {
            words: _ratio(
                seeds(outcomes, runs, method.name, *setting),
                seeds(outcomes, runs, first, *setting),
                corpus,
            )
            for words, setting in SETTINGS.items()
        }
        for method in declared.methods
        if method.name != first
    }
    return pd.DataFrame(rows).T.rename_axis("method")


def _ratio(every: Sequence[Bundle], first: Sequence[Bundle], corpus: str) -> str:
    pair = [windows(found, corpus) for found in (every, first)]
    if any(losses is None for losses in pair):
        return MISSING
    gaps = pair[0] - pair[1]
    reach = COVERED * gaps.std(ddof=1) / math.sqrt(len(gaps))
    ends = (three_digits(math.exp(gaps.mean() + sign * reach)) for sign in (0, -1, 1))
    return "{}<br>[{}, {}]".format(*ends)


def windows(every: Sequence[Bundle], corpus: str) -> np.ndarray | None:
    """(windows,) losses, averaged over the seeds."""
    found = [c.values for c in (cell(bundle, corpus) for bundle in every) if c]
    return np.mean(found, axis=0) if found else None


def summary(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned], first: str) -> str:
    """A line a setting: which place the first method's perplexity has, and whose is the lowest."""
    lines = []
    for words, setting in SETTINGS.items():
        places = [_place(outcomes, declared, runs, first, setting, c) for c in CORPORA]
        lines.append(f"- {words}: {'; '.join(places)}.")
    return "\n".join(lines)


def _place(
    outcomes: Outcomes,
    declared: Grid,
    runs: Mapping[str, Planned],
    first: str,
    setting: tuple[float, bool],
    corpus: str,
) -> str:
    found = {
        m.title: statistics.geometric_mean(known)
        for m in declared.methods
        if (known := values(seeds(outcomes, runs, m.name, *setting), corpus))
    }
    title, order = declared.titles()[first], sorted(found, key=found.get)
    if title not in found:
        return f"on {corpus} {MISSING}"
    told = f"on {corpus} {title}, {three_digits(found[title])}, is "
    told += f"number {order.index(title) + 1} of {len(order)}"
    lowest = f", the lowest is {order[0]}, {three_digits(found[order[0]])}"
    return told if order[0] == title else told + lowest
