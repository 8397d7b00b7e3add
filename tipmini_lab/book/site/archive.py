"""The release archive: the sources and results of a commit, the book built of it, their hashes.

One file for a repository of records, which gives it a DOI. The same commit and book give the same
bytes: names in order, the commit's date for all files, nobody's name, no compression, whose output
differs between versions.
"""

import hashlib
import io
import subprocess
import tarfile
from datetime import datetime
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.site.origin import Commit, Origin, origin

MANIFEST = "MANIFEST.sha256"  # `sha256sum -c` reads it


def write(html: Path, into: Path, repository: Path = paths.REPOSITORY) -> Path:
    """Write TITLE-VERSION-COMMIT.tar into a folder and return it.

    Raises TipminiError where there are changes that are in no commit, or `html` is the book of
    other sources.
    """
    known = origin(repository=repository)
    commit = _committed(known, html)
    files = _sources(repository) | {
        f"book/{name}": content for name, content in _book(html).items()
    }
    files["CITATION.cff"] = files["sources/CITATION.cff"]
    hashes = (f"{hashlib.sha256(files[name][0]).hexdigest()}  {name}" for name in sorted(files))
    files[MANIFEST] = "\n".join([*hashes, ""]).encode(), False
    name = f"{known.citation['title']}-{known.citation['version']}-{commit.name[:10]}"
    if Path(name).name != name:
        raise TipminiError(f"archive: {name!r} is no file's name; mend title or version")
    out, part = into / f"{name}.tar", into / f".{name}.part"
    with tarfile.open(part, "w") as archive:
        for inner, (content, executable) in sorted(files.items()):
            entry = tarfile.TarInfo(f"{name}/{inner}")
            entry.size, entry.mode = len(content), 0o755 if executable else 0o644
            entry.mtime = int(datetime.fromisoformat(commit.date).timestamp())
            archive.addfile(entry, io.BytesIO(content))
    return part.replace(out)


def _committed(known: Origin, html: Path) -> Commit:
    if known.commit is None or known.commit.changed:
        raise TipminiError("archive: there are changes, or no commit; commit them and build again")
    front = html / "index.html"
    if not front.is_file() or f"commit {known.commit} ·" not in front.read_text():
        raise TipminiError(
            f"archive: {html} is not of commit {known.commit}; run `make book` first"
        )
    return known.commit


def _sources(repository: Path) -> dict[str, tuple[bytes, bool]]:
    """{name: (content, whether it is a program)} of all that the commit holds, and nothing else."""
    command = ["git", "archive", "--format=tar", "HEAD"]
    packed = subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {
            f"sources/{member.name}": (
                archive.extractfile(member).read(),
                bool(member.mode & 0o100),
            )
            for member in archive
            if member.isfile()
        }


def _book(html: Path) -> dict[str, tuple[bytes, bool]]:
    """The pages, without Sphinx's own notes, which begin with a dot."""
    files = {
        f.relative_to(html).as_posix(): f
        for f in html.rglob("*")
        if f.is_file() and not f.is_symlink()
    }
    return {name: (f.read_bytes(), False) for name, f in files.items() if f.name[0] != "."}
