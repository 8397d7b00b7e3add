"""`tipmini merge --dry-run`: a module of every kind is merged, the rest is reckoned from that."""

import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from tipmini.commands.merge_request import Request
from tipmini.commands.merge_run import (
    Inputs,
    describe,
    measured_update,
    merged_adapter,
    refuse_out,
)

DISK = 300e6  # bytes a second, read or written; an ordinary SSD does more
COPIES = 3  # of what is written: an adapter, its copy and bytes; a base tensor, sum and rounded


@dataclass(frozen=True)
class Trial:
    """One module, merged and compared."""

    seconds: float
    output: int  # bytes


def reckon(request: Request, inputs: Inputs) -> dict[str, object]:
    """What `run` would do, and what it would cost; writes nothing.

    Raises the TipminiError that `run` would, as far as one module of each kind shows it.
    """
    kinds = _kinds(inputs)
    size = inputs.base.size if inputs.base else 0
    refuse_out(request, inputs)
    _try(request, inputs, next(iter(kinds.values()))[0])  # warms up: imports, caches
    trials = {kind: _try(request, inputs, modules[0]) for kind, modules in kinds.items()}
    seconds = sum(trials[kind].seconds * len(modules) for kind, modules in kinds.items())
    output = size or sum(trials[kind].output * len(modules) for kind, modules in kinds.items())
    estimate = {
        "output_bytes": output,
        "memory_bytes": _memory(request, inputs, output),
        "seconds": seconds + (size + output) / DISK,
    }
    return describe(request, inputs) | {"dry_run": True, "estimate": estimate}


def _kinds(inputs: Inputs) -> dict[tuple, list[str]]:
    """Modules of one shape that the same adapters have, at the same ranks, cost the same."""
    kinds = defaultdict(list)
    for module, shape in inputs.shapes.items():
        pairs = (adapter.factors.get(module) for adapter in inputs.adapters)
        kinds[shape, tuple(pair and pair.rank for pair in pairs)].append(module)
    return dict(kinds)


def _try(request: Request, inputs: Inputs, module: str) -> Trial:
    inputs = _only(request, inputs, module)
    start = time.perf_counter()
    if inputs.base:
        measured_update(request, inputs)[module]
        return Trial(time.perf_counter() - start, output=0)
    merged, _ = merged_adapter(request, inputs, lambda things, **_: things)
    pair = merged.factors[module]
    return Trial(time.perf_counter() - start, pair.a.nbytes + pair.b.nbytes)


def _only(request: Request, inputs: Inputs, module: str) -> Inputs:
    """The same merge of one module, with the adapters that have it."""
    having = [i for i, adapter in enumerate(inputs.adapters) if module in adapter.factors]

    def chosen(values: object) -> object:
        return [values[i] for i in having] if isinstance(values, list) else values

    alone = [replace(a, factors={module: a.factors[module]}) for a in chosen(inputs.adapters)]
    shares = chosen(inputs.weights)
    if isinstance(request.weights, Path):
        shares = [{module: own[module]} for own in shares]
    own = {"norms": chosen(inputs.norms), "grams": chosen(inputs.grams), "weights": shares}
    return replace(inputs, adapters=alone, **own)


def _memory(request: Request, inputs: Inputs, output: int) -> int:
    """Bytes at the peak: this process so far, which has merged a module of each kind, and what
    only a whole merge holds."""
    so_far = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    so_far *= 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    pairs = [pair for adapter in inputs.adapters for pair in adapter.factors.values()]
    wide = 4 * sum(pair.a.numel() + pair.b.numel() for pair in pairs)  # all in float32
    if inputs.base:
        largest = max(inputs.base.entry(name).size for name in inputs.base.files)
        return so_far + wide + COPIES * largest
    return so_far + 2 * wide + COPIES * output  # changed beside what is changed
