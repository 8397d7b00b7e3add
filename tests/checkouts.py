"""A copy of the project to run the workflow in, and git in a folder."""

import shutil
import subprocess
from pathlib import Path

from tipmini_lab import paths


def checkout(folder: Path) -> Path:
    """A copy of the project that nothing was built or measured in; large data are linked."""
    for name in ("tipmini", "tipmini_lab", "workflow", "profiles", "experiments", "book"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(paths.REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("results", "adapters", "notebooks", "CITATION.cff", "CHANGELOG.md"):
        (folder / name).symlink_to(paths.REPOSITORY / name)
    return folder


def git(folder: Path, *command: str, given: str = "") -> str:
    """What git answers, as somebody whose settings sign nothing."""
    who = ("-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false")
    how = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    return subprocess.run(["git", *who, *command], input=given, **how).stdout
