"""A LLaMA's decoder over rows of different lengths, one after the other and without padding.

Every linear layer reads all tokens of all rows as one matrix; attention alone knows where a row
ends. The projections are the model's own modules, so whatever PEFT has put there takes part.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tipmini.lab.attention import additive, attend
from tipmini.lab.packing import Flat


def supports(model: nn.Module) -> bool:
    """Whether `hidden_states` computes what the model itself does."""
    return type(model).__name__ == "LlamaForCausalLM"


def hidden_states(model: nn.Module, flat: Flat) -> Tensor:
    """(N, D) last hidden states of a model's N tokens."""
    decoder = model.model
    masks = [m if m is None else additive(m, model.dtype).to(model.device) for m in flat.masks]
    x = decoder.embed_tokens(flat.tokens.to(model.device))  # (N, D)
    cos, sin = decoder.rotary_emb(x[None], flat.positions[None].to(model.device))
    turn = (cos[0, :, None], sin[0, :, None])  # (N, 1, head)
    for layer in decoder.layers:
        x = x + attention(layer.self_attn, norm(layer.input_layernorm, x), turn, flat, masks)
        x = x + perceptron(layer.mlp, norm(layer.post_attention_layernorm, x))
    return norm(decoder.norm, x)


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def perceptron(mlp: nn.Module, x: Tensor) -> Tensor:
    return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)).mul_(mlp.up_proj(x)))


def attention(
    module: nn.Module, x: Tensor, turn: tuple[Tensor, Tensor], flat: Flat, masks: list
) -> Tensor:
    """(N, D): every row attends to itself, as its mask says or causally."""
    heads = (len(x), -1, module.head_dim)
    query, key = (rotated(p(x).view(heads), *turn) for p in (module.q_proj, module.k_proj))
    value = module.v_proj(x).view(heads)
    found = torch.empty_like(query)
    for (start, stop), mask in zip(flat.spans, masks, strict=True):
        own = (t[None, start:stop].transpose(1, 2) for t in (query, key, value))
        row = attend(*own, None if mask is None else mask[None, None], module.scaling)
        found[start:stop] = row[0].transpose(0, 1)
    return module.o_proj(found.view(len(x), -1))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, heads, head) turned by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
