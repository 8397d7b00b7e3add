"""What pruning costs: memory counted from shapes, and what the bench stored of time and masks.

Every part has its own sizes, and `made`: the day, the machine and the versions.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from tipmini_lab import paths
from tipmini_lab.book.pruning_tables import formatted
from tipmini_lab.book.tables import TITLES, threads
from tipmini_lab.results.statistics import MISSING

PREFIX = "pruning-"
CRITERIA, MASKS, INFERENCE, PROFILE, ZEROS = PARTS = (
    *("criteria", "masks", "inference", "profile", "zeros"),
)

Found = Mapping[str, Mapping]


def read() -> Found:
    """The parts that are stored; none where the file is missing."""
    return of(json.loads(paths.BENCH.read_text())) if paths.BENCH.is_file() else {}


def of(stored: Mapping[str, Mapping]) -> Found:
    """Those of all parts of the bench that are about pruning."""
    names = {part: f"{PREFIX}{part}" for part in PARTS}
    return {part: stored[name] for part, name in names.items() if name in stored}


def part(found: Found, name: str, what: str, default: object) -> object:
    """One entry of a part, or what stands for it where it is not measured."""
    return found.get(name, {}).get(what, default)


def made_with(found: Found, name: str) -> str:
    """A table's note: the examples that a part read, and when it was measured on what."""
    if name not in found:
        return f"This part is {MISSING}: `python -m bench {PREFIX}{name}`."
    own, made = found[name], found[name]["made"]
    measured = f"Measured on {made['date']}, {made['machine']['processor']}"
    if name == ZEROS:
        rounds = len(own["passes"][0]["seconds"])
        told = f"One row; each model {rounds} times in turn; seconds of one thread's processor"
        return f"{told}; {own['dtype']}. {measured}."
    if name == INFERENCE:
        prompt, rounds = own["inference"][0]["prompt"], len(own["inference"][0]["seconds"])
        read = f"Prompts of {prompt} tokens, each model {rounds} times in turn"
    else:
        read = f"{own['rows']} examples of {TITLES[own['task']]}, "
        read += f"truncated to {own['length']} tokens, one per pass"
        read += f"; {own['repeats']} steps of each" if "repeats" in own else ""
    return (
        f"{read}; an adapter of rank {own['rank']} on all seven matrices; {own['dtype']}. "
        f"{measured}, {threads(made['threads'])}."
    )


# What a criterion keeps beside the weights --------------------------------------------------------
WIDTH = 2  # bytes of a weight, a gradient, an adapter's element: 16 bits
SCORE, MASK = 4, 1  # bytes of a float32 importance or norm, and of a mask's boolean


class Shape(NamedTuple):
    """A LLaMA's sizes: those of its attention and MLP matrices, which are pruned."""

    name: str
    layers: int
    hidden: int
    inner: int
    key_value: int  # outputs of k, and of v
    heads: int  # groups of heads of a layer

    @classmethod
    def of(cls, name: str, config: Mapping[str, int]) -> "Shape":
        """From a config.json."""
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        heads = config["num_key_value_heads"]
        sizes = (config["hidden_size"], config["intermediate_size"], heads * size)
        return cls(name, config["num_hidden_layers"], *sizes, heads)

    @property
    def modules(self) -> list[tuple[int, int]]:
        """(d, k) of the seven matrices of a layer."""
        h, i, kv = self.hidden, self.inner, self.key_value
        return [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)]

    @property
    def weights(self) -> int:
        return self.layers * sum(d * k for d, k in self.modules)

    @property
    def norm_bytes(self) -> int:
        """Of a norm for every channel that a matrix reads."""
        return SCORE * self.layers * sum(k for _, k in self.modules)

    @property
    def group_bytes(self) -> int:
        """Of an average importance and a mask for every group."""
        return (SCORE + MASK) * self.layers * (self.heads + self.inner)

    def factors(self, rank: int) -> int:
        """Elements of A and B of all matrices."""
        return self.layers * rank * sum(d + k for d, k in self.modules)


LLAMA_7B = Shape("LLaMA-7B", 32, 4096, 11008, 4096, 32)
LLAMA_65B = Shape("LLaMA-65B", 80, 8192, 22016, 8192, 64)


