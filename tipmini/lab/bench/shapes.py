"""Adapters at the shapes of LLaMA-2-7B, and the same ones inside a PeftModel without its base."""

import torch
from torch import Tensor, nn

import tipmini as tm

SIZE, BLOCKS, RANK = 4096, 32, 8
TARGETS = ("q_proj", "v_proj")

Adapters = dict[str, tm.LoraAdapter]


def module_names(blocks: int) -> list[str]:
    return [f"model.layers.{i}.self_attn.{name}" for i in range(blocks) for name in TARGETS]


def random_adapter(seed: int, blocks: int = BLOCKS, size: int = SIZE) -> tm.LoraAdapter:
    """Factors of the size that training leaves them with; what they hold does not matter."""
    draw = torch.Generator().manual_seed(seed)
    factor = lambda *shape: torch.randn(shape, generator=draw) * 0.02  # noqa: E731
    pairs = {
        name: tm.LoraFactors(factor(RANK, size), factor(size, RANK), 2.0)
        for name in module_names(blocks)
    }
    return tm.LoraAdapter(pairs)


def random_norms(adapter: tm.LoraAdapter, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    norms = {}
    for name, pair in adapter.factors.items():
        norms[name] = torch.rand(pair.a.shape[1], generator=draw) + 0.5
        norms[f"{name}.lora_B"] = torch.rand(pair.rank, generator=draw) + 0.5
    return norms


def several(count: int) -> tuple[Adapters, dict[str, dict[str, Tensor]]]:
    """Adapters and their norms, by name."""
    adapters = {f"{i:02d}": random_adapter(i) for i in range(count)}
    return adapters, {n: random_norms(a, i) for i, (n, a) in enumerate(adapters.items())}


def first_blocks(adapters: Adapters, blocks: int) -> Adapters:
    """The adapters on the first blocks alone."""
    names = module_names(blocks)
    return {
        name: tm.LoraAdapter({module: adapter.factors[module] for module in names})
        for name, adapter in adapters.items()
    }


class Block(nn.Module):
    """The two projections that an adapter targets. Their weights are never touched: no memory."""

    def __init__(self, size: int):
        super().__init__()
        self.self_attn = nn.Module()
        for name in TARGETS:
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = nn.Parameter(torch.empty(size, size, dtype=torch.bfloat16))
            layer.in_features = layer.out_features = size
            self.self_attn.add_module(name, layer)


@torch.no_grad()
def in_peft(adapters: Adapters, blocks: int = BLOCKS, size: int = SIZE):
    """A PeftModel that holds the adapters."""
    from peft import LoraConfig, PeftModel

    base = nn.Module()
    base.model = nn.Module()
    base.model.layers = nn.ModuleList(Block(size) for _ in range(blocks))
    base.config = {"model_type": "custom"}
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    names = list(adapters)
    model = PeftModel(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, adapter in adapters.items():
        for module, pair in adapter.factors.items():
            layer = base.get_submodule(module)
            layer.lora_A[name].weight.copy_(pair.a)
            layer.lora_B[name].weight.copy_(pair.b)
    return model
