r"""Merging: several LoRA adapters become one; how far it is from their sum.

How to add one stands in `tipmini.methods.table`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.methods.sums import Part, Update, having, top
from tipmini.methods.table import METHODS, method_options, preset
from tipmini.methods.tip import Norms, block_of
from tipmini.methods.weighting import Weights, equal_weight, weighed
from tipmini.models.adapter import LoraAdapter, LoraFactors
from tipmini.models.inspection import common_base
from tipmini.models.lowrank import factorise, product_norm, relative_error
from tipmini.options import check_options

Adapters = Iterable[LoraAdapter] | Mapping[str, LoraAdapter]
Measured = Iterable[Norms] | Mapping[str, Norms] | None


def merge(
    adapters: Adapters,
    method: str = "tip",
    *,
    weights: Weights = None,
    norms: Measured = None,
    grams: Measured = None,
    seed: int = 0,
    base_model: str | None = None,
    progress: Callable[[Update], Iterable[str]] = iter,
    **options: object,
) -> LoraAdapter:
    """Merge adapters of one base model into one adapter, in float32 at least, with scaling 1.

    adapters: a list, or a mapping by name; then no bit of the result depends on the mapping's
    order. In a list an adapter's name is its place: "0", "1", ...
    method: a name in METHODS or PRESETS. options: the method's own keyword arguments, e.g. tip's
    sparsity, sign, on and summation (see `method_options`).
    weights: one for each adapter; by default the preset's, else 1 each, a plain sum ("sum"). For T
    adapters "mean" is 1 / T each, "sqrt" 1 / sqrt(T), and "0.7/T" adds up to 0.7. In place of a
    number, {module: number} multiplies the modules' scalings before anything else is done
    (`tipmini weigh` learns such weights).
    norms: one dict for each adapter as `calibrate_adapter` returns it; tip and wanda need them.
    grams: the same with statistic="gram"; regmean needs them.
    Lists go with a list of adapters, mappings with a mapping.
    seed: of the random methods; a draw depends on the seed, the adapter's name and the tensor's.
    base_model: what the result names as its base, and that adapters which name different ones
    belong to it; else those are refused. progress: wraps the modules, e.g. `tqdm.tqdm`.

    A dense result (on="delta") is cut to the option `rank`, by default the adapters' largest; take
    `merge_update` for the whole. A module that some adapters lack is merged from those that have
    it. Raises TipminiError for an unknown method or option, and for adapters, weights or norms
    that don't fit together.
    """
    given = {"weights": weights, "norms": norms, "grams": grams, "seed": seed}
    parts, update = merge_update(adapters, method, base_model=base_model, **given, **options)
    rank = options.get("rank")
    return LoraAdapter(
        {module: _as_factors(module, update[module], parts, rank) for module in progress(update)},
        base_model=parts[0].adapter.base_model,
        task_type=_if_common(part.adapter.task_type for part in parts),
    )


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
    function, settings = _resolve(method, options)
    adapters = _of_one_base(_in_one_dtype(_by_name(adapters)), base_model)
    weights = preset(method).weights if weights is None else weights
    parts = _parts(adapters, weights, norms, grams, seed)
    return parts, function(parts, **settings)


def _as_factors(
    module: str, merged: LoraFactors | Tensor, parts: Sequence[Part], rank: int | None
) -> LoraFactors:
    if isinstance(merged, LoraFactors):
        return merged
    return factorise(merged, rank or top(module, having(module, parts)))


def _resolve(method: str, options: dict[str, object]) -> tuple[Callable[..., Update], dict]:
    """The method's function and its options, a preset's among them; refuses unknown and wrong
    ones."""
    known = method_options(method)
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "no options"
            raise TipminiError(f"merge method {method} has no option {option!r}; it has {listed}")
    chosen = preset(method).method
    check_options(chosen, known | options)
    return METHODS[chosen].function, known | options


def _parts(
    adapters: dict[str, LoraAdapter], weights: object, norms: object, grams: object, seed: int
) -> list[Part]:
    if isinstance(weights, str):
        weights = dict.fromkeys(adapters, equal_weight(weights, len(adapters)))
    weights = _beside(adapters, "weights", weights, 1.0)
    norms = _beside(adapters, "norms", norms, None)
    grams = _beside(adapters, "grams", grams, None)
    pairs = {name: weighed(name, adapters[name], weights[name]) for name in adapters}
    return [
        Part(name, adapter, weight, norms[name], seed, grams[name])
        for name, (adapter, weight) in pairs.items()
    ]


def _by_name(adapters: object) -> dict[str, LoraAdapter]:
    """In an order that no mapping's order changes."""
    if isinstance(adapters, LoraAdapter):
        raise TipminiError("merge takes a list or a mapping of adapters, got a single one")
    named = dict(sorted(adapters.items()) if isinstance(adapters, Mapping) else _places(adapters))
    if not named:
        raise TipminiError("nothing to merge; give at least one adapter")
    for name, adapter in named.items():
        if not isinstance(adapter, LoraAdapter):
            kind = type(adapter).__name__
            raise TipminiError(f"adapter {name} is a {kind}; merge takes what load_adapter returns")
    return named


