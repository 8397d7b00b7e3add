"""The stored super-networks as frames, and the chapter's tables and figures of them.

A model is named "NETWORK.MODEL", as experiments/elastic/*.yaml name both: "lonas.midpoint".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini.models.int4 import GROUP
from tipmini_lab.book.figures import BLUE, COLOURS, GREY, ORANGE, SIGNED, WIDTH, styled
from tipmini_lab.book.pruning_tables import formatted
from tipmini_lab.book.tables import EMPTY, p_text, points
from tipmini_lab.experiments import elastic
from tipmini_lab.experiments.elastic import COST, SPEED, Elastic
from tipmini_lab.results import statistics
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import MISSING, Interval, Pair, Verdict
from tipmini_lab.results.store import Bundle

Asked = tuple[str, str]  # two models
Outcomes = Mapping[str, Bundle]  # by name of the network and its seed
SIZES = ("parameters", "nonzero", "macs", "sparsity")


def read(declared: Mapping[str, Elastic]) -> dict[str, Bundle]:
    """What is stored of the declared networks, in one number format; nothing is measured."""
    found = {n: b for n, e in declared.items() if (b := storage.read(e.store, n))}
    storage.in_one_format({(n, c.task): c for n, b in found.items() for c in b.cells})
    return found


def models(outcomes: Outcomes, declared: Mapping[str, Elastic]) -> pd.DataFrame:
    """A line a declared model of a network with a seed, named NETWORK.MODEL: its score, which is
    the mean over its tasks, `SIZES`, times as fast as the base; NaN where a seed isn't stored."""
    lines = []
    for name, each in declared.items():
        bundle = outcomes.get(name)
        means = {cell.task: cell.mean for cell in bundle.cells} if bundle else {}
        for model in each.network.models:
            scores = [means.get(f"{model}.{task}", np.nan) for task in each.recipe.rows]
            line = {"model": f"{each.network.name}.{model}", "seed": each.recipe.seed}
            line |= {"task": each.task, "score": float(np.mean(scores))}
            line |= dict(zip(each.recipe.rows, scores, strict=True))
            facts = bundle.facts if bundle else {}
            line |= {size: facts.get(f"{model}.{size}", np.nan) for size in SIZES}
            line["bytes"] = stored_bytes(pd.Series(line), on_grid=each.recipe.int4)
            cells = bundle.cells if bundle else ()
            speeds = [c.values for c in cells if c.task == f"{model}.{SPEED}"]
            line["speed"] = float(np.median(speeds)) if speeds else np.nan
            lines.append(line | {"precision": _precision(each, model)})
    frame = pd.DataFrame(lines)
    # One seed beside the others' three would be read as a mean of as many.
    part = frame.score.isna().groupby([frame.model, frame.task]).transform("any")
    told = frame.columns.difference(["model", "seed", "task", "precision"])
    frame.loc[part, told] = np.nan
    return frame


def _precision(network: Elastic, model: str) -> str:
    """Bits of the weights, and of an adapter beside them."""
    beside = network.recipe.form == "beside" and "+" not in model and model != "untuned"
    return f"{4 if network.recipe.int4 else 32}{' + 32' if beside else ''}"


STORED = (
    "Stored: 4 bytes a number; of a matrix with zeros those that are not zero, and a bit a place "
    f"that says where; on the grid half a byte a number, and 5 bytes a group of {GROUP}."
)


def stored_bytes(sizes: pd.Series, *, on_grid: bool) -> float:
    """What a model of these `SIZES` takes, as `STORED` says; how many numbers its matrices have
    follows from their zeros and the share of those."""
    if not on_grid and sizes.sparsity < 0.01:
        return 4 * sizes.parameters
    weights = (sizes.parameters - sizes.nonzero) / sizes.sparsity
    if on_grid:
        return 4 * (sizes.parameters - weights) + weights * (1 / 2 + 5 / GROUP)
    return 4 * sizes.nonzero + weights / 8


def rows(outcomes: Outcomes, declared: Mapping[str, Elastic]) -> pd.DataFrame:
    """(task, row) by NETWORK.MODEL: values averaged over the seeds, where all are stored."""
    values: dict[str, list[pd.Series]] = {}
    wanted: dict[str, int] = {}
    for name, each in declared.items():
        if each.task:
            continue
        cells = {c.task: c.values for c in outcomes[name].cells} if name in outcomes else {}
        for model in each.network.models:
            title = f"{each.network.name}.{model}"
            wanted[title] = wanted.get(title, 0) + 1
            own = {t: pd.Series(v) for t in each.recipe.rows if (v := cells.get(f"{model}.{t}"))}
            if len(own) == len(each.recipe.rows):
                values.setdefault(title, []).append(pd.concat(own, names=["task", "row"]))
    full = {t: sum(v) / len(v) for t, v in values.items() if len(v) == wanted[t]}
    empty = pd.MultiIndex.from_arrays([[], []], names=["task", "row"])
    return pd.DataFrame(full) if full else pd.DataFrame(index=empty)


