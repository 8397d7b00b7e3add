"""Which stored results a cell of a notebook reads: noted as it runs, for its provenance.

Every file that Python opens in `results/` or `adapters/` while a cell runs is listed in an output
of the cell, of a kind of its own. Nothing shows it: staging takes it out again.
"""

import os
import sys
from pathlib import Path

from tipmini_lab import paths

READS = "application/x-tipmini-reads+json"
WATCHED = tuple(f"{paths.REPOSITORY / name}{os.sep}" for name in ("results", "adapters"))

_seen: set[str] = set()
_started: list[bool] = []


def start() -> None:
    """From now on, in a notebook; nowhere else, and once."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    if shell and not _started:
        _started.append(True)
        sys.addaudithook(_note)
        shell.events.register("post_run_cell", lambda result: _publish())


def _note(event: str, details: tuple) -> None:
    if event == "open" and isinstance(details[0], str) and details[0].startswith(WATCHED):
        _seen.add(details[0])


def _publish() -> None:
    from IPython.display import display

    files = sorted(str(Path(file).relative_to(paths.REPOSITORY)) for file in _seen)
    _seen.clear()
    if files:
        display({READS: files}, raw=True)
