"""A safetensors file read tensor by tensor: whole, or one line that names it."""

import pytest
import torch
from folders import join
from safetensors.torch import save, save_file

import tipmini as tm
from tipmini.models.files import TensorFile


def test_a_file_is_a_mapping_of_its_tensors(tmp_path):
    tensors = {"good": torch.ones(2), "bad": torch.tensor([1.0, torch.nan])}
    save_file(tensors, tmp_path / "n.safetensors")
    file = TensorFile(tmp_path / "n.safetensors")
    assert set(file) == set(tensors) and len(file) == 2
    assert "bad" in file and "ugly" not in file  # without reading either
    assert torch.equal(file["good"], tensors["good"]) and file.get("ugly") is None
    with pytest.raises(KeyError):
        file["ugly"]


def test_it_lists_tensors_in_the_order_of_the_file(tmp_path):
    """The header need not have it."""
    header = {
        "second": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "first": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
    }
    (tmp_path / "n.safetensors").write_bytes(join(header, b"\0" * 12))
    file = TensorFile(tmp_path / "n.safetensors")
    assert list(file) == ["first", "second"]
    assert [entry.size for entry in file.entries.values()] == [8, 4]


def header(*places: tuple[int, int]) -> dict:
    """Tensors of float32 at these places, each as long as its place."""
    return {
        f"t{i}": {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for i, (start, end) in enumerate(places)
    }


UNREADABLE = "not a readable safetensors file ("
REFUSED = {
    "missing": (None, "no such file; give a safetensors file"),
    "text": (b"hello " * 99, f"{UNREADABLE}its header claims"),
    "overlap": (join(header((0, 8), (4, 12)), b"\0" * 12), UNREADABLE),
    "one place for two": (join(header((0, 8), (0, 8)), b"\0" * 8), UNREADABLE),
    "a gap": (join(header((0, 8), (12, 16)), b"\0" * 16), UNREADABLE),
    "bytes left over": (join(header((0, 8)), b"\0" * 12), UNREADABLE),
    "cut off": (save({"x": torch.ones(3)})[:-1], f"{UNREADABLE}tensor 'x' is not where its"),
    "8 bits": (
        save({"x": torch.ones(3).to(torch.float8_e4m3fn)}),
        "tensor x must be one of F64, F32, F16, BF16, got 'F8_E4M3'",
    ),
    "whole numbers": (save({"x": torch.ones(3, dtype=torch.int8)}), "x must be one of F64"),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_whole_file_of_numbers_is_refused_unread(tmp_path, data, why):
    path = tmp_path / "norms.safetensors"
    if data:
        path.write_bytes(data)
    with pytest.raises(tm.TipminiError) as caught:
        TensorFile(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and why in line and line.isprintable()


each_way = pytest.mark.parametrize(
    "read_all", [dict, TensorFile.read_all], ids=["one by one", "at once"]
)


@each_way
@pytest.mark.parametrize(("name", "value"), [("x", torch.nan), ("x\ny", -torch.inf)])
def test_nan_and_inf_are_refused_when_they_are_read(tmp_path, name, value, read_all):
    path = tmp_path / "norms.safetensors"
    save_file({name: torch.tensor([1.0, value])}, path)
    assert read_all(TensorFile(path, finite=False))[name][0] == 1
    with pytest.raises(tm.TipminiError) as caught:
        read_all(TensorFile(path))
    shown = " ".join(name.split())
    assert str(caught.value).startswith(f"{path}: tensor {shown} has NaN or Inf; every number")


@each_way
def test_a_tensor_without_numbers_may_have_any_shape(tmp_path, read_all):
    entry = {"dtype": "F32", "shape": [0, 2**39], "data_offsets": [0, 0]}
    (tmp_path / "n.safetensors").write_bytes(join({"x": entry}, b""))
    assert read_all(TensorFile(tmp_path / "n.safetensors"))["x"].shape == (0, 2**39)
