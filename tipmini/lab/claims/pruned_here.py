"""Checks of LoRAPrune's sentences from this book's own pruned models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.lab.claims.here import verdict_of
from tipmini.lab.claims.pruned_gaps import (
    ACCURACY,
    Gap,
    Model,
    Place,
    clear,
    gap,
    name,
    seeds_told,
    setting,
)
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.pruning.tables import three_digits
from tipmini.lab.statistics import COVERED

Pair = tuple[tuple, tuple]
SMALL = "Of a small model, as all that is measured here."


def perplexity_below(
    evidence: Evidence,
    *,
    of: Sequence[str],
    against: Sequence[str],
    shares: Sequence[float],
    tuned: Sequence[bool],
    corpora: Sequence[str] = CORPORA,
) -> Finding:
    """Whether models of some criteria have lower perplexities than those of others.

    tuned: whether models with, without, or of both kinds of fine-tuning, as the sentence speaks of.
    Both read the same windows: t tests of the windows' losses, averaged over the seeds, corrected
    (Holm) for the number of comparisons; with several seeds every pair of them has to agree too.
    It holds where all are clear.
    """
    pairs = [((o, s, t), (a, s, t)) for t, s, o, a in product(tuned, shares, of, against)]
    return _all(evidence, pairs, corpora, lower=True)


def accuracy_above(
    evidence: Evidence,
    *,
    of: Sequence[str],
    against: Sequence[str],
    shares: Sequence[float],
    tuned: Sequence[bool],
) -> Finding:
    """The same of accuracies: rows of all averaged tasks together, by the same tests."""
    pairs = [((o, s, t), (a, s, t)) for t, s, o, a in product(tuned, shares, of, against)]
    return _all(evidence, pairs, (ACCURACY,), lower=False)


def tuning_lowers(evidence: Evidence, *, of: Sequence[str], shares: Sequence[float]) -> Finding:
    """Whether fine-tuning while pruning lowers the perplexity of what is pruned at once."""
    pairs = [((o, s, True), (o, s, False)) for s, o in product(shares, of)]
    return _all(evidence, pairs, CORPORA, lower=True)


def _all(
    evidence: Evidence, pairs: Sequence[Pair], measures: Sequence[str], lower: bool
) -> Finding:
    gaps = {
        (*pair, measure): gap(evidence, *pair, measure) for pair in pairs for measure in measures
    }
    if any(found is None for found in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    sure = clear(gaps)
    below = sum(found.mean < 0 for found in sure.values())
    good, bad = (below, len(sure) - below)[:: 1 if lower else -1]
    ways = ("lower", "higher")[:: 1 if lower else -1]
    counted = f"clearly {ways[0]} {good}, clearly {ways[1]} {bad}, neither {len(gaps) - len(sure)}"
    what = f"Perplexity on {' and '.join(measures)}" if lower else "Accuracy over all rows of tasks"
    told = f"{what}. {'; '.join(_settings(gaps))}. {SMALL}"
    return Finding(verdict_of(good, bad, len(gaps), False), counted, told)


def _settings(gaps: Mapping[Place, Gap]) -> Iterator[str]:
    """A part of a sentence for every share and way of tuning: who lies how far from whom."""
    for words in dict.fromkeys(setting(place[:2]) for place in gaps):
        own = {place: g for place, g in gaps.items() if setting(place[:2]) == words}
        told = [_against(one, own) for one in dict.fromkeys(place[0] for place in own)]
        yield f"{words} ({seeds_told(g.count for g in own.values())}): {', '.join(told)}"


def _against(one: tuple, gaps: Mapping[Place, Gap]) -> str:
    """How far a model lies from every other one, on every measure."""
    others: dict[str, list[str]] = {}
    for (first, two, measure), found in gaps.items():
        if first == one:
            other = "the same not tuned" if one[:2] == two[:2] else name(two)
            others.setdefault(other, []).append(_size(found.mean, measure))
    told = (f"{' and '.join(sizes)} against {other}" for other, sizes in others.items())
    return f"{name(one)} {', '.join(told)}"


def _size(mean: float, measure: str) -> str:
    """Points of an accuracy; percent of a perplexity, or above a factor of ten how many times."""
    if measure == ACCURACY:
        return f"{100 * mean:+.1f} points"
    if abs(mean) < math.log(10):
        return f"{100 * math.expm1(mean):+.1f}%"
    return f"{'÷' if mean < 0 else '×'}{three_digits(math.exp(abs(mean)))}"


def on_a_par(evidence: Evidence, *, of: Model, against: Sequence[Model], within: float) -> Finding:
    """Whether two models' perplexities differ by no more than `within` percent, surely.

    That is, with the whole 95% interval over the windows, and every pair of seeds; both corpora.
    """
    gaps = {
        (tuple(other), c): gap(evidence, of, other, c) for other, c in product(against, CORPORA)
    }
    if any(found is None for found in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    ends = {place: _ends(found) for place, found in gaps.items()}
    inside = sum(-within <= low and high <= within for low, high in ends.values())
    verdict = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    told = [f"{name(m)}, {c}: [{low:+.1f}, {high:+.1f}]%" for (m, c), (low, high) in ends.items()]
    seeds = seeds_told(found.count for found in gaps.values())
    return Finding(
        Verdict.HOLDS if inside == len(ends) else verdict,
        f"within {within:g}%: {inside} of {len(ends)}",
        f"How far the perplexity of {name(of)} ({setting([of])}; {seeds}) lies from that of "
        + "; ".join(told)
        + ".",
    )


def _ends(found: Gap) -> tuple[float, float]:
    """Percent: the 95% interval over the windows, wide enough for every pair of seeds."""
    reach = COVERED * found.values.std(ddof=1) / math.sqrt(len(found.values))
    low, high = found.mean - reach, found.mean + reach
    ends = min(low, found.seeds.min()), max(high, found.seeds.max())
    return tuple(100 * np.expm1(ends))


CHECKS = (perplexity_below, accuracy_above, tuning_lowers, on_a_par)
