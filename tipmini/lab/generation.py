"""Greedy generation for a LLaMA: prompts of any lengths without padding, each ends by itself."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from tipmini.lab import llama
from tipmini.lab.packing import Row, flatten

Ends = Callable[[list[int]], bool]  # whether nothing more need be said after these tokens


@torch.no_grad()
def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], limit: int, ends: Ends
) -> tuple[list[list[int]], list[float]]:
    """The likeliest tokens after each prompt: `limit` of them, or as many as `ends` takes.

    With them the smallest lead of a chosen token's logit, for each prompt: how near it is to
    another answer.
    """
    cache = llama.Cache(model, [len(prompt) for prompt in prompts], limit)
    said: list[list[int]] = [[] for _ in prompts]
    leads = [math.inf] * len(prompts)
    rows = list(range(len(prompts)))  # the prompts that the cache holds ...
    going = set(rows)  # ... and those of them that have not ended
    hidden = llama.hidden_states(model, flatten([_asking(p) for p in prompts]), cache)
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
        hidden = llama.next_states(model, tokens, cache)
    return said, leads


def _asking(prompt: Sequence[int]) -> Row:
    """A row that is read at its end."""
    row = Row()
    for token in prompt:
        row.append(token, len(row) - 1)
    row.read(len(row) - 1, 0, 0)
    return row
