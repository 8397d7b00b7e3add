"""Pruning a model: LoRAPrune's Algorithm 1, its results in files, zeros, `tipmini prune`."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError, require, require_share
from tipmini.masks import row_mask, semi_structured_mask
from tipmini.methods import pruner
from tipmini.methods.criteria import (
    CHOICES,
    NEEDS_WEIGHT_GRADIENT,
    REDUCTIONS,
    needs_gradient,
)
from tipmini.methods.groups import (
    CHANNELS,
    HEADS,
    Family,
    exempt_layers,
    find_families,
    quotas,
    removed_share,
)
from tipmini.methods.pruner import Masks, Pruner, load_masks, masked, save_masks
from tipmini.methods.removal import TensorEdit, changed, is_exportable, save_pruned
from tipmini.models.base_folder import BaseFolder, open_base, refuse_taken, save_merged
from tipmini.models.files import one_line
from tipmini.models.int8 import rounded, to_int8
from tipmini.papers.loraprune import SCHEDULES
from tipmini.papers.tip import wanda_score
from tipmini_lab.evaluation import assets, objective
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.evaluation.model import (
    MODEL,
    download,
    keep_memory,
    load_base,
    load_tokenizer,
    number_format,
    recompute,
)
from tipmini_lab.evaluation.tasks import Source
from tipmini_lab.experiments.training import (
    Resumable,
    add_lora,
    by_module,
    named_factors,
    schedule,
)
from tipmini_lab.results import digests, store

MASKS, STORY, ADAPTER, BASE = "masks.safetensors", "pruning.json", "adapter", "base"
STATE = ("averages", "masks", "observed", "skipped")  # of a `Pruner`
Rounding = Callable[[Tensor], Tensor]


# The recipe ---------------------------------------------------------------------------------------
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PruningRecipe:
    """A pruning run. The paper: learning rate 1e-4, batch 128, 2 epochs, AdamW, cosine decay.

    share: of the weights of all attention and MLP matrices in layers that are not exempt; see
    `groups.quotas` for how heads and channels divide it. tune=False: one pass over all rows for
    the gradients, the groups are removed at once, and no weight is changed.
    """

    method: str = "lora-guided"
    share: float = 0.5
    reduction: str = "paper"  # or "released"; then gradients are also taken after clipping
    schedule: str = "cubic"
    threshold: str = "layer"  # or "global": shares differ from layer to layer
    head_share: float | None = None
    channel_share: float | None = None
    exempt_first: float = 0.0  # the authors' code: 0.1
    exempt_last: int = 0  # the authors' code: 1
    decay: float = 0.9  # lambda of Eq. 11
    every: int = 10  # steps between removals
    tune: bool = True
    int8: bool = False
    tasks: tuple[str, ...] = TASKS  # or other sources, whose rows are read in equal numbers
    rows: int = 1024
    length: int = 256  # tokens of a row; the rest is cut
    epochs: int = 2
    steps: int | None = None  # instead of epochs
    batch: int = 32
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    recompute: bool = False  # activations in the backward pass: a fraction of the memory, slower
    learning_rate: float = 1e-4
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    clip: float = 1.0
    rank: int = 8
    alpha: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require("method", self.method, CHOICES)
        require("reduction", self.reduction, REDUCTIONS)
        require("schedule", self.schedule, SCHEDULES)
        require("threshold", self.threshold, ("layer", "global"))
        for name in ("share", "decay", "exempt_first", "warmup"):
            require_share(name, getattr(self, name))
        counts = ("every", "rows", "length", "epochs", "steps", "batch", "tokens", "rank", "alpha")
        for name in counts:
            if (count := getattr(self, name)) is not None and count < 1:
                raise TipminiError(f"{name} must be at least 1, got {count}")
        if self.length < 2:
            raise TipminiError("length must be at least 2: the first token predicts the next")
        if self.int8 and self.method in NEEDS_WEIGHT_GRADIENT:
            raise TipminiError(
                f"method {self.method} needs gradients of the weights, which int8 has none of; "
                "prune by lora-guided, magnitude, wanda or random"
            )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def batches(self, rows: int) -> list[list[int]]:
        """Row numbers of every step."""
        if not self.tune:
            return [list(range(rows))]
        an_epoch = math.ceil(rows / self.batch)
        epochs = math.ceil(self.steps / an_epoch) if self.steps else self.epochs
        return schedule(rows, epochs, self.batch, self.seed)[: self.steps]

    def final(self, families: Sequence[Family], hidden_size: int) -> dict[str, int]:
        """The groups of each family that are gone in the end."""
        layers = 1 + max(family.layer for family in families)
        exempt = exempt_layers(layers, self.exempt_first, self.exempt_last)
        same = not exempt and self.threshold == "layer"
        return quotas(
            families,
            self.share,
            head_share=self.head_share,
            channel_share=self.channel_share,
            exempt=exempt,
            hidden_size=hidden_size if same else None,  # which a checkpoint needs
        )


def fraction(recipe: PruningRecipe, step: int, steps: int) -> float:
    """How much of all that is to go is gone after `step` of `steps` steps, in [0, 1]."""
    return SCHEDULES[recipe.schedule](step, steps, 1.0) if recipe.tune else 1.0


def removes(recipe: PruningRecipe, step: int, steps: int) -> bool:
    """Whether groups are removed after this step: every few, and when the schedule ends."""
    now, before = (fraction(recipe, number, steps) for number in (step, step - 1))
    return now > 0 and (step % recipe.every == 0 or now == 1 > before or step == steps)


def rows_of(
    recipe: PruningRecipe, tokenizer, sources: Mapping[str, Source] = {}
) -> list[objective.Example]:
    """What a run reads; sources: of the tasks that are no packaged ones (`tasks.sources`)."""
    chosen = [sources.get(task, task) for task in recipe.tasks]
    return objective.plain_examples(chosen, recipe.rows, recipe.length, tokenizer)


def cosine_rate(recipe: PruningRecipe, step: int, steps: int) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine towards zero."""
    ramp = max(1, round(recipe.warmup * steps))
    if step < ramp:
        return recipe.learning_rate * (step + 1) / ramp
    part = (step - ramp) / max(1, steps - ramp)
    return recipe.learning_rate * (1 + math.cos(math.pi * part)) / 2


