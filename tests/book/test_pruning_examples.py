"""What the chapter on the equations draws: real gradients, and pictures that say what is so."""

import pytest
import torch

from tipmini.methods.groups import CHANNELS, HEADS
from tipmini_lab.book import pruning_masks
from tipmini_lab.experiments.experiment import Lab

MODULE = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def lab(profile) -> Lab:
    return Lab(profile)


def test_the_gradients_of_the_factors_follow_from_that_of_the_weight(lab):
    """The chain rule, which the chapter argues with: dL/dB = s g A^T and dL/dA = s B^T g."""
    seen = pruning_masks.observed(lab, "rte", MODULE, rows=3, length=12)
    assert seen.grad.abs().max() > 0 and seen.scaling == 2
    torch.testing.assert_close(seen.grad_b, seen.scaling * seen.grad @ seen.a.T)
    torch.testing.assert_close(seen.grad_a, seen.scaling * seen.b.T @ seen.grad)


def test_the_adapter_is_the_tasks_own(lab):
    seen = pruning_masks.observed(lab, "rte", MODULE, rows=2, length=12)
    torch.testing.assert_close(seen.a, lab.adapters["rte"].factors[MODULE].a)
    torch.testing.assert_close(seen.b, lab.adapters["rte"].factors[MODULE].b)


def test_a_merge_fills_scattered_zeros_and_leaves_those_of_groups():
    generator = torch.Generator().manual_seed(0)
    weight, product = (torch.randn(6, 8, generator=generator) for _ in range(2))
    whole = (slice(None), slice(None))
    kept = torch.tensor([True, False, True])
    found = pruning_masks.pruned_sums(weight, product, kept, whole)
    zeros = [
        {what: (values == 0).float().mean().item() for what, values in pictures.items()}
        for pictures in found.values()
    ]
    assert zeros[0] == {"W pruned": 0.5, "sBA": 0.0, "merged": 0.0}
    assert zeros[1] == pytest.approx({"W pruned": 1 / 3, "sBA": 1 / 3, "merged": 1 / 3})
    rows = found["a group of heads"]["merged"]
    assert torch.equal(rows[[0, 1, 4, 5]], (weight + product)[[0, 1, 4, 5]])


def test_dependencies_mark_a_groups_rows_and_columns(lab, monkeypatch):
    monkeypatch.setattr(pruning_masks, "BLOCK", 8)
    parts = pruning_masks.dependency_parts(lab.model_path, 0, {HEADS: 0, CHANNELS: 5})
    heads, channels = parts.values()
    assert [(name, dim, span) for name, _, dim, span in heads] == [
        ("q", 0, (0, 16)),
        ("k", 0, (0, 8)),
        ("v", 0, (0, 8)),
        ("o", 1, (0, 16)),
    ]
    assert [(name, dim, span) for name, _, dim, span in channels] == [
        ("gate", 0, (5, 6)),
        ("up", 0, (5, 6)),
        ("down", 1, (5, 6)),
    ]
    assert "one of 24" in list(parts)[1]


def test_blocks_are_averaged():
    weight = torch.arange(24.0).view(4, 6)
    expected = [[(0 + 1 + 6 + 7) / 4, (2 + 3 + 8 + 9) / 4, (4 + 5 + 10 + 11) / 4]]
    expected += [[value + 12 for value in expected[0]]]
    assert pruning_masks.averaged(weight, 2).tolist() == expected
    assert pruning_masks.averaged(weight, 5).shape == (0, 1)


def test_only_the_order_counts():
    assert pruning_masks.rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 8, 9])) == 1
    found = pruning_masks.shares({"a": torch.tensor([1.0, 3.0])})
    assert found["a"].tolist() == [0.25, 0.75]
