import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.models.factors import LoraFactors
from tipmini.models.lowrank import factorise, product_norm, relative_error, stack, truncate

SHAPES = [(9, 12, 3), (12, 9, 1), (2, 12, 8), (12, 2, 8), (1, 1, 4)]  # d, k, r: also d < r, k < r


def random_factors(d: int, k: int, r: int, seed: int = 0, dtype=torch.float32) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(r, k, generator=generator, dtype=dtype)
    return LoraFactors(a, torch.randn(d, r, generator=generator, dtype=dtype), 0.5)


def slow_truncation(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return sum(
        (s[i] * torch.outer(u[:, i], vh[i]) for i in range(min(rank, len(s)))),
        torch.zeros(delta.shape, dtype=torch.float64),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 5, 30])
def test_truncation_is_that_of_the_dense_delta(shape, rank):
    factors = random_factors(*shape)
    cut, expected = truncate(factors, rank), slow_truncation(factors.delta(), rank)
    assert cut.rank == min(rank, *shape) and cut.scaling == 1.0
    torch.testing.assert_close(cut.delta().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("d", "k", "rank"), [(5, 9, 2), (9, 5, 9), (40, 60, 3), (60, 40, 10), (1, 7, 1)]
)
def test_factors_of_a_dense_delta_are_its_truncation(d, k, rank, dtype):
    """By LAPACK and, where rank is small beside the matrix, by Lanczos."""
    delta = torch.randn(d, k, generator=torch.Generator().manual_seed(1), dtype=dtype)
    factors = factorise(delta, rank)
    assert factors.a.dtype == factors.b.dtype == dtype and factors.rank == min(rank, d, k)
    expected = slow_truncation(delta, rank)
    torch.testing.assert_close(factors.delta().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 5, 8])
def test_a_delta_of_lower_rank_comes_back_whole(rank):
    delta = random_factors(64, 48, 2).delta()
    torch.testing.assert_close(factorise(delta, rank).delta(), delta, rtol=1e-4, atol=1e-5)


def test_factors_of_nothing_are_nothing():
    zero = factorise(torch.zeros(40, 60), 3)
    assert zero.rank == 3 and not zero.delta().any()
    empty = LoraFactors(torch.zeros(3, 5), torch.zeros(4, 3), 1.0)
    assert not truncate(empty, 2).delta().any()


@given(st.sampled_from(SHAPES), st.integers(0, 99))
def test_the_norm_of_a_product_is_the_dense_one(shape, seed):
    factors = random_factors(*shape, seed)
    dense = torch.linalg.matrix_norm(factors.b.double() @ factors.a.double()).item()
    assert product_norm(factors.b, factors.a) == pytest.approx(dense, rel=1e-12)


@given(st.sampled_from(SHAPES), st.integers(0, 99))
def test_the_relative_error_is_the_dense_one(shape, seed):
    exact, other = (random_factors(*shape, seed, torch.float64) for seed in (seed, seed + 1))
    norm = torch.linalg.matrix_norm(exact.delta())
    expected = (torch.linalg.matrix_norm(other.delta() - exact.delta()) / norm).item()
    assert relative_error(other, exact) == pytest.approx(expected, rel=1e-10)
    assert relative_error(other.delta(), exact) == pytest.approx(expected, rel=1e-10)
    assert relative_error(exact, exact) < 1e-14


def test_the_relative_error_to_nothing_is_no_number():
    zero = LoraFactors(torch.zeros(1, 4), torch.zeros(4, 1), 1.0)
    assert math.isnan(relative_error(zero, zero))


def test_stacked_factors_add_up():
    pairs = [random_factors(5, 7, r, seed=r, dtype=torch.float64) for r in (1, 3, 6)]
    stacked = stack([(pair.b, pair.a) for pair in pairs])
    torch.testing.assert_close(stacked.delta(), sum(pair.b @ pair.a for pair in pairs))


@pytest.mark.parametrize("count", [1, 3, 16, None])
def test_factorising_again_gives_the_same_bits(count):
    """Also of what is nearly empty: Lanczos, having seen all, would go on from random numbers."""
    delta = random_factors(64, 48, 30).delta() if count is None else torch.zeros(300, 200)
    for i in range(count or 0):
        delta[7 * i, 11 * i] = i + 1.0
    one, *others = [factorise(delta, 8) for _ in range(3)]
    for other in others:
        assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
    expected = slow_truncation(delta, 8)
    torch.testing.assert_close(one.delta().double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("number", "rank", "why"),
    [
        *((1.0, rank, "rank must be a whole number from 1 on, got") for rank in (0, -1, 2.0, "2")),
        (1.0, None, "rank must be a whole number from 1 on, got"),
        (math.inf, 2, r"overflows torch\.float32; take smaller weights"),
        (math.nan, 2, r"overflows torch\.float32; take smaller weights"),
    ],
)
def test_a_rank_that_is_none_and_what_has_overflowed_are_refused(number, rank, why):
    delta = torch.full((40, 60), number)
    for cut, of in ((factorise, delta), (truncate, LoraFactors(delta, torch.ones(3, 40), 1.0))):
        with pytest.raises(TipminiError, match=why):
            cut(of, rank)
