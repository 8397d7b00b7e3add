"""What a criterion keeps beside the weights, counted from a model's shapes (LoRAPrune, Table 1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

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


def table(shapes: Sequence[Shape], rank: int) -> pd.DataFrame:
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
