"""Tables of the chapters on TIP: guesses, Eq. 5 on layers, what a merge does, open points."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean

import pandas as pd
from lm_eval.api.task import ConfigurableTask
from torch import Tensor

import tipmini as tm
from tipmini.papers import lora
from tipmini.papers.dare import named_generator
from tipmini_lab.book.tables import TITLES, narrow, p_text, points, relative_size
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results.statistics import Pair


def by_chance(definition: ConfigurableTask) -> float | None:
    """Mean over the rows of one over the number of choices; None where the answer is written."""
    choices = [definition.doc_to_choice(doc) for doc in _choosing(definition)]
    return sum(1 / len(found) for found in choices) / len(choices) if choices else None


def same_answer(definition: ConfigurableTask) -> float | None:
    """Share of the most frequent right answer, such as yes; None where rows have their own."""
    rows = _choosing(definition)
    if len({tuple(definition.doc_to_choice(doc)) for doc in rows}) != 1:
        return None
    answers = Counter(definition.doc_to_target(doc) for doc in rows)
    return max(answers.values()) / answers.total()


def _choosing(definition: ConfigurableTask) -> list[dict]:
    chosen = definition.OUTPUT_TYPE == "multiple_choice"
    return list(definition.eval_docs) if chosen else []


# What the method does to layers and elements ------------------------------------------------------


def unbounded_sparsity(importance: Tensor, base_sparsity: float) -> Tensor:
    """S_l as Eq. 5 has it, before anything is done about values outside [0, 1]. (L,) to (L,)."""
    return base_sparsity + tm.sparsity_shift(tm.normalize_importance(importance))


def bounds_table(importances: Mapping[str, Tensor], base_sparsity: float) -> pd.DataFrame:
    """How many layers leave [0, 1] a task, what clipping does to the mean, who is pruned most."""
    lines = {}
    for task, importance in importances.items():
        written = unbounded_sparsity(importance, base_sparsity)
        clipped = written.clamp(0, 1)
        most, least = int(importance.argmax()), int(importance.argmin())
        lines[TITLES[task]] = {
            "most important layer": str(most),
            "its sparsity": f"{clipped[most]:.3f}",
            "least important layer": str(least),
            "its sparsity ": f"{clipped[least]:.3f}",
            "layers above 1": str(int((written > 1).sum())),
            "layers below 0": str(int((written < 0).sum())),
            "mean of Eq. 5": f"{written.mean():.3f}",
            "mean once clipped": f"{clipped.mean():.3f}",
        }
    return pd.DataFrame(lines).T.rename_axis("task")


def unbiasedness(weight: Tensor, drop_rate: float, draws: Iterable[int], seed: int) -> pd.DataFrame:
    """How far the mean of n dropped and rescaled copies is from the weight itself.

    Relative to the weight's norm; the expected square of it is p / ((1 - p) n).
    """
    total, lines, draws = weight * 0, {}, sorted(draws)
    for n in range(1, draws[-1] + 1):
        generator = named_generator(seed, "draw", str(n))
        total = total + tm.dare(weight, drop_rate, generator=generator)
        if n in draws:
            found = ((total / n - weight).norm() / weight.norm()).item()
            expected = math.sqrt(drop_rate / (1 - drop_rate) / n)
            lines[n] = {"measured error": f"{found:.4f}", "expected": f"{expected:.4f}"}
    return pd.DataFrame(lines).T.rename_axis("copies averaged")


def norm_ratios(merged: Mapping[str, tm.LoraAdapter], exact: tm.LoraAdapter) -> pd.DataFrame:
    """Each merge beside the exact sum of the deltas, over all modules (Frobenius norms)."""
    whole = norm(exact.delta(module) for module in exact.modules)
    lines = {}
    for method, adapter in merged.items():
        size = norm(adapter.delta(m) for m in exact.modules)
        error = norm(adapter.delta(m) - exact.delta(m) for m in exact.modules)
        lines[TITLES.get(method, method)] = {
            "‖merged‖ / ‖sum‖": f"{size / whole:.3f}",
            "‖merged − sum‖ / ‖sum‖": f"{error / whole:.3f}",
        }
    return pd.DataFrame(lines).T.rename_axis("merge")


def norm(matrices: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(matrix.double().square().sum().item() for matrix in matrices))


def overlaps(adapters: Sequence[tm.LoraAdapter]) -> dict[str, float]:
    """How far the rows of two adapters' A lie in one another's space, and the columns of their B:
    LoRA Eq. 5 at the whole rank, means over pairs and modules."""
    found: dict[str, list[float]] = {"A": [], "B": []}
    for module in adapters[0].modules:
        pairs = [adapter.factors[module] for adapter in adapters]
        for name, own in {"A": [p.a for p in pairs], "B": [p.b.T for p in pairs]}.items():
            every = [lora.directions(matrix.double()) for matrix in own]
            both = combinations(every, 2)
            found[name] += [lora.subspace_similarity(*pair)[-1, -1].item() for pair in both]
    return {name: fmean(own) for name, own in found.items()}


def cross_terms(adapters: Mapping[str, tm.LoraAdapter]) -> pd.DataFrame:
    """The error of adding factors instead of updates, for the first 2, 3, ... adapters."""
    lines, chosen = {}, {}
    for name, adapter in adapters.items():
        chosen[name] = adapter
        ratios = norm_ratios({"linear": tm.merge(chosen, "linear")}, tm.merge(chosen, "cat"))
        lines[len(chosen)] = {"added last": TITLES.get(name, name)} | ratios.iloc[0].to_dict()
    return pd.DataFrame(lines).T.rename_axis("adapters")


def pruned_shares(
    pruned: Mapping[str, tm.LoraAdapter], asked: Mapping[str, Tensor]
) -> pd.DataFrame:
    """The share of zeros in all A and in all B of each adapter, beside the mean share asked for."""
    lines = {}
    for task, adapter in pruned.items():
        factors = list(adapter.factors.values())
        lines[TITLES[task]] = {
            "requested sparsity, mean of layers": asked[task].mean().item(),
            "sparsity of A": _zeros([pair.a for pair in factors]),
            "sparsity of B": _zeros([pair.b for pair in factors]),
        }
    return pd.DataFrame(lines).T.map("{:.3f}".format).rename_axis("task")


def _zeros(matrices: list[Tensor]) -> float:
    return sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)


# The ambiguity ledger -----------------------------------------------------------------------------


def settled(declared: Iterable) -> pd.DataFrame:
    """How every declared point is settled wherever it is not the one that is varied."""
    lines = {
        p.point: {
            "open point": narrow(p.question, 44),
            "our reading": narrow(p.ours + (f" ({p.note.strip()})" if p.note else ""), 44),
        }
        for p in sorted(declared, key=lambda point: point.point)
    }
    return pd.DataFrame(lines).T.rename_axis("#")


def ledger_pairs(declared: Iterable, variants: Mapping, profile: Profile) -> list[Pair]:
    """Every reading and what it is held against: all other points are settled alike.

    Where fewer adapters are merged, only their tasks are compared. declared: `Group.points` of the
    ledger's file; variants: `Catalogue.variants`.
    """
    pairs = []
    for _, reading in _readings(declared):
        both = (reading.name, reading.against)
        known = [variants[name].tasks(profile.tasks) for name in both]
        tasks = tuple(task for task in profile.tasks if all(task in own for own in known))
        pairs.append(Pair(*both, tasks))
    return pairs


def _readings(declared: Iterable) -> list[tuple]:
    """(point, reading), in the order of the points."""
    ordered = sorted(declared, key=lambda point: point.point)
    return [(point, reading) for point in ordered for reading in point.readings]


def ledger(declared: Iterable, found: pd.DataFrame) -> pd.DataFrame:
    """What was found of each of `ledger_pairs`, with its point, question and reading before it."""
    places = [(point.point, point.question, r.option) for point, r in _readings(declared)]
    where = pd.DataFrame(places, columns=["point", "question", "reading"])
    return pd.concat([where, found], axis=1)


def ledger_table(found: pd.DataFrame, facts: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Every reading minus the one it is held against.

    facts: {variant: `merging.sizes` of its merge}, for a column of the merges' sizes.
    """
    columns = {
        "open point": [narrow(text, 17) for text in found.question],
        "points": [points(one) for one in found.itertuples()],
        "reading": [narrow(text, 17) for text in found.reading],
        "measured at": list(found.profile),
        "p": [p_text(p) for p in found.corrected],
        "verdict": [narrow(verdict, 8) for verdict in found.verdict],
        "size": [relative_size(facts.get(name)) for name in found.name],
    }
    return pd.DataFrame(columns, index=pd.Index(found.point, name="#"))
