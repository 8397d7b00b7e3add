"""What a model is pruned and fine-tuned on: train rows as plain text, every token predicted."""

from collections.abc import Sequence

from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.lab import tasks
from tipmini.lab.objective import Example
from tipmini.lab.packing import batches, collate, pack


def examples(names: Sequence[str], rows: int, length: int, tokenizer) -> list[Example]:
    """`rows` rows in all, the first of each task's fixed order, one task after the other in turn.

    A row is prompt and right answer, cut after `length` tokens. Raises TipminiError where the
    tasks have fewer rows.
    """
    shares = [rows // len(names) + (i < rows % len(names)) for i in range(len(names))]
    found = [_rows(n, count, length, tokenizer) for n, count in zip(names, shares, strict=True)]
    return [one[i] for i in range(max(shares)) for one in found if i < len(one)]


def _rows(task: str, count: int, length: int, tokenizer) -> list[Example]:
    if not count:
        return []
    definition = tasks.load(task, evaluation=1, train=count)
    docs = list(definition.training_docs())
    if len(docs) < count:
        raise TipminiError(f"task {task}: {len(docs)} train rows, {count} wanted; take more tasks")
    texts = [tasks.text(definition, doc) for doc in docs]
    return [plain(ids[:length]) for ids in tokenizer(texts)["input_ids"]]


def plain(tokens: Sequence[int]) -> Example:
    """A row whose every token but the first is predicted."""
    row = pack(tokens, [])
    for index, target in enumerate(tokens[1:]):
        row.read(index, target, 0)
    return Example(row, content=row.tokens)


def padded(every: Sequence[Example], tokens: int) -> list[dict[str, Tensor]]:
    """The same rows as `tm.calibrate` takes them."""
    parts = batches([len(example.row) for example in every], tokens, 0.9)
    groups = [[every[i].row for i in part] for part in parts]
    return [
        {"input_ids": (batch := collate(rows)).tokens, "attention_mask": _mask(rows, batch.tokens)}
        for rows in groups
    ]


def _mask(rows: Sequence, tokens: Tensor) -> Tensor:
    mask = tokens.new_zeros(tokens.shape)
    for line, row in zip(mask, rows, strict=True):
        line[: len(row)] = 1
    return mask
