"""Checks of LoRAPrune's sentences from this book's own pruned models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from tipmini_lab.book.claims.declared import Verdict
from tipmini_lab.book.claims.evidence import Evidence, Finding
from tipmini_lab.book.claims.here import verdict_of
from tipmini_lab.book.claims.in_print import not_run
from tipmini_lab.book.claims.pruned import gap, name, seeds_told, setting
from tipmini_lab.book.pruning_tables import ACCURACY, Gap, Model, ModelPair, clear, three_digits
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.results.statistics import COVERED

Gaps = Mapping[ModelPair, Gap | None]
SMALL = "Of a small model, as all that is measured here."
MISSING = "Not all of the models that it takes are measured."


def perplexity_below(
    evidence: Evidence,
    *,
    of: Sequence[str],
    against: Sequence[str],
    shares: Sequence[float],
    tuned: Sequence[bool],
    corpora: Sequence[str] = CORPORA,
    least: float = 0,
) -> Finding:
    """Whether models of some criteria have lower perplexities than those of others.

    tuned: whether models with, without, or of both kinds of fine-tuning, as the sentence speaks of.
    least: the per cent by which they are to be lower. Both read the same windows: t tests of the
    windows' losses, averaged over the seeds, corrected (Holm) for the number of comparisons; with
    several seeds every pair of them has to agree too. It holds where all are clear.
    """
    pairs = [((o, s, t), (a, s, t)) for t, s, o, a in product(tuned, shares, of, against)]
    return _judged(evidence, _gaps(evidence, pairs, corpora), lower=True, least=least)


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
    return _judged(evidence, _gaps(evidence, pairs, (ACCURACY,)), lower=False)


def tuning_recovers(evidence: Evidence, *, of: Sequence[str], shares: Sequence[float]) -> Finding:
    """Whether fine-tuning while pruning lowers what pruning costs.

    That is how far the perplexity lies above the unpruned model's, either of them tuned the same
    way: tuning lowers the unpruned model's perplexity too, which is no recovery.
    """
    pairs = [((o, s, True), (o, s, False)) for s, o in product(shares, of)]
    whole = {c: gap(evidence, ("lora-guided", 0.0, True), ("base", 0.0, False), c) for c in CORPORA}
    found = _gaps(evidence, pairs, CORPORA)
    left = {place: _minus(own, whole[place[2]]) for place, own in found.items()}
    return _judged(evidence, left, lower=True, words="above the unpruned model's, tuned alike")


def _minus(one: Gap | None, whole: Gap | None) -> Gap | None:
    """What a gap has more than another one of the same windows."""
    if one is None or whole is None:
        return None
    seeds = np.subtract.outer(one.seeds, whole.seeds).ravel()
    return Gap(one.values - whole.values, seeds, one.counts)


def _gaps(
    evidence: Evidence, pairs: Sequence[tuple[tuple, tuple]], measures: Sequence[str]
) -> dict[ModelPair, Gap | None]:
    return {(*pair, m): gap(evidence, *pair, m) for pair in pairs for m in measures}


def _judged(
    evidence: Evidence, gaps: Gaps, lower: bool, least: float = 0, words: str = ""
) -> Finding:
    if any(found is None for found in gaps.values()):
        return not_run(evidence, note=MISSING)
    sure, sign = clear(gaps), -1 if lower else 1
    good = [sign * found.mean for found in sure.values() if sign * found.mean > 0]
    enough = sum(gain >= -math.log1p(-least / 100) for gain in good)
    bad = len(sure) - len(good)
    for_it, against = ("lower", "higher")[::-sign]
    much = f", {enough} by as much as asked" if least else ""
    counted = f"clearly {for_it} {len(good)}{much}, clearly {against} {bad}, "
    counted += f"neither {len(gaps) - len(sure)}"
    verdict = verdict_of(enough, bad, len(gaps), False)
    return Finding(verdict, counted, _told(gaps, words, least))


def _told(gaps: Gaps, words: str, least: float) -> str:
    measures = list(dict.fromkeys(measure for *_, measure in gaps))
    corpora = f"Perplexity on {' and '.join(measures)}{f', {words}' if words else ''}"
    what = "Accuracy over all rows of tasks" if measures == [ACCURACY] else corpora
    asked = f" Asked for: at least {least:g}% lower." if least else ""
    return f"{what}. {'; '.join(_settings(gaps))}.{asked} {SMALL}"


def _settings(gaps: Gaps) -> Iterator[str]:
    """A part of a sentence for every share and way of tuning: who lies how far from whom."""
    for words in dict.fromkeys(setting(place[:2]) for place in gaps):
        own = {place: g for place, g in gaps.items() if setting(place[:2]) == words}
        told = [_against(one, own) for one in dict.fromkeys(place[0] for place in own)]
        yield f"{words} ({seeds_told(own.values())}): {', '.join(told)}"


def _against(one: tuple, gaps: Gaps) -> str:
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


def no_worse(evidence: Evidence, *, of: Model, against: Sequence[Model], within: float) -> Finding:
    """Whether a model's perplexity is at most `within` per cent above others', surely; or below.

    That is, with the whole 95% interval over the windows, and every pair of seeds; both corpora.
    """
    gaps = {
        (tuple(other), c): gap(evidence, of, other, c) for other, c in product(against, CORPORA)
    }
    if any(found is None for found in gaps.values()):
        return not_run(evidence, note=MISSING)
    ends = {place: _ends(found) for place, found in gaps.items()}
    inside = sum(high <= within for _, high in ends.values())
    verdict = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    told = [f"{name(m)}, {c}: [{low}, {high}]%" for (m, c), (low, high) in _shown(ends)]
    return Finding(
        Verdict.HOLDS if inside == len(ends) else verdict,
        f"at most {within:g}% above: {inside} of {len(ends)}",
        f"How far the perplexity of {name(of)} ({setting([of])}; {seeds_told(gaps.values())}) lies "
        f"from that of {'; '.join(told)}. Below is as good.",
    )


def _shown(ends: Mapping) -> Iterator[tuple]:
    for place, both in ends.items():
        yield place, tuple(f"{end:+,.1f}" for end in both)


def _ends(found: Gap) -> tuple[float, float]:
    """Percent: the 95% interval over the windows, wide enough for every pair of seeds."""
    reach = COVERED * found.values.std(ddof=1) / math.sqrt(len(found.values))
    low, high = found.mean - reach, found.mean + reach
    ends = min(low, found.seeds.min()), max(high, found.seeds.max())
    return tuple(100 * np.expm1(ends))


CHECKS = (perplexity_below, accuracy_above, tuning_recovers, no_worse)
