"""Tables of the pruned models, from stored cells alone: Table 2, ablations, gaps, in words."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from tipmini_lab import paths
from tipmini_lab.evaluation.documents import KNOWN
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments.declared import Grid, Planned, grid, run_name
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import COVERED, LEVEL, MISSING, holm_of
from tipmini_lab.results.store import Bundle, Cell, in_one_format

CORPUS_TITLES = {"wikipedia": "Wikipedia passages (of BoolQ)", "books": "books (LAMBADA)"}
TASK_TITLES = {name: task.short or task.title for name, task in KNOWN.items()}
PRINTED = {"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune"}
PRINTED |= {"loraprune_8bit": "LoRAPrune, 8 bits"}

Outcomes = Mapping[str, Bundle]  # by name of the run


def read(store: Path) -> dict[str, Bundle]:
    """Whatever is stored, in one number format; nothing is measured."""
    found = {name: storage.read(store, name) for name in storage.names(store)}
    every = {name: bundle for name, bundle in found.items() if bundle}
    in_one_format({(name, c.task): c for name, bundle in every.items() for c in bundle.cells})
    return every


def measured_cell(bundle: Bundle, measure: str) -> Cell | None:
    return next((c for c in bundle.cells if c.task == measure), None)


def perplexity(found: Cell) -> tuple[float, float, float]:
    """exp of the mean loss of a token, and the ends of its 95% interval over the windows."""
    mean, reach = found.mean, COVERED * found.stderr
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


UNPRUNED = "lora-guided", 0.0, True  # tuned with nothing removed

# Several seeds of one run -------------------------------------------------------------------------


def seeds(
    outcomes: Outcomes,
    runs: Mapping[str, Planned],
    method: str,
    share: float,
    tuned: bool,
    longer: bool = False,
) -> list[Bundle]:
    """The stored runs that differ in nothing but the seed."""
    wanted = planned(runs, method, share, tuned, longer)
    return [outcomes[run.name] for run in wanted if run.name in outcomes]


def planned(
    runs: Mapping[str, Planned], method: str, share: float, tuned: bool, longer: bool = False
) -> list[Planned]:
    """The declared runs that differ in nothing but the seed."""
    wanted = method, share, tuned, longer
    return [r for r in runs.values() if (r.method, r.share, r.tuned, r.longer) == wanted]


def values(every: Sequence[Bundle], measure: str) -> list[float]:
    """One number a seed: perplexity of a corpus, accuracy on a task."""
    found = [c for c in (measured_cell(bundle, measure) for bundle in every) if c]
    return [perplexity(c)[0] if measure in CORPORA else c.mean for c in found]


def accuracies(every: Sequence[Bundle], tasks: Sequence[str]) -> list[float]:
    """One mean over the tasks a seed, where all were scored."""
    means = [[c.mean for t in tasks if (c := measured_cell(bundle, t))] for bundle in every]
    return [statistics.mean(found) for found in means if len(found) == len(tasks)]


def ppl(every: Sequence[Bundle], corpus: str) -> str:
    """Perplexity of a corpus; of several seeds of their mean loss, and the least and the most."""
    found = values(every, corpus)
    if not found:
        return MISSING
    mean = three_digits(statistics.geometric_mean(found))
    ends = "–".join(three_digits(end) for end in (min(found), max(found)))
    return mean if len(found) == 1 else f"{mean}<br>{ends}"


def three_digits(value: float) -> str:
    """0.513, 26.3, 871, 1,860,000: perplexities and their ratios are of very different sizes."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def _accuracy(found: Sequence[float]) -> str:
    return f"{statistics.mean(found):.3f}" if found else MISSING


def spread(found: Sequence[float]) -> str:
    """Mean and, of several, standard deviation over the seeds."""
    mean = _accuracy(found)
    return mean if len(found) < 2 else f"{mean}<br>± {statistics.stdev(found):.3f}"


# Table 2 ------------------------------------------------------------------------------------------


