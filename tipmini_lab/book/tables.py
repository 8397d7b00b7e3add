"""How a notebook shows what it has, and the tables of accuracies that several chapters share."""

import hashlib
import inspect
import io
import math
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping
from textwrap import wrap

import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.evaluation.documents import ADAPTED, KNOWN
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.experiment import TABLE_1, stored
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import digests, retention, store
from tipmini_lab.results.statistics import (
    LEVEL,
    MISSING,
    Bounds,
    Cells,
    Interval,
    bounds,
    holm_of,
    mean_interval,
    mean_of,
    tasks_of,
)
from tipmini_lab.results.store import Cell, in_one_format, paired_p, side_by_side

CLIP = re.compile(r'(id="|url\(#)(p[0-9a-f]{10})\b')
POSITION = re.compile(r"(?<!scale\()-?\d+\.\d{6}\b")


def svg(figure: Figure) -> str:
    """The figure as transparent SVG text, the same at every run: no date, no random ids."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tipmini", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _named_clips(_rounded(buffer.getvalue()))


def _rounded(picture: str) -> str:
    """Positions to a thousandth of a point: a layout's last digits may differ by run.

    They are moved by 3e-6 first, since eighths of a point lie where rounding changes.
    """
    return POSITION.sub(lambda m: f"{float(m[0]) + 3e-6:z.3f}", picture)


def _named_clips(picture: str) -> str:
    """Ids of clip paths by their order and the rest of the picture.

    matplotlib makes them of unrounded positions (see `_rounded`).
    """
    order = {name: n for n, name in enumerate(dict.fromkeys(m[2] for m in CLIP.finditer(picture)))}
    bare = CLIP.sub(lambda m: f"{m[1]}{order[m[2]]}", picture)
    own = hashlib.sha256(bare.encode()).hexdigest()[:10]
    return CLIP.sub(lambda m: f"{m[1]}{own}-{order[m[2]]}", picture)


def figure(figure: Figure) -> None:
    """Show a figure once, as SVG. Figures here never enter pyplot, so none is left to close."""
    from IPython.display import SVG, display

    display(SVG(svg(figure)))


def table(frame: pd.DataFrame) -> None:
    """Show a frame as an HTML table; in the book it scrolls in its own box."""
    from IPython.display import HTML, display

    display(HTML(frame.to_html(border=0)))


def numbered(
    frame: pd.DataFrame, caption: str, *, name: str, note: str = "", sortable: bool = False
) -> None:
    """Show a frame as a captioned table that pages refer to by `name`, with a note below.

    sortable: in the book a click on a column's head orders the rows by it. The book needs
    `mystnb: {markdown_format: myst}` in the cell's metadata.
    """
    options = f":name: {name}\n" + (":class: sortable\n" if sortable else "")
    text(f":::{{table}} {caption}\n{options}\n{markdown_table(frame)}\n\n:::\n\n{note}\n")


def markdown_table(frame: pd.DataFrame) -> str:
    """The frame with its index as a Markdown table; cells are shown by `str`."""
    head = [frame.index.name or "", *frame.columns]
    rows = [[index, *row] for index, row in zip(frame.index, frame.to_numpy(object), strict=True)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|")


def text(markdown: str) -> None:
    """Show computed Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def source(*functions: Callable) -> None:
    """Show the very functions that are called, as highlighted code."""
    listing = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in functions)
    text(f"```python\n{listing}\n```")


# Tables and numbers of the pages ------------------------------------------------------------------
TITLES = {
    **{name: task.title for name, task in ADAPTED.items()},
    **{"base": "Base", "single": "Single", "linear": "Linear", "dare": "DARE", "tip": "TIP"},
}


# Cells and their means ----------------------------------------------------------------------------


def stored_cells(profile: Profile) -> dict[tuple[str, str], Cell]:
    """Whatever a profile has in its store; nothing is measured."""
    found = {(m, t): stored(profile, m, t) for t in profile.tasks for m in TABLE_1}
    return in_one_format({place: cell for place, cell in found.items() if cell is not None})


def variant_cells(profile: Profile) -> dict[tuple[str, str], Cell]:
    """Whatever a profile has stored of all variants, in their format; nothing is measured."""
    return in_one_format(stored_cells(profile) | store.cells(profile.variant_store))


def estimate(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}" if pair else MISSING


# Table 1 ------------------------------------------------------------------------------------------


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
            TITLES[m]: _tables_cell(cells.get((m, task))) for m in TABLE_1
        }
        for task in tasks
    }
    rows[f"mean of {len(tasks)}"] = {TITLES[m]: estimate(mean_of(cells, m, tasks)) for m in TABLE_1}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def _tables_cell(cell: Cell | None) -> str:
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
    return "†" if KNOWN[task].halved and profile.data == "embedded" else ""


def split_note(profile: Profile) -> str:
    """What must stand wherever accuracies of RTE and CoQA stand."""
    if profile.data != "embedded":
        return ""
    return (
        "† RTE and CoQA: the embedded evaluation rows were split once, by a hash of the id, into a "
        "training and an evaluation part; these numbers are of the evaluation part."
    )


