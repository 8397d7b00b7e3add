"""Adapter folders that someone damaged or wrote to do harm: one line each; and what is told of all.

`refusal` also asks whether the inspection, which needs no torch, finds a problem.
"""

import json
import math
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from folders import CONFIG, MODULE, WEIGHTS, A, edit_config, factors_file, refusal, write_peft
from safetensors.torch import load_file, save_file

from tipmini.errors import TipminiError
from tipmini.models.adapter import load_adapter
from tipmini.models.peft_folder import inspect_folder

B = A.replace("lora_A", "lora_B")
Damage = Callable[[Path], object]


def removing(name: str, **instead: object) -> Damage:
    """Another file, pipe, folder or link in place of one of the two."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        for other, content in instead.items():
            write = (folder / other.replace("__", ".")).write_bytes
            write(content if isinstance(content, bytes) else json.dumps(content).encode())

    return damage


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def move(folder: Path, name: str, target: Path) -> None:
    """The file elsewhere, and a link to it in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(target)
    (folder / name).symlink_to(os.path.relpath(target, folder))


def spoil(value: float) -> Damage:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors[A][1, 2] = value
        save_file(tensors, folder / WEIGHTS)

    return change


def pickled(folder: Path) -> None:
    torch.save({name: t.clone() for name, t in load_file(folder / WEIGHTS).items()}, folder / "x")
    (folder / "x").replace(folder / WEIGHTS)


BROKEN: dict[str, tuple[Damage, str, str]] = {
    "no config": (removing(CONFIG), CONFIG, "missing"),
    "no weights": (removing(WEIGHTS), WEIGHTS, "missing; save"),
    "a pickle": (removing(WEIGHTS, adapter_model__bin=b"x"), WEIGHTS, "adapter_model.bin is a pi"),
    "shards": (
        removing(WEIGHTS, adapter_model__safetensors__index__json={}),
        WEIGHTS,
        "index.json names other files, and an adapter is one",
    ),
    "a pickle in its place": (pickled, WEIGHTS, "a pickle, which could run code"),
    "an old pickle in its place": (
        lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": [1.0] * 99})),
        WEIGHTS,
        "a pickle, which could run code",
    ),
    "half a file": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-200]),
        WEIGHTS,
        "not a readable safetensors file",
    ),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), WEIGHTS, "not a readable"),
    "broken config": (lambda f: (f / CONFIG).write_text('{"r": 8,'), CONFIG, "not a readable JSON"),
    "a list for config": (lambda f: (f / CONFIG).write_text("[]"), CONFIG, "not a LoRA adapter"),
    "NaN": (spoil(math.nan), WEIGHTS, f"{A} has NaN or Inf"),
    "Inf": (spoil(-math.inf), WEIGHTS, f"{A} has NaN or Inf"),
    "rank unlike the config": (lambda f: edit_config(f, r=16), CONFIG, f"rank 16 for {MODULE}"),
    **{
        f"left out by {', '.join(changes)}": (
            lambda f, changes=changes: edit_config(f, **changes),
            CONFIG,
            f"{MODULE} has tensors but is no target, so PEFT would leave it out",
        )
        for changes in (
            {"target_modules": ["v_proj"]},
            {"exclude_modules": ["q_proj"]},
            {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
        )
    },
    **{
        f"{what}: {name}": (replaced(name, make), name, "not a file")
        for name in (CONFIG, WEIGHTS)
        for what, make in {"a pipe": os.mkfifo, "a folder": Path.mkdir}.items()
    },
    **{
        f"a link to {to}": (replaced(CONFIG, lambda file, to=to: file.symlink_to(to)), CONFIG, "")
        for to in (CONFIG, "nothing", "/dev/zero", "/dev/stdin")
    },
}


