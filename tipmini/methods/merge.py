r"""Merging: several LoRA adapters become one; how far it is from their sum.

How to add a method stands in `tipmini.methods.table`. What it results in is an update: for every
module LoRA factors, or a dense delta where no factors give it. It may be computed module by module
as it is read, so that a merge of a large model's adapters holds one delta at a time.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pkgutil import resolve_name

import torch
from torch import Tensor

from tipmini.errors import (
    TipminiError,
    check_options,
    check_ranks,
    check_shapes,
    is_finite,
    is_number,
)
from tipmini.masks import in_threads
from tipmini.methods.balancing import balanced
from tipmini.methods.table import (
    METHODS,
    equal_weight,
    method_options,
    preset,
    total_over_norms,
)
from tipmini.models.adapter import LoraAdapter
from tipmini.models.base_folder import modules_of_base
from tipmini.models.factors import LoraFactors
from tipmini.models.files import largest
from tipmini.models.identity import (
    common_base,
    common_revision,
    natural_order,
    spellings,
)
from tipmini.models.lowrank import factorise, product_norm, relative_error, stack, truncate

Adapters = Iterable[LoraAdapter] | Mapping[str, LoraAdapter]
Weight = float | Mapping[str, float]  # of an adapter: one, or one for each of its modules
Weights = str | float | Iterable[Weight] | Mapping[str, Weight] | None
Norms = Mapping[str, Tensor]
Measured = Iterable[Norms] | Mapping[str, Norms] | None
Update = Mapping[str, LoraFactors | Tensor]


@dataclass(frozen=True)
class Part:
    """One adapter of a merge, its weight in the sum, and what a method may need besides: its input
    norms, its Gram matrices, and the seed that with the name decides its random draws.

    The factors of all parts are of one dtype, float32 or float64."""

    name: str
    adapter: LoraAdapter
    weight: float = 1.0
    norms: Norms | None = None
    seed: int = 0
    grams: Mapping[str, Tensor] | None = None


Parts = Sequence[Part]
Transform = Callable[[Part, str, Tensor], Tensor]  # (part, name of a tensor, tensor) -> tensor
Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]  # tensors, weights -> tensor

ROWS = 512  # of deltas at a time where many are put together; the result does not depend on it


def merge(
    adapters: Adapters,
    method: str = "tip",
    *,
    weights: Weights = None,
    norms: Measured = None,
    grams: Measured = None,
    seed: int = 0,
    base_model: str | None = None,
    heads: str = "refuse",
    progress: Callable[[Update], Iterable[str]] = iter,
    **options: object,
) -> LoraAdapter:
    """Merge adapters of one base model into one adapter, in float32 at least, with scaling 1.

    adapters: a list, or a mapping by name; then no bit of the result depends on the mapping's
    order. In a list an adapter's name is its place: "0", "1", ...
    method: a name in METHODS or PRESETS. options: the method's own keyword arguments, e.g. tip's
    sparsity, sign, on and summation (see `method_options`).
    weights: one number for all, or one for each adapter; by default the preset's (1 for an adapter
    alone), else 1 each, a plain sum ("sum"). For T adapters "mean" is 1 / T each, "sqrt"
    1 / sqrt(T), and "0.7/T" adds up to 0.7; so does "0.7/norm", in proportion to 1 / the norm of
    each update, and "0.7/module-norm", module by module. In place of a number, {module: number}
    multiplies the modules' scalings before anything else is done (`tipmini weigh` learns such
    weights). With ties and knots an adapter of weight 0 still votes on signs, as in PEFT: leave it
    out instead.
    norms: one dict for each adapter as `calibrate_adapter` returns it; tip and wanda need them.
    grams: the same with statistic="gram"; regmean needs them.
    Lists go with a list of adapters, mappings with a mapping.
    seed: of the random methods; a draw depends on the seed, the adapter's name and the tensor's.
    base_model: what the result names as its base, and that adapters which name different ones
    belong to it; else those are refused. Where it is a folder, its names of modules count, should
    the adapters have several for one. heads: what becomes of modules that were trained whole
    (`load_adapter(heads=True)`): "refuse", "average", or the name of the adapter whose are kept.
    progress: wraps the modules, e.g. `tqdm.tqdm`.

    A dense result (on="delta") is cut to the option `rank`, by default the adapters' largest; take
    `merge_update` for the whole. A module that some adapters lack is merged from those that have
    it. Raises TipminiError for an unknown method or option, for factors that aren't finite, and
    for adapters, weights or norms that don't fit together.
    """
    given = {"weights": weights, "norms": norms, "grams": grams, "seed": seed}
    parts, update = merge_update(adapters, method, base_model=base_model, **given, **options)
    merged = {}
    for module in progress(update):
        found = update[module]
        if isinstance(found, Tensor):
            found = factorise(found, options.get("rank") or top(module, having(module, parts)))
        merged[module] = found
    return assembled(parts, merged, heads)


COMMON = ("base_model", "task_type", "revision", "auto_mapping")  # kept where all have the same


def assembled(
    parts: Sequence[Part], merged: Mapping[str, LoraFactors], heads: str = "refuse"
) -> LoraAdapter:
    """The adapter of merged factors, with all that is kept of the parts' beside them."""
    kept = {name: _common(getattr(part.adapter, name) for part in parts) for name in COMMON}
    kept["fan_in_fan_out"] = any(part.adapter.fan_in_fan_out for part in parts)
    if found := merged_heads(parts, heads):
        owner = next(part.adapter for part in parts if found.keys() <= part.adapter.heads.keys())
        kept |= {"heads": found, "modules_to_save": owner.modules_to_save}
    return LoraAdapter(merged, **kept)


