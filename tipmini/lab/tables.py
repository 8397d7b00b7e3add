"""Tables and numbers of the pages: printed ones from one file, measured ones from stored cells.

A measured number is never typed and never computed from anything but a `Cell`; where there is no
cell, the text says so.
"""

import math
from collections.abc import Container

import pandas as pd
import yaml

from tipmini.lab import bundles, digests, paths
from tipmini.lab.experiments import METHODS, stored
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell, in_one_format, paired_p, side_by_side
from tipmini.lab.statistics import MISSING, Cells, holm_of, mean_of, tasks_of
from tipmini.lab.tasks import METRIC

TITLES = {
    **{"arc_challenge": "ARC-Challenge", "boolq": "BoolQ", "coqa": "CoQA"},
    **{"hellaswag": "HellaSwag", "openbookqa": "OpenBookQA", "piqa": "PIQA", "rte": "RTE"},
    **{"base": "Base", "single": "Single", "linear": "Linear", "dare": "DARE", "tip": "TIP"},
}
HALVED = ("coqa", "rte")


# Cells and their means ----------------------------------------------------------------------


def stored_cells(profile: Profile) -> dict[tuple[str, str], Cell]:
    """Whatever a profile has in its store; nothing is measured."""
    found = {(m, t): stored(profile, m, t) for t in profile.tasks for m in METHODS}
    return in_one_format({place: cell for place, cell in found.items() if cell is not None})


def variant_cells(profile: Profile) -> dict[tuple[str, str], Cell]:
    """Whatever a profile has stored of all variants, in their format; nothing is measured."""
    return in_one_format(stored_cells(profile) | bundles.cells(profile.variant_store))


def estimate(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}" if pair else MISSING


# Table 1 ------------------------------------------------------------------------------------


def printed() -> pd.DataFrame:
    """Table 1 as the paper prints it (LLaMA-2-7B), with the means of its columns below."""
    rows = yaml.safe_load(paths.PRINTED.read_text())["table1"]["tasks"]
    frame = pd.DataFrame(rows).T
    frame.loc["mean"] = frame.mean()
    frame = frame.rename(index=TITLES, columns=TITLES)
    return frame.rename_axis("printed, LLaMA-2-7B").map("{:.4f}".format)


def measured(cells: Cells, profile: Profile) -> pd.DataFrame:
    """Table 1 as measured: accuracy, standard error and right rows of all, a row a task.

    Cells have two lines: all methods are to be seen at once.
    """
    tasks = tasks_of(cells)
    rows = {
        f"{_title(task, profile)}<br>{METRIC[task]}": {
            TITLES[m]: _cell(cells.get((m, task))) for m in METHODS
        }
        for task in tasks
    }
    rows[f"mean of {len(tasks)}"] = {TITLES[m]: estimate(mean_of(cells, m, tasks)) for m in METHODS}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    return f"{cell.mean:.3f} ± {cell.stderr:.3f}<br>{_count(cell.correct)}/{cell.count}"


def _count(correct: float) -> str:
    """A whole number, or with a decimal where rows of CoQA count in part."""
    return f"{correct:.0f}" if abs(correct - round(correct)) < 1e-9 else f"{correct:.1f}"


def _title(task: str, profile: Profile) -> str:
    return TITLES[task] + mark(task, profile)


def mark(task: str, profile: Profile) -> str:
    """The sign of `split_note` at a task whose evaluation rows were split."""
    return "†" if task in HALVED and profile.data == "embedded" else ""


def split_note(profile: Profile) -> str:
    """What must stand wherever accuracies of RTE and CoQA stand."""
    if profile.data != "embedded":
        return ""
    return (
        "† RTE and CoQA: the embedded evaluation rows were split once, by a hash of the id, into a "
        "training and an evaluation part; these numbers are of the evaluation part."
    )


# Comparisons --------------------------------------------------------------------------------


