"""Where a criterion's step and a pruned model's pass spend their time: why the gain is no larger.

found is what is stored of the parts "pruning-*" of `make bench`.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from tipmini.lab.pruning.efficiency import Found
from tipmini.lab.statistics import MISSING

PRODUCTS = "products with the base's weights"
WEIGHTS = "gradients of these weights"
ADDING = "adding these up over the rows"
FACTORS = "products with the adapter's factors"
HEAD = "the vocabulary: logits and loss"
ATTENTION = "attention"
REST = "all else, element by element"
IMPORTANCES = "importances of all groups, once a step"
PARTS = (PRODUCTS, WEIGHTS, ADDING, FACTORS, HEAD, ATTENTION, REST, IMPORTANCES)
OF_A_PASS = (PRODUCTS, ATTENTION, HEAD, REST)
CRITERIA = {"vanilla": "vanilla, s", "lora-guided": "LoRA-guided, s"}

Seconds = Mapping[str, float]


def table(found: Found) -> pd.DataFrame:
    """Seconds of every part of a step by either criterion, and at the measured peak of products."""
    time = found.get("time", {"parts": {}, "best": {}})
    sides = {title: time["parts"].get(name, {}) for name, title in CRITERIA.items()}
    rows = _rows(sides, PARTS)
    for part in rows:
        seconds = time["best"].get(part)
        rows[part]["at the peak, s"] = "-" if seconds is None else f"{seconds:.2f}"
    return pd.DataFrame(rows).T.rename_axis("part of a step")


def _rows(columns: Mapping[str, Seconds], parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every part's seconds in every column, and those of all of them."""
    rows = {part: {title: _told(own, [part]) for title, own in columns.items()} for part in parts}
    return rows | {"all": {title: _told(own, parts) for title, own in columns.items()}}


def _told(own: Seconds, parts: Sequence[str]) -> str:
    return f"{sum(own[part] for part in parts):.2f}" if own else MISSING


def bound(found: Found) -> str:
    """What the gain would be if all that both criteria need beside the products took no time."""
    if "time" not in found:
        return f"Where the time goes is {MISSING}."
    vanilla, ours = (found["time"]["parts"][name] for name in CRITERIA)
    ratio = (vanilla[WEIGHTS] + vanilla[ADDING]) / vanilla[PRODUCTS]
    share = ours[PRODUCTS] / sum(ours.values())
    return (
        f"A step over {found['time']['rows']} rows. Both criteria need the products with the "
        f"base's weights. What the vanilla one alone needs takes {ratio:.2f} times as long: if all "
        f"else took no time, a LoRA-guided step would be {ratio:.1%} faster. But these products "
        f"are {share:.0%} of it."
    )


def lengths_table(found: Found) -> pd.DataFrame:
    """The gain in throughput over rows of several lengths."""
    rows = {}
    for entry in found.get("lengths", []):
        vanilla, ours = (entry["seconds"][name] for name in CRITERIA)
        speeds = (f"{entry['rows'] / seconds:.2f}" for seconds in (vanilla, ours))
        names = ("vanilla, rows a second", "LoRA-guided, rows a second", "faster by")
        values = (*speeds, f"{vanilla / ours - 1:+.1%}")
        rows[f"{entry['tokens']:.0f}"] = dict(zip(names, values, strict=True))
    rows = rows or {MISSING: {"faster by": "-"}}
    return pd.DataFrame(rows).T.rename_axis("tokens a row")


def pass_table(found: Found) -> pd.DataFrame:
    """Seconds of every part of a pass at every share, and the change against the unpruned model."""
    entries = found.get("pass", {"parts": []})["parts"]
    sides = {f"{entry['removed']:.1%} removed, s": entry["parts"] for entry in entries}
    rows = _rows(sides or {MISSING: {}}, OF_A_PASS)
    if entries:
        first, last = entries[0]["parts"], entries[-1]["parts"]
        for part in rows:
            own = OF_A_PASS if part == "all" else [part]
            ratio = sum(last[p] for p in own) / sum(first[p] for p in own)
            rows[part]["the last against the first"] = f"{ratio - 1:+.1%}"
    return pd.DataFrame(rows).T.rename_axis("part of a pass")
