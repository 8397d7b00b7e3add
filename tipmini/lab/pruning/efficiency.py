"""What the bench measured of pruning, as tables and figure lines.

found is `benched.read()`; of a part that is missing a table has its rows and no numbers.
"""

import statistics
from collections.abc import Mapping

import pandas as pd
import yaml

from tipmini.lab import paths
from tipmini.lab.pruning.benched import CRITERIA, INFERENCE, MASKS, Found, part
from tipmini.lab.statistics import MISSING

SIDES = {
    "vanilla": "vanilla (Eq. 3)",
    "lora-guided": "LoRA-guided",
    "lora-guided int8": "in 8 bits",
}
RECOMPUTED = " recomputed"  # a layer's activations are made again in its backward pass
SIDES |= {f"{name}{RECOMPUTED}": f"{title}, recomputed" for name, title in SIDES.items()}
PRINTED = {
    "vanilla": "vanilla",
    "lora-guided": "lora_guided",
    "lora-guided int8": "lora_guided_8bit",
}
SHARES = (0.0, 0.2, 0.5)


# Table 3 ------------------------------------------------------------------------------------------


def inference_table(found: Found) -> pd.DataFrame:
    """Median seconds of a pass at every share, merged and not, and the change against unpruned."""
    entries = part(found, INFERENCE, "inference", [])
    batches = sorted({entry["batch"] for entry in entries}) or [1]
    rows = {}
    for share in sorted({entry["share"] for entry in entries}) or SHARES:
        for merged in (True, False):
            own = [e for e in entries if (e["share"], e["merged"]) == (share, merged)]
            name = f"{share:.0%}, {'merged' if merged else 'adapter beside'}"
            rows[name] = {"really removed": f"{own[0]['removed']:.1%}" if own else MISSING}
            for batch in batches:
                rows[name] |= _timed(entries, own, batch)
    return pd.DataFrame(rows).T.rename_axis("share, adapter")


def _timed(entries: list[dict], own: list[dict], batch: int) -> dict[str, str]:
    title, change = f"batch {batch}, s", f"batch {batch}, against unpruned"
    mine = [e for e in own if e["batch"] == batch]
    if not mine:
        return {title: MISSING, change: MISSING}
    whole = next(e for e in entries if (e["share"], e["merged"], e["batch"]) == (0, True, batch))
    seconds = statistics.median(mine[0]["seconds"])
    return {title: f"{seconds:.3f}", change: _ratios(mine[0]["seconds"], whole["seconds"])}


def _ratios(mine: list[float], whole: list[float]) -> str:
    """The median of the rounds' ratios, minus 1, and the least and the most."""
    found = sorted(100 * (a / b - 1) for a, b in zip(mine, whole, strict=True))
    return f"{statistics.median(found):+.1f}% [{found[0]:+.1f}, {found[-1]:+.1f}]"


# Table 4 ------------------------------------------------------------------------------------------


def cost_table(found: Found) -> pd.DataFrame:
    """Memory and throughput of every criterion, against the vanilla one, and what is printed."""
    cost = part(found, CRITERIA, "cost", {})
    printed = yaml.safe_load(paths.PRINTED.read_text())["loraprune"]["memory"]
    rows = {title: _cost(cost, name) | _in_print(printed, name) for name, title in SIDES.items()}
    return pd.DataFrame(rows).T.rename_axis("criterion")


def _cost(cost: Mapping, name: str) -> dict[str, str]:
    names = ("model, MB", "a step above it, MB", "of a step saved", "of all saved")
    names += ("rows a second", "faster by")
    if name not in cost:
        return dict.fromkeys(names, MISSING)
    own, first = cost[name], cost[against(name)]
    step, other = own["step_bytes"], first["step_bytes"]
    total, most = all_bytes(own), all_bytes(first)
    values = (
        f"{own['model_bytes'] / 1e6:.0f}",
        "not known" if step is None else f"{step / 1e6:.0f}",
        "not known" if step is None else f"{1 - step / other:.1%}",
        f"{1 - total / most:.1%}",
        f"{own['rows_a_second']:.2f}",
        f"{own['rows_a_second'] / first['rows_a_second'] - 1:+.1%}",
    )
    return dict(zip(names, values, strict=True))


def all_bytes(cost: Mapping) -> float:
    """Of the model, and of a step's peak above it where that is known."""
    return cost["model_bytes"] + (cost["step_bytes"] or 0)


def against(name: str) -> str:
    """The vanilla side that a side is compared with: both keep activations, or neither does."""
    return f"vanilla{RECOMPUTED if name.endswith(RECOMPUTED) else ''}"


