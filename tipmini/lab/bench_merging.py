"""Merging beside its peers at LLaMA-2-7B's shapes: time, memory, and how both grow.

Every ratio compares medians of the same run, the two sides taken in turn.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.wanda import row_mask

SIZE, BLOCKS, RANK, ADAPTERS = 4096, 32, 8, 7
TARGETS = ("q_proj", "v_proj")
REPEATS = 5


def module_names(blocks: int) -> list[str]:
    return [f"model.layers.{i}.self_attn.{name}" for i in range(blocks) for name in TARGETS]


def random_adapter(seed: int, blocks: int = BLOCKS, size: int = SIZE) -> tm.LoraAdapter:
    """Factors of the size that training leaves them with; what they hold does not matter."""
    draw = torch.Generator().manual_seed(seed)
    factor = lambda *shape: torch.randn(shape, generator=draw) * 0.02  # noqa: E731
    pairs = {
        name: tm.LoraFactors(factor(RANK, size), factor(size, RANK), 2.0)
        for name in module_names(blocks)
    }
    return tm.LoraAdapter(pairs)


def random_norms(adapter: tm.LoraAdapter, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    norms = {}
    for name, pair in adapter.factors.items():
        norms[name] = torch.rand(pair.a.shape[1], generator=draw) + 0.5
        norms[f"{name}.lora_B"] = torch.rand(pair.rank, generator=draw) + 0.5
    return norms


# The peers ----------------------------------------------------------------------------------


class Block(nn.Module):
    """The two projections that an adapter targets. Their weights are never touched: no memory."""

    def __init__(self, size: int):
        super().__init__()
        self.self_attn = nn.Module()
        for name in TARGETS:
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = nn.Parameter(torch.empty(size, size, dtype=torch.bfloat16))
            layer.in_features = layer.out_features = size
            self.self_attn.add_module(name, layer)


def in_peft(adapters: dict[str, tm.LoraAdapter], blocks: int = BLOCKS, size: int = SIZE):
    """A PeftModel that holds the adapters."""
    from peft import LoraConfig, PeftModel

    base = nn.Module()
    base.model = nn.Module()
    base.model.layers = nn.ModuleList(Block(size) for _ in range(blocks))
    base.config = {"model_type": "custom"}
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    names = list(adapters)
    model = PeftModel(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    with torch.no_grad():
        for name, adapter in adapters.items():
            for module, pair in adapter.factors.items():
                layer = base.get_submodule(module)
                layer.lora_A[name].weight.copy_(pair.a)
                layer.lora_B[name].weight.copy_(pair.b)
    return model


def peft_merge(model, names: list[str], kind: str, **options: object) -> None:
    with torch.no_grad():
        model.add_weighted_adapter(names, [1.0] * len(names), "merged", kind, **options)
    model.delete_adapter("merged")


def wandas_mask(score: Tensor, sparsity: float) -> Tensor:
    """As Wanda's release prunes: every row sorted whole, stable; True where an element stays."""
    gone = torch.sort(score, dim=-1, stable=True)[1][:, : int(score.shape[1] * sparsity)]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, gone, False)


# Measuring ----------------------------------------------------------------------------------


def side_by_side(ours: Callable, peer: Callable, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of both, taken in turn after a warm-up of each, and ours / peer's."""
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    for round_number in range(repeats + 1):
        for name, work in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            work()
            if round_number:
                taken[name].append(time.perf_counter() - start)
    found = {name: statistics.median(times) for name, times in taken.items()}
    return found | {"ratio": found["ours"] / found["peer"]}


def peak_memory(work: Callable[[], object]) -> float | None:
    """Bytes by which the resident memory rose above what it was before; None but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    before = _kilobytes(status, "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    work()
    return 1024.0 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, field: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0])


def beside_peft(adapters: dict[str, tm.LoraAdapter]) -> dict[str, dict[str, float]]:
    """Seven adapters merged by us and by PEFT's add_weighted_adapter."""
    model, names = in_peft(adapters), list(adapters)
    pairs = {
        "linear": ("linear", {}, {}),
        "dare": ("dare_linear", {"drop_rate": 0.7}, {"density": 0.3}),
    }
    return {
        f"{ours}, PEFT's {kind}": side_by_side(
            lambda ours=ours, mine=mine: tm.merge(adapters, ours, **mine),
            lambda kind=kind, theirs=theirs: peft_merge(model, names, kind, **theirs),
        )
        for ours, (kind, mine, theirs) in pairs.items()
    }


def beside_wanda(adapter: tm.LoraAdapter, norms: dict[str, Tensor]) -> dict[str, float]:
    """The mask of one (4096, 4096) delta; the two must agree, also where scores tie."""
    module = adapter.modules[0]
    delta = adapter.delta(module)
    score = tm.wanda_score(delta, norms[module])
    for scores in (score, score.bfloat16().float()):  # 16 bits: many ties
        if not torch.equal(row_mask(scores, 0.7), wandas_mask(scores, 0.7)):
            raise AssertionError("the masks differ from Wanda's")
    return side_by_side(lambda: row_mask(score, 0.7), lambda: wandas_mask(score, 0.7))


def delta_merge(
    adapters: dict[str, tm.LoraAdapter], norms: dict[str, dict[str, Tensor]]
) -> dict[str, float | None]:
    """TIP over delta W of all modules: seconds, and peak bytes beyond the one delta it yields."""

    def whole() -> None:
        _, update = tm.merge_update(adapters, "tip", norms=norms, on="delta")
        for _ in update.values():
            pass

    start = time.perf_counter()
    peak = peak_memory(whole)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": peak and peak - 4 * SIZE**2}


def growth() -> list[dict[str, float | str]]:
    """Seconds by the number of adapters (eight blocks) and of blocks (seven adapters)."""
    every = {f"{i:02d}": random_adapter(i) for i in range(32)}
    norms = {name: random_norms(adapter, i) for i, (name, adapter) in enumerate(every.items())}
    places = [(count, 8) for count in (2, 4, 8, 16, 32)]
    places += [(ADAPTERS, blocks) for blocks in (4, 8, 16, 32)]
    found = []
    for count, blocks in places:
        some = {name: _first_blocks(every[name], blocks) for name in list(every)[:count]}
        given = {name: norms[name] for name in some}
        for method in ("linear", "dare", "tip"):
            work = lambda some=some, given=given, m=method: tm.merge(some, m, norms=given)  # noqa: E731
            taken = statistics.median(_seconds(work) for _ in range(REPEATS))
            place = {"method": method, "adapters": count, "blocks": blocks, "seconds": taken}
            found.append(place)
    return found


def _first_blocks(adapter: tm.LoraAdapter, blocks: int) -> tm.LoraAdapter:
    return tm.LoraAdapter({name: adapter.factors[name] for name in module_names(blocks)})


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
