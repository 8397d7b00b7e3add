"""Group importances of a whole model, read off its modules and their gradients."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tipmini.criteria import NEEDS_WEIGHT_GRADIENT, Signals, group_scores
from tipmini.dare import named_generator
from tipmini.groups import Family
from tipmini.int8 import Int8Linear

Norms = Mapping[str, Tensor]


def signals_of(module: nn.Module, norm: Tensor | None = None) -> Signals:
    """What a criterion may read of a linear module, with PEFT's LoRA around it or not."""
    base = base_layer(module)
    adapter = next(iter(getattr(module, "active_adapters", [])), None)
    facts: dict[str, object] = {"grad": base.weight.grad, "input_norm": norm}
    if isinstance(base, Int8Linear):
        facts["scale"] = base.scale
    if adapter in getattr(module, "lora_A", ()):
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        facts |= {"a": a.detach(), "b": b.detach(), "grad_a": a.grad, "grad_b": b.grad}
        facts["scaling"] = module.scaling[adapter]
    return Signals(base.weight.detach(), **facts)


@torch.no_grad()
def all_scores(
    causal: nn.Module,
    families: Iterable[Family],
    method: str,
    reduction: str = "paper",
    *,
    norms: Norms | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """{family: (count,) importances}; a family's modules add theirs up."""
    if method == "random":
        return {f.name: random_scores(f, seed) for f in families}
    norms = norms or {}
    return {
        family.name: sum(
            group_scores(
                signals_of(causal.get_submodule(m.module), norms.get(m.module)),
                family.count,
                m.dim,
                method,
                reduction,
            )
            for m in family.members
        )
        for family in families
    }


def random_scores(family: Family, seed: int) -> Tensor:
    """Importances that depend on the seed and the family's name alone."""
    return torch.rand(family.count, generator=named_generator(seed, family.name))


def linear_weights(causal: nn.Module, families: Iterable[Family]) -> list[nn.Parameter]:
    """The base weights of all members."""
    modules = [causal.get_submodule(m.module) for f in families for m in f.members]
    return [base_layer(module).weight for module in modules]


def base_layer(module: nn.Module) -> nn.Module:
    """The linear layer itself, without PEFT's around it."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def require_gradients(method: str, weights: Iterable[nn.Parameter]) -> None:
    """Let the base weights have gradients, if a method reads them."""
    for weight in weights if method in NEEDS_WEIGHT_GRADIENT else ():
        weight.requires_grad_(True)
