import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.papers.dare import dare, named_generator

RATES = st.floats(0, 0.95)
SEEDS = st.integers(0, 2**32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_worked_with_the_draws_at_hand():
    delta = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    draws = torch.rand(1, 4, generator=seeded(3))
    expected = [
        [d * 2 if u >= 0.5 else 0.0 for d, u in zip(delta[0].tolist(), draws[0], strict=True)]
    ]
    assert dare(delta, 0.5, generator=seeded(3)).tolist() == expected


@given(RATES, SEEDS)
def test_survivors_are_as_many_as_a_coin_says(rate, seed):
    count = 20_000
    kept = dare(torch.ones(count), rate, generator=seeded(seed), rescale=None).sum().item()
    spread = math.sqrt(count * rate * (1 - rate))
    assert abs(kept - count * (1 - rate)) <= 6 * spread


@given(RATES, SEEDS)
def test_the_expectation_is_delta(rate, seed):
    delta = torch.tensor([2.0, -0.5])
    draws = dare(delta.expand(5_000, 2), rate, generator=seeded(seed)).double()
    error = (draws.mean(0) - delta).abs()
    spread = delta.abs() * math.sqrt(rate / (1 - rate) / len(draws))
    assert (error <= 6 * spread + 1e-6).all()


@given(RATES, SEEDS)
def test_l1_restores_the_norm(rate, seed):
    delta = torch.randn(50, generator=seeded(seed))
    result = dare(delta, rate, generator=seeded(seed), rescale="l1")
    assert result.abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("rescale", ["expected", "l1", None])
def test_the_three_rules_keep_the_same_elements(rescale):
    delta = torch.randn(8, 8, generator=seeded())
    kept = dare(delta, 0.6, generator=seeded(1), rescale=rescale)
    plain = dare(delta, 0.6, generator=seeded(1), rescale=None)
    ratio = kept[plain != 0] / plain[plain != 0]
    factor = {
        "expected": 1 / 0.4,
        "l1": (delta.abs().sum() / plain.abs().sum()).item(),
        None: 1.0,
    }
    torch.testing.assert_close(ratio, torch.full_like(ratio, factor[rescale]))
    assert torch.equal(kept == 0, plain == 0)


@pytest.mark.parametrize("rescale", ["expected", "l1", None])
def test_drop_rate_0_is_the_identity(rescale):
    delta = torch.randn(5, 5)
    torch.testing.assert_close(dare(delta, 0.0, generator=seeded(), rescale=rescale), delta)


def test_l1_of_nothing_left_is_zero_not_nan():
    only = torch.tensor([1.0])
    results = [dare(only, 0.9, generator=seeded(s), rescale="l1").item() for s in range(30)]
    assert set(results) == {0.0, 1.0}


def test_the_mask_does_not_depend_on_the_dtype():
    delta = torch.randn(40, generator=seeded())
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    results = [dare(delta.to(dtype), 0.5, generator=seeded(2)) for dtype in dtypes]
    assert [r.dtype for r in results] == list(dtypes)
    assert all(torch.equal(r == 0, results[0] == 0) for r in results)


def test_the_global_seed_plays_no_part():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(dare(torch.ones(50), 0.5, generator=seeded(9)))
    assert torch.equal(*results)


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
        ({"generator": None}, "needs a torch.Generator, got NoneType"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(TipminiError, match=message):
        dare(torch.ones(3), **{"drop_rate": 0.5, "generator": seeded()} | arguments)


def test_a_named_generator_depends_on_seed_and_names_alone():
    def draw(*key):
        return torch.rand(4, generator=named_generator(*key)).tolist()

    assert draw(0, "boolq", "q_proj.lora_A") == draw(0, "boolq", "q_proj.lora_A")
    keys = [
        (0, "boolq", "a"),
        (1, "boolq", "a"),
        (0, "piqa", "a"),
        (0, "boolq", "b"),
        (0, "boolqa"),
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_a_named_generator_is_the_same_in_every_process():
    # The head of SHA-256 of "(0, 'boolq', 'q')": a stored result must come out the same in years.
    assert named_generator(0, "boolq", "q").initial_seed() == 0x6F54200B852DB918
