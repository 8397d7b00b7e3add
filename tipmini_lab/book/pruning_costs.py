"""What pruning costs: memory counted from shapes, and what the bench stored of time and masks.

Every part has its own sizes, and `made`: the day, the machine and the versions.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import yaml

from tipmini.methods.groups import CHANNELS
from tipmini_lab import paths
from tipmini_lab.results.statistics import MISSING

PREFIX = "pruning-"
CRITERIA, MASKS, INFERENCE, PROFILE = PARTS = ("criteria", "masks", "inference", "profile")

Found = Mapping[str, Mapping]


def read() -> Found:
    """The parts that are stored; none where the file is missing."""
    if not paths.BENCH.is_file():
        return {}
    return of(json.loads(paths.BENCH.read_text()))


def of(stored: Mapping[str, Mapping]) -> Found:
    """Those of all parts of the bench that are about pruning."""
    names = {part: f"{PREFIX}{part}" for part in PARTS}
    return {part: stored[name] for part, name in names.items() if name in stored}


def part(found: Found, name: str, what: str, default: object) -> object:
    """One entry of a part, or what stands for it where it is not measured."""
    return found.get(name, {}).get(what, default)


def made_with(found: Found, name: str) -> str:
    """A sentence on the rows that a part read, and when it was measured on what."""
    if name not in found:
        return f"This part is {MISSING}: `python -m bench {PREFIX}{name}`."
    own = found[name]
    read = _passes(own) if name == INFERENCE else _rows(own)
    made = own["made"]
    return (
        f"{read}; an adapter of rank {own['rank']} on all seven matrices; {own['dtype']}. "
        f"Measured on {made['date']}, {made['machine']['processor']}, {made['threads']} threads."
    )


def _rows(own: Mapping) -> str:
    """Of steps; a bench of before has no number of them."""
    told = f"{own['rows']} rows of {own['task']} cut to {own['length']} tokens, one a pass"
    return f"{told}; {own['repeats']} steps of each" if "repeats" in own else told


def _passes(own: Mapping) -> str:
    prompts, rounds = ({f(e) for e in own["inference"]} for f in (_prompt, _rounds))
    lengths, counts = (" or ".join(map(str, sorted(one))) for one in (prompts, rounds))
    return f"Prompts of {lengths} tokens, each model {counts} times in turn"


def _prompt(entry: Mapping) -> int:
    return entry["prompt"]


def _rounds(entry: Mapping) -> int:
    return len(entry["seconds"])


# What a criterion keeps beside the weights --------------------------------------------------------
WIDTH = 2  # bytes of a weight, a gradient, an adapter's element: 16 bits
SCORE, MASK = 4, 1  # bytes of a float32 importance or norm, and of a mask's boolean


@dataclass(frozen=True)
class Shape:
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
    def inputs(self) -> int:
        """Channels that the matrices read, all together."""
        return self.layers * sum(k for _, k in self.modules)

    @property
    def groups(self) -> int:
        return self.layers * (self.heads + self.inner)

    def factors(self, rank: int) -> int:
        """Elements of A and B of all matrices."""
        return self.layers * rank * sum(d + k for d, k in self.modules)


LLAMA_7B = Shape("LLaMA-7B", 32, 4096, 11008, 4096, 32)
LLAMA_65B = Shape("LLaMA-65B", 80, 8192, 22016, 8192, 64)


@dataclass(frozen=True)
class Need:
    """What a method reads to prune, and the bytes of it beside weights, adapter, activations."""

    title: str
    gradients: str
    mask: str
    count: Callable[[Shape, int], int]  # of a shape and a rank


def _groups(shape: Shape) -> int:
    """An average importance and a mask of every group."""
    return (SCORE + MASK) * shape.groups


def _pst(shape: Shape, rank: int) -> int:
    """BA and a mask, each as large as W, and the gradients of the factors."""
    return (WIDTH + MASK) * shape.weights + WIDTH * shape.factors(rank)


NEEDS = (
    Need("magnitude", "none", "groups", lambda s, r: _groups(s)),
    Need("Wanda", "none, but norms", "groups", lambda s, r: _groups(s) + SCORE * s.inputs),
    Need("LLM-Pruner, vanilla", "of W", "groups", lambda s, r: _groups(s) + WIDTH * s.weights),
    Need("PST", "of A and B", "as large as W", lambda s, r: _pst(s, r)),
    Need("LoRAPrune", "of A and B", "groups", lambda s, r: _groups(s) + WIDTH * s.factors(r)),
)


def memory_table(shapes: Sequence[Shape], rank: int) -> pd.DataFrame:
    """Table 1, counted: gradients and masks of every method, and their bytes at each shape."""
    rows = {
        need.title: {"gradients": need.gradients, "mask in the forward pass": need.mask}
        | {shape.name: size(need.count(shape, rank)) for shape in shapes}
        for need in NEEDS
    }
    rows["for comparison: the weights"] = {"gradients": "", "mask in the forward pass": ""} | {
        shape.name: size(WIDTH * shape.weights) for shape in shapes
    }
    return pd.DataFrame(rows).T.rename_axis("method")


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return (
                f"{count / size:,.3g} {unit}"
                if count < 1000 * size
                else f"{count / size:,.0f} {unit}"
            )
    return f"{count / 1000:.3g} kB"


# What the bench measured of pruning, as tables and figure lines -----------------------------------
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


# How far two criteria mark the same groups at one moment (LoRAPrune -------------------------------
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


# Where a criterion's step and a pruned model's pass spend their time ------------------------------
PRODUCTS = "products with the base's weights"
WEIGHTS = "gradients of these weights"
ADDING = "adding these up over the rows"
FACTORS = "the adapter's factors"
HEAD = "the vocabulary: embedding, logits, loss"
ATTENTION = "attention between queries and values"
REST = "all else: norms, activations, copies"
IMPORTANCES = "importances of all groups"
STEP_PARTS = (PRODUCTS, WEIGHTS, ADDING, FACTORS, HEAD, ATTENTION, REST)  # of a row's two passes
OF_A_PASS = (PRODUCTS, ATTENTION, HEAD, REST)
SUM, WALL = "all of them", "without the profiler"
TIMED = {"vanilla": "vanilla, ms", "lora-guided": "LoRA-guided, ms"}


def step_table(found: Found) -> pd.DataFrame:
    """Milliseconds a row of every part of a step by either criterion.

    Importances are read off once a step, so a row has its part of them.
    """
    steps = part(found, PROFILE, "steps", {})
    rows = _step_time_rows(
        {t: steps.get(name) for name, t in TIMED.items()}, [*STEP_PARTS, IMPORTANCES]
    )
    for name, row in rows.items():
        seconds = part(found, PROFILE, "at_peak", {}).get(name)
        row["at the peak, ms"] = "-" if seconds is None else f"{1000 * seconds:.1f}"
    return pd.DataFrame(rows).T.rename_axis("part of a step")


def _step_time_rows(
    columns: Mapping[str, Mapping | None], parts: Sequence[str]
) -> dict[str, dict[str, str]]:
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
    vanilla, ours = (found[PROFILE]["steps"][name]["parts"] for name in TIMED)
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
    rows = _step_time_rows(
        {f"{e['removed']:.1%} removed, ms": e for e in passes} or {"ms": None}, OF_A_PASS
    )
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
