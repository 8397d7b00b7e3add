"""How a notebook shows what it has, and the tables of accuracies that several chapters share."""

import hashlib
import inspect
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import wrap

import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure

import tipmini as tm
from tipmini.methods.table import Preset
from tipmini_lab import paths
from tipmini_lab.book import tracing
from tipmini_lab.book.plotted import plotted
from tipmini_lab.evaluation.documents import ADAPTED, KNOWN
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import TABLE_1, stored
from tipmini_lab.results import digests, retention, statistics, store
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import MISSING, Interval, mean_of, measured
from tipmini_lab.results.store import Cell, Place, in_one_format

tracing.start()  # every notebook imports this module first

CLIP = re.compile(r'(id="|url\(#)(p[0-9a-f]{10})\b')
POSITION = re.compile(r"(?<!scale\()-?\d+\.\d{6}\b")

ALT = "text/x-alt"  # the kind of output that describes the figure beside it
CODE = re.compile(r"`[^`]+`")
POWER = re.compile(r"\d(\.\d+)?e[+-]\d+")
HOLD = str.maketrans({" ": "\u00a0", "-": "\u2011"})  # where no line ends
LET_GO = str.maketrans({"\u00a0": " ", "\u2011": "-"})
VALUE = re.compile(r"{{\s*(\w+)\s*}}")  # what a page of text has from the results


def svg(figure: Figure) -> str:
    """The figure as transparent SVG text, the same at every run: no date, no random ids."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tipmini", "svg.fonttype": "none"}):
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


def figure(figure: Figure, alt: str = "") -> None:
    """Show a figure once, as SVG, and keep what it shows as numbers for the book to offer.

    alt: what it shows, in words made of results, for who doesn't see it; in the book it takes the
    place of the text in the cell's metadata. Figures here never enter pyplot, so none is left to
    close.
    """
    from IPython.display import display

    shown = {"image/svg+xml": svg(figure), "text/csv": plotted(figure)}
    display(shown | ({ALT: alt} if alt else {}), raw=True)


def threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


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
    """Its text; a line would else break at the sign of an exponent."""
    told = str(value).replace("|", r"\|")
    return told if "`" in told else POWER.sub(r'<span class="unbroken">\g<0></span>', told)


def text(markdown: str) -> None:
    """Show computed Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def found(*lines: str) -> None:
    """Show what a chapter found, the box that it opens with; for the metadata see `numbered`."""
    listed = "\n".join(f"- {line}" for line in lines)
    text(f":::{{admonition}} What was found\n:class: found\n\n{listed}\n:::\n")


def source(*functions: Callable) -> None:
    """Show the very functions that are called, as highlighted code."""
    listing = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in functions)
    text(f"```python\n{listing}\n```")


# What every table shows ---------------------------------------------------------------------------
TITLES = {
    **{name: task.title for name, task in ADAPTED.items()},
    **{"base": "Base", "single": "Single", "linear": "Linear", "dare": "DARE", "tip": "TIP"},
}
Titles = Mapping[str, str]
ERRORS = "± is one standard error over examples; brackets are 95% intervals."  # on every page
EMPTY = "–"  # in narrow columns; another column of the row says that it isn't measured


def estimate(found: tuple[float, float] | None, missing: str = MISSING) -> str:
    """A mean and its standard error: "0.375 ± 0.052"."""
    return f"{found[0]:.3f} ± {found[1]:.3f}" if found else missing


def points(found: Interval) -> str:
    """A difference of shares in points, its 95% interval below it; EMPTY of NaN."""
    if math.isnan(found.value):
        return EMPTY
    value, low, high = (f"{100 * n:+z.1f}" for n in (found.value, found.low, found.high))
    return f"{value}<br>[{low}, {high}]"


def share(found: Interval | None) -> str:
    """A share in percent with the bounds of its 95% interval."""
    if found is None:
        return EMPTY
    return f"{found.value:.0%}<br>[{100 * found.low:.0f}, {100 * found.high:.0f}]"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else EMPTY if math.isnan(p) else f"{p:.3f}"


def narrow(text: str, letters: int = 20) -> str:
    """In lines of so many letters, code in one piece: cells of tables don't wrap."""
    held = CODE.sub(lambda code: code[0].translate(HOLD), text)
    return "<br>".join(wrap(held, letters, break_long_words=False)).translate(LET_GO)


def mark(task: str, profile: Profile) -> str:
    """The sign of `split_note` at a task whose evaluation rows were split."""
    return "†" if KNOWN[task].halved and profile.data == "embedded" else ""


def head(task: str, profile: Profile) -> str:
    """The head of a narrow column."""
    return (ADAPTED[task].short or TITLES[task]) + mark(task, profile)


def split_note(profile: Profile) -> str:
    """What must stand wherever accuracies of RTE and CoQA stand."""
    if profile.data != "embedded":
        return ""
    return (
        "† RTE and CoQA: the evaluation part of their examples, split once by a hash of the id "
        "into training and evaluation."
    )


