"""Random weights at LLaMA-2-7B's shapes, and adapters in the public ones' layout.

What they compute means nothing; what it costs is what the real ones cost. The tokenizer is the
packaged model's, cut to the vocabulary's size.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

import tipmini as tm
from tipmini.models.base_folder import INDEX
from tipmini_lab.evaluation import assets
from tipmini_lab.experiments.profiles import Profile

# Touvron et al., "Llama 2" (2023): as the model's config.json has it.
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Of the public adapters by two notes of others; the real ones' own configurations are read.
RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "v_proj")
SCALE = 0.02  # standard deviation of every weight


def save_model(folder: Path, sizes: Mapping[str, object], dtype: str, seed: int = 0) -> Path:
    """A LLaMA of random weights with a tokenizer, as `load_base` reads it: a file a layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, dtype=dtype)
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    draw, places = torch.Generator().manual_seed(seed), {}
    for file in dict.fromkeys(map(_file_of, shapes)):
        tensors = {
            name: _weight(name, shape, dtype, draw)
            for name, shape in shapes.items()
            if _file_of(name) == file
        }
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index))
    config.save_pretrained(folder)
    _save_tokenizer(folder, config.vocab_size)
    return folder


def first_layers(folder: Path, count: int, out: Path) -> Path:
    """The same model with its first layers alone; the weights' files are the folder's own."""
    told = json.loads((folder / INDEX).read_text())
    later = {f"model-{number}.safetensors" for number in range(count, 1000)}
    told["weight_map"] = {n: file for n, file in told["weight_map"].items() if file not in later}
    out.mkdir()
    for file in folder.iterdir():
        if file.name not in later | {INDEX, "config.json"}:
            linked = file.suffix == ".safetensors"  # gigabytes; `--into` copies no links out
            put = os.symlink if linked else shutil.copyfile
            put(file, out / file.name)
    (out / INDEX).write_text(json.dumps(told))
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": count}))
    return out


def _file_of(name: str) -> str:
    """The file of a parameter: its layer's, or that of what stands outside of all."""
    parts = name.split(".")
    return f"model-{parts[2] if parts[1] == 'layers' else 'rest'}.safetensors"


def _weight(name: str, shape: torch.Size, dtype: str, draw: torch.Generator) -> torch.Tensor:
    """Norms are 1, all else is random."""
    made = torch.empty(shape, dtype=getattr(torch, dtype))
    return made.fill_(1) if len(shape) == 1 else made.normal_(0, SCALE, generator=draw)


def _save_tokenizer(folder: Path, words: int) -> None:
    """The packaged model's, with its first `words` tokens and the merges that yield them."""
    source = assets.embedded() / "model"
    told = json.loads((source / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    kept = {token: number for token, number in vocabulary.items() if number < words}
    told["model"]["vocab"] = kept
    told["model"]["merges"] = [pair for pair in told["model"]["merges"] if "".join(pair) in kept]
    (folder / "tokenizer.json").write_text(json.dumps(told))
    settings = (source / "tokenizer_config.json").read_bytes()
    (folder / "tokenizer_config.json").write_bytes(settings)


def save_adapters(place: Path, profile: Profile, sizes: Mapping[str, object], dtype: str) -> str:
    """One adapter of every task of the profile, by its name there; `Profile.adapters` of them."""
    from transformers import LlamaConfig

    config = LlamaConfig(**sizes)
    wide = {"q_proj": config.num_attention_heads, "v_proj": config.num_key_value_heads}
    pattern = str(place / Path(profile.adapters).name)
    for seed, task in enumerate(profile.tasks):
        draw = torch.Generator().manual_seed(seed)

        def factor(*shape: int, draw: torch.Generator = draw) -> torch.Tensor:
            return torch.randn(shape, generator=draw).mul_(SCALE).to(getattr(torch, dtype))

        factors = {
            f"model.layers.{layer}.self_attn.{target}": tm.LoraFactors(
                factor(RANK, config.hidden_size),
                factor(wide[target] * config.head_dim, RANK),
                ALPHA / RANK,
            )
            for layer in range(config.num_hidden_layers)
            for target in TARGETS
        }
        name = profile.adapter_names.get(task, task)
        adapter = tm.LoraAdapter(factors, base_model=profile.model)
        adapter.save(Path(pattern.format(task=name)))
    return pattern
