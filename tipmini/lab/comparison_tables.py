"""Tables and sentences of what variants are apart, in points: hundredths of a share of rows.

A variant's title is looked up in `titles`; one without a title goes by its name.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from tipmini.lab import formats
from tipmini.lab.accuracy_tables import EMPTY, Titles, narrow
from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Cells, Interval
from tipmini.lab.statistics import (
    MISSING,
    Comparison,
    Pair,
    Verdict,
    compare,
    comparisons,
    verdict,
)
from tipmini.lab.tables import TITLES, p_text, relation

WIDE = 22  # letters of a title in a line

# Each method against one --------------------------------------------------------------------


def against(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    reference: str,
    titles: Titles = TITLES,
) -> pd.DataFrame:
    """Every variant minus `reference`, in the mean over tasks and by tasks, tests corrected."""
    others = [name for name in names if name != reference]
    found = comparisons(cells, others, reference, profile.tasks)
    rows = {narrow(titles.get(name, name), WIDE): compared(found[name]) for name in others}
    return pd.DataFrame(rows).T.rename_axis(f"against {titles.get(reference, reference)}")


def compared(found: Comparison | None) -> dict[str, str]:
    """One line of a table of differences, in points."""
    heads = ("difference, points", "95% interval", "p, corrected", "tasks better / worse", "it is")
    if found is None:
        return dict.fromkeys(heads, EMPTY) | {heads[-1]: MISSING}
    values = (
        f"{100 * found.value:+z.1f}",
        points(found),
        p_text(found.corrected),
        f"{len(found.better)} / {len(found.worse)}",
        str(found.verdict()),
    )
    return dict(zip(heads, values, strict=True))


def points(interval: Interval) -> str:
    """The bounds of a difference in points: "[-1.2, +0.4]"."""
    return f"[{100 * interval.low:+z.1f}, {100 * interval.high:+z.1f}]"


def sentence(
    cells: Cells, profile: Profile, name: str, reference: str, titles: Titles = TITLES
) -> str:
    """One comparison in words, all numbers and the verdict from the cells."""
    return sentences(cells, [Pair(name, reference, profile.tasks)], titles)[0]


def sentences(cells: Cells, pairs: Sequence[Pair], titles: Titles = TITLES) -> list[str]:
    """A sentence a comparison; p and verdict are corrected for their number."""
    found = compare(cells, pairs)
    what = "corrected p" if len(pairs) > 1 else "p"
    return [_said(one, pair, titles, what) for pair, one in zip(pairs, found, strict=True)]


def _said(found: Comparison | None, pair: Pair, titles: Titles, what: str) -> str:
    one, two = (f"*{titles.get(name, name)}*" for name in pair[:2])
    if found is None:
        return f"{one} against {two}: {MISSING}."
    sure = f"95% interval {points(found)}, {what} {relation(found.corrected)}"
    return (
        f"{one} minus {two} is {100 * found.value:+z.1f} points in the mean of "
        f"{len(pair.tasks)} tasks ({sure}): "
        f"{_WORDS[found.verdict()].format(one=one, two=two)}.{_smallness(found.value)}"
    )


def _smallness(difference: float) -> str:
    """A sentence where a difference is of a size that needs no method to explain it."""
    most = formats.most_points()
    if 100 * abs(difference) > most:
        return ""
    moved = f"moved a difference of two methods by up to {most:.2f} points"
    return f" At `mini`, another number format, processor or both {moved}."


_WORDS = {
    Verdict.BETTER: "{one} is **better** than {two} here",
    Verdict.WORSE: "{one} is **worse** than {two} here",
    Verdict.OPEN: "the two are **not told apart**",
}


def verdicts(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    references: Sequence[str],
    titles: Titles = TITLES,
) -> pd.DataFrame:
    """Whether each variant beats every one of several, e.g. Linear as printed and as tuned.

    A cell is the difference in points; the last column is `statistics.verdict` over all of them.
    """
    rows = {}
    for name in names:
        pairs = [Pair(name, reference, profile.tasks) for reference in references]
        found = compare(cells, pairs)
        heads = [narrow(f"minus {titles.get(one, one)}", WIDE) for one in references]
        texts = [f"{100 * one.value:+z.1f}<br>{points(one)}" if one else EMPTY for one in found]
        word = str(verdict(cells, name, references, profile.tasks))
        rows[narrow(titles.get(name, name), WIDE)] = dict(zip(heads, texts, strict=True)) | {
            "it is": word
        }
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")
