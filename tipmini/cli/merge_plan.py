"""`tipmini merge --dry-run`: about what a merge would cost, by the headers of its inputs alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tipmini.cli.merge_request import Inputs, Request, describe, open_inputs
from tipmini.errors import (
    TipminiError,
    check_ranks,
    check_shapes,
    input_gram,
    input_norm,
    refuse_negative,
)
from tipmini.methods.table import METHODS, TARGETS
from tipmini.methods.weighting import refuse_unlearnt
from tipmini.models.base_folder import BaseFolder
from tipmini.models.files import FLOATING
from tipmini.models.peft_folder import AdapterHeader, FactorsHeader, read_adapter_header
from tipmini.models.peft_settings import FLOAT32_MAX

# Speeds of two ordinary cores, so that a larger machine is done earlier.
DISK = 800e6  # bytes a second, read or written; between a SATA and an NVMe disk
FLOPS = 15e9  # of products and decompositions, most of them in float64
MODULE = 1e-3  # seconds of a module: some thirty calls of torch on small tensors
NORM = 2e-3  # seconds of an adapter's module whose norms are looked up in their file
LANCZOS = 150  # products of a matrix with a vector until the singular vectors are found
PROCESS = 260e6  # bytes of Python with torch, before an adapter is read
SCIPY = 60e6  # bytes more where a delta is cut
COPIES = 3  # of an adapter that is written: itself, contiguous, and its bytes


def reckon(request: Request) -> dict[str, object]:
    """What `run` would do, and about what it would cost; writes nothing, reads no numbers.

    Raises the TipminiError that `run` would, as far as names and shapes tell.
    """

    def load(path: Path, base: BaseFolder | None) -> AdapterHeader:
        header = read_adapter_header(path, heads=bool(request.heads))
        header.in_base(base)  # refuses
        return header

    if request.pickle:
        raise TipminiError("--dry-run reads headers, which a pickle has not; leave out one of both")

    inputs = open_inputs(request, load, refuse_unlearnt)
    # Bytes of a merged number: of float32, or of float64 where any factor is.
    pairs = [pair for adapter in inputs.adapters.values() for pair in adapter.factors.values()]
    width = max(4, *(FLOATING[entry.dtype] for pair in pairs for entry in (pair.a, pair.b)))
    _refuse_weights(request, inputs, width)
    modules = []
    for name in inputs.shapes:
        pairs = {
            adapter: own.factors[module]
            for adapter, own in inputs.adapters.items()
            for module, known in inputs.called[adapter].items()
            if known == name
        }
        modules.append(_Module(name, pairs, request.function, request.options))
        modules[-1].check(inputs)
    size = inputs.base.size if inputs.base else 0
    ranks = [module.rank for module in modules]
    if not request.rank_pattern:
        ranks = [max(ranks)] * len(ranks)
    written = {None: width, "float32": 4}.get(request.dtype, 2)
    output = size or written * sum(r * sum(m.shape) for r, m in zip(ranks, modules, strict=True))
    seconds = sum(m.seconds(whole=bool(inputs.base)) for m in modules)
    estimate = {
        "output_bytes": output,
        "memory_bytes": _memory(inputs, modules, output, width),
        "seconds": seconds + (size + output) / DISK,
    }
    return describe(request, inputs) | {"dry_run": True, "estimate": estimate}


def _refuse_weights(request: Request, inputs: Inputs, width: int) -> None:
    """What a weight alone tells."""
    weights = inputs.weights
    if isinstance(weights, str):
        return  # a rule's are above 0, and no larger than 1e18
    if request.function == "regmean":
        refuse_negative(weights)
    # A weight multiplies factors or deltas as it is; else its root does, or it is in an average.
    how, row = _how(request.function, request.options), METHODS[request.function]
    times = how != "linear" and row.needs != "grams"
    if times and any(abs(weight) > FLOAT32_MAX for weight in weights.values()) and width == 4:
        raise TipminiError("the sum overflows torch.float32; take smaller weights")


def _how(method: str, options: Mapping[str, object]) -> str:
    """ "delta", or how factors are put together."""
    dense = options.get("on") == "delta"
    return "delta" if dense else options.get("summation", METHODS[method].summed)


@dataclass(frozen=True)
class _Module:
    """How one module is merged: of which factors, by the adapters, and by what."""

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
    def how(self) -> str:
        return _how(self.method, self.options)

    @property
    def rank(self) -> int:
        """Of the merged factors; at most, where null directions are left out."""
        top = max(pair.rank for pair in self.pairs.values())
        cut = min(self.options.get("rank") or top, *self.shape)
        spanned = min(self.ranks, *self.shape)
        ranks = {"cat": self.ranks, "span": spanned, "linear": top}
        return (ranks | {"delta": cut, "svd": min(cut, self.ranks)})[self.how]

    @property
    def by_adapter(self) -> bool:
        """Whether one threshold is taken of all of an adapter's tensors."""
        return self.options.get("variant") == "authors" and self.method == "ties"

    @property
    def changed(self) -> int:
        """How many numbers the method changes."""
        d, k = self.shape
        return len(self.pairs) * d * k if self.how == "delta" else self.ranks * (d + k)

    def check(self, inputs: Inputs) -> None:
        """Raise TipminiError for what the merge would refuse of the module, by its shapes."""
        check_shapes(self.name, self.pairs)
        if self.how == "linear":
            check_ranks(self.name, self.pairs)
        for place, pair in self.pairs.items():
            if METHODS[self.method].needs == "norms":
                for name in TARGETS[self.options["on"]]:
                    norms = inputs.norms[place].entries
                    channels = pair.rank if name == "b" else self.shape[1]
                    input_norm(norms, self.name, name, channels)
            if METHODS[self.method].needs == "grams":
                input_gram(inputs.grams[place].entries, self.name, self.shape[1])

    def seconds(self, whole: bool) -> float:
        """whole: the update is not cut to factors, but added to a base."""
        (d, k), r, n = self.shape, self.ranks, len(self.pairs)
        dense, row = self.how == "delta", METHODS[self.method]
        merging = {
            "delta": 2 * d * k * r,
            "svd": 8 * (d + k) * r**2 + 20 * r**3,
            "regmean": k**3 / 3 + 4 * r * k * k,
            "knots": 8 * (d + n * k) * r**2,
            "tsv": 10 * (d + k) * r**2 + 20 * r**3,
            "iso": 8 * (d + k) * r**2 + 20 * r**3,
            "wudi": 8 * (d + k) * r**2 + 20 * r**3,
        }
        flops = merging.get(self.how, merging.get(self.method, 0))
        # The fidelity: QR decompositions of the exact sum's factors, and of the difference's.
        flops += 4 * (d + k) * r**2
        if dense and whole:
            flops += 2 * d * k * (r + 10)
        else:
            flops += 2 * (d + k) * (r + self.rank) ** 2
        if dense and not whole:  # `factorise`: by Lanczos or by LAPACK
            by_lapack = 4 * self.rank > min(d, k)
            flops += 22 * max(d, k) * min(d, k) ** 2 if by_lapack else LANCZOS * 2 * d * k
        if whole and not dense:
            flops += 2 * d * k * self.rank
        numbers = (3 if self.by_adapter else 1) * self.changed * row.cost  # threshold, election
        numbers += 3 * d * k if whole else 0  # the base's weight, the sum, the rounded one
        if self.method == "regmean":
            numbers += 10 * n * k * k  # each Gram matrix is read and weighted twice
        read = n * NORM if row.needs == "norms" else 0
        return MODULE + read + numbers / 1e9 + flops / FLOPS

    def work(self) -> int:
        """Bytes held while the module is merged and compared, most of them in float64."""
        d, k = self.shape
        found = 8 * 4 * (d + k) * (self.ranks + self.rank)
        if self.how == "delta":
            found += 8 * 4 * d * k
            if METHODS[self.method].whole:  # all adapters' at once, each a single row to be parted
                found += 4 * (len(self.pairs) + 6) * d * k
        return found + (8 * 5 * k * k if self.method == "regmean" else 0)


def _memory(inputs: Inputs, modules: list[_Module], output: int, width: int) -> int:
    """Bytes at the peak: the adapters as they are stored and in float32, what they are changed to,
    and the largest of what is held of one module at a time."""
    numbers = sum(m.ranks * sum(m.shape) for m in modules)
    stored = sum(sum(e.size for e in a.file.entries.values()) for a in inputs.adapters.values())
    held = PROCESS + stored + (0 if stored == width * numbers else width * numbers)
    if modules[0].by_adapter:  # an adapter's tensors, as one row, and that in order
        held += 3 * width * sum(m.changed / len(m.pairs) for m in modules)
    work = max(m.work() for m in modules)
    if inputs.base:  # of a tensor that changes: itself, the delta, their sum, the rounded one
        largest = max(inputs.base.entry(name).size for name in inputs.base.files)
        return int(held + max(largest, work + max(16 * math.prod(m.shape) for m in modules)))
    changed = SCIPY if modules[0].how == "delta" else width * numbers  # beside what is changed
    return int(held + changed + work + COPIES * output)
