r"""Perplexity on plain text: $\exp$ of the mean negative log-likelihood of a token.

A corpus's texts are joined by empty lines, in one fixed order, and cut into windows of equal
length that follow each other; what is left over at the end is not read. Every token of a window
but its first is predicted from those before it there.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from tipmini.errors import TipminiError, require
from tipmini_lab.evaluation import documents, tasks
from tipmini_lab.evaluation.evaluator import PackedLM
from tipmini_lab.evaluation.objective import plain
from tipmini_lab.evaluation.packing import batches

CORPORA = tuple(documents.CORPORA)
METRIC = "nll"  # of a window: its mean negative log-likelihood of a token, in nats


@lru_cache(maxsize=8)
def windows(corpus: str, count: int, length: int, tokenizer) -> tuple[tuple[int, ...], ...]:
    """`count` windows of `length` tokens, from as few texts as fill them.

    Raises TipminiError for a corpus that is not one of CORPORA or has no so many tokens.
    """
    require("corpus", corpus, CORPORA)
    texts = documents.CORPORA[corpus]()
    tokens: list[int] = []
    for number in tasks.order(len(texts)):
        tokens += tokenizer.encode(texts[number] + "\n\n", add_special_tokens=False)
        if len(tokens) >= count * length:
            return tuple(tuple(tokens[i * length : (i + 1) * length]) for i in range(count))
    raise TipminiError(f"corpus {corpus}: {len(tokens)} tokens, {count * length} wanted")


@torch.no_grad()
def losses(lm: PackedLM, every: Sequence[Sequence[int]]) -> list[float]:
    """One value a window: the mean of -log p over its predicted tokens, in nats."""
    rows = [plain(window).row for window in every]
    found = [0.0] * len(rows)
    for part in batches([len(row) for row in rows], lm.tokens, padded=False):
        for place, _, logp, _ in lm.score([rows[i] for i in part]):
            found[part[place]] = -logp / len(rows[part[place]].reads)
    return found
