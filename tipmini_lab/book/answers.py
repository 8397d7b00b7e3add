"""The book's results in two pictures: every method at a glance, and every claim's verdict."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from tipmini_lab import paths
from tipmini_lab.book import claims, elastic_tables, lora_tables, pruning_tables, questions
from tipmini_lab.book.claims import Verdict
from tipmini_lab.book.claims.page import HEADS, Audited
from tipmini_lab.book.figures import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    VIOLET,
    WIDTH,
    mark_levels,
    styled,
    styles_of,
)
from tipmini_lab.book.tables import TITLES, estimate, points, printed, share, variant_rows
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments import declared, elastic
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.retention import MEAN, retention
from tipmini_lab.results.statistics import MISSING, Interval, mean_interval, mean_of

TUNINGS = ("methods", "matrices", "ranks", "prefixes", "scalings")  # groups of experiments/lora
TAUGHT, FRESH = "distilled-many-56", "fresh-many-56"  # from a merge on, and from nothing
MERGES = ("tip", "linear", "dare", "cat", "knots", "ties", "linear-tuned", TAUGHT)
MERGE_TITLES = {
    "cat": "task arithmetic",
    "knots": "KnOTS",
    "ties": "TIES",
    "linear-tuned": "Linear, tuned",
    TAUGHT: "taught by the adapters",
}
CRITERIA = ("lora-guided", "vanilla", "taylor", "wanda", "magnitude", "random")
TITLES_OF_PARTS = (
    "Seven adapters merged, measured here",
    "The same as TIP's paper prints it, LLaMA-2-7B",
    "A pruning ratio of 50%, fine-tuned, measured here",
)
STEPS = {False: "short", True: "long"}  # fine-tuning, by whether it is the longer one
HELD, PART, OPEN, NOT = "holds", "in part", "open", "does not hold"
DEPENDS, UNTESTED = "depends on the reading", "not tested"
KINDS = {  # of verdicts: what a reader wants to know of each
    **dict.fromkeys((Verdict.HOLDS, Verdict.AT_HAND), HELD),
    **dict.fromkeys((Verdict.IN_PART, Verdict.IN_POINTS, Verdict.SAVED_NOT_USED), PART),
    **dict.fromkeys((Verdict.WITHIN_ERROR, Verdict.NOT_SUPPORTED, Verdict.IDENTICAL), OPEN),
    **dict.fromkeys((Verdict.DOES_NOT_HOLD, Verdict.CONTRARY), NOT),
    **{Verdict.DEPENDS: DEPENDS},
}
# Black reads on each of them but the last, which fades into any page.
SHADES = {HELD: BLUE, PART: GREEN, DEPENDS: VIOLET, OPEN: GREY, NOT: ORANGE, UNTESTED: f"{GREY}30"}


def pictures(audited: Sequence[Audited]) -> dict[str, Figure]:
    """The two pictures, by file name."""
    counted = verdict_counts(audited)
    return {"glance": glance(merged(), printed_means(), pruned()), "verdicts": verdicts(counted)}


def page_values(audited: Sequence[Audited]) -> dict[str, str]:
    """What the front page and those of the papers say of what is measured of each."""
    mini, full = load_profile("mini"), load_profile("full")
    tuned = [lora_tables.runs(mini, f"lora-{name}").stored for name in TUNINGS]
    searched = elastic.experiments(mini)
    counts = verdict_counts(audited)
    pairs = questions.pairs(((TAUGHT, FRESH),), full)
    apart = next(questions.tested(pairs, full).itertuples())
    kept = {
        name: share(retention(variant_rows(full), name, full.tasks).get(MEAN)).replace("<br>", " ")
        for name in (TAUGHT, FRESH)
    }
    return {
        "glance_corpus": next(iter(CORPORA)),
        "glance_order": in_order(pruned()),
        **{f"steps_{words}": str(steps(longer)) for longer, words in STEPS.items()},
        "full_linear_tuned": estimate(mean_of(variant_rows(full), "linear-tuned", full.tasks)),
        "full_taught": estimate(mean_of(variant_rows(full), TAUGHT, full.tasks)),
        "full_taught_kept": kept[TAUGHT],
        "full_fresh_kept": kept[FRESH],
        "full_fresh_apart": points(apart).replace("<br>", " points "),
        "full_fresh_verdict": apart.verdict,
        "lora_state": _state(sum(own.sum() for own in tuned), sum(map(len, tuned))),
        "elastic_state": _state(len(elastic_tables.read(searched)), len(searched)),
        "lora_found": _tuned(lora_tables.trained_means(lora_tables.runs(mini, "lora-methods"))),
        "verdicts_told": _in_words(counts),
        "lora_claims": _held(counts.loc["LoRA"]),
        "elastic_claims": _held(counts.loc["Elastic adapters"]),
    }


def _state(stored: int, known: int) -> str:
    if stored in (0, known):
        return f"{'all' if stored else 'none'} of the {known} declared runs are measured"
    return f"{stored} of {known} declared runs are measured"


def _tuned(means: pd.DataFrame) -> str:
    """Mean accuracies: of LoRA, of full tuning, and of the best of the other ways."""
    value = means.get("value", pd.Series(dtype=float))
    if not {"LoRA", "full tuning"} <= set(value.index):
        return f"Its accuracy beside full tuning: {MISSING}"
    best = value.drop(["LoRA", "full tuning"]).idxmax()
    return (
        f"Here, on two tasks, it scores {value['LoRA']:.3f}, full tuning "
        f"{value['full tuning']:.3f}, and the highest of the others (*{best}*) {value[best]:.3f}"
    )


def _in_words(counts: pd.DataFrame) -> str:
    """`verdict_counts` as the words for who doesn't see the picture."""
    told = (
        f"{paper}, {where}: " + ", ".join(f"{n} {kind}" for kind, n in own.items() if n)
        for (paper, where), own in counts.iterrows()
    )
    return "; ".join(told)


