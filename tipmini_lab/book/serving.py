"""The chapter on serving: operations and bytes counted, stored times, their tables and figure."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
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
    """Of a pass over `tokens` new tokens per sequence after `past` ones; logits of the last only.

    adapted: whether every sequence has an adapter. How many different ones a batch mixes is no
    matter.
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


def floor_seconds(operations: float, moved: float, product: float, bandwidth: float) -> float:
    """The least time of a pass, at the speeds of matrix products and of memory; also of arrays."""
    return np.maximum(operations / product, moved / bandwidth)


def mixed(peft: nn.Module, names: Sequence[str]) -> Forward:
    """A pass in which the sequences of a batch use the named adapters in turn, unmerged."""

    def forward(tokens: Tensor, **options: object):
        rows = [names[i % len(names)] for i in range(len(tokens))]
        return peft(tokens, adapter_names=rows, **options)

    return forward


# results/serving.json -----------------------------------------------------------------------------
STORED = paths.REPOSITORY / "results" / "serving.json"
STEPS = {"prompt": "prompt", "token": "next token"}
TITLES = {"base": "base model", "one adapter": "one merged adapter"}
TITLES |= {"weights": "merged into the weights"}
TICKS = {"base": "0", "one adapter": "A", "weights": "W"}
PLACE = ["step", "batch"]


class Stored(BaseModel):
    """What the last measurement found, and what made it."""

    model_config = ConfigDict(extra="forbid")

    command: str
    date: str
    machine: dict[str, str | int]
    threads: int
    versions: dict[str, str]
    profile: str
    dtype: str
    matrix_product: float  # operations a second
    bandwidth: float  # bytes a second
    length: int  # tokens of a prompt
    rounds: int
    sizes: Sizes
    points: list[dict]  # of every way to serve, batch size and step

    @cached_property
    def seconds(self) -> pd.DataFrame:
        """(step, batch, round) x ways; NaN where a batch has fewer rows than adapters."""
        rows = pd.DataFrame(self.points).explode("seconds")
        rows["round"] = rows.groupby(level=0).cumcount()
        ways = rows[rows["batch"] == rows["batch"].max()]["way"].unique()
        wide = rows.pivot(index=[*PLACE, "round"], columns="way", values="seconds")
        return wide[ways].astype(float)

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """The same over the base model's seconds in the same round."""
        return self.seconds.div(self.seconds["base"], axis=0)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """(step, batch, way) x counts, MB of adapters kept, the least seconds needed, the median
        of those taken, and ratios to the base model's.

        slower: whether it took longer in every round than the base model and than the merge in
        the weights. These two are one program. Of three alike, one and the same is the slowest in
        all of five rounds once in 243 times.
        """
        frame = pd.DataFrame(self.points).set_index([*PLACE, "way"]).sort_index()
        speeds = self.matrix_product, self.bandwidth
        frame["kept"] = frame["adapters"] * self.sizes.adapter * self.sizes.width / 1e6
        frame["floor"] = floor_seconds(frame["operations"], frame["bytes"], *speeds)
        slower = self.seconds.gt(self.seconds[["base", "weights"]].max(axis=1), axis=0)
        wide = {
            "taken": self.seconds.groupby(PLACE).median(),
            "slower": slower.groupby(PLACE).all(),
        }
        wide |= {name: self.ratios.groupby(PLACE).agg(name) for name in ("median", "min", "max")}
        return frame.join(pd.DataFrame({name: own.stack() for name, own in wide.items()}))


def read() -> Stored:
    """The last measurement; raises TipminiError where there is none."""
    if not STORED.is_file():
        raise TipminiError(f"{STORED} is missing; run python -m bench serving")
    return Stored.model_validate_json(STORED.read_text())


def batches(found: Stored) -> list[int]:
    return list(found.seconds.index.unique("batch"))


def title(way: str) -> str:
    count = way.removeprefix("mixed ")
    return TITLES.get(way) or f"{count} unmerged adapter{'' if count == '1' else 's'}"


