"""Real tensors for the chapter on the equations: gradients of one module, weights in blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tipmini.base_folder import open_base
from tipmini.criteria import Signals, semi_structured_mask
from tipmini.groups import CHANNELS, HEADS, Family
from tipmini.lab import objective
from tipmini.lab.experiments import Lab
from tipmini.lab.model import load_base
from tipmini.lab.pruning import scoring, texts, work

BLOCK = 16  # weights a side that one cell of a picture averages

Parts = dict[str, list[tuple[str, Tensor, int, tuple[int, int]]]]


def observed(lab: Lab, task: str, module: str, rows: int = 8, length: int = 64) -> Signals:
    """What criteria read of a module: its weight, the task's adapter, and all their gradients.

    Of the mean loss of some train rows of the task, in float32. The module must be one that the
    adapter adapts.
    """
    from peft import PeftModel

    base = load_base(lab.model_path, "float32", attention="eager")
    worn = PeftModel.from_pretrained(base, lab.adapter_path(task), is_trainable=True)
    layer = worn.get_base_model().get_submodule(module)
    scoring.base_layer(layer).weight.requires_grad_(True)
    group = texts.examples([task], rows, length, lab.tokenizer)
    objective.losses(worn.get_base_model(), group).mean().backward()
    return scoring.signals_of(layer)


def pruned_sums(
    weight: Tensor, product: Tensor, kept: Tensor, window: tuple[slice, slice]
) -> Mapping[str, Mapping[str, Tensor]]:
    """A window of W, of sBA and of their sum, pruned 2:4 and by groups; see `merged_sparsities`.

    kept: (count,) bool, the groups of rows that stay.
    """
    sparse = torch.where(semi_structured_mask(weight.abs()), weight, 0)
    rows = kept.repeat_interleave(len(weight) // len(kept))[:, None]
    pictures = {
        "2:4 zeros": (sparse, product),
        "a group of heads": (weight * rows, product * rows),
    }
    return {
        way: {"W pruned": w[window], "sBA": ba[window], "merged": (w + ba)[window]}
        for way, (w, ba) in pictures.items()
    }


def dependency_parts(base: Path, layer: int, chosen: Mapping[str, int]) -> Parts:
    """The modules of a layer and the rows or columns of one group of each kind; see
    `figures.dependencies`. chosen: {kind: number of the group}."""
    opened = open_base(base)
    families = [f for f in work.families_of(opened) if f.layer == layer]
    titles = {HEADS: "a group of heads", CHANNELS: "a channel of the MLP"}
    return {
        f"{titles[f.kind]}: {f.size:,} weights, one of {f.count:,}": [
            (_short(m.module), averaged(weight.abs()), m.dim, _span(f, weight, m.dim, chosen))
            for m in f.members
            for weight in [opened.files[f"{m.module}.weight"][f"{m.module}.weight"]]
        ]
        for f in families
    }


def _short(module: str) -> str:
    return module.rpartition(".")[2].removesuffix("_proj")


def _span(family: Family, weight: Tensor, dim: int, chosen: Mapping[str, int]) -> tuple[int, int]:
    size, group = weight.shape[dim] // family.count, chosen[family.kind]
    return group * size, (group + 1) * size


def averaged(weight: Tensor, block: int = BLOCK) -> Tensor:
    """(d, k) -> (d / block, k / block) means of square blocks; what does not fill one is left."""
    d, k = (n // block for n in weight.shape)
    return weight[: d * block, : k * block].float().view(d, block, k, block).mean((1, 3))


def shares(importances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each criterion's importances of groups, as shares of their sum: only the order counts."""
    return {name: found / found.sum() for name, found in importances.items()}


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of all elements."""
    from scipy.stats import spearmanr

    return float(spearmanr(first.flatten(), second.flatten()).statistic)


def middle(modules: Sequence[str]) -> str:
    """A module from the middle of the model."""
    return modules[len(modules) // 2]
