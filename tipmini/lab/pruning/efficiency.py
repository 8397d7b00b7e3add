"""What the bench measured of pruning, as tables and figure lines.

found is `benched.read()`; of a part that is missing a table has its rows and no numbers.
"""

import statistics
from collections.abc import Mapping

import pandas as pd
import yaml

from tipmini.groups import CHANNELS
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
PRINTED_TIME = "printed, LLaMA-7B"


def _in_print(table: str) -> Mapping[str, Mapping]:
    """A table of the paper, as far as its cells are known."""
    return yaml.safe_load(paths.PRINTED.read_text())["loraprune"][table]


# Table 3 ------------------------------------------------------------------------------------------


def inference_table(found: Found) -> pd.DataFrame:
    """Median seconds of a pass at every share, merged and not, and the change against unpruned.

    Beside them what is printed of LLaMA-7B.
    """
    entries = part(found, INFERENCE, "inference", [])
    batches = sorted({entry["batch"] for entry in entries}) or [1]
    rows, printed = {}, _in_print("time")
    for share in sorted({entry["share"] for entry in entries}) or SHARES:
        for merged in (True, False):
            own = [e for e in entries if (e["share"], e["merged"]) == (share, merged)]
            name = f"{share:.0%}, {'merged' if merged else 'adapter beside'}"
            rows[name] = {"really removed": f"{own[0]['removed']:.1%}" if own else MISSING}
            for batch in batches:
                rows[name] |= _timed(entries, own, batch)
            known = printed.get(name)
            rows[name][PRINTED_TIME] = f"{known['change']['value']:+.1f}%" if known else "-"
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
    rows = {title: _cost(cost, name) | _printed_cost(name) for name, title in SIDES.items()}
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


def _printed_cost(name: str) -> dict[str, str]:
    titles = ("printed, LLaMA-7B, GB", "printed, saved", "printed, faster by")
    if name not in PRINTED:
        return dict.fromkeys(titles, "-")
    memory, throughput = _in_print("memory"), _in_print("throughput")
    own, first = (memory[PRINTED[n]]["gigabytes"]["value"] for n in (name, "vanilla"))
    faster = throughput.get(PRINTED[name])
    gain = f"{faster['gain']['value']:+.1f}%" if faster else "-"
    return dict(zip(titles, (f"{own:.1f}", f"{1 - own / first:.1%}", gain), strict=True))


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
        f"{kept['printed, saved']}). **Throughput**: {kept['faster by']} and {again['faster by']} "
        f"(printed: {kept['printed, faster by']})."
    )


def _masks_told(found: Found, share: float = 0.1) -> str:
    entries, wanted = part(found, MASKS, "agreement", []), (CHANNELS, share, "paper")
    own = [e for e in entries if (e["kind"], e["share"], e["reduction"]) == wanted]
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
