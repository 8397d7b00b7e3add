r"""One row a question: the context once, then every choice, each blind to the others.

    context c_1 ... c_n | choice 1 without its last token | choice 2 without its last token | ...

Each choice continues the positions of the context and attends to the context and to itself alone,
so its log-likelihood is the one it would have in a row of its own. Choices of a single token add
nothing to the row: they are read off the context's last position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tokens = Sequence[int]


@dataclass
class Row:
    """Tokens of one sequence and which of its predictions are scored."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]  # 0: context, i + 1: choice i
    reads: list[int] = field(default_factory=list)  # index whose output predicts ...
    targets: list[int] = field(default_factory=list)  # ... this token ...
    owners: list[int] = field(default_factory=list)  # ... of this choice

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, index: int, target: int, owner: int) -> None:
        self.reads.append(index)
        self.targets.append(target)
        self.owners.append(owner)


def pack(context: Tokens, choices: Sequence[Tokens]) -> Row:
    """The row of one question; `context` holds at least one token, each choice too."""
    n = len(context)
    row = Row(list(context), list(range(n)), [0] * n)
    for owner, choice in enumerate(choices):
        row.read(n - 1, choice[0], owner)
        for offset, target in enumerate(choice[1:]):
            row.read(len(row.tokens), target, owner)
            row.tokens.append(choice[offset])
            row.positions.append(n + offset)
            row.segments.append(owner + 1)
    return row


@dataclass
class Batch:
    """Rows padded on the right. B rows, T tokens, P scored predictions."""

    tokens: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    mask: Tensor | None  # (B, 1, T, T) bool, True may attend; None: plain causal
    rows: Tensor  # (P,) the row of each prediction ...
    reads: Tensor  # (P,) ... its index there ...
    targets: Tensor  # (P,) ... its token ...
    owners: Tensor  # (P,) ... and its choice


def collate(rows: Sequence[Row], multiple: int = 1) -> Batch:
    """Pad rows to one length, a multiple of `multiple` (few distinct shapes train faster).

    Padding stands on the right: under a causal mask nothing attends to it.
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    segments = _padded([row.segments for row in rows], -1, length)
    return Batch(
        tokens=_padded([row.tokens for row in rows], 0, length),
        positions=_padded([row.positions for row in rows], 0, length),
        mask=_mask(segments) if bool((segments > 0).any()) else None,
        rows=torch.tensor([i for i, row in enumerate(rows) for _ in row.reads]),
        reads=torch.tensor([index for row in rows for index in row.reads]),
        targets=torch.tensor([token for row in rows for token in row.targets]),
        owners=torch.tensor([owner for row in rows for owner in row.owners]),
    )


def _padded(lists: Sequence[Tokens], value: int, length: int) -> Tensor:
    return torch.tensor([list(x) + [value] * (length - len(x)) for x in lists])


def _mask(segments: Tensor) -> Tensor:
    """Causal, and a choice sees the context and itself; padding sees what is before it."""
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return causal & ((key == 0) | (key == query))


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Row numbers in batches of at most `tokens` padded tokens (or one row), longest first.

    A row under 3/4 of the longest of its batch starts another: padding costs more than a pass.
    """
    result: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[result[-1][0]] if result else 0
        fits = longest * (len(result[-1]) + 1) <= tokens if result else False
        if not fits or 4 * lengths[index] < 3 * longest:
            result.append([])
        result[-1].append(index)
    return result
