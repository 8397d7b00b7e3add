"""The files of a PEFT adapter folder: adapter_config.json beside adapter_model.safetensors.

Every error names its file.
"""

import hashlib
import os
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.strict import naming, one_line, parse_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # what older versions of PEFT wrote
INDEX = "adapter_model.safetensors.index.json"
MAX_CONFIG = 8 << 20  # bytes; twenty thousand modules named in full take less


def read_settings(folder: Path) -> object:
    """adapter_config.json as JSON; raises TipminiError when there is no such thing."""
    file = own_file(folder, CONFIG, "give the folder of a PEFT adapter")
    with naming(file), file.open("rb") as stream:
        data = stream.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise TipminiError(f"larger than {MAX_CONFIG >> 20} MB; settings take a few kB")
        try:
            return parse_json(data)
        except ValueError as error:
            raise TipminiError(f"not a readable JSON file ({one_line(error)})") from None


def weights_file(folder: Path) -> Path:
    """The file of the factors; raises TipminiError for a pickle or shards in its place."""
    found = ""
    if (folder / PICKLE).exists():
        found = f"{PICKLE} is a pickle, which could run code; "
    elif (folder / INDEX).exists():
        found = f"{INDEX} names other files, and an adapter is one; "
    return own_file(folder, WEIGHTS, f"{found}save the adapter as safetensors")


def refuse(file: Path, problems: list[str]) -> None:
    """Raise TipminiError that names the file and its first problem, if there is any."""
    if problems:
        more = len(problems) - 1
        tail = f" (and {more} more: `tipmini inspect` lists them)" if more else ""
        raise TipminiError(f"{file}: {problems[0]}{tail}")


def own_file(folder: Path, name: str, mend: str) -> Path:
    """The path of a file; refuses what is missing, no file, or a link that leaves the folder."""
    file = folder / name
    if not folder.is_dir():
        raise TipminiError(f"{folder}: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}")
    if not os.path.lexists(file):
        raise TipminiError(f"{file}: missing; {mend}")
    real = Path(os.path.realpath(file))
    if not any(real.is_relative_to(home) for home in _homes(folder)):
        raise TipminiError(f"{file}: a link that leaves the folder; copy the file it names here")
    if not file.is_file():  # a device or a pipe may never end
        raise TipminiError(f"{file}: not a file; {mend}")
    return file


def _homes(folder: Path) -> list[Path]:
    """The folder, and where the hub's cache keeps the files that its snapshots link to."""
    real = Path(os.path.realpath(folder))
    caches = [above.parent / "blobs" for above in real.parents if above.name == "snapshots"]
    return [real, *caches]


def weights_sha256(folder: Path) -> str:
    """The hash of the factors' file, as the hub shows it, for a model card."""
    with weights_file(folder).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
