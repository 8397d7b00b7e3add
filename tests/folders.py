"""Adapter folders, whole and then edited, and the line with which they are refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tiny import peft_llama

from tipmini.errors import TipminiError
from tipmini.models.adapter import load_adapter
from tipmini.models.peft_folder import inspect_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULE = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"


def write_peft(folder: Path, **arguments) -> Path:
    """A folder as PEFT itself writes it."""
    peft_llama(default=arguments).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused; the inspection says the same."""
    with pytest.raises(TipminiError) as caught:
        load_adapter(folder)
    line = str(caught.value)
    assert line.startswith(str(folder)) and len(line.splitlines()) == 1 and line.isprintable()
    assert inspect_folder(folder)["problems"]
    return line.removeprefix(str(folder))


def parts(data: bytes) -> tuple[dict, bytes]:
    """The header and the numbers of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | bytes, numbers: bytes) -> bytes:
    """A safetensors file of any header and numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def factors_file(**changes: torch.Tensor | None) -> bytes:
    """A file of the module's factors, changed: a, b, or any other name."""
    found = {"a": torch.ones(4, 32), "b": torch.ones(32, 4)} | changes
    names = {"a": A, "b": A.replace("lora_A", "lora_B")}
    return save({names.get(k, k): t for k, t in found.items() if t is not None})
