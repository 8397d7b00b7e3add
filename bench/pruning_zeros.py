"""What zeros do that leave all shapes: to a pass's time, to bytes, and in a merge with an adapter.

In float32: torch's products with sparse rows (CSR) know no bfloat16 on a CPU.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from bench import timing
from bench.pruning_cost import Setting, exported, one_pass
from bench.serving import prompts
from tipmini.masks import row_mask, semi_structured_mask
from tipmini.methods.groups import find_families
from tipmini_lab.book import pruning_costs as costs
from tipmini_lab.evaluation.model import load_base

Keep = Callable[[Tensor], Tensor]  # of a weight's sizes, (d, k): which elements stay

KEEPS: dict[str, Keep] = {
    costs.ROWS: partial(row_mask, sparsity=0.5),
    costs.TWO_OF_FOUR: semi_structured_mask,
}


class SparseRows(nn.Module):
    """A linear layer without bias whose weight is stored as CSR: values, columns, ends of rows."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.to_sparse_csr(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., k) -> (..., d)
        return (self.weight @ x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])

    @property
    def nbytes(self) -> int:
        parts = (self.weight.values(), self.weight.col_indices(), self.weight.crow_indices())
        return sum(part.nbytes for part in parts)


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices that pruning is about, by name."""
    for family in find_families(model):
        for member in family.members:
            yield member.module, model.get_submodule(member.module)


@torch.no_grad()
def loaded(base: Path, keep: Keep | None = None, sparse: bool = False) -> tuple[nn.Module, dict]:
    """A model with zeros where `keep` leaves nothing, and the zeros and bytes of its matrices."""
    model = load_base(base, "float32", attention="sdpa")
    zeros = numbers = size = 0
    for name, layer in [*layers(model)]:
        weight = layer.weight if keep is None else layer.weight * keep(layer.weight.abs())
        numbers, zeros = numbers + weight.numel(), zeros + int((weight == 0).sum())
        if sparse:
            model.set_submodule(name, new := SparseRows(weight))
        else:
            layer.weight = new = nn.Parameter(weight, requires_grad=False)
        size += new.nbytes
    return model, {"zeros": zeros / numbers, "bytes": size}


def passes(setting: Setting) -> list[dict]:
    """Seconds of one processor, by what the weights are, of a pass over many tokens and over one.

    Which elements are zero does not matter to time. What else the machine does matters less to a
    thread's own seconds than to those of the clock.
    """
    ways: dict[str, tuple] = {costs.DENSE: (setting.base,)}
    ways |= {way: (setting.base, keep) for way, keep in KEEPS.items()}
    ways[costs.CSR] = setting.base, KEEPS[costs.ROWS], True
    ways[costs.SPARSER] = setting.base, partial(row_mask, sparsity=0.9), True
    with exported(replace(setting, shares=(0.5,))) as checkpoints:
        ((folder, _),) = checkpoints.values()
        models = {way: loaded(*how) for way, how in (ways | {costs.GROUPS: (folder,)}).items()}
        works = {
            (way, tokens): partial(own_seconds, partial(one_pass, model, prompts(model, 1, tokens)))
            for tokens in (setting.prompt, 1)
            for way, (model, _) in models.items()
        }
        with one_thread():
            taken = timing.in_turn(works, setting.rounds)
    return [
        {"way": way, "tokens": tokens, **models[way][1]}
        | {"seconds": [round(s, 6) for s in seconds]}
        for (way, tokens), seconds in taken.items()
    ]


def own_seconds(work: Callable[[], object]) -> float:
    """Processor time of this process in one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread, for the while: a second one waits for the first by spinning."""
    own = torch.get_num_threads()
    try:
        yield torch.set_num_threads(1)
    finally:
        torch.set_num_threads(own)


def refused(setting: Setting) -> str:
    """What torch says when a 2:4 matrix is to be stored for its 2:4 kernels here; "" if nothing."""
    weight = torch.eye(128).repeat(1, 2).to(getattr(torch, setting.dtype))
    try:
        torch.sparse.to_sparse_semi_structured(weight)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


@torch.no_grad()
def merged(base: Path, adapters: Mapping[str, Path]) -> list[dict]:
    """Zeros of the matrices that an adapter is on, before and after sBA is added: shares.

    Where W is 0, W + sBA is 0 only where sBA is: `of_delta`, which holds for zeros anywhere.
    """
    weights = {name: layer.weight for name, layer in layers(load_base(base, "float32"))}
    found = []
    for task, folder in adapters.items():
        deltas = {name: pair.delta() for name, pair in tm.load_adapter(folder).factors.items()}
        count = sum(delta.numel() for delta in deltas.values())
        for way, keep in KEEPS.items():
            before = {name: weights[name] * keep(weights[name].abs()) for name in deltas}
            after = {name: weight + deltas[name] for name, weight in before.items()}
            shares = {"before": before, "after": after, "of_delta": deltas}
            found.append(
                {"adapter": task, "way": way}
                | {
                    k: sum(int((m == 0).sum()) for m in own.values()) / count
                    for k, own in shares.items()
                }
            )
    return found