# Tables -------------------------------------------------------------------------------------------
def million(values: pd.Series) -> str:
    return f"{values.mean() / 1e6:.1f} M"


def percent(values: pd.Series) -> str:
    return f"{values.mean():.1%}"


def spread(values: pd.Series) -> str:
    """In per cent; of several seeds also the least and the most."""
    ends = f"<br>{100 * values.min():.1f}–{100 * values.max():.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{ends}"


def times(values: pd.Series) -> str:
    return f"{values.mean():.2f} ×"


def megabytes(values: pd.Series) -> str:
    return f"{values.mean() / 1e6:.0f} MB"


COLUMNS = {
    "stored": ("bytes", megabytes),
    "parameters": ("parameters", million),
    "not zero": ("nonzero", million),
    "MACs a token": ("macs", million),
    "sparsity": ("sparsity", percent),
    "speed-up": ("speed", times),
    "precision": ("precision", lambda values: values.iloc[0]),
}
SEARCH, SMALL = "LoNAS: search, midpoint", "LoNAS: small search, midpoint"
SEARCH_SPARSE, SMALLER = "Shears, 50%: search, midpoint", "LoNAS search, LoRA"
QUESTIONS = {  # the first model's score minus the second's
    SEARCH: ("lonas.search", "lonas.midpoint"),
    SMALL: ("lonas.search-small", "lonas.midpoint"),
    SEARCH_SPARSE: ("shears-50.search", "shears-50.midpoint"),
    "LoNAS midpoint, trained alone": ("lonas.midpoint", "narrow.whole"),
    "LoNAS search, LoRAPrune in its place": ("lonas.search", "narrow-loraprune.whole"),
    "LoNAS, LoRAPrune's channels, Wanda's": ("lonas-loraprune.midpoint", "lonas.midpoint"),
    "LoRA at 50%, not tuned": ("lora-50.whole", "lora-50.untuned"),
    "Shears midpoint, fixed rank 12": ("shears-50.midpoint", "fixed-12.whole"),
    "Shears smallest, fixed rank 8": ("shears-50.smallest", "fixed-8.whole"),
    "Shears whole, fixed rank 16": ("shears-50.whole", "lora-50.whole"),
    "LoNAS midpoint, LoRA": ("lonas.midpoint", "lora.whole"),
    SMALLER: ("lonas.search", "lora.whole"),
    "LoNAS small search, LoRA": ("lonas.search-small", "lora.whole"),
    "Shears 40%, LoRA on the dense base": ("shears-40.midpoint", "lora.whole"),
    "Shears 50%, LoRA on the dense base": ("shears-50.midpoint", "lora.whole"),
    "Shears, LoRA at 50%": ("shears-50.midpoint", "lora-50.whole"),
    "SparsePEFT, LoRA at 50%": ("sparsepeft-50.midpoint", "lora-50.whole"),
    "SQFT, LoRA at 50%": ("sqft-50.midpoint", "lora-50.whole"),
    "QA-SparsePEFT, LoRA at 50%": ("qa-50.midpoint", "lora-50.whole"),
    "Shears, merged under the mask, beside": ("shears-50.midpoint+sparse", "shears-50.midpoint"),
    "SparsePEFT, Shears": ("sparsepeft-50.midpoint", "shears-50.midpoint"),
    "SQFT, merged on the grid, beside": ("sqft-50.midpoint+grid", "sqft-50.midpoint"),
    "QA-SparsePEFT, SQFT": ("qa-50.midpoint", "sqft-50.midpoint"),
    "LoRAPrune's channels, Wanda's": ("narrow-loraprune.whole", "narrow.whole"),
}
SUMMED = "the exact sum less the model alone"
MET = {  # the same of merges of what was searched for each task, corrected by themselves
    SUMMED: ("cat", "base"),
    "the exact sum less each task's own": ("cat", "single"),
    "weights of 1/T less the exact sum": ("cat-weight-mean", "cat"),
    "weights of 1/T less the model alone": ("cat-weight-mean", "base"),
    "weights of 1/T less each task's own": ("cat-weight-mean", "single"),
    "TIP less the exact sum": ("tip-cat", "cat"),
    "TIP less magnitude pruning": ("tip-cat", "magnitude-cat"),
    "RegMean less weights of 1/T": ("token-regmean", "cat-weight-mean"),
    "KnOTS less weights of 1/T": ("knots", "cat-weight-mean"),
}
SQUARE = {  # sparsity by precision
    "dense": ("elastic.midpoint", "elastic-int4.midpoint", "qa.midpoint"),
    "50%": ("shears-50.midpoint", "sqft-50.midpoint", "qa-50.midpoint"),
}