# What is stored -----------------------------------------------------------------------------------


def stored_cells(profile: Profile) -> dict[Place, Cell]:
    """Whatever a profile has in its store; nothing is measured."""
    found = {(m, t): stored(profile, m, t) for t in profile.tasks for m in TABLE_1}
    return in_one_format({place: cell for place, cell in found.items() if cell is not None})


def variant_cells(profile: Profile) -> dict[Place, Cell]:
    """Whatever a profile has stored of all variants, in their format; nothing is measured."""
    return in_one_format(stored_cells(profile) | store.cells(profile.variant_store))


def variant_rows(profile: Profile) -> pd.DataFrame:
    """`variant_cells` side by side."""
    return wide(variant_cells(profile))


def every_method() -> list[str]:
    """Base, Single, every method of the library, and every preset that differs from its method."""
    own = [name for name, one in tm.PRESETS.items() if one != Preset(one.method)]
    return [*retention.OWN, *tm.METHODS, *own]


def printed() -> pd.DataFrame:
    """Table 1 as the paper prints it (LLaMA-2-7B), with the means of its columns below."""
    rows = yaml.safe_load(paths.PRINTED.read_text())["table1"]["tasks"]
    frame = pd.DataFrame(rows).T
    frame.loc["mean"] = frame.mean()
    frame = frame.rename(index=TITLES, columns=TITLES)
    return frame.rename_axis("printed, LLaMA-2-7B").map("{:.4f}".format)


def single_in_records() -> list[str]:
    """The tasks whose cell of the printed column Single is, digit by digit, a public record.

    It is one of the model without any adapter; equal numbers do not tell how that came about.
    """
    own = yaml.safe_load(paths.PRINTED.read_text())["table1"]["tasks"]
    sources = yaml.safe_load((paths.RECORDS).read_text())["base_model"].values()
    public = [(task, value) for one in sources for task, m in one.items() for value in m.values()]
    known = {(task, round(value, 4)) for task, value in public}
    return [task for task, row in own.items() if (task, row["single"]) in known]


def printed_gain(of: str = "TIP", over: str = "DARE") -> tuple[float, float]:
    """In print, how far a mean is above another: in percentage points, and in per cent of it."""
    mean = printed().loc["mean"].astype(float)
    points = 100 * (mean[of] - mean[over])
    return points, points / mean[over]


def provenance(cells: Mapping[Place, Cell]) -> pd.DataFrame:
    """Where the cells came from: machines, versions, evaluation code, and the seconds they took."""
    kinds: dict[tuple, list[Cell]] = {}
    for cell in cells.values():
        codes = [digests.known_as(*pair)[:12] for pair in cell.code.items()]
        code = ("code (SHA-256)", ", ".join(codes))
        kind = (("number format", cell.dtype), *cell.machine.items(), *cell.versions.items(), code)
        kinds.setdefault(kind, []).append(cell)
    runs = {
        f"group {number}": {
            "measurements": len(group),
            "measured": " to ".join(sorted({min(dates := [c.date for c in group]), max(dates)})),
            "seconds": f"{math.fsum(cell.seconds for cell in group):.0f}",
            "model (SHA-256)": str(group[0].inputs.get("model", "-"))[:12],
            **{name: str(value) for name, value in kind},
        }
        for number, (kind, group) in enumerate(kinds.items(), 1)
    }
    return pd.DataFrame(runs)


# Accuracies ---------------------------------------------------------------------------------------


