"""What the workflow's steps depend on, and the call that runs it."""

import json
import subprocess
import sys
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import parity, serving
from tipmini_lab.evaluation import assets
from tipmini_lab.experiments import catalogue, declared, formats
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.locks import alone
from tipmini_lab.results import digests

SNAKEFILE = paths.REPOSITORY / "workflow" / "Snakefile"
COMPUTING = (
    "tipmini/papers",
    "tipmini/models",
    "tipmini/methods",
)  # rooms that numbers follow from
COMPUTING += ("tipmini_lab/evaluation", "tipmini_lab/results", "tipmini_lab/experiments")
SHOWING = "tipmini_lab/book"
PUBLISHING = (
    "again",
    "claims",
    "front_page",
    "performance",
    "staging",
    "workflow",
)  # not in notebooks
MEMORY = 6000  # MB that measurements side by side may take


def notebooks() -> list[str]:
    return sorted(file.stem for file in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))


def notebook_digest(name: str) -> str:
    """Of the code cells alone: prose can be edited without executing the notebook again."""
    cells = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return digests.digest(["".join(c["source"]) for c in cells if c["cell_type"] == "code"])


def measurement_digest(profile: str) -> str:
    """Of everything that a stored number can depend on."""
    adapters = list(paths.ADAPTERS.rglob("*.safetensors"))
    chosen = load_profile(profile).model_dump_json()
    return digests.digest([chosen, _contents(_modules(*COMPUTING)), _contents(adapters)])


def again_digest() -> str:
    """Of everything that computing again depends on: the code, and what it is compared with."""
    stores = (load_profile("mini").store, paths.REPOSITORY / formats.STORE)
    files = [file for store in stores for file in store.rglob("*.*") if file.is_file()]
    own = paths.REPOSITORY / SHOWING / "again.py"
    return digests.digest([measurement_digest("mini"), _contents([own, *files])])


def reads_again(name: str) -> bool:
    """Whether a notebook tells what was computed again on this machine."""
    return "again." in (paths.NOTEBOOKS / f"{name}.ipynb").read_text()


def inputs_digest(profile: str) -> str:
    """Of everything that a notebook's outputs depend on besides its own code."""
    mini = load_profile("mini")
    stores = (load_profile("full").store, mini.variant_store, mini.selection_store)
    stores += (mini.pruning_store,)
    data = [paths.PRINTED, *(file for store in stores for file in store.rglob("*.json"))]
    data += [*catalogue.FOLDER.glob("*.yaml"), declared.FILE, paths.BENCH, serving.STORED]
    shown = [file for file in _modules(SHOWING) if not {*file.parts, file.stem} & {*PUBLISHING}]
    return digests.digest([measurement_digest(profile), _contents([*data, *shown])])


def _modules(*rooms: str) -> list[Path]:
    return [file for room in rooms for file in (paths.REPOSITORY / room).rglob("*.py")]


def builder_digest() -> str:
    """Of what stages and builds the book."""
    return _contents(_modules(SHOWING))


def assets_digest() -> str:
    return digests.digest([assets.folder().name, str(paths.cache())])


def pages() -> list[str]:
    """Every file of the book but its notebooks, and the stored results that pages show."""
    files = [file for file in paths.BOOK.rglob("*") if file.is_file()]
    tops = [paths.REPOSITORY / name for name in ("_config.yml", "_toc.yml")]
    tops += [parity.STORED, paths.BENCH, *(paths.REPOSITORY / formats.STORE).rglob("*.json")]
    return sorted(str(file.relative_to(paths.REPOSITORY)) for file in [*files, *tops])


def _contents(files: list[Path]) -> str:
    root = paths.REPOSITORY
    return digests.digest(
        [[str(f.relative_to(root)), digests.file_digest(f)] for f in sorted(files)]
    )


RUNNING = ["--cores", "all", "--resources", f"mem_mb={MEMORY}", "gpu=1"]
RUNNING += ["--rerun-incomplete", "--quiet", "rules"]


def run(profile: str) -> None:
    """Execute what is not up to date; after a kill, only what was lost.

    Raises
    ------
    TipminiError
        Another run is at work here, or a step failed (its own message stands above).
    """
    load_profile(profile)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--directory", str(paths.REPOSITORY), "--config", f"profile={profile}"]
    try:
        with alone(paths.BUILD, wait=False):
            done = _execute(command)
    except BlockingIOError:
        raise TipminiError(f"{paths.BUILD}: another run is at work; wait for its end") from None
    if done.returncode:
        raise TipminiError("book: a step failed, see above; the same command goes on from there")


def _execute(command: list[str]) -> subprocess.CompletedProcess:
    if not (paths.BUILD / "html" / "index.html").is_file():
        (paths.BUILD / "published").unlink(missing_ok=True)
    locks = paths.REPOSITORY / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        # A killed run leaves Snakemake's own; that nobody else runs is known by ours.
        subprocess.run([*command, "--unlock", "--quiet", "all"], capture_output=True)
    return subprocess.run([*command, *RUNNING])
