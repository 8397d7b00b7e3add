"""Folders that someone damaged or built to do harm: one line each, or a whole adapter."""

import json
import os
import random
import resource
import struct
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from tiny import random_adapter

from tipmini import peft_config, peft_modules
from tipmini.adapter import LoraAdapter, LoraFactors, load_adapter
from tipmini.errors import TipminiError
from tipmini.inspection import inspect_folder
from tipmini.peft_folder import MAX_CONFIG
from tipmini.tensor_file import largest
from tipmini.tensor_header import MAX_HEADER

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULE = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"
MUTATIONS = 10_000


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused; the inspection says the same."""
    with pytest.raises(TipminiError) as caught:
        load_adapter(folder)
    line = str(caught.value)
    assert line.startswith(str(folder)) and len(line.splitlines()) == 1 and line.isprintable()
    assert inspect_folder(folder)["problems"]
    return line.removeprefix(str(folder))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole adapter of one module."""
    random_adapter(0, modules=[MODULE]).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def set_config(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


def parts(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | bytes, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


# Settings of the wrong type or size ------------------------------------------------------------

NUMBERS = [None, "8", True, [8], {}, float("nan"), float("inf"), 10**400, -(10**400)]
WRONG = {
    "r": [*NUMBERS, 0, -4, 4.0, 2**40],
    "lora_alpha": [*NUMBERS, 1e39],
    "rank_pattern": ["q", [], 3, {"q": 0}, {"q": "2"}, {"q": None}, {"q": 2.0}, {"a\nb": 2}],
    "alpha_pattern": ["q", [], 3, {"q": "2"}, {"q": None}, {"q": 1e300}, {"q": [1]}],
    "use_rslora": ["false", 0, 1, [], {}],
    "fan_in_fan_out": ["yes", 3],
    "base_model_name_or_path": [3, [], {}, "", "two\nlines", "\x1b[2J", "\ud800", "x" * 9999],
    "task_type": [3, [], {}, "POETRY", ""],
    "target_modules": [3, {}, [3], [None], [["q_proj"]], ""],
    "exclude_modules": [3, {}, [3], [None]],
    "layers_to_transform": ["0", [None], ["0"], {}, -1, [True]],
    "init_lora_weights": [3, [], {}, "a\nb", "pissa", "OLoRA", "x" * 10**5],
    "bias": ["all", 3, ["none"]],
    "peft_type": [None, "ADALORA", "lora", ["LORA"], {"LORA": 1}],
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_the_wrong_kind_are_refused(folder, name):
    for value in WRONG[name]:
        set_config(folder, **{name: value})
        line = refusal(folder)
        assert line.startswith(f"/{CONFIG}: ") and len(line) < 1000


def test_every_setting_with_a_kind_is_tried():
    assert peft_config.KINDS.keys() <= WRONG.keys()


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("(", "is no regular expression"),
        ("a{99999999999}", "is no regular expression"),
        ("(" * 2000 + ")" * 2000, "is no regular expression"),
        ("(?i)a", "is no regular expression"),
        ("([a-z._0-9]|[a-z._0-9])*[!?]", "takes too long to match"),
    ],
    ids=["bracket", "repeat", "deep", "flag", "slow"],
)
def test_patterns_that_cannot_be_matched_are_refused(folder, monkeypatch, key, why):
    monkeypatch.setattr(peft_modules, "MATCH_SECONDS", 0.1)
    set_config(folder, rank_pattern={key: 4})
    assert why in refusal(folder)


CONFIGS = {
    "deep": (b'{"r":' * 100_000, "nested too deeply"),
    "deep list": (b'{"r":' + b"[" * 100_000, "nested too deeply"),
    "a hundred megabytes": (b'{"r": "' + b"x" * (100 << 20) + b'"}', "larger than 8 MB"),
    "just too large": (b" " * (MAX_CONFIG + 1), "larger than 8 MB"),
    "not UTF-8": ('{"peft_type": "LORA", "x": "é"}'.encode("latin-1"), "not a readable JSON"),
    "UTF-16": ('{"peft_type": "LORA"}'.encode("utf-16"), "not a readable JSON"),
    "a mark before": (b'\xef\xbb\xbf{"peft_type": "LORA"}', "not a readable JSON"),
    "twice": (b'{"peft_type": "LORA", "r": 4, "r": 8}', "'r' stands there twice"),
    "NaN": (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is no JSON number"),
    "Infinity": (b'{"peft_type": "LORA", "lora_alpha": -Infinity}', "-Infinity is no JSON"),
    "a long number": (b'{"r": ' + b"9" * 5000 + b"}", "not a readable JSON"),
    "empty": (b"", "not a readable JSON"),
    "zeros": (b"\0" * 1000, "not a readable JSON"),
    "a number": (b"3", "not a LoRA adapter"),
}


@pytest.mark.parametrize(("data", "why"), CONFIGS.values(), ids=CONFIGS)
def test_settings_that_are_no_json_are_refused(folder, data, why):
    (folder / CONFIG).write_bytes(data)
    line = refusal(folder)
    assert line.startswith(f"/{CONFIG}: ") and why in line


def test_nesting_that_json_takes_is_refused_by_its_place(folder):
    deep = json.dumps({"peft_type": "LORA", "r": 0}).replace("0", "[" * 900 + "]" * 900)
    (folder / CONFIG).write_text(deep)
    assert "r must be a whole number" in refusal(folder)


# Tensors that are not there ----------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}
HEADERS = {
    "a header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "header claims"),
    "a header beyond the file": (struct.pack("<Q", 50) + b"{}", "header claims 50 bytes"),
    "seven bytes": (b"\0" * 7, "header claims"),
    "no header": (b"\0" * 8, "its header: Expecting value"),
    "deep": (join(b'{"a":' + b"[" * 10**5, b""), "nested too deeply"),
    "a list": (join(b"[]", b""), "its header is no JSON object"),
    "twice": (join(b'{"a": 1, "a": 2}', b""), "'a' stands there twice"),
    "no entry": (join({A: 3}, b""), "is not where its header says"),
    "empty entry": (join({A: {}}, b""), "is not where its header says"),
    "offsets beyond the file": (join({A: ENTRY}, b"\0" * 100), "is not where"),
    "offsets of 2^63": (join({A: ENTRY | {"data_offsets": [0, 2**63]}}, b""), "is not where"),
    "offsets backwards": (join({A: ENTRY | {"data_offsets": [512, 0]}}, b"\0" * 512), "is not"),
    "a larger shape": (join({A: ENTRY | {"shape": [4, 2**31]}}, b"\0" * 512), "is not where"),
    "an overflowing shape": (join({A: ENTRY | {"shape": [2**62, 4]}}, b"\0" * 512), "is not"),
    "a negative shape": (join({A: ENTRY | {"shape": [-4, -32]}}, b"\0" * 512), "is not where"),
    "a shape of fractions": (join({A: ENTRY | {"shape": [4.0, 32]}}, b"\0" * 512), "is not"),
    "a hundred sides": (join({A: ENTRY | {"shape": [1] * 100}}, b"\0" * 4), "is not where"),
    "bytes left over": (join({A: ENTRY}, b"\0" * 600), "lora_B.weight is missing"),
}


@pytest.mark.parametrize(("data", "why"), HEADERS.values(), ids=HEADERS)
def test_headers_that_lie_are_refused(folder, data, why):
    (folder / WEIGHTS).write_bytes(data)
    line = refusal(folder)
    assert line.startswith(f"/{WEIGHTS}: ") and why in line


def test_a_large_header_is_not_read(folder):
    """The file is sparse: a header that is there, but larger than any adapter's."""
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(1 << 33)
    assert f"header claims {MAX_HEADER + 1} bytes" in refusal(folder)


def test_holes_between_tensors_are_refused(folder):
    header, numbers = parts((folder / WEIGHTS).read_bytes())
    for entry in header.values():
        entry["data_offsets"] = [at + 8 for at in entry["data_offsets"]]
    (folder / WEIGHTS).write_bytes(join(header, b"\0" * 8 + numbers))
    assert "not a readable safetensors file" in refusal(folder)


def test_factors_that_overlap_are_refused(folder):
    header, numbers = parts((folder / WEIGHTS).read_bytes())
    first, *others = header.values()
    for entry in others:
        entry["data_offsets"] = first["data_offsets"]
    (folder / WEIGHTS).write_bytes(join(header, numbers))
    assert "not a readable safetensors file" in refusal(folder)


def tensors(**changes: torch.Tensor | None) -> bytes:
    """A file of the module's factors, changed: a, b, or any other name."""
    found = {"a": torch.ones(4, 32), "b": torch.ones(32, 4)} | changes
    names = {"a": A, "b": A.replace("lora_A", "lora_B")}
    return save({names.get(k, k): t for k, t in found.items() if t is not None})


FACTORS = {
    "rank 0": ({"a": torch.ones(0, 32), "b": torch.ones(32, 0)}, "no rank is 0"),
    "no inputs": ({"a": torch.ones(4, 0)}, "no side may be 0"),
    "whole numbers": ({"a": torch.ones(4, 32, dtype=torch.int8)}, "must be one of F64"),
    "8 bits": ({"a": torch.ones(4, 32).to(torch.float8_e4m3fn)}, "must be one of F64"),
    "truth values": ({"b": torch.ones(32, 4, dtype=torch.bool)}, "must be one of F64"),
    "complex": ({"b": torch.ones(32, 4, dtype=torch.complex64)}, "must be one of F64"),
    "other ranks": ({"b": torch.ones(32, 3)}, "lora_A must be (r, k)"),
    "a vector": ({"b": torch.ones(32)}, "lora_A must be (r, k)"),
    "a convolution": ({"a": torch.ones(4, 32, 3, 3)}, "lora_A must be (r, k)"),
    "one alone": ({"a": None}, "lora_A.weight is missing"),
    "a stray": ({"x": torch.ones(1)}, "x is no LoRA factor"),
    "a name of two lines": ({"x\ny\x1b[2J": torch.ones(1)}, "x y\\x1b[2J is no LoRA factor"),
    "a long name": ({"x" * 9999: torch.ones(1)}, "is no LoRA factor"),
    "an adapter's name": ({A.replace("weight", "default.weight"): torch.ones(1)}, "leaves out"),
    "attention in one piece": (
        {A.replace("q_proj", f"base_layer.out_proj.lora_{f}.weight"): None for f in "AB"}
        | {
            A.replace("q_proj.lora_A", "base_layer.out_proj.lora_A"): torch.ones(4, 8),
            A.replace("q_proj.lora_A", "base_layer.out_proj.lora_B"): torch.ones(8, 4),
        },
        "attention in one piece",
    ),
    "DoRA": ({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}, "DoRA's"),
    "NaN": ({"a": torch.full((4, 32), torch.nan)}, "lora_A.weight has NaN or Inf"),
    "16-bit Inf": ({"b": torch.full((32, 4), torch.inf).bfloat16()}, "has NaN or Inf"),
    "an update beyond float32": (
        {"a": torch.full((4, 32), 1e30), "b": torch.full((32, 4), 1e30)},
        "its update overflows float32",
    ),
}


@pytest.mark.parametrize(("changes", "why"), FACTORS.values(), ids=FACTORS)
def test_tensors_that_are_no_factors_are_refused(folder, changes, why):
    (folder / WEIGHTS).write_bytes(tensors(**changes))
    line = refusal(folder)
    assert line.startswith(f"/{WEIGHTS}: ") and why in line and len(line) < 500


# Paths -------------------------------------------------------------------------------------------


def move(folder: Path, name: str, target: Path) -> None:
    """The file elsewhere, and a link to it in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(target)
    (folder / name).symlink_to(os.path.relpath(target, folder))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_that_leaves_the_folder_is_refused(folder, name):
    move(folder, name, folder.parent / "elsewhere")
    assert refusal(folder).startswith(f"/{name}: a link that leaves the folder")


@pytest.mark.parametrize("target", [CONFIG, "nothing", "/dev/zero", "/dev/stdin"])
def test_a_link_to_no_file_is_refused(folder, target):
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(target)
    assert refusal(folder).startswith(f"/{CONFIG}: ")


def test_links_within_the_folder_and_within_the_hubs_cache_are_read(folder, tmp_path):
    move(folder, CONFIG, folder / "inner" / "settings")
    assert load_adapter(folder).modules == [MODULE]
    cached = tmp_path / "models--a--b" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    move(cached, WEIGHTS, tmp_path / "models--a--b" / "blobs" / "4567")
    (tmp_path / "link").symlink_to(cached)
    assert load_adapter(cached).modules == load_adapter(tmp_path / "link").modules == [MODULE]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pipe_is_never_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder).startswith(f"/{name}: not a file")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refusal(folder).startswith(f"/{name}: not a file")


def test_shards_are_named(folder):
    index = {"weight_map": {A: "../../elsewhere.safetensors"}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    assert "index.json names other files, and an adapter is one" in refusal(folder)


@pytest.mark.parametrize("path", ["", "x" * 5000, "a\0b"], ids=["empty", "long", "NUL"])
def test_a_folder_with_nothing_in_it_or_no_possible_name(tmp_path, path):
    with pytest.raises(TipminiError):
        load_adapter(f"{tmp_path}/{path}")


# All at once -------------------------------------------------------------------------------------


def test_inspection_tells_facts_and_all_problems(folder):
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and facts["base"] == "tiny" and facts["task"] == "CAUSAL_LM"
    assert (facts["modules"], facts["targets"], facts["ranks"]) == (1, ["q_proj"], [4])
    assert (facts["scaling"], facts["dtypes"], facts["parameters"]) == ([2.0], ["F32"], 256)
    set_config(folder, use_dora=True, bias="all", lora_alpha="8")
    (folder / WEIGHTS).write_bytes(tensors(a=None, x=torch.ones(1)))
    facts = inspect_folder(folder)
    names = ["lora_alpha must", "bias is", "use_dora is", "x is no LoRA", "lora_A.weight is miss"]
    assert len(facts["problems"]) == len(names) and facts["scaling"] == []
    assert all(n in problem for n, problem in zip(names, facts["problems"], strict=True))


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
    set_config(folder, **changes)
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and len(facts["notes"]) == 1 and note in facts["notes"][0]


def test_inspection_of_nothing(tmp_path):
    facts = inspect_folder(tmp_path / "nowhere")
    assert facts["problems"] == [
        f"{tmp_path}/nowhere: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}"
    ]


# Ten thousand mutated folders --------------------------------------------------------------------

VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308),
    *("", "LORA", "F32", "F64", "BF16", "I8", "F8_E4M3", "q_proj", "(", ".*"),
    *("a\nb", "\ud800", "x" * 500),
    *([], {}, [0], [0, 0], [0, 64], [64, 128], [2, 8], [8, 2], [[]], [None], {"q_proj": 2}),
]  # fmt: skip


def flip(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice([1, 2, 8, 64])) + data[at:]


def remove(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice([1, 2, 8, 64]) :]


def overwrite(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice([b"\0", b"\xff", b"\x7f", b'"', b"9", b"["]) * 8 + data[at + 8 :]


def change_json(rng: random.Random, value: object) -> object:
    """One place of a JSON value changed: replaced, taken away, doubled or given another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = rng.choice(keys), value.copy()
    way = rng.randrange(6)
    if way == 0:
        del copy[key]
    elif way == 1 and isinstance(copy, dict):
        copy[rng.choice([key * 2, f"{key}x", key[:-1], key.upper(), "../../x"])] = copy.pop(key)
    elif way == 2:
        copy[key] = copy[rng.choice(keys)]
    else:
        copy[key] = change_json(rng, copy[key])
    return copy


def change_config(rng: random.Random, data: bytes) -> bytes:
    return json.dumps(change_json(rng, json.loads(data))).encode()


def change_header(rng: random.Random, data: bytes) -> bytes:
    header, numbers = parts(data)
    return join(json.dumps(change_json(rng, header)).encode(), numbers)


def change_length(rng: random.Random, data: bytes) -> bytes:
    return struct.pack("<Q", rng.choice([0, 1, 7, 99, 2**31, 2**62, 2**64 - 1])) + data[8:]


def change_numbers(rng: random.Random, data: bytes) -> bytes:
    header, numbers = parts(data)
    return join(header, flip(rng, numbers))


BYTES = [flip, cut, insert, remove, overwrite]
CHANGES = {
    CONFIG: [*BYTES, change_config, change_config, change_config],
    WEIGHTS: [*BYTES, change_header, change_header, change_header, change_length, change_numbers],
}


def outcome(folder: Path) -> str:
    """ "whole" or the kind of refusal; anything else that is raised fails the test."""
    try:
        adapter = load_adapter(folder)
    except TipminiError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 1500, repr(line)
        return "refused"
    for factors in adapter.factors.values():
        assert factors.delta().isfinite().all()
        assert largest(factors.a) < 1e39 and largest(factors.b) < 1e39
    return "whole"


def memory() -> int:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.fixture
def memory_folder() -> Path:
    """Where files live in memory, if there is such a place."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


def two_modules() -> LoraAdapter:
    """As small as an adapter of two modules with their own ranks and scalings can be."""
    pairs = {"layers.0.q_proj": (2, 2.0), "layers.1.v_proj": (1, 0.5)}
    factors = {m: LoraFactors(torch.ones(r, 3), torch.ones(4, r), s) for m, (r, s) in pairs.items()}
    return LoraAdapter(factors, "tiny")


def test_ten_thousand_mutated_folders_load_whole_or_are_refused(memory_folder):
    folder, rng = memory_folder / "adapter", random.Random(0)
    two_modules().save(folder)
    good = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    before, counts = memory(), Counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(MUTATIONS):
            name = rng.choice([CONFIG, WEIGHTS])
            change = rng.choice(CHANGES[name])
            (folder / name).write_bytes(change(rng, good[name]))
            counts[name, outcome(folder)] += 1
            (folder / name).write_bytes(good[name])
    assert counts.total() == MUTATIONS and min(counts.values()) > 100, counts
    assert len(counts) == 4  # both files, both outcomes
    assert memory() - before < 200 and len(heard) < 20
    assert outcome(folder) == "whole" and load_file(folder / WEIGHTS)