def _in_one_dtype(adapters: dict[str, LoraAdapter]) -> dict[str, LoraAdapter]:
    """All factors in float32, or in float64 where any is, so that they add and multiply."""
    pairs = [pair for adapter in adapters.values() for pair in adapter.factors.values()]
    dtypes = [factor.dtype for pair in pairs for factor in (pair.a, pair.b)]
    wide = reduce(torch.promote_types, dtypes, torch.float32)

    def widen(_: str, pair: LoraFactors) -> LoraFactors:
        return replace(pair, a=pair.a.detach().to(wide), b=pair.b.detach().to(wide))

    return {name: adapter.map(widen) for name, adapter in adapters.items()}


def _of_one_base(
    adapters: dict[str, LoraAdapter], base_model: str | None
) -> dict[str, LoraAdapter]:
    """All naming one base model: the given one, else the one that they have in common."""
    base = base_model or common_base({name: a.base_model for name, a in adapters.items()})
    return {name: replace(adapter, base_model=base) for name, adapter in adapters.items()}


def _beside(adapters: dict[str, LoraAdapter], what: str, values: object, default: object) -> dict:
    """The values by the adapters' names."""
    if values is None:
        return dict.fromkeys(adapters, default)
    named = dict(values if isinstance(values, Mapping) else _places(values))
    if named.keys() != adapters.keys():
        have, need = ", ".join(named), ", ".join(adapters)
        raise TipminiError(f"{what} must be one for each adapter ({need}), got ({have})")
    return named


def _places(values: Iterable) -> list[tuple[str, object]]:
    return [(str(place), value) for place, value in enumerate(values)]


def _if_common(values: Iterable[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


# How far a merge is from the exact sum of its adapters --------------------------------------------
class Fidelity(Mapping[str, LoraFactors | Tensor]):
    """An update that is measured against the exact one as it is read, module by module.

    exact: LoRA factors of the same modules, as `merge_update(adapters, "cat")` returns them.
    """

    def __init__(self, update: Update, exact: Update) -> None:
        self.update, self.exact = update, exact
        self.apart: dict[str, float] = {}  # ||M - E||
        self.norm: dict[str, float] = {}  # ||E||

    def __getitem__(self, module: str) -> LoraFactors | Tensor:
        merged, exact = self.update[module], self.exact[module]
        self.norm[module] = _norm(exact)
        off = relative_error(merged, exact) * self.norm[module]
        self.apart[module] = off if self.norm[module] else _norm(merged)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self.update)

    def __len__(self) -> int:
        return len(self.update)

    def whole(self) -> float | None:
        """Of all modules read so far as one; None where their exact sum is 0."""
        return _ratio(math.hypot(*self.apart.values()), math.hypot(*self.norm.values()))

    def modules(self) -> dict[str, float | None]:
        """Of each module read so far; None where its exact sum is 0."""
        return {module: _ratio(self.apart[module], norm) for module, norm in self.norm.items()}

    def layers(self) -> dict[str, float]:
        """Of each transformer block read so far; without those where its exact sum is 0."""
        blocks: dict[str, list[str]] = {}
        for module in self.norm:
            blocks.setdefault(block_of(module), []).append(module)
        found = {
            block: _ratio(
                math.hypot(*(self.apart[module] for module in modules)),
                math.hypot(*(self.norm[module] for module in modules)),
            )
            for block, modules in blocks.items()
        }
        return {block: ratio for block, ratio in found.items() if ratio is not None}


def _ratio(apart: float, norm: float) -> float | None:
    return apart / norm if norm else None


def _norm(merged: LoraFactors | Tensor) -> float:
    if isinstance(merged, Tensor):
        return merged.double().norm().item()
    return product_norm(merged.b.double() * merged.scaling, merged.a)
