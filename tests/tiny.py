"""Tiny random LLaMAs and adapters, built from a configuration in milliseconds."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tipmini.models.adapter import LoraAdapter, load_adapter
from tipmini.models.factors import LoraFactors

HIDDEN, KEY_VALUE, LAYERS = 32, 16, 3
MODULES = [
    f"model.layers.{i}.self_attn.{name}" for i in range(LAYERS) for name in ("q_proj", "v_proj")
]


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # large enough for the layers to differ
    )
    return LlamaForCausalLM(config).eval()


def peft_llama(**adapters: dict) -> PeftModel:
    """A tiny LLaMA with one random adapter for each keyword: name={LoraConfig's arguments}."""
    model = None
    for name, arguments in adapters.items():
        config = LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | arguments,
            init_lora_weights=False,  # B random as well: an adapter that does something
            task_type="CAUSAL_LM",
        )
        if model is None:
            model = get_peft_model(llama(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return model.eval()


def random_adapter(
    seed: int,
    *,
    modules: list[str] = MODULES,
    rank: int = 4,
    scaling: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> LoraAdapter:
    """Random factors of the tiny LLaMA's shapes."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def factors(module: str) -> LoraFactors:
        out = KEY_VALUE if module.endswith("v_proj") else HIDDEN
        return LoraFactors(factor(rank, HIDDEN), factor(out, rank), scaling)

    return LoraAdapter({module: factors(module) for module in modules}, base_model="tiny")


def random_norms(adapter: LoraAdapter, seed: int) -> dict[str, torch.Tensor]:
    """Positive norms for x and A x of every module."""
    generator = torch.Generator().manual_seed(seed)
    norms = {}
    for module in adapter.modules:
        rank, channels = adapter.factors[module].a.shape
        norms[module] = torch.rand(channels, generator=generator) + 0.1
        norms[f"{module}.lora_B"] = torch.rand(rank, generator=generator) + 0.1
    return norms


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, 7)).logits


def random_grams(adapter: LoraAdapter, seed: int) -> dict[str, torch.Tensor]:
    """The Gram matrix of 50 random inputs of every module."""
    generator = torch.Generator().manual_seed(seed)
    grams = {}
    for module in adapter.modules:
        x = torch.randn(50, adapter.factors[module].shape[1], generator=generator)
        grams[module] = x.T @ x / 5
    return grams


def bits(adapter: LoraAdapter) -> dict[str, bytes]:
    """Every factor to the last bit."""
    return {
        f"{module}.{name}": getattr(adapter.factors[module], name).numpy().tobytes()
        for module in adapter.modules
        for name in ("a", "b")
    }


def whole_adapter(seed: int, rank: int = 3, d: int = 6, k: int = 10) -> LoraAdapter:
    """Small whole numbers in float64, so that equal sizes and sums of 0 are common; two blocks of
    a q and a smaller v."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).double()

    modules = [f"layers.{i}.{name}" for i in range(2) for name in ("q", "v")]
    sizes = [d if module.endswith("q") else (d + 1) // 2 for module in modules]
    pairs = [LoraFactors(factor(rank, k), factor(size, rank), 2.0) for size in sizes]
    return LoraAdapter(dict(zip(modules, pairs, strict=True)))


def saved(model: PeftModel, folder: Path, names: str = "abc") -> dict[str, LoraAdapter]:
    """The model's adapters of these names, by way of PEFT's own folders."""
    model.save_pretrained(folder)
    return {name: load_adapter(folder / name) for name in names}


def peft_factors(model: PeftModel, adapter: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) of every module of an adapter in a PEFT model."""
    layers = model.get_base_model().named_modules()
    return {
        name: (layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach())
        for name, layer in layers
        if adapter in getattr(layer, "lora_A", ())
    }


def true_sum(adapters: dict, weights: dict, module: str) -> torch.Tensor:
    """The weighted sum of the deltas in float64."""
    return sum(weights[name] * adapters[name].delta(module).double() for name in adapters)


ADAPTERS = {name: random_adapter(seed) for seed, name in enumerate(("boolq", "coqa", "piqa"))}
NORMS = {name: random_norms(ADAPTERS[name], seed) for seed, name in enumerate(ADAPTERS)}
GRAMS = {name: random_grams(ADAPTERS[name], seed) for seed, name in enumerate(ADAPTERS)}
WEIGHTS = {"boolq": 1.0, "coqa": -0.3, "piqa": 0.8}