def table(
    outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned], share: float, tuned: bool
) -> pd.DataFrame:
    """Every method at a share: perplexities, mean accuracy, tasks; the unpruned model above."""
    titles = declared.titles()
    rows = {}
    for whole in declared.whole:
        rows[whole.title] = _row(seeds(outcomes, runs, whole.name, 0.0, False), declared)
    for semi in declared.semi_structured if share == 0.5 and not tuned else ():
        rows[semi.title] = _row(seeds(outcomes, runs, semi.name, 0.5, False), declared)
    if tuned:
        rows["unpruned, fine-tuned"] = _row(seeds(outcomes, runs, *UNPRUNED), declared)
    for method in declared.methods:
        every = seeds(outcomes, runs, method.name, share, tuned)
        rows[titles[method.name]] = _row(every, declared)
    return pd.DataFrame(rows).T.rename_axis("method")


def _row(every: Sequence[Bundle], declared: Grid) -> dict[str, str]:
    row = perplexities(every) | {mean_title(declared): spread(accuracies(every, declared.averaged))}
    return row | {TASK_TITLES[task]: _accuracy(values(every, task)) for task in declared.tasks}


def perplexities(every: Sequence[Bundle]) -> dict[str, str]:
    """How many seeds there are, and the perplexity of each corpus."""
    count = {"seeds": str(len(every)) if every else "-"}
    return count | {f"ppl, {corpus}": ppl(every, corpus) for corpus in CORPORA}


def mean_title(declared: Grid) -> str:
    """What the column of means is called."""
    without = ", ".join(TASK_TITLES[task] for task in declared.apart)
    return f"mean without {without}" if without else "mean"


def printed() -> pd.DataFrame:
    """What is known of the paper's Table 2, at 50% and with fine-tuning."""
    cells = yaml.safe_load(paths.PRINTED.read_text())["loraprune"]["perplexity"]
    rows = {PRINTED[name]: _printed_row(row) for name, row in cells.items()}
    return pd.DataFrame(rows).T.rename_axis("printed, LLaMA-7B, 50%")


def _printed_row(row: dict) -> dict[str, str]:
    known = {"WikiText2": "wikitext2", "PTB": "ptb"}
    return {title: f"{row[key]['value']:.2f}" for title, key in known.items()}


def shares(outcomes: Outcomes, runs: Mapping[str, Planned], method: str) -> pd.DataFrame:
    """What really went at every share that was asked for."""
    rows = {}
    for share in sorted({run.share for run in runs.values() if run.method == method} - {0.0}):
        every = [b for t in (False, True) for b in seeds(outcomes, runs, method, share, t)]
        rows[f"{share:.0%}"] = _gone(every[0].facts if every else {})
    return pd.DataFrame(rows).T.rename_axis("share asked for")


def _gone(facts: Mapping) -> dict[str, str]:
    names = {"of the pruned matrices": "removed_share", "of the whole model": "removed_of_model"}
    names |= {"heads": "removed_heads", "channels": "removed_channels"}
    return {t: f"{facts[n]:.1%}" if n in facts else MISSING for t, n in names.items()}


# Where it came from -------------------------------------------------------------------------------


def provenance(outcomes: Outcomes, runs: Mapping[str, Planned]) -> str:
    """A paragraph: how much is measured, when, on what, and how long it took."""
    every = [cell for bundle in outcomes.values() for cell in bundle.cells]
    if not every:
        return f"Of {len(runs)} declared runs none is stored: {MISSING}."
    machines = sorted({str(c.machine["processor"]) for c in every})
    dates = sorted({c.date for c in every})
    versions = sorted({f"torch {c.versions['torch']}" for c in every})
    training = sum(b.facts.get("seconds", 0.0) for b in outcomes.values())
    scoring = sum(c.seconds for c in every)
    return (
        f"{sum(name in outcomes for name in runs)} of {len(runs)} declared runs are stored, "
        f"{len(every)} cells of {dates[0]} to {dates[-1]}, on {', '.join(machines)}, "
        f"{', '.join(versions)}: {training / 60:.0f} minutes of pruning and "
        f"{scoring / 60:.0f} of scoring, summed over the processes."
    )


