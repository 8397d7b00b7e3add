r"""One row for many requests: every distinct beginning of theirs once, as a tree of tokens.

A request is a context and its continuation. Choices of one question share the context, questions
about one passage the passage, and choices that begin alike their beginning. Each token keeps the
position it has in its request and attends to the tokens before it there and to nothing else, so
that each log-likelihood is the one it would have in a row of its own. A continuation's last token
is predicted, never read: a choice of one token adds nothing to the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from os.path import commonprefix

import numpy as np
import torch
from torch import Tensor

Tokens = Sequence[int]

INPUTS = ("tokens", "positions")  # of a row, which the model reads
GROUP = 1024  # padded tokens that attention reads at a time: their scores stay in the cache


@dataclass
class Row:
    """A tree of tokens, each after the one it follows, and which of its predictions are scored."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # index of the token before; -1: none
    positions: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)  # index whose output predicts ...
    targets: list[int] = field(default_factory=list)  # ... this token ...
    owners: list[int] = field(default_factory=list)  # ... of this request

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int, parent: int) -> int:
        """The index of a new token that follows `parent`."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.positions.append(self.positions[parent] + 1 if parent >= 0 else 0)
        return len(self.tokens) - 1

    def read(self, index: int, target: int, owner: int) -> None:
        self.reads.append(index)
        self.targets.append(target)
        self.owners.append(owner)


def pack(context: Tokens, choices: Sequence[Tokens]) -> Row:
    """The row of one question; `context` holds at least one token, each choice too."""
    return pack_requests([(context, choice) for choice in choices] or [(context, ())])


def pack_requests(requests: Sequence[tuple[Tokens, Tokens]]) -> Row:
    """The row of several (context, continuation); number i owns what is scored of it."""
    row = Row()
    places: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    for owner, (context, continuation) in enumerate(requests):
        index, first = -1, len(context) - 1
        for depth, token in enumerate([*context, *continuation[:-1]]):
            if (index, token) not in places:
                places[index, token] = row.append(token, index)
            index = places[index, token]
            if 0 <= depth - first < len(continuation):
                row.read(index, continuation[depth - first], owner)
    return row


def together(contexts: Sequence[Tokens], limit: int) -> list[list[int]]:
    """Numbers of contexts in groups, in order: each shares half of its tokens with the one before.

    A group has at most `limit` distinct tokens (or one context, however often): attention grows
    with its square.
    """
    groups: list[list[int]] = []
    before: Tokens = ()
    size = 0  # of the last group; of what a context shares, nothing is new
    for number in sorted(range(len(contexts)), key=lambda i: contexts[i]):
        context = contexts[number]
        common = len(commonprefix([list(before), list(context)]))  # noqa: RUF071  of any lists
        size += len(context) - common
        if not groups or 2 * common < len(context) or (size > limit and context != before):
            groups.append([])
            size = len(context)
        groups[-1].append(number)
        before = context
    return groups


@dataclass
class Group:
    """Rows of similar length that attention reads as one batch. R rows, padded to T tokens."""

    rows: slice  # which of the batch's rows ...
    span: slice  # ... and which of its tokens
    index: Tensor  # (R, T) the token of every place; padding repeats the last
    real: Tensor  # (R, T) bool, False is padding
    mask: Tensor | None  # (R, 1, T, T) bool, True may attend; None: plain causal


@dataclass
class Batch:
    """Rows as one input, and the P predictions that are scored of them.

    B rows padded on the right to T tokens; or flat, N tokens one after the other, with `groups`.
    """

    tokens: Tensor  # (B, T) or (N,)
    positions: Tensor  # (B, T) or (N,)
    rows: Tensor  # (P,) the row of each prediction ...
    reads: Tensor  # (P,) ... its index there (flat: among all tokens) ...
    targets: Tensor  # (P,) ... its token ...
    owners: Tensor  # (P,) ... and its request
    mask: Tensor | None = None  # (B, 1, T, T) bool, True may attend; None: plain causal
    groups: Sequence[Group] = ()


def flatten(rows: Sequence[Row]) -> Batch:
    """A flat batch: nothing is padded but for attention."""
    lengths = [len(row) for row in rows]
    starts = [0, *accumulate(lengths)]
    inputs = ([t for row in rows for t in getattr(row, name)] for name in INPUTS)
    groups = [_group(rows, starts, *ends) for ends in pairwise(_alike(lengths))]
    return _batch(rows, starts, *inputs, groups=groups)


def _alike(lengths: Sequence[int]) -> list[int]:
    """Where groups of rows begin, and the end: lengths within a tenth, GROUP tokens at most."""
    ends = [0]
    for stop in range(1, len(lengths)):
        members = lengths[ends[-1] : stop + 1]
        longest = max(members)
        if len(members) * longest > GROUP or min(members) < 0.9 * longest:
            ends.append(stop)
    return [*ends, len(lengths)]


def _group(rows: Sequence[Row], starts: Sequence[int], first: int, stop: int) -> Group:
    members = rows[first:stop]
    sizes = torch.tensor([[len(row)] for row in members])
    places = torch.arange(int(sizes.max()))
    index = torch.tensor(starts[first:stop])[:, None] + places.minimum(sizes - 1)
    span = slice(starts[first], starts[stop])
    return Group(slice(first, stop), span, index, places < sizes, _mask(members, len(places)))


def collate(rows: Sequence[Row], multiple: int = 1) -> Batch:
    """Pad rows to one length, a multiple of `multiple` (few distinct shapes train faster).

    Padding stands on the right: under a causal mask nothing attends to it.
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    blank = [0] * length
    inputs = ([(getattr(row, name) + blank)[:length] for row in rows] for name in INPUTS)
    return _batch(rows, [0] * len(rows), *inputs, mask=_mask(rows, length))


def _batch(rows: Sequence[Row], starts: Sequence[int], *inputs: list, **more) -> Batch:
    return Batch(
        *map(torch.tensor, inputs),
        rows=torch.tensor([i for i, row in enumerate(rows) for _ in row.reads]),
        reads=torch.tensor([starts[i] + at for i, row in enumerate(rows) for at in row.reads]),
        targets=torch.tensor([token for row in rows for token in row.targets]),
        owners=torch.tensor([owner for row in rows for owner in row.owners]),
        **more,
    )


def _mask(rows: Sequence[Row], length: int) -> Tensor | None:
    """A token sees itself and what the token before it in its request sees; padding, itself.

    None where no token of any row follows another than the one before it.
    """
    if all(row.parents == list(range(-1, len(row) - 1)) for row in rows):
        return None
    mask = np.zeros((len(rows), 1, length, length), dtype=bool)
    mask[..., range(length), range(length)] = True
    for row, sees in zip(rows, mask[:, 0], strict=True):
        for index, parent in enumerate(row.parents):
            if parent >= 0:
                sees[index, :index] = sees[parent, :index]
    return torch.from_numpy(mask)


def batches(
    lengths: Sequence[int], tokens: int, fill: float = 0.75, *, padded: bool = True
) -> list[list[int]]:
    """Row numbers in batches of at most `tokens` tokens (or one row), longest first.

    A row under `fill` of the longest of its batch starts another where rows are `padded`, and
    padding counts: it costs more than a pass.
    """
    found: list[list[int]] = []
    longest = room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        cost = longest if padded else lengths[index]
        if not found or cost > room or (padded and lengths[index] < fill * longest):
            found.append([])
            longest, cost, room = lengths[index], lengths[index], tokens
        found[-1].append(index)
        room -= cost
    return found