class Need(NamedTuple):
    """What a method reads to prune, and the bytes of it beside weights, adapter, activations."""

    title: str
    gradients: str
    mask: str
    count: Callable[[Shape, int], int]  # of a shape and a rank


def _pst(shape: Shape, rank: int) -> int:
    """BA and a mask, each as large as W, and the gradients of the factors."""
    return (WIDTH + MASK) * shape.weights + WIDTH * shape.factors(rank)


NEEDS = (
    Need("magnitude", "none", "groups", lambda s, r: s.group_bytes),
    Need("Wanda", "none, but norms", "groups", lambda s, r: s.group_bytes + s.norm_bytes),
    Need("LLM-Pruner, vanilla", "of W", "groups", lambda s, r: s.group_bytes + WIDTH * s.weights),
    Need("PST", "of A and B", "as large as W", _pst),
    Need("LoRAPrune", "of A and B", "groups", lambda s, r: s.group_bytes + WIDTH * s.factors(r)),
)


def memory_table(shapes: Sequence[Shape], rank: int) -> pd.DataFrame:
    """Table 1, counted: gradients and masks of every method, and their bytes at each shape."""
    rows = {
        need.title: {shape.name: size(need.count(shape, rank)) for shape in shapes}
        | {"gradients": need.gradients, "mask in the forward pass": need.mask}
        for need in NEEDS
    }
    weights = {shape.name: size(WIDTH * shape.weights) for shape in shapes}
    table = pd.DataFrame(rows | {"for comparison: the weights": weights}).T
    return table.fillna("").rename_axis("method")


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    units = {"GB": 10**9, "MB": 10**6, "kB": 10**3}
    name = next((name for name, unit in units.items() if count >= unit), "kB")
    form = ",.0f" if count >= 1000 * units[name] else ".3g"
    return f"{count / units[name]:{form}} {name}"


# What the bench measured of pruning, as tables ----------------------------------------------------
RECOMPUTED = " recomputed"  # a layer's activations are made again in its backward pass
SIDES = {
    "vanilla": "vanilla (Eq. 3)",
    "lora-guided": "LoRA-guided",
    "lora-guided int8": "in 8 bits",
}
SIDES |= {
    f"{name}{RECOMPUTED}": f"{title}, gradient checkpointing" for name, title in SIDES.items()
}
TOLD = {"lora_guided": "lora-guided", "lora_guided_8bit": "lora-guided int8"}
TOLD |= {"llm_pruner": "vanilla", "loraprune": "lora-guided", "loraprune_8bit": "lora-guided int8"}
SHARES = (0.0, 0.2, 0.5)
PRINTED_TIME = "printed, LLaMA-7B"


def _told(table: str, column: str, rows: Iterable[str]) -> pd.Series:
    """A column of printed.yaml in the bench's rows; NaN where a cell is not known."""
    cells = yaml.safe_load(paths.PRINTED.read_text())["loraprune"][table]
    known = {name: cell[column]["value"] for name, cell in cells.items()}
    return pd.Series(known).rename(TOLD).reindex([*rows])


def inference_table(found: Found) -> pd.DataFrame:
    """Table 3: median seconds of a pass at every share, merged and not, and what is printed.

    Against the unpruned merged model: the median of the rounds' ratios, minus 1, and its ends.
    """
    entries = part(found, INFERENCE, "inference", [])
    batches = sorted({e["batch"] for e in entries}) or [1]
    shares = sorted({e["share"] for e in entries}) or SHARES
    rows = {
        (share, merged): f"{share:.0%}, {'merged' if merged else 'adapter beside'}"
        for share, merged in product(shares, (True, False))
    }
    heads = [f"batch {batch}, {what}" for batch in batches for what in ("against unpruned", "s")]
    table = pd.DataFrame(MISSING, index=[*rows.values()], columns=[*heads, "actually removed"])
    whole = {e["batch"]: e["seconds"] for e in entries if e["merged"] and not e["share"]}
    for e in entries:
        change = 100 * (np.divide(e["seconds"], whole[e["batch"]]) - 1)
        row, batch = rows[e["share"], e["merged"]], f"batch {e['batch']}"
        ends = f"[{change.min():+.1f}, {change.max():+.1f}]"
        table.loc[row, "actually removed"] = f"{e['removed']:.1%}"
        table.loc[row, f"{batch}, s"] = f"{np.median(e['seconds']):.3f}"
        table.loc[row, f"{batch}, against unpruned"] = f"{np.median(change):+.1f}% {ends}"
    table[PRINTED_TIME] = formatted(_told("time", "change", table.index), "{:+.1f}%", "-")
    return table.rename_axis("pruning ratio, adapter")


