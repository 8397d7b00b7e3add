"""The chapter on serving: operations and bytes counted, stored times, its figure and its words."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import figures

Forward = Callable[..., object]  # a pass over (B, T) token numbers, options as transformers' own


def module_operations(d: int, k: int) -> int:
    """Operations of y = W x for one token, W (d, k): a product and a sum for every weight."""
    return 2 * d * k


def adapter_operations(d: int, k: int, rank: int) -> int:
    """Operations of B (A x) for one token: k to r channels, then r to d."""
    return 2 * rank * (d + k)


@dataclass(frozen=True)
class Sizes:
    """Numbers of elements that the counts follow from."""

    linear: int  # weights of all linear layers in the transformer blocks
    modules: int  # how many layers these are
    head: int  # weights that turn a hidden state into logits
    adapter: int  # weights of one adapter: sum of r (d + k)
    adapted: int  # modules that an adapter changes
    attention: int  # channels of all query heads in all blocks
    cache: int  # keys and values of one token in all blocks
    width: int  # bytes of an element


def sizes(model: nn.Module, adapter: tm.LoraAdapter) -> Sizes:
    """Of a LLaMA-like model without PEFT, and of an adapter for it."""
    linear = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    pairs, config = adapter.factors.values(), model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Sizes(
        linear=sum(layer.weight.numel() for layer in linear),
        modules=len(linear),
        head=model.lm_head.weight.numel(),
        adapter=sum(pair.a.numel() + pair.b.numel() for pair in pairs),
        adapted=len(pairs),
        attention=config.num_hidden_layers * config.num_attention_heads * head,
        cache=config.num_hidden_layers * config.num_key_value_heads * head * 2,
        width=model.dtype.itemsize,
    )


def operations(s: Sizes, rows: int, tokens: int, past: int, adapted: bool) -> int:
    """Of a pass over `tokens` new tokens a row that follow `past` ones; logits of the last only.

    adapted: whether every row has an adapter. How many different ones a batch mixes is no matter.
    """
    pairs = tokens * past + tokens * (tokens + 1) // 2  # (query, key), causal
    weights = s.linear + s.adapter * adapted
    return 2 * rows * (tokens * weights + s.head + 2 * s.attention * pairs)


def moved(s: Sizes, rows: int, tokens: int, past: int, adapters: int) -> int:
    """Bytes of the same pass: all weights and adapters once, the keys and values of all tokens."""
    return s.width * (s.linear + s.head + adapters * s.adapter + s.cache * rows * (past + tokens))


def products(s: Sizes, adapters: int) -> int:
    """Matrix products with weights in one pass: two more a module for every different adapter."""
    return s.modules + 1 + 2 * s.adapted * adapters


def floor_seconds(point: dict, found: dict) -> float:
    """The time below which a point can't come at the speeds measured in the same run."""
    speeds = (("operations", "matrix_product"), ("bytes", "bandwidth"))
    return max(point[needed] / found[speed] for needed, speed in speeds)


def mixed(peft: nn.Module, names: Sequence[str]) -> Forward:
    """A pass in which the rows of a batch have the named adapters in turn, unmerged."""

    def forward(tokens: Tensor, **options: object):
        rows = [names[i % len(names)] for i in range(len(tokens))]
        return peft(tokens, adapter_names=rows, **options)

    return forward


# results/serving.json -----------------------------------------------------------------------------
STORED = paths.REPOSITORY / "results" / "serving.json"
STEPS = {"prompt": "prompt", "token": "next token"}
TITLES = {
    "base": "base model",
    "one adapter": "one merged adapter",
    "weights": "merged into the weights",
}
TICKS = {"base": "0", "one adapter": "A", "weights": "W"}


def read() -> dict:
    """The stored figures of the last measurement; raises TipminiError where there are none."""
    if not STORED.is_file():
        raise TipminiError(f"{STORED} is missing; run python -m bench serving")
    return json.loads(STORED.read_text())


