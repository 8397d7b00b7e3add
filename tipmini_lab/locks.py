"""One process at a time in a folder or at a file; the kernel lets go of it when a process ends."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.models.files import one_line


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


@contextmanager
def sole(out: Path) -> Iterator[None]:
    """Be the only process that works towards a file or folder; what holds it is hidden beside it.

    Raises TipminiError where another is, since the two would go on from one checkpoint, and where
    nothing can be written.
    """
    lock = out.with_name(f".{out.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = _held(lock)
    except BlockingIOError:
        raise TipminiError(f"{out}: another process writes it; wait, or name another") from None
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def _held(lock: Path) -> int:
    """The open file, held; not one that its former holder takes away meanwhile."""
    while True:
        held = os.open(lock, os.O_CREAT | os.O_WRONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(lock) and os.path.samestat(os.fstat(held), os.stat(lock)):
                return held
        except OSError:
            os.close(held)
            raise
        os.close(held)


def in_turn(names: Iterable[str], folder: Path) -> Iterator[str]:
    """Each name while it is this process's alone, twice: at first those that another process is at
    are passed over, and then they are waited for, so that in the end whoever did it all is done."""
    every = [*names]
    for wait, name in [(wait, name) for wait in (False, True) for name in every]:
        with suppress(BlockingIOError), alone(folder / name, wait=wait):
            yield name
