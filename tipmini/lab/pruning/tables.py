"""Tables of the pruned models, from stored cells alone; where there is none, they say so."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from tipmini.lab import bundles, paths
from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.results import Cell, in_one_format
from tipmini.lab.statistics import COVERED, MISSING

CORPUS_TITLES = {"wikipedia": "Wikipedia passages (of BoolQ)", "books": "books (LAMBADA)"}
TASK_TITLES = {
    **{"arc_challenge": "ARC-C", "arc_easy": "ARC-E", "boolq": "BoolQ"},
    **{"hellaswag": "Hella-<br>Swag", "openbookqa": "OBQA", "piqa": "PIQA"},
    "winogrande": "Wino-<br>Grande",
}
PRINTED = {"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune"}
PRINTED |= {"loraprune_8bit": "LoRAPrune, 8 bits"}

Outcomes = Mapping[str, Bundle]  # by name of the run


def read(store: Path) -> dict[str, Bundle]:
    """Whatever is stored, in one number format; nothing is measured."""
    found = {name: bundles.read(store, name) for name in bundles.names(store)}
    every = {name: bundle for name, bundle in found.items() if bundle}
    in_one_format({(name, c.task): c for name, bundle in every.items() for c in bundle.cells})
    return every


def cell(bundle: Bundle, measure: str) -> Cell | None:
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
    found = [c for c in (cell(bundle, measure) for bundle in every) if c]
    return [perplexity(c)[0] if measure in CORPORA else c.mean for c in found]


def accuracies(every: Sequence[Bundle], tasks: Sequence[str]) -> list[float]:
    """One mean over the tasks a seed, where all were scored."""
    means = [[c.mean for t in tasks if (c := cell(bundle, t))] for bundle in every]
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
