"""MMLU of pruned models beside chance, and beside the unpruned model on the same questions."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from tipmini_lab.book.tables import p_text
from tipmini_lab.evaluation.mmlu import CHANCE
from tipmini_lab.experiments.few_shot import store_of
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import COVERED, LEVEL, MISSING, accuracy, holm_of
from tipmini_lab.results.store import Cell, in_one_format, paired_p

BASE = "base"
Cells = Mapping[str, Cell]  # by name of the run
Pair = tuple[str, str]


class Gap(NamedTuple):
    """What one model has right more often than another, and the p of a sign test, corrected."""

    mean: float
    reach: float  # of the 95% interval, to each side
    p: float


def read(profile: Profile) -> dict[str, Cell]:
    """Whatever is stored, in one number format; nothing is measured."""
    found = in_one_format(storage.cells(store_of(profile)))
    return {name: cell for (name, _), cell in found.items()}


def interval(cell: Cell) -> tuple[float, float]:
    """Of the accuracy, 95%."""
    return cell.mean - COVERED * cell.stderr, cell.mean + COVERED * cell.stderr


def is_above_chance(cell: Cell) -> bool:
    """Whether the whole interval lies above what a guess has."""
    return interval(cell)[0] > CHANCE


def gaps(cells: Cells, pairs: Iterable[Pair], corrected: bool = True) -> dict[Pair, Gap]:
    """First minus second on the same questions; p values are corrected (Holm) together."""
    pairs = list(pairs)
    ps = {pair: paired_p(*(cells[name] for name in pair)) for pair in pairs}
    ps = holm_of(ps) if corrected else ps
    found = {}
    for pair in pairs:
        rows = zip(*(cells[name].values for name in pair), strict=True)
        mean, stderr = accuracy([one - two for one, two in rows])
        found[pair] = Gap(mean, COVERED * stderr, ps[pair])
    return found


def beside_unpruned(cells: Cells) -> dict[str, Gap]:
    """{model: its `gaps` from the unpruned one}: all that are stored are one family of tests."""
    others = [name for name in cells if name != BASE] if BASE in cells else []
    return {name: gap for (name, _), gap in gaps(cells, [(n, BASE) for n in others]).items()}


def table(cells: Cells, titles: Mapping[str, str]) -> pd.DataFrame:
    """{run: title} down: accuracy, its interval, and the difference from the unpruned model."""
    beside = beside_unpruned(cells)
    heads = ["accuracy", "95% interval", "− unpruned, points", "p, corrected"]
    lines = {"chance": [f"{CHANCE:.3f}", "-", "-", "-"]}
    for name, title in titles.items():
        gap, cell = beside.get(name), cells.get(name)
        told = [MISSING, "-"] if cell is None else [f"{cell.mean:.3f}", _ends(interval(cell))]
        lines[title] = told + (["-", "-"] if gap is None else [_points(gap), p_text(gap.p)])
    return pd.DataFrame.from_dict(lines, orient="index", columns=heads).rename_axis("model")


def _ends(ends: tuple[float, float]) -> str:
    return "[{:.3f}, {:.3f}]".format(*ends)


def _points(gap: Gap) -> str:
    return f"{100 * gap.mean:+.1f} ± {100 * gap.reach:.1f}"


def told(cells: Cells, titles: Mapping[str, str]) -> str:
    """How many models are above chance, how many differ from the unpruned, and what that says."""
    own = {name: cell for name, cell in cells.items() if name in titles}
    if BASE not in own:
        return f"The unpruned model: {MISSING}."
    apart = [gap for name, gap in beside_unpruned(cells).items() if name in own]
    clear = sum(gap.p < LEVEL for gap in apart)
    differ = f"{clear} of {len(apart)} differ significantly from the unpruned model. "
    counted = (
        f"{len(own)} of {len(titles)} models are measured, {own[BASE].count} questions each. "
        f"{differ if apart else ''}Intervals above chance: "
        f"{sum(map(is_above_chance, own.values()))}"
    )
    if is_above_chance(own[BASE]):
        return f"{counted}, the unpruned model's among them."
    if clear:
        return f"{counted}, the unpruned model's not."
    return (
        f"{counted}, the unpruned model's not: a model at chance has nothing to lose, and at this "
        "scale MMLU can't distinguish criteria."
    )
