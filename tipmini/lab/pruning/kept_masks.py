"""How far whole runs remove the same groups: beside the vanilla criterion's, and between seeds.

Fig. 4 compares two criteria at one moment; here each has gone its own way to the end.
"""

import statistics
from collections.abc import Iterable, Mapping
from itertools import combinations, product
from pathlib import Path

import pandas as pd
from torch import Tensor

from tipmini.groups import CHANNELS, HEADS
from tipmini.lab import bundles
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.statistics import MISSING
from tipmini.masking import Masks, load_masks

VANILLA = "vanilla"
OF_KIND = {HEADS: ".self_attn", CHANNELS: ".mlp"}  # how the families of a kind are named
ONE_SEED = "-"
COLUMNS = [(CHANNELS, 0.2), (CHANNELS, 0.5), (HEADS, 0.5)]  # at 20% no heads go

Seeded = Mapping[int, Masks]  # by seed
Known = Mapping[tuple[str, float, bool], Seeded]  # by method, share, tuned


def read(store: Path, runs: Mapping[str, Planned]) -> Known:
    """The masks of the stored runs, those that differ in nothing but the seed together."""
    found: dict[tuple[str, float, bool], dict[int, Masks]] = {}
    stored = bundles.names(store)
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
