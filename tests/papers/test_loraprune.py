"""LoRAPrune's Eqs. 1-13, the authors' schedules, and layers that take turns."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.papers import loraprune
from tipmini.papers.loraprune import lora_gradient, lora_guided_importance, taylor_importance

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))  # d, k, r


def random_factors(d: int, k: int, r: int) -> list[torch.Tensor]:
    """a, b, grad_a, grad_b in float64."""
    generator = torch.Generator().manual_seed(d * 100 + k * 10 + r)
    shapes = [(r, k), (d, r), (r, k), (d, r)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def test_gradient_and_importances_worked_by_hand():
    a, grad_a = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.0]])
    b, grad_b = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [-1.0]])
    gradient = torch.tensor([[2.0, 2.0], [-0.5, -2.0]])
    assert torch.equal(lora_gradient(a, b, grad_a, grad_b), gradient)

    weight = torch.tensor([[-2.0, 1.0], [4.0, 0.5]])  # W + BA = [[1, 7], [4, 0.5]]
    importance = lora_guided_importance(weight, a, b, grad_a, grad_b)
    assert importance.tolist() == [[4.0, 196.0], [4.0, 1.0]]
    assert taylor_importance(weight, gradient).tolist() == [[16.0, 4.0], [4.0, 1.0]]


@given(SIZES)
def test_gradient_is_what_one_sgd_step_changes(sizes):
    """Eqs. 7 and 8: BA before minus BA after a step of torch's own SGD with learning rate 1."""
    d, k, r = sizes
    a, b, weight_a, _ = (f.requires_grad_() for f in random_factors(d, k, r))
    x = weight_a[:1].detach()  # any input, (1, k)
    before = (b @ a).detach()
    ((x @ (b @ a).T).tanh().sum() + (b @ a).square().sum()).backward()
    gradient = lora_gradient(a.detach().clone(), b.detach().clone(), a.grad, b.grad)
    torch.optim.SGD([a, b], lr=1.0).step()
    torch.testing.assert_close(gradient, before - (b @ a).detach())


def test_scaling_weighs_the_adapter_against_the_weight():
    a, b, grad_a, grad_b = random_factors(4, 3, 2)
    weight = torch.ones(4, 3, dtype=torch.float64)
    scaled = lora_guided_importance(weight, a, b, grad_a, grad_b, scaling=2.0)
    expected = (lora_gradient(a, b, grad_a, grad_b) * (weight + 2 * b @ a)) ** 2
    torch.testing.assert_close(scaled, expected)


A, B, GRAD_A, GRAD_B = random_factors(4, 3, 2)
W = torch.arange(12.0, dtype=torch.float64).view(4, 3)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: loraprune.lora_linear(W[:2], W, A, B), W[:2] @ (W + B @ A).T),
        (lambda: loraprune.change_gradient(W, B @ A), W - B @ A),
        (lambda: loraprune.stepped_product(A, B, GRAD_A, GRAD_B), (B - GRAD_B) @ (A - GRAD_A)),
        (lambda: lora_gradient(A, B, GRAD_A, GRAD_B), B @ A - (B - GRAD_B) @ (A - GRAD_A)),
        (lambda: taylor_importance(W, -W, power=1), W.square()),
        (lambda: loraprune.product_importance(W, B @ A, W), (W * (W + B @ A)).square()),
        (
            lambda: loraprune.product_importance(W, B @ A, W, scaling=2.0),
            (W * (W + 2 * B @ A)).square(),
        ),
        (
            lambda: lora_guided_importance(W, A, B, GRAD_A, GRAD_B, power=1),
            (lora_gradient(A, B, GRAD_A, GRAD_B) * (W + B @ A)).abs(),
        ),
        (lambda: loraprune.adapted(W, A, B), W + B @ A),
        (lambda: loraprune.adapted(W.bfloat16(), A, B, 0.5), W + 0.5 * B @ A),
        (lambda: loraprune.moving_average(W, 2 * W), 1.1 * W),
        (lambda: loraprune.group_importance(W, 2), torch.tensor([15.0, 51.0]).double()),
        (lambda: torch.tensor(loraprune.offsets(5)), torch.tensor([0.1, 0.7, 0.3, 0.9, 0.5])),
    ],
)
def test_defaults_are_the_papers(found, expected):
    torch.testing.assert_close(found(), expected)


def test_shapes_that_do_not_fit_are_refused():
    a, b, grad_a, grad_b = random_factors(4, 3, 2)
    for wrong in [
        (a, b, grad_a.T, grad_b),
        (a, b, grad_a, grad_b[:1]),
        (a[:1], b, grad_a[:1], grad_b),
    ]:
        with pytest.raises(TipminiError, match=r"needs \(r, k\), \(d, r\).* got \(\d, 3\), \(4, 2"):
            lora_gradient(*wrong)
    for weight in (torch.ones(4, 2), torch.ones(1, 3)):
        with pytest.raises(TipminiError, match="one shape"):
            lora_guided_importance(weight, a, b, grad_a, grad_b)
    with pytest.raises(TipminiError, match=r"\(4, 3\) and \(3, 4\)"):
        taylor_importance(torch.ones(4, 3), torch.ones(3, 4))


