"""Elastic Eqs. 1-8, by hand, and what merging must keep: zeros, and the grid of 16 numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.papers import elastic

X = torch.tensor([[1.0, 2.0]])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, -1.0], [2.0, 1.0]])  # (3, 2)
A = torch.tensor([[1.0, 1.0], [0.0, 2.0]])  # (2, 2)
B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (3, 2)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def bases(draw) -> tuple[Tensor, Tensor, Tensor, float]:
    """A weight with zeros, factors of an adapter, and a scaling; any sizes of groups of 4."""
    d, groups, r = (draw(st.integers(1, 5)) for _ in range(3))
    seed, k = draw(st.integers(0, 1000)), 4 * groups
    keep = torch.rand(d, k, generator=torch.Generator().manual_seed(seed)) > draw(st.floats(0, 1))
    return (
        drawn(seed, d, k) * keep,
        drawn(seed + 1, r, k),
        drawn(seed + 2, d, r),
        draw(st.floats(-4, 4)),
    )


# Eqs. 1 and 2 -------------------------------------------------------------------------------------


def test_outputs_worked_by_hand():
    assert elastic.frozen_output(X, WEIGHT).tolist() == [[1.0, -2.0, 4.0]]
    # X L1 = (3, 4), X L1 L2 = (3, 4, 7), of which a half is added
    assert elastic.adapted_output(X, WEIGHT, A, B, 0.5).tolist() == [[2.5, 0.0, 7.5]]


# Eqs. 3 and 4 -------------------------------------------------------------------------------------


def test_a_smaller_rank_leaves_terms_of_the_sum_out():
    a, b = elastic.rank_slice(A, B, 1)
    assert (b @ a).tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert a.data_ptr() == A.data_ptr() and b.data_ptr() == B.data_ptr()
    rest = torch.outer(B[:, 1], A[1])
    assert torch.equal(b @ a + rest, B @ A)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(TipminiError, match=f"rank must be 1 to 2, got {rank}"):
        elastic.rank_slice(A, B, rank)


def test_channels_are_sliced_of_the_weight_and_of_its_adapter():
    weight, a, b = elastic.channel_slice(WEIGHT, A, B, rows=2, columns=1)
    assert (weight.tolist(), a.tolist()) == ([[1.0], [0.0]], [[1.0], [0.0]])
    assert b.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    whole = elastic.channel_slice(WEIGHT, A, B)
    assert all(map(torch.equal, whole, (WEIGHT, A, B)))
    part = elastic.adapted_output(X[:, :1], weight, a, b, 0.5)
    cut = elastic.adapted_output(X * torch.tensor([1.0, 0.0]), WEIGHT, A, B, 0.5)
    assert torch.equal(part, cut[:, :2])


@pytest.mark.parametrize("asked", [{"rows": 4}, {"rows": 0}, {"columns": 3}])
def test_channels_that_are_not_there_are_refused(asked):
    ((what, count),) = asked.items()
    with pytest.raises(TipminiError, match=rf"{what} must be 1 to \d, got {count}"):
        elastic.channel_slice(WEIGHT, A, B, **asked)


# Eqs. 5 and 6 -------------------------------------------------------------------------------------


def test_a_dense_adapter_fills_zeros_and_a_sparse_one_none():
    delta = elastic.sparse_delta(A, B, 1.0, WEIGHT != 0)
    assert delta.tolist() == [[1.0, 0.0], [0.0, 2.0], [1.0, 3.0]]
    assert int((WEIGHT + B @ A == 0).sum()) == 1  # of two zeros one is left
    assert torch.equal(WEIGHT + delta == 0, WEIGHT == 0)


@given(bases())
def test_the_merge_keeps_every_zero(base):
    weight, a, b, scaling = base
    merged = weight + elastic.sparse_delta(a, b, scaling, weight != 0)
    assert (merged[weight == 0] == 0).all()


def test_the_grid_worked_by_hand():
    """Steps of 0.5 from -1 on: 0.3 and -0.2 go to the nearest, 9 and -9 to the ends."""
    scale, zero = torch.tensor([[0.5]]), torch.tensor([[2.0]])
    weight = torch.tensor([[0.3, -0.2, 9.0, -9.0]])
    assert elastic.codes_on(weight, scale, zero).tolist() == [[3.0, 2.0, 15.0, 0.0]]
    assert elastic.on_grid(weight, scale, zero).tolist() == [[0.5, 0.0, 6.5, -1.0]]
    assert elastic.on_grid(weight, scale, zero, bits=2).tolist() == [[0.5, 0.0, 0.5, -1.0]]


@given(bases(), st.integers(0, 15), st.floats(0.01, 2))
def test_the_merge_stays_on_the_grid_and_keeps_every_zero(base, zero, scale):
    weight, a, b, scaling = base
    groups = weight.shape[1] // 4
    scales = torch.full((len(weight), groups), scale)
    zeros = torch.full((len(weight), groups), float(zero))
    start = elastic.on_grid(weight, scales, zeros)
    merged = elastic.on_grid(start + elastic.sparse_delta(a, b, scaling, start != 0), scales, zeros)
    codes = merged / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-4) and codes.round().max() <= 15
    assert codes.round().min() >= 0 and (merged[start == 0] == 0).all()
    assert torch.equal(elastic.on_grid(merged, scales, zeros), merged)  # no further rounding


def test_groups_that_do_not_divide_a_row_are_refused():
    with pytest.raises(TipminiError, match=r"a weight \(1, 6\) has no scales \(1, 4\)"):
        elastic.on_grid(torch.ones(1, 6), torch.ones(1, 4), torch.zeros(1, 4))


# Eqs. 7 and 8 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "count"),
    [([], 0), ([(3, 2, 0)], 6), ([(3, 2, 2)], 16), ([(3, 2, 0), (4, 4, 1)], 30)],
)
def test_operations_are_counted(shapes, count):
    assert elastic.operations(shapes) == count


@pytest.mark.parametrize(
    ("choices", "middle"),
    [((16, 12, 8), 12), ((8, 12, 16), 12), ((1.0, 0.5), 0.5), ((7,), 7), ((5, 4, 3, 2, 1), 3)],
)
def test_the_midpoint_is_the_middle_of_an_axis(choices, middle):
    assert elastic.midpoint(choices) == middle


def test_an_axis_needs_values():
    with pytest.raises(TipminiError, match="an axis needs at least one value"):
        elastic.midpoint([])
