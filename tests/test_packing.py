"""Packed rows against one row a choice, run alone through the plain model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import llama

from tipmini.lab.model import target_logits, target_logprobs
from tipmini.lab.packing import batches, collate, pack

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


@torch.no_grad()
def packed(model, group, multiple: int = 1) -> dict[tuple[int, int], list[float]]:
    """(row, choice) -> log-probability of each of its tokens."""
    batch = collate([pack(*question) for question in group], multiple)
    logp = target_logprobs(target_logits(model, batch), batch.targets)
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


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("group", TABLE.values(), ids=TABLE)
def test_choices_score_as_if_alone(model, group, multiple):
    found = packed(model, group, multiple)
    for row, (context, choices) in enumerate(group):
        for owner, choice in enumerate(choices):
            assert found[row, owner] == pytest.approx(alone(model, context, choice), abs=1e-4)


@settings(max_examples=15)
@given(questions)
def test_choices_score_as_if_alone_whatever_the_batch(group):
    model = llama(vocabulary=64, length=64)
    found = packed(model, group)
    assert set(found) == {(r, o) for r, (_, cs) in enumerate(group) for o in range(len(cs))}
    for (row, owner), values in found.items():
        context, choices = group[row]
        assert values == pytest.approx(alone(model, context, choices[owner]), abs=1e-4)


@given(questions)
def test_a_row_holds_its_context_once(group):
    """And of each choice all tokens but the last, which is only ever predicted."""
    for context, choices in group:
        row = pack(context, choices)
        assert len(row) == len(context) + sum(len(choice) - 1 for choice in choices)
        assert [row.tokens[i] for i, s in enumerate(row.segments) if s == 0] == context
        for owner, choice in enumerate(choices):
            own = [i for i, s in enumerate(row.segments) if s == owner + 1]
            assert [row.tokens[i] for i in own] == choice[:-1]
            assert [row.positions[i] for i in own] == [len(context) + k for k in range(len(own))]
            targets = zip(row.targets, row.owners, strict=True)
            assert [token for token, o in targets if o == owner] == choice


def slow_mask(row, length: int) -> list[list[bool]]:
    """Which position sees which, said plainly."""
    segments = row.segments + [-1] * (length - len(row))
    return [
        [key <= query and segments[key] in (0, segments[query]) for key in range(length)]
        for query in range(length)
    ]


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
    only_single = all(len(choice) == 1 for _, choices in group for choice in choices)
    assert (batch.mask is None) == only_single


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


def test_target_logprobs_against_log_softmax():
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 10, 3, 3, 7])
    slow = torch.stack([logits[i].log_softmax(0)[t] for i, t in enumerate(targets)])
    torch.testing.assert_close(target_logprobs(logits, targets), slow)
