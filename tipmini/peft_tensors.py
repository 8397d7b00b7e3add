"""Which tensors an adapter_model.safetensors may hold, judged by its header alone."""

import re
from collections.abc import Iterable, Mapping

from tipmini.strict import one_line, shown
from tipmini.tensor_header import FLOATING, Entry

Header = Mapping[str, Entry]

PREFIX = "base_model.model."  # PEFT's wrapping, before the module's own name
FACTOR_NAME = re.compile(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight")
MAX_NAME = 500

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


def tensor_problems(header: Header) -> list[str]:
    """Why the tensors are not the factors of linear modules, one line each; [] when they are."""
    if not header:
        return ["holds no tensor; an adapter has lora_A and lora_B"]
    strange = [name for name in header if not _module_of(name)]
    problems = [
        f"{one_line(name)} is no LoRA factor of a linear module{_what(name)}" for name in strange
    ]
    for module in modules_of(header):
        problems += _module_problems(header, module)
    return problems


def _module_of(name: str) -> str | None:
    """The module that has a factor of this name."""
    if len(name) > MAX_NAME or not name.isprintable():
        return None
    found = FACTOR_NAME.fullmatch(name)
    return found[1] if found else None


def _what(name: str) -> str:
    return next((f"; it is {what}" for part, what in OTHERS.items() if part in name), "")


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that have a factor, in the order of the names."""
    return list(dict.fromkeys(filter(None, map(_module_of, names))))


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
    if not {a.dtype, b.dtype} <= FLOATING.keys():
        kinds = ", ".join(FLOATING)
        return [f"{module}: factors must be one of {kinds}, got {shown(a.dtype)}, {shown(b.dtype)}"]
    return []
