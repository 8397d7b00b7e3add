import peft.utils.merge_utils as peft_merge
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_ties import slow_ties

from tipmini.papers.ties import elect, electing, majority, trim, trim_threshold

WHOLE = st.lists(st.integers(-3, 3), min_size=1, max_size=12)
DENSITIES = st.one_of(st.sampled_from([0.0, 0.2, 0.25, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1))
STACKS = st.integers(1, 4).flatmap(
    lambda t: st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=t, max_size=t)
)
SHARES = st.sampled_from([1.0, 0.5, 2.0, 0.0, -1.0])


@given(WHOLE, DENSITIES)
def test_trim_keeps_the_largest(values, density):
    kept = int(density * len(values))
    order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
    stays = set(order[len(values) - kept :])
    expected = [v if i in stays else 0 for i, v in enumerate(values)]
    assert trim(torch.tensor(values).double(), density).tolist() == expected


@given(st.integers(1, 12), st.integers(1, 9), DENSITIES, st.integers(0, 99))
def test_trim_is_pefts_where_no_sizes_are_equal(d, k, density, seed):
    tensor = torch.randn(k, d, generator=torch.Generator().manual_seed(seed)).T  # not contiguous
    kept = peft_merge.magnitude_based_pruning(tensor, density)
    assert torch.equal(trim(tensor, density), kept)


@given(WHOLE, DENSITIES)
def test_the_threshold_is_the_authors(values, density):
    """As they take it: kthvalue of n - int(n density), where that is not their index 0."""
    kth = len(values) - int(len(values) * density)
    expected = sorted(map(abs, values))[kth - 1] if kth else 0
    pieces = torch.tensor(values).double().split(5)
    assert trim_threshold(pieces, density) == expected


@pytest.mark.parametrize("zero", [1.0, 0.0, -1.0])
def test_a_sum_of_0_elects_the_sign_that_is_given(zero):
    stacked = torch.tensor([[1.0, -2.0, 0.0, 3.0], [-1.0, 1.0, 0.0, 0.5]])
    assert elect(stacked, zero).tolist() == [zero, -1, zero, 1]
    assert zero != 1 or torch.equal(elect(stacked), elect(stacked, zero))


@pytest.mark.parametrize(
    ("signs", "expected"), [([1.0, 1, -1], 1), ([-1.0, 0], -1), ([1.0, -1], -1), ([0.0], -1)]
)
def test_a_drawn_majority_is_minus_as_in_the_release(signs, expected):
    assert majority(torch.tensor(signs)) == expected


@given(STACKS, st.lists(SHARES, min_size=4, max_size=4), st.sampled_from([1.0, -1.0]))
def test_election_and_average_are_the_slow_ones(stacked, weights, zero):
    tensors = [torch.tensor(row).double() for row in stacked]
    weights = weights[: len(tensors)]
    for variant, sign in [("peft", 1.0), ("authors", zero), ("mergekit", 1.0)]:
        combine = electing(variant) if sign == 1 else electing(variant, sign)
        merged = combine(tensors, weights).tolist()
        assert merged == pytest.approx(slow_ties(stacked, weights, variant, sign), abs=1e-12)
