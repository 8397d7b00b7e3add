"""Tiny adapters, norms, Gram matrices and a base model under the names that the examples use."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import llama, random_adapter, random_norms
from transformers import LlamaForCausalLM

TASKS = ("piqa", "rte", "boolq")
SHARDED, SINGLE = "20KB", "1GB"


def write_all(folder: Path) -> None:
    """adapters/TASK, TASK.safetensors (norms), TASK-grams.safetensors, base/, below a folder."""
    for seed, task in enumerate(TASKS):
        adapter = random_adapter(seed)
        adapter.save(folder / "adapters" / task)
        save_file(random_norms(adapter, seed), folder / f"{task}.safetensors")
        save_file(random_grams(adapter, seed), folder / f"{task}-grams.safetensors")
    llama().save_pretrained(folder / "base")


def random_grams(adapter, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        module: torch.randn(50, pair.shape[1], generator=generator)
        for module, pair in adapter.factors.items()
    }
    return {module: x.T @ x for module, x in inputs.items()}


def tiny_base(folder: Path, *, dtype=torch.float32, tied=False, shards=SINGLE) -> LlamaForCausalLM:
    """A tiny random LLaMA, and the folder that transformers writes of it."""
    config = llama().config
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    return model