@pytest.mark.parametrize(("damage", "file", "why"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_line_that_names_the_file(folder, damage, file, why):
    assert load_adapter(folder).modules == [MODULE]  # whole before the damage
    damage(folder)
    line = refusal(folder)
    assert line.startswith(f"/{file}: ") and why in line


def test_links_within_the_folder_and_within_the_hubs_cache_are_read(folder, tmp_path):
    move(folder, CONFIG, folder / "inner" / "settings")
    assert load_adapter(folder).modules == [MODULE]
    cached = tmp_path / "models--a--b" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    move(cached, WEIGHTS, tmp_path / "models--a--b" / "blobs" / "4567")
    (tmp_path / "link").symlink_to(cached)
    assert load_adapter(cached).modules == load_adapter(tmp_path / "link").modules == [MODULE]


@pytest.mark.parametrize("path", ["", "x" * 5000, "a\0b"], ids=["empty", "long", "NUL"])
def test_a_folder_with_nothing_in_it_or_no_possible_name(tmp_path, path):
    with pytest.raises(TipminiError):
        load_adapter(f"{tmp_path}/{path}")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (problem,) = inspect_folder(tmp_path / "nowhere")["problems"]
    told = f"{tmp_path}/nowhere: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}"
    assert problem == told and refusal(tmp_path / "nowhere")


def test_who_overwrites_the_file_does_not_end_the_program(folder):
    adapter = load_adapter(folder)
    before = adapter.factors[MODULE].a.clone()
    (folder / WEIGHTS).write_bytes(b"")  # a mapped file would now be a bus error
    assert torch.equal(adapter.factors[MODULE].a, before)


INNER = A.replace("q_proj.lora_A", "base_layer.out_proj.lora_A")
FACTORS = {
    "rank 0": ({"a": torch.ones(0, 32), "b": torch.ones(32, 0)}, "no rank is 0"),
    "no inputs": ({"a": torch.ones(4, 0)}, "no side may be 0"),
    "whole numbers": ({"a": torch.ones(4, 32, dtype=torch.int8)}, "must be one of F64"),
    "8 bits": ({"a": torch.ones(4, 32).to(torch.float8_e4m3fn)}, "must be one of F64"),
    "truth values": ({"b": torch.ones(32, 4, dtype=torch.bool)}, "must be one of F64"),
    "complex": ({"b": torch.ones(32, 4, dtype=torch.complex64)}, "must be one of F64"),
    "other ranks": ({"b": torch.ones(32, 3)}, f"{MODULE}: lora_A must be (r, k)"),
    "a vector": ({"b": torch.ones(32)}, "lora_A must be (r, k)"),
    "a convolution": ({"a": torch.ones(4, 32, 3, 3)}, "lora_A must be (r, k)"),
    "no A": ({"a": None}, f"{A} is missing"),
    "no B": ({"b": None}, f"{B} is missing"),
    "none": ({"a": None, "b": None}, "holds no tensor"),
    "a stray": ({"x": torch.ones(1)}, "x is no LoRA factor"),
    "a name of two lines": ({"x\ny\x1b[2J": torch.ones(1)}, "x y\\x1b[2J is no LoRA factor"),
    "a long name": ({"x" * 9999: torch.ones(1)}, "is no LoRA factor"),
    "two adapters": ({A.replace("weight", "default.weight"): torch.ones(1)}, "several adapters"),
    "attention in one piece": (
        {INNER: torch.ones(4, 8), INNER.replace("lora_A", "lora_B"): torch.ones(8, 4)},
        "attention in one piece",
    ),
    "DoRA": (
        {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)},
        "lora_magnitude_vector is no LoRA factor of a linear module; it is DoRA's magnitude",
    ),
    "a bias": (
        {A.replace("lora_A.weight", "lora_B.bias"): torch.ones(32)},
        "lora_B.bias is no LoRA factor of a linear module; it is a bias",
    ),
    "an embedding": (
        {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)},
        "lora_embedding_A is no LoRA factor",
    ),
    "16-bit Inf": ({"b": torch.full((32, 4), torch.inf).bfloat16()}, "has NaN or Inf"),
    "an update beyond float32": (
        {"a": torch.full((4, 32), 1e30), "b": torch.full((32, 4), 1e30)},
        "its update overflows float32",
    ),
}


@pytest.mark.parametrize(("changes", "why"), FACTORS.values(), ids=FACTORS)
def test_tensors_that_are_no_factors_are_refused(folder, changes, why):
    (folder / WEIGHTS).write_bytes(factors_file(**changes))
    line = refusal(folder)
    assert line.startswith(f"/{WEIGHTS}: ") and why in line and len(line) < 500


