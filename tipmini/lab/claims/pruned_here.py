"""Checks of LoRAPrune's sentences from this book's own pruned models."""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import LEVEL, Evidence, Finding
from tipmini.lab.claims.here import verdict_of
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning import comparisons, tables
from tipmini.lab.pruning.declared import grid
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.statistics import COVERED, holm_of

Model = Sequence  # [method, share, tuned], as experiments/pruning/grid.yaml has them


def perplexity_below(
    evidence: Evidence,
    *,
    of: Sequence[str],
    against: Sequence[str],
    shares: Sequence[float],
    corpora: Sequence[str] = CORPORA,
) -> Finding:
    """Whether fine-tuned models of some criteria have lower perplexities than those of others.

    Both read the same windows: t tests of the windows' losses, averaged over the seeds, corrected
    (Holm) for the number of comparisons. It holds where all are clear.
    """
    pairs = [((o, s, True), (a, s, True)) for o, a, s in product(of, against, shares)]
    return _all_lower(evidence, pairs, corpora)


def tuning_lowers(evidence: Evidence, *, of: str, shares: Sequence[float]) -> Finding:
    """Whether fine-tuning while pruning lowers the perplexity of what is pruned at once."""
    return _all_lower(evidence, [((of, s, True), (of, s, False)) for s in shares], CORPORA)


def _all_lower(
    evidence: Evidence, pairs: Sequence[tuple[Model, Model]], corpora: Sequence[str]
) -> Finding:
    from scipy.stats import ttest_1samp

    gaps = {(*pair, corpus): _gap(evidence, *pair, corpus) for pair in pairs for corpus in corpora}
    if any(gap is None for gap in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    p = holm_of({place: float(ttest_1samp(gap, 0).pvalue) for place, gap in gaps.items()})
    clear = [gaps[place].mean() for place in gaps if p[place] < LEVEL]
    lower = sum(gap < 0 for gap in clear)
    higher = len(clear) - lower
    return Finding(
        verdict_of(lower, higher, len(gaps), False),
        f"clearly lower {lower}, clearly higher {higher}, neither {len(gaps) - len(clear)}",
        "; ".join(_told(gaps)) + ". Perplexities of a small model on two other corpora.",
    )


def _told(gaps: dict[tuple, np.ndarray]) -> Iterator[str]:
    """A part of a sentence for every pair of criteria, shares and corpora together."""
    for names in dict.fromkeys((one[0], one[2], two[0], two[2]) for one, two, _ in gaps):
        own = [
            100 * math.expm1(gap.mean())
            for (one, two, _), gap in gaps.items()
            if (one[0], one[2], two[0], two[2]) == names
        ]
        one, two = (f"{_title(names[i])}{'' if names[i + 1] else ', not tuned'}" for i in (0, 2))
        yield f"{one} is {min(own):+.1f}% to {max(own):+.1f}% from {two}"


def on_a_par(evidence: Evidence, *, of: Model, against: Sequence[Model], within: float) -> Finding:
    """Whether two models' perplexities differ by no more than `within` percent, surely.

    That is, with the whole 95% interval over the windows; on both corpora.
    """
    gaps = {(other[0], c): _gap(evidence, of, other, c) for other, c in product(against, CORPORA)}
    if any(gap is None for gap in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    ends = {place: _percent(gap) for place, gap in gaps.items()}
    inside = sum(-within <= low and high <= within for low, high in ends.values())
    verdict = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    told = [f"{_title(n)}, {c}: [{low:+.1f}, {high:+.1f}]%" for (n, c), (low, high) in ends.items()]
    return Finding(
        Verdict.HOLDS if inside == len(ends) else verdict,
        f"within {within:g}%: {inside} of {len(ends)}",
        f"How far {_title(of[0])}'s perplexity lies from that of " + "; ".join(told) + ".",
    )


def _gap(evidence: Evidence, one: Model, two: Model, corpus: str) -> np.ndarray | None:
    """(windows,) losses of one minus another's; None where one is not measured."""
    runs = grid().runs("mini")
    every = [tables.seeds(evidence.prunings, runs, *model) for model in (one, two)]
    both = [comparisons.windows(found, corpus) for found in every]
    return None if any(losses is None for losses in both) else both[0] - both[1]


def _percent(gap: np.ndarray) -> tuple[float, float]:
    reach = COVERED * gap.std(ddof=1) / math.sqrt(len(gap))
    return tuple(100 * math.expm1(gap.mean() + sign * reach) for sign in (-1, 1))


def _title(method: str) -> str:
    return grid().titles()[method]


CHECKS = (perplexity_below, tuning_lowers, on_a_par)