def cost_table(found: Found) -> pd.DataFrame:
    """Table 4: memory and throughput of every criterion, against the vanilla one, printed and told.

    Sides that make activations again are set against the vanilla one that does, too.
    """
    stored = {name: dict(own) for name, own in part(found, CRITERIA, "cost", {}).items()}
    columns = ["model_bytes", "step_bytes", "rows_a_second"]
    cost = pd.DataFrame(stored, index=columns, columns=[*SIDES], dtype=float).T
    vanilla = [f"vanilla{RECOMPUTED if name.endswith(RECOMPUTED) else ''}" for name in SIDES]
    first = cost.loc[vanilla].set_axis(cost.index)
    total, most = (one.model_bytes + one.step_bytes.fillna(0) for one in (cost, first))
    not_known = cost.model_bytes.map(lambda known: MISSING if pd.isna(known) else "not known")
    cells = {
        "of all saved": (1 - total / most, "{:.1%}"),
        "faster by": (cost.rows_a_second / first.rows_a_second - 1, "{:+.1%}"),
        "of a step saved": (1 - cost.step_bytes / first.step_bytes, "{:.1%}", not_known),
        "model, MB": (cost.model_bytes / 1e6, "{:.0f}"),
        "a step, MB": (cost.step_bytes / 1e6, "{:.0f}", not_known),
        "examples per second": (cost.rows_a_second, "{:.2f}"),
        "7B, note, GB": (_told("memory", "gigabytes", SIDES), "{:.1f}", "-"),
        "printed, saved": (_told("saved", "memory", SIDES), "{:.1f}%", "-"),
        "printed, faster by": (_told("throughput", "gain", SIDES), "{:+.1f}%", "-"),
    }
    table = pd.DataFrame({head: formatted(*cell) for head, cell in cells.items()})
    # On a line each, or the last column is cut off on a laptop.
    titles = {name: title.replace(", ", ",<br>") for name, title in SIDES.items()}
    return table.rename(titles).rename_axis("criterion")


def all_bytes(cost: Mapping) -> float:
    """Of the model, and of a step's peak above it where that is known."""
    return cost["model_bytes"] + (cost["step_bytes"] or 0)


# Zeros that leave all shapes ----------------------------------------------------------------------
DENSE, GROUPS = "no zeros", "half removed by groups"
ROWS, TWO_OF_FOUR = "half zeros, unstructured", "half zeros, 2:4"
CSR, SPARSER = f"{ROWS}, stored as CSR", "nine of ten zeros, unstructured, stored as CSR"


def zeros_table(found: Found) -> pd.DataFrame:
    """A pass's time and the matrices' bytes over those of no zeros, by what the weights are.

    Of a time the median of the rounds' ratios, and its ends.
    """
    entries = part(found, ZEROS, "passes", [])
    whole = {e["tokens"]: e for e in entries if e["way"] == DENSE}
    rows: dict[str, dict[str, str]] = {}
    for e in entries:
        ratios = np.divide(e["seconds"], whole[e["tokens"]]["seconds"])
        row = rows.setdefault(e["way"], {})
        ends = f"[{ratios.min():.2f}, {ratios.max():.2f}]"
        read = "one token" if e["tokens"] == 1 else f"{e['tokens']} tokens"
        row[f"time, {read}"] = f"{np.median(ratios):.2f} {ends}"
    for e in entries:
        rows[e["way"]]["bytes"] = f"{e['bytes'] / whole[e['tokens']]['bytes']:.2f}"
        rows[e["way"]]["zeros"] = f"{e['zeros']:.0%}"
    table = pd.DataFrame(rows or {MISSING: {"bytes": "-", "zeros": "-"}}).T
    return table.rename_axis("weights")


# How far two criteria mark the same groups at one moment (LoRAPrune's Figure 4) -------------------
REDUCTIONS = {"paper": "squares, as in Eq. 10", "released": "as released"}


