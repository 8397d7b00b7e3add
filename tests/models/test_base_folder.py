"""A base model's folder that can't be added to: one line that says why."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters_on_disk import SHARDED, SINGLE, tiny_base
from safetensors.torch import save_file

import tipmini as tm
from tipmini.models.base_folder import open_base, save_merged


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_index(folder: Path, **places: str) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= {name.replace("__", "."): place for name, place in places.items()}
    file.write_text(json.dumps(index))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def pickled(folder: Path) -> None:
    torch.save({"a": torch.ones(2)}, folder / "model.safetensors")


SPOILT = [
    (SINGLE, shutil.rmtree, "no such folder"),
    (SINGLE, only_pickle, "pytorch_model.bin is a pickle"),
    (SINGLE, pickled, "not a readable safetensors file"),
    (SINGLE, cut, "not a readable safetensors file"),
    (SINGLE, lambda f: (f / "config.json").unlink(), "config.json: missing"),
    (SINGLE, lambda f: (f / "config.json").write_text("{"), "not a readable JSON file"),
    (SINGLE, lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    (SINGLE, lambda f: edit_config(f, quantization_config={"bits": 4}), "quantised"),
    (SINGLE, lambda f: edit_config(f, model_type="gpt2"), "transposed"),
    (SHARDED, lambda f: edit_index(f, x="../base/x.safetensors"), "lies outside the folder"),
    (SHARDED, lambda f: edit_index(f, x="x.safetensors"), "x.safetensors: no such file"),
    (SHARDED, lambda f: edit_index(f, x=sorted(f.glob("*.safetensors"))[0].name), "lacks x"),
    (SHARDED, lambda f: edit_index(f, x=3), "weight_map must give"),
]


@pytest.mark.parametrize(("shards", "spoil", "line"), SPOILT, ids=[line for *_, line in SPOILT])
def test_a_base_that_cannot_be_read_is_one_line(tmp_path, shards, spoil, line):
    tiny_base(tmp_path / "base", shards=shards)
    spoil(tmp_path / "base")
    with pytest.raises(tm.TipminiError, match=line) as raised:
        open_base(tmp_path / "base")
    assert "\n" not in str(raised.value) and "base" in str(raised.value)


Q = "model.layers.0.self_attn.q_proj"
UNFIT = [
    ("model.layers.9.self_attn.q_proj", (32, 32), {}, "lacks model.layers.9.self_attn.q_proj.we"),
    (Q, (16, 32), {}, r"q_proj.weight is \(32, 32\), the adapters' \(16, 32\)"),
    (Q, (1, 32), {}, r"the adapters' \(1, 32\)"),  # it would broadcast
    ("lm_head", (64, 32), {"tied": True}, "shares its weight with the embedding"),
]


@pytest.mark.parametrize(("module", "shape", "base", "line"), UNFIT)
def test_a_module_that_does_not_fit_is_one_line(tmp_path, module, shape, base, line):
    tiny_base(tmp_path / "base", **base)
    opened = open_base(tmp_path / "base")
    with pytest.raises(tm.TipminiError, match=line):
        opened.check({module: shape})
    with pytest.raises(tm.TipminiError, match=line):
        save_merged(opened, {module: torch.ones(shape)}, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_whole_numbers_are_refused(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"a.weight": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(tm.TipminiError, match=r"a\.weight is I8; only floating"):
        open_base(tmp_path / "base").check({"a": (2, 2)})
