"""Packed rows against one row a choice, run alone through the plain model."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
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


@pytest.fixture(scope="module")
def model():
    return llama(vocabulary=64, length=64)


@torch.no_grad()
def alone(model, context: list[int], choice: list[int]) -> list[float]:
    """Log-probability of each token of the choice: one row, plain causal attention."""
    logits = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
    start = len(context) - 1
    return [logits[start + i, token].item() for i, token in enumerate(choice)]


LAYOUTS = {
    "padded": collate,
    "padded to eights": functools.partial(collate, multiple=8),
    "one after the other": flatten,
}


@torch.no_grad()
def packed(model, group, lay) -> dict[tuple[int, int], list[float]]:
    """(row, choice) -> log-probability of each of its tokens."""
    batch = lay([pack(*question) for question in group])
    logp, _ = scored_targets(model, batch)
    found: dict[tuple[int, int], list[float]] = {}
    places = zip(batch.rows.tolist(), batch.owners.tolist(), strict=True)
    for place, value in zip(places, logp.tolist(), strict=True):
        found.setdefault(place, []).append(value)
    return found


TABLE = {
    "one question": [([1, 2, 3], [[4, 5], [6, 7, 8]])],
    "single tokens only": [([1, 2, 3], [[4], [5]]), ([9, 8], [[7]])],
    "single and longer": [([1, 2, 3], [[4], [5, 6, 7], [4]])],
    "context of one token": [([1], [[2, 3], [4]])],
    "a choice twice": [([1, 2], [[3, 4], [3, 4]])],
    "a choice begins another": [([1, 2], [[3], [3, 4], [3, 4, 5]])],
    "lengths far apart": [(list(range(30)), [[1, 2]]), ([5], [[6, 7, 8, 9], [1]])],
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("group", TABLE.values(), ids=TABLE)
def test_choices_score_as_if_alone(model, group, lay):
    found = packed(model, group, lay)
    for row, (context, choices) in enumerate(group):
        for owner, choice in enumerate(choices):
            assert found[row, owner] == pytest.approx(alone(model, context, choice), abs=1e-4)


@settings(max_examples=15)
@given(questions, st.sampled_from(list(LAYOUTS.values())))
def test_choices_score_as_if_alone_whatever_the_batch(group, lay):
    model = llama(vocabulary=64, length=64)
    found = packed(model, group, lay)
    assert set(found) == {(r, o) for r, (_, cs) in enumerate(group) for o in range(len(cs))}
    for (row, owner), values in found.items():
        context, choices = group[row]
        assert values == pytest.approx(alone(model, context, choices[owner]), abs=1e-4)


def paths(row) -> list[list[int]]:
    """For every token the indices of all before it in its request, and its own."""
    found: list[list[int]] = []
    for index, parent in enumerate(row.parents):
        found.append([*(found[parent] if parent >= 0 else []), index])
    return found


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=6),
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
    ),
    max_size=8,
)


@given(requests)
def test_every_beginning_stands_once(group):
    """A continuation's last token is only ever predicted."""
    row = pack_requests(group)
    read = [(*context, *continuation[:-1]) for context, continuation in group]
    beginnings = {sequence[: end + 1] for sequence in read for end in range(len(sequence))}
    found = [tuple(row.tokens[i] for i in path) for path in paths(row)]
    assert len(found) == len(row) and set(found) == beginnings and len(set(found)) == len(found)
    assert row.positions == [len(path) - 1 for path in found]


@given(requests)
def test_every_token_of_a_continuation_is_predicted_from_what_is_before_it(group):
    row = pack_requests(group)
    found = [tuple(row.tokens[i] for i in path) for path in paths(row)]
    scored = list(zip(row.owners, (found[i] for i in row.reads), row.targets, strict=True))
    expected = [
        (owner, (*context, *continuation[:end]), token)
        for owner, (context, continuation) in enumerate(group)
        for end, token in enumerate(continuation)
    ]
    assert scored == expected


def slow_mask(row, length: int) -> list[list[bool]]:
    """Which position sees which, said plainly; padding sees itself alone."""
    seen = paths(row) + [[index] for index in range(len(row), length)]
    return [[key in keys for key in range(length)] for keys in seen]


@given(questions, st.sampled_from([1, 4, 8]))
def test_the_batch_is_what_its_rows_say(group, multiple):
    rows = [pack(*question) for question in group]
    batch = collate(rows, multiple)
    length = batch.tokens.shape[1]
    assert length % multiple == 0 and 0 <= length - max(map(len, rows)) < multiple
    for i, row in enumerate(rows):
        assert batch.tokens[i].tolist() == row.tokens + [0] * (length - len(row))
        assert batch.positions[i].tolist()[: len(row)] == row.positions
        here = batch.rows == i
        assert batch.reads[here].tolist() == row.reads
        assert batch.targets[here].tolist() == row.targets
        assert batch.owners[here].tolist() == row.owners
        if batch.mask is not None:
            assert batch.mask[i, 0].tolist() == slow_mask(row, length)
    chain = all(paths(row)[-1] == list(range(len(row))) for row in rows)
    assert (batch.mask is None) == chain


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
        assert len(own) == 1 or len(pack_requests([(c, [0]) for c in own])) <= limit


def test_a_long_passage_is_read_once():
    passage = list(range(30))
    asked = [[*passage, 40], [50, 51], [*passage, 41, 42]]
    assert together(asked, limit=100) == [[0, 2], [1]]
    assert together(asked, limit=32) == [[0], [2], [1]]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_row_once_and_fit(lengths, limit):
    parts = batches(lengths, limit)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or max(lengths[i] for i in part) * len(part) <= limit
        assert 4 * min(lengths[i] for i in part) >= 3 * max(lengths[i] for i in part)
    flat = [lengths[i] for part in parts for i in part]
    assert flat == sorted(lengths, reverse=True)


def test_batches_are_as_full_as_they_can_be():
    """4 and 3 share a batch, the 1 would be mostly padding there."""
    assert batches([4, 5, 5, 3, 1], 12) == [[1, 2], [0, 3], [4]]


@given(questions)
def test_flat_rows_stand_one_after_the_other(group):
    rows = [pack(*question) for question in group]
    flat = flatten(rows)
    assert len(flat.tokens) == sum(map(len, rows))
    start = 0
    for i, row in enumerate(rows):
        stop = start + len(row)
        assert flat.tokens[start:stop].tolist() == row.tokens
        assert flat.positions[start:stop].tolist() == row.positions
        assert (flat.reads[flat.rows == i] - start).tolist() == row.reads
        start = stop


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
        if found.mask is None:
            assert all(m.parents == list(range(-1, len(m) - 1)) for m in members)
        else:
            expected = [slow_mask(member, longest) for member in members]
            assert found.mask[:, 0].tolist() == expected
        row, token = found.rows.stop, found.span.stop
    assert (row, token) == (len(rows), sum(map(len, rows)))


def test_a_group_of_many_rows_is_cut():
    rows = [pack([1] * 300, []) for _ in range(7)]
    assert [len(rows[g.rows]) for g in flatten(rows).groups] == [3, 3, 1]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_runs_hold_every_row_once_and_fit(lengths, limit):
    parts = batches(lengths, limit, padded=False)
    flat = [lengths[i] for part in parts for i in part]
    assert flat == sorted(lengths, reverse=True)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= limit
    for part, after in itertools.pairwise(parts):
        assert sum(lengths[i] for i in part) + lengths[after[0]] > limit