# Exact in the limit ---------------------------------------------------------------------------


def smooth(weight):
    """A loss of a (4, 3) weight, far from linear."""
    x = torch.linspace(-1, 0.6, 6, dtype=torch.float64).view(2, 3)
    return (x @ weight.T).sin().exp().sum()


def gradient_of(loss, weight):
    weight = weight.clone().requires_grad_()
    loss(weight).backward()
    return weight.grad


def test_the_estimate_is_autograds_gradient_where_b_is_0_and_a_orthogonal():
    """Then dB = g A^T, dA = 0, and the estimate g A^T A = g; r = k is needed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    a = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    a, b = a.requires_grad_(), torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    smooth(weight + b @ a).backward()
    estimate = lora_gradient(a.detach(), b.detach(), a.grad, b.grad)
    torch.testing.assert_close(estimate, gradient_of(smooth, weight))
    importance = lora_guided_importance(weight, a.detach(), b.detach(), a.grad, b.grad)
    expected = taylor_importance(weight, gradient_of(smooth, weight))
    torch.testing.assert_close(importance, expected)


@pytest.mark.parametrize("scaling", [1.0, 2.0])
def test_the_estimate_is_the_gradient_seen_through_the_scaled_adapter(scaling):
    """The factors' gradients carry s by the chain rule: s (g A'A + BB'g) - s^2 g A'B'g."""
    a, b, _, _ = random_factors(4, 3, 2)
    weight = torch.ones(4, 3, dtype=torch.float64)
    live_a, live_b = a.clone().requires_grad_(), b.clone().requires_grad_()
    smooth(weight + scaling * live_b @ live_a).backward()
    g = gradient_of(smooth, weight + scaling * b @ a)
    seen = scaling * (g @ a.T @ a + b @ b.T @ g) - scaling**2 * g @ a.T @ b.T @ g
    torch.testing.assert_close(lora_gradient(a, b, live_a.grad, live_b.grad), seen)


def test_eq_6_with_autograds_gradient_of_the_product_is_eq_3_of_the_whole_weight():
    a, b, _, _ = random_factors(4, 3, 2)
    weight = torch.ones(4, 3, dtype=torch.float64)
    grad = gradient_of(lambda product: smooth(weight + product), b @ a)
    found = loraprune.product_importance(weight, b @ a, grad)
    torch.testing.assert_close(found, taylor_importance(weight + b @ a, grad))


def test_first_order_is_exact_for_a_linear_loss():
    """Eqs. 3 and 6 are Eqs. 2 and 5 then."""
    a, b, weight_a, weight_b = random_factors(4, 3, 2)
    weight, slope = weight_b @ weight_a, b @ weight_a
    loss = lambda w: (slope * w).sum() + 7  # noqa: E731
    torch.testing.assert_close(
        loraprune.removal_importance(loss, weight), taylor_importance(weight, slope)
    )
    for scaling in (1.0, 2.0):  # the slope is that in s BA
        torch.testing.assert_close(
            loraprune.lora_removal_importance(loss, weight, scaling * b @ a),
            loraprune.product_importance(weight, b @ a, slope, scaling=scaling),
        )


@pytest.mark.parametrize(("size", "apart"), [(1e-2, 1e-1), (1e-3, 1e-2), (1e-4, 1e-3)])
def test_first_order_is_exact_in_the_limit_of_small_weights(size, apart):
    factors = random_factors(4, 3, 2)
    weight = size * factors[1] @ factors[0]
    exact = loraprune.removal_importance(smooth, weight)
    estimate = taylor_importance(weight, gradient_of(smooth, weight))
    assert ((estimate - exact).abs() / exact).max() < apart


@given(SIZES, st.floats(1e-3, 10))
def test_eq_9_is_eqs_7_and_8(sizes, rate):
    a, b, grad_a, grad_b = random_factors(*sizes)
    after = loraprune.stepped_product(a, b, grad_a, grad_b, rate)
    change = loraprune.change_gradient(b @ a, after, rate)
    estimate = lora_gradient(a, b, grad_a, grad_b, learning_rate=rate)
    torch.testing.assert_close(estimate, change, rtol=1e-6, atol=1e-8)


# Groups and masks -----------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(0, 1), (0, 2), (0, 6), (1, 2), (1, 4)])
def test_group_importance_is_the_sum_over_blocks(dim, count):
    importance = torch.arange(24.0).view(6, 4)
    expected = [block.sum() for block in importance.chunk(count, dim)]
    found = loraprune.group_importance(importance, count, dim)
    assert torch.equal(found, torch.stack(expected))
    with pytest.raises(TipminiError, match=r"\(6, 4\) has no 5 equal groups"):
        loraprune.group_importance(importance, 5, dim)


def test_moving_average_by_hand():
    average = torch.zeros(2)
    for found in ([1.0, 2.0], [3.0, 0.0]):
        average = loraprune.moving_average(average, torch.tensor(found), 0.75)
    torch.testing.assert_close(average, torch.tensor([0.75 * 0.25 + 0.75, 0.75 * 0.5]))


