"""One process at a time in a folder; the kernel lets go when a process ends, however it does."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold a folder, which leaves no trace there.

    Another process waits here, or with wait=False gets a BlockingIOError. A child that gets what is
    yielded (`pass_fds`) holds the folder too, until both have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield held
    finally:
        os.close(held)


def in_turn(names: Iterable[str], folder: Path) -> Iterator[str]:
    """Each name while it is this process's alone, twice: at first those that another process is at
    are passed over, and then they are waited for, so that in the end whoever did it all is done."""
    every = [*names]
    for wait, name in [(wait, name) for wait in (False, True) for name in every]:
        with suppress(BlockingIOError), alone(folder / name, wait=wait):
            yield name
