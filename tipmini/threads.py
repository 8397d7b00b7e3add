"""One piece of work for each of many items, shared out among torch's threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, RLock
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")

ONE = RLock()  # a call in a thread of another waits
MOST = 8  # threads; beyond them Python's lock keeps more from working at once


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, by up to `torch.get_num_threads()` threads.

    For what torch leaves to one thread: random draws, numpy's partition, many small tensors. The
    results are in the order of the items. What any call raises, or a Ctrl-C, is raised here, once
    the items at work are done. One call at a time: torch's number of threads, which is the
    process's, is 1 for the while.
    """
    own = torch.get_num_threads()
    count = min(own, MOST, len(items))
    if count < 2:
        return [work(item) for item in items]
    results: list = [None] * len(items)
    places = iter(enumerate(items))  # whoever is free takes the next: no thread waits for another
    stop = Event()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def share() -> None:
        torch.set_num_threads(1)  # its tensors by itself, since the others have the other cores
        with torch.inference_mode(modes[1]), torch.set_grad_enabled(modes[0]):
            try:
                for place, item in places:
                    if stop.is_set():
                        return
                    results[place] = work(item)
            except BaseException:
                stop.set()
                raise

    with ONE:
        try:
            with ThreadPoolExecutor(count) as pool:
                try:
                    for done in [pool.submit(share) for _ in range(count)]:
                        done.result()
                finally:
                    stop.set()
        finally:
            torch.set_num_threads(own)  # threads to come would otherwise start with 1
    return results
