"""LoRAPrune's claims: checks of its printed cells, of shapes, of pruned models and of the bench."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from tipmini.papers.loraprune import lora_gradient, threshold_mask
from tipmini_lab.book import pruning_costs, pruning_tables
from tipmini_lab.book.claims import Verdict, checks
from tipmini_lab.book.claims.checks import (
    Evidence,
    Finding,
    Names,
    NotMeasured,
    here,
    in_print,
    setting,
)
from tipmini_lab.book.claims.checks_pruned import PROFILE, runs
from tipmini_lab.book.claims.choices import choice
from tipmini_lab.book.pruning_costs import CRITERIA, INFERENCE, RECOMPUTED, all_bytes, part
from tipmini_lab.experiments.declared import grid

NAMES = {
    **{"wikitext2": "WikiText2", "ptb": "PTB", "gigabytes": "GPU memory, GB"},
    **{"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune", "loraprune_8bit": "LoRAPrune (8-bit)"},
    "mean": "mean accuracy, %",
}
DECIMALS = {"perplexity": 2, "memory": 1, "accuracy": 2}  # as they were read


# What is printed, or told by the note -------------------------------------------------------------
def cells(evidence: Evidence, table: str) -> pd.DataFrame:
    """A row a cell that is at hand: row, column, value, `shown` as it was read, `source`."""
    found = [
        {"row": row, "column": column, "shown": f"{cell['value']:.{DECIMALS.get(table, 1)}f}"}
        | cell
        for row, own in evidence.printed["loraprune"][table].items()
        for column, cell in own.items()
    ]
    return pd.DataFrame(found).set_index(["row", "column"])


def _read_in(evidence: Evidence, sources: Iterable[str]) -> str:
    known = evidence.printed["loraprune"]["sources"]
    return f"Read in {' and '.join(known[source] for source in dict.fromkeys(sources))}."


@in_print
def two_cells(evidence: Evidence, *, of: str, against: str, column: str) -> dict:
    """How much less one cell is than another: `less`; in per cent `saved`, and what is `used`.

    What is saved may stand in print as what is used.
    """
    table = "memory" if column == "gigabytes" else "perplexity"
    both = cells(evidence, table).xs(column, level="column").loc[[against, of]]
    old, new = both["value"]
    saved, earlier = 100 * (1 - new / old), evidence.records["earlier_loraprune"]
    return {
        **{"old": old, "new": new, "less": old - new, "saved": saved, "used": 100 * new / old},
        **{"earlier": earlier["reduction"].get(column), "earlier_source": earlier["source"]},
        **{"instead": ([saved], Verdict.SAVED_NOT_USED), "read": _read_in(evidence, both.source)},
    }


@in_print
def below(evidence: Evidence, *, table: str, of: str, against: Names) -> Finding:
    """Whether the cells at hand of a row are below those of others, in every column."""
    known = cells(evidence, table)
    own, others = known.loc[of], known.loc[list(against)]
    told = [
        f"{NAMES[c]}: {NAMES[of]} {own.shown[c]}, {NAMES[row]} {other.shown}"
        for (row, c), other in others.iterrows()
    ]
    lower = sum(own.value[c] < value for (_, c), value in others.value.items())
    some = Verdict.IN_PART if lower else Verdict.DOES_NOT_HOLD
    read = _read_in(evidence, known.loc[[of, *against]].source)
    return Finding(Verdict.AT_HAND if lower == len(others) else some, "; ".join(told), read)


@in_print
def per_cent(evidence: Evidence, *, printed: float, saved: float = 0, added: float = 0) -> dict:
    """A percentage of which the cells are not at hand, as times of a time or a speed.

    value: of a whole model's time, what pruning saves of it, and then unmerged LoRA adds.
    """
    share, saving, adding = printed / 100, saved / 100, added / 100
    found = {"faster": 1 / (1 - share), "longer": 1 + share, "less": 1 / (1 + share)}
    found |= {"saved": saved, "added": added, "saving": saving, "adding": adding}
    return found | {"value": (1 - saving) * (1 + adding)}


@in_print
def weights(evidence: Evidence, *, model: str) -> dict:
    """Billions of a LLaMA's weights, counted from its shapes; norms are left out.

    sixteen: their GB in 16 bits; in 8 they are the billions. linear: billions of those of every
    linear layer (q, k, v, o; gate, up, down).
    """
    shape = evidence.records["shapes"][model]
    linear = shape["layers"] * (4 * shape["width"] ** 2 + 3 * shape["width"] * shape["inner"])
    billions = (linear + 2 * shape["vocabulary"] * shape["width"]) / 1e9  # embedding and output
    found = {"value": billions, "sixteen": 2 * billions, "linear": linear / 1e9}
    return found | {"source": shape["source"]}


MASKS = (16, 8, 1)  # bits that an entry of a mask may have: as the weights, a boolean, packed


@in_print
def intermediates(evidence: Evidence, *, model: str, mask: int, gpu: float = 80) -> dict:
    """GPUs of so many GB that BA in 16 bits and a mask of every linear weight fill.

    mask: bits of one of its entries. each: the GPUs by every width that it may have.
    """
    own = weights(evidence, model=model)
    gigabytes = {bits: (2 + bits / 8) * own["linear"] for bits in MASKS}
    gpus = {bits: math.ceil(size / gpu) for bits, size in gigabytes.items()}
    each = ", ".join(
        f"{bits}-bit: {gpus[bits]} ({size:.0f} GB)" for bits, size in gigabytes.items()
    )
    return {"value": gpus[mask], "each": each, "gpu": gpu, "source": own["source"]}


@choice("mask")
def _masks_wide(own: int, evidence: Evidence) -> dict:
    return {f"a mask of {bits} bit{'s' * (bits > 1)}": bits for bits in MASKS if bits != own}


# Settings, and what follows from shapes -----------------------------------------------------------
@setting
def pruning_has(evidence: Evidence, *, setting: str, part: str = "") -> dict:
    """A setting of the runs that prune while they are fine-tuned, or of a part of the bench."""
    if not part:
        own = getattr(grid().size(PROFILE).recipe(tuned=True), setting)
        return prunings(evidence) and checks.setting_of(setting, own, "the declared prunings")
    stored = evidence.benched.get(part, {})
    passes = [e | {"rounds": len(e["seconds"])} for e in stored.get("inference", [])]
    found = {own[setting] for own in [stored, *passes] if setting in own}
    if len(found) != 1:
        raise NotMeasured("This part of the bench has not one number of it.")
    return checks.setting_of(setting, found.pop(), "the bench")


@setting
def prunings(evidence: Evidence, *, method: str = "", score: Names = ()) -> dict:
    """Whether pruned models, or those of a method, are stored, and scored on these tasks."""
    models = [m for m in evidence.prunings if not method or m.startswith(f"{method}-")]
    if not models:
        raise NotMeasured("No pruned model is stored yet.")
    scored, title = len(set(score) & set(grid().tasks)), grid().titles().get(method)
    found = {"value": scored == len(score), "scored": scored, "tasks": len(score)}
    return found | {"models": len(models), "title": title}


@setting
def equations(evidence: Evidence, *, rank: int = 8) -> dict:
    """Whether functions of equations are, on drawn factors, what the text says of them.

    eta: Eq. 9 is the step of learning rate 1 of Eqs. 7 and 8. binary: Eq. 12 gives one boolean for
    each group. as_large: the gradient of BA, Eq. 9, has as many numbers as W in every matrix.
    """
    drawn = torch.Generator().manual_seed(0)
    a, grad_a = torch.randn(2, 3, 5, generator=drawn, dtype=torch.float64)
    b, grad_b = torch.randn(2, 7, 3, generator=drawn, dtype=torch.float64)
    step = b @ a - (b - grad_b) @ (a - grad_a)
    mask, shape, numbers = threshold_mask(torch.arange(5.0), 2.0), pruning_costs.LLAMA_7B, 0
    for d, k in shape.modules:
        empty = [torch.empty(size, device="meta") for size in ((rank, k), (d, rank))]
        numbers += shape.layers * lora_gradient(*empty, *empty).numel()
    sizes = {"of_ba": numbers, "of_w": shape.weights, "of_factors": shape.factors(rank)}
    return {
        "eta": torch.allclose(lora_gradient(a, b, grad_a, grad_b), step),
        "binary": mask.dtype == torch.bool and mask.shape == (5,),
        **{"as_large": numbers == shape.weights, "model": shape.name},
        **{name: pruning_costs.size(pruning_costs.WIDTH * n) for name, n in sizes.items()},
    }


@here
def bytes_beside(evidence: Evidence, *, method: str, times: float, rank: int = 8) -> dict:
    """Whether a method keeps more than so many times the weights' bytes, in order to prune."""
    needs = {need.title: need.count for need in pruning_costs.NEEDS}
    shapes, told = (pruning_costs.LLAMA_7B, pruning_costs.LLAMA_65B), []
    for shape in shapes:
        own, ours = (pruning_costs.size(needs[m](shape, rank)) for m in (method, "LoRAPrune"))
        told.append(f"{shape.name}: {method} {own}, LoRAPrune {ours}")
    least = min(needs[method](s, rank) / s.weights / pruning_costs.WIDTH for s in shapes)
    return {"value": least > times, "shown": "; ".join(told), "least": least, "times": times}


