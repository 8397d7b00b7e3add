"""Hostile texts, and what a process starts, writes and unpickles while it is given them."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tipmini.errors import TipminiError

# Each would leave a file PWNED if a shell, a format or a template took it for more than a name.
TEXTS = {
    "a second command": "; touch PWNED",
    "a second command in quotes": "'; touch PWNED; echo '",
    "a substitution": "$(touch PWNED)",
    "backquotes": "`touch PWNED`",
    "a pipe": "x | touch PWNED",
    "a redirection": "x > PWNED",
    "another folder": "../../etc/passwd",
    "another place": "/proc/PWNED",
    "a line's end": "a\ntouch PWNED",
    "what a terminal obeys": "\x1b]0;PWNED\x07\r\x9b2J",
    "a dash": "-rf",
    "a long flag": "--help-me=PWNED",
    "a field": "{params.x}",
    "an attribute": "{0.__class__} {task.__class__}",
    "a template": "{{7*7}}",
    "a tag of YAML": "!!python/object/apply:os.system ['touch PWNED']",
    "more of YAML": "x: [y, 'z] #",
    "blanks and quotes": """it's "a" name""",
    "any name": "*",
    "a home": "~root",
    "a long name": "x" * 5000,
    "a long path": "x/" * 3000,
    "no text": os.fsdecode(b"\xff\xfe"),
    "nothing": "",
}
IN_FILES = TEXTS | {"NUL": "a\0PWNED", "half a character": "\ud800"}  # no argument can hold them

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
FORBIDDEN = (*STARTS, "pickle.find_class", "socket.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOVING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")

_heard: list[tuple[str, tuple]] | None = None
_listens = False


def _hear(event: str, told: tuple) -> None:
    if _heard is not None and event in (*FORBIDDEN, *MOVING, "open"):
        _heard.append((event, told))


@contextmanager
def watched(*allowed: Path) -> Iterator[None]:
    """No program is started, nothing unpickled, no network asked, and nothing written or moved
    but below the folders allowed: by what Python's own audit hooks tell."""
    global _heard, _listens
    if not _listens:  # a hook stays as long as the process
        sys.addaudithook(_hear)
        _listens = True
    _heard = heard = []
    try:
        yield
    finally:
        _heard = None
    places = [os.path.realpath(place) for place in allowed]
    assert [fault for event, told in heard for fault in _faults(event, told, places)] == []


def _faults(event: str, told: tuple, places: list[str]) -> Iterator[str]:
    if event in FORBIDDEN:
        yield f"{event} {told}"
    writes = event == "open" and bool((told[2] or 0) & WRITING)
    names = told[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
    for name in names if writes or event in MOVING else ():
        real = os.path.realpath(os.fsdecode(name)) if isinstance(name, str | bytes | Path) else ""
        inside = any(f"{real}/".startswith(f"{place}/") for place in [*places, "/dev", "/proc"])
        if real and not inside:
            yield f"{event} {real}"


def one_line(act: Callable[[], object], *allowed: Path) -> str:
    """What an act is refused with, in one line that no terminal obeys; "" where it just works."""
    with watched(*allowed):
        try:
            act()
        except TipminiError as error:
            assert str(error).isprintable(), repr(str(error))
            return str(error)
    return ""
