import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini import masks
from tipmini.errors import TipminiError
from tipmini.masks import prune_rows, row_mask
from tipmini.papers import tip as wanda
from tipmini.papers.tip import wanda_score

# Few distinct values, so that ties are common.
SCORES = st.integers(1, 9).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 3), min_size=k, max_size=k), min_size=1, max_size=4)
)
SPARSITIES = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1))


def slow_mask(score: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Strike the lowest element again and again, the first of equals first."""
    mask = []
    for row in score:
        kept = set(range(len(row)))
        for _ in range(math.floor(len(row) * sparsity)):
            kept.remove(min(kept, key=lambda i: (row[i], i)))
        mask.append([i in kept for i in range(len(row))])
    return mask


def test_score_worked_by_hand():
    weight = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, -0.5]])
    score = wanda_score(weight, torch.tensor([3.0, 1.0, 0.5]))
    assert score.tolist() == [[3.0, 2.0, 1.5], [0.0, 5.0, 0.25]]


def test_a_small_weight_with_a_strong_input_survives():
    weight = torch.tensor([[0.1, -0.4, 0.2, 0.3]])
    score = wanda_score(weight, torch.tensor([10.0, 1.0, 1.0, 1.0]))
    kept = torch.tensor([[0.1, -0.4, 0.0, 0.0]])
    assert torch.equal(prune_rows(weight, score, 0.5), kept)


@pytest.mark.parametrize(
    ("weight", "norm", "score"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_score_is_in_the_wider_dtype(weight, norm, score):
    assert wanda_score(torch.ones(2, 3, dtype=weight), torch.ones(3, dtype=norm)).dtype == score


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (), (2, 3)])
def test_score_refuses_norms_of_another_shape(shape):
    with pytest.raises(TipminiError, match=r"input_norm \(k,\), got \(2, 3\)"):
        wanda_score(torch.ones(2, 3), torch.ones(shape))


@given(SCORES, SPARSITIES)
def test_mask_is_the_slow_one(score, sparsity):
    assert row_mask(torch.tensor(score), sparsity).tolist() == slow_mask(score, sparsity)


@pytest.mark.parametrize("chunk", [1, 1200, 1 << 17])
@pytest.mark.parametrize("distinct", [1, 2, 5, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mask_is_that_of_a_stable_sort_of_whole_rows(monkeypatch, chunk, distinct, dtype):
    """With one, three or all rows at a time, from all scores equal to hardly any."""
    monkeypatch.setattr(masks, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(distinct)
    score = torch.randint(distinct, (7, 400), generator=generator).to(dtype)
    score[0, ::3] = torch.inf
    for sparsity in (0.0, 0.01, 0.25, 0.5, 0.9975, 1.0):
        lowest = score.sort(dim=1, stable=True).indices[:, : math.floor(400 * sparsity)]
        sorted_out = torch.ones(score.shape, dtype=torch.bool).scatter(1, lowest, False)
        assert torch.equal(row_mask(score, sparsity), sorted_out)
        turned = score.T.contiguous().T
        assert torch.equal(row_mask(turned, sparsity), sorted_out)


@given(SCORES, SPARSITIES)
def test_every_row_loses_the_floor(score, sparsity):
    mask = row_mask(torch.tensor(score), sparsity)
    pruned = math.floor(mask.shape[1] * sparsity)
    assert (~mask).sum(1).tolist() == [pruned] * len(score)


@given(SCORES, st.lists(SPARSITIES, min_size=2, max_size=2).map(sorted))
def test_what_little_sparsity_prunes_more_sparsity_prunes_too(score, sparsities):
    less, more = (row_mask(torch.tensor(score), s) for s in sparsities)
    assert not (more & ~less).any()


def test_ties_fall_to_the_lower_index_in_long_rows():
    # Long enough for an unstable sort to shuffle equals.
    mask = row_mask(torch.ones(2, 5000), 0.5)
    assert mask.tolist() == [[False] * 2500 + [True] * 2500] * 2


def test_a_uniform_scale_of_the_norms_leaves_the_mask():
    weight, norm = torch.randn(8, 32), torch.rand(32)
    masks = [row_mask(wanda_score(weight, norm * scale), 0.4) for scale in (1, 0.25, 8)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_goes_is_plus_zero_and_what_stays_keeps_its_bits(dtype):
    weight = torch.tensor([[-1.0, -0.0, 5.0, torch.inf, -torch.inf, torch.nan]]).to(dtype)
    pruned = prune_rows(weight, torch.tensor([[0.0, 9, 0, 0, 9, 9]]), 0.5)
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
    whole = prune_rows(tensor, wanda_score(tensor, norms), 0.6)
    assert torch.equal(wanda.prune_scored(tensor, norms, 0.6), whole)
    assert wanda.prune_scored(tensor, norms, 0.6, out=tensor) is tensor
    assert torch.equal(tensor, whole)


@pytest.mark.parametrize("distinct", [3, 10_000])
def test_the_number_of_threads_changes_no_mask(monkeypatch, distinct):
    monkeypatch.setattr(masks, "CHUNK", 1000)
    score = torch.randint(distinct, (60, 300)).float()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(row_mask(score, 0.7))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_pruning_leaves_its_argument_and_the_dtype():
    weight = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    pruned = prune_rows(weight, weight.abs().float(), 0.5)
    assert weight.tolist() == [[1.0, -2.0]]
    assert pruned.tolist() == [[0.0, -2.0]] and pruned.dtype == torch.bfloat16


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan, math.inf])
def test_sparsity_outside_is_refused(sparsity):
    with pytest.raises(TipminiError, match=r"sparsity must lie in \[0, 1\]"):
        row_mask(torch.ones(2, 3), sparsity)


def test_scores_without_an_order_are_refused():
    with pytest.raises(TipminiError, match="NaN"):
        row_mask(torch.tensor([[1.0, math.nan]]), 0.5)


def test_weight_and_score_of_two_shapes_are_refused():
    with pytest.raises(TipminiError, match=r"\(2, 3\) and \(3, 2\)"):
        prune_rows(torch.ones(2, 3), torch.ones(3, 2), 0.5)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_only_matrices_have_rows(shape):
    with pytest.raises(TipminiError, match=r"scores must be \(d, k\), got"):
        prune_rows(torch.ones(shape), torch.ones(shape), 0.5)
