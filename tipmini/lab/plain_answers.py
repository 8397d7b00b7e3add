"""Questions about TIP's parts, answered in a word and with the numbers that it stands on."""

from collections.abc import Sequence

from tipmini.lab.accuracy_tables import Titles
from tipmini.lab.comparison_tables import points
from tipmini.lab.contributions import without_largest
from tipmini.lab.resampling import Cells, gains_of, mean_of_tasks
from tipmini.lab.statistics import MISSING, Comparison, Pair, Verdict, compare, measured
from tipmini.lab.tables import TITLES


def answer(cells: Cells, question: str, pairs: Sequence[Pair], titles: Titles = TITLES) -> str:
    """Yes where the first of every pair is better than the second, tests corrected together.

    In part: better than some. No: better than none. What is missing is named and counts for none.
    """
    found = compare(cells, pairs)
    both = list(zip(pairs, found, strict=True))
    there = [(pair, one) for pair, one in both if one]
    if not there:
        return f"*{question}* {MISSING}."
    told = "; ".join(_told(cells, pair, one, titles) for pair, one in there)
    missing = [titles.get(p.against, p.against) for p, one in both if not one]
    rest = f" {', '.join(missing)}: {MISSING}." if missing else ""
    return f"*{question}* **{_word([one for _, one in there])}.** {told}.{rest}"


def thinned(cells: Cells, tasks: Sequence[str]) -> str:
    """Whether pruning thins the cross terms out: then dropping them gives TIP less than Linear."""
    pairs = [("tip-cat", "tip"), ("cat", "linear")]
    if not measured(cells, [name for pair in pairs for name in pair], tasks):
        return f"What the cross terms are to TIP and to Linear: {MISSING}."
    tip, linear = (mean_of_tasks(gains_of(cells, *pair, tasks)) for pair in pairs)
    more, does = ("less", "thins") if tip < linear else ("no less", "does not thin")
    return (
        f"Dropping the cross terms gives TIP {100 * tip:+z.1f} points and Linear "
        f"{100 * linear:+z.1f}. It gives TIP {more}, so pruning {does} them out."
    )


def _word(found: Sequence[Comparison]) -> str:
    words = [one.verdict() for one in found]
    better, worse = (words.count(w) for w in (Verdict.BETTER, Verdict.WORSE))
    if better == len(words):
        return "Yes"
    if better:
        return "In part"
    return "No, the contrary" if worse == len(words) else "No"


def _told(cells: Cells, pair: Pair, found: Comparison, titles: Titles) -> str:
    """Beside the mean, the mean without the task that has most of it: one may carry all."""
    one, two = (titles.get(name, name) for name in pair[:2])
    told = f"{one} minus {two} {100 * found.value:+z.1f} {points(found)}, {found.verdict()}"
    if len(pair.tasks) < 2:
        return told
    left, rest = without_largest(cells, pair)
    return f"{told} (without {TITLES[left]} {100 * rest.value:+z.1f} {points(rest)})"
