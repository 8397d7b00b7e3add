"""The checkout of this project: profiles, experiments, stored results, the book.

None of it is installed with the package, so what reads it runs in a checkout alone.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from tipmini import source
from tipmini.errors import TipminiError

ROOT = Path(__file__).resolve().parents[1]


def in_checkout(command: Callable) -> Callable:
    """A command that refuses to run anywhere else."""

    @wraps(command)
    def checked(*given: object, **named: object) -> object:
        require(command.__name__)
        return command(*given, **named)

    return checked


def require(what: str) -> None:
    """Raise TipminiError unless the package lies in a checkout."""
    if not (ROOT / "workflow" / "Snakefile").is_file():
        raise TipminiError(
            f"{what} needs a checkout of the project, with its profiles, experiments and results; "
            "clone it, run `make setup` there, then .venv/bin/tipmini"
        )


# What the shell completes, without importing what these are names of ------------------------------


def task_names() -> tuple[str, ...]:
    return source.names("tipmini_lab.evaluation.documents", "ADAPTED")


def profile_names() -> list[str]:
    return _names("profiles")


def group_names() -> list[str]:
    return _names("experiments")


def _names(folder: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / folder).glob("*.yaml"))
