"""Tensors that someone damaged or wrote to do harm: one line each."""

import pytest
import torch
from folders import MODULE, WEIGHTS, A, factors_file, refusal

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
