"""What is removed together: attention heads and MLP channels, found from the model itself.

A group is a set of rows and columns of several weights of one layer that only work together
(LoRAPrune, Fig. 5): the rows of q, k, v and the columns of o that belong to one head; the rows of
gate and up and the column of down that belong to one channel. With grouped-query attention a group
of heads is a whole key-value head with the query heads that read it, so that what is left is a
model of the same kind. SmolLM2-135M has three such groups a layer: its heads can be pruned by a
third, by two thirds, or not at all, and channels make up the rest of a share.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from tipmini.errors import TipminiError, require_share

HEADS, CHANNELS = "heads", "channels"
PARTS = {  # kind of group -> the module of a layer, its linear parts and their dims
    HEADS: ("self_attn", {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}),
    CHANNELS: ("mlp", {"gate_proj": 0, "up_proj": 0, "down_proj": 1}),
}


class Member(NamedTuple):
    """A linear module whose rows (dim 0) or columns (dim 1) the groups divide equally."""

    module: str
    dim: int


@dataclass(frozen=True)
class Family:
    """The groups of one attention or one MLP; all of a size."""

    name: str  # of the module that holds the members: "model.layers.0.self_attn"
    layer: int
    kind: str  # HEADS or CHANNELS
    count: int  # groups
    size: int  # weights of one group, over all members
    members: tuple[Member, ...]
    queries: int = 1  # query heads of one group, of HEADS

    @property
    def weights(self) -> int:
        return self.count * self.size


def find_families(model: nn.Module) -> list[Family]:
    """Attention and MLP of every layer of a LLaMA-like causal model, PEFT around it or not.

    Sizes are read off the weights (a model on the device "meta" will do). Raises TipminiError for
    a model whose layers have no q, k, v, o or gate, up, down projections of their own.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = {id(module): name for name, module in causal.named_modules()}
    found = []
    for number, layer in enumerate(getattr(getattr(causal, "base_model", causal), "layers", ())):
        for kind, (place, parts) in PARTS.items():
            module = getattr(layer, place, None)
            if not all(hasattr(module, part) for part in parts):
                where = f"{names[id(layer)]}.{place}"
                raise TipminiError(f"{where}: no {', '.join(parts)}; only LLaMAs can be pruned")
            linear = {part: getattr(module, part) for part in parts}
            name, queries = names[id(module)], 1
            if kind == CHANNELS:
                count = linear["gate_proj"].out_features
            else:
                count = linear["k_proj"].out_features // module.head_dim
                queries = linear["q_proj"].out_features // module.head_dim // count
            size = sum(one.in_features * one.out_features for one in linear.values()) // count
            members = tuple(Member(f"{name}.{part}", dim) for part, dim in parts.items())
            found.append(Family(name, number, kind, count, size, members, queries))
    if not found:
        raise TipminiError(f"{type(causal).__name__}: no layers found; only LLaMAs can be pruned")
    return found


def exempt_layers(layers: int, first: float = 0.0, last: int = 0) -> set[int]:
    """The numbers of the layers that stay whole: a share of them from the first on, and the last.

    The authors' code exempts the first 10% (rounded down) and the last one; the text at hand
    speaks of none.
    """
    require_share("the share of first layers that are exempt", first)
    return {*range(int(layers * first)), *range(max(0, layers - last), layers)}


def quotas(
    families: Sequence[Family],
    share: float,
    *,
    head_share: float | None = None,
    channel_share: float | None = None,
    exempt: Collection[int] = (),
    hidden_size: int | None = None,
) -> dict[str, int]:
    """How many groups of each family go, so that every layer not exempt loses `share` of its
    weights.

    share counts weights of the attention and MLP matrices, not embeddings or norms. Of the heads'
    groups the largest number goes that is at most head_share (by default `share`) of them; then as
    many channels as fill the layer's share up without exceeding it, or channel_share of them where
    that is given. One group of each family stays. hidden_size: take only a number of heads that
    leaves a divisor of it, as transformers' LlamaConfig demands; of 32 heads and 4096 that allows
    16 to go, and none at a share of 20%. Raises TipminiError for a share that cannot be met.
    """
    for what, value in {"share": share, "head_share": head_share or 0}.items():
        require_share(what, value)
    require_share("channel_share", channel_share or 0)
    found = {family.name: 0 for family in families}
    by_layer = {(family.layer, family.kind): family for family in families}
    for layer in {family.layer for family in families} - set(exempt):
        heads, channels = by_layer[layer, HEADS], by_layer[layer, CHANNELS]
        gone = _heads(heads, share if head_share is None else head_share, hidden_size)
        rest = share * (heads.weights + channels.weights) - gone * heads.size
        wanted = rest / channels.size if channel_share is None else channel_share * channels.count
        found |= {heads.name: gone, channels.name: _floor(max(0.0, wanted))}
        if found[channels.name] >= channels.count:
            raise TipminiError(
                f"share {share:g}: {channels.name} would lose all {channels.count} channels; "
                "take a smaller share, or more of the heads (head share)"
            )
    return found


def _heads(family: Family, share: float, hidden_size: int | None) -> int:
    for gone in range(min(_floor(share * family.count), family.count - 1), 0, -1):
        if not hidden_size or hidden_size % ((family.count - gone) * family.queries) == 0:
            return gone
    return 0


def _floor(number: float) -> int:
    return math.floor(number + 1e-9)  # 0.29 * 100 lies below 29


def removed_share(families: Sequence[Family], counts: Mapping[str, int]) -> float:
    """The share of all families' weights that these numbers of groups make up."""
    gone = sum(counts[family.name] * family.size for family in families)
    return gone / sum(family.weights for family in families)