def agreement(found: Found) -> pd.DataFrame:
    """A line a comparison of masks where any group goes; gone: the share of the groups that does.

    same: groups judged alike; both: of those that the vanilla criterion removes, those that
    LoRA-guided removes too; chance_*: of two masks that know nothing.
    """
    columns = ["kind", "share", "reduction", "groups", "removed", "same", "both"]
    columns += ["chance_same", "chance_both"]
    every = pd.DataFrame(part(found, MASKS, "agreement", []), columns=columns)
    return every[every.removed > 0].assign(gone=every.removed / every.groups)


def alike(found: Found) -> pd.DataFrame:
    """Figure 4: kind, line, x (share gone), y (mean of seeds), low, high, chance: groups alike."""
    by = agreement(found).groupby(["kind", "reduction", "gone"])
    means = by.agg(y=("same", "mean"), low=("same", "min"), high=("same", "max"))
    means = means.assign(chance=by["chance_same"].first()).rename(REDUCTIONS)
    return means.rename_axis(["kind", "line", "x"]).reset_index()


def overlap_table(found: Found) -> pd.DataFrame:
    """Of the groups that the vanilla criterion removes, those that LoRA-guided removes too."""
    rows: dict[str, dict[str, str]] = {}
    for (kind, removed), own in agreement(found).groupby(["kind", "removed"]):
        shares = " and ".join(f"{share:.0%}" for share in sorted({*own.share}))
        both = own.groupby("reduction")["both"].mean().map("{:.1%}".format).rename(REDUCTIONS)
        row = {"removed": f"{removed:,} of {own.groups.iloc[0]:,}", **both}
        rows[f"{kind}, {shares}"] = row | {"expected at random": f"{own.chance_both.iloc[0]:.1%}"}
    heads = ["removed", *REDUCTIONS.values(), "expected at random"]
    table = pd.DataFrame(rows or {MISSING: {}}, index=heads, dtype=object).T
    return table.fillna("-").rename_axis("removed by both")


# Where a criterion's step and a pruned model's pass spend their time ------------------------------
PRODUCTS = "products with the base's weights"
WEIGHTS = "gradients of these weights"
ADDING = "summing these over the examples"
FACTORS = "the adapter's factors"
HEAD = "the vocabulary: embedding, logits, loss"
ATTENTION = "attention between queries and values"
REST = "all else: norms, activations, copies"
IMPORTANCES = "importances of all groups"  # read off once a step, so a row has its part of them
STEP_PARTS = (PRODUCTS, WEIGHTS, ADDING, FACTORS, HEAD, ATTENTION, REST)  # of a row's two passes
OF_A_PASS = (PRODUCTS, ATTENTION, HEAD, REST)
SUM, WALL = "sum", "without the profiler"
TIMED = {"vanilla": "vanilla, ms", "lora-guided": "LoRA-guided, ms"}


def step_times(found: Found) -> pd.DataFrame:
    """Milliseconds a row of every part of a step by either criterion; NaN: not measured.

    At the peak: what the products take at the measured speed of matrix products alone.
    """
    steps = part(found, PROFILE, "steps", {})
    entries = {title: steps.get(name) for name, title in TIMED.items()}
    times = _milliseconds(entries, [*STEP_PARTS, IMPORTANCES]).rename_axis("part of a step")
    at_peak = pd.Series(part(found, PROFILE, "at_peak", {}), times.index, float)
    return times.assign(**{"at the peak, ms": 1000 * at_peak})


def pass_times(found: Found) -> pd.DataFrame:
    """Milliseconds of every part of a pass at every share."""
    passes = part(found, PROFILE, "passes", [])
    entries = {f"{e['removed']:.1%} removed, ms": e for e in passes} or {"ms": None}
    return _milliseconds(entries, OF_A_PASS).rename_axis("part of a pass")


def _milliseconds(entries: Mapping[str, Mapping | None], parts: Sequence[str]) -> pd.DataFrame:
    """Every part's in every column, their sum, and what a clock says."""
    columns = {t: pd.Series(e["parts"] if e else {}, parts, float) for t, e in entries.items()}
    times = pd.DataFrame(columns)
    times.loc[SUM] = times.sum(min_count=1)
    times.loc[WALL] = [entry["seconds"] if entry else None for entry in entries.values()]
    return 1000 * times
