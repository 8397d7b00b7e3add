"""LoRAPrune's sentences on zeros that leave all shapes: what the bench measured of them."""

from collections.abc import Sequence

import numpy as np

from tipmini_lab.book.claims.checks import Evidence, Names, NotMeasured, here, setting
from tipmini_lab.book.claims.choices import choice, left_out
from tipmini_lab.book.pruning_costs import DENSE, ZEROS, part
from tipmini_lab.book.pruning_tables import OURS
from tipmini_lab.experiments.declared import grid
from tipmini_lab.experiments.pruning import cosine_rate

NAMED = {True: "prompt", False: "token"}
choice("ways")(lambda own, known: left_out(own, str))
choice("lengths")(lambda own, known: {f"{name} alone": [name] for name in own} if own[1:] else {})


@here
def zeros_pass(evidence: Evidence, *, ways: Names, lengths: Names = ("prompt", "token")) -> dict:
    """Times of passes and bytes of matrices over those without zeros, for zeros of some kinds.

    lengths: of a prompt of many tokens, of one more token, or of both. fastest: the least of the
    medians of the rounds' ratios; smallest, largest: of the bytes' ratios. refused: whether torch
    has no 2:4 product on this processor.
    """
    entries = part(evidence.benched, ZEROS, "passes", [])
    whole = {e["tokens"]: e for e in entries if e["way"] == DENSE}
    own = [e for e in entries if e["way"] in ways and NAMED[e["tokens"] > 1] in lengths]
    if {e["way"] for e in own} != {*ways}:
        raise NotMeasured("No pass with zeros is timed yet.")
    ratios = [np.divide(e["seconds"], whole[e["tokens"]]["seconds"]) for e in own]
    times = [float(np.median(ratio)) for ratio in ratios]
    sizes = [e["bytes"] / whole[e["tokens"]]["bytes"] for e in own]
    told = "; ".join(
        f"{e['way']}, {e['tokens']} token{'s' * (e['tokens'] > 1)}: {time:.2f} of the time"
        for e, time in zip(own, times, strict=True)
    )
    found = {"fastest": min(times), "smallest": min(sizes), "largest": max(sizes), "told": told}
    says = part(evidence.benched, ZEROS, "refused", "")
    return found | {"refused": bool(says), "says": says}


@here
def zeros_merged(evidence: Evidence, *, way: str) -> dict:
    """Shares of zeros in the matrices that an adapter is on: `before`, and once sBA is added.

    after: the most of any adapter; of_delta: of sBA itself, which bounds it for zeros anywhere.
    """
    own = [e for e in part(evidence.benched, ZEROS, "merged", []) if e["way"] == way]
    if not own:
        raise NotMeasured("No zeros are counted after a merge yet.")
    found = {name: max(e[name] for e in own) for name in ("after", "of_delta")}
    return found | {"before": min(e["before"] for e in own), "adapters": len(own)}


@setting
def rate_decays(evidence: Evidence, *, steps: int = 100) -> dict:
    """Whether the learning rate of tuned runs falls by half a cosine after its warm-up."""
    recipe = grid().size("mini").recipe(tuned=True)
    rates = np.array([cosine_rate(recipe, step, steps) for step in range(steps)])
    ramp = round(recipe.warmup * steps)
    part_of = np.arange(steps - ramp) / (steps - ramp)
    asked = recipe.learning_rate * (1 + np.cos(np.pi * part_of)) / 2
    return {"value": np.allclose(rates[ramp:], asked), "warmup": recipe.warmup}


@setting
def tuned_and_not(evidence: Evidence, *, shares: Sequence[float]) -> dict:
    """Whether LoRAPrune's models are stored at these shares, with fine-tuning and without."""
    known = grid().runs("mini").values()
    own = [run for run in known if run.method == OURS and run.name in evidence.prunings]
    asked = {(share, tuned) for share in shares for tuned in (True, False)}
    found = {"value": asked <= {(run.share, run.tuned) for run in own}}
    return found | {"shares": " and ".join(f"{share:.0%}" for share in shares)}