def shown(
    frame: pd.DataFrame, lines: Mapping[str, str], columns: Sequence[str], against: str = ""
) -> pd.DataFrame:
    """Cells over all seeds: {title: NETWORK.MODEL} down; score, score relative to that of
    `against` (a model), and of `COLUMNS` those named across. EMPTY: not measured of this one."""
    groups = frame[frame.task == ""].groupby("model")
    means = groups["score"].mean()
    found = {}
    for title, model in lines.items():
        own = groups.get_group(model) if model in groups.groups else frame[:0]
        score = own["score"].dropna()
        line = {"score, %": spread(score) if len(score) else MISSING}
        if against:
            ratio = means.get(model, np.nan) / means.get(against, np.nan)
            line["relative"] = EMPTY if np.isnan(ratio) else f"{ratio:.1%}"
        for head in columns:
            name, form = COLUMNS[head]
            there = own[name].dropna()
            line[head] = form(there) if len(there) else EMPTY
        found[title] = line
    return pd.DataFrame(found).T.rename_axis("measured, SmolLM2-135M")


def tested(found: pd.DataFrame, asked: Mapping[str, Asked] = QUESTIONS) -> pd.DataFrame:
    """`statistics.compare` of all that is asked, corrected together: the one test of each."""
    tasks = tuple(statistics.tasks_of(found)) or ("",)  # nothing is stored: none is measured
    return statistics.compare(found, [Pair(*pair, tasks) for pair in asked.values()])


def compared(lines: pd.DataFrame, asked: Mapping[str, Asked] = QUESTIONS) -> pd.DataFrame:
    """`tested` to be read: differences of scores in points, by question."""
    told = []
    for one in lines.itertuples():
        if np.isnan(one.value):
            told.append({"difference, points": MISSING, "p, corrected": EMPTY})
            continue
        value, low, high = (f"{100 * n:+z.1f}" for n in (one.value, one.low, one.high))
        told.append(
            {
                "difference, points": f"{value} [{low}, {high}]",
                "p, corrected": p_text(one.corrected),
                "verdict": str(one.verdict),
            }
        )
    return pd.DataFrame(told, index=pd.Index([*asked], name="difference")).fillna("")


def interaction(found: pd.DataFrame, bits: int = 1) -> Interval | None:
    """How much more half of the weights and 4 bits cost together than apart (below 0: more): of
    `rows` drawn again within their tasks; bits: which column of SQUARE; None with a hole."""
    dense, sparse = SQUARE.values()
    names, tasks = (sparse[bits], dense[bits], sparse[0], dense[0]), statistics.tasks_of(found)
    if not statistics.measured(found, names, tasks):
        return None
    gains = {task: statistics.rows_of(found, names, task) @ (1, -1, -1, 1) for task in tasks}
    drawn = [
        statistics.resampled(gain[:, None], statistics.generator_of(task), statistics.DRAWS)
        for task, gain in gains.items()
    ]
    return statistics.interval(statistics.mean_of_tasks(gains), np.mean(drawn, axis=0)[:, 0])


