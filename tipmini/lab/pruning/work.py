"""What `tipmini prune` does: find the base, tell what would go, prune, and tell what went."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from tipmini.base_folder import BaseFolder, open_base
from tipmini.errors import TipminiError
from tipmini.groups import CHANNELS, HEADS, Family, find_families
from tipmini.lab import assets
from tipmini.lab.model import download_model
from tipmini.lab.pruning.recipe import Recipe
from tipmini.lab.pruning.run import STORY, Run, sizes, start
from tipmini.lab.pruning.semi_structured import prune_semi_structured
from tipmini.removal import is_exportable
from tipmini.strict import one_line
from tipmini.weights import refuse_taken

CHECKPOINT = "a checkpoint for AutoModelForCausalLM"
SPARSE = f"{CHECKPOINT}, of its old shapes with zeros"
MASKED = "masks.safetensors and a PEFT adapter (layers keep different numbers of groups)"


def local_folder(base: str) -> Path:
    """The folder of a base model: `embedded`, a folder, or a hub id, which is fetched."""
    if base == "embedded":
        return assets.embedded() / "model"
    return Path(base) if Path(base).is_dir() else download_model(base)


def plan(base: Path, recipe: Recipe, out: Path, semi_structured: bool = False) -> dict:
    """What would go and be written, from the configuration alone; raises what pruning would."""
    folder = open_base(base)
    refuse_taken(out, folder.size)
    families = families_of(folder)
    facts = {"rows": recipe.rows, "steps": 0 if semi_structured else _steps(recipe)}
    return facts | (
        _semi(folder, families) if semi_structured else _whole(folder, families, recipe)
    )


def prune(base: Path, recipe: Recipe, out: Path, dtype: str, semi_structured: bool = False) -> dict:
    """Prune into `out`; what there is to tell of it."""
    families = families_of(open_base(base))
    if semi_structured:
        prune_semi_structured(base, recipe, out, recipe.method, dtype)
        return _semi(open_base(base), families)
    Run(base, recipe, out, dtype).run()
    story = json.loads((out / STORY).read_text())
    names = ("removed_share", "removed_of_model", "removed_of", "seconds", "loss")
    form = CHECKPOINT if (out / "config.json").exists() else _masked(recipe)
    return {name: story[name] for name in names} | {"form": form}


def families_of(folder: BaseFolder) -> list[Family]:
    """The groups of a model folder, of which no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder.folder)
        with torch.device("meta"):
            return find_families(AutoModelForCausalLM.from_config(config))
    except (OSError, ValueError) as error:
        if isinstance(error, TipminiError):
            raise
        raise TipminiError(f"{folder.folder}: no causal model ({one_line(error)})") from None


def _steps(recipe: Recipe) -> int:
    return len(recipe.batches(recipe.rows))


def _whole(folder: BaseFolder, families: list[Family], recipe: Recipe) -> dict:
    pruner = start(families, recipe, folder)
    final = pruner.final
    masks = {f.name: torch.arange(f.count) >= final[f.name] for f in families}
    checkpoint = recipe.threshold == "layer" and is_exportable(folder.config, families, masks)
    return sizes(folder, families, final) | {"form": CHECKPOINT if checkpoint else _masked(recipe)}


def _masked(recipe: Recipe) -> str:
    """What is written where layers differ; in 8 bits the adapter was trained on a rounded base."""
    return f"{MASKED}, and the base as 8 bits hold it" if recipe.int8 else MASKED


def _semi(folder: BaseFolder, families: list[Family]) -> Mapping[str, object]:
    half = sum(family.weights for family in families) // 2
    every = sum(torch.Size(folder.entry(name).shape).numel() for name in folder.files)
    kinds = {HEADS: 0.0, CHANNELS: 0.0}
    shares = {"removed_share": 0.5, "removed_of_model": half / every, "removed_of": kinds}
    return {"removed_weights": half, **shares, "form": SPARSE}
