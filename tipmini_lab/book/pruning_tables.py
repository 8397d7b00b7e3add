"""The stored prunings as two frames, rows and scores, and the chapter's tables as their pivots."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from tipmini_lab.evaluation.documents import KNOWN
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments.declared import Grid, Planned, Size, grid
from tipmini_lab.results import frame
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import COVERED, LEVEL, MISSING, holm_of
from tipmini_lab.results.store import Bundle, Cell, Place, in_one_format

OURS, RELEASED = "lora-guided", "lora-guided-released"
UNPRUNED = "lora-guided", 0.0, True  # tuned with nothing removed
SETTINGS = {"20%": (0.2, False), "50%": (0.5, False)}  # (share, tuned) by the words for it
SETTINGS |= {"20%, fine-tuned": (0.2, True), "50%, fine-tuned": (0.5, True)}
HALF, LONG = "LoRAPrune's, 50%, fine-tuned", "LoRAPrune's, 50%, fine-tuned for many steps"
FEWER = "LoRAPrune's, 20%, fine-tuned"
MODEL = ["method", "share", "tuned", "longer"]  # what the seeds of one model have in common
ACCURACY = "accuracy"  # a measure beside the corpora: all averaged tasks together
FACTS = ["removed_share", "removed_of_model", "removed_heads", "removed_channels"]

Outcomes = Mapping[str, Bundle]  # by name of the run
Model = Sequence  # [method, share, tuned, or also longer], as in experiments/loraprune/pruning.yaml
ModelPair = tuple[tuple, tuple, str]  # two models and a measure
Values = TypeVar("Values", pd.Series, pd.DataFrame)
Form = Callable[[pd.Series], str]  # of the values of all seeds


def read(store: Path) -> dict[str, Bundle]:
    """Whatever is stored, in one number format; nothing is measured."""
    every = [storage.read(store, name) for name in storage.names(store)]
    found = {bundle.name: bundle for bundle in every if bundle}
    in_one_format(_cells(found))
    return found


def _cells(outcomes: Outcomes) -> dict[Place, Cell]:
    return {(name, c.task): c for name, bundle in outcomes.items() for c in bundle.cells}


def frames(
    outcomes: Outcomes, runs: Mapping[str, Planned], declared: Grid
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A line a stored row of a cell (`frame.tidy`), and a line a declared run, by name.

    Both have what the run is a model of (`MODEL`), seed, whether it is stored, and `FACTS`; a run
    has its scores too: perplexities, accuracies, their mean. NaN: not stored.
    """
    lines = {
        name: (run.method, run.share, run.tuned, run.longer, run.recipe.seed if run.recipe else 0)
        for name, run in runs.items()
    }
    facts = {name: [bundle.facts.get(f) for f in FACTS] for name, bundle in outcomes.items()}
    models = pd.DataFrame.from_dict(lines, orient="index", columns=[*MODEL, "seed"])
    models = models.assign(stored=models.index.isin([*outcomes]))
    models[FACTS] = pd.DataFrame.from_dict(facts, orient="index", columns=FACTS, dtype=float)
    rows = frame.tidy(_cells(outcomes)).join(models, on="variant", how="inner")
    means = frame.summary(rows)["mean"].unstack("task").rename_axis("variant")
    means = means.reindex(columns=[*CORPORA, *declared.tasks])
    means[[*CORPORA]] = np.exp(means[[*CORPORA]])
    means[ACCURACY] = means[[*declared.averaged]].mean(axis="columns", skipna=False)
    return rows, models.join(means)


