"""Importances of whole tiny LLaMAs: exact where they should be, and the bytes that they take."""

import prunable
import pytest
import torch
from memory import Allocated

from tipmini.methods import pruner
from tipmini.methods.criteria import CHOICES, Signals, group_scores
from tipmini.methods.groups import find_families
from tipmini.models.int8 import to_int8
from tipmini.papers.loraprune import lora_gradient, taylor_importance
from tipmini_lab.experiments.pruning import TARGETS
from tipmini_lab.experiments.training import add_lora


def backward(peft):
    peft(prunable.tokens()).logits.log_softmax(-1)[..., 0].mean().backward()


def worn(method="vanilla", rank=4, **other):
    """A model under fresh LoRA whose base weights have gradients too, and its families."""
    causal = add_lora(prunable.model(**other), rank, rank, TARGETS, 0).get_base_model()
    families = find_families(causal)
    pruner.require_gradients(method, pruner.linear_weights(causal, families))
    return causal, families


def modules(causal, families):
    return {m.module: causal.get_submodule(m.module) for f in families for m in f.members}


@pytest.mark.parametrize("shape", ["grouped", "every head its own", "qwen2"])
def test_the_estimate_is_autograds_with_a_full_orthogonal_a_and_b_0(shape):
    """Eq. 9's G is then dL/dW, and Eq. 10 is Eq. 3, for every matrix of a real model."""
    causal, families = worn(rank=32, shape=shape)
    causal.double()
    for module in modules(causal, families).values():
        a = module.lora_A["default"].weight
        a.data = torch.zeros_like(a)
        size = min(a.shape)
        a.data[:size, :size] = torch.linalg.qr(torch.randn(size, size, dtype=a.dtype)).Q
    backward(causal)
    for name, module in modules(causal, families).items():
        signals = pruner.signals_of(module)
        g = lora_gradient(signals.a, signals.b, signals.grad_a, signals.grad_b)
        torch.testing.assert_close(g, signals.grad, rtol=1e-9, atol=1e-12, msg=name)
    exact = pruner.all_scores(causal, families, "vanilla")
    found = pruner.all_scores(causal, families, "lora-guided")
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-5, atol=0)


def test_a_familys_importance_is_that_of_all_its_weights():
    causal, families = worn()
    backward(causal)
    found = pruner.all_scores(causal, families, "vanilla")
    for family in families:
        expected = torch.zeros(family.count)
        for member in family.members:
            weight = pruner.base_layer(causal.get_submodule(member.module)).weight
            importance = taylor_importance(weight.detach(), weight.grad)
            blocks = importance.chunk(family.count, member.dim)
            expected += torch.stack([block.sum() for block in blocks])
        torch.testing.assert_close(found[family.name], expected)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("reduction", ["paper", "released"])
def test_every_method_scores_every_group(method, reduction):
    causal, families = worn(method)
    backward(causal)
    norms = {n: torch.ones(m.in_features) for n, m in modules(causal, families).items()}
    found = pruner.all_scores(causal, families, method, reduction, norms=norms)
    assert {n: len(s) for n, s in found.items()} == {f.name: f.count for f in families}
    assert all(s.isfinite().all() and (s >= 0).all() and s.std() > 0 for s in found.values())


def test_random_scores_depend_on_seed_and_name_alone():
    _, families = worn()
    first = pruner.all_scores(None, families, "random", seed=1)
    again = pruner.all_scores(None, families[::-1], "random", seed=1)
    other = pruner.all_scores(None, families, "random", seed=2)
    for name in first:
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert len({tuple(s.tolist()) for s in first.values()}) == len(families)


def test_no_gradient_of_a_weight_exists_for_the_lora_guided_criterion():
    causal, families = worn("lora-guided")
    backward(causal)
    pruner.all_scores(causal, families, "lora-guided")
    assert all(weight.grad is None for weight in pruner.linear_weights(causal, families))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("reduction", ["paper", "released"])
def test_the_criterion_takes_less_than_5_percent_of_the_pruned_weights(reduction, int8):
    """What is kept between steps (importances, averages, masks) is included."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    base = prunable.model(**sizes).bfloat16()
    causal = add_lora(to_int8(base) if int8 else base, 4, 8, TARGETS, 0).get_base_model()
    families = find_families(causal)
    pruned = sum(weight.nbytes for weight in pruner.linear_weights(causal, families))
    backward(causal)
    with Allocated() as found:
        scores = pruner.all_scores(causal, families, "lora-guided", reduction)
    kept = sum(score.nbytes + score.numel() for score in scores.values())  # averages, masks
    assert 0 < found.peak + kept < 0.05 * pruned


def test_scores_of_one_module_are_those_of_the_tensors_alone():
    causal, _ = worn("lora-guided")
    backward(causal)
    module = causal.model.layers[0].mlp.up_proj
    a, b = (module.get_submodule(f"lora_{x}")["default"].weight for x in "AB")
    signals = Signals(module.weight, a, b, a.grad, b.grad, scaling=1.0)
    found = group_scores(pruner.signals_of(module), 24)
    assert torch.equal(found, group_scores(signals, 24))
