"""adapter_model.safetensors: its header read and checked before any of its numbers are."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.strict import naming, one_line, parse_json, shown

PREFIX = "base_model.model."  # PEFT's wrapping, before the module's own name
TENSOR_NAME = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
MAX_HEADER = 16 << 20  # bytes; a hundred thousand factors take less
MAX_NAME = 500
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes a number

# What PEFT's other tensors are, by a part of their names.
OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitude",
    "lora_embedding_": "the adapter of an embedding",
    "lora_diag": "KaSA's singular values",
    ".bias": "a bias",
    "modules_to_save": "a whole trained module",
    "trainable_tokens": "trained token embeddings",
    "embed_tokens.weight": "a whole embedding",
    "lm_head.weight": "a whole output layer",
    "lora_A.": "its name holds an adapter's name, which save_pretrained leaves out",
    "lora_B.": "its name holds an adapter's name, which save_pretrained leaves out",
}


@dataclass(frozen=True)
class Entry:
    """A tensor as the header declares it."""

    dtype: str
    shape: tuple[int, ...]


Header = Mapping[str, Entry]


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors by name; raises TipminiError unless they lie inside the file.

    Reads the header alone, and no more than MAX_HEADER bytes whatever length it claims.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, MAX_HEADER):
            raise _no_header(start, length, size)
        text = stream.read(length)
    return _parse_header(text, size - 8 - length)


def _no_header(start: bytes, length: int, size: int) -> TipminiError:
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        return TipminiError("a pickle, which could run code; save the adapter as safetensors")
    return _unreadable(f"its header claims {length} bytes, the file has {size}")


def _parse_header(text: bytes, data: int) -> dict[str, Entry]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _unreadable(f"its header: {one_line(error)}") from None
    if not isinstance(header, dict):
        raise _unreadable("its header is no JSON object")
    header.pop("__metadata__", None)
    return {name: _entry(name, entry, data) for name, entry in header.items()}


def _entry(name: str, entry: object, data: int) -> Entry:
    """One entry; `data` is how many bytes there are after the header."""
    if isinstance(entry, dict):
        dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and _counts(shape) and _counts(place) and len(place) == 2:
            length = math.prod(shape) * DTYPES.get(dtype, 0)
            fits = place[0] <= place[1] <= data
            if fits and (dtype not in DTYPES or length == place[1] - place[0]):
                return Entry(dtype, tuple(shape))
    raise _unreadable(f"tensor {shown(name)} is not where its header says: {shown(entry)}")


def _counts(values: object) -> bool:
    """Whole numbers of 40 bits, and few: their product stays small enough to compute."""
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**40 for value in values)
    )


def _unreadable(why: str) -> TipminiError:
    return TipminiError(f"not a readable safetensors file ({why})")


# Which tensors an adapter may have -------------------------------------------------------------


def tensor_problems(header: Header) -> list[str]:
    """Why the tensors are not the factors of linear modules, one line each; [] when they are."""
    if not header:
        return ["holds no tensor; an adapter has lora_A and lora_B"]
    strange = [name for name in header if not _factor(name)]
    problems = [
        f"{one_line(name)} is no LoRA factor of a linear module{_what(name)}" for name in strange
    ]
    for module in modules_of(header):
        problems += _module_problems(header, module)
    return problems


def _factor(name: str) -> re.Match | None:
    return TENSOR_NAME.fullmatch(name) if len(name) <= MAX_NAME and name.isprintable() else None


def _what(name: str) -> str:
    return next((f"; it is {what}" for part, what in OTHERS.items() if part in name), "")


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that have a factor, in the order of the names."""
    return list(dict.fromkeys(found["module"] for name in names if (found := _factor(name))))


def factor_names(module: str) -> tuple[str, str]:
    """The names of A and B."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _module_problems(header: Header, module: str) -> list[str]:
    names = factor_names(module)
    if missing := [name for name in names if name not in header]:
        return [f"{name} is missing" for name in missing]
    a, b = (header[name] for name in names)
    if ".base_layer." in f".{module}.":
        return [f"{module}: PEFT's adapter of an attention in one piece can't be merged"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return [f"{module}: lora_A must be (r, k) and lora_B (d, r), got {a.shape} and {b.shape}"]
    if 0 in a.shape or 0 in b.shape:
        return [f"{module}: no side may be 0 and no rank is 0, got {a.shape} and {b.shape}"]
    if not {a.dtype, b.dtype} <= DTYPES.keys():
        kinds = ", ".join(DTYPES)
        return [f"{module}: factors must be one of {kinds}, got {shown(a.dtype)}, {shown(b.dtype)}"]
    return []


# Their numbers ---------------------------------------------------------------------------------


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors by name, all finite; raises TipminiError for a damaged file.

    Copies: safetensors maps the file, and who writes into a mapped file ends our process.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(one_line(error)) from None
    refuse_non_finite(tensors)
    return tensors


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Any file of floating tensors, such as norms; raises TipminiError that names the file."""
    try:
        with naming(file):
            for name, entry in read_header(file).items():
                if entry.dtype not in DTYPES:
                    raise TipminiError(
                        f"tensor {one_line(name)} must be one of {', '.join(DTYPES)}"
                    )
            return read_tensors(file)
    except OSError as error:
        raise TipminiError(f"{file}: cannot be read ({one_line(error)})") from None


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises TipminiError that names the first tensor with NaN or Inf."""
    for name, tensor in tensors.items():
        if not math.isfinite(largest(tensor)):
            raise TipminiError(f"tensor {name} has NaN or Inf; every number must be finite")


def largest(tensor: Tensor) -> float:
    """The largest magnitude, NaN if one is; in one pass without a copy, so memory stays bounded."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return max(abs(low.item()), abs(high.item())) if low == low else math.nan
