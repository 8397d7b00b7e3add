r"""Attention by plain matrix products, which a CPU does faster than its fused kernel.

softmax(s Q K^T + M) V, a block of queries at a time: no token attends to a later one, so a block
needs the keys up to its own end alone. Registered with transformers under NAME.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

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
