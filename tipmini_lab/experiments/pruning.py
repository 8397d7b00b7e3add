"""Pruning a model: LoRAPrune's Algorithm 1, its results in files, 2:4 sparsity, `tipmini prune`."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods import pruner
from tipmini.methods.criteria import needs_gradient, semi_structured_mask
from tipmini.methods.groups import CHANNELS, HEADS, Family, find_families, removed_share
from tipmini.methods.pruner import Masks, Pruner, load_masks, masked, save_masks
from tipmini.methods.removal import TensorEdit, changed, is_exportable, save_pruned
from tipmini.models.base_folder import BaseFolder, open_base
from tipmini.models.files import one_line
from tipmini.models.int8 import rounded, to_int8
from tipmini.models.weights import refuse_taken, save_merged
from tipmini.papers.tip import wanda_score
from tipmini_lab.evaluation import assets, objective
from tipmini_lab.evaluation.model import (
    download_model,
    keep_memory,
    load_base,
    load_tokenizer,
    number_format,
    recompute,
)
from tipmini_lab.experiments.recipe import TARGETS, PruningRecipe, cosine_rate, fraction, removes
from tipmini_lab.experiments.training import Resumable, add_lora, by_module, named_factors
from tipmini_lab.results import digests, store

MASKS, STORY, ADAPTER, BASE = "masks.safetensors", "pruning.json", "adapter", "base"


def save(
    base: BaseFolder,
    families: Sequence[Family],
    masks: Masks,
    factors: Mapping[str, tm.LoraFactors],
    out: Path,
    *,
    read: Callable[[Tensor], Tensor] | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write masks, adapter and further files into a folder, all at once or not at all.

    read: what the pruned modules' weights were rounded to while the adapter was trained; the base
    with these weights is then written too, and the adapter names it. Raises TipminiError when the
    disk does not take it.
    """
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
            new = Path(staging) / "new"
            new.mkdir()
            if read:
                whole = {family.name: torch.ones_like(masks[family.name]) for family in families}
                save_pruned(base, families, whole, new / BASE, read=read)
            name = str(out / BASE if read else base.folder.resolve())
            tm.LoraAdapter(dict(factors), base_model=name).save(new / ADAPTER)
            for file, content in {MASKS: save_masks(masks), **(beside or {})}.items():
                (new / file).write_bytes(content)
            new.replace(out)
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None