def title(way: str) -> str:
    count = way.removeprefix("mixed ")
    plural = "" if count == "1" else "s"
    return TITLES.get(way) or f"{count} unmerged adapter{plural}"


def points(found: dict, step: str, batch: int) -> dict[str, dict]:
    """{way: point} of one step at one batch size."""
    chosen = [p for p in found["points"] if (p["step"], p["batch"]) == (step, batch)]
    return {p["way"]: p for p in chosen}


def batches(found: dict) -> list[int]:
    return sorted({point["batch"] for point in found["points"]})


def ways(found: dict) -> list[str]:
    """All ways to serve, in their order."""
    return list(points(found, "prompt", batches(found)[-1]))


def most(found: dict) -> str:
    """The mixed batch of the most adapters."""
    return f"mixed {max(point['adapters'] for point in found['points'])}"


def relative(found: dict, step: str, batch: int) -> dict[str, tuple[float, float, float]]:
    """{way: (median, least, most)} of its time over the base model's in the same round."""
    chosen = points(found, step, batch)
    base, ratios = chosen["base"]["seconds"], {}
    for way, point in chosen.items():
        each = [own / alone for own, alone in zip(point["seconds"], base, strict=True)]
        ratios[way] = statistics.median(each), min(each), max(each)
    return ratios


def slower(found: dict, step: str, batch: int, way: str) -> bool:
    """Whether it took longer in every round than the base model and than the merge in the weights.

    These two are one program. Of three alike, one and the same is the slowest in all of five rounds
    once in 243 times.
    """
    chosen = points(found, step, batch)
    alike = zip(chosen["base"]["seconds"], chosen["weights"]["seconds"], strict=True)
    return all(own > max(two) for own, two in zip(chosen[way]["seconds"], alike, strict=True))


def slope(found: dict, step: str, batch: int) -> tuple[float, float, float]:
    """What every further adapter of a mixed batch adds, as a share of the base model's time.

    Median, least and most over the rounds, by least squares within each: a drift of the machine
    from round to round has no part in it.
    """
    chosen = points(found, step, batch)
    mixed = [point for way, point in chosen.items() if way.startswith("mixed")]
    counts = [point["adapters"] for point in mixed]
    rounds = np.array([point["seconds"] for point in mixed]) / chosen["base"]["seconds"]
    each = np.polyfit(counts, rounds, 1)[0].tolist()
    return statistics.median(each), min(each), max(each)


# Figure -------------------------------------------------------------------------------------------


def figure(found: dict) -> Figure:
    """TIP's Figure 1: time of every way beside the base model's, and memory."""
    times = {
        f"batch {batch}": {
            name: {
                TICKS.get(way) or way.removeprefix("mixed "): ratio
                for way, ratio in relative(found, step, batch).items()
            }
            for step, name in STEPS.items()
        }
        for batch in batches(found)
    }
    ticks = [TICKS.get(way) or way.removeprefix("mixed ") for way in ways(found)]
    return figures.serving(times, ticks, memory_lines(found))


