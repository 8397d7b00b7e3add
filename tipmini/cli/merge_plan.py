"""What a merge's request names, opened; and what a dry run tells of it, by the headers alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tipmini.cli.merge_request import Request
from tipmini.errors import (
    TipminiError,
    check_ranks,
    check_shapes,
    common_base,
    input_gram,
    input_norm,
    refuse_negative,
)
from tipmini.methods.table import METHODS, TARGETS, preset
from tipmini.methods.weighting import refuse_unlearnt
from tipmini.models import base_folder
from tipmini.models.base_folder import BaseFolder, open_base
from tipmini.models.files import FLOATING, TensorFile
from tipmini.models.inspection import FactorsHeader, read_adapter_header
from tipmini.models.peft_folder import refuse_taken
from tipmini.models.peft_settings import FLOAT32_MAX

if TYPE_CHECKING:
    from tipmini.models.adapter import LoraAdapter
    from tipmini.models.inspection import AdapterHeader

    Adapter = LoraAdapter | AdapterHeader


@dataclass(frozen=True)
class Inputs:
    """Adapters whole or as headers; everything else is read when it is needed."""

    adapters: list[Any]
    norms: list[TensorFile] | None
    grams: list[TensorFile] | None
    weights: str | list  # as `tm.merge` takes them
    base: BaseFolder | None  # of --into
    base_model: str | None  # what all adapters belong to

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of every module that is merged."""
        factors = [item for adapter in self.adapters for item in adapter.factors.items()]
        return {module: pair.shape for module, pair in factors}


def open_inputs(
    request: Request,
    load: "Callable[[Path], Adapter]",
    learnt: "Callable[[Path, Mapping[str, Adapter]], list]",
) -> Inputs:
    """Open all inputs; raises TipminiError for one that can't be read or doesn't fit the base.

    load: of an adapter's folder. learnt: the adapters' weights of a file.
    """
    adapters = {str(path): load(path) for path in request.adapters}
    named = {path: adapter.base_model for path, adapter in adapters.items()}
    weights = request.weights
    inputs = Inputs(
        [adapters[str(path)] for path in request.adapters],
        _tensor_files(request.norms),
        _tensor_files(request.grams),
        learnt(weights, adapters) if isinstance(weights, Path) else weights,
        open_base(request.into) if request.into else None,
        request.base_model or common_base(named),
    )
    if inputs.base:
        inputs.base.check(inputs.shapes)
    return inputs


def _tensor_files(paths: list[Path] | None) -> list[TensorFile] | None:
    return None if paths is None else [TensorFile(path) for path in paths]


def refuse_out(request: Request, inputs: Inputs) -> None:
    """Raise TipminiError, before the long part, for a folder that the result can't go into."""
    if inputs.base:
        base_folder.refuse_taken(request.out, inputs.base.size)
    else:
        refuse_taken(request.out)


def describe(request: Request, inputs: Inputs) -> dict[str, object]:
    """What is merged how into what."""
    return {
        "out": str(request.out),
        "into": str(request.into) if request.into else None,
        "method": request.method,
        "options": request.options,
        "seed": request.seed,
        "weights": str(request.weights) if isinstance(request.weights, Path) else request.weights,
        "adapters": [str(path) for path in request.adapters],
        "modules": len(inputs.shapes),
    }


# `tipmini merge --dry-run` ------------------------------------------------------------------------
# Speeds of two ordinary cores, so that a larger machine is done earlier.
DISK = 800e6  # bytes a second, read or written; between a SATA and an NVMe disk
FLOPS = 15e9  # of products and decompositions, most of them in float64
MODULE = 1e-3  # seconds of a module: some thirty calls of torch on small tensors
NORM = 2e-3  # seconds of an adapter's module whose norms are looked up in their file
LANCZOS = 150  # products of a matrix with a vector until the singular vectors are found
PROCESS = 260e6  # bytes of Python with torch, before an adapter is read
SCIPY = 60e6  # bytes more where a delta is cut
WHOLE = ("ties", "dare_ties", "magnitude")  # no delta of theirs is changed row by row
TIMES = ("cat", "svd")  # a weight multiplies their factors or deltas as it is
SUMMED = {"cat": "cat", "svd": "svd", "regmean": "cat", "knots": "cat"}  # others: linear
COPIES = 3  # of an adapter that is written: itself, contiguous, and its bytes