def comparison(cells: Cells, profile: Profile, first: str, second: str) -> pd.DataFrame:
    """Two methods on the same rows: counts, difference second - first and the sign test's p."""
    rows = {}
    for task in tasks_of(cells):
        one, two = cells.get((first, task)), cells.get((second, task))
        rows[_title(task, profile)] = _compared(one, two, TITLES[first], TITLES[second])
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def _compared(one: Cell | None, two: Cell | None, first: str, second: str) -> dict[str, str]:
    names = ["rows", first, second, "difference", "rows better / worse", "paired p"]
    if one is None or two is None:
        return dict.fromkeys(names, MISSING)
    better, worse = _signs(one, two)
    values = [
        str(one.count),
        f"{_count(one.correct)} ({one.mean:.3f})",
        f"{_count(two.correct)} ({two.mean:.3f})",
        f"{two.mean - one.mean:+.3f}",
        f"{better} / {worse}",
        p_text(paired_p(one, two)),
    ]
    return dict(zip(names, values, strict=True))


def _signs(one: Cell, two: Cell) -> tuple[int, int]:
    pairs = side_by_side(one, two)
    return sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def relation(p: float) -> str:
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"


def base_vs_single(cells: Cells, profile: Profile) -> pd.DataFrame:
    """Whether each adapter knows its task: Base against Single, row by row."""
    return comparison(cells, profile, "base", "single")


SUMMARISED = (("base", "single"), ("linear", "tip"), ("dare", "tip"), ("base", "tip"))


def summary(cells: Cells, profile: Profile, level: float = 0.05) -> str:
    """A paragraph on what was measured, every number computed from the cells."""
    tasks = tasks_of(cells)
    rows = sum(cells["base", task].count for task in tasks)
    means = {m: estimate(mean_of(cells, m, tasks)) for m in METHODS}
    parts = [
        f"At profile `{profile.name}` ({rows} rows in {len(tasks)} tasks) the mean accuracies are "
        + ", ".join(f"{TITLES[m]} {means[m]}" for m in METHODS)
        + "."
    ]
    places = [(*pair, task) for pair in SUMMARISED for task in tasks]
    ps = holm_of({(a, b, t): paired_p(cells[a, t], cells[b, t]) for a, b, t in places})
    clear = {place for place, p in ps.items() if p < level}
    parts += [_verdict(cells, tasks, pair, clear) for pair in SUMMARISED]
    told = f"Better and worse are by the paired sign test at p < {level:g}, corrected for "
    return " ".join([*parts, f"{told}the {len(ps)} tests of this paragraph."])


def _verdict(
    cells: Cells, tasks: list[str], pair: tuple[str, str], clear: Container[tuple[str, str, str]]
) -> str:
    first, second = pair
    above = [task for task in tasks if cells[second, task].mean > cells[first, task].mean]
    better = sum((first, second, task) in clear for task in above)
    worse = sum((first, second, task) in clear for task in tasks if task not in above)
    return (
        f"{TITLES[second]} lies above {TITLES[first]} on {len(above)} of {len(tasks)} tasks; told "
        f"apart, it is better on {better} and worse on {worse}."
    )


def computed_in(cells: Cells) -> str:
    """The number formats of the cells, in words."""
    return " and ".join(sorted({cell.dtype for cell in cells.values()}))


def provenance(cells: Cells) -> pd.DataFrame:
    """Where the cells came from: machines, versions, evaluation code, and the seconds they took."""
    kinds: dict[tuple, list[Cell]] = {}
    for cell in cells.values():
        codes = [digests.known_as(*pair)[:12] for pair in cell.code.items()]
        code = ("code (SHA-256)", ", ".join(codes))
        kind = (("number format", cell.dtype), *cell.machine.items(), *cell.versions.items(), code)
        kinds.setdefault(kind, []).append(cell)
    rows = [
        {
            "cells": len(group),
            "measured": " to ".join(sorted({min(dates := [c.date for c in group]), max(dates)})),
            "seconds": f"{math.fsum(cell.seconds for cell in group):.0f}",
            "model (SHA-256)": str(group[0].inputs.get("model", "-"))[:12],
            **{name: str(value) for name, value in kind},
        }
        for kind, group in kinds.items()
    ]
    return pd.DataFrame(rows).T.rename(columns=lambda n: f"run {n + 1}")