# Results in files -------------------------------------------------------------------------------
def load(folder: Path, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """The model that the folder stands for, of the base's shapes; it computes Eq. 13's masked pass.

    The adapter is merged into the weights, and the rows that write what is gone are zero.
    """
    adapter, masks = tm.load_adapter(folder / ADAPTER), load_masks(folder / MASKS)
    model = load_base(adapter.base_model, dtype)
    for module, pair in adapter.factors.items():
        layer = model.get_submodule(module)
        _replace(layer, "weight", layer.weight.float() + pair.delta())
    for family in find_families(model):
        for layer in (model.get_submodule(m.module) for m in family.members if m.dim == 0):
            for name, old in list(layer.named_parameters()):  # (d, k) or (d,)
                rows = masks[family.name].repeat_interleave(len(old) // family.count)
                _replace(layer, name, old * rows.view(-1, *[1] * (old.ndim - 1)).to(old.dtype))
    return model.to(device)


def _replace(layer: nn.Module, name: str, new: Tensor) -> None:
    """Another parameter of the same dtype: the old one may be a file that is mapped."""
    dtype = layer.get_parameter(name).dtype
    setattr(layer, name, nn.Parameter(new.detach().to(dtype), requires_grad=False))


# LoRAPrune's Algorithm 1 --------------------------------------------------------------------------
class Run(Resumable):
    """One pruning run of a local model folder, which can be killed and started again.

    Only A and B are trained; the base is frozen, and has gradients only where a criterion reads
    them (dL/dW: vanilla and Taylor). The result is a checkpoint without the groups, the adapter
    merged into it, or where layers keep different numbers of groups the adapter and the masks
    (`masked_result`).
    """

    every = 5  # steps between checkpoints

    def __init__(
        self,
        base: Path,
        recipe: PruningRecipe,
        out: Path,
        dtype: str = "auto",
        sources: Mapping[str, Source] = {},
        device: str = "cpu",
    ):
        keep_memory()
        self.base, self.recipe, self.out = open_base(base), recipe, out
        refuse_taken(out, self.base.size)
        self.dtype, self.tokens = number_format(base, dtype, device), recipe.tokens
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        tokenizer = load_tokenizer(base)
        self.rows = rows_of(recipe, tokenizer, sources)
        model = load_base(base, self.dtype, device, attention="eager")
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
            self.update(cosine_rate(self.recipe, number, len(self.steps)))
        self.model.zero_grad()
        if removes(self.recipe, number + 1, len(self.steps)):
            self.pruner.remove(fraction(self.recipe, number + 1, len(self.steps)))
        self.log["gone"].append(round(removed_share(self.families, self.pruner.counts), 4))
        return loss

    def _observe(self) -> None:
        facts = {"norms": self.norms, "seed": self.recipe.seed}
        method, reduction = self.recipe.method, self.recipe.reduction
        found = pruner.all_scores(self.model, self.families, method, reduction, **facts)
        self.pruner.observe(found)

    def kept(self) -> dict:
        return {name: getattr(self.pruner, name) for name in STATE}

    def restore(self, kept: dict) -> None:
        self.pruner.averages.update(kept["averages"])
        self.pruner.masks.update(kept["masks"])  # in place: what is masked reads them
        self.pruner.observed, self.pruner.skipped = kept["observed"], kept["skipped"]

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
        beside = {MASKS: save_masks(masks), STORY: story.encode()}
        read = as_trained(self.dtype) if self.recipe.int8 else None
        if is_exportable(self.base.config, self.families, masks):
            update = self.adapter() if self.recipe.tune else {}  # else there is nothing to merge
            told = {"update": update, "read": read, "beside": beside}
            save_pruned(self.base, self.families, masks, self.out, **told)
        else:
            self._save_masked(beside, read)
        self.saved.unlink(missing_ok=True)
        return self.out

    def adapter(self) -> dict[str, tm.LoraFactors]:
        """The factors by module, on the CPU."""
        factors = {n: p.detach().cpu() for n, p in self.factors.items()}
        return by_module(factors, self.recipe.scaling)

    def _save_masked(self, beside: Mapping[str, bytes], read: Rounding | None) -> None:
        """Write the adapter and files beside it into the folder, all at once or not at all.

        read: what the pruned modules' weights were rounded to while the adapter was trained; the
        base with these weights is then written too, and the adapter names it. Raises TipminiError
        when the disk does not take it.
        """
        out, base = Path(os.path.realpath(self.out)), str(self.base.folder.resolve())
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
                new = Path(staging) / "new"
                new.mkdir()
                if read:
                    save_pruned(
                        self.base, self.families, whole(self.families), new / BASE, read=read
                    )
                    base = str(out / BASE)
                tm.LoraAdapter(self.adapter(), base_model=base).save(new / ADAPTER)
                for file, content in beside.items():
                    (new / file).write_bytes(content)
                new.replace(out)
        except OSError as error:
            raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None

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
            **self.made(),
        }


def as_trained(dtype: str) -> Rounding:
    """What int8 holds of a weight that was loaded in `dtype`, in the weight's own."""
    return lambda weight: rounded(weight.to(getattr(torch, dtype))).to(weight.dtype)


def whole(families: Sequence[Family]) -> Masks:
    """Masks that leave nothing out."""
    return {family.name: torch.ones(family.count, dtype=torch.bool) for family in families}


def start(families: Sequence[Family], recipe: PruningRecipe, base: BaseFolder) -> Pruner:
    """The masks of a run before its first step, all ones."""
    final = recipe.final(families, base.config["hidden_size"])
    return Pruner(families, final, decay=recipe.decay, threshold=recipe.threshold)


def sizes(base: BaseFolder, families: Sequence[Family], counts: dict[str, int]) -> dict:
    """Weights that go, as shares: of the attention and MLP matrices, and of the whole model."""
    gone = sum(counts[family.name] * family.size for family in families)
    kinds = {}
    for kind in (HEADS, CHANNELS):
        own = [family for family in families if family.kind == kind]
        kinds[kind] = sum(counts[f.name] for f in own) / sum(f.count for f in own)
    return {
        "removed_weights": gone,
        "removed_share": removed_share(families, counts),
        "removed_of_model": gone / _all_weights(base),
        "removed_of": kinds,
    }


def _all_weights(base: BaseFolder) -> int:
    return sum(math.prod(base.entry(name).shape) for name in base.files)


# Zeros that leave all shapes ----------------------------------------------------------------------
def _small_first(weight: Tensor, scores: Tensor, share: float) -> Tensor:
    """False at the highest scores of each row's smaller half by size; a share up to one half."""
    smaller = ~row_mask(weight.abs(), 0.5)
    return row_mask(torch.where(smaller, -scores, math.inf), share)


def _large_first(weight: Tensor, scores: Tensor, share: float) -> Tensor:
    """False at the lowest scores of each row's larger half by size; a share up to one half."""
    larger = row_mask(weight.abs(), 0.5)
    return row_mask(torch.where(larger, scores, math.inf), share)


# Of a (d, k) weight, its scores and a share of each row: which elements stay, (d, k).
PATTERNS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "2:4": lambda weight, scores, share: semi_structured_mask(scores),
    "rows": lambda weight, scores, share: row_mask(scores, share),
    "small": _small_first,
    "large": _large_first,
}


