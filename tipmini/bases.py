"""Whether adapters belong to one base model: a merge across models is noise that looks fine."""

import re
from collections.abc import Mapping

from tipmini.errors import TipminiError


def common_base(bases: Mapping[str, str | None]) -> str | None:
    """The base model of all adapters, given each one's by the adapter's name; None if none is told.

    Two names mean one model when their last parts agree, so that a folder and the hub's name of
    it do ("/data/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"); the hub's name is then returned.
    An adapter that names none fits any. Raises TipminiError that names two that differ.
    """
    told = {name: base for name, base in bases.items() if base}
    if not told:
        return None
    first, *others = told
    for other in others:
        if _last(told[first]) != _last(told[other]):
            raise TipminiError(
                f"adapters of different base models: {first} of {told[first]}, {other} of "
                f"{told[other]}; if they are one model, name it (base_model, --base-model)"
            )
    return min(told.values(), key=lambda base: (not _is_hub_name(base), base))


def _last(base: str) -> str:
    """The model's own name. The hub's cache has it in models--org--name/snapshots/<commit>."""
    cached = re.search(r"models--[^/]*?--([^/]+)/snapshots/", base.replace("\\", "/") + "/")
    return (cached[1] if cached else re.split(r"[/\\]", base.rstrip("/\\"))[-1]).lower()


def _is_hub_name(base: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None