def load(folder: Path, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """The model that the folder stands for, of the base's shapes; it computes Eq. 13's masked pass.

    The adapter is merged into the weights, and the rows that write what is gone are zero.
    """
    adapter, masks = tm.load_adapter(folder / ADAPTER), load_masks(folder / MASKS)
    model = load_base(adapter.base_model, dtype)
    for module, pair in adapter.factors.items():
        _replace(model.get_submodule(module), "weight", lambda w, p=pair: w.float() + p.delta())
    for family in find_families(model):
        for member in (m for m in family.members if m.dim == 0):
            layer = model.get_submodule(member.module)
            for name, _ in list(layer.named_parameters()):
                _replace(layer, name, lambda t, m=masks[family.name]: _without(t, m))
    return model.to(device)


def _replace(layer: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Another parameter of the same dtype: the old one may be a file that is mapped."""
    old = layer.get_parameter(name).detach()
    setattr(layer, name, nn.Parameter(change(old).to(old.dtype), requires_grad=False))


def _without(tensor: Tensor, mask: Tensor) -> Tensor:
    """(d, k) or (d,) with zeros in the rows of the groups that the mask leaves out."""
    rows = mask.repeat_interleave(len(tensor) // len(mask))
    return tensor * rows.view(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype)


# LoRAPrune's Algorithm 1 --------------------------------------------------------------------------
class Run(Resumable):
    """One pruning run of a local model folder, which can be killed and started again.

    Only A and B are trained; the base is frozen, and has gradients only where a criterion reads
    them (dL/dW: vanilla and Taylor). The result is a checkpoint without the groups, the adapter
    merged into it, or where layers keep different numbers of groups the adapter and the masks
    (`masked_result`).
    """

    every = 5  # steps between checkpoints

    def __init__(self, base: Path, recipe: PruningRecipe, out: Path, dtype: str = "auto"):
        keep_memory()
        self.base, self.recipe, self.out = open_base(base), recipe, out
        refuse_taken(out, self.base.size)
        self.dtype, self.tokens = number_format(base, dtype), recipe.tokens
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        tokenizer = load_tokenizer(base)
        self.rows = objective.plain_examples(recipe.tasks, recipe.rows, recipe.length, tokenizer)
        model = load_base(base, self.dtype, attention="eager")
        self.families = find_families(model)
        self.pruner = start(self.families, recipe, self.base)
        if recipe.int8:
            to_int8(model)
        if recipe.recompute:
            recompute(model)
        self.peft = add_lora(model, recipe.rank, recipe.alpha, TARGETS, recipe.seed, light=True)
        self.model = self.peft.get_base_model()
        self.factors = named_factors(self.peft)
        weights = pruner.linear_weights(self.model, self.families)
        pruner.require_gradients(recipe.method, weights)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = recipe.batches(len(self.rows))
        self.norms = self._norms() if recipe.method == "wanda" else None
        self.log: dict = {"loss": [], "gone": [], "seconds": 0.0}

    def _norms(self) -> dict[str, Tensor]:
        """Of the inputs of the base as it is, before anything is removed or trained."""
        modules = [m.module for family in self.families for m in family.members]
        return tm.calibrate(self.peft, objective.padded(self.rows, self.tokens), modules)

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
        found = pruner.all_scores(self.model, self.families, method, reduction, **facts)
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
            save(self.base, self.families, masks, self.update(), self.out, **parts)
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
            "date": store.today(),
            "machine": store.machine(),
            "threads": torch.get_num_threads(),
            "versions": store.versions(),
            **self.log,
        }


def as_trained(dtype: str) -> Callable[[Tensor], Tensor]:
    """What int8 holds of a weight that was loaded in `dtype`, in the weight's own."""
    return lambda weight: rounded(weight.to(getattr(torch, dtype))).to(weight.dtype)


def start(families: Sequence[Family], recipe: PruningRecipe, base: BaseFolder) -> Pruner:
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


# 2 ------------------------------------------------------------------------------------------------
SEMI_STRUCTURED = {"magnitude-2:4": "magnitude", "wanda-2:4": "wanda"}


def prune_semi_structured(
    base: Path, recipe: PruningRecipe, out: Path, score: str, dtype: str = "auto"
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
        rows = objective.plain_examples(
            recipe.tasks, recipe.rows, recipe.length, load_tokenizer(base)
        )
        norms = tm.calibrate(model, objective.padded(rows, recipe.tokens), modules)
    changes = {
        f"{module}.weight": TensorEdit(
            partial(_pruned, norm=norms.get(module)), folder.locate(module).shape
        )
        for module in modules
    }
    story = {"method": f"{score}-2:4", "base": str(base), "date": store.today()}
    story |= {"machine": store.machine(), "versions": store.versions()}
    beside = {STORY: (json.dumps(story) + "\n").encode()}
    save_merged(changed(folder, changes), {}, out, beside=beside)
    return out


def _pruned(weight: Tensor, norm: Tensor | None) -> Tensor:
    scores = weight.abs() if norm is None else wanda_score(weight.float(), norm)
    return torch.where(semi_structured_mask(scores), weight, 0)


# What `tipmini prune` does ------------------------------------------------------------------------
CHECKPOINT = "a checkpoint for AutoModelForCausalLM"
SPARSE = f"{CHECKPOINT}, of its old shapes with zeros"
MASKED = "masks.safetensors and a PEFT adapter (layers keep different numbers of groups)"


def local_folder(base: str) -> Path:
    """The folder of a base model: `embedded`, a folder, or a hub id, which is fetched."""
    if base == "embedded":
        return assets.embedded() / "model"
    return Path(base) if Path(base).is_dir() else download_model(base)


def plan(base: Path, recipe: PruningRecipe, out: Path, semi_structured: bool = False) -> dict:
    """What would go and be written, from the configuration alone; raises what pruning would."""
    folder = open_base(base)
    refuse_taken(out, folder.size)
    families = families_of(folder)
    facts = {"rows": recipe.rows, "steps": 0 if semi_structured else _steps(recipe)}
    return facts | (
        _semi(folder, families) if semi_structured else _whole(folder, families, recipe)
    )


def prune(
    base: Path, recipe: PruningRecipe, out: Path, dtype: str, semi_structured: bool = False
) -> dict:
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


def _steps(recipe: PruningRecipe) -> int:
    return len(recipe.batches(recipe.rows))


def _whole(folder: BaseFolder, families: list[Family], recipe: PruningRecipe) -> dict:
    pruner = start(families, recipe, folder)
    final = pruner.final
    masks = {f.name: torch.arange(f.count) >= final[f.name] for f in families}
    checkpoint = recipe.threshold == "layer" and is_exportable(folder.config, families, masks)
    return sizes(folder, families, final) | {"form": CHECKPOINT if checkpoint else _masked(recipe)}


def _masked(recipe: PruningRecipe) -> str:
    """What is written where layers differ; in 8 bits the adapter was trained on a rounded base."""
    return f"{MASKED}, and the base as 8 bits hold it" if recipe.int8 else MASKED


def _semi(folder: BaseFolder, families: list[Family]) -> Mapping[str, object]:
    half = sum(family.weights for family in families) // 2
    every = sum(torch.Size(folder.entry(name).shape).numel() for name in folder.files)
    kinds = {HEADS: 0.0, CHANNELS: 0.0}
    shares = {"removed_share": 0.5, "removed_of_model": half / every, "removed_of": kinds}
    return {"removed_weights": half, **shares, "form": SPARSE}
