"""LoRAPrune's Algorithm 1: fine-tune an adapter, average importances, remove groups, and again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.base_folder import BaseFolder, open_base
from tipmini.criteria import needs_gradient
from tipmini.groups import CHANNELS, HEADS, Family, find_families, removed_share
from tipmini.int8 import rounded, to_int8
from tipmini.lab import digests, results
from tipmini.lab.model import keep_memory, load_base, load_tokenizer, number_format, recompute
from tipmini.lab.pruning import masked_result, scoring, texts
from tipmini.lab.pruning.masked_result import MASKS, STORY
from tipmini.lab.pruning.recipe import TARGETS, Recipe, cosine_rate, fraction, removes
from tipmini.lab.resumable import Resumable, by_module, named_factors, wear_lora
from tipmini.masking import Pruner, masked, save_masks
from tipmini.removal import is_exportable, save_pruned
from tipmini.weights import refuse_taken


class Run(Resumable):
    """One pruning run of a local model folder, which can be killed and started again.

    Only A and B are trained; the base is frozen, and has gradients only where a criterion reads
    them (dL/dW: vanilla and Taylor). The result is a checkpoint without the groups, the adapter
    merged into it, or where layers keep different numbers of groups the adapter and the masks
    (`masked_result`).
    """

    every = 5  # steps between checkpoints

    def __init__(self, base: Path, recipe: Recipe, out: Path, dtype: str = "auto"):
        keep_memory()
        self.base, self.recipe, self.out = open_base(base), recipe, out
        refuse_taken(out, self.base.size)
        self.dtype, self.tokens = number_format(base, dtype), recipe.tokens
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        tokenizer = load_tokenizer(base)
        self.rows = texts.examples(recipe.tasks, recipe.rows, recipe.length, tokenizer)
        model = load_base(base, self.dtype, attention="eager")
        self.families = find_families(model)
        self.pruner = start(self.families, recipe, self.base)
        if recipe.int8:
            to_int8(model)
        if recipe.recompute:
            recompute(model)
        self.peft = wear_lora(model, recipe.rank, recipe.alpha, TARGETS, recipe.seed, light=True)
        self.model = self.peft.get_base_model()
        self.factors = named_factors(self.peft)
        weights = scoring.linear_weights(self.model, self.families)
        scoring.require_gradients(recipe.method, weights)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = recipe.batches(len(self.rows))
        self.norms = self._norms() if recipe.method == "wanda" else None
        self.log: dict = {"loss": [], "gone": [], "seconds": 0.0}

    def _norms(self) -> dict[str, Tensor]:
        """Of the inputs of the base as it is, before anything is removed or trained."""
        modules = [m.module for family in self.families for m in family.members]
        return tm.calibrate(self.peft, texts.padded(self.rows, self.tokens), modules)

    def step(self, number: int) -> float:
        """Gradients of one batch, their importances, an update, and removal where it is due."""
        loss = 0.0
        if self.recipe.tune or needs_gradient(self.recipe.method):
            loss = self.backward([self.rows[i] for i in self.steps[number]])
        if self.recipe.reduction == "paper":
            self._observe()
        nn.utils.clip_grad_norm_(self.factors.values(), self.recipe.clip)
        if self.recipe.reduction == "released":
            self._observe()
        if self.recipe.tune:
            self._update(number)
        self.model.zero_grad()
        self._remove(number + 1)
        return loss

    def _observe(self) -> None:
        facts = {"norms": self.norms, "seed": self.recipe.seed}
        method, reduction = self.recipe.method, self.recipe.reduction
        found = scoring.all_scores(self.model, self.families, method, reduction, **facts)
        self.pruner.observe(found)

    def _update(self, number: int) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = cosine_rate(self.recipe, number, len(self.steps))
        self.optimizer.step()

    def _remove(self, done: int) -> None:
        if removes(self.recipe, done, len(self.steps)):
            self.pruner.remove(fraction(self.recipe, done, len(self.steps)))
        self.log["gone"].append(round(removed_share(self.families, self.pruner.counts), 4))

    def kept(self) -> tuple[dict[str, Tensor], dict]:
        averages = {f"average/{n}": t for n, t in self.pruner.averages.items()}
        counts = {"observed": self.pruner.observed, "skipped": self.pruner.skipped}
        return averages | {f"mask/{n}": t for n, t in self.pruner.masks.items()}, counts

    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:
        for name in self.pruner.masks:
            self.pruner.averages[name] = tensors[f"average/{name}"]
            self.pruner.masks[name] = tensors[f"mask/{name}"]
        self.pruner.observed, self.pruner.skipped = facts["observed"], facts["skipped"]

    def identity(self) -> str:
        rows = [list(example.content) for example in self.rows]
        made = [self._weights, self.base.config, self.dtype, digests.code_digest(Run)]
        return digests.digest([made, asdict(self.recipe), rows])

    @cached_property
    def _weights(self) -> list[str]:
        """Hashes of the base's files."""
        return [digests.file_digest(p) for p in sorted({f.path for f in self.base.files.values()})]

    def run(self) -> Path:
        """Prune to the end, and write what is left into `out`."""
        done = self.resume()
        with masked(self.model, self.pruner.masks):
            self.advance(done, len(self.steps), f"pruning by {self.recipe.method}")
        return self.finish()

    @torch.no_grad()
    def finish(self) -> Path:
        """Write the result; the checkpoint is then no longer needed."""
        masks, story = self.pruner.masks, json.dumps(self.story()) + "\n"
        read = as_trained(self.dtype) if self.recipe.int8 else None
        parts = {"read": read, "beside": {MASKS: save_masks(masks), STORY: story.encode()}}
        if is_exportable(self.base.config, self.families, masks):
            update = self.update() if self.recipe.tune else {}  # else there is nothing to merge
            save_pruned(self.base, self.families, masks, self.out, update=update, **parts)
        else:
            masked_result.save(self.base, self.families, masks, self.update(), self.out, **parts)
        self.saved.unlink(missing_ok=True)
        return self.out

    def update(self) -> dict[str, tm.LoraFactors]:
        """The adapter by module."""
        return by_module({n: p.detach() for n, p in self.factors.items()}, self.recipe.scaling)

    def story(self) -> dict:
        """What `pruning.json` tells."""
        return {
            "recipe": asdict(self.recipe),
            "base": str(self.base.folder),
            "dtype": self.dtype,
            "data": self.identity(),
            "rows": len(self.rows),
            "steps": len(self.steps),
            "skipped": self.pruner.skipped,
            **sizes(self.base, self.families, self.pruner.counts),
            "kept": {name: int(mask.sum()) for name, mask in self.pruner.masks.items()},
            "date": results.today(),
            "machine": results.machine(),
            "threads": torch.get_num_threads(),
            "versions": results.versions(),
            **self.log,
        }


def as_trained(dtype: str) -> Callable[[Tensor], Tensor]:
    """What int8 holds of a weight that was loaded in `dtype`, in the weight's own."""
    return lambda weight: rounded(weight.to(getattr(torch, dtype))).to(weight.dtype)


def start(families: Sequence[Family], recipe: Recipe, base: BaseFolder) -> Pruner:
    """The masks of a run before its first step, all ones."""
    final = recipe.final(families, base.config["hidden_size"])
    return Pruner(families, final, decay=recipe.decay, threshold=recipe.threshold)


def sizes(base: BaseFolder, families: Sequence[Family], counts: dict[str, int]) -> dict:
    """Weights that go, as shares: of the attention and MLP matrices, and of the whole model."""
    gone = sum(counts[family.name] * family.size for family in families)
    every = sum(torch.Size(base.entry(name).shape).numel() for name in base.files)
    kinds = {
        kind: sum(counts[f.name] for f in families if f.kind == kind)
        / sum(f.count for f in families if f.kind == kind)
        for kind in (HEADS, CHANNELS)
    }
    return {
        "removed_weights": gone,
        "removed_share": removed_share(families, counts),
        "removed_of_model": gone / every,
        "removed_of": kinds,
    }
