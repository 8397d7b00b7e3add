"""Questions about TIP's parts, answered in a word and with the numbers that it stands on."""

from collections.abc import Sequence

from tipmini.lab.accuracy_tables import Titles
from tipmini.lab.comparison_tables import points
from tipmini.lab.resampling import Cells
from tipmini.lab.statistics import MISSING, Comparison, Pair, Verdict, compare
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
    told = "; ".join(_told(pair, one, titles) for pair, one in there)
    missing = [titles.get(p.against, p.against) for p, one in both if not one]
    rest = f" ({', '.join(missing)}: {MISSING})" if missing else ""
    return f"*{question}* **{_word([one for _, one in there])}.** {told}{rest}."


def _word(found: Sequence[Comparison]) -> str:
    words = [one.verdict() for one in found]
    better, worse = (words.count(w) for w in (Verdict.BETTER, Verdict.WORSE))
    if better == len(words):
        return "Yes"
    if better:
        return "In part"
    return "No, the contrary" if worse == len(words) else "No"


def _told(pair: Pair, found: Comparison, titles: Titles) -> str:
    one, two = (titles.get(name, name) for name in pair[:2])
    return f"{one} minus {two} {100 * found.value:+z.1f} {points(found)}, {found.verdict()}"