def _in_print(printed: Mapping, name: str) -> dict[str, str]:
    if name not in PRINTED:
        return {"printed, GB": "-", "printed, saved": "-"}
    own, first = (printed[PRINTED[n]]["gigabytes"]["value"] for n in (name, "vanilla"))
    return {"printed, GB": f"{own:.1f}", "printed, saved": f"{1 - own / first:.1%}"}


# Figure 4 -----------------------------------------------------------------------------------------


def agreement_lines(found: Found) -> dict[str, dict[str, tuple[list, list, list, list]]]:
    """{kind: {reduction: (shares, mean over seeds, least, most)}} of groups judged alike."""
    entries = part(found, MASKS, "agreement", [])
    lines: dict[str, dict] = {}
    for kind, reduction in dict.fromkeys((e["kind"], e["reduction"]) for e in entries):
        own = [e for e in entries if (e["kind"], e["reduction"]) == (kind, reduction)]
        points = [
            (share, [e["same"] for e in own if e["share"] == share])
            for share in sorted({e["share"] for e in own})
        ]
        title = "squares, as printed" if reduction == "paper" else "as released"
        lines.setdefault(kind, {})[title] = (
            [share for share, _ in points],
            [statistics.mean(same) for _, same in points],
            [min(same) for _, same in points],
            [max(same) for _, same in points],
        )
    return lines


def chance_lines(found: Found) -> dict[str, tuple[list, list]]:
    """{kind: (shares, groups that two random masks judge alike)}."""
    entries = part(found, MASKS, "agreement", [])
    chance: dict[str, dict[float, float]] = {}
    for entry in entries:
        chance.setdefault(entry["kind"], {})[entry["share"]] = entry["chance_same"]
    return {kind: (sorted(own), [own[s] for s in sorted(own)]) for kind, own in chance.items()}


def overlap_table(found: Found) -> pd.DataFrame:
    """Of the groups that the vanilla criterion removes, those that LoRA-guided removes too."""
    entries = [e for e in part(found, MASKS, "agreement", []) if e["both"] is not None]
    rows: dict[str, dict[str, str]] = {}
    for kind, share in sorted({(e["kind"], e["share"]) for e in entries}):
        row = {}
        for reduction in ("paper", "released"):
            own = [e for e in entries if (e["kind"], e["share"]) == (kind, share)]
            both = [e["both"] for e in own if e["reduction"] == reduction]
            row[reduction] = f"{statistics.mean(both):.1%}" if both else MISSING
        row["by chance"] = f"{own[0]['chance_both']:.1%}"
        rows[f"{kind}, {share:.0%}"] = row
    if not rows:
        rows[MISSING] = dict.fromkeys(("paper", "released", "by chance"), "-")
    return pd.DataFrame(rows).T.rename_axis("removed by both")


# All of it in words -------------------------------------------------------------------------------


def summary(found: Found) -> str:
    """The criterion's cost, its masks and the pruned model's time, a sentence each."""
    return " ".join([_cost_told(found), _masks_told(found), _time_told(found)])


def _cost_told(found: Found) -> str:
    if CRITERIA not in found:
        return f"The criterion's cost is {MISSING}."
    table = cost_table(found)
    kept, again = (table.loc[SIDES[f"lora-guided{end}"]] for end in ("", RECOMPUTED))
    return (
        f"**Memory** above the model, LoRA-guided against vanilla: {kept['of a step saved']} "
        f"saved, {again['of a step saved']} where activations are made again; of all memory "
        f"{kept['of all saved']} and {again['of all saved']} (printed, for LLaMA-7B: "
        f"{kept['printed, saved']}). **Throughput**: {kept['faster by']} and {again['faster by']}."
    )


def _masks_told(found: Found, share: float = 0.1) -> str:
    entries = part(found, MASKS, "agreement", [])
    own = [e for e in entries if (e["share"], e["reduction"]) == (share, "paper") and e["removed"]]
    if not own:
        return f"The agreement of the masks is {MISSING}."
    same, chance = (statistics.mean(e[name] for e in own) for name in ("same", "chance_same"))
    return f"**Masks** at {share:.0%}: {same:.1%} of the channels alike, {chance:.1%} by chance."


def _time_told(found: Found) -> str:
    entries = part(found, INFERENCE, "inference", [])
    if not entries:
        return f"The pruned model's time is {MISSING}."
    share, batch = (max(entry[name] for entry in entries) for name in ("share", "batch"))
    column = f"batch {batch}, against unpruned"
    change = inference_table(found).loc[f"{share:.0%}, merged", column]
    return f"**Time** of a pass without {share:.0%} of the weights, batch {batch}: {change}."
