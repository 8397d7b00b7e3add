"""Questions about TIP's parts, answered in a word and with the numbers that it stands on."""

from collections.abc import Sequence

from tipmini.lab.accuracy_tables import Titles
from tipmini.lab.comparison_tables import points
from tipmini.lab.contributions import without_largest
from tipmini.lab.resampling import Cells, gains_of, mean_of_tasks
from tipmini.lab.statistics import MISSING, Comparison, Pair, Verdict, compare, measured
from tipmini.lab.tables import TITLES


def answer(cells: Cells, question: str, pairs: Sequence[Pair], titles: Titles = TITLES) -> str:
    """A word and its numbers; tests are corrected together.

    Yes where the first of every pair is better than the second, in part where some are; no where
    none is and some are worse, the contrary where all are; else not told apart. While a pair is
    missing, the word is of those that are there, and says so.
    """
    found = compare(cells, pairs)
    both = list(zip(pairs, found, strict=True))
    there = [(pair, one) for pair, one in both if one]
    if not there:
        return f"*{question}* {MISSING}."
    told = "; ".join(_told(cells, pair, one, titles) for pair, one in there)
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
        return "Not told apart"
    return "No, the contrary" if worse == len(words) else "No"


def _carried(cells: Cells, there: Sequence[tuple[Pair, Comparison]]) -> str:
    """The one task that makes all that is told apart: without it every interval holds 0."""
    clear = [pair for pair, one in there if one.verdict() is not Verdict.OPEN]
    if not clear or any(len(pair.tasks) < 2 for pair in clear):
        return ""
    rests = [without_largest(cells, pair) for pair in clear]
    same = {left for left, _ in rests}
    held = all(rest.low <= 0 <= rest.high for _, rest in rests)
    return f", by {TITLES[same.pop()]} alone" if held and len(same) == 1 else ""


def _named(pair: Pair, titles: Titles) -> str:
    return " minus ".join(titles.get(name, name) for name in pair[:2])


def _told(cells: Cells, pair: Pair, found: Comparison, titles: Titles) -> str:
    """Beside the mean, the mean without the task that has most of it: one may carry all."""
    told = f"{_named(pair, titles)} {100 * found.value:+z.1f} {points(found)}, {found.verdict()}"
    if len(pair.tasks) < 2:
        return told
    left, rest = without_largest(cells, pair)
    return f"{told} (without {TITLES[left]} {100 * rest.value:+z.1f} {points(rest)})"
