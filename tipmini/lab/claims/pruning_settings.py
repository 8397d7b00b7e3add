"""Checks of LoRAPrune's settings: whether this book prunes, times and counts as the paper does."""

from collections.abc import Mapping, Sequence

import torch

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.lab.claims.pruned_words import PROFILE
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning import memory
from tipmini.lab.pruning.declared import grid
from tipmini.loraprune import lora_gradient, threshold_mask

NOTHING = "No pruned model is stored yet."


def pruning_has(evidence: Evidence, *, setting: str, value: object) -> Finding:
    """Whether a setting of the runs that prune while they are fine-tuned is the paper's."""
    if not evidence.prunings:
        return not_run(evidence, note=NOTHING)
    own = getattr(grid().size(PROFILE).recipe(tuned=True), setting)
    value = tuple(value) if isinstance(own, tuple) else value
    return _compared(setting, own, value, "Read from the declared prunings.")


def bench_has(evidence: Evidence, *, part: str, setting: str, value: int) -> Finding:
    """Whether a part of the bench, as it is stored, has the paper's number of something."""
    stored = evidence.benched.get(part, {})
    found = {own[setting] for own in [stored, *_passes(stored)] if setting in own}
    if len(found) != 1:
        return not_run(evidence, note="This part of the bench has not one number of it.")
    return _compared(setting, found.pop(), value, "Read from the bench.")


def _passes(stored: Mapping) -> list[dict]:
    """What was timed of pruned models, with the number of times."""
    return [entry | {"rounds": len(entry["seconds"])} for entry in stored.get("inference", [])]


def _compared(setting: str, own: object, value: object, words: str) -> Finding:
    verdict = Verdict.SAME_SETTING if own == value else Verdict.OTHER_SETTING
    return Finding(verdict, f"{setting.replace('_', ' ')}: {_plain(own)}", words)


def _plain(own: object) -> str:
    if isinstance(own, tuple):
        return ", ".join(own)
    return f"{own:g}" if isinstance(own, float) else str(own)


def scores_tasks(evidence: Evidence, *, tasks: Sequence[str]) -> Finding:
    """Whether pruned models are scored on these tasks."""
    if not evidence.prunings:
        return not_run(evidence, note=NOTHING)
    missing = sorted(set(tasks) - set(grid().tasks))
    shown = f"{len(tasks) - len(missing)} of {len(tasks)} tasks"
    verdict = Verdict.OTHER_SETTING if missing else Verdict.SAME_SETTING
    return Finding(verdict, shown, "Scored without examples in the prompt, on fewer rows.")


def is_pruned(evidence: Evidence, *, method: str) -> Finding:
    """Whether models of a declared method are stored."""
    found = [name for name in evidence.prunings if name.startswith(f"{method}-")]
    if not found:
        return not_run(evidence, note=NOTHING)
    title = grid().titles()[method]
    return Finding(Verdict.SAME_SETTING, f"{len(found)} models", f"{title}: pruned and scored.")


def mask_is_binary(evidence: Evidence) -> Finding:
    """Whether Eq. 12's function gives one boolean for each group."""
    mask = threshold_mask(torch.arange(5.0), 2.0)
    alike = mask.dtype == torch.bool and mask.shape == (5,)
    verdict = Verdict.SAME_SETTING if alike else Verdict.OTHER_SETTING
    return Finding(verdict, "one boolean a group", "The function of Eq. 12, on drawn importances.")


# Counted from shapes ------------------------------------------------------------------------


def keeps_beside(evidence: Evidence, *, method: str, least: float, rank: int = 8) -> Finding:
    """Whether a method keeps, in order to prune, at least so many times the weights' bytes."""
    need, ours = (
        next(n for n in memory.NEEDS if n.title == title) for title in (method, "LoRAPrune")
    )
    shapes = (memory.LLAMA_7B, memory.LLAMA_65B)
    enough = all(need.count(s, rank) >= least * memory.WIDTH * s.weights for s in shapes)
    told = [
        f"{s.name}: {method} {memory.size(need.count(s, rank))}, "
        f"LoRAPrune {memory.size(ours.count(s, rank))}"
        for s in shapes
    ]
    verdict = Verdict.HOLDS if enough else Verdict.DOES_NOT_HOLD
    asked = f"Asked for: {least:g} times the weights' own bytes."
    return Finding(
        verdict, "; ".join(told), f"Counted from shapes, as in this book's Table 1. {asked}"
    )


def gradient_of_product_is_as_large(evidence: Evidence, *, rank: int = 8) -> Finding:
    """Whether the gradient of BA, Eq. 9, has as many numbers as that of W, in every matrix."""
    shape = memory.LLAMA_7B
    found = shape.layers * sum(_product(d, k, rank).numel() for d, k in shape.modules)
    of_ba, of_w, of_factors = (
        memory.size(memory.WIDTH * n) for n in (found, shape.weights, shape.factors(rank))
    )
    verdict = Verdict.HOLDS if found == shape.weights else Verdict.DOES_NOT_HOLD
    told = f"{shape.name}: gradient of BA {of_ba}, of W {of_w}; of A and B {of_factors}"
    return Finding(verdict, told, "Counted from what the function of Eq. 9 gives.")


def _product(d: int, k: int, rank: int) -> torch.Tensor:
    a, b = (torch.empty(shape, device="meta") for shape in ((rank, k), (d, rank)))
    return lora_gradient(a, b, a, b)


CHECKS = (
    *(pruning_has, bench_has, scores_tasks, is_pruned, mask_is_binary),
    *(keeps_beside, gradient_of_product_is_as_large),
)
