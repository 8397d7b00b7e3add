"""Whether the LoRA-guided criterion removes the groups that the vanilla one does (Fig. 4)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

import tipmini as tm
from tipmini.groups import CHANNELS, Family
from tipmini.lab.pruning import scoring
from tipmini.loraprune import share_mask

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)

Scores = Mapping[str, Mapping[str, Tensor]]  # of two criteria: {family: (count,) importances}


def compared(
    families: Sequence[Family],
    scores: Scores,
    share: float,
    reduction: str,
    seed: int,
) -> list[dict]:
    """One entry for each kind: this share of every family's groups removed by either criterion.

    same: share of groups with the same verdict; both: of the groups that the first removes, those
    that the second removes too. chance_*: of two masks with these numbers that know nothing.
    """
    entries = []
    for kind in {family.kind: None for family in families}:
        own = [family for family in families if family.kind == kind]
        tally = [overlap(family, scores, int(share * family.count + 1e-9)) for family in own]
        groups, gone, both = (sum(column) for column in zip(*tally, strict=True))
        same = groups - 2 * (gone - both)  # every group that one alone removes has its counterpart
        by_chance = sum(n * (g / n) ** 2 for n, g, _ in tally)
        entries.append(
            {"kind": kind, "share": share, "reduction": reduction, "seed": seed}
            | {"groups": groups, "removed": gone, "same": same / groups}
            | {"both": both / gone if gone else None}
            | {"chance_same": (groups - 2 * (gone - by_chance)) / groups}
            | {"chance_both": by_chance / gone if gone else None}
        )
    return entries


def overlap(family: Family, scores: Scores, gone: int) -> tuple[int, int, int]:
    """Groups, those that each criterion removes, those that both do."""
    first, second = (~share_mask(found[family.name], gone) for found in scores.values())
    return family.count, gone, int((first & second).sum())


def loudest(
    model: nn.Module, families: Sequence[Family], batches: Sequence[Mapping[str, Tensor]]
) -> list[dict]:
    """For every layer the channel with the largest activation, and where its weights stand.

    times: its norm over the median channel's; lighter: the share of the layer's channels that
    magnitude removes before it.
    """
    channels = [family for family in families if family.kind == CHANNELS]
    reads = [next(m.module for m in family.members if m.dim == 1) for family in channels]
    norms = tm.calibrate(model, batches, reads)
    scores = scoring.all_scores(model, channels, "magnitude")
    entries = []
    for family, module in zip(channels, reads, strict=True):
        norm, weights = norms[module], scores[family.name]
        most = int(norm.argmax())
        lighter = (weights < weights[most]).double().mean()
        times = norm[most] / norm.median()
        entries.append({"layer": family.layer, "lighter": float(lighter), "times": float(times)})
    return entries
