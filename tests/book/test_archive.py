"""The release archive: whole, the same twice, and of nothing but the commit and its book."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from checkouts import git

from tipmini.errors import TipminiError
from tipmini_lab.book.site import archive, buttons
from tipmini_lab.book.site.origin import ARCHIVED, origin

FILES = {
    "CITATION.cff": "title: tipmini\nversion: 1.2.3\n",
    ARCHIVED: "$Format:%H %cI$\n",
    ".gitattributes": f"{ARCHIVED} export-subst\n",
    ".gitignore": "_build/\n.venv\n__pycache__/\n",
    ".github/workflows/book.yml": "on: push\n",
    ".binder/postBuild": "#!/bin/sh\n",
    "results/a.json": "{}\n",
    "scripts/run": "#!/bin/sh\n",
}
IGNORED = ["_build/model.gguf", ".venv/x", "tipmini/__pycache__/x.pyc"]
BOOK = {"book/about.html": "about", "_images/a.svg": "<svg/>", ".buildinfo": "Sphinx's own"}


@pytest.fixture
def release(tmp_path) -> Path:
    """A committed project with a book built of it, and all that must stay out."""
    project = tmp_path / "project"
    for name, text in FILES.items() | {name: "x" for name in IGNORED}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "scripts/run").chmod(0o755)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "x")
    build(project)
    return project


def build(project: Path) -> None:
    told = {"version": "1.2.3", "commit": str(origin({}, project).commit), "errata": None}
    for name, text in {**BOOK, "index.html": buttons.foot(told, str)}.items():
        (project / "_build/html" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "_build/html" / name).write_text(text)


def packed(project: Path) -> Path:
    return archive.write(project / "_build/html", project / "_build", project)


def test_it_holds_the_commit_and_the_book_and_nothing_else(release, tmp_path):
    out, commit = packed(release), origin({}, release).commit
    name = f"tipmini-1.2.3-{commit.name[:10]}"
    assert out == release / f"_build/{name}.tar"
    subprocess.run(["tar", "xf", out], cwd=tmp_path, check=True)
    top = tmp_path / name
    held = {f.relative_to(top).as_posix() for f in top.rglob("*") if f.is_file()}
    book = {f"book/{n}" for n in [*BOOK, "index.html"] if n != ".buildinfo"}
    assert held == {f"sources/{n}" for n in FILES} | book | {"CITATION.cff", archive.MANIFEST}
    assert (top / "sources" / ARCHIVED).read_text() == f"{commit.name} {commit.date}\n"
    assert (top / "sources/scripts/run").stat().st_mode & 0o111
    check = ["sha256sum", "--check", "--strict", "--quiet", archive.MANIFEST]
    subprocess.run(check, cwd=top, check=True)
    assert len((top / archive.MANIFEST).read_text().splitlines()) == len(held) - 1
    (top / "sources/results/a.json").write_text("{1}\n")
    assert subprocess.run(check, cwd=top, capture_output=True).returncode


def test_a_second_clone_makes_the_same_bytes(release, tmp_path):
    first = packed(release).read_bytes()
    other = tmp_path / "a" / "clone"
    git(tmp_path, "clone", "-q", release, other)
    shutil.copytree(release / "_build/html", other / "_build/html")
    for file in other.rglob("*"):
        if ".git" not in file.parts:
            file.touch()
    (other / "CITATION.cff").chmod(0o600)
    assert packed(other).read_bytes() == first
    with tarfile.open(packed(other)) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}


def test_what_is_not_the_book_of_the_commit_is_refused(release):
    (release / "new").touch()
    with pytest.raises(TipminiError, match="there are changes"):
        packed(release)
    git(release, "add", ".")
    git(release, "commit", "-qm", "another")
    with pytest.raises(TipminiError, match="is not of commit"):
        packed(release)
    build(release)
    packed(release)
    shutil.rmtree(release / ".git")
    with pytest.raises(TipminiError, match="or no commit"):
        packed(release)
