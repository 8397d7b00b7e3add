"""Reading what others wrote: strict JSON, and errors of one line with nothing a terminal obeys."""

import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tipmini.errors import TipminiError

_short = reprlib.Repr()  # bounded in depth as well: a plain repr can exceed the recursion limit
_short.maxstring = _short.maxother = 160
_short.maxlevel = 2


def shown(value: object) -> str:
    """A value as a part of one line: short and escaped."""
    return _short.repr(value)


def one_line(error: object) -> str:
    """A text on one line, its control characters escaped, of at most 300 characters."""
    text = " ".join(str(error).split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= 300 else f"{safe[:297]}..."


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """What is refused inside is refused of this file: the error starts with its name."""
    try:
        yield
    except TipminiError as error:
        raise TipminiError(f"{file}: {error}") from None


def parse_json(data: bytes) -> object:
    """Strict JSON in UTF-8: no NaN, no name twice, no depth that exhausts the stack.

    Raises ValueError, since Python's json reads the first two and fails on the third.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
