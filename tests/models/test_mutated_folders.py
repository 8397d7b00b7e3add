"""Ten thousand mutated folders: a whole adapter or one line each, and no more memory than that."""

import json
import os
import random
import resource
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from folders import CONFIG, WEIGHTS, join, parts
from safetensors.torch import load_file

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, load_adapter
from tipmini.models.factors import LoraFactors
from tipmini.models.files import largest

MUTATIONS = 10_000
LENGTHS = [0, 1, 7, 99, 2**31, 2**62, 2**64 - 1]
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


def splice(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut off, put in, taken out or written over at one place."""
    at, some = rng.randrange(len(data)), rng.choice([1, 2, 8, 64])
    put = rng.choice([b"\0", b"\xff", b"\x7f", b'"', b"9", b"["]) * 8
    ends = [
        data[len(data) :],
        rng.randbytes(some) + data[at:],
        data[at + some :],
        put + data[at + 8 :],
    ]
    return data[:at] + rng.choice(ends)


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


def of_header(change) -> Callable[[random.Random, bytes], bytes]:
    def changed(rng: random.Random, data: bytes) -> bytes:
        return join(*change(rng, *parts(data)))

    return changed


CHANGES = {
    CONFIG: [
        flip,
        *[splice] * 4,
        *[lambda rng, data: json.dumps(change_json(rng, json.loads(data))).encode()] * 3,
    ],
    WEIGHTS: [
        flip,
        *[splice] * 4,
        *[of_header(lambda rng, header, numbers: (change_json(rng, header), numbers))] * 3,
        of_header(lambda rng, header, numbers: (header, flip(rng, numbers))),
        lambda rng, data: struct.pack("<Q", rng.choice(LENGTHS)) + data[8:],
    ],
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
def memory_folder() -> Iterator[Path]:
    """Where files live in memory, if there is such a place."""
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
