"""What the explorer of prunings shows: every stored model, its seeds together, with intervals."""

import math
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini_lab.book import figures, pruning_figures, pruning_tables
from tipmini_lab.book.pruning_tables import ACCURACY, FACTS, MODEL, OURS
from tipmini_lab.evaluation.documents import KNOWN
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments import declared
from tipmini_lab.experiments.declared import Grid
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import COVERED

DRAWN = (OURS, "wanda", "magnitude")  # by the picture without scripts


@cache
def pruning() -> dict:
    """Perplexities, accuracies and sizes of the models that are pruned to a ratio."""
    profile, grid = load_profile("mini"), declared.grid()
    rows, scores = _frames()
    models = [_model(own, scores, grid) for _, own in rows.groupby(MODEL, sort=False)]
    steps = {"none": 0}
    for name, longer in (("short", False), ("long", True)):
        recipe = grid.size(profile.name).recipe(tuned=True, longer=longer)
        steps[name] = len(recipe.batches(recipe.rows))
    return {
        "profile": profile.name,
        "corpora": list(CORPORA),
        "tasks": {task: KNOWN[task].title for task in grid.tasks},
        "averaged": list(grid.averaged),
        "steps": steps,
        "criteria": {
            one.name: {"title": one.title, "colour": figures.colour_of(one.title) or figures.BLUE}
            for one in grid.every_method
            if any(model["criterion"] == one.name and model["ratio"] for model in models)
        },
        "unpruned": "base",
        "start": {"criterion": OURS, "beside": "wanda"},
        "models": models,
    }


def _frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and scores of what is stored of the declared criteria, and of the unpruned model."""
    profile, grid = load_profile("mini"), declared.grid()
    outcomes, runs = pruning_tables.read(profile.pruning_store), grid.runs(profile.name)
    rows, scores = pruning_tables.frames(outcomes, runs, grid)
    known = ["base", *(one.name for one in grid.every_method)]
    return rows[rows.method.isin(known)], scores[scores.method.isin(known) & scores.stored]


def _model(rows: pd.DataFrame, scores: pd.DataFrame, grid: Grid) -> dict:
    """One model. Values are of its seeds' mean on each window or row, their errors over these."""
    first = rows.iloc[0]
    own = scores.loc[rows.variant.unique()].sort_values("seed")
    by = rows.groupby(["task", "row"], observed=True)["value"].mean().groupby("task", observed=True)
    values = pd.DataFrame({"mean": by.mean(), "error": by.sem()})
    accuracy = {task: _rounded(*values.loc[task]) for task in grid.tasks if task in values.index}
    sizes = {name: None if np.isnan(v := own[name].mean()) else round(v, 4) for name in FACTS}
    return {
        "criterion": first.method,
        "ratio": round(float(first.share), 4),
        "steps": "long" if first.longer else "short" if first.tuned else "none",
        "seeds": own.seed.tolist(),
        "perplexity": {corpus: _perplexity(*values.loc[corpus]) for corpus in CORPORA},
        "of_seeds": {name: _rounded(*own[name].dropna()) for name in (*CORPORA, ACCURACY)},
        "accuracy": accuracy,
        **sizes,
    }


def _perplexity(loss: float, error: float) -> list[float]:
    """exp of the mean loss, and of its 95% interval over the windows."""
    return _rounded(*(math.exp(loss + side * COVERED * error) for side in (0, -1, 1)))


def _rounded(*values: float) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def picture() -> Figure:
    """Perplexities by ratio, as in the chapter, of three criteria."""
    rows, _ = _frames()
    titles = declared.grid().titles()
    wanted = {
        f"{titles[name]}{', fine-tuned' * tuned}": (name, tuned)
        for tuned in (False, True)
        for name in DRAWN
    }
    shown = {c: pruning_tables.lines(rows, wanted, c) for c in CORPORA}
    return pruning_figures.perplexities(shown, {})