# Tables of LoRAPrune without a part ---------------------------------------------------------------
def ablations(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> pd.DataFrame:
    """LoRAPrune with fine-tuning at one half, whole and without one of its parts: perplexities."""
    names = ("lora-guided", *(method.name for method in declared.ablations))
    found = {n: seeds(outcomes, runs, n, 0.5, True) for n in names}
    rows = {declared.titles()[name]: perplexities(every) for name, every in found.items()}
    return pd.DataFrame(rows).T.rename_axis("LoRAPrune, 50%, fine-tuned")


def variants(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> pd.DataFrame:
    """LoRAPrune with fine-tuning, and otherwise than it is taken here: what went, perplexities."""
    names = ("lora-guided", "lora-guided-released", *(m.name for m in declared.variants))
    rows = {}
    for share in (0.2, 0.5):
        for name in names:
            every = seeds(outcomes, runs, name, share, True)
            gone = {"really removed": _mean_removed(every)}
            rows[f"{share:.0%}, {declared.titles()[name]}"] = gone | perplexities(every)
    return pd.DataFrame(rows).T.rename_axis("LoRAPrune, fine-tuned")


def _mean_removed(every: Sequence[Bundle]) -> str:
    found = [bundle.facts["removed_share"] for bundle in every]
    return f"{statistics.mean(found):.1%}" if found else MISSING


def longer(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> pd.DataFrame:
    """Whatever is tuned for longer too, seed 0: after few steps and after many."""
    rows = {}
    for run in runs.values():
        if run.longer:
            named = declared.titles()[run.method] if run.share else "unpruned"
            place = (run_name(run.method, run.share, True, run.recipe.seed), run.name)
            rows[named] = _few_and_many([outcomes.get(name) for name in place], declared.averaged)
    return pd.DataFrame(rows).T.rename_axis("method")


def _few_and_many(pair: Sequence[Bundle | None], tasks: Sequence[str]) -> dict[str, str]:
    every = {
        how: [bundle] if bundle else [] for how, bundle in zip(("few", "many"), pair, strict=True)
    }
    row = {f"ppl, {c}, {how}": ppl(found, c) for c in CORPORA for how, found in every.items()}
    means = {how: spread(accuracies(found, tasks)) for how, found in every.items()}
    return row | {f"accuracy, {how}": mean for how, mean in means.items()}


# Stored prunings against one another --------------------------------------------------------------
SETTINGS = {  # (share, tuned) by the words for it
    f"{share:.0%}{', tuned' if tuned else ''}": (share, tuned)
    for tuned in (False, True)
    for share in (0.2, 0.5)
}


def against(
    outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned], first: str, corpus: str
) -> pd.DataFrame:
    """Every other method's perplexity over the first's, window by window.

    Losses of a window are averaged over the seeds; the interval is over the windows (95%).
    """
    rows = {
        method.title: {
            words: _ratio(
                seeds(outcomes, runs, method.name, *setting),
                seeds(outcomes, runs, first, *setting),
                corpus,
            )
            for words, setting in SETTINGS.items()
        }
        for method in declared.methods
        if method.name != first
    }
    return pd.DataFrame(rows).T.rename_axis("method")


def _ratio(every: Sequence[Bundle], first: Sequence[Bundle], corpus: str) -> str:
    pair = [windows(found, corpus) for found in (every, first)]
    if any(losses is None for losses in pair):
        return MISSING
    gaps = pair[0] - pair[1]
    reach = COVERED * gaps.std(ddof=1) / math.sqrt(len(gaps))
    ends = (three_digits(math.exp(gaps.mean() + sign * reach)) for sign in (0, -1, 1))
    return "{}<br>[{}, {}]".format(*ends)


def windows(every: Sequence[Bundle], corpus: str) -> np.ndarray | None:
    """(windows,) losses, averaged over the seeds."""
    found = [c.values for c in (measured_cell(bundle, corpus) for bundle in every) if c]
    return np.mean(found, axis=0) if found else None


def summary(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned], first: str) -> str:
    """A line a setting: which place the first method's perplexity has, and whose is the lowest."""
    lines = []
    for words, setting in SETTINGS.items():
        places = [_place(outcomes, declared, runs, first, setting, c) for c in CORPORA]
        lines.append(f"- {words}: {'; '.join(places)}.")
    return "\n".join(lines)


def _place(
    outcomes: Outcomes,
    declared: Grid,
    runs: Mapping[str, Planned],
    first: str,
    setting: tuple[float, bool],
    corpus: str,
) -> str:
    found = {
        m.title: statistics.geometric_mean(known)
        for m in declared.methods
        if (known := values(seeds(outcomes, runs, m.name, *setting), corpus))
    }
    title, order = declared.titles()[first], sorted(found, key=found.get)
    if title not in found:
        return f"on {corpus} {MISSING}"
    told = f"on {corpus} {title}, {three_digits(found[title])}, is "
    told += f"number {order.index(title) + 1} of {len(order)}"
    lowest = f", the lowest is {order[0]}, {three_digits(found[order[0]])}"
    return told if order[0] == title else told + lowest


# Stored prunings against one another --------------------------------------------------------------
Model = Sequence  # [method, share, tuned], as experiments/pruning/grid.yaml has them
ModelPair = tuple[tuple, tuple, str]  # two models and a measure
ACCURACY = "accuracy"  # a measure beside the corpora: the rows of all averaged tasks


class Gap(NamedTuple):
    """What one model has more than another."""

    values: np.ndarray  # (windows,) or (rows,), averaged over the seeds
    seeds: np.ndarray  # (pairs,) means, of every seed of one against every seed of the other
    counts: tuple[int, int]  # seeds of either

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
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
    outcomes: Outcomes,
    runs: Mapping[str, Planned],
    one: Model,
    two: Model,
    measure: str,
    declared: Grid | None = None,
) -> Gap | None:
    """One's values minus two's; None where one is not measured. A loss: the log of a perplexity."""
    both = [gap_values(outcomes, runs, model, measure, declared or grid()) for model in (one, two)]
    if any(found is None for found in both):
        return None
    first, second = both
    pairs = [a.mean() - b.mean() for a, b in product(first, second)]
    return Gap(first.mean(0) - second.mean(0), np.array(pairs), (len(first), len(second)))


