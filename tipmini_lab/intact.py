"""Whether files are still what they were: their hashes are listed beside them.

A file that was found whole is remembered by inode, size and times, so that a second look reads
nothing. These are compared for being equal, never for which is later: a clock that jumps hides no
damage.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from tipmini.models.sealed import sealed, unsealed

LIST, SEEN = "files.json", ".seen.json"  # in the folder: {name: SHA-256}, {name: `identity`}


def file_digest(file: Path) -> str:
    """SHA-256: with the CPU's instructions for it as fast as any in hashlib."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def identity(file: Path) -> list[int]:
    """What changes where a file is written or replaced; ctime also where mtime is set back."""
    told = file.stat()
    return [told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]


def seal(folder: Path) -> None:
    """List all files of a folder, which holds nothing but what is to stay."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {str(file.relative_to(folder)): file for file in files}
    _remember(folder, {name: identity(file) for name, file in names.items()})
    found = {name: file_digest(file) for name, file in names.items()}
    (folder / LIST).write_text(sealed(json.dumps({"files": found})))


def listed(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of a sealed folder; raises OSError without a list, ValueError for a damaged
    one."""
    return _read(folder / LIST)


def damaged(folder: Path, *, anew: bool = False) -> list[str]:
    """The names of a sealed folder's files that are missing, or not what is listed.

    anew: every file is read, whatever is remembered. A list that is missing or damaged itself is
    the one name.
    """
    try:
        known = listed(folder)
    except (OSError, ValueError):
        return [LIST]
    try:
        seen = _read(folder / SEEN)
    except (OSError, ValueError):
        seen = {}
    trusted = {} if anew else seen
    found = {name: _whole(folder / name, known[name], trusted.get(name)) for name in known}
    whole = {name: now for name, now in found.items() if now}
    if whole != seen:
        _remember(folder, whole)
    return sorted(known.keys() - whole.keys())


def _whole(file: Path, digest: str, seen: list[int] | None) -> list[int] | None:
    """The identity of a file that is what is listed, read only where it isn't the one seen."""
    try:
        now = identity(file)  # before it is read: what is written meanwhile has another
        return now if now == seen or file_digest(file) == digest else None
    except OSError:
        return None


def _read(file: Path) -> dict:
    return json.loads(unsealed(file.read_bytes()))["files"]


def _remember(folder: Path, whole: dict[str, list[int]]) -> None:
    partial = folder / f"{SEEN}.{os.getpid()}"
    with suppress(OSError):  # a cache that can't be written is read again in every process
        partial.write_text(sealed(json.dumps({"files": whole})))
        partial.replace(folder / SEEN)
