"""Adapters of the hub, by OWNER/NAME: folders of the hub's cache, fetched where they are not there.

After the name may come /SUBFOLDER, as in PEFT's `subfolder`, and @REVISION. Of huggingface_hub,
which merging needs for nothing else, nothing is imported before an id is met.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini.models.identity import CACHED

ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)(?:@((?!.*\.\.)\w[\w./-]*))?")


def folder_of(path: str | os.PathLike, files: Sequence[str]) -> Path:
    """The path itself, but for an id that no folder has: then its folder in the hub's cache.

    files: patterns of what is fetched of it; of the rest nothing is. Where there is a folder OWNER,
    the id may be a path that was mistyped: the cache is looked into, but the hub is asked only for
    a revision that is told. Raises TipminiError of one line where neither has it.
    """
    asked = ID.fullmatch(str(path))
    if asked is None or os.path.lexists(path):
        return Path(path)
    name, inner, revision = asked[1], asked[2].removeprefix("/"), asked[3]
    mistyped = not revision and os.path.isdir(name.partition("/")[0])
    try:
        wanted = [f"{inner}/{file}" if inner else file for file in files]
        folder = fetched(name, wanted, revision, local=mistyped) / inner
    except TipminiError as error:
        why = str(error).removeprefix(f"{name}: ")
        if mistyped:
            why = f"not in the hub's cache; mend the path, or ask the hub for {path}@main"
        raise TipminiError(f"{path}: no such folder, and {why}") from None
    if not folder.is_dir():
        raise TipminiError(f"{path}: {name} on the hub has nothing of an adapter in {inner}")
    return folder


def fetched(
    name: str, files: Sequence[str], revision: str | None = None, *, local: bool = False
) -> Path:
    """The hub's OWNER/NAME in the cache, with the files that patterns name and no others.

    local: the cache alone is looked into. Raises TipminiError of one line that says why there is
    nothing.
    """
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ModuleNotFoundError:
        why = "the hub's are read with huggingface_hub: pip install huggingface_hub"
        raise TipminiError(f"{name}: {why}") from None
    try:
        told = {"revision": revision} if revision else {}
        told |= {"local_files_only": True} if local else {}
        return Path(snapshot_download(name, allow_patterns=[*files], **told))
    except errors.GatedRepoError:
        why = "it is gated: accept its terms on the hub, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "the hub has no such repository, or a private one (`hf auth login`)"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision}"
    except Exception as error:  # of the several libraries that reach the hub
        first = str(error).strip().partition("\n")[0]
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else one_line(first)
    raise TipminiError(f"{name}: not in the hub's cache and not fetched: {why}")


def source(folder: str | os.PathLike) -> str | None:
    """The id and commit that a folder of the hub's cache is of, as `folder_of` takes it."""
    found = CACHED.search(str(folder))
    return found and f"{found[1]}/{found[2]}{found[4] or ''}@{found[3]}"
