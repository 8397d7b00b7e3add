"""Checks of LoRAPrune's sentences from the bench: time, memory, throughput, masks."""

import statistics

import numpy as np

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning.benched import CRITERIA, INFERENCE, MASKS, part
from tipmini.lab.pruning.efficiency import RECOMPUTED, all_bytes


def time_saved(
    evidence: Evidence, *, share: float, printed: float = 0.0, tolerance: float = 0.0
) -> Finding:
    """Whether a model without this share of its weights takes so many per cent less time."""
    saved = {b: 1 - ratio for b, ratio in _ratios(evidence, (share, True), (0.0, True)).items()}
    words = "A forward pass on a CPU; the model's embeddings and head keep their size."
    return _timed(evidence, saved, "less", words, printed - tolerance)


def unmerged_costs(
    evidence: Evidence, *, share: float, printed: float = 0.0, tolerance: float = 0.0
) -> Finding:
    """Whether a pass with the adapter beside takes so much longer than the unpruned one, merged."""
    more = {b: ratio - 1 for b, ratio in _ratios(evidence, (share, False), (0.0, True)).items()}
    words = "An adapter of rank 8 on all seven matrices, computed by PEFT in the model's dtype."
    return _timed(evidence, more, "more", words, printed - tolerance)


def _timed(
    evidence: Evidence, shares: dict[int, float], way: str, words: str, least: float
) -> Finding:
    """Whether {batch: change of the time} is above `least` per cent for every batch."""
    if not shares:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    enough = sum(100 * share > max(least, 0) for share in shares.values())
    told = ", ".join(f"batch {batch}: {share:.1%} {way}" for batch, share in shares.items())
    return Finding(_share_of(enough, len(shares)), told, words)


def _ratios(evidence: Evidence, one: tuple, two: tuple) -> dict[int, float]:
    """{batch: median over the rounds of one way's time over the other's}."""
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): e["seconds"] for e in entries}
    return {
        batch: statistics.median(np.divide(timed[*one, batch], timed[*two, batch]).tolist())
        for share, merged, batch in timed
        if (share, merged) == one
    }


def memory_saved(
    evidence: Evidence,
    *,
    side: str,
    against: str = "vanilla",
    printed: float = 0.0,
    tolerance: float = 0.0,
) -> Finding:
    """Whether a step of a criterion takes so many per cent less memory than another's."""
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not cost or not cost["vanilla"]["step_bytes"]:
        return not_run(evidence, note="No memory of pruning is stored yet.")
    own, other = (all_bytes(cost[name]) for name in (side, against))
    saved = 100 * (1 - own / other)
    return Finding(
        _share_of(int(saved > max(printed - tolerance, 0)), 1),
        f"{own / 1e6:.0f} of {other / 1e6:.0f} MB: {saved:.1f}% less",
        "Model and the peak of a step. In a small model activations are a larger part of it"
        + _recomputed(cost, side, against),
    )


def _recomputed(cost: dict, side: str, against: str) -> str:
    own, other = (cost[f"{name}{RECOMPUTED}"] for name in (side, against))
    step, all_of_it = own["step_bytes"] / other["step_bytes"], all_bytes(own) / all_bytes(other)
    return (
        f"; where they are made again, {1 - all_of_it:.1%} less, and {1 - step:.1%} of what a step "
        "takes above the model."
    )


def throughput_gained(evidence: Evidence, *, printed: float, tolerance: float = 0.0) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not cost:
        return not_run(evidence, note="No throughput of pruning is stored yet.")
    own, other = (cost[name]["rows_a_second"] for name in ("lora-guided", "vanilla"))
    more = 100 * (own / other - 1)
    verdict = _share_of(int(more > printed - tolerance), 1)
    return Finding(verdict, f"{more:+.1f}%", f"{own:.2f} and {other:.2f} rows a second on a CPU.")


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


CHECKS = (time_saved, unmerged_costs, memory_saved, throughput_gained, masks_agree, masks_part)
