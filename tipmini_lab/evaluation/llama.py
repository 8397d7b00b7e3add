r"""A LLaMA's decoder over rows of different lengths, and attention by plain matrix products.

softmax(s Q K^T + M) V, a block of queries at a time: no token attends to a later one, so a block
needs the keys up to its own end alone. Registered with transformers under NAME.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tipmini_lab.evaluation.packing import Flat

NAME = "tipmini"
BLOCK = 256  # queries at a time


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Query (B, H, T, d), key and value (B, K, S, d), K a divisor of H -> (B, H, T, d).

    Query t stands at position S - T + t. mask: additive, (B or 1, 1, T, S); None is plain causal.
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    past = key.shape[2] - length
    query = (query * scale).reshape(batch, groups, heads // groups, length, size)
    key, value = key.flatten(0, 1), value.flatten(0, 1)  # no copy of a cache's
    found = query.new_empty(query.shape)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        if mask is None:
            here = _causal(start, stop, past, query.dtype, query.device)
        else:
            here = mask[:, :, start:stop]
        found[:, :, :, start:stop] = _block(
            query[:, :, :, start:stop],
            key[:, : past + stop],
            value[:, : past + stop],
            here[..., : past + stop],
        )
    return found.view(batch, heads, length, size)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token may attend (True), -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """(B, K, G, T, d) for the G query heads that share each of K key heads, (B K, S, d)."""
    shape = query.shape
    rows = query.reshape(len(key), -1, shape[-1])  # (B K, G T, d): one product for a key head
    scores = torch.bmm(rows, key.transpose(1, 2)).view(*shape[:4], -1)
    scores += mask[:, :, None]
    return torch.bmm(scores.softmax(-1).view(*rows.shape[:2], -1), value).view(shape)


@lru_cache(16)  # every layer asks for the same
def _causal(start: int, stop: int, past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (1, 1, stop - start, past + stop)."""
    blank = torch.full((stop - start, past + stop), -torch.inf, dtype=dtype, device=device)
    return blank.triu_(past + start + 1)[None, None]


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """As transformers calls it; dropout is for training, which has its own attention."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, eager_mask)


# A LLaMA's decoder over rows of different lengths -------------------------------------------------
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # block, query, key, value -> found


def supports(model: nn.Module) -> bool:
    """Whether `hidden_states` computes what the model itself does."""
    return type(model).__name__ == "LlamaForCausalLM"


class Cache:
    """Keys and values of B rows of `lengths` tokens, with room for `more` in each."""

    def __init__(self, model: nn.Module, lengths: Sequence[int], more: int):
        config, size = model.config, model.model.layers[0].self_attn.head_dim
        shape = (len(lengths), config.num_key_value_heads, max(lengths) + more, size)
        new = lambda: torch.zeros(shape, dtype=model.dtype, device=model.device)  # noqa: E731
        self.layers = [(new(), new()) for _ in model.model.layers]
        self.lengths = torch.tensor(lengths, device=model.device)

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.lengths = self.lengths[rows]
        for block, pair in enumerate(self.layers):  # one after the other: not held twice
            self.layers[block] = tuple(tensor[rows] for tensor in pair)


def hidden_states(model: nn.Module, flat: Flat, cache: Cache | None = None) -> Tensor:
    """(P, D) last hidden states where a row is read; a cache takes the keys and values.

    What no prediction needs is left out of the last block's perceptron.
    """
    masks = [
        None if group.mask is None else additive(group.mask, model.dtype).to(model.device)
        for group in flat.groups
    ]

    def within_rows(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        for group, mask in zip(flat.groups, masks, strict=True):
            own = [t[group.index].transpose(1, 2) for t in (query, key, value)]
            if cache is not None:
                for stored, new in zip(cache.layers[block], own[1:], strict=True):
                    stored[group.rows, :, : new.shape[2]] = new
            row = attend(*own, mask, model.model.layers[block].self_attn.scaling)
            found[group.span] = row.transpose(1, 2)[group.real]
        return found

    return _decoder(model, flat.tokens, flat.positions, within_rows, flat.reads)


def next_states(model: nn.Module, tokens: Tensor, cache: Cache) -> Tensor:
    """(B, D) last hidden states of one more token (B,) a row, which the cache takes up."""
    rows, places = torch.arange(len(tokens), device=model.device), cache.lengths
    cache.lengths = places + 1
    seen = torch.arange(int(cache.lengths.max()), device=model.device)
    mask = additive(seen < cache.lengths[:, None], model.dtype)[:, None, None]  # (B, 1, 1, S)

    def on_cache(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for stored, new in zip(cache.layers[block], (key, value), strict=True):
            stored[rows, :, places] = new
        keys, values = (stored[:, :, : len(seen)] for stored in cache.layers[block])
        scale = model.model.layers[block].self_attn.scaling
        return attend(query[:, :, None], keys, values, mask, scale)[:, :, 0]

    return _decoder(model, tokens, places, on_cache, rows)


def _decoder(
    model: nn.Module, tokens: Tensor, positions: Tensor, attention: Attend, reads: Tensor
) -> Tensor:
    """(P, D) of N tokens: the last block's perceptron and norm see what is read alone."""
    decoder = model.model
    x = decoder.embed_tokens(tokens.to(model.device))  # (N, D)
    cos, sin = decoder.rotary_emb(x[None], positions[None].to(model.device))
    turn = (cos[0, :, None], sin[0, :, None])  # (N, 1, head)
    for block, layer in enumerate(decoder.layers):
        x = x + _attended(layer.self_attn, norm(layer.input_layernorm, x), turn, attention, block)
        if block == len(decoder.layers) - 1:
            x = x[reads]
        x = x + perceptron(layer.mlp, norm(layer.post_attention_layernorm, x))
    return norm(decoder.norm, x)


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def perceptron(mlp: nn.Module, x: Tensor) -> Tensor:
    return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).mul_(mlp.up_proj(x)))


def _attended(
    module: nn.Module, x: Tensor, turn: tuple[Tensor, Tensor], attention: Attend, block: int
) -> Tensor:
    """(N, D): every token attends to those before it in its own row."""
    heads = (len(x), -1, module.head_dim)
    query, key = (rotated(p(x).view(heads), *turn) for p in (module.q_proj, module.k_proj))
    found = attention(block, query, key, module.v_proj(x).view(heads))
    return module.o_proj(found.view(len(x), -1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, heads, head) turned by the angles of their positions; cos and sin repeat after half."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    turned = x * cos
    turned[..., :half].addcmul_(second, sin[..., :half], value=-1)
    turned[..., half:].addcmul_(first, sin[..., half:])
    return turned
