"""Masks of groups: on a model's forward pass, updated as pruning goes on, and in files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tipmini.errors import TipminiError
from tipmini.methods.criteria import NEEDS_WEIGHT_GRADIENT, Signals, group_scores
from tipmini.methods.groups import CHANNELS, HEADS, Family, find_families
from tipmini.models.files import TensorFile
from tipmini.papers.dare import named_generator
from tipmini.papers.loraprune import (
    mask_outputs,
    moving_average,
    offsets,
    share_mask,
    staggered_count,
    threshold_mask,
)

Masks = dict[str, Tensor]  # family -> (count,) bool, False where a group is gone


class Pruner:
    """Group importances that are averaged over steps, and the masks that follow from them.

    final: the groups of each family to be gone in the end. threshold "layer": the least important
    of every family go, in the end the same number in every layer where `final` is the same; on the
    way there layers take turns (`staggered_count`). "global": p of Eq. 12 is one number for all
    families of a kind; shares then differ from layer to layer, and the total is at least that of
    `final` (groups that tie at p go together). One group of each family stays.
    """

    def __init__(
        self,
        families: Sequence[Family],
        final: Mapping[str, int],
        *,
        decay: float = 0.9,
        threshold: str = "layer",
    ) -> None:
        self.final, self.decay, self.threshold = final, decay, threshold
        self.averages = {f.name: torch.zeros(f.count) for f in families}  # Eq. 11 starts at 0
        self.masks: Masks = {f.name: torch.ones(f.count, dtype=torch.bool) for f in families}
        self.losing = [  # of each kind, the families that lose any group
            [f.name for f in families if f.kind == kind and final[f.name]]
            for kind in (HEADS, CHANNELS)
        ]
        self.observed = self.skipped = 0

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Eq. 11: take up one step's group importances; as in the authors' code a step with any
        NaN is left out."""
        if any(found.isnan().any() for found in scores.values()):
            self.skipped += 1
            return
        self.observed += 1
        for name, found in scores.items():
            self.averages[name] = moving_average(self.averages[name], found.cpu(), self.decay)

    def remove(self, fraction: float) -> None:
        """Let this fraction of `final` be gone; what is gone stays gone.

        Raises TipminiError where there is no importance to tell groups apart by.
        """
        if not self.observed:
            raise TipminiError("no step had finite importances; take a lower learning rate or rows")
        for names in self.losing:
            if self.threshold == "global":
                self._remove_below(names, fraction)
                continue
            for name, offset in zip(names, offsets(len(names)), strict=True):
                count = staggered_count(self.final[name], fraction, offset)
                self.masks[name] = share_mask(self.averages[name], count, self.masks[name])

    def _remove_below(self, names: list[str], fraction: float) -> None:
        """One threshold for all; what is gone ranks lowest, a family's best highest."""
        count = int(sum(self.final[name] for name in names) * fraction + 1e-9)
        if not count:
            return
        ranked = {n: self.averages[n].masked_fill(~self.masks[n], -torch.inf) for n in names}
        for average in ranked.values():
            average[average.argmax()] = torch.inf
        p = torch.cat(list(ranked.values())).sort().values[count - 1].item()
        self.masks |= {name: threshold_mask(average, p) for name, average in ranked.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Groups of each family that are gone."""
        return {name: int((~mask).sum()) for name, mask in self.masks.items()}


@contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """LoRAPrune's masked forward (Eq. 13): the outputs of a family's first projections times M.

    The mask covers W_0's and the adapter's part alike. o and down then read zeros where a group is
    gone, so their columns take no part. `masks` is read anew at every pass: it may change. Raises
    TipminiError for masks that are not the model's.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    families = [family for family in find_families(causal) if family.name in masks]
    for family in families:
        if (shape := tuple(masks[family.name].shape)) != (family.count,):
            what = "groups of heads" if family.kind == HEADS else "channels"
            raise TipminiError(
                f"mask of {family.name} is {shape}, the model has {family.count} {what}"
            )
    with ExitStack() as stack:
        for family in families:

            def hook(module: nn.Module, inputs: object, z: Tensor, name=family.name) -> Tensor:
                return mask_outputs(z, masks[name].to(z.device))

            for module in (member.module for member in family.members if member.dim == 0):
                handle = causal.get_submodule(module).register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


def save_masks(masks: Masks) -> bytes:
    """A safetensors file of bool tensors, one a family."""
    from safetensors.torch import save

    return save({name: mask.contiguous() for name, mask in masks.items()})


def load_masks(file: Path) -> Masks:
    """The masks of a safetensors file; raises TipminiError for anything else."""
    found = TensorFile(file, finite=False)
    for name, entry in found.entries.items():
        if entry.dtype != "BOOL" or len(entry.shape) != 1:
            raise TipminiError(f"{file}: {name} is no mask; a mask is one row of booleans")
    return {name: found[name].clone() for name in found}


# Group importances of a whole model ---------------------------------------------------------------
def signals_of(module: nn.Module, norm: Tensor | None = None) -> Signals:
    """What a criterion may read of a linear module, with PEFT's LoRA around it or not."""
    base = base_layer(module)
    adapter = next(iter(getattr(module, "active_adapters", [])), None)
    norm = norm if norm is None else norm.to(base.weight.device)
    facts: dict[str, object] = {"scale": getattr(base, "scale", None)}  # of Int8Linear
    if adapter in getattr(module, "lora_A", ()):
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        facts |= {"a": a.detach(), "b": b.detach(), "grad_a": a.grad, "grad_b": b.grad}
        facts["scaling"] = module.scaling[adapter]
    return Signals(base.weight.detach(), grad=base.weight.grad, input_norm=norm, **facts)


@torch.no_grad()
def all_scores(
    causal: nn.Module,
    families: Iterable[Family],
    method: str,
    reduction: str = "paper",
    *,
    norms: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """{family: (count,) importances}; a family's modules add theirs up."""
    if method == "random":
        return {f.name: random_scores(f, seed) for f in families}
    found: dict[str, Tensor] = {}
    for family in families:
        for module, dim in family.members:
            signals = signals_of(causal.get_submodule(module), (norms or {}).get(module))
            scores = group_scores(signals, family.count, dim, method, reduction)
            found[family.name] = found.get(family.name, 0) + scores
    return found


def random_scores(family: Family, seed: int) -> Tensor:
    """Importances that depend on the seed and the family's name alone."""
    return torch.rand(family.count, generator=named_generator(seed, family.name))


def linear_weights(causal: nn.Module, families: Iterable[Family]) -> list[nn.Parameter]:
    """The base weights of all members."""
    modules = [causal.get_submodule(m.module) for f in families for m in f.members]
    return [base_layer(module).weight for module in modules]


def base_layer(module: nn.Module) -> nn.Module:
    """The linear layer itself, without PEFT's around it."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def require_gradients(method: str, weights: Iterable[nn.Parameter]) -> None:
    """Let the base weights have gradients, if a method reads them."""
    for weight in weights if method in NEEDS_WEIGHT_GRADIENT else ():
        weight.requires_grad_(True)
