"""Pruned models in the words of the claims' page: which are compared, where, of how many seeds."""

from collections.abc import Iterable, Mapping
from functools import cache

from tipmini.lab.claims.evidence import Evidence
from tipmini.lab.pruning import gaps
from tipmini.lab.pruning.declared import Planned, grid
from tipmini.lab.pruning.gaps import Gap, Model

PROFILE = "mini"


@cache
def runs() -> Mapping[str, Planned]:
    return grid().runs(PROFILE)


def gap(evidence: Evidence, one: Model, two: Model, measure: str) -> Gap | None:
    """Of what is stored: see `gaps.gap`."""
    return gaps.gap(evidence.prunings, runs(), one, two, measure)


def name(model: Model) -> str:
    """A model as a sentence calls it: "LoRAPrune, base in 8 bits", "the unpruned model"."""
    method, share, tuned = model
    whole = "the unpruned model, fine-tuned" if tuned else "the unpruned model"
    return grid().titles()[method] if share else whole


def setting(models: Iterable[Model]) -> str:
    """The share, and whether it is tuned, of models that a sentence sets against each other."""
    first, *others = models
    shares = {model[1] for model in (first, *others)} - {0.0}
    told = [f"{share:.0%}" for share in sorted(shares)]
    if len({model[2] for model in (first, *others)}) == 1:
        told += ["with fine-tuning" if first[2] else "without fine-tuning"]
    return ", ".join(told)


def seeds_told(found: Iterable[Gap]) -> str:
    """Of either side of every gap."""
    own, others = map(_counted, zip(*(gap.counts for gap in found), strict=True))
    return own if own == others else f"{own} against {others}"


def _counted(counts: Iterable[int]) -> str:
    low, high = (f(counts := list(counts)) for f in (min, max))
    if high == 1:
        return "one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"