def clear(gaps: Mapping[ModelPair, Gap]) -> dict[ModelPair, Gap]:
    """Those with p < 0.05 after Holm's correction whose seeds, every pair, agree on the sign."""
    corrected = holm_of({place: found.p for place, found in gaps.items()})
    return {place: g for place, g in gaps.items() if corrected[place] < LEVEL and g.alike}


def gap_values(
    outcomes: Outcomes,
    runs: Mapping[str, Planned],
    model: Model,
    measure: str,
    declared: Grid,
) -> np.ndarray | None:
    """(seeds, windows or rows); None unless every declared seed is measured.

    A part of the seeds may agree where all would not.
    """
    wanted = declared.averaged if measure == ACCURACY else (measure,)
    asked = planned(runs, *model)
    found = [_of_one(outcomes[run.name], wanted) for run in asked if run.name in outcomes]
    known = [row for row in found if row]
    return np.array(known) if known and len(known) == len(asked) else None


def _of_one(bundle: Bundle, wanted: Sequence[str]) -> list[float]:
    """Losses of windows, or of several tasks' rows together; empty where one is missing."""
    cells = [measured_cell(bundle, one) for one in wanted]
    return [v for cell in cells for v in cell.values] if all(cells) else []


# What the stored prunings come to -----------------------------------------------------------------
OURS, RELEASED = "lora-guided", "lora-guided-released"
WHOLE = 0.5, True  # where its parts are taken away one by one
LOWER, HIGHER, NEITHER = "lower", "higher", "not surely either"
WORDS = (LOWER, HIGHER, NEITHER, MISSING)
Both = tuple[Gap | None, ...]  # of either corpus


