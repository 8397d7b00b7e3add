"""A safetensors file read tensor by tensor: whole, or one line that names it."""

import struct

import pytest
import torch
from folders import WEIGHTS, A, join, refusal
from safetensors.torch import save, save_file

import tipmini as tm
from tipmini.models.files import MAX_HEADER, TensorFile


def test_a_file_is_a_mapping_of_its_tensors_in_the_order_of_the_file(tmp_path):
    """Which the header need not have."""
    header = {
        "bad": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "good": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        "none": {"dtype": "F32", "shape": [0, 2**39], "data_offsets": [12, 12]},
    }
    numbers = struct.pack("<df", 3.0, torch.nan)
    (tmp_path / "n.safetensors").write_bytes(join(header, numbers))
    file = TensorFile(tmp_path / "n.safetensors")
    assert list(file) == ["good", "bad", "none"] and len(file) == 3
    assert [entry.size for entry in file.entries.values()] == [8, 4, 0]
    assert "bad" in file and "ugly" not in file  # without reading either
    assert file["good"].tolist() == [3.0] and file.get("ugly") is None
    assert file["none"].shape == (0, 2**39)
    with pytest.raises(KeyError):
        file["ugly"]


ENTRY = {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}
NUMBERS = b"\0" * 512


def lying(data: bytes = NUMBERS, **changes: object) -> bytes:
    return join({A: ENTRY | changes}, data)


def two(*starts: int, size: int) -> bytes:
    """Two tensors of 8 bytes that start there."""
    entries = [{"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for at in starts]
    return join(dict(zip("ab", entries, strict=True)), b"\0" * size)


UNREADABLE = "not a readable safetensors file ("
REFUSED = {
    "a header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "header claims"),
    "a header beyond the file": (struct.pack("<Q", 50) + b"{}", "header claims 50 bytes"),
    "seven bytes": (b"\0" * 7, "header claims"),
    "text": (b"hello " * 99, "header claims"),
    "no header": (b"\0" * 8, ""),
    "deep": (join(b'{"a":' + b"[" * 10**5, b""), ""),
    "a list": (join(b"[]", b""), ""),
    "twice": (join(b'{"a": %s, "a": %s}' % ((str(ENTRY).replace("'", '"').encode(),) * 2), NUMBERS),
              "'a' stands there twice"),
    "no entry": (join({A: 3}, b""), ""),
    "empty entry": (join({A: {}}, b""), ""),
    "offsets beyond the file": (lying(b"\0" * 100), ""),
    "offsets of 2^63": (lying(data_offsets=[0, 2**63]), ""),
    "offsets backwards": (lying(data_offsets=[512, 0]), ""),
    "a larger shape": (lying(shape=[4, 2**31]), ""),
    "an overflowing shape": (lying(shape=[2**62, 4]), ""),
    "a negative shape": (lying(shape=[-4, -32]), ""),
    "a shape of fractions": (lying(shape=[4.0, 32]), ""),
    "bytes left over": (lying(NUMBERS + b"\0"), ""),
    "cut off": (lying(NUMBERS[1:]), ""),
    "overlap": (two(0, 4, size=12), ""),
    "one place for two": (two(0, 0, size=8), ""),
    "a gap": (two(0, 12, size=20), ""),
    "a start": (two(8, 16, size=24), ""),
}  # fmt: skip


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_whole_file_is_refused_unread(folder, data, why):
    path = folder / WEIGHTS
    path.write_bytes(data)
    with pytest.raises(tm.TipminiError) as caught:
        TensorFile(path, finite=False)
    for line in (str(caught.value), str(folder) + refusal(folder)):
        assert line.startswith(f"{path}: {UNREADABLE}") and why in line


def test_a_large_header_is_not_read(folder):
    """The file is sparse: a header that is there, but larger than any adapter's."""
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(1 << 33)
    assert f"header claims {MAX_HEADER + 1} bytes" in refusal(folder)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.ones(3).to(torch.float8_e4m3fn), "F8_E4M3"), (torch.ones(3).to(torch.int8), "I8")],
)
def test_other_numbers_than_floating_ones_are_refused(tmp_path, tensor, kind):
    path = tmp_path / "norms.safetensors"
    path.write_bytes(save({"x": tensor}))
    assert len(TensorFile(path, finite=False)["x"]) == 3
    with pytest.raises(tm.TipminiError) as caught:
        TensorFile(path)
    told = f"tensor x must be one of F64, F32, F16, BF16, got '{kind}'"
    assert str(caught.value) == f"{path}: {told}"


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(tm.TipminiError, match=r"norms: no such file; give a safetensors file"):
        TensorFile(tmp_path / "norms")


@pytest.mark.parametrize(("name", "value"), [("x", torch.nan), ("x\ny", -torch.inf)])
def test_nan_and_inf_are_refused_when_they_are_read(tmp_path, name, value):
    path = tmp_path / "norms.safetensors"
    save_file({name: torch.tensor([1.0, value])}, path)
    assert TensorFile(path, finite=False)[name][0] == 1
    with pytest.raises(tm.TipminiError) as caught:
        TensorFile(path)[name]
    shown = " ".join(name.split())
    assert str(caught.value).startswith(f"{path}: tensor {shown} has NaN or Inf; every number")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_magnitude_is_found_without_torch(tmp_path, dtype):
    numbers = {"a": [1.0, -3.5, 2.0], "nan": [1.0, torch.nan], "inf": [-torch.inf, 2.0], "no": []}
    tensors = {name: torch.tensor(values, dtype=dtype) for name, values in numbers.items()}
    save_file(tensors, tmp_path / "n.safetensors")
    file = TensorFile(tmp_path / "n.safetensors")
    found = [file.largest(name) for name in ("a", "inf", "no")]
    assert found == [3.5, torch.inf, 0.0] and file.largest("nan") != file.largest("nan")
