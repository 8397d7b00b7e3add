"""Where everything lies: the one module that knows paths.

Profiles, experiments, stored results and the book lie in a checkout of this project. None of it is
installed with the package, so what reads it runs in a checkout alone.
"""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from tipmini.errors import TipminiError

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
ADAPTERS = REPOSITORY / "adapters"
NOTEBOOKS = REPOSITORY / "notebooks"
BOOK = REPOSITORY / "book"
BUILD = REPOSITORY / "_build"
PRINTED = BOOK / "printed.yaml"
RECORDS = BOOK / "records.yaml"
CLAIMS = BOOK / "claims"  # a file a paper
BENCH = REPOSITORY / "results" / "bench.json"


def cache() -> Path:
    """The folder for what can be fetched again: ``TIPMINI_CACHE`` or the platform's user cache."""
    import platformdirs  # the command line starts without it

    return Path(os.environ.get("TIPMINI_CACHE") or platformdirs.user_cache_dir("tipmini"))


def declared(folder: str) -> list[str]:
    """The names of YAML files in a folder of the checkout: profiles, groups of experiments."""
    return sorted(file.stem for file in (REPOSITORY / folder).rglob("*.yaml"))


def experiment_files(prunings: bool, folder: Path = EXPERIMENTS) -> dict[str, Path]:
    """The declared experiments, a folder a paper, by the file's name: of prunings or of merges.

    A file that has `plans` declares prunings. Raises TipminiError where two have one name.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*/*.yaml")):
        if file.stem in found:
            raise TipminiError(f"{file}: {found[file.stem]} has its name; give it another")
        found[file.stem] = file
    plans = {name: "\nplans:" in f"\n{file.read_text()}" for name, file in found.items()}
    return {name: file for name, file in found.items() if plans[name] == prunings}


def in_checkout(command: Callable) -> Callable:
    """A command that refuses to run anywhere else."""

    @wraps(command)
    def checked(*given: object, **named: object) -> object:
        require_checkout(command.__name__)
        return command(*given, **named)

    return checked


def require_checkout(what: str) -> None:
    """Raise TipminiError unless the package lies in a checkout."""
    if not (REPOSITORY / "workflow" / "Snakefile").is_file():
        raise TipminiError(
            f"{what} needs a checkout of the project, with its profiles, experiments and results; "
            "clone it, run `make setup` there, then .venv/bin/tipmini"
        )
