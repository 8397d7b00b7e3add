"""One process at a time in a folder; the kernel lets go when a process ends, however it does."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder, which leaves no trace there.

    Another process waits here, or with wait=False gets a BlockingIOError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(held)


@contextmanager
def claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether a folder, and what it stands for, is this process's alone for the while."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder, wait=wait))
            ours = True
        except BlockingIOError:
            ours = False
        yield ours