# Comparisons --------------------------------------------------------------------------------------


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
    means = {m: estimate(mean_of(cells, m, tasks)) for m in TABLE_1}
    parts = [
        f"At profile `{profile.name}` ({rows} rows in {len(tasks)} tasks) the mean accuracies are "
        + ", ".join(f"{TITLES[m]} {means[m]}" for m in TABLE_1)
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
        f"{TITLES[second]} lies above {TITLES[first]} on {len(above)} of {len(tasks)} "
        f"tasks; significantly so, it is better on {better} and worse on {worse}."
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


# Tables of many variants --------------------------------------------------------------------------
Titles = Mapping[str, str]
Facts = Mapping[str, Mapping[str, float]]
SIZE = "size"  # of a merge, over that of the exact sum

# Heads of narrow columns: nine of them stand beside each other.
HEADS = {
    **{"arc_challenge": "ARC-C", "hellaswag": "Hella-<br>Swag"},
    **{"openbookqa": "Open-<br>Book-<br>QA"},
}
NARROW = MISSING.replace(" ", "<br>")
UNMERGED = ("base", "single")
EMPTY = "–"  # in narrow columns; the row's last cell says that it isn't measured


def narrow(text: str, letters: int = 20) -> str:
    """In lines of so many letters: cells of tables don't wrap."""
    return "<br>".join(wrap(text, letters, break_long_words=False))


# All methods --------------------------------------------------------------------------------------


def every_method() -> list[str]:
    """Base, Single, and every method and preset of the library."""
    return [*UNMERGED, *tm.METHODS, *tm.PRESETS]


def complete(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    titles: Titles = TITLES,
    facts: Facts | None = None,
) -> pd.DataFrame:
    """Accuracy and standard error of every variant, a row each, with mean and retention.

    facts: {name: `merging.sizes` of its merge}, for a column of the merges' sizes.
    """
    names = list(names)
    rows = {_side(name, titles): _accuracies(cells, profile, name) for name in names}
    if facts is not None:
        for name, row in zip(names, rows.values(), strict=True):
            row[SIZE] = relative_size(facts.get(name))
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def relative_size(facts: Mapping[str, float] | None) -> str:
    """The norm of a merge over that of the plain, exact sum of its adapters."""
    return f"{facts['norm'] / facts['sum']:.2f}" if facts else EMPTY


def sizes(names: Iterable[str], facts: Facts, titles: Titles = TITLES) -> pd.DataFrame:
    """`relative_size` of every merge, a row each."""
    rows = {titles.get(name, name): {SIZE: relative_size(facts.get(name))} for name in names}
    return pd.DataFrame(rows).T.rename_axis("merge")


def _accuracies(cells: Cells, profile: Profile, name: str) -> dict[str, str]:
    tasks = profile.tasks
    row = {_head(task, profile): _accuracy(cells.get((name, task))) for task in tasks}
    mean = mean_of(cells, name, tasks)
    row[f"mean of {len(tasks)}"] = _with_error(*mean) if mean else NARROW
    known = len(retention.learnt(cells, tasks))
    row[f"retention,<br>{known} task{'s' * (known != 1)}"] = (
        _retention(cells, profile, name) if mean else EMPTY
    )
    return row


def _accuracy(cell: Cell | None) -> str:
    return _with_error(cell.mean, cell.stderr) if cell else EMPTY


def _with_error(mean: float, error: float) -> str:
    return f"{mean:.3f}<br>±{error:.3f}"


def _retention(cells: Cells, profile: Profile, name: str) -> str:
    if name in UNMERGED:
        return "0%" if name == "base" else "100%"  # by definition
    found = retention.retention(cells, name, profile.tasks)
    return _share(found.mean) if found else EMPTY


def _share(interval: Interval) -> str:
    low, high = (f"{100 * bound:.0f}" for bound in (interval.low, interval.high))
    return f"{interval.value:.0%}<br>[{low}, {high}]"


def _side(name: str, titles: Titles) -> str:
    return narrow(titles.get(name, name), 10)


def _head(task: str, profile: Profile) -> str:
    return HEADS.get(task, TITLES[task]) + mark(task, profile)


def dots(
    cells: Cells, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> tuple[dict[str, Bounds | None], dict[str, Bounds | None], dict[str, float]]:
    """The arguments of the figure `methods_by_retention`: accuracies, retentions and levels."""
    merged = [name for name in names if name not in UNMERGED]
    means = {name: mean_interval(cells, name, profile.tasks) for name in (*UNMERGED, *merged)}
    found = {name: retention.retention(cells, name, profile.tasks) for name in merged}
    return (
        {titles.get(name, name): means[name] and bounds(means[name]) for name in merged},
        {titles.get(name, name): one and bounds(one.mean) for name, one in found.items()},
        {titles.get(name, name): means[name].value for name in UNMERGED if means[name]},
    )


# Retention ----------------------------------------------------------------------------------------


def retention_table(
    cells: Cells, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> pd.DataFrame:
    """Retention of every variant on each task whose adapter knows it, and in the mean."""
    tasks = retention.learnt(cells, profile.tasks)
    rows = {}
    for name in names:
        found = retention.retention(cells, name, profile.tasks)
        shares = [*(found.tasks[t] for t in tasks), found.mean] if found else None
        heads = [*(_head(t, profile) for t in tasks), f"mean of {len(tasks)}"]
        texts = map(_share, shares) if shares else [*[EMPTY] * len(tasks), NARROW]
        rows[_side(name, titles)] = dict(zip(heads, texts, strict=True))
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def learnt_note(cells: Cells, profile: Profile) -> str:
    """Which tasks retention is told on, and of the others how far Single is from Base."""
    gains = retention.single_gains(cells, profile.tasks)
    left = {task: gain for task, gain in gains.items() if not gain.learnt()}
    total = f"{len(gains) - len(left)} of {len(gains)} tasks"
    told = f"Retention is told on the {total} whose Single is significantly above Base"
    rule = f" (exact sign test, corrected p < {LEVEL:g})."
    return told + rule + (f" Left out: {_gains_text(left)}." if left else "")


def _gains_text(gains: Mapping[str, retention.Gain]) -> str:
    texts = [
        f"{TITLES[task]} (Single − Base {100 * gain.value:+.1f} points, "
        f"p {relation(gain.corrected)})"
        for task, gain in gains.items()
    ]
    return ", ".join(texts)