def prune_elements(
    base: Path,
    recipe: PruningRecipe,
    out: Path,
    score: str,
    dtype: str = "auto",
    sources: Mapping[str, Source] = {},
    pattern: str = "2:4",
    device: str = "cpu",
) -> Path:
    """Write the base with zeros in all attention and MLP matrices; nothing is trained.

    score: "magnitude", or "wanda" with the norms of the recipe's rows. pattern: one of `PATTERNS`,
    for the recipe's share of each row. Raises TipminiError for rows of a length that 4 doesn't
    divide where they are 2:4, and as `save_merged` does.
    """
    keep_memory()
    folder = open_base(base)
    refuse_taken(out, folder.size)
    model = load_base(base, dtype, device)
    modules = [m.module for family in find_families(model) for m in family.members]
    norms: dict[str, Tensor] = {}
    if score == "wanda":
        rows = objective.padded(rows_of(recipe, load_tokenizer(base), sources), recipe.tokens)
        norms = tm.calibrate(model, rows, modules)
    keep, changes = PATTERNS[pattern], {}
    for module in modules:
        cut = partial(_pruned, norm=norms.get(module), keep=keep, share=recipe.share)
        changes[f"{module}.weight"] = TensorEdit(cut, folder.locate(module).shape)
    story = {"method": f"{score}-{pattern}", "base": str(base), "date": store.today()}
    story |= {"machine": store.machine(), "versions": store.versions()}
    beside = {STORY: (json.dumps(story) + "\n").encode()}
    save_merged(changed(folder, changes), {}, out, beside=beside)
    return out