def test_threshold_mask_keeps_what_exceeds_it():
    importance = torch.tensor([0.1, 0.5, 0.5, 0.9])
    assert loraprune.threshold_mask(importance, 0.5).tolist() == [False, False, False, True]
    with pytest.raises(TipminiError, match="NaN"):
        loraprune.threshold_mask(torch.tensor([float("nan")]), 0.5)


SCORES = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@given(SCORES, st.data())
def test_share_mask_takes_the_lowest_and_keeps_gone_what_is_gone(values, data):
    importance = torch.tensor(values, dtype=torch.float32)
    first = data.draw(st.integers(0, len(values)))
    second = data.draw(st.integers(first, len(values)))
    mask = loraprune.share_mask(importance, first)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert mask.tolist() == [i not in order[:first] for i in range(len(values))]
    turned = loraprune.share_mask(-importance, second, mask)
    assert int((~turned).sum()) == second and not (turned & ~mask).any()
    for fewer in range(first):
        with pytest.raises(TipminiError, match=f"cannot be removed, {first} are already"):
            loraprune.share_mask(importance, fewer, mask)


@pytest.mark.parametrize("removed", [-1, 4])
def test_share_mask_refuses_numbers_that_are_not_there(removed):
    with pytest.raises(TipminiError, match=f"^{removed} of 3 groups"):
        loraprune.share_mask(torch.ones(3), removed)


def test_equal_importances_go_from_the_front():
    """So many that an unstable sort would shuffle them."""
    mask = loraprune.share_mask(torch.ones(5000), 2500)
    assert mask.tolist() == [False] * 2500 + [True] * 2500


def test_masked_outputs_are_those_of_zeroed_rows():
    a, b, _, _ = random_factors(6, 3, 2)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([True, False, True])
    rows = mask.repeat_interleave(2)[:, None]
    found = loraprune.mask_outputs(loraprune.lora_linear(x, weight, a, b, 0.5), mask)
    torch.testing.assert_close(found, x @ (rows * (weight + 0.5 * b @ a)).T)
    torch.testing.assert_close(
        loraprune.lora_linear(x, weight, a, b, 0.5), x @ (weight + 0.5 * b @ a).T
    )


# How much is removed when ----------------------------------------------------------------------


def released(step, steps, share, power):
    """The authors' schedule, from a share of 0, and with the power as a parameter."""
    if step <= 0.1 * steps:
        return 0.0
    if step > steps - 0.1 * steps:
        return share
    left = 1 - (step - 0.1 * steps) / (steps - 0.2 * steps)
    return share - share * left**power


@pytest.mark.parametrize("steps", [10, 37, 200])
@pytest.mark.parametrize(("name", "power"), [("cubic", 3), ("linear", 1)])
def test_schedules_are_the_authors(name, power, steps):
    for step in range(steps + 1):
        found = loraprune.SCHEDULES[name](step, steps, 0.5)
        assert found == pytest.approx(released(step, steps, 0.5, power))


@given(st.sampled_from(sorted(loraprune.SCHEDULES)), st.integers(1, 60), st.floats(0, 1))
def test_every_schedule_rises_from_nothing_to_the_share(name, steps, share):
    shares = [loraprune.SCHEDULES[name](step, steps, share) for step in range(steps + 1)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(share)


def test_one_shot_takes_all_at_once():
    assert {loraprune.one_shot_share(step, 20, 0.5) for step in range(3)} == {0.0}
    assert {loraprune.one_shot_share(step, 20, 0.5) for step in range(3, 21)} == {0.5}


# Layers take turns --------------------------------------------------------------------------------

FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted)


@given(st.integers(1, 90), st.integers(1, 800), FRACTIONS)
def test_layers_lose_in_sum_what_the_schedule_says(layers, final, fractions):
    """To half a group in all; each layer nothing at 0, all of it at 1, never less than before."""
    before = [0] * layers
    for fraction in [0.0, *fractions, 1.0]:
        counts = [loraprune.staggered_count(final, fraction, o) for o in loraprune.offsets(layers)]
        assert all(now >= then for now, then in zip(counts, before, strict=True))
        assert abs(sum(counts) - layers * final * fraction) <= 0.5 + 1e-6 * layers
        assert max(counts) - min(counts) <= 1
        assert fraction > 0 or not any(counts)
        before = counts
    assert before == [final] * layers


@given(st.integers(2, 90))
def test_offsets_are_even_and_neighbours_lie_apart(count):
    found = loraprune.offsets(count)
    assert sorted(found) == [(place + 0.5) / count for place in range(count)]
    assert min(abs(a - b) for a, b in itertools.pairwise(found)) > 0.249


def test_heads_go_layer_by_layer():
    """One group a layer: without offsets all thirty would go with the last step."""
    fractions = [loraprune.cubic_share(step, 20, 1.0) for step in range(21)]
    gone = [
        sum(loraprune.staggered_count(1, fraction, o) for o in loraprune.offsets(30))
        for fraction in fractions
    ]
    assert gone == [round(30 * fraction) for fraction in fractions]
    assert gone[2] == 0 and gone[6] == 17 and gone[18] == 30
