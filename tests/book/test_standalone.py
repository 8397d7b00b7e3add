"""A downloaded notebook brings along what it needs: run in an empty folder, as a reader would."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from tipmini_lab import paths
from tipmini_lab.book.site.origin import Commit, Origin
from tipmini_lab.book.site.standalone import begin

NAME = "01_importance"


def elsewhere(folder: Path) -> dict[str, str]:
    """The environment of a Python that has all packages of this one, but not this project."""
    packages = folder / "site-packages"  # by which dill knows what need not be pickled
    packages.mkdir()
    for place in map(Path, filter(lambda p: p.endswith("site-packages"), sys.path)):
        for entry in place.iterdir():
            if "tipmini" not in entry.name:
                (packages / entry.name).symlink_to(entry)
    venv.create(folder / "venv", with_pip=False)
    # Nothing is fetched: pip finds what the project depends on, and builds it with what is here.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    return os.environ | offline | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}


def run(*command, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def committed(folder: Path) -> str:
    """A commit, in a repository in `folder`, of the project as it is here; committed or not."""
    git = ["git", f"--git-dir={folder}", f"--work-tree={paths.REPOSITORY}"]
    author = ["-c", "user.name=a reader", "-c", "user.email=reader@example.org"]
    run("git", "init", "-q", "--bare", folder)
    run(*git, "add", "--all")
    run(*git, *author, "-c", "commit.gpgsign=false", "commit", "-qm", "as it is")
    return run(*git, "rev-parse", "HEAD").strip()


def test_a_downloaded_notebook_runs_in_an_empty_folder(tmp_path, embedded):
    environment = elsewhere(tmp_path) | {"TIPMINI_SOURCE": str(tmp_path / "source")}
    known = Origin({}, None, commit=Commit(committed(tmp_path / "source"), "2026-01-01", False))
    empty = tmp_path / "empty"
    empty.mkdir()
    page = begin(nbformat.read(paths.NOTEBOOKS / f"{NAME}.ipynb", 4), known)
    nbformat.write(page, empty / "page.ipynb")
    python = tmp_path / "venv" / "bin" / "python"
    command = (python, "-m", "papermill", "--no-progress-bar", "page.ipynb", "done.ipynb")
    run(*command, cwd=empty, env=environment)
    done = nbformat.read(empty / "done.ipynb", 4)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    (brought,) = (folder for folder in empty.iterdir() if folder.is_dir())
    assert run("git", "rev-parse", "HEAD", cwd=brought).strip() == known.commit.name
    where = "import tipmini_lab; print(tipmini_lab.__file__)"
    assert run(python, "-c", where, cwd=empty, env=environment).startswith(str(brought))


@pytest.mark.parametrize(
    ("address", "commit", "told"),
    [
        (None, None, ['or ""', 'COMMIT = "HEAD"', 'FOLDER = "tipmini-HEAD"']),
        (
            "https://a.b/c/d",
            Commit("0123456789abcdef", "2026-01-01", False),
            [
                'or "https://a.b/c/d"',
                'COMMIT = "0123456789abcdef"',
                'FOLDER = "tipmini-0123456789"',
            ],
        ),
    ],
)
def test_the_first_cell_names_the_sources_and_is_not_shown(address, commit, told):
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    first, title = begin(page, Origin({}, address, commit=commit)).cells
    assert all(line in first.source for line in told)
    assert first.metadata.tags == ["remove-cell"] and title.source == "# Title"
    nbformat.validate(page)
    exec(compile(first.source, "first cell", "exec"), {})  # here it has nothing to do


def test_the_sources_can_be_a_folder_beside_the_notebook(tmp_path, monkeypatch):
    beside = tmp_path / "my copy"
    beside.mkdir()
    run("git", "init", "--quiet", cwd=beside)
    ours = ("-c", "user.name=a", "-c", "user.email=b")
    run("git", *ours, "commit", "--quiet", "--allow-empty", "-m", "first", cwd=beside)
    first, *_ = begin(nbformat.v4.new_notebook(), Origin({})).cells
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIPMINI_SOURCE", beside.name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "executable", "true")  # instead of pip and what fetches
    exec(compile(first.source, "first cell", "exec"), {})
    (brought,) = (folder for folder in tmp_path.iterdir() if folder != beside)
    assert run("git", "log", "--format=%s", cwd=brought) == "first\n"
