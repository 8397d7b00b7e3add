"""Checks of pruned models, of any paper: two models on the same windows or rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np

from tipmini_lab.book import pruning_tables
from tipmini_lab.book.claims import Verdict, checks
from tipmini_lab.book.claims.checks import Evidence, Finding, Names, NotMeasured, here
from tipmini_lab.book.claims.choices import choice, left_out
from tipmini_lab.book.pruning_tables import ACCURACY, UNPRUNED, Gap, Model, ModelPair, clear
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.declared import Planned, grid
from tipmini_lab.results.statistics import COVERED

PROFILE = "mini"
Gaps = Mapping[ModelPair, Gap]
Pairs = Sequence[tuple[Model, Model]]
BOTH = {"with fine-tuning alone": [True], "without fine-tuning alone": [False]}
BY_TASKS = {"by the accuracy on tasks": [ACCURACY]}
choice("shares")(lambda own, known: left_out(own, "{:.0%}".format))
choice("tuned")(lambda own, known: BOTH if len(own) > 1 else {})
choice("measures")(lambda own, known: BY_TASKS if own == CORPORA else {})
choice("longer")(lambda own, known: {"long runs": True})
choice("untuned")(lambda own, known: {"neither fine-tuned": True} if own is False else {})


@cache
def runs() -> Mapping[str, Planned]:
    return grid().runs(PROFILE)


@choice("of", "against")
def _contenders(own: object, evidence: Evidence) -> dict:
    """Each left out of a list of criteria, or of ways to tune."""
    named = isinstance(own, list) and all(isinstance(one, str) for one in own)
    titles = {way.name: way.title for way in tunings.group("lora-methods").ways} | grid().titles()
    return left_out(own, lambda n: titles.get(n, n).partition(",")[0]) if named else {}


@cache
def _gap(evidence: Evidence, one: Model, two: Model, measure: str) -> Gap | None:
    return pruning_tables.gap(evidence.prunings, runs(), one, two, measure)


def gaps(evidence: Evidence, pairs: Pairs, measures: Names, longer: bool = False) -> Gaps:
    """{(one, two, measure): gap}; raises NotMeasured where one is not measured.

    longer: of the fine-tuned models those that were tuned for long, and of the pairs those of
    which both are stored.
    """
    pairs = [tuple(map(tuple, pair)) for pair in pairs]
    if longer:
        pairs = [tuple((*m, True) if m[2] else m for m in pair) for pair in pairs]
        pairs = [p for p in pairs if sum(map(len, p)) > 6 and _gap(evidence, *p, measures[0])]
    found = {(*pair, m): _gap(evidence, *pair, m) for pair, m in product(pairs, measures)}
    if not found or None in found.values():
        raise NotMeasured("Not all of the models that it takes are measured.")
    return found


@here
def better(
    evidence: Evidence,
    *,
    of: Names,
    against: Names,
    shares: Sequence[float],
    tuned: Sequence[bool],
    measures: Names = CORPORA,
    least: float = 0,
    corrected: bool = True,
    longer: bool = False,
) -> Finding:
    """Whether models of some criteria have lower perplexities (or higher accuracies) than others.

    tuned: whether models with, without, or of both kinds of fine-tuning, as the sentence speaks of.
    measures: corpora, or "accuracy" alone, over the rows of all averaged tasks.
    least: the per cent by which a perplexity is to be lower. Both read the same windows (rows): t
    tests of the windows' losses, averaged over the seeds, corrected (Holm) for the number of
    comparisons; with several seeds every pair of them has to agree too. longer: see `gaps`.
    """
    pairs = [((o, s, t), (a, s, t)) for t, s, o, a in product(tuned, shares, of, against)]
    return _compared(gaps(evidence, pairs, measures, longer), corrected, least)


@here
def tuning_recovers(
    evidence: Evidence,
    *,
    of: Names,
    shares: Sequence[float],
    corrected: bool = True,
    longer: bool = False,
) -> Finding:
    """Whether fine-tuning while pruning lowers what pruning costs.

    That is how far the perplexity lies above the unpruned model's, either of them tuned the same
    way: tuning lowers the unpruned model's perplexity too, which is no recovery.
    """
    pairs = [((o, s, True), (o, s, False)) for s, o in product(shares, of)]
    found = gaps(evidence, pairs, CORPORA, longer)
    for place, one in found.items():
        whole = [(UNPRUNED, ("base", 0.0, False))]
        (other,) = gaps(evidence, whole, [place[2]], longer).values()
        seeds = np.subtract.outer(one.seeds, other.seeds).ravel()
        found[place] = Gap(one.values - other.values, seeds, one.counts)
    return _compared(found, corrected, words=", above the unpruned model's, tuned alike")


def _compared(found: Gaps, corrected: bool, least: float = 0, words: str = "") -> Finding:
    measures = [*dict.fromkeys(measure for *_, measure in found)]
    what = f"Perplexity on {' and '.join(measures)}{words}"
    sign, for_it, against = -1, "lower", "higher"
    if measures == [ACCURACY]:
        sign, for_it, against, what = 1, "higher", "lower", "Accuracy over all examples of tasks"
    sure = [sign * gap.mean for gap in clear(found, corrected).values()]
    good = [gain for gain in sure if gain > 0]
    enough, bad = sum(gain >= -math.log1p(-least / 100) for gain in good), len(sure) - len(good)
    much = f", {enough} by as much as asked" if least else ""
    counted = f"significantly {for_it} {len(good)}{much}, {against} {bad}, "
    counted += f"neither {len(found) - len(sure)}"
    asked = f" Asked for: at least {least:g}% lower." if least else ""
    told = f"{what}. {_settings(found)}.{asked} Of a small model, as all that is measured here."
    verdict = checks.verdict_of(enough, bad, len(found))
    return Finding(verdict, counted, told, tuple(found))


def _settings(found: Gaps) -> str:
    """For every share and way of tuning, and every model: how far it lies from whom."""
    told = {}
    for (one, two, measure), gap in found.items():
        other = "the same not tuned" if one[:2] == two[:2] else told_model(two)
        models = told.setdefault(told_setting([one, two]), {}).setdefault(told_model(one), {})
        models.setdefault(other, []).append((_size(gap.mean, measure), gap))
    words = []
    for where, models in told.items():
        gaps = [gap for own in models.values() for sizes in own.values() for _, gap in sizes]
        named = [
            f"{one} "
            + ", ".join(
                f"{' and '.join(s for s, _ in sizes)} against {o}" for o, sizes in own.items()
            )
            for one, own in models.items()
        ]
        words.append(f"{where} ({told_seeds(gaps)}): {', '.join(named)}")
    return "; ".join(words)


def told_model(model: Model) -> str:
    """A model as a sentence calls it: "LoRAPrune, base in 8 bits", "the unpruned model"."""
    method, share, tuned, *_ = model
    whole = "the unpruned model, fine-tuned" if tuned else "the unpruned model"
    return grid().titles()[method] if share else whole


def told_setting(models: Sequence[Model]) -> str:
    """The share, and whether it is tuned, of models that a sentence sets against each other."""
    told = [f"{share:.0%}" for share in sorted({model[1] for model in models} - {0.0})]
    if len({model[2] for model in models}) == 1:
        told += ["with fine-tuning" if models[0][2] else "without fine-tuning"]
    return ", ".join(told)


def told_seeds(found: Iterable[Gap]) -> str:
    """Of either side of every gap."""
    sides = []
    for counts in zip(*(gap.counts for gap in found), strict=True):
        low, high = min(counts), max(counts)
        several = f"{high} seeds" if low == high else f"{low} to {high} seeds"
        sides.append("one seed" if high == 1 else several)
    return " against ".join(dict.fromkeys(sides))


def _size(mean: float, measure: str) -> str:
    """Points of an accuracy; percent of a perplexity, or above a factor of ten how many times."""
    if measure == ACCURACY:
        return f"{100 * mean:+.1f} points"
    if abs(mean) < math.log(10):
        return f"{100 * math.expm1(mean):+.1f}%"
    return f"{'÷' if mean < 0 else '×'}{pruning_tables.three_digits(math.exp(abs(mean)))}"


@here
def no_worse(
    evidence: Evidence,
    *,
    pairs: Pairs,
    within: float,
    longer: bool = False,
    untuned: bool | None = None,
) -> Finding:
    """Whether models' perplexities are at most `within` per cent above others', surely; or below.

    That is, with the whole 95% interval over the windows, and every pair of seeds; both corpora.
    untuned: False where models are fine-tuned and the others are not: whether to take them without.
    """
    if untuned:
        pairs = [([*own[:2], False], other) for own, other in pairs]
    found, told, inside = gaps(evidence, pairs, CORPORA, longer), [], 0
    for (own, other, corpus), gap in found.items():
        reach = COVERED * gap.values.std(ddof=1) / math.sqrt(len(gap.values))
        ends = min(gap.mean - reach, gap.seeds.min()), max(gap.mean + reach, gap.seeds.max())
        low, high = 100 * np.expm1(ends)
        inside += high <= within
        setting = f"{told_setting([own])}; {told_seeds([gap])}"
        one = f"{told_model(own)} ({setting}) from {told_model(other)}"
        told.append(f"{one}, {corpus}: [{low:+,.1f}, {high:+,.1f}]%")
    some = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    words = f"How far perplexities lie apart: {'; '.join(told)}. Below is as good."
    if untuned is False:
        words += " One is fine-tuned and the other is not, which favours it."
    return Finding(
        Verdict.HOLDS if inside == len(found) else some,
        f"at most {within:g}% above: {inside} of {len(found)}",
        words,
        tuple(found),
    )
