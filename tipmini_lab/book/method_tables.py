"""Tables of the chapters on TIP: guessing, Eq. 5 on layers, open points, its parts."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from lm_eval.api.task import ConfigurableTask
from torch import Tensor

import tipmini as tm
from tipmini.papers.dare import named_generator
from tipmini_lab.book.comparisons import compared, points, without_largest
from tipmini_lab.book.tables import (
    EMPTY,
    SIZE,
    TITLES,
    UNMERGED,
    Facts,
    Titles,
    narrow,
    relative_size,
)
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results.statistics import (
    MISSING,
    Cells,
    Comparison,
    Pair,
    Verdict,
    compare,
    gains_of,
    mean_of_tasks,
    measured,
)


def by_chance(definition: ConfigurableTask) -> float | None:
    """Mean over the rows of one over the number of choices; None where the answer is written."""
    choices = [definition.doc_to_choice(doc) for doc in _choosing(definition)]
    return sum(1 / len(found) for found in choices) / len(choices) if choices else None


def same_answer(definition: ConfigurableTask) -> float | None:
    """Share of the most frequent right answer, such as yes; None where rows have their own."""
    rows = _choosing(definition)
    if len({tuple(definition.doc_to_choice(doc)) for doc in rows}) != 1:
        return None
    answers = Counter(definition.doc_to_target(doc) for doc in rows)
    return max(answers.values()) / answers.total()


def _choosing(definition: ConfigurableTask) -> list[dict]:
    chosen = definition.OUTPUT_TYPE == "multiple_choice"
    return list(definition.eval_docs) if chosen else []


def _told(share: float | None) -> str:
    return EMPTY if share is None else f"{share:.3f}"


def guessing_table(definitions: Iterable[ConfigurableTask]) -> pd.DataFrame:
    """A row a task: an answer at random, and always the same one."""
    rows = {
        TITLES[d.config.task]: {
            "by chance": _told(by_chance(d)),
            "always the same answer": _told(same_answer(d)),
        }
        for d in definitions
    }
    return pd.DataFrame(rows).T.rename_axis("knowing nothing")


# Tables of the chapters on the method -------------------------------------------------------------
def unbounded_sparsity(importance: Tensor, base_sparsity: float) -> Tensor:
    """S_l as Eq. 5 prints it, before anything is done about values outside [0, 1]. (L,) to (L,)."""
    return base_sparsity + tm.sparsity_shift(tm.normalize_importance(importance))


def bounds_table(importances: Mapping[str, Tensor], base_sparsity: float) -> pd.DataFrame:
    """How many layers leave [0, 1] a task, what clipping does to the mean, who is pruned most."""
    rows = {}
    for task, importance in importances.items():
        printed = unbounded_sparsity(importance, base_sparsity)
        clipped = printed.clamp(0, 1)
        rows[TITLES[task]] = {
            "most important layer": str(int(importance.argmax())),
            "its sparsity": f"{clipped[importance.argmax()]:.3f}",
            "least important layer": str(int(importance.argmin())),
            "its sparsity ": f"{clipped[importance.argmin()]:.3f}",
            "layers above 1": str(int((printed > 1).sum())),
            "layers below 0": str(int((printed < 0).sum())),
            "mean as printed": f"{printed.mean():.3f}",
            "mean once clipped": f"{clipped.mean():.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("task")


def unbiasedness(weight: Tensor, drop_rate: float, draws: Iterable[int], seed: int) -> pd.DataFrame:
    """How far the mean of n dropped and rescaled copies is from the weight itself.

    Relative to the weight's norm; the expected square of it is p / ((1 - p) n).
    """
    total, rows, draws = weight * 0, {}, sorted(draws)
    for n in range(1, draws[-1] + 1):
        generator = named_generator(seed, "draw", str(n))
        total = total + tm.dare(weight, drop_rate, generator=generator)
        if n in draws:
            found = ((total / n - weight).norm() / weight.norm()).item()
            expected = math.sqrt(drop_rate / (1 - drop_rate) / n)
            rows[n] = {"measured error": f"{found:.4f}", "expected": f"{expected:.4f}"}
    return pd.DataFrame(rows).T.rename_axis("copies averaged")


def norm_ratios(merged: Mapping[str, tm.LoraAdapter], exact: tm.LoraAdapter) -> pd.DataFrame:
    """Each merge beside the exact sum of the deltas, over all modules (Frobenius norms)."""
    whole = _norm(exact.delta(module) for module in exact.modules)
    rows = {}
    for method, adapter in merged.items():
        size = _norm(adapter.delta(m) for m in exact.modules)
        error = _norm(adapter.delta(m) - exact.delta(m) for m in exact.modules)
        rows[TITLES.get(method, method)] = {
            "‖merged‖ / ‖sum‖": f"{size / whole:.3f}",
            "‖merged − sum‖ / ‖sum‖": f"{error / whole:.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("merge")


def _norm(matrices: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(matrix.double().square().sum().item() for matrix in matrices))


def cross_terms(adapters: Mapping[str, tm.LoraAdapter]) -> pd.DataFrame:
    """The error of adding factors instead of updates, for the first 2, 3, ... adapters."""
    rows, names = {}, list(adapters)
    for count in range(1, len(names) + 1):
        chosen = {name: adapters[name] for name in names[:count]}
        ratios = norm_ratios({"linear": tm.merge(chosen, "linear")}, tm.merge(chosen, "cat"))
        added = TITLES.get(names[count - 1], names[count - 1])
        rows[count] = {"added last": added} | ratios.loc[TITLES["linear"]].to_dict()
    return pd.DataFrame(rows).T.rename_axis("adapters")


def pruned_shares(
    pruned: Mapping[str, tm.LoraAdapter], asked: Mapping[str, Tensor]
) -> pd.DataFrame:
    """The share of zeros in all A and in all B of each adapter, beside the mean share asked for."""
    rows = {}
    for task, adapter in pruned.items():
        factors = list(adapter.factors.values())
        rows[TITLES[task]] = {
            "share asked for, mean of layers": f"{asked[task].mean():.3f}",
            "share pruned of A": f"{_zeros(pair.a for pair in factors):.3f}",
            "share pruned of B": f"{_zeros(pair.b for pair in factors):.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("task")


def _zeros(matrices: Iterable[Tensor]) -> float:
    matrices = list(matrices)
    return sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)


# The ambiguity ledger -----------------------------------------------------------------------------
class Entry(NamedTuple):
    """One way to settle an open point, all other points as in the variant it is held against."""

    point: int
    question: str
    option: str
    pair: Pair  # the reading's variant, the one it is held against, and their common tasks

    @property
    def heading(self) -> str:
        return f"{self.point}. {self.question}"


def entries(points: Iterable, variants, profile: Profile) -> list[Entry]:
    """All readings of the declared points, in the order of the points.

    points: `Group.points` of the ledger's file; variants: `Catalogue.variants`.
    """
    return [
        Entry(p.point, p.question, r.option, _pair(r, variants, profile))
        for p in sorted(points, key=lambda point: point.point)
        for r in p.readings
    ]


def _pair(reading, variants, profile: Profile) -> Pair:
    """Where fewer adapters are merged, only their tasks are evaluated."""
    both = [variants[name].tasks(profile.tasks) for name in (reading.name, reading.against)]
    tasks = tuple(task for task in profile.tasks if all(task in tasks for tasks in both))
    return Pair(reading.name, reading.against, tasks)


def settled(points: Iterable) -> pd.DataFrame:
    """How every declared point is settled wherever it is not the one that is varied."""
    noted = lambda p: f" ({p.note.strip()})" if p.note else ""  # noqa: E731
    rows = [
        {"open point": p.question, "settled as": f"{p.printed}{noted(p)}"}
        for p in sorted(points, key=lambda point: point.point)
    ]
    wide = pd.DataFrame(rows, index=sorted(p.point for p in points)).rename_axis("#")
    return wide.map(lambda text: narrow(text, 44))


def table(cells: Cells, listed: Sequence[Entry], facts: Facts | None = None) -> pd.DataFrame:
    """Every reading minus the one it is held against; p is corrected over all entries.

    facts: {variant: `merging.sizes` of its merge}, for a column of the merges' sizes.
    """
    rows = [
        {"open point": narrow(e.question, 17), "reading": narrow(e.option, 17)}
        | _line(found)
        | ({} if facts is None else {SIZE: relative_size(facts.get(e.pair.name))})
        for e, found in zip(listed, _compare(cells, listed), strict=True)
    ]
    return pd.DataFrame(rows, index=[e.point for e in listed]).rename_axis("#")


def _line(found: Comparison | None) -> dict[str, str]:
    """As `compared`, in fewer and narrower columns."""
    value, bounds, p, tasks, word = compared(found).values()
    return {
        "points<br>[95%]": f"{value}<br>{bounds}" if found else value,
        "p, cor-<br>rected": p,
        "tasks<br>better /<br>worse": tasks,
        "it is": narrow(word, 8),
    }


def effects(
    cells: Cells, listed: Sequence[Entry]
) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    """{point: {reading: (difference, low, high) in points}}, as the figure `effects` takes it."""
    grouped: dict[str, dict] = {}
    for entry, one in zip(listed, _compare(cells, listed), strict=True):
        values = one and (100 * one.value, 100 * one.low, 100 * one.high)
        grouped.setdefault(entry.heading, {})[entry.option] = values
    return grouped


def summary(cells: Cells, listed: Sequence[Entry]) -> str:
    """How many readings do better, worse, neither; the largest effect to each side.

    The largest are of the readings of a merge alone; see `_of_merges`.
    """
    found = list(zip(listed, _compare(cells, listed), strict=True))
    there = [(entry, one) for entry, one in found if one]
    if not there:
        return f"The {len(listed)} readings are {MISSING}."
    words = [one.verdict() for _, one in there]
    counts = ", ".join(f"{words.count(w)} {w}" for w in (Verdict.BETTER, Verdict.WORSE))
    first = f"{len(there)} of {len(listed)} readings are measured: {counts}, "
    parts = [f"{first}{words.count(Verdict.OPEN)} {Verdict.OPEN} from what they are held against."]
    order = sorted(_of_merges(there), key=lambda pair: pair[1].value)
    parts += [_extreme("largest gain", *pair) for pair in order[-1:] if pair[1].value > 0]
    parts += [_extreme("largest loss", *pair) for pair in order[:1] if pair[1].value < 0]
    return " ".join(parts)


def _of_merges(found: Sequence[tuple[Entry, Comparison]]) -> list[tuple[Entry, Comparison]]:
    """Without what is held against the base or Single: that reads no merge otherwise."""
    return [(entry, one) for entry, one in found if entry.pair.against not in UNMERGED]


def _extreme(what: str, entry: Entry, found: Comparison) -> str:
    return (
        f"Of the readings of a merge, the {what} is {100 * found.value:+z.1f} points, of point "
        f"{entry.point} read as “{entry.option}” ({found.verdict()})."
    )


def _compare(cells: Cells, listed: Sequence[Entry]) -> list[Comparison | None]:
    return compare(cells, [entry.pair for entry in listed])


# Questions about TIP's parts ----------------------------------------------------------------------
def answer(cells: Cells, question: str, pairs: Sequence[Pair], titles: Titles = TITLES) -> str:
    """A word and its numbers; tests are corrected together.

    Yes where the first of every pair is better than the second, in part where some are; no where
    none is and some are worse, the contrary where all are; else not significant. While a pair is
    missing, the word is of those that are there, and says so.
    """
    found = compare(cells, pairs)
    both = list(zip(pairs, found, strict=True))
    there = [(pair, one) for pair, one in both if one]
    if not there:
        return f"*{question}* {MISSING}."
    told = "; ".join(_plain_answers_told(cells, pair, one, titles) for pair, one in there)
    missing = [_named(pair, titles) for pair, one in both if not one]
    rest = f" {'; '.join(missing)}: {MISSING}." if missing else ""
    word = f"{_word([one for _, one in there])}{_carried(cells, there)}"
    return f"*{question}* **{'So far: ' if missing else ''}{word}.** {told}.{rest}"


def thinned(cells: Cells, tasks: Sequence[str]) -> str:
    """What dropping the cross terms gives TIP and Linear, and what that speaks for."""
    pairs = [("tip-cat", "tip"), ("cat", "linear")]
    if not measured(cells, [name for pair in pairs for name in pair], tasks):
        return f"What the cross terms are to TIP and to Linear: {MISSING}."
    tip, linear = (mean_of_tasks(gains_of(cells, *pair, tasks)) for pair in pairs)
    sign = "what one would see" if tip < linear else "no sign of that"
    return (
        f"Dropping the cross terms gives TIP {100 * tip:+z.1f} points and Linear "
        f"{100 * linear:+z.1f} (the two are not tested against each other). Were TIP good for "
        f"thinning them out, it would gain less than Linear: {sign}."
    )


def _word(found: Sequence[Comparison]) -> str:
    words = [one.verdict() for one in found]
    better, worse = (words.count(w) for w in (Verdict.BETTER, Verdict.WORSE))
    if better == len(words):
        return "Yes"
    if better:
        return "In part"
    if not worse:
        return "Not significant"
    return "No, the contrary" if worse == len(words) else "No"


def _carried(cells: Cells, there: Sequence[tuple[Pair, Comparison]]) -> str:
    """The one task that makes all that is significant: without it every interval holds 0."""
    clear = [pair for pair, one in there if one.verdict() is not Verdict.OPEN]
    if not clear or any(len(pair.tasks) < 2 for pair in clear):
        return ""
    rests = [without_largest(cells, pair) for pair in clear]
    same = {left for left, _ in rests}
    held = all(rest.low <= 0 <= rest.high for _, rest in rests)
    return f", by {TITLES[same.pop()]} alone" if held and len(same) == 1 else ""


def _named(pair: Pair, titles: Titles) -> str:
    return " minus ".join(titles.get(name, name) for name in pair[:2])


def _plain_answers_told(cells: Cells, pair: Pair, found: Comparison, titles: Titles) -> str:
    """Beside the mean, the mean without the task that has most of it: one may carry all."""
    told = f"{_named(pair, titles)} {100 * found.value:+z.1f} {points(found)}, {found.verdict()}"
    if len(pair.tasks) < 2:
        return told
    left, rest = without_largest(cells, pair)
    return f"{told} (without {TITLES[left]} {100 * rest.value:+z.1f} {points(rest)})"