def reckon(request: Request) -> dict[str, object]:
    """What `run` would do, and about what it would cost; writes nothing, reads no numbers.

    Raises the TipminiError that `run` would, as far as names and shapes tell.
    """
    inputs = open_inputs(request, read_adapter_header, refuse_unlearnt)
    refuse_out(request, inputs)
    _refuse_weights(request, inputs)
    modules = [_module(name, request, inputs) for name in inputs.shapes]
    for module in modules:
        module.check(inputs)
    width = _width(inputs)
    size = inputs.base.size if inputs.base else 0
    output = size or width * sum(m.rank * sum(m.shape) for m in modules)
    seconds = sum(m.seconds(whole=bool(inputs.base)) for m in modules)
    estimate = {
        "output_bytes": output,
        "memory_bytes": _memory(inputs, modules, output, width),
        "seconds": seconds + (size + output) / DISK,
    }
    return describe(request, inputs) | {"dry_run": True, "estimate": estimate}


def _refuse_weights(request: Request, inputs: Inputs) -> None:
    """What a weight alone tells."""
    weights = inputs.weights
    if isinstance(weights, str):
        return  # a rule's are above 0, and no larger than 1e18
    if preset(request.method).method == "regmean":
        refuse_negative({str(place): weight for place, weight in enumerate(weights)})
    method = preset(request.method).method
    times = request.options.get("on") == "delta" or method in TIMES  # else its root
    if times and any(abs(weight) > FLOAT32_MAX for weight in weights) and _width(inputs) == 4:
        raise TipminiError("the sum overflows torch.float32; take smaller weights")


def _width(inputs: Inputs) -> int:
    """Bytes of a merged number: of float32, or of float64 where any factor is."""
    pairs = [pair for adapter in inputs.adapters for pair in adapter.factors.values()]
    return max(4, *(FLOATING[entry.dtype] for pair in pairs for entry in (pair.a, pair.b)))


