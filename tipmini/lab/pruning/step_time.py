"""Where a criterion's step and a pruned model's pass spend their time: why the gain is no larger.

found is `benched.read()`.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from tipmini.lab.pruning.benched import PROFILE, Found, part
from tipmini.lab.statistics import MISSING

PRODUCTS = "products with the base's weights"
WEIGHTS = "gradients of these weights"
ADDING = "adding these up over the rows"
FACTORS = "the adapter's factors"
HEAD = "the vocabulary: embedding, logits, loss"
ATTENTION = "attention between queries and values"
REST = "all else: norms, activations, copies"
IMPORTANCES = "importances of all groups"
PARTS = (PRODUCTS, WEIGHTS, ADDING, FACTORS, HEAD, ATTENTION, REST)  # of a row's two passes
OF_A_PASS = (PRODUCTS, ATTENTION, HEAD, REST)
SUM, WALL = "all of them", "without the profiler"
CRITERIA = {"vanilla": "vanilla, ms", "lora-guided": "LoRA-guided, ms"}


def table(found: Found) -> pd.DataFrame:
    """Milliseconds a row of every part of a step by either criterion.

    Importances are read off once a step, so a row has its part of them.
    """
    steps = part(found, PROFILE, "steps", {})
    rows = _rows({t: steps.get(name) for name, t in CRITERIA.items()}, [*PARTS, IMPORTANCES])
    for name, row in rows.items():
        seconds = part(found, PROFILE, "at_peak", {}).get(name)
        row["at the peak, ms"] = "-" if seconds is None else f"{1000 * seconds:.1f}"
    return pd.DataFrame(rows).T.rename_axis("part of a step")


def _rows(columns: Mapping[str, Mapping | None], parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every part's milliseconds in every column, their sum, and what a clock says."""

    def told(own: Mapping | None, names: Sequence[str]) -> str:
        return f"{1000 * sum(own['parts'][name] for name in names):.1f}" if own else MISSING

    rows = {name: {title: told(own, [name]) for title, own in columns.items()} for name in parts}
    rows[SUM] = {title: told(own, parts) for title, own in columns.items()}
    walls = {t: f"{1000 * own['seconds']:.1f}" if own else MISSING for t, own in columns.items()}
    return rows | {WALL: walls}


def bound(found: Found) -> str:
    """What the gain can be at most, and what is in its way."""
    if PROFILE not in found:
        return f"Where the time goes is {MISSING}."
    vanilla, ours = (found[PROFILE]["steps"][name]["parts"] for name in CRITERIA)
    spared = vanilla[WEIGHTS] + vanilla[ADDING]
    return (
        "A vanilla step multiplies by matrices of the weights' size three times for every token: "
        "forward, backward to the inputs, and for the gradients of the weights. The LoRA-guided "
        "criterion spares the third. Were products all that a step does, each as fast as another, "
        "it would be faster by one half; the 64.6% that the paper prints is more than that, so "
        "more than these products sets its two criteria apart. Here, by measured times, what is "
        f"spared is {spared / vanilla[PRODUCTS]:.1%} of the two products that stay, but only "
        f"{spared / sum(vanilla.values()):.0%} of a whole vanilla step; and the products are "
        f"{ours[PRODUCTS] / sum(ours.values()):.0%} of a LoRA-guided one."
    )


def pass_table(found: Found) -> pd.DataFrame:
    """Milliseconds of every part of a pass at every share, and the last share against the first."""
    passes = part(found, PROFILE, "passes", [])
    rows = _rows({f"{e['removed']:.1%} removed, ms": e for e in passes} or {"ms": None}, OF_A_PASS)
    for name in [*OF_A_PASS, SUM, WALL] if passes else ():
        first, last = (_seconds(entry, name) for entry in (passes[0], passes[-1]))
        rows[name]["the last against the first"] = f"{last / first - 1:+.1%}"
    return pd.DataFrame(rows).T.rename_axis("part of a pass")


def _seconds(entry: Mapping, name: str) -> float:
    if name == WALL:
        return entry["seconds"]
    return sum(entry["parts"][one] for one in (OF_A_PASS if name == SUM else [name]))


def pass_bound(found: Found) -> str:
    """Why half of the weights is not half of the time."""
    passes = part(found, PROFILE, "passes", [])
    if not passes:
        return f"Where a pass spends its time is {MISSING}."
    whole, least = passes[0], passes[-1]
    changes = {n: 1 - _seconds(least, n) / _seconds(whole, n) for n in (PRODUCTS, ATTENTION)}
    shares = {n: _seconds(whole, n) / _seconds(whole, SUM) for n in changes}
    return (
        f"Without {least['removed']:.1%} of the weights the products take {changes[PRODUCTS]:.1%} "
        f"less time; they are {shares[PRODUCTS]:.0%} of the unpruned model's pass. Attention is "
        f"{shares[ATTENTION]:.0%} of it and takes {changes[ATTENTION]:.1%} less: a layer has few "
        "groups of heads, and only whole ones go ({numref}`tab-loraprune-shares`). What is done on "
        "the hidden states stays, since their width is not pruned."
    )
