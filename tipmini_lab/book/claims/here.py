"""Checks of a claim from what was measured for this book, one or several at once."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from torch import Tensor

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini_lab.book import serving
from tipmini_lab.book.claims.declared import Verdict
from tipmini_lab.book.claims.evidence import LEVEL, Evidence, Finding
from tipmini_lab.book.claims.in_print import names, not_run
from tipmini_lab.book.tables import TITLES
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.results.statistics import holm_of
from tipmini_lab.results.store import Cell, paired_p

Compared = tuple[str, str, str]  # (higher, lower, task)


# Accuracies ---------------------------------------------------------------------------------------


def paired(
    evidence: Evidence,
    *,
    higher: Sequence[str],
    lower: Sequence[str],
    tasks: Sequence[str] | None = None,
    some: bool = False,
) -> Finding:
    """Whether cells of `higher` lie above those of `lower` by the sign test on the same rows.

    The p values are corrected (Holm) for the number of comparisons of this claim. It holds where
    all are clear, or with `some` one at least; in part where more are clear for it than against;
    and the contrary does where most are clear against it.
    A missing cell makes it not run.
    """
    asked = tasks or evidence.profile.tasks
    places = [(h, low, task) for h in higher for low in lower for task in asked]
    missing = {m for h, low, t in places for m in (h, low) if (m, t) not in evidence.cells}
    if missing:
        told = ", ".join(map(title, sorted(missing)))
        return not_run(evidence, note=f"No cells, or not of every task, are stored for: {told}.")
    corrected = holm_of({place: paired_p(*_pair(evidence, place)) for place in places})
    gaps = {place: _gap(evidence, place) for place in places}
    clear = {place: gaps[place] for place in places if corrected[place] < LEVEL}
    better = sum(gap > 0 for gap in clear.values())
    worse = len(clear) - better
    counted = f"clear for it {better}, clear against it {worse}, neither {len(gaps) - len(clear)}"
    verdict = verdict_of(better, worse, len(places), some)
    return Finding(verdict, counted, "; ".join(_told(gaps, clear)) + ".")


def title(name: str) -> str:
    """As tables call a method or a declared variant."""
    known = catalogue().variants
    return known[name].title if name in known else TITLES.get(name, name)


def _pair(evidence: Evidence, place: Compared) -> tuple[Cell, Cell]:
    higher, lower, task = place
    return evidence.cells[higher, task], evidence.cells[lower, task]


def _gap(evidence: Evidence, place: Compared) -> float:
    """In points."""
    one, two = _pair(evidence, place)
    return 100 * (one.mean - two.mean)


def verdict_of(better: int, worse: int, asked: int, some: bool) -> Verdict:
    if better == asked or (some and better):
        return Verdict.HOLDS
    if 2 * worse > asked:
        return Verdict.CONTRARY
    return Verdict.IN_PART if better > worse else Verdict.NOT_SUPPORTED


def _told(gaps: dict[Compared, float], clear: dict[Compared, float]) -> Iterator[str]:
    """A part of a sentence for every pair of methods: its mean difference, and what is clear."""
    for h, low in dict.fromkeys(place[:2] for place in gaps):
        own = [gap for place, gap in gaps.items() if place[:2] == (h, low)]
        mean = f"{sum(own) / len(own):+.1f} points{' on average' if own[1:] else ''}"
        told = [f"{title(h)} − {title(low)} is {mean}"]
        signs = {t: gap > 0 for (*pair, t), gap in clear.items() if pair == [h, low]}
        for word, sign in (("for", True), ("against", False)):
            tasks = [task for task, found in signs.items() if found is sign]
            told += [f"clear {word} the sentence on {names(tasks)}"] if tasks else []
        yield ", ".join(told)


# Layers -------------------------------------------------------------------------------------------


def layers_differ(evidence: Evidence, *, first: str, second: str, alike_above: float) -> Finding:
    """Whether the layers of two adapters rank differently by importance (Spearman's rho)."""
    found = evidence.importances
    if not {first, second} <= found.keys():
        return not_run(evidence, note="No input norms are stored.")
    rho = _rho(found, (first, second))
    every = [_rho(found, pair) for pair in combinations(found, 2)]
    apart = _normalized(found[first]) - _normalized(found[second])
    tops = [int(found[task].argmax()) for task in (first, second)]
    differ = sum(other < alike_above for other in every)
    return Finding(
        Verdict.HOLDS if rho < alike_above else Verdict.NOT_SUPPORTED,
        f"rank correlation {rho:.2f}; {differ} of all {len(every)} pairs are below {alike_above:g}",
        f"The most important of {len(found[first])} layers is {tops[0]} for {names([first])} and "
        f"{tops[1]} for {names([second])}, counted from 0; their sparsities differ by up to "
        f"{apart.abs().max():.2f}. From a correlation of {alike_above:g}, orders count as alike.",
    )


def _rho(importances: Mapping[str, Tensor], pair: tuple[str, str]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(*(importances[task] for task in pair)).statistic)


def _normalized(importance: Tensor) -> Tensor:
    return tm.sparsity_shift(tm.normalize_importance(importance))


def shifts_have_mean_zero(evidence: Evidence, *, base_sparsity: float, within: float) -> Finding:
    """Eq. 4 on every adapter, and what clipping to [0, 1] leaves of the mean."""
    shifts = [_normalized(line) for line in evidence.importances.values()]
    if not shifts:
        return not_run(evidence, note="No input norms are stored.")
    largest = max(shift.mean().abs().item() for shift in shifts)
    clipped = [(base_sparsity + shift).clamp(0, 1).mean().item() for shift in shifts]
    return Finding(
        Verdict.HOLDS if largest <= within else Verdict.NOT_SUPPORTED,
        f"mean shift 0 within {within:g} in {len(shifts)} adapters",
        f"Once shares outside [0, 1] are clipped, the mean sparsity of an adapter is "
        f"{min(clipped):.3f} to {max(clipped):.3f} in place of {base_sparsity:g}.",
    )


def layers_stay_shares(evidence: Evidence, *, base_sparsity: float) -> Finding:
    """Whether Eq. 5 as printed keeps every layer of every adapter within [0, 1]."""
    from tipmini_lab.book.method_tables import unbounded_sparsity

    lines = [unbounded_sparsity(line, base_sparsity) for line in evidence.importances.values()]
    if not lines:
        return not_run(evidence, note="No input norms are stored.")
    outside = [int(((line < 0) | (line > 1)).sum()) for line in lines]
    verdict = Verdict.DOES_NOT_HOLD if any(outside) else Verdict.HOLDS
    layers = sum(len(line) for line in lines)
    return Finding(
        verdict,
        f"{sum(outside)} of {layers} layers outside [0, 1]",
        f"In {sum(map(bool, outside))} of {len(lines)} adapters a layer leaves [0, 1] at overall "
        f"sparsity {base_sparsity:g}. They are clipped here.",
    )


# Serving ------------------------------------------------------------------------------------------


def serving_costs(evidence: Evidence, *, step: str, batch: int) -> Finding:
    """Whether a batch takes longer with unmerged adapters than without, and longer with more.

    Every round counts: in each the base model and all ways to serve took their turns.
    """
    found = serving.read()
    ratios = serving.relative(found, step, batch)
    mixed = {way: ratio for way, ratio in ratios.items() if way.startswith("mixed")}
    few, *_, many = mixed.values()
    slower = all(least > 1 for _, least, _ in mixed.values()) and many[1] > few[2]
    listed = (serving.most(found), "one adapter", "weights")
    told = [f"{serving.title(way)} {ratios[way][0]:.2f}" for way in listed]
    return Finding(
        Verdict.HOLDS if slower else Verdict.NOT_SUPPORTED,
        f"{few[0]:.2f} times with one adapter, {many[0]:.2f} with {len(mixed)}",
        f"Time of a batch of {batch}, {serving.STEPS[step]}, over that of the base model: "
        f"{', '.join(told)} (medians of {found.rounds} rounds; on a CPU, PEFT).",
    )


def merged_serves_cheaper(evidence: Evidence, *, step: str, batch: int) -> Finding:
    """Whether one merged adapter takes less time in every round than the largest mixed batch."""
    found = serving.read()
    ratios = serving.relative(found, step, batch)
    mixed, merged = ratios[serving.most(found)], ratios["one adapter"]
    return Finding(
        Verdict.HOLDS if merged[2] < mixed[1] else Verdict.NOT_SUPPORTED,
        f"{merged[0]:.2f} times merged, {mixed[0]:.2f} mixed",
        f"Time of a batch of {batch}, {serving.STEPS[step]}, over that of the base model. "
        f"In the {found.rounds} rounds: merged {merged[1]:.2f} to {merged[2]:.2f}, mixed "
        f"{mixed[1]:.2f} to {mixed[2]:.2f} (on a CPU, PEFT).",
    )


CHECKS = (
    *(paired, layers_differ, shifts_have_mean_zero, layers_stay_shares),
    *(serving_costs, merged_serves_cheaper),
)


# A check of a sentence that claims several things at once -----------------------------------------
Check = Callable[..., Finding]


def combining(checks: Iterable[Check]) -> tuple[Check, Check]:
    """The checks `all_of` and `both_of`, over these checks; each may be a part of the other."""

    def all_of(evidence: Evidence, *, parts: Sequence[Mapping]) -> Finding:
        """Whether all parts hold, or some of them; parts: [{check, arguments}]."""
        return _found(parts, evidence, known, together)

    def both_of(evidence: Evidence, *, parts: Sequence[Mapping]) -> Finding:
        """The same of a sentence that says nothing where one of its parts fails."""
        return _found(parts, evidence, known, none_failing)

    found = all_of, both_of
    known = {check.__name__: check for check in (*checks, *found)}
    return found


def _found(
    parts: Sequence[Mapping],
    evidence: Evidence,
    known: Mapping[str, Check],
    judge: Callable[[Sequence[Verdict]], Verdict],
) -> Finding:
    found = [_called(known, part, evidence) for part in parts]
    told = "; ".join(one.recomputed for one in found)
    words = " ".join(dict.fromkeys(one.words for one in found))
    return Finding(judge([one.verdict for one in found]), told, words)


def _called(known: Mapping[str, Check], part: Mapping, evidence: Evidence) -> Finding:
    check = known.get(part["check"])
    if check is None:
        raise TipminiError(f"check {part['check']!r} is not one of {', '.join(known)}")
    try:
        inspect.signature(check).bind(evidence, **part.get("arguments", {}))
    except TypeError as error:
        raise TipminiError(f"{part['check']}: {one_line(error)}") from None
    return check(evidence, **part.get("arguments", {}))


GOOD = Verdict.HOLDS, Verdict.IN_PART, Verdict.SAME_SETTING


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """All hold; some do, wholly or in part; the contrary of all; or none is supported.

    A setting that is another one decides: what it is of was not measured as the sentence says.
    """
    given = set(verdicts)
    for one in (Verdict.NOT_RUN, Verdict.OTHER_SETTING):
        if one in given:
            return one
    if len(given) == 1:
        return verdicts[0]
    if given == {Verdict.HOLDS, Verdict.SAME_SETTING}:
        return Verdict.HOLDS
    return Verdict.IN_PART if given & set(GOOD) else Verdict.NOT_SUPPORTED


def none_failing(verdicts: Sequence[Verdict]) -> Verdict:
    """`together`, but not in part where one part fails wholly."""
    found = together(verdicts)
    failing = found is Verdict.IN_PART and not set(verdicts) <= set(GOOD)
    return Verdict.NOT_SUPPORTED if failing else found
