"""Criteria in chunks: against whole matrices, the peers' own formulas, and the bytes they take."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import Allocated

from tipmini.errors import TipminiError
from tipmini.masks import semi_structured_mask
from tipmini.methods import criteria
from tipmini.methods.criteria import CRITERIA, Signals, group_scores
from tipmini.models import int8
from tipmini.papers.loraprune import group_importance, lora_guided_importance, taylor_importance

D, K, R, SCALING = 12, 8, 3, 2.0


def made(seed=0, d=D, k=K, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    factors = {"a": new(R, k), "b": new(d, R), "grad_a": new(R, k), "grad_b": new(d, R)}
    return Signals(
        new(d, k), **factors, scaling=SCALING, grad=new(d, k), input_norm=new(k).abs().float()
    )


def whole(s):
    """The weight that the model computes with."""
    return s.weight + s.scaling * s.b @ s.a


SLOW = {  # elements of each criterion, as printed
    "lora-guided": lambda s: lora_guided_importance(
        s.weight, s.a, s.b, s.grad_a, s.grad_b, scaling=s.scaling
    ),
    "vanilla": lambda s: taylor_importance(whole(s), s.grad),
    "taylor": lambda s: (whole(s) * s.grad).abs(),
    "magnitude": lambda s: whole(s).abs(),
    "wanda": lambda s: whole(s).abs() * s.input_norm,
}


@pytest.mark.parametrize(("dim", "count"), [(0, 3), (0, D), (1, 2), (1, K)])
@pytest.mark.parametrize("method", SLOW)
def test_chunks_give_the_sums_of_whole_matrices(method, dim, count):
    signals = made()
    importance = SLOW[method](signals)
    found = group_scores(signals, count, dim, method)
    torch.testing.assert_close(found, group_importance(importance, count, dim))

    magnitudes = importance.sqrt() if method in ("lora-guided", "vanilla") else importance
    sums = group_importance(magnitudes, count, dim)
    released = group_scores(signals, count, dim, method, "released")
    torch.testing.assert_close(released, sums / sums.norm())


@pytest.mark.parametrize(("dim", "count"), [(0, 3), (1, 2)])
def test_the_vectorised_form_is_llm_pruners(dim, count):
    """|sum w g| over each row or column, then the sum over a head's."""
    signals = made()
    lines = (whole(signals) * signals.grad).sum(1 - dim).abs()
    found = group_scores(signals, count, dim, "taylor-vector")
    torch.testing.assert_close(found, lines.view(count, -1).sum(1))


@pytest.mark.parametrize("method", CRITERIA)
@pytest.mark.parametrize("dim", [0, 1])
def test_how_rows_are_cut_does_not_show(monkeypatch, method, dim):
    signals, found = made(d=64), []
    for part in (1 / 64, 1 / 7, 1):
        monkeypatch.setattr(criteria, "PART", part)
        found.append(group_scores(signals, 4, dim, method))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", CRITERIA)
def test_nothing_that_is_read_is_changed(method):
    signals, before = made(), made()
    group_scores(signals, 3, 0, method)
    for name in ("weight", "a", "b", "grad_a", "grad_b", "grad", "input_norm"):
        assert torch.equal(getattr(signals, name), getattr(before, name))


def test_without_an_adapter_the_weight_is_the_weight():
    signals = Signals(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    assert group_scores(signals, 2, 0, "magnitude").tolist() == [3.0, 3.0]
    assert group_scores(signals, 2, 1, "magnitude").tolist() == [4.0, 2.0]


def test_int8_weights_are_read_as_the_numbers_they_stand_for():
    signals = made()
    weight, scale = int8.quantise(signals.weight)
    facts = {name: getattr(signals, name) for name in ("a", "b", "grad_a", "grad_b", "scaling")}
    plain = Signals(int8.dequantise(weight, scale, torch.float32), **facts)
    found = group_scores(Signals(weight, **facts, scale=scale), 3)
    torch.testing.assert_close(found, group_scores(plain, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_scores(made(), 5), "no 5 equal groups along 0"),
        (lambda: group_scores(made(), 3, 0, "lora"), "method must be one of lora-guided"),
        (lambda: group_scores(made(), 3, 0, "wanda", "sum"), "reduction must be one of paper, rel"),
        (lambda: semi_structured_mask(torch.ones(2, 6)), "2:4 sparsity needs rows of a multiple"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(TipminiError, match=message):
        call()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("reduction", criteria.REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_of_the_weights_size_is_made(dim, reduction, dtype):
    """What is held stays below an eighth of the module in float32, in which chunks are computed:
    three or four chunks at a time, each a 32nd of it."""
    signals = made(d=512, k=768, dtype=dtype)
    with Allocated() as chunked:
        group_scores(signals, 4, dim, "lora-guided", reduction)
    assert chunked.peak < signals.weight.numel() * 4 / 6
    with Allocated() as at_once:
        SLOW["lora-guided"](signals)
    assert at_once.peak > 2 * signals.weight.nbytes  # the count sees what is made


def test_a_large_module_takes_chunks_of_a_fixed_size():
    assert max(part.stop - part.start for part in criteria.chunks(torch.empty(4096, 4096))) == 8


# Other things that are done to weights ----------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 9))
def test_semi_structured_mask_takes_n_of_every_m(rows, blocks, n, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 3, (rows, 4 * blocks), generator=generator).float()
    mask = semi_structured_mask(score, n, 4)
    for scores, kept in zip(score.view(-1, 4).tolist(), mask.view(-1, 4).tolist(), strict=True):
        order = sorted(range(4), key=lambda i: (scores[i], i))
        assert kept == [i not in order[:n] for i in range(4)]
