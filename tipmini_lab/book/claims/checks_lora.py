"""LoRA's claims: checks of its printed cells, of counts, of the equations, of tunings and bench."""

import numpy as np
import pandas as pd
import torch

from tipmini.papers import lora
from tipmini_lab.book import lora_tables
from tipmini_lab.book.claims import Verdict
from tipmini_lab.book.claims.checks import (
    NEAR,
    Evidence,
    Finding,
    Names,
    NotMeasured,
    here,
    in_print,
)
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import Verdict as Compared

PROFILE = "mini"
PUBLIC = "Read in public copies of the paper."


def _plain(numbers: dict) -> dict:
    """Python's own, of which comparisons are Python's own too."""
    return {name: float(value) for name, value in numbers.items()}


# What is printed ----------------------------------------------------------------------------------
@in_print
def lora_counts(evidence: Evidence, *, models: Names) -> dict:
    """Of LoRA on q and v: per cent of the model, millions, times fewer; least and most."""
    found = lora_tables.counts().loc[list(models)]
    percent, millions = 100 * found.share, found.trained / 1e6
    ends = {"least": percent.min(), "most": percent.max(), "times": found.times.min()}
    return _plain(ends | {"fewest": millions.min(), "largest": millions.max()})


@in_print
def lora_fewer(evidence: Evidence, *, of: str) -> dict:
    """How many times less LoRA takes of a quantity than full tuning, by printed numbers."""
    full, ours = (evidence.printed["lora"][of][name] for name in ("full", "lora"))
    return {"times": full / ours}


@in_print
def lora_throughput(evidence: Evidence) -> dict:
    """What printed numbers of tokens a second make, in per cent: gained speed, and saved time."""
    rates = evidence.printed["lora"]["throughput"]
    gained, saved = rates["lora"] / rates["full"] - 1, 1 - rates["full"] / rates["lora"]
    return {"gained": 100 * gained, "saved": 100 * saved}


@in_print
def lora_adapters_added(evidence: Evidence) -> dict:
    """Per cent that bottleneck adapters add to a pass at batch 1, Table 1; least and most."""
    row = evidence.printed["lora"]["latency"][-1]
    added = [100 * (row[name] / row["lora"] - 1) for name in ("adapter_l", "adapter_h")]
    return {"least": min(added), "most": max(added)}


@in_print
def lora_at_least_full(evidence: Evidence, *, table: str) -> Finding:
    """Whether LoRA's printed cells are not below full tuning's."""
    cells = evidence.printed["lora"][table]
    if table == "gpt3":
        full, *ours = cells.values()
        pairs = [(full[task], one[task]) for one in ours for task in full]
    else:
        pairs = [(row["full"], row["lora"]) for row in cells.values()]
    good = sum(_not_below(*pair) for pair in pairs)
    some = Verdict.IN_PART if good else Verdict.DOES_NOT_HOLD
    told = "; ".join(f"{full} full, {ours} LoRA" for full, ours in pairs)
    return Finding(Verdict.HOLDS if good == len(pairs) else some, told, PUBLIC)


def _not_below(full: float | str, ours: float | str) -> bool:
    """Of several scores in a cell, "52.0 / 28.0 / 44.5", each."""
    every = zip(str(full).split(" / "), str(ours).split(" / "), strict=True)
    return all(float(one) >= float(other) for other, one in every)


@in_print
def lora_started_elsewhere(evidence: Evidence) -> dict:
    """How many tasks' runs began at a model that MNLI had adapted."""
    tasks = evidence.printed["lora"]["from_mnli"]
    return {"value": len(tasks), "tasks": ", ".join(tasks)}


# The equations ------------------------------------------------------------------------------------
def _factors() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=draw) for shape in ((24, 16), (8, 16)))
    return weight, x, *lora.initial_factors(24, 16, 4, draw)


@here
def lora_starts_unchanged(evidence: Evidence) -> dict:
    """Whether Eq. 3 with B = 0 gives W x to the last bit."""
    weight, x, a, b = _factors()
    return {"value": torch.equal(lora.forward(x, weight, a, b, alpha=8), x @ weight.T)}


@here
def lora_reaches_any_update(evidence: Evidence) -> dict:
    """Whether BA of full rank is any matrix, by its singular value decomposition."""
    update, *_ = _factors()
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    gap = (lora.merged(torch.zeros_like(update), vh, u * s) - update).abs().max().item()
    return {"value": gap < 1e-4, "gap": gap}


@here
def lora_adapter_share(evidence: Evidence, *, rank: int) -> dict:
    """Per cent of SmolLM2-135M that AdapterH of this rank trains, by its count."""
    shape = evidence.printed["lora"]["models"]["smollm2"]
    count = lora.adapter_parameters(2 * shape["layers"], shape["width"], rank)
    return {"value": 100 * count / shape["parameters"], "count": count}