def averaged_losses(rows: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """(share, tuned and window, method) losses averaged over the seeds, of what is not longer."""
    own = rows[(rows.task == corpus) & ~rows.longer]
    return own.groupby(["share", "tuned", "row", "method"])["value"].mean().unstack("method")


# Formatters ---------------------------------------------------------------------------------------


def three_digits(value: float) -> str:
    """0.513, 26.3, 871, 1,860,000: perplexities and their ratios are of very different sizes."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def ppl(values: pd.Series) -> str:
    """Perplexity of the seeds' mean loss; of several also the least and the most."""
    return _with_ends(geometric_mean(values), values, three_digits)


def _with_ends(middle: float, values: pd.Series, form: Callable[[float], str]) -> str:
    ends = f"<br>{form(values.min())}–{form(values.max())}" if len(values) > 1 else ""
    return f"{form(middle)}{ends}"


def geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def mean(form: str) -> Form:
    """A formatter of the seeds' mean."""
    return lambda values: f"{values.mean():{form}}"


def spread(values: pd.Series) -> str:
    """Mean; of several seeds also the least and the most."""
    return _with_ends(values.mean(), values, "{:.3f}".format)


def ratio(gaps: pd.Series) -> str:
    """exp of the mean gap between losses, with its 95% interval over the windows."""
    middle, reach = gaps.mean(), COVERED * gaps.sem()
    value, *ends = (three_digits(math.exp(middle + sign * reach)) for sign in (0, -1, 1))
    return f"{value}<br>[{', '.join(ends)}]"


def of_known(form: Form) -> Form:
    """A formatter that leaves out what is missing, and says so where all is."""
    return lambda values: form(values.dropna()) if values.notna().any() else MISSING


def formatted(values: Values, form: str, missing: str | pd.Series = MISSING) -> Values:
    """Every cell by a format; what is NaN by a word."""
    return values.map(form.format, na_action="ignore").astype(object).fillna(missing)


PERPLEXITIES = {f"ppl, {corpus}": (corpus, ppl) for corpus in CORPORA}
PERPLEXITIES |= {"seeds": ("stored", lambda stored: str(stored.sum() or "-"))}


def shown(
    scores: pd.DataFrame, rows: Mapping[str, Model], columns: Mapping[str, tuple[str, Form]]
) -> pd.DataFrame:
    """Cells over all seeds of a model: {title: model} down, {title: (column, formatter)} across.

    A model: (method, share, tuned), or (method, share, tuned, longer).
    """
    titles = {(*model, False)[:4]: title for title, model in rows.items()}
    groups = scores.groupby(scores[MODEL].apply(tuple, axis="columns").map(titles))
    cells = {head: groups[name].agg(of_known(form)) for head, (name, form) in columns.items()}
    return pd.DataFrame(cells).reindex([*rows])


# Tables -------------------------------------------------------------------------------------------


def table(scores: pd.DataFrame, declared: Grid, share: float, tuned: bool) -> pd.DataFrame:
    """Table 2. Every method at a share: perplexities, mean accuracy; the unpruned model above."""
    without = ", ".join(_task_titles(declared)[task] for task in declared.apart)
    head = f"mean without {without}" if without else "mean"
    columns = PERPLEXITIES | {head: (ACCURACY, spread)}
    return shown(scores, _beside(declared, share, tuned), columns).rename_axis("method")


def accuracies(scores: pd.DataFrame, declared: Grid, share: float, tuned: bool) -> pd.DataFrame:
    """The same models' accuracy on every task, the mean of the seeds."""
    columns = {title: (task, mean(".3f")) for task, title in _task_titles(declared).items()}
    return shown(scores, _beside(declared, share, tuned), columns).rename_axis("method")


def _task_titles(declared: Grid) -> dict[str, str]:
    return {task: KNOWN[task].short or KNOWN[task].title for task in declared.tasks}


def _beside(declared: Grid, share: float, tuned: bool) -> dict[str, Model]:
    rows = {whole.title: (whole.name, 0.0, False) for whole in declared.whole}
    scored = [one for one in declared.zeroed if one.zero_shot and one.share == share]
    rows |= {one.title: (one.name, share, False) for one in scored if not tuned}
    rows |= {"unpruned, fine-tuned": UNPRUNED} if tuned else {}
    return rows | {m.title: (m.name, share, tuned) for m in declared.methods}


def against(rows: pd.DataFrame, declared: Grid, first: str, corpus: str) -> pd.DataFrame:
    """Every other method's perplexity over the first's, window by window; see `ratio`."""
    titles = {m.name: m.title for m in declared.methods}
    losses = averaged_losses(rows, corpus).reindex(columns=[*titles])
    gaps = losses.drop(columns=first).sub(losses[first], axis="index")
    told = gaps.groupby(["share", "tuned"]).agg(of_known(ratio)).T
    told = told.reindex(columns=pd.MultiIndex.from_tuples(SETTINGS.values()))
    told = told.set_axis([*SETTINGS], axis="columns").astype(object).fillna(MISSING)
    return told.rename(titles).rename_axis("method")


def lines(rows: pd.DataFrame, wanted: Mapping[str, tuple[str, bool]], corpus: str) -> pd.DataFrame:
    """Figure 3: line, x (share removed), y (perplexity), low, high of {line: (method, tuned)}.

    All seeds of a share together; tuned lines begin at what is tuned with nothing removed.
    """
    by = averaged_losses(rows, corpus).groupby(["share", "tuned"])
    middle, reach = by.mean().stack(), COVERED * by.sem().stack()
    points = np.exp(pd.DataFrame({"y": middle, "low": middle - reach, "high": middle + reach}))
    points["x"] = rows.groupby(["share", "tuned", "method"])["removed_share"].first()
    found = [pd.DataFrame(columns=["line", *points])]
    for title, (method, tuned) in wanted.items():
        start = (0.0, tuned, OURS if tuned else "base")
        own = [p == start or (p[0] > 0 and p[1:] == (tuned, method)) for p in points.index]
        if sum(own) > 1:  # more than the unpruned model
            found.append(points[own].fillna({"x": 0}).sort_values("x").assign(line=title))
    return pd.concat(found[1:] or found, ignore_index=True)


def ends_in_words(found: pd.DataFrame) -> str:
    """Of `lines` their first and last y: "LoRAPrune 26.3 and 1,860; ..."."""
    ends = found.groupby("line", sort=False)["y"].agg(["first", "last"]).map(three_digits)
    parts = [f"{one.Index} {one.first} and {one.last}" for one in ends.itertuples()]
    return "; ".join(parts) or MISSING


def long_beside_short(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the long runs that are stored, and of the short ones of the same seeds."""
    same = ["method", "share", "tuned", "seed"]
    long = scores[scores.longer & scores.stored]
    short = scores[~scores.longer].reset_index().merge(long[same]).set_index("index")
    return pd.concat([short.rename_axis(None), long])


def few_and_many(scores: pd.DataFrame, declared: Grid, corpus: str) -> pd.DataFrame:
    """Perplexities of fine-tuned models at one half, by title of the method: longer, y, low, high.

    Of the seeds that are stored.
    """
    titles = {m.name: m.title for m in declared.methods}
    own = scores[scores.tuned & (scores.share == 0.5) & scores.method.isin([*titles])]
    by = own.dropna(subset=corpus).groupby(["method", "longer"], sort=False)[corpus]
    points = by.agg(y=geometric_mean, low="min", high="max")
    return points.reset_index("longer").rename(titles)


# Two models on the same windows -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gap:
    """What one model has more than another."""

    values: np.ndarray  # (windows,) or (rows,), averaged over the seeds
    seeds: np.ndarray  # (pairs,) means, of every seed of one against every seed of the other
    counts: tuple[int, int]  # seeds of either

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @cached_property
    def p(self) -> float:
        """Of a t test over windows or rows; where all are the same, only 0 is no difference."""
        from scipy.stats import ttest_1samp

        if np.allclose(self.values, self.values[0], rtol=1e-9, atol=1e-12):
            return float(abs(self.values[0]) < 1e-12)
        return float(ttest_1samp(self.values, 0).pvalue)

    @property
    def alike(self) -> bool:
        """Whether every pair of seeds lies on the same side."""
        return bool((self.seeds > 0).all() or (self.seeds < 0).all())


def gap(
    outcomes: Outcomes, runs: Mapping[str, Planned], one: Model, two: Model, measure: str
) -> Gap | None:
    """One's values minus two's; None where one is not measured. A loss: the log of a perplexity."""
    first, second = (gap_values(outcomes, runs, model, measure) for model in (one, two))
    if first is None or second is None:
        return None
    pairs = [a.mean() - b.mean() for a, b in product(first, second)]
    return Gap(first.mean(0) - second.mean(0), np.array(pairs), (len(first), len(second)))


def gap_values(
    outcomes: Outcomes, runs: Mapping[str, Planned], model: Model, measure: str
) -> np.ndarray | None:
    """(seeds, windows or rows); None unless every declared seed is measured.

    A part of the seeds may agree where all would not. Runs that are tuned for longer cost so much
    that there it is those that are stored.
    """
    wanted = grid().averaged if measure == ACCURACY else (measure,)
    asked = [outcomes.get(run.name) for run in planned(runs, *model)]
    asked = [bundle for bundle in asked if bundle] if model[3:] == (True,) else asked
    cells = [{c.task: c.values for c in bundle.cells} if bundle else {} for bundle in asked]
    if not cells or any(task not in own for own in cells for task in wanted):
        return None
    return np.array([[v for task in wanted for v in own[task]] for own in cells])


def planned(
    runs: Mapping[str, Planned], method: str, share: float, tuned: bool, longer: bool = False
) -> list[Planned]:
    """The declared runs that differ in nothing but the seed."""
    wanted = method, share, tuned, longer
    return [r for r in runs.values() if (r.method, r.share, r.tuned, r.longer) == wanted]


def clear(gaps: Mapping[ModelPair, Gap], corrected: bool = True) -> dict[ModelPair, Gap]:
    """Those with p < 0.05, after Holm's correction, whose seeds, every pair, agree on the sign."""
    ps = {place: found.p for place, found in gaps.items()}
    ps = holm_of(ps) if corrected else ps
    return {place: g for place, g in gaps.items() if ps[place] < LEVEL and g.alike}


def tuned_long(outcomes: Outcomes, size: Size, runs: Mapping[str, Planned]) -> str:
    """The unpruned model's perplexities untuned, after the steps of most runs, and of long ones.

    All of the first seed, which long runs have as well.
    """
    models = {"untuned": ("base", 0.0, False)}
    for longer in (False, True):
        recipe = size.recipe(tuned=True, longer=longer)
        models[f"after {len(recipe.batches(recipe.rows))} steps"] = (*UNPRUNED, longer)
    told = []
    for corpus in CORPORA:
        every = {words: gap_values(outcomes, runs, m, corpus) for words, m in models.items()}
        known = [f"{math.exp(v[0].mean()):.1f} {w}" for w, v in every.items() if v is not None]
        told.append(f"on {corpus} {', '.join(known) or MISSING}")
    return "; ".join(told)


def verdicts(found: Mapping[tuple, Sequence[Gap | None]]) -> dict[tuple, str]:
    """Whether gaps on both corpora are clearly lower, clearly higher or neither, by name.

    All tests are corrected together. Behind the word: how many runs stand on either side.
    """
    there = {name: both for name, both in found.items() if None not in both}
    sure = clear({(name, i): one for name, both in there.items() for i, one in enumerate(both)})
    words = dict.fromkeys(found, MISSING)
    for name, both in there.items():
        signs = {(name, i) in sure and np.sign(one.mean) for i, one in enumerate(both)}
        word = {(-1,): "lower", (1,): "higher"}.get((*signs,), "neither")
        words[name] = f"{word}, {both[0].counts[0]}:{both[0].counts[1]}"
    return words


def in_words(told: pd.Series) -> str:
    """Of `verdicts` by title: which are lower, higher and neither, as a sentence's end."""
    words = told.str.partition(",")[0]
    titles = words.index.str.replace(r", (.*)", r" (\1)", regex=True)
    named = {w: ", ".join(titles[words == w]) for w in ("lower", "higher", "neither")}
    heads = {"lower": "significantly lower for", "higher": "significantly higher for"}
    parts = [f"{heads.get(w, 'neither for')} {own}" for w, own in named.items() if own]
    return "; ".join(parts) or MISSING


def seeds_in_words(scores: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """How many seeds each criterion has of the long runs that are stored: "seeds: ...".

    Of runs that pruned; `scores` as in `frames`.
    """
    own = scores[scores.longer & scores.stored & (scores.share > 0)]
    counts = own.groupby("method", sort=False)["seed"].nunique().rename(titles)
    named = counts.index.str.replace(r", (.*)", r" (\1)", regex=True)
    told = [f"{n} of {', '.join(named[counts == n])}" for n in sorted({*counts}, reverse=True)]
    return f"seeds: {'; '.join(told) or MISSING}"


def takeaways(outcomes: Outcomes, runs: Mapping[str, Planned], declared: Grid) -> pd.DataFrame:
    """`verdicts` of all methods beside LoRAPrune, tuned alike.

    Corrected together: a column's criteria; the released reduction's settings; parts; variants.
    """
    names, parts, others = (
        [m.name for m in group]
        for group in (declared.methods, declared.ablations, declared.variants)
    )
    criteria = [name for name in names if name not in (OURS, RELEASED)]
    long = [name for name in criteria if planned(runs, name, 0.5, True, longer=True)]
    groups = [(own, ["50%, fine-tuned"]) for own in (criteria, parts, others)]
    groups += [(criteria, [words]) for words in SETTINGS if words != "50%, fine-tuned"]
    groups += [([RELEASED], SETTINGS)]
    families = [
        [
            ((n, f"LoRAPrune's, {w}"), (n, *SETTINGS[w]), (OURS, *SETTINGS[w]))
            for n, w in product(*g)
        ]
        for g in groups
    ]
    families[1:1] = [[((n, LONG), (n, 0.5, True, True), (OURS, 0.5, True, True)) for n in long]]
    cells = {}
    for family in families:
        gaps = {p: [gap(outcomes, runs, *pair, c) for c in CORPORA] for p, *pair in family}
        cells |= verdicts(gaps)
    found = pd.Series(cells).unstack(sort=False).reindex([*names, *parts, *others]).fillna("-")
    return found.rename(declared.titles()).rename_axis("perplexity beside")


def halved(outcomes: Outcomes, runs: Mapping[str, Planned], declared: Grid) -> pd.DataFrame:
    """Every criterion at one half, fine-tuned: the verdict, perplexities, mean accuracy.

    The verdict stands first: it is what a telephone shows of the table.
    """
    models = {"unpruned": UNPRUNED}
    models |= {one.title: (one.name, 0.5, True) for one in declared.methods}
    columns = {n: own for n, own in PERPLEXITIES.items() if n != "seeds"}
    columns |= {"mean accuracy": (ACCURACY, spread)}
    scores = frames(outcomes, runs, declared)[1]
    table = shown(scores, models, columns)
    found = takeaways(outcomes, runs, declared)[HALF]
    verdicts = found.str.partition(",")[0].reindex(table.index, fill_value="-")
    table.insert(0, "perplexity beside LoRAPrune's", verdicts)
    return table.rename_axis("criterion")