def memory_lines(found: dict) -> dict[str, tuple[list[int], list[float]]]:
    """{title: (batch sizes, MB that a pass over prompts takes)} of what differs most."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for way in ("base", most(found), "one adapter", "weights"):
        for batch in batches(found):
            risen = memory(found, way, batch)
            if risen is not None:
                sizes, megabytes = lines.setdefault(title(way), ([], []))
                sizes.append(batch)
                megabytes.append(risen / 1e6)
    return lines


# Tables -------------------------------------------------------------------------------------------


def table(found: dict, shown: tuple[int, ...]) -> pd.DataFrame:
    """Every way: what it adds in counts, and its median times at some batch sizes."""
    rows = {title(way): _counts(found, way) | _times(found, way, shown) for way in ways(found)}
    return pd.DataFrame(rows).T.rename_axis("served")


def _counts(found: dict, way: str) -> dict[str, str]:
    size, last = Sizes(**found["sizes"]), batches(found)[-1]
    own, base = (points(found, "token", last)[name] for name in (way, "base"))
    return _adapters(found, way) | {
        "operations, token": f"{own['operations'] / base['operations'] - 1:+.2%}",
        "matrix products": str(products(size, own["adapters"])),
    }


def _adapters(found: dict, way: str) -> dict[str, str]:
    size, last = Sizes(**found["sizes"]), batches(found)[-1]
    weights = points(found, "token", last)[way]["adapters"] * size.adapter * size.width
    return {"adapter weights, MB": f"{weights / 1e6:.2f}"}


def _times(found: dict, way: str, shown: tuple[int, ...]) -> dict[str, str]:
    cells = {}
    for batch in shown:
        for step, name in STEPS.items():
            cells[f"{name}, batch {batch}"] = _time(found, way, step, batch)
    return cells


def _time(found: dict, way: str, step: str, batch: int) -> str:
    point = points(found, step, batch).get(way)
    if point is None:
        return "-"
    middle, low, high = relative(found, step, batch)[way]
    taken = statistics.median(point["seconds"])
    return f"{taken * 1e3:.0f} ms<br>{middle:.2f} ({low:.2f} to {high:.2f})"


def memory_table(found: dict) -> pd.DataFrame:
    """MB of the adapters that a way keeps, and by how much a pass over prompts rises above that."""
    rows = {title(way): _adapters(found, way) | _rises(found, way) for way in ways(found)}
    rows = {name: row for name, row in rows.items() if len(row) > 1}  # not measured of all
    return pd.DataFrame(rows).T.fillna("-").rename_axis("served")


def _rises(found: dict, way: str) -> dict[str, str]:
    risen = {batch: memory(found, way, batch) for batch in batches(found)}
    return {f"batch {b}": f"{rise / 1e6:.0f}" for b, rise in risen.items() if rise is not None}


def memory(found: dict, way: str, batch: int) -> float | None:
    """Bytes by which a pass over prompts rises above what is kept; None where not measured."""
    return points(found, "prompt", batch).get(way, {}).get("memory")


def floor_table(found: dict) -> pd.DataFrame:
    """Median times of some ways as multiples of the time that they need at least."""
    rows = {}
    for way in ("base", most(found), "one adapter", "weights"):
        rows[title(way)] = {
            f"{name}, batch {batch}": above_floor(found, way, step, batch)
            for step, name in STEPS.items()
            for batch in batches(found)
            if way in points(found, step, batch)
        }
    return pd.DataFrame(rows).fillna("-").rename_axis("step")


def above_floor(found: dict, way: str, step: str, batch: int) -> str:
    """The median time as a multiple of the least time it needs, and that time."""
    point = points(found, step, batch)[way]
    least = floor_seconds(point, found)
    return f"{statistics.median(point['seconds']) / least:.1f} × {least * 1e3:.1f} ms"


# What was measured of serving, in words -----------------------------------------------------------
def provenance(found: dict) -> str:
    """What the numbers were measured on, with and how often."""
    machine, speeds = found["machine"], (found["matrix_product"] / 1e9, found["bandwidth"] / 1e9)
    versions = ", ".join(f"{n} {found['versions'][n]}" for n in ("torch", "transformers", "peft"))
    return (
        f"Measured by `{found['command']}` on {found['date']}: {machine['processor']}, "
        f"{machine['cores']} cores, {found['threads']} threads, {versions}, {found['dtype']}, "
        f"prompts of {found['length']} tokens, {found['rounds']} rounds. In the same run a large "
        f"matrix product reached {speeds[0]:.0f} GFLOP/s and a copy in memory {speeds[1]:.0f} GB/s."
    )


def counted(found: dict) -> str:
    """What the operations of the table stand beside: the whole pass, not its blocks alone."""
    size = Sizes(**found["sizes"])
    return (
        "Operations are those of one token a row and of the whole pass: the head and attention "
        f"count among the base model's. Beside its {size.modules} linear layers alone, an "
        f"adapter's are {size.adapter / size.linear:+.2%}. Matrix products are counted in one pass."
    )


def drift(found: dict, batch: int) -> str:
    """Why a ratio of the table is not that of the two times above it."""
    taken = [1e3 * s for s in points(found, "prompt", batch)["base"]["seconds"]]
    return (
        f"The machine has not one speed: the base model's own {len(taken)} passes over the prompt "
        f"at batch {batch} took {min(taken):.0f} to {max(taken):.0f} ms. A time is the median of "
        "its own rounds; a ratio is the median of the ratios within each round, so it is not the "
        "quotient of two times in the table. Where the speed changed within a round, that "
        "round's ratios are off too, and the range from the least to the most is wide."
    )


def summary(found: dict, batch: int) -> str:
    """What came out at one batch size."""
    said = [_step(found, step, batch) for step in STEPS]
    return " ".join([*said, _further(found, batch)])


def _step(found: dict, step: str, batch: int) -> str:
    middle, low, high = relative(found, step, batch)["weights"]
    ways = "; ".join(_way(found, step, batch, way) for way in (most(found), "one adapter"))
    return (
        f"At batch {batch} a pass over the {STEPS[step]} takes, as a multiple of the base model's "
        f"time, {middle:.2f} ({low:.2f} ... {high:.2f}) with the merge in the weights, which is "
        f"the same program; {ways}."
    )


def _way(found: dict, step: str, batch: int, way: str) -> str:
    told = "slower than both in every round"
    if not slower(found, step, batch, way):
        told = "not significantly apart from measuring one program twice"
    return f"{relative(found, step, batch)[way][0]:.2f} with {title(way)}, {told}"


def _further(found: dict, batch: int) -> str:
    shares, size = slope(found, "token", batch), Sizes(**found["sizes"])
    base = statistics.median(points(found, "token", batch)["base"]["seconds"])
    more, least, at_most = (share * base for share in shares)
    return (
        f"Each further adapter adds {shares[0]:.1%} of the base model's time to the pass over the "
        f"next token. Of its median time of {base * 1e3:.0f} ms that is {more * 1e3:.1f} ms "
        f"({least * 1e3:.1f} ... {at_most * 1e3:.1f} over the rounds), "
        f"{more / size.adapted * 1e6:.0f} µs for each of the {size.adapted} adapted modules."
    )


def twice(found: dict, batch: int) -> str:
    """The memory of one program in two processes: what no difference can be surer than."""
    risen = [memory(found, way, batch) for way in ("base", "weights")]
    if None in risen:
        return ""
    base, weights = (round(rise / 1e6) for rise in risen)
    return (
        f"At batch {batch} a pass of the base model rose by {base} MB and one of the merge in the "
        f"weights by {weights} MB. These are one program, so a difference of "
        f"{max(1, abs(base - weights))} MB tells nothing."
    )


def floors(found: dict, batch: int) -> str:
    """How far the base and the fullest mixed batch are from what they need at least."""
    said = []
    for way in ("base", most(found)):
        above = (above_floor(found, way, step, batch) for step in STEPS)
        named = (f"{a} ({name})" for a, name in zip(above, STEPS.values(), strict=True))
        said.append(f"{title(way)}: {' and '.join(named)}")
    return f"Measured time as a multiple of the floor at batch {batch}: {'; '.join(said)}."


def report(found: dict) -> str:
    """What the terminal shows."""
    last = batches(found)[-1]
    parts = [table(found, (last,)), memory_table(found), floor_table(found)]
    texts = [part.to_string().replace("<br>", " ") for part in parts]
    return "\n\n".join([*texts, summary(found, last), provenance(found)])
