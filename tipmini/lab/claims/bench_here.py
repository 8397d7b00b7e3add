"""Checks of LoRAPrune's sentences from the bench: time, memory, throughput, masks.

least: the per cent that a sentence asks for; 0 where it says only less, or only more.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning.benched import CRITERIA, INFERENCE, MASKS, part
from tipmini.lab.pruning.efficiency import RECOMPUTED, all_bytes

KEPT = {"activations kept": "", "made again": RECOMPUTED}  # ends of the sides' names

# Inference ----------------------------------------------------------------------------------


def time_saved(evidence: Evidence, *, share: float, least: float) -> Finding:
    """Whether a model without this share of its weights takes so many per cent less time."""
    saved = {b: 1 - ratio for b, ratio in _ratios(evidence, (share, True), (0.0, True)).items()}
    words = "A forward pass on a CPU; the model's embeddings and head keep their size."
    return _timed(evidence, saved, -1, words, least)


def unmerged_costs(evidence: Evidence, *, share: float, least: float) -> Finding:
    """Whether a pass with the adapter beside takes so much longer than the unpruned one, merged."""
    more = {b: ratio - 1 for b, ratio in _ratios(evidence, (share, False), (0.0, True)).items()}
    words = "An adapter of rank 8 on all seven matrices, computed by PEFT in the model's dtype."
    return _timed(evidence, more, 1, words, least)


def merging_spares(evidence: Evidence, *, shares: Sequence[float]) -> Finding:
    """Whether pruned models take less time with the adapter merged than with it beside."""
    saved = {
        f"{share:.0%}, {batch}": 1 - ratio
        for share in shares
        for batch, ratio in _ratios(evidence, (share, True), (share, False)).items()
    }
    words = "Merged, a pruned model is a plain checkpoint: there is no adapter left to compute."
    return _timed(evidence, saved, -1, words, 0)


def _timed(
    evidence: Evidence, shares: Mapping[str, float], sign: int, words: str, least: float
) -> Finding:
    """Whether {batch: change of the time, times sign} is so many per cent for every batch."""
    if not shares:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    enough = sum(_reaches(100 * share, least) for share in shares.values())
    told = ", ".join(f"{batch}: {sign * share:+.1%} of time" for batch, share in shares.items())
    return Finding(_share_of(enough, len(shares)), told, words + _asked(least))


def _ratios(evidence: Evidence, one: tuple, two: tuple) -> dict[str, float]:
    """{batch: median over the rounds of one way's time over the other's}."""
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): e["seconds"] for e in entries}
    return {
        f"batch {batch}": statistics.median(
            np.divide(timed[*one, batch], timed[*two, batch]).tolist()
        )
        for share, merged, batch in timed
        if (share, merged) == one
    }


def _reaches(value: float, least: float) -> bool:
    return value >= least and value > 0


def _asked(least: float) -> str:
    return f" Asked for: at least {least:g}%." if least else ""


# A step of a criterion ----------------------------------------------------------------------


def memory_saved(
    evidence: Evidence, *, side: str, least: float, against: str = "vanilla"
) -> Finding:
    """Whether a step of a criterion takes so many per cent less memory than another's.

    Both where activations are kept and where they are made again in the backward pass.
    """
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not cost or not cost["vanilla"]["step_bytes"]:
        return not_run(evidence, note="No memory of pruning is stored yet.")
    both = {
        kept: [all_bytes(cost[f"{name}{end}"]) for name in (side, against)]
        for kept, end in KEPT.items()
    }
    saved = {kept: 100 * (1 - own / other) for kept, (own, other) in both.items()}
    told = [
        f"{k}: {a / 1e6:.0f} of {b / 1e6:.0f} MB, {saved[k]:.1f}% less"
        for k, (a, b) in both.items()
    ]
    words = "Memory: model and the peak of a step; in a small model activations are much of it."
    return _both(saved, told, words, least)


def throughput_gained(evidence: Evidence, *, least: float) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not cost:
        return not_run(evidence, note="No throughput of pruning is stored yet.")
    speeds = {
        kept: [cost[f"{name}{end}"]["rows_a_second"] for name in ("lora-guided", "vanilla")]
        for kept, end in KEPT.items()
    }
    gained = {kept: 100 * (own / other - 1) for kept, (own, other) in speeds.items()}
    told = [f"{kept}: {gained[kept]:+.1f}% rows a second" for kept in speeds]
    return _both(gained, told, "Throughput: rows a second on a CPU.", least)


def _both(found: Mapping[str, float], told: Sequence[str], words: str, least: float) -> Finding:
    enough = sum(_reaches(value, least) for value in found.values())
    return Finding(_share_of(enough, len(found)), "; ".join(told), words + _asked(least))


# Masks --------------------------------------------------------------------------------------


def masks_agree(evidence: Evidence, *, share: float) -> Finding:
    """Whether both criteria agree on more groups than halfway from chance to all."""
    entries = part(evidence.benched, MASKS, "agreement", [])
    own = [e for e in entries if e["share"] == share and e["reduction"] == "paper" and e["removed"]]
    if not own:
        return not_run(evidence, note="No similarity of masks is stored yet.")
    enough = sum(2 * e["same"] > 1 + e["chance_same"] for e in own)
    same, chance = (statistics.mean(e[name] for e in own) for name in ("same", "chance_same"))
    return Finding(
        _share_of(enough, len(own)),
        f"{same:.1%} of the groups alike, {chance:.1%} by chance",
        f"At {share:.0%}; {len(own)} comparisons, over kinds of groups and adapters.",
    )


def masks_part(evidence: Evidence, *, low: float, high: float) -> Finding:
    """Whether the criteria agree on fewer groups at a higher share."""
    entries = part(evidence.benched, MASKS, "agreement", [])
    found = [
        [e["same"] for e in entries if e["share"] == share and e["kind"] == "channels"]
        for share in (low, high)
    ]
    if not all(found):
        return not_run(evidence, note="No similarity of masks is stored yet.")
    fewer = min(found[0]) > max(found[1])
    pairs = zip(found, (low, high), strict=True)
    return Finding(
        _share_of(int(fewer), 1),
        " and ".join(f"{statistics.mean(one):.1%} at {share:.0%}" for one, share in pairs),
        "Channels of the MLPs; random masks agree on fewer at a higher share, too.",
    )


def _share_of(enough: int, asked: int) -> Verdict:
    if enough == asked:
        return Verdict.HOLDS
    return Verdict.IN_PART if enough else Verdict.NOT_SUPPORTED


CHECKS = (
    *(time_saved, unmerged_costs, merging_spares, memory_saved, throughput_gained),
    *(masks_agree, masks_part),
)
