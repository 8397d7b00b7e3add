r"""A LLaMA over rows of different lengths, and its greedy answers; attention by plain products.

softmax(s Q K^T + M) V, a block of queries at a time: no token attends to a later one, so a block
needs the keys up to its own end alone. Registered with transformers under NAME.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tipmini_lab.evaluation.packing import Batch, flatten, pack

NAME = "tipmini"
BLOCK = 256  # queries at a time


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Query (B, H, T, d), key and value (B, K, S, d), K a divisor of H -> (B, H, T, d).

    Query t stands at position S - T + t. mask: additive, (B or 1, 1, T, S); None is plain causal.
    """
    batch, heads, length, size = query.shape
    groups, past = key.shape[1], key.shape[2] - length
    query = (query * scale).reshape(batch, groups, heads // groups, length, size)
    key, value = key.flatten(0, 1), value.flatten(0, 1)  # no copy of a cache's
    found = query.new_empty(query.shape)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        if mask is None:
            here = _causal(start, stop, past, query.dtype, query.device)
        else:
            here = mask[:, :, start:stop, : past + stop]
        shape = query[:, :, :, start:stop].shape
        rows = query[:, :, :, start:stop].reshape(len(key), -1, size)  # one product for a key head
        scores = torch.bmm(rows, key[:, : past + stop].transpose(1, 2)).view(*shape[:4], -1)
        scores += here[:, :, None]
        weights = scores.softmax(-1).view(*rows.shape[:2], -1)
        found[:, :, :, start:stop] = torch.bmm(weights, value[:, : past + stop]).view(shape)
    return found.view(batch, heads, length, size)


def additive(
    mask: Tensor | None, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | None:
    """0 where a token may attend (True), -inf elsewhere; None, plain causal, stays None."""
    if mask is None:
        return None
    blank = torch.zeros(mask.shape, dtype=dtype, device=device)
    return blank.masked_fill_(~mask.to(blank.device), -torch.inf)


@lru_cache(16)  # every layer asks for the same
def _causal(start: int, stop: int, past: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (1, 1, stop - start, past + stop)."""
    blank = torch.full((stop - start, past + stop), -torch.inf, dtype=dtype, device=device)
    return blank.triu_(past + start + 1)[None, None]


def _forward(module, query, key, value, attention_mask, scaling=None, **_) -> tuple[Tensor, None]:
    """As transformers calls it; dropout is for training, which has its own attention."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, eager_mask)


# A LLaMA's decoder over rows of different lengths -------------------------------------------------
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # block, query, key, value -> found
Ends = Callable[[list[int]], bool]  # whether nothing more need be said after these tokens


def supports(model: nn.Module) -> bool:
    """Whether `hidden_states` computes what the model itself does: not where accelerate has divided
    the layers among several devices and takes what a layer reads to its own."""
    apart = len({*getattr(model, "hf_device_map", {}).values()}) > 1
    return type(model).__name__ == "LlamaForCausalLM" and not apart


class Cache:
    """Keys and values of B rows of `lengths` tokens, with room for `more` in each."""

    def __init__(self, model: nn.Module, lengths: Sequence[int], more: int):
        heads, size = model.config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
        shape = (2, len(lengths), heads, max(lengths) + more, size)
        self.layers = [
            tuple(torch.zeros(shape, dtype=model.dtype, device=model.device))
            for _ in model.model.layers
        ]
        self.lengths = torch.tensor(lengths, device=model.device)

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.lengths = self.lengths[rows]
        for block, pair in enumerate(self.layers):  # one after the other: not held twice
            self.layers[block] = tuple(tensor[rows] for tensor in pair)


def hidden_states(model: nn.Module, flat: Batch, cache: Cache | None = None) -> Tensor:
    """(P, D) last hidden states where a row is read; a cache takes the keys and values.

    What no prediction needs is left out of the last block's perceptron.
    """
    masks = [additive(group.mask, model.dtype, model.device) for group in flat.groups]

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
    sees = (seen < cache.lengths[:, None])[:, None, None]  # (B, 1, 1, S)
    mask = additive(sees, model.dtype, model.device)

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
    """(P, D) of N tokens, each of which attends to those before it in its own row.

    The last block's perceptron and norm see what is read alone.
    """
    decoder = model.model
    x = decoder.embed_tokens(tokens.to(model.device))  # (N, D)
    cos, sin = decoder.rotary_emb(x[None], positions[None].to(model.device))
    turn = (cos[0, :, None], sin[0, :, None])  # (N, 1, head)
    for block, layer in enumerate(decoder.layers):
        module, read = layer.self_attn, _norm(layer.input_layernorm, x)
        query, key, value = (
            project(read).view(len(x), -1, module.head_dim)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        found = attention(block, _rotated(query, *turn), _rotated(key, *turn), value)
        x = x + module.o_proj(found.view(len(x), -1))
        if block == len(decoder.layers) - 1:
            x = x[reads]
        mlp, read = layer.mlp, _norm(layer.post_attention_layernorm, x)
        x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(read)).mul_(mlp.up_proj(read)))
    return _norm(decoder.norm, x)


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, heads, head) turned by the angles of their positions; cos and sin repeat after half."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    turned = x * cos
    turned[..., :half].addcmul_(second, sin[..., :half], value=-1)
    turned[..., half:].addcmul_(first, sin[..., half:])
    return turned


@torch.no_grad()
def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], limit: int, ends: Ends
) -> tuple[list[list[int]], list[float]]:
    """The likeliest tokens after each prompt: `limit` of them, or as many as `ends` takes.

    With them the smallest lead of a chosen token's logit, for each prompt: how near it is to
    another answer.
    """
    cache = Cache(model, [len(prompt) for prompt in prompts], limit)
    said: list[list[int]] = [[] for _ in prompts]
    leads = [math.inf] * len(prompts)
    rows = list(range(len(prompts)))  # the prompts that the cache holds ...
    going = set(rows)  # ... and those of them that have not ended
    hidden = hidden_states(model, flatten([pack(p, [[0]]) for p in prompts]), cache)
    for _ in range(limit):
        logits = model.lm_head(hidden)  # (B, V)
        tokens, best = logits.argmax(-1), logits.topk(2).values  # topk takes any of equal ones
        ahead = (best[:, 0] - best[:, 1]).tolist()
        for row, token, lead in zip(rows, tokens.tolist(), ahead, strict=True):
            if row in going:
                said[row].append(token)
                leads[row] = min(leads[row], lead)
        going -= {row for row in going if ends(said[row])}
        if not going:
            break
        if 2 * len(going) <= len(rows):  # forgetting rows copies the others: not one by one
            kept = [place for place, row in enumerate(rows) if row in going]
            cache.keep(kept)
            rows, tokens = [rows[place] for place in kept], tokens[kept]
        hidden = next_states(model, tokens, cache)
    return said, leads
