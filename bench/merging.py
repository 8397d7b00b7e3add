"""Merging seven adapters at LLaMA-2-7B's shapes, beside PEFT and beside Wanda's sort."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

import tipmini as tm
from bench.timing import in_new_process, median_seconds, peak_memory, seconds, side_by_side
from tipmini.masks import row_mask

SIZE, BLOCKS, RANK = 4096, 32, 8
TARGETS = ("q_proj", "v_proj")
ADAPTERS, MOST = 7, 32  # adapters of the comparisons, and of the plot
SPARSITY = 0.7
MATRIX = 4 * SIZE**2  # bytes of one delta

Adapters = dict[str, tm.LoraAdapter]
Norms = dict[str, dict[str, Tensor]]


def measure() -> dict:
    """Every figure: `beside` its peers, the `whole` of TIP over delta W, and its `growth`."""
    every, norms = several(MOST)
    seven = dict(list(every.items())[:ADAPTERS])
    own = {name: norms[name] for name in seven}
    return {
        "beside": [*beside_peft(seven), *beside_wanda(first_blocks(seven, 1), own)],
        "whole": in_new_process(whole, ADAPTERS),
        "growth": growth(every, norms),
    }


def beside_peft(adapters: Adapters) -> list[dict]:
    """Seven adapters merged by us and by PEFT's add_weighted_adapter, factor by factor."""
    model, names = in_peft(adapters), list(adapters)
    pairs = [pair for adapter in adapters.values() for pair in adapter.factors.values()]
    read = sum(pair.a.nbytes + pair.b.nbytes for pair in pairs)
    same = {"of": f"{len(adapters)} adapters, {BLOCKS} blocks, factors"}
    same["bytes"] = read * (1 + 1 / len(adapters))  # and one of the same size written

    @torch.no_grad()
    def theirs(kind: str, **options: object) -> None:
        model.add_weighted_adapter(names, [1.0] * len(names), "merged", kind, **options)
        model.delete_adapter("merged")

    linear = side_by_side(lambda: tm.merge(adapters, "linear"), lambda: theirs("linear"))
    dare = side_by_side(
        lambda: tm.merge(adapters, "dare", drop_rate=SPARSITY),
        lambda: theirs("dare_linear", density=1 - SPARSITY),
    )
    dropping = f"dare, drop rate {SPARSITY:g}"
    return [
        {"name": "linear", "peer": "PEFT `linear`", **same, **linear},
        {"name": dropping, "peer": "PEFT `dare_linear`", **same, **dare},
    ]


def beside_wanda(adapters: Adapters, norms: Norms) -> list[dict]:
    """The mask of one delta, and the merge of one block's deltas, beside a sort of every row."""
    name, adapter = next(iter(adapters.items()))
    delta = adapter.delta(adapter.modules[0])
    score = tm.wanda_score(delta, norms[name][adapter.modules[0]])
    for scores in (score, score.bfloat16().float()):  # 16 bits: many ties
        if not torch.equal(row_mask(scores, SPARSITY), wandas_mask(scores, SPARSITY)):
            raise AssertionError("the masks differ from Wanda's")
    both = partial(over_delta, adapters, norms), partial(wandas_merge, adapters, norms)
    ours, theirs = (work() for work in both)
    if not all(torch.equal(ours[module], theirs[module]) for module in adapter.modules):
        raise AssertionError("the merged deltas differ")
    mask = side_by_side(lambda: row_mask(score, SPARSITY), lambda: wandas_mask(score, SPARSITY))
    what, sort = f"{len(adapters)} adapters, 1 block, delta W", "Wanda's stable sort"
    return [
        {"name": "mask of rows", "peer": sort, "of": f"{SIZE} x {SIZE}", **mask},
        {"name": "tip", "peer": f"tip with {sort}", "of": what, **side_by_side(*both)},
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
    found = []
    for count, blocks in [*places, *((ADAPTERS, blocks) for blocks in (4, 8, 16, 32))]:
        some = first_blocks(dict(list(every.items())[:count]), blocks)
        given = {name: norms[name] for name in some}
        for method in ("linear", "dare", "tip"):
            taken = median_seconds(partial(tm.merge, some, method, norms=given))
            place = {"method": method, "adapters": count, "blocks": blocks}
            found.append(place | {"seconds": taken})
    return found


# Adapters at the shapes of LLaMA-2-7B -------------------------------------------------------------
def module_names(blocks: int) -> list[str]:
    return [f"model.layers.{i}.self_attn.{name}" for i in range(blocks) for name in TARGETS]


def random_adapter(seed: int, blocks: int = BLOCKS, size: int = SIZE) -> tm.LoraAdapter:
    """Factors of the size that training leaves them with; what they hold does not matter."""
    draw = torch.Generator().manual_seed(seed)
    factor = lambda *shape: torch.randn(shape, generator=draw) * 0.02  # noqa: E731
    pair = lambda: tm.LoraFactors(factor(RANK, size), factor(size, RANK), 2.0)  # noqa: E731
    return tm.LoraAdapter({name: pair() for name in module_names(blocks)})


def random_norms(adapter: tm.LoraAdapter, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    norms = {}
    for name, pair in adapter.factors.items():
        norms[name] = torch.rand(pair.a.shape[1], generator=draw) + 0.5
        norms[f"{name}.lora_B"] = torch.rand(pair.rank, generator=draw) + 0.5
    return norms


def several(count: int) -> tuple[Adapters, Norms]:
    """Adapters and their norms, by name."""
    adapters = {f"{i:02d}": random_adapter(i) for i in range(count)}
    return adapters, {n: random_norms(a, i) for i, (n, a) in enumerate(adapters.items())}


def first_blocks(adapters: Adapters, blocks: int) -> Adapters:
    """The adapters on the first blocks alone."""
    cut = lambda adapter: {name: adapter.factors[name] for name in module_names(blocks)}  # noqa: E731
    return {name: tm.LoraAdapter(cut(adapter)) for name, adapter in adapters.items()}


@torch.no_grad()
def in_peft(adapters: Adapters, blocks: int = BLOCKS, size: int = SIZE):
    """A PeftModel that holds the adapters. The base's weights are never touched: no memory."""
    from peft import LoraConfig, PeftModel

    layer = partial(skip_init, nn.Linear, size, size, bias=False, dtype=torch.bfloat16)
    block = lambda: {"self_attn": nn.ModuleDict({name: layer() for name in TARGETS})}  # noqa: E731
    layers = nn.ModuleList(nn.ModuleDict(block()) for _ in range(blocks))
    base = nn.ModuleDict({"model": nn.ModuleDict({"layers": layers})})
    base.config = {"model_type": "custom"}
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    first, *others = adapters
    model = PeftModel(base, config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    for name, adapter in adapters.items():
        for module, pair in adapter.factors.items():
            layer = base.get_submodule(module)
            layer.lora_A[name].weight.copy_(pair.a)
            layer.lora_B[name].weight.copy_(pair.b)
    return model
