"""Where a step of a criterion spends its time, as the bench measured it: why the gain is no larger.

found is what is stored of the part "pruning" of `make bench`, or None.
"""

import pandas as pd

from tipmini.lab.pruning.efficiency import Found
from tipmini.lab.statistics import MISSING

PRODUCTS = "products with the base's weights"
WEIGHTS = "gradients of these weights"
ADDING = "adding these up over the rows"
FACTORS = "the adapter's factors, and importances from them"
HEAD = "the vocabulary: logits and loss"
ATTENTION = "attention"
REST = "all else, element by element"
PARTS = (PRODUCTS, WEIGHTS, ADDING, FACTORS, HEAD, ATTENTION, REST)
CRITERIA = {"vanilla": "vanilla, s", "lora-guided": "LoRA-guided, s"}


def table(found: Found) -> pd.DataFrame:
    """Seconds of every part of a step by either criterion, and those of the machine's best."""
    parts, best = (found["time"][n] for n in ("parts", "best")) if found else ({}, {})
    rows = {}
    for part in PARTS:
        rows[part] = {t: _told(parts.get(name, {}).get(part)) for name, t in CRITERIA.items()}
        rows[part]["at the machine's best, s"] = _told(best[part]) if part in best else "-"
    whole = {name: sum(own.values()) for name, own in parts.items()}
    rows["all"] = {title: _told(whole.get(name)) for name, title in CRITERIA.items()}
    rows["all"]["at the machine's best, s"] = "-"
    return pd.DataFrame(rows).T.rename_axis("part of a step")


def _told(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{seconds:.2f}"


def bound(found: Found) -> str:
    """What the gain would be if all that both criteria need beside the products took no time."""
    if not found:
        return f"Where the time goes is {MISSING}."
    vanilla, ours = (found["time"]["parts"][name] for name in CRITERIA)
    ratio = (vanilla[WEIGHTS] + vanilla[ADDING]) / vanilla[PRODUCTS]
    share = ours[PRODUCTS] / sum(ours.values())
    return (
        "Both criteria need the products with the base's weights. What the vanilla one alone "
        f"needs takes {ratio:.2f} times as long: if all else took no time, a LoRA-guided step "
        f"would be {ratio:.1%} faster. But these products are {share:.0%} of it."
    )


def lengths_table(found: Found) -> pd.DataFrame:
    """The gain in throughput over rows of several lengths."""
    rows = {}
    for entry in found["lengths"] if found else []:
        vanilla, ours = (entry["seconds"][name] for name in CRITERIA)
        speeds = (f"{entry['rows'] / seconds:.2f}" for seconds in (vanilla, ours))
        names = ("vanilla, rows a second", "LoRA-guided, rows a second", "faster by")
        values = (*speeds, f"{vanilla / ours - 1:+.1%}")
        rows[f"{entry['tokens']:.0f}"] = dict(zip(names, values, strict=True))
    rows = rows or {MISSING: {"faster by": "-"}}
    return pd.DataFrame(rows).T.rename_axis("tokens a row")
