"""Wheels of data alone, small but good enough for pip."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tipmini_lab.evaluation.assets import Wheel


def wheel(folder: Path, name: str, content: Mapping[str, bytes]) -> Wheel:
    """A wheel in `folder` of the files in `content`, which are by their places in the cache."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    members = {f"{name}/{place}": place for place in content}
    with zipfile.ZipFile(file, "w") as archive:
        for member, place in members.items():
            archive.writestr(member, content[place])
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel(f"{name.replace('_', '-')}==1.0", digest, members)
