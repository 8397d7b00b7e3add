"""What is removed: real tensors for the equations, and the masks of whole runs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from tipmini.methods import pruner
from tipmini.methods.criteria import Signals
from tipmini.methods.groups import CHANNELS, HEADS
from tipmini.methods.pruner import load_masks
from tipmini.models.base_folder import open_base
from tipmini_lab.book.pruning_tables import formatted
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import load_base
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.declared import Grid, Planned
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.results import checked
from tipmini_lab.results import store as storage

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
    pruner.base_layer(layer).weight.requires_grad_(True)
    group = objective.plain_examples([task], rows, length, lab.tokenizer)
    objective.losses(worn.get_base_model(), group).mean().backward()
    return pruner.signals_of(layer)


def dependency_parts(base: Path, layer: int, chosen: Mapping[str, int]) -> Parts:
    """The modules of a layer and the rows or columns of one group of each kind; see
    `figures.dependencies`. chosen: {kind: number of the group}."""
    opened, found = open_base(base), {}
    titles = {HEADS: "a group of heads", CHANNELS: "a channel of the MLP"}
    for family in (f for f in pruning.families_of(opened) if f.layer == layer):
        kind = f"{titles[family.kind]}: {family.size:,} weights, one of {family.count:,}"
        for m in family.members:
            weight = opened.files[f"{m.module}.weight"][f"{m.module}.weight"]
            size, group = weight.shape[m.dim] // family.count, chosen[family.kind]
            name = m.module.rpartition(".")[2].removesuffix("_proj")
            part = (name, averaged(weight.abs()), m.dim, (group * size, (group + 1) * size))
            found.setdefault(kind, []).append(part)
    return found


def averaged(weight: Tensor, block: int = BLOCK) -> Tensor:
    """(d, k) -> (d / block, k / block) means of square blocks; what does not fill one is left."""
    d, k = (n // block for n in weight.shape)
    return weight[: d * block, : k * block].float().view(d, block, k, block).mean((1, 3))


# How far whole runs remove the same groups --------------------------------------------------------
VANILLA = "vanilla"
OF_KIND = {HEADS: ".self_attn", CHANNELS: ".mlp"}  # how the families of a kind are named
ONE_SEED = "-"
SETTING = ["method", "kind", "share", "tuned"]
SHOWN = [
    (k, s, t) for t in (False, True) for k, s in ((CHANNELS, 0.2), (CHANNELS, 0.5), (HEADS, 0.5))
]


def read(store: Path, runs: Mapping[str, Planned]) -> pd.DataFrame:
    """A line a stored run and kind of group: `SETTING`, seed, gone (layers, groups) bool."""
    lines, stored = [], storage.names(store)
    for run in runs.values():
        file = store / "masks" / f"{run.name}.safetensors"
        if run.name in stored and checked.is_whole(file) and run.share and not run.longer:
            masks = load_masks(file)
            for kind, end in OF_KIND.items():
                gone = np.stack([~m.numpy() for name, m in masks.items() if name.endswith(end)])
                lines.append((run.method, kind, run.share, run.tuned, run.recipe.seed, gone))
    return pd.DataFrame(lines, columns=[*SETTING, "seed", "gone"])


def both_gone(first: np.ndarray, second: np.ndarray) -> float:
    """Of the groups that the first run removed, the share that the second did; NaN of none."""
    return (first & second).sum() / first.sum() if first.any() else np.nan


def by_chance(gone: np.ndarray) -> float:
    """`both_gone` of two masks with as many groups gone in each layer, drawn independently."""
    removed = gone.sum(1)
    return (removed**2 / gone.shape[1]).sum() / removed.sum() if removed.any() else np.nan


def beside_vanilla(kept: pd.DataFrame, declared: Grid) -> pd.DataFrame:
    """Of what the vanilla criterion's run removed, what each criterion's run removed as well.

    Runs of the same seed where there are any, else every pair; means over the pairs. An untuned
    run that is alone is drawn from nothing: it is of any seed.
    """
    first, others = (kept[(kept.method == VANILLA) == own] for own in (True, False))
    pairs = first.drop(columns="method").merge(others, on=SETTING[1:], suffixes=("_first", ""))
    by = pairs.groupby(SETTING)
    several = (by[["seed", "seed_first"]].transform("nunique") > 1).all(axis="columns")
    pairs["same"] = (pairs.seed == pairs.seed_first) & (several | pairs.tuned.astype(bool))
    chosen = pairs[pairs.same | ~by["same"].transform("any")]
    chance = first.assign(both=first.gone.map(by_chance), method="expected at random")
    rows = {m.name: m.title for m in declared.methods if m.name != VANILLA}
    both = pd.concat([_with_both(chosen), chance])
    return formatted(_wide(both, rows | {"expected at random": "expected at random"}), "{:.1%}")


def between_seeds(kept: pd.DataFrame, declared: Grid) -> pd.DataFrame:
    """Of what a run removed, what the same run with another seed removed as well."""
    pairs = kept.merge(kept, on=SETTING, suffixes=("_first", ""))
    rows = {m.name: m.title for m in declared.methods}
    told = formatted(_wide(_with_both(pairs[pairs.seed_first < pairs.seed]), rows), "{:.1%}")
    return told.mask(_wide(kept.assign(both=1), rows, "sum") == 1, ONE_SEED)


def _with_both(pairs: pd.DataFrame) -> pd.DataFrame:
    both = [both_gone(a, b) for a, b in zip(pairs.gone_first, pairs.gone, strict=True)]
    return pairs.assign(both=np.array(both, float))


def _wide(values: pd.DataFrame, rows: Mapping[str, str], aggregate: str = "mean") -> pd.DataFrame:
    """Their column `both` by method and setting; rows: {method: title}."""
    found = values.groupby(SETTING)["both"].agg(aggregate).unstack(SETTING[1:])
    found = found.reindex(index=[*rows], columns=pd.MultiIndex.from_tuples(SHOWN))
    heads = [
        f"{kind}, {share:.0%}{', fine-tuned' if tuned else ''}" for kind, share, tuned in SHOWN
    ]
    return found.set_axis(heads, axis="columns").rename(rows).rename_axis("criterion")
