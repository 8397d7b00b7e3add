"""Packed rows against one row a choice, run alone through the plain model."""

import functools
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from labs import llama

from tipmini_lab.evaluation.model import scored_targets
from tipmini_lab.evaluation.packing import (
    batches,
    collate,
    flatten,
    pack,
    pack_requests,
    together,
)

tokens = st.integers(0, 63)
questions = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=9),
        st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)
MODEL = llama(vocabulary=64, length=64)
LAYOUTS = {
    "padded": collate,
    "padded to eights": functools.partial(collate, multiple=8),
    "one after the other": flatten,
}


@torch.no_grad()
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
@settings(max_examples=5)
@given(questions)
@example([([1, 2, 3], [[4], [5]]), ([9, 8], [[7]])])  # single tokens only
@example([([1, 2, 3], [[4], [5, 6, 7], [4]])])  # single and longer
@example([([1], [[2, 3], [4]])])  # a context of one token
@example([([1, 2], [[3, 4], [3, 4]])])  # a choice twice
@example([([1, 2], [[3], [3, 4], [3, 4, 5]])])  # a choice begins another
@example([(list(range(30)), [[1, 2]]), ([5], [[6, 7, 8, 9], [1]])])  # lengths far apart
def test_choices_score_as_if_alone(lay, group):
    """Each in one row, with plain causal attention."""
    batch = lay([pack(*question) for question in group])
    found: dict[tuple[int, int], list[float]] = {}
    places = zip(batch.rows.tolist(), batch.owners.tolist(), strict=True)
    for place, value in zip(places, scored_targets(MODEL, batch)[0].tolist(), strict=True):
        found.setdefault(place, []).append(value)
    for row, (context, choices) in enumerate(group):
        for owner, choice in enumerate(choices):
            logits = MODEL(torch.tensor([context + choice])).logits[0].log_softmax(-1)
            alone = [logits[len(context) - 1 + i, t].item() for i, t in enumerate(choice)]
            assert found.pop((row, owner)) == pytest.approx(alone, abs=1e-4)
    assert not found


def paths(row) -> list[list[int]]:
    """For every token the indices of all before it in its request, and its own."""
    found: list[list[int]] = []
    for index, parent in enumerate(row.parents):
        found.append([*(found[parent] if parent >= 0 else []), index])
    return found


few = functools.partial(st.lists, st.integers(0, 2), min_size=1)
requests = st.lists(st.tuples(few(max_size=6), few(max_size=4)), max_size=8)


@given(requests)
def test_every_beginning_stands_once_and_every_continuation_is_predicted_from_it(group):
    """A continuation's last token is only ever predicted."""
    row = pack_requests(group)
    read = [(*context, *continuation[:-1]) for context, continuation in group]
    beginnings = {sequence[: end + 1] for sequence in read for end in range(len(sequence))}
    found = [tuple(row.tokens[i] for i in path) for path in paths(row)]
    assert len(found) == len(row) and set(found) == beginnings and len(set(found)) == len(found)
    assert row.positions == [len(path) - 1 for path in found]
    assert list(zip(row.owners, (found[i] for i in row.reads), row.targets, strict=True)) == [
        (owner, (*context, *continuation[:end]), token)
        for owner, (context, continuation) in enumerate(group)
        for end, token in enumerate(continuation)
    ]


def slow_mask(rows, length: int) -> list[list[list[bool]]] | None:
    """Which position sees which, said plainly; padding sees itself alone. None: plain causal."""
    if all(paths(row)[-1] == list(range(len(row))) for row in rows):
        return None
    seen = [paths(row) + [[index] for index in range(len(row), length)] for row in rows]
    return [[[key in keys for key in range(length)] for keys in own] for own in seen]


def listed(mask) -> list | None:
    return None if mask is None else mask[:, 0].tolist()


@pytest.mark.parametrize("multiple", [1, 4, 8, None])
@given(questions)
def test_the_batch_is_what_its_rows_say(multiple, group):
    """Padded to a multiple, or (None) one after the other."""
    rows = [pack(*question) for question in group]
    batch = flatten(rows) if multiple is None else collate(rows, multiple)
    length, start = batch.tokens.shape[-1], 0
    for i, row in enumerate(rows):
        here, place = batch.rows == i, slice(start, start + len(row))
        tokens, positions = batch.tokens[i], batch.positions[i]
        if multiple is None:
            tokens, positions = batch.tokens[place], batch.positions[place]
            start = place.stop
        assert tokens.tolist() == row.tokens + [0] * (len(tokens) - len(row))
        assert positions.tolist()[: len(row)] == row.positions
        assert (batch.reads[here] - place.start * (multiple is None)).tolist() == row.reads
        assert batch.targets[here].tolist() == row.targets
        assert batch.owners[here].tolist() == row.owners
    if multiple is None:
        assert length == sum(map(len, rows)) and batch.mask is None
    else:
        assert length % multiple == 0 and 0 <= length - max(map(len, rows)) < multiple
        assert listed(batch.mask) == slow_mask(rows, length) and not batch.groups


@given(questions)
def test_groups_hold_rows_of_similar_length_in_order(group):
    rows = [pack(*question) for question in group]
    row, token = 0, 0
    for found in flatten(rows).groups:
        members = rows[found.rows]
        longest = max(map(len, members))
        assert found.rows.start == row and min(map(len, members)) >= 0.9 * longest
        real = found.index[found.real].tolist()
        assert real == list(range(token, found.span.stop)) and found.span.start == token
        assert found.real.sum(1).tolist() == list(map(len, members))
        assert listed(found.mask) == slow_mask(members, longest)
        row, token = found.rows.stop, found.span.stop
    assert (row, token) == (len(rows), sum(map(len, rows)))


def test_a_group_of_many_rows_is_cut():
    rows = [pack([1] * 300, []) for _ in range(7)]
    assert [len(rows[g.rows]) for g in flatten(rows).groups] == [3, 3, 1]


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), max_size=12), st.integers(1, 40)
)
def test_contexts_are_together_where_half_of_them_is_common(contexts, limit):
    groups = together(contexts, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(contexts)))
    for group in groups:
        own = [contexts[i] for i in group]
        assert own == sorted(own)
        for one, other in itertools.pairwise(own):
            assert one[: -(-len(other) // 2)] == other[: -(-len(other) // 2)]
        one = all(context == own[0] for context in own)
        assert one or len(pack_requests([(c, [0]) for c in own])) <= limit


def test_a_long_passage_is_read_once():
    passage = list(range(30))
    asked = [[*passage, 40], [50, 51], [*passage, 41, 42]]
    assert together(asked, limit=100) == [[0, 2], [1]]
    assert together(asked, limit=32) == [[0], [2], [1]]
    assert together([passage] * 2, limit=9) == [[0, 1]]


@pytest.mark.parametrize("padded", [True, False])
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_row_once_and_fit(padded, lengths, limit):
    parts = batches(lengths, limit, padded=padded)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    sizes = [[lengths[i] for i in part] for part in parts]
    assert list(itertools.chain(*sizes)) == sorted(lengths, reverse=True)
    for own in sizes:
        assert len(own) == 1 or (max(own) * len(own) if padded else sum(own)) <= limit
        assert not padded or 4 * min(own) >= 3 * max(own)
    for own, after in itertools.pairwise(sizes):
        assert padded or sum(own) + after[0] > limit


def test_batches_are_as_full_as_they_can_be():
    """4 and 3 share a batch, the 1 would be mostly padding there."""
    assert batches([4, 5, 5, 3, 1], 12) == [[1, 2], [0, 3], [4]]
