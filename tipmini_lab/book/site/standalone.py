"""What lets a downloaded notebook run alone: a first cell that brings the project along."""

import nbformat

from tipmini_lab.book.site.origin import Origin

CELL = """\
# Runs this notebook anywhere: brings the project as it was when the page was built, and all that it
# needs. Does nothing where it is installed. TIPMINI_SOURCE names another copy of its repository.
import importlib.util
import os
import subprocess
import sys

SOURCE = os.environ.get("TIPMINI_SOURCE") or "{source}"
COMMIT = "{commit}"
FOLDER = "tipmini-{short}"


def run(*command):
    subprocess.run(command, check=True, cwd=FOLDER)


if importlib.util.find_spec("tipmini_lab") is None:
    if not SOURCE:
        raise SystemExit("Set TIPMINI_SOURCE to the address or folder of tipmini's repository.")
    if os.path.isdir(SOURCE):
        SOURCE = os.path.abspath(SOURCE)  # git is run in another folder
    os.makedirs(FOLDER, exist_ok=True)
    run("git", "init", "--quiet")
    run("git", "fetch", "--quiet", "--depth=1", SOURCE, COMMIT)
    run("git", "checkout", "--quiet", "FETCH_HEAD")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "requirements.lock")
    run(*pip, "--editable", ".[lab]")
    run(sys.executable, "-m", "tipmini_lab.commands.main", "fetch")  # the model and the data
    sys.path.insert(0, os.path.abspath(FOLDER))
"""


def begin(notebook: nbformat.NotebookNode, known: Origin) -> nbformat.NotebookNode:
    """Put that cell first; pages do not show it."""
    commit = known.commit.name if known.commit else "HEAD"
    source = CELL.format(source=known.address or "", commit=commit, short=commit[:10])
    cell = nbformat.v4.new_code_cell(
        source.strip(), id="bring-along", metadata={"tags": ["remove-cell"]}
    )
    notebook.cells.insert(0, cell)
    return notebook
