"""TIP's Eqs. 1-5, against plain Python; the mask of the lowest scores, against a stable sort."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tipmini as tm
from tipmini import masks
from tipmini.errors import TipminiError
from tipmini.papers import tip
from tipmini.papers.tip import Reading, layer_importance, layer_sparsity, prune_scored, wanda_score

# Few distinct values, so that ties are common.
SCORES = st.integers(1, 9).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 3), min_size=k, max_size=k), min_size=1, max_size=4)
)
SPARSITIES = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1))
IMPORTANCES = st.lists(st.floats(0, 100), min_size=1, max_size=12)
OPTIONS = st.fixed_dictionaries(
    {"sign": st.sampled_from([1, -1]), "shift_range": st.sampled_from([0.0, 0.3, 0.7, 1.0])}
)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Eq. 1, and the lowest of each row ----------------------------------------------------------------


def test_score_and_pruning_worked_by_hand():
    weight = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -0.5]])
    score = wanda_score(weight, torch.tensor([3.0, 1.0, 0.5]))
    assert score.tolist() == [[3.0, 2.0, 1.5], [0.0, 5.0, 0.25]]
    weight = torch.tensor([[0.1, -0.4, 0.2, 0.3]], dtype=torch.bfloat16)
    before, norms = weight.clone(), torch.tensor([10.0, 1.0, 1.0, 1.0])  # a strong first input
    pruned = tm.prune_rows(weight, wanda_score(weight, norms), 0.5)
    assert torch.equal(pruned, before * torch.tensor([[1, 1, 0, 0]])) and torch.equal(
        weight, before
    )
    assert pruned.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_score_is_in_the_wider_dtype(dtype):
    wide = torch.promote_types(dtype, torch.float32)
    weight, norm = torch.full((2, 3), -0.3).to(dtype), torch.full((3,), 0.7)
    for out in (None, torch.empty(2, 3, dtype=wide)):
        score = wanda_score(weight, norm, out=out)
        assert torch.equal(score, weight.to(wide).abs() * norm) and score.dtype == wide
        assert out is None or score is out


@given(SCORES, SPARSITIES)
def test_mask_strikes_the_lowest_again_and_again(score, sparsity):
    for row, kept in zip(score, tm.row_mask(torch.tensor(score), sparsity).tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: (row[i], i))
        gone = order[: math.floor(len(row) * sparsity)]
        assert kept == [i not in gone for i in range(len(row))]


@pytest.mark.parametrize(("chunk", "threads"), [(1, 1), (1200, 1), (1200, 5), (1 << 17, 2)])
@pytest.mark.parametrize("distinct", [1, 2, 5, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mask_is_that_of_a_stable_sort_of_whole_rows(
    monkeypatch, chunk, threads, distinct, dtype
):
    """With one, three or all rows at a time, from all scores equal to hardly any."""
    monkeypatch.setattr(masks, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(distinct)
    score = torch.randint(distinct, (7, 400), generator=generator).to(dtype)
    score[0, ::3] = torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for sparsity in (0.0, 0.01, 0.25, 0.5, 0.9975, 1.0):
        lowest = score.sort(dim=1, stable=True).indices[:, : math.floor(400 * sparsity)]
        sorted_out = torch.ones(score.shape, dtype=torch.bool).scatter(1, lowest, False)
        for turned in (score, score.T.contiguous().T):
            assert torch.equal(tm.row_mask(turned, sparsity), sorted_out)
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_goes_is_plus_zero_and_what_stays_keeps_its_bits(dtype):
    weight = torch.tensor([[-1.0, -0.0, 5.0, torch.inf, -torch.inf, torch.nan]]).to(dtype)
    pruned = tm.prune_rows(weight, torch.tensor([[0.0, 9, 0, 0, 9, 9]]), 0.5)
    kept = torch.tensor([[0.0, -0.0, 0, 0, -torch.inf, torch.nan]]).to(dtype)
    bits = masks.BITS[dtype.itemsize]
    assert torch.equal(pruned.view(bits), kept.view(bits))


@pytest.mark.parametrize("weight", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", [torch.float32, torch.float64])
def test_pruning_in_place_and_by_whole_scores_are_one(weight, norm, monkeypatch):
    monkeypatch.setattr(masks, "CHUNK", 100)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(50, 31, generator=generator).to(weight)
    norms = torch.rand(31, generator=generator).to(norm)
    whole = tm.prune_rows(tensor, wanda_score(tensor, norms), 0.6)
    assert torch.equal(prune_scored(tensor, norms, 0.6), whole)
    live = tensor.clone().requires_grad_()
    found = prune_scored(live, norms, 0.6)
    found.sum().backward()
    assert torch.equal(found, whole) and torch.equal(live.grad, (whole != 0).to(weight))
    assert prune_scored(tensor, norms, 0.6, out=tensor) is tensor
    assert torch.equal(tensor, whole)


# Eq. 2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "exact"),
    [  # elements are pooled, not matrices: the mean of the two means would be 6.25
        ([torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[10.0]])], 20 / 5),
        ([torch.full((1000, 1000), 0.1)], torch.tensor(0.1).item()),
        ([torch.full((3, tip.PIECE), 0.1, dtype=torch.bfloat16)], 0.10009765625),
        ([torch.arange(2.0 * tip.PIECE + 1)], float(tip.PIECE)),
        ([torch.arange(5.0), torch.arange(tip.PIECE - 1.0)], (10 + 16382 * 16383 / 2) / 16388),
    ],
)
def test_importance_is_the_mean_of_all_elements(scores, exact):
    assert layer_importance(scores) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("width", "rows", "whole"),
    [(1, 512, 16384), (16384, 512, 512), (48, 512, 1024), (48, 5000, 4096), (7, 1, 16384)],
)
def test_chunks_hold_whole_pieces(width, rows, whole):
    assert tip.whole_pieces(width, rows) == whole and whole * width % tip.PIECE == 0
    scores = torch.rand(2 * whole + 3, width)
    assert layer_importance(scores.split(whole)) == layer_importance([scores])


# Eqs. 3 and 4 -------------------------------------------------------------------------------------


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
    result = tm.normalize_importance(vector(*importance))
    assert result.tolist() == normalized
    assert tm.sparsity_shift(result).tolist() == shift


@given(IMPORTANCES, st.floats(0.1, 10), st.floats(-5, 5))
def test_normalized_forgets_scale_and_offset_and_shift_has_mean_0(importance, scale, offset):
    importance = vector(*importance).round()
    normalized = tm.normalize_importance(importance)
    moved = tm.normalize_importance(importance * scale + offset)
    torch.testing.assert_close(moved, normalized, rtol=0, atol=1e-9)
    assert ((normalized >= 0) & (normalized <= 1)).all()
    assert abs(tm.sparsity_shift(normalized).mean()) < 1e-15


# Eq. 5 --------------------------------------------------------------------------------------------


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


PRESERVING = {"bounds": "mean_preserving"}


@pytest.mark.parametrize(
    ("importance", "base", "options", "sparsity"),
    [
        ([1.0, 2.0, 3.0], 0.7, {}, [0.2, 0.7, 1.0]),  # 1.2 as printed
        ([1.0, 2.0, 3.0], 0.7, {"sign": -1}, [1.0, 0.7, 0.2]),
        ([1.0, 2.0, 3.0], 0.7, {"shift_range": 0.3}, [0.55, 0.7, 0.85]),
        ([1.0, 2.0, 3.0], 0.7, {"shift_range": 0.0}, [0.7, 0.7, 0.7]),
        ([1.0, 2.0, 3.0], 0.7, PRESERVING, [0.3, 0.8, 1.0]),  # the free layers take 0.1 each
        ([1.0, 2.0, 3.0], 0.7, PRESERVING | {"sign": -1}, [1.0, 0.8, 0.3]),
        ([1.0, 2.0, 3.0], 0.7, PRESERVING | {"shift_range": 0.3}, [0.55, 0.7, 0.85]),
        # As printed 0.317, 0.917, 1.317. Cut, the third leaves 0.317 to two layers; 0.158 more
        # takes the second to its bound too, and the first takes what is left: 3 * 0.85 - 2.
        ([0.0, 0.6, 1.0], 0.85, PRESERVING, [0.55, 1.0, 1.0]),
    ],
)
def test_sparsity_worked_by_hand(importance, base, options, sparsity):
    result = layer_sparsity(vector(*importance), base, **options)
    torch.testing.assert_close(result, vector(*sparsity), rtol=0, atol=1e-12)
    assert layer_sparsity(vector(*importance).float(), base, **options).dtype == torch.float32


@given(IMPORTANCES, st.floats(0, 1), OPTIONS, st.sampled_from(["clip", "mean_preserving"]))
def test_sparsity_is_the_slow_one(importance, base, options, bounds):
    fast = layer_sparsity(vector(*importance), base, **options, bounds=bounds)
    slow = slow_sparsity(importance, base, **options, bounds=bounds)
    torch.testing.assert_close(fast, vector(*slow), rtol=0, atol=1e-9)
    turned = {**options, "sign": -options["sign"]}
    mirrored = layer_sparsity(vector(*importance), 1 - base, **turned, bounds=bounds)
    torch.testing.assert_close(1 - mirrored, fast, rtol=0, atol=1e-12)
    ordered = fast[(options["sign"] * vector(*importance)).argsort(stable=True)]
    assert (ordered.diff() >= 0).all()
    assert bounds == "clip" or fast.mean().item() == pytest.approx(base, abs=1e-12)


# What is refused ----------------------------------------------------------------------------------


def sparsity(**options):
    return layer_sparsity(vector(1.0, 2.0), **{"base_sparsity": 0.7} | options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (lambda s=s: tm.row_mask(torch.ones(2, 3), s), r"sparsity must lie in \[0, 1\], got")
            for s in (-0.1, 1.1, math.nan, math.inf)
        ],
        *[
            (
                lambda s=s: wanda_score(torch.ones(2, 3), torch.ones(s)),
                r"input_norm \(k,\), got \(2, 3\) and",
            )
            for s in ((2,), (4,), (1,), (), (2, 3))
        ],
        (lambda: wanda_score(torch.ones(3), torch.ones(3)), r"needs an input_norm"),
        (lambda: tm.row_mask(torch.tensor([[1.0, math.nan]]), 0.5), "NaN; check the weight"),
        (lambda: tm.prune_rows(torch.ones(2, 3), torch.ones(3, 2), 0.5), r"\(2, 3\) and \(3, 2\)"),
        *[
            (
                lambda s=s: tm.prune_rows(torch.ones(s), torch.ones(s), 0.5),
                r"scores must be \(d, k\), got \(",
            )
            for s in ((4,), (2, 3, 4))
        ],
        *[
            (
                lambda s=s: layer_importance(s),
                "^layer_importance: a layer needs at least one score$",
            )
            for s in ([], [torch.empty(0, 3)])
        ],
        *[
            (lambda i=i: tm.normalize_importance(i), r"^importances must be one finite number a l")
            for i in (vector(), vector(1.0, math.nan), vector(1.0, math.inf), torch.ones(2, 2))
        ],
        (lambda: sparsity(base_sparsity=1.2), r"base sparsity must lie in \[0, 1\], got 1.2"),
        (lambda: sparsity(base_sparsity=math.nan), "base sparsity"),
        (lambda: sparsity(sign=0), "sign must be 1"),
        (lambda: sparsity(sign=0.5), "sign must be 1"),
        (lambda: sparsity(shift_range=-1.0), "shift_range must be"),
        (lambda: sparsity(shift_range=math.inf), "shift_range must be"),
        (lambda: sparsity(bounds="wrap"), "clip, mean_preserving, got 'wrap'"),
        (lambda: Reading(sparsity="0.5"), r"sparsity must lie in \[0, 1\], got '0.5'"),
    ],
)
def test_what_there_is_not_is_refused(call, message):
    with pytest.raises(TipminiError, match=message):
        call()