def _common(values: Iterable[object]) -> object:
    first, *others = values
    return first if all(other == first for other in others) else None


def merged_heads(parts: Sequence[Part], how: str) -> dict[str, Tensor]:
    """The modules that were trained whole, as `merge` is asked for them."""
    have = {part.name: part.adapter.heads for part in parts if part.adapter.heads}
    known = ("refuse", "average", *(part.name for part in parts))
    if how not in known:
        raise TipminiError(f"heads must be one of {', '.join(known)}, got {how!r}")
    if how in have or not have:
        return dict(have.get(how, {}))
    first = next(iter(have))
    if how != "average":
        told = f"adapter {first} has {', '.join(have[first])}, trained whole"
        raise TipminiError(f"{told}; keep one adapter's (heads, --heads NAME) or average them")
    for name, own in have.items():
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in have[first].items()}:
            raise TipminiError(f"heads of {name} and {first} are not alike; keep one adapter's")
    stacked = {n: torch.stack([own[n].float() for own in have.values()]) for n in have[first]}
    return {name: tensors.mean(0).to(have[first][name].dtype) for name, tensors in stacked.items()}


def merge_update(
    adapters: Adapters,
    method: str = "tip",
    *,
    weights: Weights = None,
    norms: Measured = None,
    grams: Measured = None,
    seed: int = 0,
    base_model: str | None = None,
    **options: object,
) -> tuple[list[Part], Update]:
    """The adapters as parts, and their update: factors, or the whole (d, k) delta of a module.

    Arguments and errors as `merge`'s. Each module is computed when it is read, so that the deltas
    of a large model need not be held at once. The parts' adapters name the common base.
    """
    chosen = preset(method)
    if chosen.method not in METHODS:
        method_options(method)  # refuses it
    function = resolve_name(METHODS[chosen.method].place)
    known = (function.__kwdefaults__ or {}) | chosen.options
    for option in (option for option in options if option not in known):
        listed = ", ".join(known) or "no options"
        raise TipminiError(f"merge method {method} has no option {option!r}; it has {listed}")
    check_options(chosen.method, known | options)

    adapters = _by_name(adapters)
    base = base_model or common_base({name: a.base_model for name, a in adapters.items()})
    revision = common_revision({name: a.revision for name, a in adapters.items()})
    called = spellings({name: a.factors for name, a in adapters.items()}, modules_of_base(base))
    if weights is None:
        weights = chosen.weights
    total = total_over_norms(weights) if isinstance(weights, str) else None
    if isinstance(weights, str):
        weights = 1.0 if total else equal_weight(weights, len(adapters))
    if is_number(weights):
        weights = dict.fromkeys(adapters, weights)
    weights = _beside(adapters, "weights", weights)
    norms, grams = _beside(adapters, "norms", norms), _beside(adapters, "grams", grams)
    for name, names in called.items():
        if any(own != new for own, new in names.items()):
            factors = {names[own]: pair for own, pair in adapters[name].factors.items()}
            adapters[name] = replace(adapters[name], factors=factors)
            for given in (norms, grams, weights):
                given[name] = _renamed(given[name], names)
    for name, adapter in adapters.items():  # a folder can't have such; these were made in memory
        for module, pair in adapter.factors.items():
            if not math.isfinite(largest(pair.a) + largest(pair.b)):
                told = f"{module} of adapter {name} has NaN or Inf"
                raise TipminiError(f"{told}; every number must be finite")
    if total:
        weights = balanced(total, adapters)
    pairs = [pair for adapter in adapters.values() for pair in adapter.factors.values()]
    dtypes = [factor.dtype for pair in pairs for factor in (pair.a, pair.b)]
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    parts = []
    for name, adapter in adapters.items():
        adapter, weight = _weighed(name, adapter, weights[name], dtype)
        adapter = replace(adapter, base_model=base, revision=revision)
        parts.append(Part(name, adapter, weight, norms[name], seed, grams[name]))
    return parts, function(parts, **known | options)