# The bench ----------------------------------------------------------------------------------------
KEPT = {"activations kept": "", "gradient checkpointing": RECOMPUTED}  # ends of the sides' names
KINDS = ("heads", "channels")
choice("kept", "kinds")(lambda own, known: {f"{name} alone": [name] for name in own})
choice("medians")(lambda own, known: {"by medians alone": True})


@choice("batch")
def _batches(own: int, evidence: Evidence) -> dict:
    """Of whatever is timed here: a batch of 0 is every one, a batch of another size is not."""
    entries = part(evidence.benched, INFERENCE, "inference", [])
    stored = {e["batch"] for e in entries} if own == 0 else set()
    return {f"batch {size} alone": size for size in sorted(stored)}


def _asked(
    words: str,
    gains: Iterable,
    told: Iterable[str],
    least: float = 0,
    turn: str = "",
    medians: bool = False,
) -> Finding:
    """Whether medians of gains are as many per cent as asked; of 0, whether all are above 0.

    turn: what lies above 0, where that is said. medians: of 0, whether the medians are above it.
    """
    gains = [np.atleast_1d(own) for own in gains]
    gains = [np.median(own, keepdims=True) for own in gains] if least or medians else gains
    reached = [bool((own >= least).all() if least else (own > 0).all()) for own in gains]
    some = Verdict.IN_PART if any(reached) else Verdict.NOT_SUPPORTED
    turn = f"at least {least:.3g}%" if least else turn
    words += f" Asked for: {turn}." if turn else ""
    return Finding(Verdict.HOLDS if all(reached) else some, "; ".join(told), words)


