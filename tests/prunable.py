"""Tiny models whose heads and channels can be pruned, in several shapes, and masks for them."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tipmini.methods.groups import Family
from tipmini_lab import intact, paths
from tipmini_lab.evaluation import assets
from tipmini_lab.evaluation import model as evaluated
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.pruning import TARGETS, PruningRecipe

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.2,
}
SHAPES = {  # what differs from SIZES
    "grouped": (LlamaForCausalLM, LlamaConfig, {}),
    "every head its own": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 8}),
    "wide heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 6}),
    "biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
}


def model(shape: str = "grouped", seed: int = 0, **other):
    """A random model; its biases are random too."""
    kind, config, settings = SHAPES[shape]
    torch.manual_seed(seed)
    made = kind(config(**SIZES | settings | other)).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def with_lora(base, seed: int = 1, zero: bool = False):
    """A PeftModel with LoRA on every matrix that is pruned; random B unless zero."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)}
    config = LoraConfig(**settings, init_lora_weights=zero, task_type="CAUSAL_LM")
    return get_peft_model(base, config).eval()


def random_masks(families: list[Family], heads: int, channels: int, seed: int = 0):
    """Masks that leave these numbers of groups out of every family."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for family in families:
        gone = heads if family.kind == "heads" else channels
        mask = torch.ones(family.count, dtype=torch.bool)
        mask[torch.randperm(family.count, generator=generator)[:gone]] = False
        masks[family.name] = mask
    return masks


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(3))


def logits(one) -> torch.Tensor:
    with torch.no_grad():
        return one(tokens()).logits


def save_model(folder: Path, tokenizer, **other) -> Path:
    """A folder that stands in for the embedded model's, with four groups of heads."""
    model("grouped", vocab_size=49152, num_hidden_layers=2, **other).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def embed(patch: pytest.MonkeyPatch, place: Path, data: Path, tokenizer) -> Path:
    """A folder in `place` with such a model, and the data of folder `data`, is the embedded one."""
    folder = place / "embedded"
    save_model(folder / "model", tokenizer)
    intact.seal(folder)
    (folder / "data").symlink_to(data / "data")
    patch.setattr(assets, "embedded", lambda: folder)
    return folder


def profile(patch: pytest.MonkeyPatch, place: Path, data: Path, tokenizer) -> Profile:
    """A profile for prunings of such a model: all that is stored or built lies in `place`."""
    embed(patch, place, data, tokenizer)
    patch.setattr(paths, "BUILD", place / "build")
    for module in (evaluated, pruning):
        patch.setattr(module, "keep_memory", lambda: None)
        patch.setattr(module, "load_tokenizer", lambda _: tokenizer)
    made = {"name": "tiny", "description": "tiny", "results": str(place / "results")}
    return Profile(**made, dtype="float32", evaluation_rows=3)


# Small runs ---------------------------------------------------------------------------------------

SMALL = {"tasks": ("rte", "openbookqa"), "rows": 12, "length": 24, "batch": 3, "epochs": 2}
SMALL |= {"rank": 2, "every": 2, "learning_rate": 1e-2}


def small_runs(patch: pytest.MonkeyPatch, tiny: Path, tokenizer) -> None:
    """Rows of a few documents, and nothing that is done for large models."""
    patch.setattr(assets, "embedded", lambda: tiny)
    patch.setattr(pruning, "keep_memory", lambda: None)
    patch.setattr(pruning, "load_tokenizer", lambda _: tokenizer)


def prune(base: Path, out: Path, dtype: str = "float32", **settings) -> Path:
    return pruning.Run(base, PruningRecipe(**SMALL | settings), out, dtype).run()


def outcome(folder: Path) -> tuple[dict[str, bytes], dict]:
    """Whatever a run writes, but for the time that it took."""
    story = json.loads((folder / "pruning.json").read_text())
    assert story.pop("seconds") > 0
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.safetensors")
    }, story
