"""Where everything lies: the one module that knows paths.

Profiles, experiments, stored results and the book lie in a checkout of this project. None of it is
installed with the package, so what reads it runs in a checkout alone.
"""

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from tipmini.errors import TipminiError

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
ADAPTERS = REPOSITORY / "adapters"
OWN_SEEDS = ADAPTERS / "own-seeds"  # the same tasks' again, trained each from a seed of its own
NOTEBOOKS = REPOSITORY / "notebooks"
BOOK = REPOSITORY / "book"
BUILD = REPOSITORY / "_build"
PRINTED = BOOK / "printed.yaml"
RECORDS = BOOK / "records.yaml"
CLAIMS = BOOK / "claims"  # a file a paper
BENCH = REPOSITORY / "results" / "bench.json"
REHEARSAL = REPOSITORY / "results" / "rehearsal.json"
GPU = REPOSITORY / "results" / "gpu"  # a file a machine
NAME = r"^[a-z0-9][a-z0-9._-]{0,199}$"  # of what has files or folders of that name


def cache() -> Path:
    """The folder for what can be fetched again: ``TIPMINI_CACHE`` or the platform's user cache."""
    import platformdirs  # the command line starts without it

    return Path(os.environ.get("TIPMINI_CACHE") or platformdirs.user_cache_dir("tipmini"))


def declared(folder: str) -> list[str]:
    """The names of YAML files in a folder of the checkout: profiles, groups of experiments."""
    return sorted(file.stem for file in (REPOSITORY / folder).rglob("*.yaml"))


def experiment_files(prunings: bool, folder: Path = EXPERIMENTS) -> dict[str, Path]:
    """The declared experiments, a folder a paper, by the file's name: of prunings or of merges.

    A file that has `plans` declares prunings; those of `own_groups` are neither. Raises
    TipminiError where two have one name.
    """
    every, own = _experiment_files(folder), own_groups(folder=folder)
    plans = {n: "\nplans:" in f"\n{file.read_text()}" for n, file in every.items() if n not in own}
    return {name: every[name] for name, those in plans.items() if those == prunings}


def own_groups(module: str = r"\w+", folder: Path = EXPERIMENTS) -> dict[str, Path]:
    """The files that name the module of tipmini_lab.experiments by which they are measured."""
    named = re.compile(rf"(?m)^module: {module}$")
    return {
        n: file for n, file in _experiment_files(folder).items() if named.search(file.read_text())
    }


def _experiment_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*/*.yaml")):
        if file.stem in found:
            raise TipminiError(f"{file}: {found[file.stem]} has its name; give it another")
        found[file.stem] = file
    return found


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
