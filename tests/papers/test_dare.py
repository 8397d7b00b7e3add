import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.papers.dare import dare, named_generator

RATES = st.floats(0, 0.95)
SEEDS = st.integers(0, 2**32)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64])
@pytest.mark.parametrize("rescale", ["expected", "l1", None])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.6])
def test_worked_with_the_draws_at_hand(rate, rescale, dtype):
    """The same elements stay by all rules, in all dtypes, whatever the global seed."""
    torch.manual_seed(int(10 * rate))
    delta = torch.arange(-57, 23, 2).to(dtype)  # sums that bfloat16 does not hold
    kept = delta * (torch.rand(40, generator=seeded(3)) >= rate)
    before, after = (tensor.double().abs().sum().item() for tensor in (delta, kept))
    expected = {"expected": kept / (1 - rate), "l1": kept * (before / after), None: kept}
    found = dare(delta, rate, generator=seeded(3), rescale=rescale)
    assert torch.equal(found, expected[rescale]) and found.dtype == expected[rescale].dtype


@given(RATES, SEEDS)
def test_survivors_are_as_many_as_a_coin_says_and_the_expectation_is_delta(rate, seed):
    delta = torch.tensor([2.0, -0.5]).expand(10_000, 2)
    draws = dare(delta, rate, generator=seeded(seed)).double()
    assert abs((draws != 0).sum() - 20_000 * (1 - rate)) <= 6 * math.sqrt(
        20_000 * rate * (1 - rate)
    )
    spread = delta[0].abs() * math.sqrt(rate / (1 - rate) / len(draws))
    assert ((draws.mean(0) - delta[0]).abs() <= 6 * spread + 1e-6).all()


def test_l1_of_nothing_left_is_zero_not_nan():
    only = torch.tensor([1.0])
    results = [dare(only, 0.9, generator=seeded(s), rescale="l1").item() for s in range(30)]
    assert set(results) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_rate": 1.0}, r"drop_rate must be a number in \[0, 1\), got 1.0$"),
        ({"drop_rate": -0.1}, r"in \[0, 1\), got -0.1$"),
        ({"drop_rate": math.nan}, r"in \[0, 1\), got nan$"),
        ({"drop_rate": None}, r"drop_rate must be a number in \[0, 1\), got None$"),
        ({"drop_rate": "0.5"}, r"drop_rate must be a number in \[0, 1\), got '0.5'$"),
        ({"drop_rate": True}, r"drop_rate must be a number in \[0, 1\), got True$"),
        ({"rescale": "l2"}, "'expected', 'l1' or None, got 'l2'"),
        ({"generator": None}, "^dare needs a torch.Generator, got NoneType"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(TipminiError, match=message):
        dare(torch.ones(3), **{"drop_rate": 0.5, "generator": seeded()} | arguments)


def test_a_named_generator_depends_on_seed_and_names_alone():
    keys = [
        (0, "boolq", "a"),
        (1, "boolq", "a"),
        (0, "piqa", "a"),
        (0, "boolq", "b"),
        (0, "boolqa"),
    ]
    assert len({named_generator(*key).initial_seed() for key in keys}) == len(keys)
    # The head of SHA-256 of "(0, 'boolq', 'q')": a stored result must come out the same in years.
    assert named_generator(0, "boolq", "q").initial_seed() == 0x6F54200B852DB918
