"""Tables of LoRAPrune without a part, otherwise than it is taken here, and tuned for longer."""

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning.declared import Grid, Planned, run_name
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.pruning.tables import Outcomes, accuracies, perplexities, ppl, seeds, spread
from tipmini.lab.statistics import MISSING


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