def _by_name(adapters: object) -> dict[str, LoraAdapter]:
    """In an order that no mapping's order changes."""
    if isinstance(adapters, LoraAdapter):
        raise TipminiError("merge takes a list or a mapping of adapters, got a single one")
    named = _named(adapters)
    if isinstance(adapters, Mapping):
        named = dict(sorted(named.items()))
    if not named:
        raise TipminiError("nothing to merge; give at least one adapter")
    for name, adapter in named.items():
        if not isinstance(adapter, LoraAdapter):
            kind = type(adapter).__name__
            raise TipminiError(f"adapter {name} is a {kind}; merge takes what load_adapter returns")
    return named


def _renamed(values: object, names: Mapping[str, str]) -> object:
    """What is told of modules, by their new names; "<module>.lora_B" is told of A x."""
    if not isinstance(values, Mapping):
        return values
    both = names | {f"{own}.lora_B": f"{new}.lora_B" for own, new in names.items()}
    return {both.get(name, name): value for name, value in values.items()}


def _named(values: Iterable | Mapping) -> dict[str, object]:
    """A list's by their places."""
    places = ((str(place), value) for place, value in enumerate(values))
    return dict(values if isinstance(values, Mapping) else places)


def _beside(adapters: Mapping[str, LoraAdapter], what: str, values: object) -> dict[str, object]:
    """The values by the adapters' names, None for each where none are given."""
    named = dict.fromkeys(adapters) if values is None else _named(values)
    if named.keys() != adapters.keys():
        have, need = ", ".join(named), ", ".join(adapters)
        raise TipminiError(f"{what} must be one for each adapter ({need}), got ({have})")
    return named


def _weighed(
    name: str, adapter: LoraAdapter, weight: Weight, dtype: torch.dtype
) -> tuple[LoraAdapter, float]:
    """The adapter in one dtype and its one weight; weights of modules go into their scalings."""
    by_module = isinstance(weight, Mapping)
    for module in adapter.factors.keys() ^ weight.keys() if by_module else ():
        raise TipminiError(f"the weights of adapter {name} must be of its modules; see {module}")
    told = {f"{m} of {name}": w for m, w in weight.items()} if by_module else {}
    for what, own in (told or {f"adapter {name}": weight}).items():
        if not is_finite(own):
            raise TipminiError(f"the weight of {what} must be finite, got {own}")

    def changed(module: str, pair: LoraFactors) -> LoraFactors:
        a, b = pair.a.detach().to(dtype), pair.b.detach().to(dtype)
        return LoraFactors(a, b, pair.scaling * weight[module] if by_module else pair.scaling)

    return adapter.map(changed), 1.0 if by_module else float(weight)


