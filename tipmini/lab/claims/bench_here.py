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
    saved = {b: 1 - ratios for b, ratios in _ratios(evidence, (share, True), (0.0, True)).items()}
    words = "A forward pass on a CPU; the model's embeddings and head keep their size."
    return _timed(evidence, saved, -1, words, least)


def unmerged_costs(evidence: Evidence, *, share: float, least: float) -> Finding:
    """Whether a pass with the adapter beside takes so much longer than the unpruned one, merged."""
    more = {b: ratios - 1 for b, ratios in _ratios(evidence, (share, False), (0.0, True)).items()}
    words = "An adapter on all seven matrices, computed by PEFT in the model's dtype."
    return _timed(evidence, more, 1, words, least)


def merging_spares(evidence: Evidence, *, shares: Sequence[float]) -> Finding:
    """Whether pruned models take less time with the adapter merged than with it beside."""
    saved = {
        f"{share:.0%}, {batch}": 1 - ratios
        for share in shares
        for batch, ratios in _ratios(evidence, (share, True), (share, False)).items()
    }
    words = "Merged, a pruned model is a plain checkpoint: there is no adapter left to compute."
    return _timed(evidence, saved, -1, words, 0)


def _timed(
    evidence: Evidence, shares: Mapping[str, np.ndarray], sign: int, words: str, least: float
) -> Finding:
    """Whether {batch: changes of the time in every round, times sign} is so many per cent."""
    if not shares:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    enough = sum(_reaches(100 * rounds, least) for rounds in shares.values())
    told = ", ".join(
        f"{batch}: {sign * np.median(rounds):+.1%} of time" for batch, rounds in shares.items()
    )
    rounds = f"each of {len(next(iter(shares.values())))} rounds"
    return Finding(_share_of(enough, len(shares)), told, f"{words} {_asked(least, rounds)}")


def _ratios(evidence: Evidence, one: tuple, two: tuple) -> dict[str, np.ndarray]:
    """{batch: one way's time over the other's in every round}."""
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): e["seconds"] for e in entries}
    return {
        f"batch {batch}": np.divide(timed[*one, batch], timed[*two, batch])
        for share, merged, batch in timed
        if (share, merged) == one
    }


def _reaches(values: np.ndarray, least: float) -> bool:
    """Whether the median is as much as asked; where only a side is asked, whether all lie there."""
    return bool(np.median(values) >= least if least else (values > 0).all())


def _asked(least: float, turn: str) -> str:
    return f"Asked for: at least {least:g}%." if least else f"Asked for: {turn}."


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
    enough = sum(_reaches(np.array([value]), least) for value in saved.values())
    asked = f" {_asked(least, '')}" if least else ""
    return Finding(_share_of(enough, len(saved)), "; ".join(told), words + asked)


def throughput_gained(evidence: Evidence, *, least: float) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not all("seconds" in own for own in (cost or {"": {}}).values()):
        return not_run(evidence, note="No times of steps are stored yet.")
    taken = {
        kept: [np.array(cost[f"{name}{end}"]["seconds"]) for name in ("vanilla", "lora-guided")]
        for kept, end in KEPT.items()
    }
    gained = {k: 100 * (np.median(a) / np.median(b) - 1) for k, (a, b) in taken.items()}
    enough = sum(
        _reaches(np.array([gained[k]]) if least else a - b, least) for k, (a, b) in taken.items()
    )
    told = "; ".join(f"{kept}: {gain:+.1f}% rows a second" for kept, gain in gained.items())
    steps = f"each of {len(next(iter(taken.values()))[0])} steps"
    words = f"Throughput: rows a second on a CPU. {_asked(least, steps)}"
    return Finding(_share_of(enough, len(gained)), told, words)


# Masks --------------------------------------------------------------------------------------


def masks_agree(evidence: Evidence, *, share: float) -> Finding:
    """Whether both criteria agree on more groups than halfway from chance to all."""
    entries = part(evidence.benched, MASKS, "agreement", [])
    own = [e for e in entries if e["share"] == share and e["reduction"] == "paper" and e["removed"]]
    if not own:
        return not_run(evidence, note="No similarity of masks is stored yet.")
    enough = sum(_beyond_chance(e) > 0.5 for e in own)
    same, chance = (statistics.mean(e[name] for e in own) for name in ("same", "chance_same"))
    kinds = " and ".join(dict.fromkeys(e["kind"] for e in own))
    return Finding(
        _share_of(enough, len(own)),
        f"{same:.1%} of the groups alike, {chance:.1%} by chance",
        f"At {share:.0%}; {len(own)} comparisons, of {kinds} and several adapters. Asked for: more "
        "than halfway from chance to all.",
    )


def masks_part(evidence: Evidence, *, low: float, high: float) -> Finding:
    """Whether the criteria agree on fewer groups at a higher share; and on fewer beyond chance.

    Two masks that know nothing agree on fewer at a higher share, too. Beyond chance: the part of
    the way from chance to all.
    """
    entries = part(evidence.benched, MASKS, "agreement", [])
    own = [e for e in entries if (e["kind"], e["reduction"]) == ("channels", "paper")]
    found = [[e for e in own if e["share"] == share] for share in (low, high)]
    if not all(found):
        return not_run(evidence, note="No similarity of masks is stored yet.")
    alike, beyond = (
        [[measure(e) for e in entries] for entries in found]
        for measure in (lambda e: e["same"], _beyond_chance)
    )
    fewer = sum(min(ones[0]) > max(ones[1]) for ones in (alike, beyond))
    told = (
        f"{statistics.mean(same):.1%} at {share:.0%}, {statistics.mean(more):.0%} of the way from "
        "chance to all"
        for same, more, share in zip(alike, beyond, (low, high), strict=True)
    )
    words = "Channels of the MLPs. Of random masks, too, fewer are alike at a higher share."
    return Finding(_share_of(fewer, 2), "; ".join(told), words)


def _beyond_chance(entry: Mapping) -> float:
    return (entry["same"] - entry["chance_same"]) / (1 - entry["chance_same"])


def _share_of(enough: int, asked: int) -> Verdict:
    if enough == asked:
        return Verdict.HOLDS
    return Verdict.IN_PART if enough else Verdict.NOT_SUPPORTED


CHECKS = (
    *(time_saved, unmerged_costs, merging_spares, memory_saved, throughput_gained),
    *(masks_agree, masks_part),
)