def _pruned(weight: Tensor, norm: Tensor | None, keep: Callable, share: float) -> Tensor:
    scores = weight.abs() if norm is None else wanda_score(weight.float(), norm)
    return torch.where(keep(weight, scores, share), weight, 0)


# What `tipmini prune` does ------------------------------------------------------------------------
CHECKPOINT = "a checkpoint for AutoModelForCausalLM"
SPARSE = f"{CHECKPOINT}, of its old shapes with zeros"
MASKED = "masks.safetensors and a PEFT adapter (layers keep different numbers of groups)"


def local_folder(base: str) -> Path:
    """The folder of a base model: `embedded`, a folder, or a hub id, which is fetched."""
    if base == "embedded":
        return assets.embedded() / "model"
    return Path(base) if Path(base).is_dir() else download(base, MODEL)


def plan(base: Path, recipe: PruningRecipe, out: Path, semi_structured: bool = False) -> dict:
    """What would go and be written, from the configuration alone; raises what pruning would."""
    folder = open_base(base)
    refuse_taken(out, folder.size)
    families = families_of(folder)
    if semi_structured:
        return {"rows": recipe.rows, "steps": 0, **_semi(folder, families)}
    final = start(families, recipe, folder).final
    masks = {f.name: torch.arange(f.count) >= final[f.name] for f in families}
    smaller = recipe.threshold == "layer" and is_exportable(folder.config, families, masks)
    facts = {"rows": recipe.rows, "steps": len(recipe.batches(recipe.rows))}
    return facts | sizes(folder, families, final) | {"form": _form(recipe, smaller)}


def prune(
    base: Path,
    recipe: PruningRecipe,
    out: Path,
    dtype: str,
    semi_structured: bool = False,
    sources: Mapping[str, Source] = {},
    device: str = "cpu",
) -> dict:
    """Prune into `out`; what there is to tell of it."""
    if semi_structured:
        prune_elements(base, recipe, out, recipe.method, dtype, sources, device=device)
        return _semi(open_base(base), families_of(open_base(base)))
    run = Run(base, recipe, out, dtype, sources, device)
    objective.refuse_unpredicted(", ".join(recipe.tasks), run.rows)
    run.run()
    story = json.loads((out / STORY).read_text())
    names = ("removed_share", "removed_of_model", "removed_of", "seconds", "loss")
    form = _form(recipe, (out / "config.json").exists())
    return {name: story[name] for name in names} | {"form": form}


def _form(recipe: PruningRecipe, smaller: bool) -> str:
    """What is written; in 8 bits the adapter was trained on a rounded base."""
    masked = f"{MASKED}, and the base as 8 bits hold it" if recipe.int8 else MASKED
    return CHECKPOINT if smaller else masked


def _semi(folder: BaseFolder, families: list[Family]) -> dict:
    half = sum(family.weights for family in families) // 2
    shares = {"removed_share": 0.5, "removed_of_model": half / _all_weights(folder)}
    kinds = {HEADS: 0.0, CHANNELS: 0.0}
    return {"removed_weights": half, **shares, "removed_of": kinds, "form": SPARSE}


def families_of(folder: BaseFolder) -> list[Family]:
    """The groups of a model folder, of which no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder.folder, trust_remote_code=False)
        with torch.device("meta"):
            return find_families(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    except (OSError, ValueError) as error:
        if isinstance(error, TipminiError):
            raise
        raise TipminiError(f"{folder.folder}: no causal model ({one_line(error)})") from None
