"""How things are timed, and what this machine can do at best.

A ratio compares medians of the same run, the two sides taken in turn.
"""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from tipmini_lab.results import store

REPEATS = 5
STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Key, Result = TypeVar("Key"), TypeVar("Result")


def made() -> dict[str, object]:
    """What is stored beside every figure: the day, the machine and the versions."""
    told = {"date": store.today(), "machine": store.machine()}
    return told | {"threads": torch.get_num_threads(), "versions": store.versions()}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of a call, after one that warms up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def in_turn(
    works: Mapping[Key, Callable[[], Result]], rounds: int, *, warm: bool = False
) -> dict[Key, list[Result]]:
    """What each work gives in every round, after one unless they are `warm`.

    The order turns round, and a drifting machine hits all alike.
    """
    found: dict[Key, list[Result]] = {name: [] for name in works}
    for number in range(warm, rounds + 1):
        for name in list(works)[:: 1 if number % 2 else -1]:
            once = works[name]()
            found[name] += [once] if number else []
    return found


def side_by_side(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int = REPEATS
) -> dict[str, float]:
    """Median seconds of both, taken in turn, and ours / peer's."""
    works = {"seconds": partial(seconds, ours), "peer_seconds": partial(seconds, peer)}
    found = {name: statistics.median(taken) for name, taken in in_turn(works, repeats).items()}
    return found | {"ratio": found["seconds"] / found["peer_seconds"]}


def peak_memory(work: Callable[[], object]) -> float | None:
    """Bytes by which the resident memory rose above what it was before; None but on Linux."""
    if not STATUS.exists():
        return None
    before = _bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    work()
    return _bytes("VmHWM") - before


def _bytes(field: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024.0 * int(line.split()[1])


def give_memory_back() -> None:
    """Return what is free to the system, and from now on whatever is freed: glibc alone has it.

    Slower, since every larger tensor then has pages of its own; for measuring memory only.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 17)
        libc.malloc_trim(0)


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
