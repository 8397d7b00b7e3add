"""One piece of work for each of many items, shared out among torch's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")

MOST = 8  # threads; beyond them Python's lock keeps more from working at once


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, by up to `torch.get_num_threads()` threads.

    For what torch leaves to one thread: random draws, numpy's partition, many small tensors. The
    results are in the order of the items; what any call raises is raised here.
    """
    own = torch.get_num_threads()
    count = min(own, MOST, len(items))
    if count < 2:
        return [work(item) for item in items]
    results: list = [None] * len(items)
    places = iter(enumerate(items))  # whoever is free takes the next: no thread waits for another

    def share() -> None:
        for place, item in places:
            results[place] = work(item)

    try:
        grad = torch.is_grad_enabled()
        with ThreadPoolExecutor(count, initializer=_alone, initargs=(grad,)) as pool:
            for done in [pool.submit(share) for _ in range(count)]:
                done.result()
    finally:
        torch.set_num_threads(own)  # threads to come would otherwise start with _alone's 1
    return results


def _alone(grad: bool) -> None:
    """Of a thread: its tensors by itself, since the others have the other cores."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(grad)