def told(outcomes: Outcomes, declared: Grid, runs: Mapping[str, Planned]) -> str:
    """A list: what tuning does, which criteria keep more than LoRAPrune, what its parts do."""
    known = partial(_both, outcomes, runs, declared)
    parts = (_tuning, _criteria, _parts)
    return "\n".join(f"- {line}" for part in parts for line in part(declared, known))


def _both(
    outcomes: Outcomes, runs: Mapping[str, Planned], declared: Grid, one: Model, two: Model
) -> Both:
    return tuple(gap(outcomes, runs, one, two, corpus, declared) for corpus in CORPORA)


def _tuning(declared: Grid, known) -> Iterator[str]:
    for share in sorted({share for share, _ in SETTINGS.values()}):
        found = {
            m.title: known((m.name, share, True), (m.name, share, False)) for m in declared.methods
        }
        yield f"**Tuning, {share:.0%}**, perplexity beside that without it, {_sorted(found)}"


def _criteria(declared: Grid, known) -> Iterator[str]:
    title = declared.titles()[OURS]
    others = [m for m in declared.methods if m.name not in (OURS, RELEASED)]
    for words, setting in SETTINGS.items():
        found = {m.title: known((m.name, *setting), (OURS, *setting)) for m in others}
        words = words if setting[1] else f"{words}, not tuned"
        yield f"**{words}**, perplexity beside {title}'s, {_sorted(found)}"


def _parts(declared: Grid, known) -> Iterator[str]:
    beside = "perplexity beside that of the printed one"
    found = {w: known((RELEASED, *s), (OURS, *s)) for w, s in SETTINGS.items()}
    yield f"**The released reduction**, {beside}, {_sorted(found)}"
    title = declared.titles()[OURS]
    otherwise = "otherwise (of which the recipe removes less)"
    for words, changed in (("without a part", declared.ablations), (otherwise, declared.variants)):
        found = {m.title: known((m.name, *WHOLE), (OURS, *WHOLE)) for m in changed}
        yield f"**{title} {words}, 50%, tuned**, perplexity beside it, {_sorted(found)}"


def verdicts(found: Mapping[str, Both]) -> dict[str, str]:
    """LOWER, HIGHER, NEITHER or MISSING by name, of tests that are corrected together."""
    there = {name: both for name, both in found.items() if None not in both}
    sure = clear({(name, i): one for name, both in there.items() for i, one in enumerate(both)})
    words = {name: _verdict([sure.get((name, i)) for i, _ in enumerate(CORPORA)]) for name in there}
    return {name: words.get(name, MISSING) for name in found}


def _verdict(both: list[Gap | None]) -> str:
    """Of the gaps that are clear, None for one that is not."""
    signs = {one and one.mean > 0 for one in both}
    return {frozenset({False}): LOWER, frozenset({True}): HIGHER}.get(frozenset(signs), NEITHER)


def _sorted(found: Mapping[str, Both]) -> str:
    """Names by how the first of each two compares with the second, and how many runs they are."""
    runs = {name: _runs(both[0]) for name, both in found.items() if both[0]}
    alike = len(runs) == len(found) and len(set(runs.values())) == 1
    named: dict[str, list[str]] = {}
    for name, word in verdicts(found).items():
        own = f"{name} ({runs[name]})" if name in runs and not alike else name
        named.setdefault(word, []).append(own)
    told = ". ".join(f"*{word}*: {'; '.join(named[word])}" for word in WORDS if word in named)
    return f"{told} ({next(iter(runs.values()))})." if alike else f"{told}."


def _runs(found: Gap) -> str:
    """How many runs stand behind either side."""
    first, second = found.counts
    return f"{first} run{'s' * (first != 1)} against {second}"
