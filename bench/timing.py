"""How things are timed, at which shapes, and what this machine can do at best.

A ratio compares medians of the same run, the two sides taken in turn.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of a call, after one that warms up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def side_by_side(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int = REPEATS
) -> dict[str, float]:
    """Median seconds of both, taken in turn after a warm-up of each, and ours / peer's."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"seconds": mine, "peer_seconds": theirs, "ratio": mine / theirs}


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def peak_memory(work: Callable[[], object]) -> float | None:
    """Bytes by which the resident memory rose above what it was before; None but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    before = _bytes(status, "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    work()
    return _bytes(status, "VmHWM") - before


def give_memory_back() -> None:
    """Return what is free to the system, and from now on whatever is freed: glibc alone has it.

    Slower, since every larger tensor then has pages of its own; for measuring memory only.
    """
    import ctypes
    import gc

    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 17)
        libc.malloc_trim(0)


def _bytes(status: Path, field: str) -> float:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024.0 * int(lines[field].split()[0])


def in_new_process(work: Callable, *arguments: object):
    """The result of a call in a process of its own, which holds no memory of earlier ones."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large square matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b)


def bandwidth(size: int = 1 << 28) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    a, b = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    return 2 * size / median_seconds(lambda: b.copy_(a))


# Adapters at the shapes of LLaMA-2-7B -------------------------------------------------------------
SIZE, BLOCKS, RANK = 4096, 32, 8
TARGETS = ("q_proj", "v_proj")

Adapters = dict[str, tm.LoraAdapter]


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


def several(count: int) -> tuple[Adapters, dict[str, dict[str, Tensor]]]:
    """Adapters and their norms, by name."""
    adapters = {f"{i:02d}": random_adapter(i) for i in range(count)}
    return adapters, {n: random_norms(a, i) for i, (n, a) in enumerate(adapters.items())}


def first_blocks(adapters: Adapters, blocks: int) -> Adapters:
    """The adapters on the first blocks alone."""
    names = module_names(blocks)
    return {
        name: tm.LoraAdapter({module: adapter.factors[module] for module in names})
        for name, adapter in adapters.items()
    }


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


@torch.no_grad()
def in_peft(adapters: Adapters, blocks: int = BLOCKS, size: int = SIZE):
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
    for name, adapter in adapters.items():
        for module, pair in adapter.factors.items():
            layer = base.get_submodule(module)
            layer.lora_A[name].weight.copy_(pair.a)
            layer.lora_B[name].weight.copy_(pair.b)
    return model
