"""2:4 sparsity, for comparison (LoRAPrune, Fig. 3): zeros in a checkpoint of unchanged shapes.

Two of every four consecutive weights of a row go. Only hardware with sparse products is any
faster for it, and a LoRA adapter's BA, which is dense, cannot be merged without filling them.
"""

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import tipmini as tm
from tipmini.base_folder import open_base
from tipmini.criteria import semi_structured_mask
from tipmini.groups import find_families
from tipmini.lab import results
from tipmini.lab.model import keep_memory, load_base, load_tokenizer
from tipmini.lab.pruning import texts
from tipmini.lab.pruning.recipe import Recipe
from tipmini.lab.pruning.run import STORY
from tipmini.removal import Change, changed
from tipmini.wanda import wanda_score
from tipmini.weights import refuse_taken, save_merged

SEMI_STRUCTURED = {"magnitude-2:4": "magnitude", "wanda-2:4": "wanda"}


def prune_semi_structured(
    base: Path, recipe: Recipe, out: Path, score: str, dtype: str = "auto"
) -> Path:
    """Write the base with 2:4 zeros in all attention and MLP matrices; nothing is trained.

    score: "magnitude", or "wanda" with the norms of the recipe's rows. Raises TipminiError for
    rows of a length that 4 doesn't divide, and as `save_merged` does.
    """
    keep_memory()
    folder = open_base(base)
    refuse_taken(out, folder.size)
    model = load_base(base, dtype)
    modules = [m.module for family in find_families(model) for m in family.members]
    norms: dict[str, Tensor] = {}
    if score == "wanda":
        rows = texts.examples(recipe.tasks, recipe.rows, recipe.length, load_tokenizer(base))
        norms = tm.calibrate(model, texts.padded(rows, recipe.tokens), modules)
    changes = {
        f"{module}.weight": Change(
            partial(_pruned, norm=norms.get(module)), folder.locate(module).shape
        )
        for module in modules
    }
    story = {"method": f"{score}-2:4", "base": str(base), "date": results.today()}
    story |= {"machine": results.machine(), "versions": results.versions()}
    beside = {STORY: (json.dumps(story) + "\n").encode()}
    save_merged(changed(folder, changes), {}, out, beside=beside)
    return out


def _pruned(weight: Tensor, norm: Tensor | None) -> Tensor:
    scores = weight.abs() if norm is None else wanda_score(weight.float(), norm)
    return torch.where(semi_structured_mask(scores), weight, 0)