def _held(counts: pd.DataFrame) -> str:
    """Of (where) by kinds."""
    held = " and ".join(f"{count} {where}" for where, count in counts[HELD].items())
    return f"of {counts.iloc[0].sum()} claims, {held} are found to hold"


def steps(longer: bool) -> int:
    """Of fine-tuning, at `mini`."""
    mini = load_profile("mini").name
    recipe = declared.grid().size(mini).recipe(tuned=True, longer=longer)
    return len(recipe.batches(recipe.rows))


def merged() -> dict[str, Interval | None]:
    """{method: mean accuracy at `full`}, of merges and of the two that they lie between."""
    full = load_profile("full")
    rows = variant_rows(full)
    titles = TITLES | MERGE_TITLES
    return {titles[n]: mean_interval(rows, n, full.tasks) for n in ("base", "single", *MERGES)}


def printed_means() -> dict[str, float]:
    """TIP's Table 1: {method: the mean of its seven accuracies}."""
    means = printed().loc["mean"].astype(float)
    return {name: means[name] for name in ("TIP", "Linear", "DARE", "Single")}


def pruned() -> pd.DataFrame:
    """Perplexities of half the model: criterion by short and long fine-tuning; NaN: not stored.

    The mean of the stored seeds, on the first corpus; the first row is the unpruned model.
    """
    mini, grid = load_profile("mini"), declared.grid()
    runs = grid.runs(mini.name)
    scores = pruning_tables.frames(pruning_tables.read(mini.pruning_store), runs, grid)[1]
    corpus = next(iter(CORPORA))
    models = {"unpruned": ("base", 0.0, False)}
    models |= {grid.titles()[name]: (name, 0.5, True) for name in CRITERIA}
    means = {
        words: scores[scores.longer == longer]
        .groupby(["method", "share", "tuned"])[corpus]
        .agg(lambda found: pruning_tables.geometric_mean(found.dropna()))
        for longer, words in STEPS.items()
    }
    return pd.DataFrame(
        {words: [found.get(model) for model in models.values()] for words, found in means.items()},
        index=[*models],
        dtype=float,
    )


def in_order(perplexities: pd.DataFrame) -> str:
    """The criteria of `pruned` from the lowest perplexity on, after few steps and after many."""
    words = {"short": "few", "long": "many"}
    rest = perplexities.drop("unpruned")
    rest.index = rest.index.str.replace(r", (.*)", r" (\1)", regex=True)
    orders = {w: rest[name].dropna().sort_values().index for name, w in words.items()}
    return "; ".join(f"after {w} steps {', '.join(own) or MISSING}" for w, own in orders.items())


