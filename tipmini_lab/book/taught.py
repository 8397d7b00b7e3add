"""Merges that are learnt of their adapters' answers: of how much, how far, and what they keep."""

from collections.abc import Mapping

import pandas as pd

from tipmini_lab.book import frontier
from tipmini_lab.book.tables import EMPTY, TITLES, Titles, estimate, narrow, share
from tipmini_lab.experiments.catalogue import Catalogue
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import store
from tipmini_lab.results.retention import MEAN, retention
from tipmini_lab.results.runs import duration, gigabytes
from tipmini_lab.results.statistics import mean_of

GROUP = "distilled"


def examples(name: str, lab: Lab) -> int:
    """How many a variant is learnt of, over all tasks."""
    merge = lab.experiment(name)
    recipe = lab.distill_recipe(merge)
    return sum(recipe.split(task, task)[1] for task in merge.tasks)


def measured(known: Catalogue, rows: pd.DataFrame, profile: Profile) -> dict[str, dict]:
    """{variant: its facts} of those that all tasks of a profile are evaluated with, as declared."""
    facts = store.facts(profile.variant_store)
    names = [name for name in known.names(GROUP, profile) if name in facts]
    return {name: facts[name] for name in names if mean_of(rows, name, profile.tasks)}


def lowest(known: Catalogue, rows: pd.DataFrame, profile: Profile, rank: int = 64) -> str | None:
    """The variant of the lowest R on its examples to stop by, among those that are measured, start
    from a merge, read no labels and are of no higher rank; None where there is none."""
    found = {
        name: min(facts["R"])
        for name, facts in measured(known, rows, profile).items()
        if frontier.kind(known.variant(name)) == frontier.UNLABELLED and facts["rank"] <= rank
    }
    return min(found, key=found.get, default=None)


def table(
    known: Catalogue,
    found: Mapping[str, Mapping],
    titles: Titles,
    rows: pd.DataFrame,
    lab: Lab,
    everything: pd.DataFrame,
    full: Profile,
) -> pd.DataFrame:
    """A row a variant of `measured`.

    rows: of the lab's profile. everything: those of `full`.
    """
    lines = {}
    for name, facts in found.items():
        kept = retention(everything, name, full.tasks).get(MEAN)
        scores = facts["R"]
        lines[narrow(titles.get(name, name), 24)] = {
            "mean accuracy": estimate(mean_of(rows, name, lab.profile.tasks)).replace(
                " ± ", "<br>± "
            ),
            f"retention,<br>{full.name}": share(kept) if kept else EMPTY,
            "R": f"{scores[0]:.2f}<br>to {min(scores):.2f}",
            "examples,<br>steps": f"{examples(name, lab):,}<br>{facts['steps']:,.0f}",
            "rank": f"{facts['rank']:.0f}",
            "time,<br>memory": "<br>".join(
                [
                    duration(frontier.cost(name, known.variant(name), facts, lab.profile)[1]),
                    gigabytes(facts["memory"]) if "memory" in facts else EMPTY,
                ]
            ),
        }
    return pd.DataFrame(lines).T.rename_axis("merge")


def by_task(found: Mapping[str, Mapping], titles: Titles, lab: Lab) -> pd.DataFrame:
    """R of every task on its examples to stop by, where their mean, in which a task may count less,
    is lowest: a row a variant."""
    lines = {}
    for name, facts in found.items():
        merge = lab.experiment(name)
        floor = merge.variant.distill.floor
        parts = zip(merge.tasks, facts["left"], facts["base"], strict=True)
        lines[narrow(titles.get(name, name), 24)] = {
            TITLES[task]: f"{left / max(base, floor):.2f}" for task, left, base in parts
        }
    return pd.DataFrame(lines).T.rename_axis("merge")
