"""An int8 base: its numbers are the rounded ones, its memory that of integers."""

import prunable
import pytest
import torch

from tipmini.methods.groups import find_families
from tipmini.models.int8 import Int8Linear, dequantise, quantise, rounded, to_int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_step_at_most(dtype):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    integers, scale = quantise(weight)
    assert integers.dtype == torch.int8 and scale.shape == (40, 1)
    assert integers.abs().amax(1).tolist() == [127] * 3 + [0] + [127] * 36
    apart = (dequantise(integers, scale, torch.float32) - weight.float()).abs()
    assert (apart <= scale * 0.5001).all()


@pytest.mark.parametrize("shape", ["grouped", "biases"])
def test_the_model_computes_with_the_rounded_weights(shape):
    plain = prunable.model(shape)
    for family in find_families(plain):
        for member in family.members:
            module = plain.get_submodule(member.module)
            module.weight.data = rounded(module.weight.data)
    found = prunable.logits(to_int8(prunable.model(shape)))
    torch.testing.assert_close(found, prunable.logits(plain))
    assert not torch.allclose(found, prunable.logits(prunable.model(shape)), atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_pass_as_through_the_rounded_weight(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 3, bias=bias)
    x = torch.randn(2, 4, 5, requires_grad=True)
    Int8Linear(linear)(x).sin().sum().backward()
    found, x.grad = x.grad, None
    linear.weight.data = rounded(linear.weight.data)
    linear(x).sin().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_a_weight_takes_a_byte():
    model = to_int8(prunable.model())
    for family in find_families(model):
        for member in family.members:
            module = model.get_submodule(member.module)
            assert module.weight.nbytes == module.in_features * module.out_features
            assert not module.weight.requires_grad


def test_peft_trains_an_adapter_on_it():
    model = prunable.with_lora(to_int8(prunable.model()), zero=True)
    model(prunable.tokens()).logits.square().mean().backward()
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    assert layer.lora_B["default"].weight.grad.any() and layer.weight.dtype == torch.int8
