"""The workflow's jobs on a Slurm cluster, by Snakemake's own plugin."""

import hashlib
import importlib.util
import os
import subprocess
import time
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini_lab import paths

PLUGIN = "snakemake_executor_plugin_slurm"
ASIDE = paths.BUILD / "slurm"  # where scripts/slurm puts it
GONE = 120  # seconds that cancelled jobs may take


def options(settings: Path) -> list[str]:
    """Of Snakemake, with the settings of a folder; jobs that a killed run left are cancelled first.

    They outlive Snakemake, and two jobs would do the same. They are known by their name, which has
    this checkout's address in it. Raises TipminiError without settings, plugin or Slurm.
    """
    if not (settings / "config.yaml").is_file():
        raise TipminiError(f"{settings}: no config.yaml there; workflow/slurm has one to copy")
    if not (ASIDE / PLUGIN).is_dir() and importlib.util.find_spec(PLUGIN) is None:
        raise TipminiError("Snakemake's plugin for Slurm is missing; run scripts/slurm")
    _cancel(name())
    return ["--profile", str(settings.resolve()), "--slurm-jobname-prefix", name()]


def name() -> str:
    """What the names of this checkout's jobs begin with."""
    return f"tipmini-{hashlib.sha256(str(paths.REPOSITORY).encode()).hexdigest()[:12]}"


def environment() -> dict[str, str]:
    """That Snakemake finds its plugin in; the jobs inherit it."""
    found = [str(ASIDE)] if (ASIDE / PLUGIN).is_dir() else []
    given = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join(found + ([given] if given else []))}


def _cancel(prefix: str) -> None:
    """Cancel the jobs whose name starts so, and wait until they are gone."""
    left = _jobs(prefix)
    if left:
        print(f"cancelling {len(left)} jobs that a killed run left in the queue", flush=True)
        subprocess.run(["scancel", *left])  # it fails of one that has ended meanwhile
    end = time.monotonic() + GONE
    while left := _jobs(prefix):
        if time.monotonic() > end:
            raise TipminiError(f"jobs {', '.join(left)} don't end; see squeue, then run again")
        time.sleep(1)


def _jobs(prefix: str) -> list[str]:
    """The ids of one's own jobs, waiting, running or ending, whose name starts so."""
    try:
        told = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i %j"], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise TipminiError("no Slurm here: there is no squeue") from None
    if told.returncode:
        why = (told.stderr.strip().splitlines() or [f"squeue: exit code {told.returncode}"])[-1]
        raise TipminiError(f"Slurm does not answer: {why}")
    lines = (line.split(maxsplit=1) for line in told.stdout.splitlines())
    return [job for job, called in lines if called.startswith(prefix)]