def most(found: Stored) -> str:
    """The mixed batch of the most adapters."""
    return f"mixed {found.frame['adapters'].max()}"


def relative(found: Stored, step: str, batch: int) -> dict[str, tuple[float, float, float]]:
    """{way: (median, least, most)} of its time over the base model's in the same round."""
    ratios = found.ratios.loc[step, batch].dropna(axis="columns").agg(["median", "min", "max"])
    return {way: tuple(own) for way, own in ratios.items()}


def slope(found: Stored, step: str, batch: int) -> np.ndarray:
    """What every further adapter of a mixed batch adds, as a share of the base model's time.

    Median, least and most over the rounds, by least squares within each: a drift of the machine
    from round to round has no part in it.
    """
    mixed = found.ratios.loc[step, batch].filter(like="mixed").dropna(axis="columns")
    counts = [int(way.removeprefix("mixed ")) for way in mixed]
    each = np.polyfit(counts, mixed.T, 1)[0]
    return np.array([np.median(each), each.min(), each.max()])


# What is shown ------------------------------------------------------------------------------------


def figure(found: Stored) -> Figure:
    """TIP's Figure 1: time of every way beside the base model's, and memory."""
    ticks = {way: TICKS.get(way, way.removeprefix("mixed ")) for way in found.seconds.columns}
    times = {
        f"batch {batch}": {
            name: {ticks[way]: ratio for way, ratio in relative(found, step, batch).items()}
            for step, name in STEPS.items()
        }
        for batch in batches(found)
    }
    memory = rises(found).filter(["base", most(found), "one adapter", "weights"], axis="index")
    lines = {title(way): own.dropna() for way, own in memory.iterrows()}
    drawn = {name: (list(own.index), list(own)) for name, own in lines.items()}
    return figures.serving(times, list(ticks.values()), drawn)


def rises(found: Stored) -> pd.DataFrame:
    """MB by which a pass over prompts rises above what is kept: the ways measured x batches."""
    wide = found.frame.loc["prompt"]["memory"].unstack("batch") / 1e6
    return wide.filter(found.seconds.columns, axis="index").dropna(how="all")


def table(found: Stored, shown: Sequence[int]) -> pd.DataFrame:
    """Every way: what it adds in counts, and its median times at some batch sizes."""
    whole = found.frame.loc["token", batches(found)[-1]]
    added = whole["operations"] / whole["operations"]["base"] - 1
    columns = {
        "adapter weights, MB": whole["kept"].map("{:.2f}".format),
        "operations, token": added.map("{:+.2%}".format),
        "matrix products": whole["adapters"].map(lambda count: str(products(found.sizes, count))),
    }
    for batch, (step, name) in itertools.product(shown, STEPS.items()):
        own = found.frame.loc[step, batch]
        times = (1e3 * own["taken"]).map("{:.0f} ms<br>".format)
        ratios = own.apply("{0[median]:.2f}<br>({0[min]:.2f}–{0[max]:.2f})".format, axis=1)
        columns[f"{name}, batch {batch}"] = times + ratios
    return (
        pd.DataFrame(columns, index=found.seconds.columns)
        .fillna("-")
        .rename(title)
        .rename_axis("configuration")
    )


def memory_table(found: Stored) -> pd.DataFrame:
    """MB of the adapters that a way keeps, and by how much a pass over prompts rises above that."""
    frame = rises(found).map("{:.0f}".format, na_action="ignore").rename(columns="batch {}".format)
    kept = found.frame.loc["token", batches(found)[-1]]["kept"]
    frame.insert(0, "adapter weights, MB", kept.map("{:.2f}".format))
    return frame.fillna("-").rename(title).rename_axis(index="configuration", columns=None)


def report(found: Stored) -> str:
    """What the terminal shows: every point, what each further adapter adds, and what made them."""
    facts = found.model_dump_json(exclude={"points"}, indent=1)
    added = {batch: slope(found, "token", batch).round(4).tolist() for batch in batches(found)[1:]}
    told = f"each further adapter, of the base model's next token: {added}"
    return "\n\n".join([found.frame.drop(columns="seconds").to_string(), told, facts])