def accuracies(
    rows: pd.DataFrame, profile: Profile, guess: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Table 1 as measured: accuracy, standard error and right rows of all, a row a task.

    Cells have two lines: all methods are to be seen at once. guess: {task: accuracy without looking
    at the question}, for a first column.
    """
    tasks, lines = statistics.tasks_of(rows), {}
    for task in tasks:
        line = {"Guessing": f"{guess[task]:.3f}"} if guess else {}
        lines[f"{TITLES[task]}{mark(task, profile)}<br>{METRIC[task]}"] = line
        for name in TABLE_1:
            found = mean_of(rows, name, [task])
            right = f"<br>{_right(rows.loc[task, name])}/{len(rows.loc[task])}" if found else ""
            line[TITLES[name]] = estimate(found) + right
    guessed = guess and math.fsum(guess.values()) / len(guess)
    last = {"Guessing": f"{guessed:.3f}"} if guess else {}
    last |= {TITLES[m]: estimate(mean_of(rows, m)) for m in TABLE_1}
    lines[f"mean of {len(tasks)}"] = last
    return pd.DataFrame(lines).T.rename_axis(f"measured, {profile.name}")


def _right(values: Sequence[float]) -> str:
    """The number of right rows; with a decimal where rows of CoQA count in part."""
    return f"{math.fsum(values):.1f}".removesuffix(".0")


def comparison(rows: pd.DataFrame, profile: Profile, first: str, second: str) -> pd.DataFrame:
    """Two methods on the same rows, a line a task: accuracies, difference in points, and the sign
    test's p, corrected for the tasks of the table."""
    lines = {}
    heads = ("points", TITLES[first], TITLES[second], "examples better / worse", "p")
    tasks = statistics.tasks_of(rows)
    there = [task for task in tasks if measured(rows, (first, second), [task])]
    gains = statistics.gains_of(rows, second, first, there)
    ps = statistics.holm_of({task: statistics.sign_p(gain) for task, gain in gains.items()})
    for task in tasks:
        shown = [MISSING] * len(heads)
        if task in gains:
            (one, _), (two, _) = (mean_of(rows, name, [task]) for name in (first, second))
            gain = gains[task]
            counts = f"{(gain > 0).sum()} / {(gain < 0).sum()} of {len(gain):,}"
            shown = [f"{100 * (two - one):+z.1f}", f"{one:.3f}", f"{two:.3f}", counts]
            shown += [p_text(ps[task])]
        lines[TITLES[task] + mark(task, profile)] = dict(zip(heads, shown, strict=True))
    return pd.DataFrame(lines).T.rename_axis(f"measured, {profile.name}")


def by_method(
    rows: pd.DataFrame,
    profile: Profile,
    names: Iterable[str],
    titles: Titles = TITLES,
    facts: Mapping[str, Mapping[str, float]] | None = None,
    guess: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Mean accuracy, retention, and accuracy by task of every variant, a row each.

    Below the retention stands that without the task that keeps most.

    facts: {name: `merging.sizes` of its merge}, for a column of the merges' sizes. guess: {task:
    accuracy without looking at the question}, for a first row.
    """
    tasks, lines = profile.tasks, {}
    known = len(retention.learnt(rows, tasks))
    means, kept_of = f"mean of {len(tasks)}", f"retention,<br>{known} task{'s' * (known != 1)}"
    if guess:
        lines["Guessing"] = {
            **{means: f"{math.fsum(guess.values()) / len(guess):.3f}", kept_of: EMPTY},
            **{head(task, profile): f"{share:.3f}" for task, share in guess.items()},
        }
    for name in names:
        mean = mean_of(rows, name, tasks)
        found = retention.retention(rows, name, tasks) if mean else {}
        kept = "<br>".join(
            share(found[k]) for k in (retention.MEAN, retention.WITHOUT) if k in found
        )
        by_definition = {"base": "0%", "single": "100%"}.get(name) if mean else None
        line = lines[narrow(titles.get(name, name), 14)] = {
            **{means: _narrow_estimate(mean, MISSING), kept_of: by_definition or kept or EMPTY},
            **{head(t, profile): _narrow_estimate(mean_of(rows, name, [t])) for t in tasks},
        }
        if facts is not None:
            line["size"] = relative_size(facts.get(name))
    frame = pd.DataFrame(lines).T.rename_axis(f"measured, {profile.name}")
    return frame.fillna(EMPTY)


def _narrow_estimate(found: tuple[float, float] | None, missing: str = EMPTY) -> str:
    return estimate(found, missing).replace(" ± ", "<br>±").replace(" ", "<br>")


def relative_size(facts: Mapping[str, float] | None) -> str:
    """The norm of a merge over that of the plain, exact sum of its adapters."""
    return f"{facts['norm'] / facts['sum']:.2f}" if facts else EMPTY


# Retention ----------------------------------------------------------------------------------------


def retention_table(
    rows: pd.DataFrame, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> pd.DataFrame:
    """Retention of every variant on each task whose adapter knows it, and in the mean."""
    tasks = retention.learnt(rows, profile.tasks)
    heads = {retention.MEAN: f"mean of {len(tasks)}"}
    heads |= {retention.WITHOUT: "without<br>the highest"} if len(tasks) > 1 else {}
    heads |= {task: head(task, profile) for task in tasks}
    lines = {}
    for name in names:
        found = retention.retention(rows, name, profile.tasks)
        line = {text: share(found.get(key)) for key, text in heads.items()}
        line |= {} if found else {heads[retention.MEAN]: MISSING}
        lines[narrow(titles.get(name, name), 10)] = line
    return pd.DataFrame(lines).T.rename_axis(f"measured, {profile.name}")


def single_gains(rows: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """How far Single is from Base on every task, and whether retention is told of it."""
    found = retention.single_gains(rows, profile.tasks)
    shown = {
        "Single − Base, points": found.value.map(lambda value: f"{100 * value:+.1f}"),
        "p, corrected": found.corrected.map(p_text),
        "retention": found.learnt.map({True: "reported", False: "not reported"}),
    }
    names = {task: TITLES[task] + mark(task, profile) for task in found.index}
    return pd.DataFrame(shown).rename(index=names).rename_axis(f"measured, {profile.name}")
