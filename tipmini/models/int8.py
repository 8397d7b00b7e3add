"""A frozen base in 8 bits: int8 weights in memory, the arithmetic in the model's own dtype.

Simulated weight-only quantisation: no library of ours multiplies int8 on a CPU, so every pass
makes a layer's weight out of its integers, multiplies, and forgets it. Memory is what int8 takes;
time is not what int8 kernels would take.
"""

import torch
from torch import Tensor, nn


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (d, k) and float32 scales (d, 1): absolute maximum of a row at 127, rounded to nearest.

    As LLM.int8 stores weights, outliers aside; activations stay as they are.
    """
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min_(1e-12) / 127
    return (weight.float() / scale).round_().to(torch.int8), scale


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that int8 weights stand for, (d, k) of a floating dtype."""
    return (weight.float() * scale).to(dtype)


def rounded(weight: Tensor) -> Tensor:
    """The weight as int8 stores it, in its own dtype."""
    return dequantise(*quantise(weight), weight.dtype)


class _Int8Product(torch.autograd.Function):
    """x W^T of integers and scales; the backward pass makes W again instead of keeping it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ dequantise(weight, scale, x.dtype).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient @ dequantise(*ctx.saved_tensors, gradient.dtype), None, None


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is int8 (d, k) with one float32 scale a row, `scale`."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantise(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        z = _Int8Product.apply(x, self.weight, self.scale)
        return z if self.bias is None else z + self.bias


def to_int8(model: nn.Module) -> nn.Module:
    """A LLaMA with the weights of all attention and MLP matrices in int8, in place."""
    layers = model.base_model.layers
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            layers.set_submodule(name, Int8Linear(module))
    return model
