"""Tensors that someone damaged or wrote to do harm: one line each."""

import struct

import pytest
import torch
from folders import MODULE, WEIGHTS, A, factors_file, join, parts, refusal

from tipmini.models.files import MAX_HEADER

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
    "no B": ({"b": None}, f"{A.replace('lora_A', 'lora_B')} is missing"),
    "none": ({"a": None, "b": None}, "holds no tensor"),
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