def square(frame: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Scores of sparsity by precision, and how much more or less both cost together than apart.

    frame: `models`; found: `rows`.
    """
    groups = frame[(frame.task == "") & frame.score.notna()].groupby("model")["score"]
    told = groups.apply(spread)
    heads = ["32 bits", "4 bits, adapter beside", "4 bits, merged"]
    cells = {title: [told.get(model, MISSING) for model in own] for title, own in SQUARE.items()}
    more = [points(one) if (one := interaction(found, n)) else EMPTY for n in (1, 2)]
    table = pd.DataFrame(cells | {"together less apart, points": [EMPTY, *more]}, index=heads)
    return table.T.rename_axis("sparsity")


def ratio_note(frame: pd.DataFrame, head: int) -> str:
    """The midpoint's speed-up beside the ratio of the matrices' operations in the pass timed.

    That is without an adapter, and without the head, whose operations are `head`; what the adapter
    adds is counted in those of a searched model.
    """
    means = frame[frame.task == ""].groupby("model")[["macs"]].mean()
    whole, less = (means.macs.get(f"{name}.untuned", np.nan) - head for name in ("lora", "narrow"))
    speeds = frame.speed[frame.model == "lonas.midpoint"]
    if np.isnan([whole, less, *speeds]).any():
        return ""
    told = "above" if speeds.mean() > whole / less else "not above"
    return (
        f"The midpoint is {speeds.mean():.2f} times as fast ({speeds.min():.2f} to "
        f"{speeds.max():.2f}, by seed), in a pass merged and without the head, whose matrices have "
        f"{whole / less:.2f} times fewer operations: here the speed-up is {told} that ratio."
    )


THAN = {  # what a verdict says of the first model and the second
    Verdict.BETTER: "better than",
    Verdict.WORSE: "worse than",
    Verdict.OPEN: "not significantly different from",
}


def findings(frame: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """What was found in three lines; what is not measured is said to be so."""
    own = frame[frame.task == ""].groupby("model")
    means = own[["score", "parameters", "sparsity"]].mean()

    def of(model: str, what: str) -> float:
        return float(means[what].get(model, np.nan))

    def verdict(question: str) -> str:
        return THAN.get(answers.get("verdict", {}).get(question), "")

    def apart(question: str) -> str:
        return answers["difference, points"].get(question, MISSING)

    small, lora = "lonas.search", "lora.whole"
    sparse = "SparsePEFT, Shears"
    less = 1 - of(small, "parameters") / of(lora, "parameters")
    lonas, shears = verdict(SEARCH), verdict(SEARCH_SPARSE)
    lines = {
        "Smaller": f"With {less:.0%} fewer parameters LoNAS scores {of(small, 'score'):.1%}, "
        f"{verdict(SMALLER)} LoRA on the whole model, {of(lora, 'score'):.1%} "
        f"(difference in points {apart(SMALLER)}); the whole model untuned "
        f"{of('lora.untuned', 'score'):.1%}.",
        "Searched": "On examples that the search did not see, what it chose is, for LoNAS, "
        f"{lonas} the midpoint, which costs no search; for Shears, {shears} its midpoint.",
        "Sparse": f"A plain merge leaves {of('shears-50.midpoint+dense', 'sparsity'):.1%} "
        f"zeros of {of('shears-50.midpoint', 'sparsity'):.1%}; SparsePEFT keeps "
        f"{of('sparsepeft-50.midpoint', 'sparsity'):.1%}, and its score is "
        f"{verdict(sparse)} Shears'.",
    }
    asked = {"Smaller": [SMALLER], "Searched": [SEARCH, SEARCH_SPARSE], "Sparse": [sparse]}
    known = {name for name, questions in asked.items() if all(map(verdict, questions))}
    return [
        f"**{n}.** {line}" if n in known else f"**{n}**: {MISSING}." for n, line in lines.items()
    ]


def costs(outcomes: Outcomes, declared: Mapping[str, Elastic]) -> pd.DataFrame:
    """What training and searching took, by network: seconds, steps, configurations."""
    lines: dict[str, dict[str, list[float]]] = {}
    for name, each in declared.items():
        if name not in outcomes or each.task:
            continue
        facts = outcomes[name].facts
        line = lines.setdefault(each.network.name, {"train": [], "search": [], "looked at": []})
        line["train"].append(facts["seconds"])
        if "searched.seconds" in facts:
            line["search"].append(facts["searched.seconds"])
            line["looked at"].append(len(facts["searched.scores"]))
    means = {
        n: {k: np.mean(v) if v else np.nan for k, v in own.items()} for n, own in lines.items()
    }
    frame = pd.DataFrame(means, index=["train", "search", "looked at"]).T
    frame.columns = ["training, s", "search, s", "configurations"]
    return formatted(frame.rename_axis("network, mean of the seeds"), "{:.0f}", EMPTY)


def rates_note(tried: Mapping[str, Elastic]) -> str:
    """The learning rates that were best, by network, and what else was tried."""
    titles = {each.network.name: each.network.title for each in tried.values()}
    told = [
        f"{titles[name]} {rate:g} (of {', '.join(f'{r:g}' for r in rates)})"
        for name, (rate, rates) in elastic.best_rates(tried).items()
    ]
    words = (
        "**Learning rates** are those of the lowest loss on the validation set, with one seed, at"
    )
    return f"{words} the midpoint: {'; '.join(told)}; what is trained alike has the same."


def full_tuning(outcomes: Outcomes) -> float | None:
    """How many times as fast a step of the adapters is as one with all weights' gradients."""
    found = [c.values for b in outcomes.values() for c in b.cells if c.task == f"whole.{COST}"]
    return float(np.median(np.concatenate(found))) if found else None


# Figures ------------------------------------------------------------------------------------------
def _empty() -> Figure:
    figure = Figure((WIDTH, 0.6))
    figure.text(0.5, 0.5, MISSING, ha="center")
    return figure


@styled
def progress(searches: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Figure 4: {title: facts of a search}, a panel each. The grey of a point is its place in the
    search, the line joins those that no other is better than in both; dashed: the midpoint."""
    if not searches:
        return _empty()
    figure = Figure((WIDTH, 0.4 + 2.3 * len(searches)), layout="constrained")
    panels = figure.subplots(len(searches), 1, squeeze=False)[:, 0]
    for axes, (title, facts) in zip(panels, searches.items(), strict=False):
        macs, scores = np.array(facts["searched.macs"]) / 1e6, np.array(facts["searched.scores"])
        place = np.linspace(0.25, 1, len(macs))
        axes.scatter(macs, scores, s=14, color=[(*_rgb(BLUE), alpha) for alpha in place])
        best = front(macs, scores)
        axes.plot(macs[best], scores[best], "-", color=ORANGE, label="front")
        axes.axhline(scores[0], color=GREY, linestyle=(0, (5, 4)), label="midpoint")
        axes.plot(macs[0], scores[0], "D", color=GREY)
        axes.set(title=title, ylabel="score, validation set")
    panels[-1].set_xlabel("MACs a token, millions")
    panels[0].legend()
    return figure


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def front(macs: np.ndarray, scores: np.ndarray) -> list[int]:
    """The places of those that nothing of fewer operations reaches the score of, in their order."""
    found: list[int] = []
    for place in np.lexsort((-scores, macs)):
        if not found or scores[place] > scores[found[-1]]:
            found.append(int(place))
    return found


@styled
def trade(frame: pd.DataFrame, lines: Mapping[str, tuple[str, str]]) -> Figure:
    """Score and, at its right, parameters that are not 0: {title: (NETWORK.MODEL, method)}, a line
    each with the seeds' range; filled where none is better in both; dotted: the first's score."""
    groups = frame[(frame.task == "") & frame.score.notna()].groupby("model")
    shown = {title: own for title, own in lines.items() if own[0] in groups.groups}
    if not shown:
        return _empty()
    figure = Figure((WIDTH, 0.7 + 0.33 * len(shown)), layout="constrained")
    scores, sizes = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    means = groups[["score", "nonzero"]].mean().loc[[model for model, _ in shown.values()]]
    best = front(means.nonzero.to_numpy(), means.score.to_numpy())
    for line, (model, method) in enumerate(shown.values()):
        own, colour = groups.get_group(model), COLOURS[method]
        y, x = 100 * own["score"], own["nonzero"].mean() / 1e6
        reach = [[y.mean() - y.min()], [y.max() - y.mean()]]
        filled = {} if line in best else {"markerfacecolor": "none"}
        scores.errorbar(y.mean(), line, xerr=reach, fmt="o", color=colour, capsize=2, **filled)
        sizes.barh(line, x, height=0.5, color=colour)
        place = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        sizes.annotate(f"{x:.0f}", (x, line), (3, 0), **place)
        if (model, method) == next(iter(lines.values())):
            scores.axvline(y.mean(), color=GREY, linestyle=":")
    scores.set(xlabel="mean score, %", yticks=range(len(shown)), yticklabels=shown)
    scores.invert_yaxis()
    sizes.set(xlabel="not 0, millions")
    sizes.tick_params(left=False)
    sizes.margins(x=0.3)
    return figure


@styled
def pictures(panels: Mapping[str, np.ndarray], columns: int = 3) -> Figure:
    """Matrices side by side, each on a scale of its own around 0; what is 0 is see-through."""
    lines = -(-len(panels) // columns)
    figure = Figure((WIDTH, 0.3 + 1.7 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (title, values) in zip(grid, panels.items(), strict=False):
        values = np.asarray(values)
        reach = np.quantile(np.abs(values), 0.99) or 1.0
        axes.imshow(values, aspect="auto", cmap=SIGNED, vmin=-reach, vmax=reach)
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
    return figure