# Sums of adapters: factor by factor ("linear"), exactly ("cat"), exactly then cut ("svd") ---------
class Lazy(Mapping[str, LoraFactors | Tensor]):
    """An update that is computed module by module, each time it is read."""

    def __init__(self, modules: Iterable[str], compute: Callable[[str], LoraFactors | Tensor]):
        self.names, self.compute = list(modules), compute

    def __getitem__(self, module: str) -> LoraFactors | Tensor:
        return self.compute(module)

    def __contains__(self, module: object) -> bool:
        return module in self.names  # without computing it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def lazy(parts: Parts, compute: Callable[[str, Parts], LoraFactors | Tensor]) -> Lazy:
    """`compute(module, the parts that have it)` for every module; refuses shapes that differ."""
    modules = natural_order({module for part in parts for module in part.adapter.factors})
    for module in modules:  # all of them before any is merged
        check_shapes(module, _factors(module, parts))
    return Lazy(modules, lambda module: compute(module, having(module, parts)))


def having(module: str, parts: Parts) -> list[Part]:
    """The parts whose adapter changes the module."""
    return [part for part in parts if module in part.adapter.factors]


def _factors(module: str, parts: Parts) -> dict[str, LoraFactors]:
    return {part.name: part.adapter.factors[module] for part in having(module, parts)}


