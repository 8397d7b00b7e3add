import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.papers.tip import (
    layer_importance,
    layer_sparsity,
    normalize_importance,
    sparsity_shift,
)

IMPORTANCES = st.lists(st.floats(0, 100), min_size=1, max_size=12)
OPTIONS = st.fixed_dictionaries(
    {"sign": st.sampled_from([1, -1]), "shift_range": st.sampled_from([0.0, 0.3, 0.7, 1.0])}
)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slow_sparsity(importance, base, sign, shift_range, bounds):
    """Eqs. 3-5 and both bounds in plain Python; moves the free layers step by step."""
    low, high = min(importance), max(importance)
    normal = [(i - low) / (high - low) if high > low else 0.0 for i in importance]
    mean = sum(normal) / len(normal)
    raw = [base + sign * shift_range * (n - mean) for n in normal]
    clipped = [min(max(s, 0.0), 1.0) for s in raw]
    if bounds == "clip":
        return clipped
    rest = [i for i, s in enumerate(raw) if 0 <= s <= 1]
    for _ in importance:
        missing = base * len(clipped) - sum(clipped)
        free = [i for i in rest if clipped[i] != (1.0 if missing > 0 else 0.0)]
        for i in free:
            clipped[i] = min(max(clipped[i] + missing / len(free), 0.0), 1.0)
    return clipped


# Eq. 2 ---------------------------------------------------------------------------------------


def test_importance_pools_elements_not_matrices():
    scores = [torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[10.0]])]
    assert layer_importance(scores) == 20 / 5  # the mean of the two means would be 6.25


def test_importance_of_many_small_scores_keeps_its_digits():
    scores = [torch.full((1000, 1000), 0.1), torch.full((10, 1000), 0.1, dtype=torch.bfloat16)]
    exact = (1e6 * torch.tensor(0.1).item() + 1e4 * scores[1][0, 0].item()) / 1.01e6
    assert layer_importance(scores) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("scores", [[], [torch.empty(0, 3)]])
def test_importance_of_nothing_is_refused(scores):
    with pytest.raises(TipminiError, match="at least one score"):
        layer_importance(scores)


# Eqs. 3 and 4 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "normalized", "shift"),
    [
        ([1.0, 2.0, 3.0], [0.0, 0.5, 1.0], [-0.5, 0.0, 0.5]),
        ([4.0, 2.0, 2.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.75, -0.25, -0.25, -0.25]),
        ([5.0, 5.0], [0.0, 0.0], [0.0, 0.0]),
        ([7.0], [0.0], [0.0]),
    ],
)
def test_normalized_and_shift_worked_by_hand(importance, normalized, shift):
    result = normalize_importance(vector(*importance))
    assert result.tolist() == normalized
    assert sparsity_shift(result).tolist() == shift


@given(IMPORTANCES)
def test_normalized_lies_in_0_1_and_shift_has_mean_0(importance):
    normalized = normalize_importance(vector(*importance))
    assert ((normalized >= 0) & (normalized <= 1)).all()
    assert abs(sparsity_shift(normalized).mean()) < 1e-15


@given(IMPORTANCES, st.floats(0.1, 10), st.floats(-5, 5))
def test_normalized_forgets_scale_and_offset(importance, scale, offset):
    importance = torch.tensor(importance, dtype=torch.float64).round()
    moved = normalize_importance(importance * scale + offset)
    torch.testing.assert_close(moved, normalize_importance(importance), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "importance", [vector(), vector(1.0, math.nan), vector(1.0, math.inf), torch.ones(2, 2)]
)
def test_importance_that_is_no_finite_vector_is_refused(importance):
    with pytest.raises(TipminiError, match="one finite number a layer"):
        normalize_importance(importance)


# Eq. 5 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        ({}, [0.2, 0.7, 1.0]),  # 1.2 as printed
        ({"sign": -1}, [1.0, 0.7, 0.2]),
        ({"shift_range": 0.3}, [0.55, 0.7, 0.85]),
        ({"shift_range": 0.0}, [0.7, 0.7, 0.7]),
        ({"bounds": "mean_preserving"}, [0.3, 0.8, 1.0]),  # the two free layers take 0.1 each
        ({"bounds": "mean_preserving", "sign": -1}, [1.0, 0.8, 0.3]),
        ({"bounds": "mean_preserving", "shift_range": 0.3}, [0.55, 0.7, 0.85]),
    ],
)
def test_sparsity_worked_by_hand(options, sparsity):
    result = layer_sparsity(vector(1.0, 2.0, 3.0), 0.7, **options)
    torch.testing.assert_close(result, vector(*sparsity), rtol=0, atol=1e-12)


def test_moving_the_rest_can_push_another_layer_to_the_bound():
    # As printed 0.317, 0.917, 1.317. Cut, the third leaves 0.317 to two layers; 0.158 more takes
    # the second to its bound too, and the first takes what is left: 3 * 0.85 - 2.
    result = layer_sparsity(vector(0.0, 0.6, 1.0), 0.85, bounds="mean_preserving")
    torch.testing.assert_close(result, vector(0.55, 1.0, 1.0), rtol=0, atol=1e-12)


@given(IMPORTANCES, st.floats(0, 1), OPTIONS, st.sampled_from(["clip", "mean_preserving"]))
def test_sparsity_is_the_slow_one(importance, base, options, bounds):
    fast = layer_sparsity(vector(*importance), base, **options, bounds=bounds)
    slow = slow_sparsity(importance, base, **options, bounds=bounds)
    torch.testing.assert_close(fast, vector(*slow), rtol=0, atol=1e-9)


@given(IMPORTANCES, st.floats(0, 1), OPTIONS)
def test_mean_preserving_keeps_mean_bounds_and_order(importance, base, options):
    importance = vector(*importance)
    sparsity = layer_sparsity(importance, base, **options, bounds="mean_preserving")
    assert sparsity.mean().item() == pytest.approx(base, abs=1e-12)
    assert ((sparsity >= 0) & (sparsity <= 1)).all()
    ordered = sparsity[(options["sign"] * importance).argsort(stable=True)]
    assert (ordered.diff() >= 0).all()


@given(IMPORTANCES, st.floats(0, 1))
def test_the_inverted_sign_mirrors_the_printed_one(importance, base):
    printed = layer_sparsity(vector(*importance), base)
    inverted = layer_sparsity(vector(*importance), 1 - base, sign=-1)
    torch.testing.assert_close(1 - inverted, printed, rtol=0, atol=1e-12)


def test_the_whole_chain_keeps_the_dtype():
    assert layer_sparsity(torch.tensor([1.0, 2.0]), 0.7).dtype == torch.float32
    wide = layer_sparsity(torch.tensor([1.0, 2.0]), 0.7, bounds="mean_preserving")
    assert wide.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_sparsity": 1.2}, r"base sparsity must lie in \[0, 1\], got 1.2"),
        ({"base_sparsity": math.nan}, "base sparsity"),
        ({"sign": 0}, "sign must be 1"),
        ({"sign": 0.5}, "sign must be 1"),
        ({"shift_range": -1.0}, "shift_range must be"),
        ({"shift_range": math.inf}, "shift_range must be"),
        ({"bounds": "wrap"}, "clip, mean_preserving, got 'wrap'"),
    ],
)
def test_options_outside_their_range_are_refused(arguments, message):
    with pytest.raises(TipminiError, match=message):
        layer_sparsity(vector(1.0, 2.0), **{"base_sparsity": 0.7} | arguments)
