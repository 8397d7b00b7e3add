"""Folders of PEFT's that something happened to: one line that names the file."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from folders import CONFIG, WEIGHTS, edit_config, write_peft
from safetensors.torch import load_file, save_file
from tiny import MODULES, random_adapter

from tipmini.errors import TipminiError
from tipmini.models.adapter import load_adapter

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def make_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def pickle_renamed(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    torch.save(tensors, folder / WEIGHTS)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def spoil(value: float):
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors[f"{Q0}.lora_A.weight"][1, 2] = value
        save_file(tensors, folder / WEIGHTS)

    return change


BROKEN = {
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG, "missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "missing; save"),
    "a pickle": (make_pickle, WEIGHTS, "adapter_model.bin is a pickle"),
    "a pickle in its place": (pickle_renamed, WEIGHTS, "a pickle, which could run code"),
    "an old pickle in its place": (
        lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": [1.0] * 99})),
        WEIGHTS,
        "a pickle, which could run code",
    ),
    "half a file": (truncate, WEIGHTS, "not a readable safetensors file"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), WEIGHTS, "not a readable"),
    "text for weights": (lambda f: (f / WEIGHTS).write_text("hello " * 99), WEIGHTS, "not a read"),
    "broken config": (lambda f: (f / CONFIG).write_text('{"r": 8,'), CONFIG, "not a readable JSON"),
    "a list for config": (lambda f: (f / CONFIG).write_text("[]"), CONFIG, "not a LoRA adapter"),
    "NaN": (spoil(math.nan), WEIGHTS, f"{Q0}.lora_A.weight has NaN or Inf"),
    "Inf": (spoil(-math.inf), WEIGHTS, f"{Q0}.lora_A.weight has NaN or Inf"),
    "rank unlike the config": (lambda f: edit_config(f, r=16), CONFIG, "rank 16 for model.layers"),
    "a target that PEFT leaves out": (
        lambda f: edit_config(f, target_modules=["v_proj"]),
        CONFIG,
        "model.layers.0.self_attn.q_proj has tensors but is no target",
    ),
    "a layer that PEFT leaves out": (
        lambda f: edit_config(f, layers_to_transform=[0, 2]),
        CONFIG,
        "model.layers.1.self_attn.q_proj has tensors but is no target",
    ),
    "an excluded module": (
        lambda f: edit_config(f, exclude_modules=["v_proj"]),
        CONFIG,
        "v_proj has tensors but is no target",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_peft(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize(("damage", "file", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_line_that_names_the_file(good, tmp_path, damage, file, message):
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    load_adapter(tmp_path)  # whole before the damage
    damage(tmp_path)
    with pytest.raises(TipminiError) as caught:
        load_adapter(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / file}: ") and message in line and "\n" not in line


def test_who_overwrites_the_file_does_not_end_the_program(tmp_path):
    random_adapter(0).save(tmp_path)
    adapter = load_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"")  # a mapped file would now be a bus error
    expected = random_adapter(0).factors[MODULES[0]].a
    assert torch.equal(adapter.factors[MODULES[0]].a, expected)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TipminiError, match=r"nowhere: no such folder; a PEFT adapter has"):
        load_adapter(tmp_path / "nowhere")
