"""What is removed: real tensors for the equations, masks of whole runs, Figure 3's lines."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tipmini.methods import pruner
from tipmini.methods.criteria import Signals, semi_structured_mask
from tipmini.methods.groups import CHANNELS, HEADS, Family
from tipmini.methods.pruner import Masks, load_masks
from tipmini.models.base_folder import open_base
from tipmini_lab.book.pruning_tables import UNPRUNED, Outcomes, perplexity, seeds, windows
from tipmini_lab.book.pruning_tables import measured_cell as cell
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import load_base
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.declared import Grid, Planned
from tipmini_lab.experiments.experiment import Lab
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import COVERED, MISSING
from tipmini_lab.results.store import Bundle

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
    families = [f for f in pruning.families_of(opened) if f.layer == layer]
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


# How far whole runs remove the same groups --------------------------------------------------------
VANILLA = "vanilla"
OF_KIND = {HEADS: ".self_attn", CHANNELS: ".mlp"}  # how the families of a kind are named
ONE_SEED = "-"
COLUMNS = [(CHANNELS, 0.2), (CHANNELS, 0.5), (HEADS, 0.5)]  # at 20% no heads go

Seeded = Mapping[int, Masks]  # by seed
Known = Mapping[tuple[str, float, bool], Seeded]  # by method, share, tuned


def read(store: Path, runs: Mapping[str, Planned]) -> Known:
    """The masks of the stored runs, those that differ in nothing but the seed together."""
    found: dict[tuple[str, float, bool], dict[int, Masks]] = {}
    stored = storage.names(store)
    for run in (one for one in runs.values() if one.name in stored):
        file = store / "masks" / f"{run.name}.safetensors"
        if file.is_file() and run.share and not run.longer:
            own = found.setdefault((run.method, run.share, run.tuned), {})
            own[run.recipe.seed] = load_masks(file)
    return found


def both_gone(first: Masks, second: Masks, kind: str) -> float | None:
    """Of the groups that the first run removed, the share that the second removed as well."""
    own = [name for name in first if name.endswith(OF_KIND[kind])]
    gone = sum(int((~first[name]).sum()) for name in own)
    both = sum(int((~first[name] & ~second[name]).sum()) for name in own)
    return both / gone if gone else None


def by_chance(mask: Masks, kind: str) -> float | None:
    """`both_gone` of two masks with as many groups gone in each layer, drawn independently."""
    own = [_gone(tensor) for name, tensor in mask.items() if name.endswith(OF_KIND[kind])]
    gone = sum(removed for removed, _ in own)
    return sum(removed**2 / count for removed, count in own) / gone if gone else None


def _gone(mask: Tensor) -> tuple[int, int]:
    return int((~mask).sum()), len(mask)


def beside_vanilla(known: Known, declared: Grid) -> pd.DataFrame:
    """Of what the vanilla criterion's run removed, what each criterion's run removed as well.

    Runs of the same seed where there are any, else every pair; means over the pairs.
    """
    rows = {m.title: {} for m in declared.methods if m.name != VANILLA} | {"by chance": {}}
    for tuned in (False, True):
        for kind, share in COLUMNS:
            title = _title(kind, share, tuned)
            first = known.get((VANILLA, share, tuned), {})
            for method in declared.methods:
                if method.name != VANILLA:
                    pairs = _pairs(first, known.get((method.name, share, tuned), {}), tuned)
                    rows[method.title][title] = _mean(both_gone(*pair, kind) for pair in pairs)
            rows["by chance"][title] = _mean(by_chance(mask, kind) for mask in first.values())
    return pd.DataFrame(rows).T.rename_axis("criterion")


def between_seeds(known: Known, declared: Grid) -> pd.DataFrame:
    """Of what a run removed, what the same run with another seed removed as well."""
    rows: dict[str, dict[str, str]] = {}
    for method in declared.methods:
        for tuned in (False, True):
            for kind, share in COLUMNS:
                every = list(known.get((method.name, share, tuned), {}).values())
                value = _mean(both_gone(*pair, kind) for pair in combinations(every, 2))
                rows.setdefault(method.title, {})[_title(kind, share, tuned)] = (
                    ONE_SEED if len(every) == 1 else value
                )
    return pd.DataFrame(rows).T.rename_axis("criterion")


def _pairs(first: Seeded, second: Seeded, tuned: bool) -> list[tuple[Masks, Masks]]:
    """By seed; what is not tuned and has one run alone is drawn from nothing: it is of any seed."""
    both = [seed for seed in first if seed in second]
    if both and (tuned or min(len(first), len(second)) > 1):
        return [(first[seed], second[seed]) for seed in both]
    return list(product(first.values(), second.values()))


def _title(kind: str, share: float, tuned: bool) -> str:
    return f"{kind}, {share:.0%}{', tuned' if tuned else ''}"


def _mean(found: Iterable[float | None]) -> str:
    known = [value for value in found if value is not None]
    return f"{statistics.mean(known):.1%}" if known else MISSING


# The lines of Figure 3 ----------------------------------------------------------------------------
def lines(
    outcomes: Outcomes,
    declared: Grid,
    runs: Mapping[str, Planned],
    wanted: Sequence[tuple[str, bool]],
    corpus: str,
) -> dict[str, tuple[list, list, list, list]]:
    """{title: (shares removed, perplexities, lows, highs)} of (method, tuned), from share 0 on."""
    found = {}
    for method, tuned in wanted:
        points = sorted(_points(outcomes, runs, method, tuned, corpus))
        if len(points) > 1:  # more than the unpruned model
            title = f"{declared.titles()[method]}{', fine-tuned' if tuned else ''}"
            found[title] = tuple(map(list, zip(*points, strict=True)))
    return found


def _points(
    outcomes: Outcomes, runs: Mapping[str, Planned], method: str, tuned: bool, corpus: str
) -> Iterator[tuple[float, float, float, float]]:
    """All seeds of a share together; tuned lines begin at what is tuned with nothing removed."""
    start = UNPRUNED if tuned else ("base", 0.0, False)
    shares = sorted({run.share for run in runs.values() if run.method == method} - {0.0})
    for wanted in (start, *((method, share, tuned) for share in shares)):
        every = seeds(outcomes, runs, *wanted)
        if bounds := _bounds(every, corpus):
            yield (every[0].facts.get("removed_share", 0.0), *bounds)


def _bounds(every: Sequence[Bundle], corpus: str) -> tuple[float, float, float] | None:
    """Perplexity and the ends of its 95% interval over the windows, losses averaged over seeds."""
    losses = windows(every, corpus)
    if losses is None:
        return None
    reach = COVERED * losses.std(ddof=1) / math.sqrt(len(losses))
    return tuple(math.exp(losses.mean() + sign * reach) for sign in (0, -1, 1))


def marks(outcomes: Outcomes, declared: Grid, corpus: str) -> dict[str, tuple[float, float]]:
    """The 2:4 models, which have half of the weights in other places."""
    return {
        semi.title: (0.5, perplexity(known)[0])
        for semi in declared.semi_structured
        if semi.name in outcomes and (known := cell(outcomes[semi.name], corpus))
    }
