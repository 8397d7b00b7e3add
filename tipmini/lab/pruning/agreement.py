"""How far two criteria mark the same groups at one moment (LoRAPrune, Fig. 4), from the bench.

A place is a number of groups that goes: shares of which whole groups make the same are one place,
and shares at which nothing goes are none.
"""

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from tipmini.lab.pruning.benched import MASKS, Found, part
from tipmini.lab.statistics import MISSING

REDUCTIONS = {"paper": "squares, as printed", "released": "as released"}
Line = tuple[list[float], list[float], list[float], list[float]]


def entries(found: Found, kind: str | None = None) -> list[dict]:
    """What was measured where any group goes, of one kind or all."""
    every = part(found, MASKS, "agreement", [])
    return [e for e in every if e["removed"] and kind in (None, e["kind"])]


def kinds(found: Found) -> list[str]:
    return list(dict.fromkeys(entry["kind"] for entry in entries(found)))


def lines(found: Found) -> dict[str, dict[str, Line]]:
    """{kind: {reduction: (shares really gone, mean over seeds, least, most)}} of groups alike."""
    told: dict[str, dict[str, Line]] = {}
    for kind in kinds(found):
        for reduction, title in REDUCTIONS.items():
            own = [e for e in entries(found, kind) if e["reduction"] == reduction]
            points = [(_gone(place), [e["same"] for e in place]) for place in _places(own)]
            told.setdefault(kind, {})[title] = (
                [share for share, _ in points],
                [statistics.mean(same) for _, same in points],
                [min(same) for _, same in points],
                [max(same) for _, same in points],
            )
    return told


def chance(found: Found) -> dict[str, tuple[list, list]]:
    """{kind: (shares really gone, groups that two random masks judge alike)}."""
    told = {}
    for kind in kinds(found):
        places = list(_places(entries(found, kind)))
        told[kind] = [_gone(p) for p in places], [p[0]["chance_same"] for p in places]
    return told


def overlap_table(found: Found) -> pd.DataFrame:
    """Of the groups that the vanilla criterion removes, those that LoRA-guided removes too."""
    rows: dict[str, dict[str, str]] = {}
    for kind in kinds(found):
        for place in _places(entries(found, kind)):
            row = {"gone": f"{place[0]['removed']:,} of {place[0]['groups']:,}"}
            for reduction in REDUCTIONS:
                both = [e["both"] for e in place if e["reduction"] == reduction]
                row[reduction] = f"{statistics.mean(both):.1%}" if both else MISSING
            rows[_title(kind, place)] = row | {"by chance": f"{place[0]['chance_both']:.1%}"}
    if not rows:
        rows[MISSING] = dict.fromkeys(("gone", *REDUCTIONS, "by chance"), "-")
    return pd.DataFrame(rows).T.rename_axis("removed by both")


SMALLEST = 0.2  # of a layer's channels, by their weights


def loudest_told(found: Found) -> str:
    """A sentence on the channels with the largest activations: where magnitude ranks them."""
    every = part(found, MASKS, "loudest", [])
    if not every:
        return f"How large the activations of channels are is {MISSING}."
    light = [e for e in every if e["lighter"] < SMALLEST]
    most = max(every, key=lambda e: e["times"])
    where = ", ".join(str(e["layer"] + 1) for e in light)
    own = found[MASKS]
    return (
        f"Measured on SmolLM2-135M without an adapter, {own['rows']} rows of {own['task']}: "
        f"the channel with the largest activation is by its weights among the smallest "
        f"{SMALLEST:.0%} of its layer in {len(light)} of {len(every)} layers"
        f"{f' ({where})' if light else ''}; {SMALLEST * len(every):.0f} would be, had the two "
        f"nothing to do with each other. It stands out the most in layer {most['layer'] + 1}: its "
        f"norm is {most['times']:,.0f} times the median channel's, and {most['lighter']:.0%} of "
        "the layer's channels have less weight."
    )


def _title(kind: str, place: Sequence[Mapping]) -> str:
    """The kind and the shares asked for that come to these groups."""
    shares = sorted({entry["share"] for entry in place})
    return f"{kind}, {' and '.join(f'{share:.0%}' for share in shares)}"


def _places(own: Sequence[dict]) -> list[list[dict]]:
    """The entries of every number of groups that goes, in order."""
    counts = sorted({entry["removed"] for entry in own})
    return [[e for e in own if e["removed"] == count] for count in counts]


def _gone(place: Sequence[Mapping]) -> float:
    return place[0]["removed"] / place[0]["groups"]