BEYOND = {
    "DoRA": {"use_dora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole module": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "lora_only"},
    "token embeddings": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("arguments", BEYOND.values(), ids=BEYOND)
def test_what_peft_writes_beyond_linear_modules_is_refused(tmp_path, arguments):
    with pytest.raises(TipminiError, match=r"only plain LoRA|is no LoRA factor"):
        load_adapter(write_peft(tmp_path, **arguments))


# Inspected ----------------------------------------------------------------------------------------
def test_inspection_tells_facts_and_all_problems(folder):
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and facts["base"] == "tiny" and facts["task"] == "CAUSAL_LM"
    assert (facts["modules"], facts["targets"], facts["ranks"]) == (1, ["q_proj"], [4])
    assert (facts["scaling"], facts["dtypes"], facts["parameters"]) == ([2.0], ["F32"], 256)
    edit_config(folder, use_dora=True, bias="all", lora_alpha="8")
    (folder / WEIGHTS).write_bytes(factors_file(a=None, x=torch.ones(1)))
    facts = inspect_folder(folder)
    names = ["lora_alpha must", "bias is", "use_dora is", "x is no LoRA", "lora_A.weight is miss"]
    assert len(facts["problems"]) == len(names) and facts["scaling"] == []
    assert all(n in problem for n, problem in zip(names, facts["problems"], strict=True))
    assert refusal(folder).endswith("(and 4 more: `tipmini inspect` lists them)")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "unsloth/llama-2-7b-bnb-4bit"}, "the base is quantised"),
        ({"base_model_name_or_path": "TheBloke/Llama-2-7B-GPTQ"}, "the base is quantised"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"fan_in_fan_out": True}, "stores its weights transposed"),
        ({"target_modules": ".*q_proj"}, "target_modules is a regular expression"),
        ({"lora_alpha": 0}, "scaling 0: the adapter changes nothing"),
        ({"marvel_size": 3}, "does not know, ignored: 'marvel_size'"),
    ],
)
def test_inspection_notes_what_is_worth_knowing(folder, changes, note):
    assert inspect_folder(folder)["notes"] == []
    edit_config(folder, **changes)
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and len(facts["notes"]) == 1 and note in facts["notes"][0]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("non_lora_trainables.bin", b"x", "holds non_lora_trainables.bin as well, LLaVA's proj"),
        ("value_head.safetensors", b"x", "holds value_head.safetensors as well, a value head"),
        (WEIGHTS, factors_file(b=torch.zeros(32, 4)), "lora_A or lora_B is 0 in 1 of 1 modules"),
        (WEIGHTS, factors_file(a=torch.zeros(4, 32)), "lora_A or lora_B is 0 in 1 of 1 modules"),
    ],
)
def test_inspection_notes_what_a_merge_would_lose_and_what_does_nothing(
    folder, name, content, note
):
    (folder / name).write_bytes(content)
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and len(facts["notes"]) == 1 and note in facts["notes"][0]


PICKLES = {
    "code": lambda tensors: {"x": print},
    "a name that is none": lambda tensors: tensors | {1: torch.ones(1)},
    "sparse": lambda tensors: {name: t.to_sparse() for name, t in tensors.items()},
    "drawn out": lambda tensors: tensors | {"x": torch.zeros(1).expand(4, 10**12)},
    "meta": lambda tensors: {name: t.to("meta") for name, t in tensors.items()},
    "a list": lambda tensors: list(tensors.values()),
}


def test_a_pickle_is_read_on_demand_alone(folder):
    wanted = load_adapter(folder)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(TipminiError, match="--pickle"):
        load_adapter(folder)
    found = load_adapter(folder, pickle=True)
    assert torch.equal(found.delta(MODULE), wanted.delta(MODULE))


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_what_else_a_pickle_may_hold_is_refused(folder, make):
    torch.save(make(load_file(folder / WEIGHTS)), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(TipminiError, match=r"adapter_model\.bin: ") as caught:
        load_adapter(folder, pickle=True)
    assert "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)


HOSTILE = {
    "nothing": b"",
    "text": b"hello world, this is no pickle",  # a KeyError of PyTorch
    "a stop and nothing before it": b"\x80\x02.",  # an IndexError
    "text that is no UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "a number longer than the file": b"\x80\x02\x8a\xff.",
    "an archive of nothing": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_pickle_is_refused(folder, content):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(TipminiError, match=r"not a pickle of tensors alone \(\w+\)"):
        load_adapter(folder, pickle=True)


def test_what_the_pickle_is_not_to_blame_for_is_told_as_it_is(folder, monkeypatch):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")

    def load(error, *_, **__):
        raise error

    monkeypatch.setattr(torch, "load", partial(load, MemoryError()))
    with pytest.raises(MemoryError):
        load_adapter(folder, pickle=True)
    monkeypatch.setattr(torch, "load", partial(load, OSError(5, "Input/output error")))
    with pytest.raises(TipminiError, match=r"cannot be read .*Input/output error"):
        load_adapter(folder, pickle=True)
