"""Tiny adapters, norms, Gram matrices and a base model under the names that the examples use."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import llama, random_adapter, random_norms
from transformers import LlamaForCausalLM

from tipmini.methods.weighting import adapter_digest
from tipmini.models.adapter import load_adapter

TASKS = ("piqa", "rte", "boolq")
SHARDED, SINGLE = "20KB", "1GB"


def write_all(folder: Path) -> None:
    """adapters/TASK, TASK.safetensors (norms), TASK-grams.safetensors, weights.json and base/."""
    for seed, task in enumerate(TASKS):
        adapter = random_adapter(seed)
        adapter.save(folder / "adapters" / task)
        save_file(random_norms(adapter, seed), folder / f"{task}.safetensors")
        save_file(random_grams(adapter, seed), folder / f"{task}-grams.safetensors")
    write_weights(folder)
    llama().save_pretrained(folder / "base")


def write_weights(folder: Path) -> None:
    """As if learnt: 0.1, 0.2, ... for the modules of each adapter."""
    adapters = {task: load_adapter(folder / "adapters" / task) for task in TASKS}
    weights = {t: {m: 0.1 * i for i, m in enumerate(a.modules, 1)} for t, a in adapters.items()}
    made = {"identity": "", "adapters": {t: adapter_digest(a) for t, a in adapters.items()}}
    (folder / "weights.json").write_text(json.dumps({"weights": weights, "made": made}))


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