@here
def pass_time(
    evidence: Evidence,
    *,
    of: list,
    against: list,
    words: str,
    least: float = 0,
    more: bool = False,
    batch: int = 0,
    medians: bool = False,
) -> Finding:
    """Whether passes of pruned models take so many per cent less time than others, or `more`.

    of, against: [pruning ratio, whether the adapter is merged], by pairs, in the same rounds.
    batch: 0, every one that is timed.
    """
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): np.array(e["seconds"]) for e in entries}
    changes = {
        f"{f'{one[0]:.0%}, ' if of[1:] else ''}batch {size}": timed[place] / timed[*two, size] - 1
        for one, two in zip(of, against, strict=True)
        for place in timed
        if place[:2] == tuple(one) and (size := place[2]) and batch in (0, size)
    }
    if not changes:
        raise NotMeasured("No inference time of a pruned model is stored yet.")
    told = ", ".join(f"{name}: {np.median(own):+.1%} of time" for name, own in changes.items())
    gains = [100 * own if more else -100 * own for own in changes.values()]
    return _asked(words, gains, [told], least, f"each of {len(gains[0])} rounds", medians)


@here
def memory_saved(
    evidence: Evidence,
    *,
    side: str,
    least: float,
    against: str = "vanilla",
    greatly: float = 0,
    kept: Names = tuple(KEPT),
) -> Finding:
    """Whether a step of a criterion takes so many per cent less memory than another's.

    Both where activations are kept and where they are made again in the backward pass. greatly:
    the part of `least`, which is printed, that a word without a number asks for.
    """
    cost, saved, told = part(evidence.benched, CRITERIA, "cost", {}), [], []
    if not {side, against} <= cost.keys() or not cost["vanilla"]["step_bytes"]:
        raise NotMeasured("No memory of pruning is stored yet.")
    for name in kept:
        own, other = (all_bytes(cost[f"{one}{KEPT[name]}"]) for one in (side, against))
        saved.append(100 * (1 - own / other))
        told.append(f"{name}: {own / 1e6:.0f} of {other / 1e6:.0f} MB, {saved[-1]:.1f}% less")
    words = "Memory: model and the peak of a step; in a small model activations are much of it."
    return _asked(words, saved, told, least * (greatly or 1))


