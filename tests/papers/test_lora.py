"""LoRA's Eqs. 1-6, by hand, against slow and obvious versions, and by their properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import llama, logits

from tipmini.errors import TipminiError
from tipmini.papers import lora

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))  # d, k, r


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Eqs. 1 and 2 -------------------------------------------------------------------------------------


def test_the_objective_worked_by_hand():
    """Two classes of logits 0 and log 3: probabilities 1/4 and 3/4; the second place is ignored."""
    scores = torch.tensor([[[0.0, math.log(3)], [9.0, 0.0], [0.0, 0.0]]])
    found = lora.log_likelihood(scores, torch.tensor([[1, lora.IGNORED, 0]]))
    assert found.item() == pytest.approx(math.log(3 / 4) + math.log(1 / 2))


def test_an_increment_is_added_to_its_own_weight_alone():
    """Logits x w with w = (0, 1): an increment of (log 3 - 1) on the second makes 1/4 and 3/4."""
    frozen = {"w": torch.tensor([0.0, 1.0]), "v": torch.tensor([5.0])}
    of = lambda weights: weights["w"].view(1, 1, 2) + 0 * weights["v"]  # noqa: E731
    target = torch.tensor([[1]])
    same = lora.adapted_log_likelihood(of, frozen, {}, target)
    assert same == lora.log_likelihood(of(frozen), target)
    more = {"w": torch.tensor([0.0, math.log(3) - 1])}
    found = lora.adapted_log_likelihood(of, frozen, more, target)
    assert found.item() == pytest.approx(math.log(3 / 4)) and frozen["w"].tolist() == [0, 1]


# Eq. 3 --------------------------------------------------------------------------------------------


def test_the_forward_pass_worked_by_hand():
    """W x = (1, 4); A x = 3, B A x = (3, 0); alpha / r = 2 / 1."""
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0]])
    assert lora.forward(x, weight, a, b).tolist() == [[4, 4]]
    assert lora.forward(x, weight, a, b, alpha=2).tolist() == [[7, 4]]
    assert lora.merged(weight, a, b, alpha=2).tolist() == [[3, 2], [2, 1]]


@given(SIZES, SEEDS, st.floats(0.1, 64))
def test_merged_equals_unmerged_within_rounding(sizes, seed, alpha):
    """A sum of k and one of r products in float64: 2^-52 a step, relative to the sums of sizes."""
    d, k, r = sizes
    x, weight, a, b = (random(seed + n, *s) for n, s in enumerate([(5, k), (d, k), (r, k), (d, r)]))
    apart = lora.forward(x, weight, a, b, alpha)
    whole = x @ lora.merged(weight, a, b, alpha).T
    sizes = x.abs() @ (weight.abs() + alpha / r * b.abs() @ a.abs()).T
    assert ((apart - whole).abs() <= 2**-52 * (k + r + 3) * sizes).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(SIZES, SEEDS, st.floats(0.1, 64))
@settings(max_examples=25)
def test_b_of_zero_leaves_the_output_and_the_weight_bit_for_bit(dtype, sizes, seed, alpha):
    d, k, r = sizes
    generator = torch.Generator().manual_seed(seed)
    a, b = (factor.to(dtype) for factor in lora.initial_factors(d, k, r, generator))
    x, weight = random(seed, 3, k).to(dtype), random(seed + 1, d, k).to(dtype)
    assert a.abs().max() > 0 and not b.any()
    assert torch.equal(lora.forward(x, weight, a, b, alpha), x @ weight.T)
    assert torch.equal(lora.merged(weight, a, b, alpha), weight)


def test_a_new_adapter_of_pefts_leaves_the_model_bit_for_bit():
    before = logits(llama())
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    assert torch.equal(logits(get_peft_model(llama(), config)), before)


def test_the_start_is_of_the_inputs_scale():
    a, _ = lora.initial_factors(3, 400, 100, torch.Generator().manual_seed(0))
    assert (a @ torch.ones(400)).std().item() == pytest.approx(1, rel=0.3)


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(TipminiError, match=r"\(2, 3\), \(1, 2\), \(2, 1\)"):
        lora.forward(torch.ones(1, 3), torch.ones(2, 3), torch.ones(1, 2), torch.ones(2, 1))


@given(st.integers(1, 6), SEEDS)
def test_a_rank_of_all_reaches_any_update(size, seed):
    """Full tuning is within LoRA at r = min(d, k): any update is a product of so few columns."""
    update = random(seed, size, size + 2)
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    found = lora.merged(torch.zeros_like(update), vh, u * s)
    torch.testing.assert_close(found, update)


# Eq. 4 --------------------------------------------------------------------------------------------


def test_counts_by_hand():
    """GPT-3: q and v of 96 layers of width 12,288 at rank 4 are 18.9M numbers."""
    assert lora.lora_parameters(matrices=2 * 96, width=12_288, rank=4) == 18_874_368
    assert lora.adapter_parameters(adapters=2, width=3, rank=1) == 2 * (6 + 1 + 3)
    assert lora.adapter_parameters(adapters=2, width=3, rank=1, norms=2) == 20 + 12
    assert lora.prefix_embedding_parameters(width=3, prefix=4, infix=1) == 15
    assert lora.prefix_layer_parameters(layers=2, width=3, prefix=4, infix=1) == 30


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_the_counts_are_those_of_the_modules(count, width, rank):
    a, b = lora.initial_factors(width, width, rank, torch.Generator())
    assert lora.lora_parameters(count, width, rank) == count * (a.numel() + b.numel())
    down, up = torch.nn.Linear(width, rank), torch.nn.Linear(rank, width)
    own = sum(p.numel() for m in (down, up) for p in m.parameters())
    assert lora.adapter_parameters(count, width, rank) == count * own
    normed = sum(p.numel() for p in torch.nn.LayerNorm(width).parameters())
    assert lora.adapter_parameters(count, width, rank, count) == count * (own + normed)


# Eqs. 5 and 6 -------------------------------------------------------------------------------------


def test_similarity_worked_by_hand():
    """The same plane by other axes: its first ones are at 45 degrees, together they agree."""
    first, half = torch.eye(3)[:2], 0.5**0.5
    second = torch.tensor([[half, half, 0], [half, -half, 0]])
    expected = torch.tensor([[0.5, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(lora.subspace_similarity(first, second), expected)
    apart = lora.subspace_similarity(first, torch.eye(3)[2:])
    assert apart.shape == (2, 1) and not apart.any()


@given(st.integers(1, 5), st.integers(1, 5), SEEDS)
def test_similarity_is_the_norm_of_every_product(r1, r2, seed):
    first, second = (lora.directions(random(seed + n, r, 6)) for n, r in enumerate((r1, r2)))
    found = lora.subspace_similarity(first, second)
    for i in range(r1):
        for j in range(r2):
            square = torch.linalg.matrix_norm(first[: i + 1] @ second[: j + 1].T) ** 2
            torch.testing.assert_close(found[i, j], square / min(i + 1, j + 1))
    assert (found >= 0).all() and (found <= 1 + 1e-9).all()
    torch.testing.assert_close(found, lora.subspace_similarity(second, first).T)
    whole = lora.subspace_similarity(first, first)
    torch.testing.assert_close(whole.diagonal(), torch.ones(r1, dtype=whole.dtype))


def test_random_subspaces_overlap_as_told():
    first, second = (lora.directions(random(seed, 8, 400)) for seed in (0, 1))
    assert lora.subspace_similarity(first, second)[-1, -1].item() == pytest.approx(8 / 400, rel=0.5)


def test_amplification_worked_by_hand():
    """Delta W = 6 on one axis, on which W has 3; on the others W has 4 and 5."""
    weight, delta = torch.diag(torch.tensor([3.0, 4.0, 5.0])), torch.zeros(3, 3)
    delta[0, 0] = 6
    assert lora.projected_norm(weight, delta, rank=1) == pytest.approx(3)
    assert lora.amplification(weight, delta, rank=1) == pytest.approx(2)
    assert lora.projected_norm(weight, weight, rank=2) == pytest.approx(math.hypot(5, 4))


@given(SEEDS, st.floats(0.1, 10))
def test_amplification_of_a_multiple_of_itself(seed, times):
    weight = random(seed, 4, 5)
    assert lora.amplification(weight, times * weight, rank=4) == pytest.approx(times)