def top(module: str, parts: Parts) -> int:
    """The largest rank that an adapter has on the module."""
    return max(part.adapter.factors[module].rank for part in parts)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Stacked and summed as PEFT does, so that the results agree to the last bit."""
    scaled = [tensor * weight for tensor, weight in zip(tensors, weights, strict=True)]
    return torch.stack(scaled).sum(0)


def sum_linear(parts: Parts, combine: Combine = weighted_sum) -> Update:
    """Sum of the factors A and of the factors B (PEFT's linear; the product has cross terms)."""
    update = lazy(parts, lambda module, own: sum_factors(module, own, combine))
    for module in update:
        check_ranks(module, _factors(module, parts))
    return update


def sum_cat(parts: Parts) -> Update:
    """Factors stacked along the rank (PEFT's cat): the exact sum of the deltas, task arithmetic."""
    return lazy(parts, stack_factors)


def sum_svd(parts: Parts, *, rank: int | None = None) -> Update:
    """The exact sum truncated to a rank by SVD, by default the adapters' largest (PEFT's svd)."""
    return lazy(
        parts, lambda module, own: truncate(stack_factors(module, own), rank or top(module, own))
    )


def sum_factors(module: str, parts: Parts, combine: Combine = weighted_sum) -> LoraFactors:
    r"""$A^* = \sum \mathrm{sgn}(w s) \sqrt{|w s|} A$ and $B^* = \sum \sqrt{|w s|} B$.

    The sign sits on A alone: on both it would cancel.
    """
    pairs = [part.adapter.factors[module] for part in parts]
    shares = [part.weight * pair.scaling for part, pair in zip(parts, pairs, strict=True)]
    roots = [math.sqrt(abs(share)) for share in shares]
    signed = [math.copysign(root, share) for root, share in zip(roots, shares, strict=True)]
    a = combine([pair.a for pair in pairs], signed)
    b = combine([pair.b for pair in pairs], roots)
    return LoraFactors(a, b, scaling=1.0)


def stack_factors(module: str, parts: Parts) -> LoraFactors:
    r"""$A^*$: all $w s A$ above each other; $B^*$: all B side by side; $B^* A^* = \sum w s B A$."""
    pairs = []
    for part in parts:
        factors = part.adapter.factors[module]
        pairs.append((factors.b, factors.a * part.weight * factors.scaling))
    return stack(pairs)


def merge_tensors(
    parts: Parts,
    change: Transform,
    *,
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
    combine: Combine = weighted_sum,
) -> Update:
    """Change every tensor of every adapter, then add the adapters up.

    on="factors" changes A and B, named "<module>.lora_A" and "<module>.lora_B", and adds up by
    `summation`, cut to `rank` with "svd"; on="delta" changes s B A, named "<module>", and the
    update is dense; `merge` cuts it to `rank`. Several threads call change at once; it may
    overwrite the delta that it is given, but no factor. combine puts the changed tensors of one
    place together; "cat" and "svd" don't use it.
    """
    if on == "delta":
        return lazy(parts, lambda module, own: _sum_deltas(module, own, change, combine))

    def both(place: tuple[Part, str]) -> LoraFactors:
        part, module = place
        factors = part.adapter.factors[module]
        a = change(part, f"{module}.lora_A", factors.a)
        b = change(part, f"{module}.lora_B", factors.b)
        return replace(factors, a=a, b=b)

    places = [(part, module) for part in parts for module in part.adapter.modules]
    pairs = iter(in_threads(both, places))  # one draws or sorts by itself
    adapters = [part.adapter.map(lambda module, factors: next(pairs)) for part in parts]
    changed = [replace(part, adapter=own) for part, own in zip(parts, adapters, strict=True)]
    if summation == "linear":
        return sum_linear(changed, combine)
    return sum_cat(changed) if summation == "cat" else sum_svd(changed, rank=rank)


def _sum_deltas(module: str, parts: Parts, change: Transform, combine: Combine) -> Tensor:
    """Changed deltas put together: added one at a time, else by the same rows of all of them."""
    if combine is not weighted_sum:
        changed = (change(part, module, part.adapter.factors[module].delta()) for part in parts)
        rows = zip(*(tensor.split(ROWS) for tensor in changed), strict=True)
        return torch.cat([combine(tensors, [part.weight for part in parts]) for tensors in rows])
    total = room = None
    for part in parts:  # all at once would not fit beside a large model's: one room for all
        room = part.adapter.factors[module].delta(out=room)
        delta = change(part, module, room)
        if total is None:
            total = delta * part.weight
            continue
        for rows, more in zip(total.split(ROWS), delta.split(ROWS), strict=True):
            rows += more.mul_(part.weight)  # fused, it would round by where a thread's rows end
    return total


CANCELLED = 1e-6  # of the factors' norms: an exact sum below it is what rounding left of nothing


# How far a merge is from the exact sum of its adapters --------------------------------------------
class Fidelity(Lazy):
    """An update that is measured against the exact one as it is read, module by module.

    exact: LoRA factors of the same modules, as `merge_update(adapters, "cat")` returns them.
    """

    def __init__(self, update: Update, exact: Update) -> None:
        super().__init__(update, self._measured)
        self.update, self.exact = update, exact
        self.apart: dict[str, float] = {}  # ||M - E||
        self.norm: dict[str, float] = {}  # ||E||

    def _measured(self, module: str) -> LoraFactors | Tensor:
        merged, exact = self.update[module], self.exact[module]
        norm, sizes = _norm(exact), exact.a.norm().item() * exact.b.norm().item()
        self.norm[module] = norm if norm > CANCELLED * sizes * abs(exact.scaling) else 0.0
        off = relative_error(merged, exact) * self.norm[module]
        self.apart[module] = off if self.norm[module] else _norm(merged)
        return merged

    def _of(self, modules: Iterable[str]) -> float | None:
        modules = list(modules)
        norm = math.hypot(*(self.norm[module] for module in modules))
        return math.hypot(*(self.apart[module] for module in modules)) / norm if norm else None

    def whole(self) -> float | None:
        """Of all modules read so far as one; None where their exact sum is 0."""
        return self._of(self.norm)

    def modules(self) -> dict[str, float | None]:
        """Of each module read so far; None where its exact sum is 0."""
        return {module: self._of([module]) for module in self.norm}

    def layers(self) -> dict[str, float]:
        """Of each transformer block read so far; without those where its exact sum is 0."""
        found = {block: self._of(modules) for block, modules in in_blocks(self.norm).items()}
        return {block: error for block, error in found.items() if error is not None}


BLOCK = re.compile(r".*?\.\d+(?=\.)")  # up to the first number: model.layers.0


def block_of(module: str) -> str:
    """The transformer block of a module, which itself is one where it lies outside of all."""
    block = BLOCK.match(module)
    return block[0] if block else module


def in_blocks(modules: Iterable[str]) -> dict[str, list[str]]:
    """{block: its modules}, both in the order in which they come."""
    blocks: dict[str, list[str]] = {}
    for module in modules:
        blocks.setdefault(block_of(module), []).append(module)
    return blocks


def _norm(merged: LoraFactors | Tensor) -> float:
    if isinstance(merged, Tensor):
        return merged.double().norm().item()
    return product_norm(merged.b.double() * merged.scaling, merged.a)