@here
def throughput_gained(
    evidence: Evidence,
    *,
    least: float,
    greatly: float = 0,
    kept: Names = tuple(KEPT),
    medians: bool = False,
) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost, gains, told = part(evidence.benched, CRITERIA, "cost", {}), [], []
    if not cost or not all("seconds" in own for own in cost.values()):
        raise NotMeasured("No times of steps are stored yet.")
    for name in kept:
        old, new = (
            np.array(cost[f"{one}{KEPT[name]}"]["seconds"]) for one in ("vanilla", "lora-guided")
        )
        gain = 100 * (np.median(old) / np.median(new) - 1)
        gains.append(gain if least else old - new)
        told.append(f"{name}: {gain:+.1f}% examples per second")
    words, turn = "Throughput: examples per second on a CPU.", f"each of {len(old)} steps"
    return _asked(words, gains, told, least * (greatly or 1), turn, medians)


def _masks(evidence: Evidence, share: float, kinds: Names) -> pd.DataFrame:
    """Comparisons of masks at a share; further: the part of the way from chance to all."""
    found = pruning_costs.agreement(evidence.benched).query("reduction == 'paper'")
    found = found[(found.share == share) & found.kind.isin(kinds)]
    if found.empty:
        raise NotMeasured("No similarity of masks is stored yet.")
    return found.assign(further=(found.same - found.chance_same) / (1 - found.chance_same))


@here
def masks_alike(
    evidence: Evidence, *, share: float, beyond: float, kinds: Names = KINDS
) -> Finding:
    """Whether both criteria agree on more groups than such a part of the way from chance to all."""
    own = _masks(evidence, share, kinds)
    told = f"agreement {own.same.mean():.1%}, {own.chance_same.mean():.1%} expected at random"
    kinds = " and ".join(own.kind.unique())
    words = f"At {share:.0%}; {len(own)} comparisons, of {kinds} and several adapters."
    turn = f"more than {beyond:.0%} of the way from random to full agreement"
    return _asked(words, own.further - beyond, [told], turn=turn)


@here
def masks_part(evidence: Evidence, *, shares: Sequence[float]) -> Finding:
    """Whether the criteria agree on fewer groups at the second share; and on fewer beyond chance.

    Two masks that know nothing agree on fewer at a higher share, too.
    """
    low, high = both = [_masks(evidence, share, ["channels"]) for share in shares]
    told = [
        f"{own.same.mean():.1%} at {share:.0%}, {own.further.mean():.0%} of the way from random to "
        "full agreement"
        for own, share in zip(both, shares, strict=True)
    ]
    words = "Channels of the MLPs. Random masks, too, agree on fewer at a higher pruning ratio."
    return _asked(words, [low[how].min() - high[how].max() for how in ("same", "further")], told)


# Tables above the claims --------------------------------------------------------------------------
def page_tables(evidence: Evidence) -> dict[str, pd.DataFrame | str]:
    """By the names that `recomputed` of loraprune.yaml has."""
    found = pd.concat([cells(evidence, table) for table in DECIMALS])
    known = evidence.printed["loraprune"]
    read = {key: told for key, told in known["sources"].items() if key in set(found.source)}
    shown = (found.shown + " (" + found.source + ")").unstack("column", sort=False)
    return {
        "at_hand": shown.rename(index=NAMES, columns=NAMES).rename_axis("LLaMA-7B, 50%"),
        "sources": "; ".join(f"*{key}*: {told}" for key, told in read.items()) + ".",
        "address": known["address"],
        "tuned_long": pruning_tables.tuned_long(evidence.prunings, grid().size(PROFILE), runs()),
    }
