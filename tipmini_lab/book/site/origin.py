"""Where this copy of the project comes from: its repository's address, its commit, its citation.

No file names an address. It is `TIPMINI_REPOSITORY`, else that of the CI that builds the book, else
`repository-code` of CITATION.cff; where there is none, no page has a link that would need one. So a
fork's book leads to the fork.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from tipmini.errors import TipminiError
from tipmini_lab import paths

ADDRESS = re.compile(r"https://[\w.-]+(:\d+)?(/[\w.-]+){2,}")
HOSTS = {"https://github.com/": "github", "https://gitlab.com/": "gitlab"}
BINDER = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
LAUNCHERS = {
    "github": BINDER | {"colab_url": "https://colab.research.google.com"},
    "gitlab": BINDER,
}
STATUS = "status", "--porcelain", "--untracked-files=normal"
ARCHIVED = ".git_archival.txt"  # git writes the commit into it when it packs the sources


class Commit(NamedTuple):
    """A commit of the sources, with the day it was made: no time of a build is in the book."""

    name: str
    date: str  # ISO 8601
    changed: bool  # the sources have changes that it does not have

    def __str__(self) -> str:
        return f"{self.name[:10]} of {self.date[:10]}" + ", with uncommitted changes" * self.changed


class Origin(NamedTuple):
    """What a copy knows of itself."""

    citation: dict
    address: str | None = None
    provider: str | None = None  # whose links the theme can write: github, gitlab
    commit: Commit | None = None

    @property
    def pinned(self) -> str | None:
        """The commit that links may name: it is known, and is what the pages show."""
        return self.commit.name if self.commit and not self.commit.changed else None

    @property
    def issues(self) -> str | None:
        """The address for errata."""
        return f"{self.address}/issues" if self.provider else self.address


def origin(environ: Mapping[str, str] = os.environ, repository: Path = paths.REPOSITORY) -> Origin:
    """The origin of the copy in `repository`; raises TipminiError for an address that is none."""
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    server, repository_of_ci = environ.get("GITHUB_SERVER_URL"), environ.get("GITHUB_REPOSITORY")
    in_ci = f"{server}/{repository_of_ci}" if server and repository_of_ci else ""
    named = environ.get("TIPMINI_REPOSITORY") or in_ci or citation.get("repository-code", "")
    address = named.rstrip("/").removesuffix(".git")
    if address and not ADDRESS.fullmatch(address):
        raise TipminiError(
            f"the repository's address must be as https://HOST/OWNER/NAME, got {named!r}"
        )
    provider = next((p for host, p in HOSTS.items() if address.startswith(host)), None)
    if provider is None and address and address == in_ci:
        provider = "github"  # on a server of one's own
    return Origin(citation, address or None, provider, _commit(repository))


def _commit(repository: Path) -> Commit | None:
    """Of the checkout, or of the packed sources; none where neither is known."""
    told = _git(repository, "log", "-1", "--no-show-signature", "--format=%H %cI")
    if told and _git(repository, "rev-parse", "--show-cdup") == "":  # not a folder of another one
        return Commit(*told.split(), changed=bool(_git(repository, *STATUS)))
    packed = repository / ARCHIVED
    archived = packed.read_text().split() if packed.is_file() else []
    if not archived or "Format" in archived[0]:  # no file, or one that git did not fill in
        return None
    return Commit(*archived, changed=False)


def _git(repository: Path, *command: str) -> str | None:
    """What git says; none where it is missing, or this is no checkout."""
    try:
        run = subprocess.run(["git", *command], cwd=repository, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if run.returncode else run.stdout.strip()


def settings(config: dict, known: Origin) -> dict:
    """The book's settings, with the buttons and the foot of every page that its origin allows.

    A button that opens a file elsewhere names the commit: without one that the pages are of, the
    repository and its issues alone are linked.
    """
    sphinx = config["sphinx"]["config"]
    foot = {"commit": known.commit and str(known.commit), "errata": known.issues}
    added = {"html_context": {"origin": foot | {"version": known.citation["version"]}}}
    if known.provider:
        added["html_theme_options"] = {
            "repository_url": known.address,
            "repository_provider": known.provider,
            "use_repository_button": True,
            "use_issues_button": True,
        }
    if known.provider and known.pinned:
        public = any(known.address.startswith(host) for host in HOSTS)
        added["html_theme_options"] |= {
            "repository_branch": known.pinned,
            "use_source_button": True,
            "launch_buttons": LAUNCHERS[known.provider] if public else {},
        }
    joined = {name: sphinx.get(name, {}) | options for name, options in added.items()}
    return config | {"sphinx": config["sphinx"] | {"config": sphinx | joined}}