@styled
def glance(
    merges: Mapping[str, Interval | None], means: Mapping[str, float], perplexities: pd.DataFrame
) -> Figure:
    """Merges here, with 95% intervals; merges of the paper; pruned models' perplexities."""
    levels = {name: merges[name].value for name in ("Base", "Single") if merges[name]}
    own = {name: found for name, found in merges.items() if name not in ("Base", "Single")}
    figure = Figure((WIDTH, 6.4), layout="constrained")
    heights = len(own), len(means), len(perplexities) - 1
    parts = figure.subfigures(3, 1, height_ratios=[h + 2 for h in heights])
    for part, title in zip(parts, TITLES_OF_PARTS, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontweight="bold")
    here, paper, half = (part.subplots() for part in parts)
    _dots(here, own)
    mark_levels(here, levels)
    here.set_xlabel("mean accuracy of seven tasks, 95% interval")
    _dots(paper, {name: Interval(mean, mean, mean) for name, mean in means.items()}, hollow=True)
    paper.set_xlabel("mean accuracy, no interval printed")
    _pruned(half, perplexities)
    return figure


def _dots(axes: Axes, found: Mapping[str, Interval | None], hollow: bool = False) -> None:
    for place, (bounds, (colour, *_)) in enumerate(
        zip(found.values(), styles_of(found), strict=True)
    ):
        if bounds is None:
            across = axes.get_yaxis_transform()
            axes.text(0.04, -place, MISSING, transform=across, va="center", style="italic")
            continue
        value, low, high = bounds
        axes.plot((low, high), (-place, -place), color=colour)
        axes.plot(value, -place, "o", color=colour, markerfacecolor="none" if hollow else colour)
    axes.set_yticks([-n for n in range(len(found))], [*found])
    axes.set_ylim(0.6 - len(found), 0.6)


def _pruned(axes: Axes, perplexities: pd.DataFrame) -> None:
    rest = perplexities.drop("unpruned")
    for place, (name, (colour, *_)) in enumerate(
        zip(rest.index, styles_of(rest.index), strict=True)
    ):
        for words, marker in zip(rest, "o^", strict=True):
            face = colour if words == "long" else "none"
            axes.plot(rest[words][name], -place, marker, color=colour, markerfacecolor=face)
    axes.axvline(perplexities["short"]["unpruned"], color=GREY, linewidth=0.9, linestyle=DASHED)
    for words, marker in zip(rest, "o^", strict=True):
        face = GREY if words == "long" else "none"
        label = f"{steps(words == 'long')} steps"
        axes.plot([], [], marker, color=GREY, markerfacecolor=face, label=label)
    axes.legend(loc="best", fontsize=9)
    axes.set_yticks([-n for n in range(len(rest))], [*rest.index])
    axes.set(ylim=(0.6 - len(rest), 0.6), xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("perplexity; line: unpruned, untuned")


def verdict_counts(audited: Sequence[Audited]) -> pd.DataFrame:
    """(paper, where) by kinds of verdicts: how many claims."""
    names = {key: paper.name for key, paper in claims.declared(paths.CLAIMS).items()}
    lines = [
        (names[each.claim.paper], words, KINDS.get(getattr(each, key).verdict, UNTESTED))
        for each in audited
        for key, words in HEADS.items()
    ]
    found = pd.DataFrame(lines, columns=["paper", "where", "kind"])
    counts = found.groupby(["paper", "where"], sort=False)["kind"].value_counts()
    return counts.unstack(fill_value=0).reindex(columns=[*SHADES], fill_value=0)


@styled
def verdicts(counts: pd.DataFrame) -> Figure:
    """A bar a paper and place: how many of its claims came to which kind of verdict."""
    figure = Figure((WIDTH, 1.0 + 0.42 * len(counts)), layout="constrained")
    axes = figure.subplots()
    shares = counts.div(counts.sum(axis="columns"), axis="index")
    left = pd.Series(0.0, counts.index)
    places = [-n - 0.4 * (n // 2) for n in range(len(counts))]
    for kind, colour in SHADES.items():
        axes.barh(places, shares[kind], left=left, color=colour, label=kind, height=0.8)
        ink = GREY if kind == UNTESTED else "black"
        for y, part, start, count in zip(places, shares[kind], left, counts[kind], strict=True):
            if part > 0.04:
                middle = {"ha": "center", "va": "center", "fontsize": 9, "color": ink}
                axes.text(start + part / 2, y, f"{count}", **middle)
        left += shares[kind]
    axes.set_yticks(places, [f"{paper}, {where}" for paper, where in counts.index])
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines["bottom"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure
