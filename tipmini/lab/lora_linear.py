"""LoRA on a linear layer at the cost it should have: products in the base's dtype.

PEFT multiplies by A and B in float32. On a CPU that takes as long as the base's own products in
bfloat16, and it keeps a float32 copy of every layer's input until the backward pass.
"""

import torch
from peft.tuners import lora
from torch import Tensor


class LowRankSum(torch.autograd.Function):
    """y + s (x A^T) B^T, (..., d), into y itself; x is (..., k), A (r, k), B (d, r).

    A and B may be float32 where x and y are not: they are rounded for the products, their
    gradients come back in their own dtype.
    """

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        down = x.flatten(0, -2) @ a.to(x.dtype).T
        ctx.save_for_backward(x, a, b, down)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        y.view(-1, y.shape[-1]).addmm_(down, b.to(y.dtype).T, alpha=scaling)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, a, b, down = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        back = rows @ (ctx.scaling * b).to(rows.dtype)
        of_x = (back @ a.to(back.dtype)).view_as(x) if ctx.needs_input_grad[1] else None
        of_a, of_b = back.T @ x.flatten(0, -2), rows.T @ down
        return gradient, of_x, of_a.to(a.dtype), of_b.to(b.dtype).mul_(ctx.scaling), None


class LoraLinear(lora.Linear):
    """PEFT's layer with one adapter on, without dropout; its sum is `LowRankSum`'s."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return LowRankSum.apply(self.base_layer(x), x, a, b, self.scaling[name])