@dataclass(frozen=True)
class _Module:
    """How one module is merged: of which factors, by the adapters' places, and by what."""

    name: str
    pairs: Mapping[str, FactorsHeader]
    method: str
    options: Mapping[str, object]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k)."""
        return next(iter(self.pairs.values())).shape

    @property
    def ranks(self) -> int:
        """Of the exact sum."""
        return sum(pair.rank for pair in self.pairs.values())

    @property
    def dense(self) -> bool:
        return self.options.get("on") == "delta"

    @property
    def summation(self) -> str:
        """How factors are put together."""
        return self.options.get("summation", SUMMED.get(self.method, "linear"))

    @property
    def rank(self) -> int:
        """Of the merged factors; of knots at most, since null directions are left out."""
        if self.summation == "cat":
            return min(self.ranks, *self.shape) if self.method == "knots" else self.ranks
        top = max(pair.rank for pair in self.pairs.values())
        if self.dense:
            return min(self.options["rank"] or top, *self.shape)
        if self.summation == "svd":
            return min(self.options["rank"] or top, *self.shape, self.ranks)
        return top

    @property
    def by_adapter(self) -> bool:
        """Whether one threshold is taken of all of an adapter's tensors."""
        return self.options.get("variant") == "authors" and self.method == "ties"

    @property
    def changed(self) -> int:
        """How many numbers the method changes."""
        d, k = self.shape
        return len(self.pairs) * d * k if self.dense else self.ranks * (d + k)

    def check(self, inputs: Inputs) -> None:
        """Raise TipminiError for what the merge would refuse of the module, by its shapes."""
        check_shapes(self.name, self.pairs)
        if self.summation == "linear" and not self.dense:
            check_ranks(self.name, self.pairs)
        for place, pair in self.pairs.items():
            if METHODS[self.method].needs == "norms":
                channels = {"a": self.shape[1], "b": pair.rank, "delta": self.shape[1]}
                for name in TARGETS[self.options["on"]]:
                    norms = inputs.norms[int(place)].entries
                    input_norm(norms, self.name, name, channels[name])
            if METHODS[self.method].needs == "grams":
                input_gram(inputs.grams[int(place)].entries, self.name, self.shape[1])

    def seconds(self, whole: bool) -> float:
        """whole: the update is not cut to factors, but added to a base."""
        d, k = self.shape
        added = 0
        read = len(self.pairs) * NORM if METHODS[self.method].needs == "norms" else 0
        flops = self._merge_flops() + self._fidelity_flops(whole)
        if self.dense and not whole:
            flops += self._cut_flops()
        if whole:
            added = 3 * d * k  # the base's weight, the sum, the rounded one
            flops += 0 if self.dense else 2 * d * k * self.rank
        if self.method == "regmean":
            added += 10 * len(self.pairs) * k * k  # each Gram matrix is read and weighted twice
        rounds = 3 if self.by_adapter else 1  # for the threshold, the majority, the merge
        numbers = (rounds * self.changed * METHODS[self.method].cost + added) / 1e9
        return MODULE + read + numbers + flops / FLOPS

    def work(self) -> int:
        """Bytes held while the module is merged and compared, most of them in float64."""
        d, k = self.shape
        found = 8 * 4 * (d + k) * (self.ranks + self.rank)
        if self.dense:
            found += 8 * 4 * d * k
            if self.method in WHOLE:  # all adapters' at once, each a single row to be parted
                found += 4 * (len(self.pairs) + 6) * d * k
        if self.method == "regmean":
            found += 8 * 5 * k * k
        return found

    def _merge_flops(self) -> float:
        d, k = self.shape
        if self.dense:
            return 2 * d * k * self.ranks
        if self.summation == "svd":
            return 8 * (d + k) * self.ranks**2 + 20 * self.ranks**3
        if self.method == "regmean":
            return k**3 / 3 + 4 * self.ranks * k * k
        if self.method == "knots":
            return 8 * (d + len(self.pairs) * k) * self.ranks**2
        return 0

    def _fidelity_flops(self, whole: bool) -> float:
        """Two QR decompositions of the exact sum's factors, one of those of the difference."""
        d, k = self.shape
        exact = 4 * (d + k) * self.ranks**2
        if self.dense and whole:
            return exact + 2 * d * k * (self.ranks + 10)
        return exact + 2 * (d + k) * (self.ranks + self.rank) ** 2

    def _cut_flops(self) -> float:
        """`factorise`: by Lanczos, some hundred products with a vector, or by LAPACK."""
        d, k = self.shape
        smaller = min(d, k)
        return 22 * max(d, k) * smaller**2 if 4 * self.rank > smaller else LANCZOS * 2 * d * k


def _module(name: str, request: Request, inputs: Inputs) -> _Module:
    adapters = enumerate(inputs.adapters)
    pairs = {str(i): a.factors[name] for i, a in adapters if name in a.factors}
    return _Module(name, pairs, preset(request.method).method, request.options)


def _memory(inputs: Inputs, modules: list[_Module], output: int, width: int) -> int:
    """Bytes at the peak: the adapters as they are stored and in float32, what they are changed to,
    and the largest of what is held of one module at a time."""
    numbers = sum(m.ranks * sum(m.shape) for m in modules)
    stored = sum(sum(e.size for e in a.file.entries.values()) for a in inputs.adapters)
    held = PROCESS + stored + (0 if stored == width * numbers else width * numbers)
    if modules[0].by_adapter:  # an adapter's tensors, as one row, and that in order
        held += 3 * width * sum(m.changed / len(m.pairs) for m in modules)
    work = max(m.work() for m in modules)
    if inputs.base:  # of a tensor that changes: itself, the delta, their sum, the rounded one
        largest = max(inputs.base.entry(name).size for name in inputs.base.files)
        return int(held + max(largest, work + max(16 * math.prod(m.shape) for m in modules)))
    if modules[0].dense:
        return int(held + SCIPY + work + COPIES * output)
    return int(held + width * numbers + work + COPIES * output)  # changed beside what is changed