# What was measured --------------------------------------------------------------------------------
@here
def lora_not_below(evidence: Evidence, *, against: Names) -> Finding:
    """Whether LoRA is below none of the ways `against`, at one budget: significantly, nor by `NEAR`
    in any interval."""
    own, told = _beside_others(against)
    worse, near = (own.verdict == Compared.WORSE).sum(), (own.low > -NEAR).all()
    some = Verdict.CONTRARY if 2 * worse > len(own) else Verdict.IN_PART
    words = f"Points by which LoRA is above; it is significantly below {worse} of {len(own)}."
    open_or_held = Verdict.HOLDS if near else Verdict.NOT_SUPPORTED
    return Finding(some if worse else open_or_held, told, words)


@here
def lora_above(evidence: Evidence, *, against: Names) -> Finding:
    """Whether LoRA is significantly above all of the ways `against`, at one budget."""
    own, told = _beside_others(against)
    better, worse = ((own.verdict == v).sum() for v in (Compared.BETTER, Compared.WORSE))
    some = Verdict.IN_PART if better else Verdict.NOT_SUPPORTED
    found = Verdict.CONTRARY if 2 * worse > len(own) else some
    words = f"Points by which LoRA is above; significantly {better}, below {worse} of {len(own)}."
    return Finding(Verdict.HOLDS if better == len(own) else found, told, words)


def _beside_others(against: Names) -> tuple[pd.DataFrame, str]:
    """The chapter's tests of LoRA with these ways, and the differences in words."""
    profile, group = load_profile(PROFILE), "lora-methods"
    compared = lora_tables.against(
        lora_tables.runs(profile, group), lora_tables.rows(profile, group)
    ).set_index("against")
    own = compared.loc[list(against)]
    if (own.verdict == Compared.MISSING).any():
        raise NotMeasured("Not measured yet: `tipmini measure --group lora-methods`.")
    told = "; ".join(f"{one.title} {100 * one.value:+.1f}" for one in own.itertuples())
    return own, told


def _bench() -> dict:
    if not (found := lora_tables.bench()):
        raise NotMeasured("Not measured yet: `python -m bench lora`.")
    return found


@here
def lora_pass_added(evidence: Evidence, *, ways: Names, batch: int, length: int) -> dict:
    """Per cent that ways add to the base model's pass; least and most of their medians."""
    own = lora_tables.ratios(_bench()).loc[batch, length].loc[list(ways)]
    added = 100 * (own["median"] - 1)
    return _plain({"least": added.min(), "most": added.max()})


@here
def lora_step(evidence: Evidence) -> dict:
    """A step of full tuning over one of LoRA: `memory`, weights included, and `seconds`."""
    memory, gain = lora_tables.step_memory(_bench()), lora_tables.step_gain(_bench())
    return {"memory": memory, "seconds": gain.value}


@here
def lora_switched(evidence: Evidence) -> dict:
    """Milliseconds to another task's BA in the weights, beside them, and to another whole model."""
    taken = _bench()["switching"]["seconds"]
    merged, beside, whole = (1e3 * float(np.median(own)) for own in taken.values())
    return {"merged": merged, "beside": beside, "whole": whole, "times": whole / merged}


@here
def lora_update_rank(evidence: Evidence) -> dict:
    """Per cent of the square of full tuning's update in its first 8 directions, least projection;
    and of the weights' own."""
    found = lora_tables.spectra(load_profile(PROFILE))
    if found.empty:
        raise NotMeasured("Not measured yet: `tipmini measure --group lora-methods`.")
    update, weight = (100 * found.loc[of][8] for of in ("update", "weight"))
    return _plain({"update": update.min(), "weight": weight.max()})


@here
def lora_longer_prefix(evidence: Evidence, *, more: int, less: int) -> dict:
    """Whether more virtual tokens in every layer are significantly `worse` than fewer, corrected
    for all lengths and prompts."""
    profile, group = load_profile(PROFILE), "lora-prefixes"
    known = lora_tables.runs(profile, group), lora_tables.rows(profile, group)
    one = (
        lora_tables.against(*known, of=f"prefix-{more}").set_index("against").loc[f"prefix-{less}"]
    )
    if one.verdict == Compared.MISSING:
        raise NotMeasured(f"Not measured yet: `tipmini measure --group {group}`.")
    return {
        "worse": one.verdict == Compared.WORSE,
        "shown": f"{100 * one.value:+.1f} points [{100 * one.low:+.1f}, {100 * one.high:+.1f}]",
        "words": f"{more} prefix tokens against {less}, {one.verdict}.",
    }


@here
def lora_one_rate(evidence: Evidence, *, ranks: tuple[int, ...] = (2, 64)) -> dict:
    """Whether with alpha fixed the best learning rate is that of rank 8 at other ranks."""
    best = lora_tables.best_rates(lora_tables.runs(load_profile(PROFILE), "lora-scalings"))
    wanted = ["r8-both", *(f"r{rank}-divided" for rank in ranks)]
    if not set(wanted) <= best.keys():
        raise NotMeasured("Not measured yet: `tipmini measure --group lora-scalings`.")
    rates = [best[name] for name in wanted]
    return {"value": len(set(rates)) == 1, "rates": ", ".join(f"{rate:g}" for rate in rates)}
