"""A copy of the project to run the workflow in."""

import shutil
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
