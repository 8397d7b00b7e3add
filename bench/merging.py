"""Merging seven adapters at LLaMA-2-7B's shapes, beside PEFT and beside Wanda's sort."""

import torch
from torch import Tensor

import tipmini as tm
from bench.timing import (
    BLOCKS,
    SIZE,
    Adapters,
    first_blocks,
    in_new_process,
    in_peft,
    median_seconds,
    peak_memory,
    seconds,
    several,
    side_by_side,
)
from tipmini.masks import row_mask

ADAPTERS, MOST = 7, 32  # adapters of the comparisons, and of the plot
SPARSITY = 0.7
MATRIX = 4 * SIZE**2  # bytes of one delta

Norms = dict[str, dict[str, Tensor]]


def measure() -> dict:
    """Every figure: `beside` its peers, the `whole` of TIP over delta W, and its `growth`."""
    every, norms = several(MOST)
    seven = dict(list(every.items())[:ADAPTERS])
    own = {name: norms[name] for name in seven}
    beside = [*beside_peft(seven), *beside_wanda(first_blocks(seven, 1), own)]
    return {
        "beside": beside,
        "whole": in_new_process(whole, ADAPTERS),
        "growth": growth(every, norms),
    }


def beside_peft(adapters: Adapters) -> list[dict]:
    """Seven adapters merged by us and by PEFT's add_weighted_adapter, factor by factor."""
    model, names = in_peft(adapters), list(adapters)
    pairs = [pair for adapter in adapters.values() for pair in adapter.factors.values()]
    read = sum(pair.a.nbytes + pair.b.nbytes for pair in pairs)

    def theirs(kind: str, **options: object) -> None:
        with torch.no_grad():
            model.add_weighted_adapter(names, [1.0] * len(names), "merged", kind, **options)
        model.delete_adapter("merged")

    found = {
        ("linear", "PEFT `linear`"): side_by_side(
            lambda: tm.merge(adapters, "linear"), lambda: theirs("linear")
        ),
        (f"dare, drop rate {SPARSITY:g}", "PEFT `dare_linear`"): side_by_side(
            lambda: tm.merge(adapters, "dare", drop_rate=SPARSITY),
            lambda: theirs("dare_linear", density=1 - SPARSITY),
        ),
    }
    what = f"{len(adapters)} adapters, {BLOCKS} blocks, factors"
    moved = read * (1 + 1 / len(adapters))  # and one of the same size written
    return [
        {"name": ours, "peer": peer, "of": what, "bytes": moved, **times}
        for (ours, peer), times in found.items()
    ]


def beside_wanda(adapters: Adapters, norms: Norms) -> list[dict]:
    """The mask of one delta, and the merge of one block's deltas, beside a sort of every row."""
    name, adapter = next(iter(adapters.items()))
    delta = adapter.delta(adapter.modules[0])
    score = tm.wanda_score(delta, norms[name][adapter.modules[0]])
    for scores in (score, score.bfloat16().float()):  # 16 bits: many ties
        if not torch.equal(row_mask(scores, SPARSITY), wandas_mask(scores, SPARSITY)):
            raise AssertionError("the masks differ from Wanda's")
    mask = side_by_side(lambda: row_mask(score, SPARSITY), lambda: wandas_mask(score, SPARSITY))
    ours, theirs = over_delta(adapters, norms), wandas_merge(adapters, norms)
    if not all(torch.equal(ours[module], theirs[module]) for module in adapter.modules):
        raise AssertionError("the merged deltas differ")
    merged = side_by_side(
        lambda: over_delta(adapters, norms), lambda: wandas_merge(adapters, norms)
    )
    sort = "Wanda's stable sort"
    what = f"{len(adapters)} adapters, 1 block, delta W"
    return [
        {"name": "mask of rows", "peer": sort, "of": f"{SIZE} x {SIZE}", **mask},
        {"name": "tip", "peer": f"tip with {sort}", "of": what, **merged},
    ]


def wandas_mask(score: Tensor, sparsity: float) -> Tensor:
    """As Wanda's release prunes: every row sorted whole, stable; True where an element stays."""
    gone = torch.sort(score, dim=-1, stable=True)[1][:, : int(score.shape[1] * sparsity)]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, gone, False)


def over_delta(adapters: Adapters, norms: Norms) -> dict[str, Tensor]:
    """TIP over delta W, as tipmini computes it."""
    _, update = tm.merge_update(adapters, "tip", norms=norms, on="delta", sparsity=SPARSITY)
    return dict(update)


def wandas_merge(adapters: Adapters, norms: Norms) -> dict[str, Tensor]:
    """The same of adapters on one block, each matrix at once and its mask by Wanda's sort."""
    total: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        (share,) = tm.tip_sparsities(adapter, norms[name], SPARSITY, on="delta").tolist()
        for module in adapter.modules:
            delta = adapter.delta(module)
            score = tm.wanda_score(delta, norms[name][module])
            pruned = delta.masked_fill(~wandas_mask(score, share), 0)
            total[module] = total[module] + pruned if module in total else pruned
    return total


def whole(count: int) -> dict[str, float | None]:
    """TIP over delta W of all modules: seconds, and peak bytes beyond the one delta it yields."""
    adapters, norms = several(count)

    def work() -> None:
        _, update = tm.merge_update(adapters, "tip", norms=norms, on="delta")
        for _ in update.values():
            pass

    found: dict[str, float | None] = {}
    found["seconds"] = seconds(lambda: found.update(bytes=peak_memory(work)))
    return found | {"bytes": found["bytes"] and found["bytes"] - MATRIX}


def growth(every: Adapters, norms: Norms) -> list[dict]:
    """Seconds by the number of adapters (eight blocks) and of blocks (seven adapters)."""
    places = [(count, 8) for count in (2, 4, 8, 16, 32)]
    places += [(ADAPTERS, blocks) for blocks in (4, 8, 16, 32)]
    found = []
    for count, blocks in places:
        some = first_blocks(dict(list(every.items())[:count]), blocks)
        given = {name: norms[name] for name in some}
        for method in ("linear", "dare", "tip"):
            work = lambda some=some, given=given, m=method: tm.merge(some, m, norms=given)  # noqa: E731
            place = {"method": method, "adapters": count, "blocks": blocks}
            found.append(place | {"seconds": median_seconds(work)})
    return found
