"""What a pass needs at least: operations and bytes, counted from the sizes of model and adapter."""

from dataclasses import dataclass

from torch import nn

import tipmini as tm


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


def operations(s: Sizes, rows: int, tokens: int, past: int, worn: bool) -> int:
    """Of a pass over `tokens` new tokens a row that follow `past` ones; logits of the last only.

    worn: whether every row wears an adapter. How many different ones a batch mixes is no matter.
    """
    pairs = tokens * past + tokens * (tokens + 1) // 2  # (query, key), causal
    weights = s.linear + s.adapter * worn
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
