"""What the workflow's steps depend on, and the call that runs it.

Code counts as far as imports lead from a step's own; data by what folders hold.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from tipmini.errors import TipminiError, require
from tipmini_lab import paths
from tipmini_lab.book import slurm
from tipmini_lab.experiments import groups
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.locks import alone
from tipmini_lab.results import digests

RESULTS = paths.REPOSITORY / "results"


# Code ---------------------------------------------------------------------------------------------


def notebooks() -> list[str]:
    return sorted(file.stem for file in paths.NOTEBOOKS.glob("*.ipynb"))


def code(name: str) -> str:
    """A notebook's code cells, each told from the next: an edit of its prose changes nothing."""
    cells = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return "\n# %%\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def reached(text: str) -> set[Path]:
    """Modules of this project that a program imports, directly or not."""
    found, ends = set(), imported(text)
    while ends:
        found |= ends
        places = [(f.read_text(), f.relative_to(paths.REPOSITORY).parent.parts) for f in ends]
        ends = set().union(*(imported(text, ".".join(p)) for text, p in places)) - found
    return found


@cache
def imported(text: str, package: str = "") -> set[Path]:
    """By statements, and by strings that name a module, in full or below the program's own
    package; "sums:sum_linear" is one."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            case ast.Constant(value=str(told)):
                names |= {told.partition(":")[0], f"{package}.{told.partition(':')[0]}"}
    ours = [name.replace(".", "/") for name in names if re.fullmatch(r"tipmini[\w.]*", name)]
    files = (paths.REPOSITORY / f"{name}{end}" for name in ours for end in (".py", "/__init__.py"))
    return {file for file in files if file.is_file()}


def reads_again(name: str) -> bool:
    """Whether a notebook tells what was computed again on this machine."""
    return paths.REPOSITORY / "tipmini_lab/book/again.py" in reached(code(name))


# Digests ------------------------------------------------------------------------------------------


def digest(profile: str, program: str, *places: Path) -> str:
    """Of a profile, a program, what it imports, and the contents of files and folders."""
    chosen = load_profile(profile).model_dump_json()
    found = sorted({*reached(program), *files(*places)})
    return digests.digest([chosen, program, [[f.name, _content(f)] for f in found]])


_content = cache(digests.file_digest)


def files(*places: Path) -> list[Path]:
    """The files, and those in folders; nothing of what isn't there."""
    inside = [f for place in places for f in ([place] if place.is_file() else place.rglob("*"))]
    return [f for f in inside if f.is_file() and f.suffix != ".pyc"]


def notebook_digest(name: str, profile: str) -> str:
    """Of everything that a notebook's outputs depend on; single files of results if named."""
    text = code(name)
    named = "".join(module.read_text() for module in reached(text))
    stored = [place for place in RESULTS.iterdir() if place.is_dir() or place.name in named]
    declared = paths.REPOSITORY / "experiments", paths.REPOSITORY / "profiles", paths.PRINTED
    return digest(profile, text, paths.ADAPTERS, *stored, *declared)


def splits(group: str) -> bool:
    """Whether jobs may share a group's variants. Not where some are chosen: each job would score
    all candidates, and write the same bundles from several nodes."""
    if groups.module_of(group) == groups.MERGES:
        return not catalogue().groups[group].choices
    return groups.module_of(group) == groups.PRUNINGS


def group_digest(profile: str, group: str | None) -> str:
    """Of what measures a declared group, or without one TIP's Table 1, and of what declares it."""
    module = groups.module_of(group) if group else groups.MERGES
    declared = [paths.EXPERIMENTS] if group else []
    program = f"import tipmini_lab.experiments.{module}"
    return digest(profile, program, paths.ADAPTERS, *declared)


def jobs(told: object) -> int:
    """The number of jobs that a group is split in; TipminiError for any that is not in reason."""
    if not re.fullmatch(r"[1-9]\d{0,2}", str(told)):
        raise TipminiError(f"jobs must be a whole number from 1 to 999, got {told!r}")
    return int(str(told))


# Running ------------------------------------------------------------------------------------------
STEPS = ("all", "measured", "trained", "reproduced")


def run(
    profile: str,
    step: str = "all",
    chosen: Sequence[str] = (),
    jobs: int = 1,
    cluster: Path | None = None,
) -> None:
    """Execute what is not up to date of a step; after a kill, only what was lost.

    chosen: groups to measure. jobs: in which each is split. cluster: the folder of Snakemake's
    settings for one; by default all runs here.

    Raises TipminiError where another run is at work here, or a step failed (its own message stands
    above).
    """
    load_profile(profile)
    require("step", step, STEPS)
    for group in chosen:
        require("group", group, paths.declared("experiments"))
    if profile.endswith(".yaml"):
        profile = str(Path(profile).resolve())
        _refuse_misread(profile)
    snakefile = paths.REPOSITORY / "workflow" / "Snakefile"
    command = [sys.executable, "-m", "snakemake", step, "--snakefile", str(snakefile)]
    command += ["--directory", str(paths.REPOSITORY)]
    command += ["--config", f"profile={profile}", f"groups=[{','.join(chosen)}]", f"jobs={jobs}"]
    command += ["--nolock", "--rerun-incomplete", "--quiet", "rules"]  # the lock is ours
    try:
        with alone(paths.BUILD, wait=False) as held:  # Snakemake holds it when this is killed
            if not (paths.BUILD / "html" / "index.html").is_file():
                (paths.BUILD / "published").unlink(missing_ok=True)
            if cluster:
                done = subprocess.run(
                    command + slurm.options(cluster), env=slurm.environment(), pass_fds=[held]
                )
            else:
                command += ["--cores", "all", "--resources", "mem_mb=6000", "gpu=1"]  # side by side
                done = subprocess.run(command, pass_fds=[held])
    except BlockingIOError:
        raise TipminiError(f"{paths.BUILD}: another run is at work; wait for its end") from None
    if done.returncode:
        raise TipminiError(f"{step}: a step failed, see above; the same command goes on from there")


def _refuse_misread(profile: str) -> None:
    """Raise TipminiError for a path that is another in YAML, as which Snakemake reads settings."""
    try:
        same = yaml.load(profile.strip("'\""), yaml.BaseLoader) == profile
    except yaml.YAMLError:
        same = False
    if not same:
        told = "Snakemake would read this path as another; give the file or its folder a plain name"
        raise TipminiError(f"profile {profile!r}: {told}")
