"""A base model's folder: read or refused in one line, and written with an update added."""

import errno
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from adapters_on_disk import SHARDED, SINGLE, tiny_base
from folders import join, parts
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tiny import HIDDEN, KEY_VALUE, MODULES, random_adapter
from transformers import LlamaForCausalLM

import tipmini as tm
from tipmini.models import base_folder
from tipmini.models.base_folder import open_base, save_merged
from tipmini.models.files import TensorFile


@pytest.fixture
def base(tmp_path) -> base_folder.BaseFolder:
    """A tiny one, in float32 and in one file."""
    tiny_base(tmp_path / "base")
    return open_base(tmp_path / "base")


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


# Written with an update added ---------------------------------------------------------------------
def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("text", [None, {"tie_word_embeddings": True}, {"vocab_size": 64}])
def test_a_head_is_tied_where_the_config_leaves_it_to_the_default(tmp_path, text):
    """As GPT-2's and Gemma's do, or say it of their text model alone."""
    tiny_base(tmp_path / "base", tied=True)
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    del config["tie_word_embeddings"]
    file.write_text(json.dumps(config | ({"text_config": text} if text else {})))
    with pytest.raises(tm.TipminiError, match="lm_head shares its weight with the embedding"):
        open_base(tmp_path / "base").check({"lm_head": (64, 32)})


@pytest.mark.parametrize("said", [{"tie_word_embeddings": False}, {}])
def test_a_head_that_is_stored_is_added_to(tmp_path, said):
    tiny_base(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    del config["tie_word_embeddings"]
    file.write_text(json.dumps(config | said))
    open_base(tmp_path / "base").check({"lm_head": (64, 32)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [SINGLE, SHARDED])
def test_as_peft_merges_and_unloads(tmp_path, dtype, tied, shards):
    model = tiny_base(tmp_path / "base", dtype=dtype, tied=tied, shards=shards)
    arguments = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    wrapped = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **arguments))
    wrapped.save_pretrained(tmp_path / "adapter")
    adapter = tm.load_adapter(tmp_path / "adapter")
    save_merged(open_base(tmp_path / "base"), adapter.factors, tmp_path / "out")

    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    ours, peft = loaded.state_dict(), wrapped.merge_and_unload().state_dict()
    assert ours.keys() == peft.keys()
    rounding = {torch.float32: 0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    for name in ours:
        assert ours[name].dtype == dtype
        torch.testing.assert_close(ours[name], peft[name], rtol=rounding, atol=rounding)
    # Not all are square, where a transposed delta would go unseen.
    assert adapter.factors[MODULES[1]].shape == (KEY_VALUE, HIDDEN)
    changed = [n for n, t in tensors_of(tmp_path / "base").items() if (t != ours[n]).any()]
    assert sorted(changed) == sorted(f"{module}.weight" for module in MODULES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_once(tmp_path, dtype):
    tiny_base(tmp_path / "base", dtype=dtype)
    adapter = random_adapter(3)
    save_merged(open_base(tmp_path / "base"), adapter.factors, tmp_path / "out")
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "out")
    for module, pair in adapter.factors.items():
        name = f"{module}.weight"
        exact = before[name].float() + pair.scaling * (pair.b @ pair.a)
        assert torch.equal(after[name], exact.to(dtype))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("limit", [1, 5_000, 20_000, 10**9])
def test_files_of_any_size_hold_the_same(tmp_path, limit, dense):
    tiny_base(tmp_path / "base", shards=SHARDED)
    adapter = random_adapter(1)
    update = {m: adapter.delta(m) for m in adapter.modules} if dense else adapter.factors
    save_merged(open_base(tmp_path / "base"), update, tmp_path / "whole")
    save_merged(open_base(tmp_path / "base"), update, tmp_path / "out", shard_bytes=limit)

    whole, parts = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for file in (tmp_path / "out").glob("*.safetensors"):
        held = load_file(file)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == (limit < 10**9)
    if index.exists():
        listed = json.loads(index.read_text())
        assert listed["weight_map"].keys() == whole.keys()
        assert listed["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


def test_dtypes_of_all_widths_lie_aligned(tmp_path):
    tensors = {
        "a.bytes": torch.arange(3, dtype=torch.uint8),
        "b.weight": torch.ones(4, 2),
        "c.flag": torch.tensor(True),
        "d.long": torch.tensor([1 << 40]),
        "e.none": torch.empty(0, 5),
        "f.half": torch.ones(3, dtype=torch.bfloat16),
    }
    (tmp_path / "base").mkdir()
    header, numbers, start = {}, b"", 0
    for name, tensor in tensors.items():  # in this order, unlike what safetensors itself writes
        (entry, own), end = parts(save({name: tensor})), start + tensor.nbytes
        header |= {name: entry[name] | {"data_offsets": [start, end]}}
        numbers, start = numbers + own, end
    (tmp_path / "base" / "model.safetensors").write_bytes(join(header, numbers))
    (tmp_path / "base" / "config.json").write_text("{}")
    save_merged(open_base(tmp_path / "base"), {"b": torch.ones(4, 2)}, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    read = load_file(file)
    assert all(
        torch.equal(read[n], t + (n == "b.weight")) for n, t in tensors.items() if n[0] != "c"
    )
    assert read["c.flag"].item() is True and read["c.flag"].shape == ()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    starts = {
        n: v["data_offsets"][0] for n, v in json.loads(raw[8 : 8 + length]).items() if n[1] == "."
    }
    assert length % 8 == 0
    assert all(starts[n] % t.element_size() == 0 for n, t in tensors.items() if t.numel())


def test_no_more_than_a_tensor_is_held(tmp_path, monkeypatch, base):
    read, held = [], []
    original = TensorFile.__getitem__

    def spy(self, name):
        tensor = original(self, name)
        held.append(sum(ref() is not None for ref in read))
        read.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(TensorFile, "__getitem__", spy)
    save_merged(base, random_adapter(1).factors, tmp_path / "out")
    assert len(held) == len(tensors_of(tmp_path / "base"))
    assert max(held) <= 1  # the one before


def test_configuration_and_tokenizer_are_copied_weights_and_card_not(tmp_path):
    tiny_base(tmp_path / "base", shards=SHARDED)
    copied = ["tokenizer.json", "merges.txt", "LICENSE", "chat_template.jinja", "modeling_own.py"]
    left = ["README.md", "pytorch_model.bin", "adapter_config.json", "training_args.pt"]
    for name in copied + left:
        (tmp_path / "base" / name).write_text(f"{name}\n")
    save_merged(open_base(tmp_path / "base"), random_adapter(1).factors, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {*copied, "config.json", "generation_config.json", "model.safetensors"}
    assert (tmp_path / "out" / "merges.txt").read_text() == "merges.txt\n"
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "base").stat().st_mode & 0o777


def test_an_overflow_is_refused(tmp_path):
    tiny_base(tmp_path / "base", dtype=torch.float16)
    update = {MODULES[0]: torch.full((HIDDEN, HIDDEN), 1e5)}
    with pytest.raises(tm.TipminiError, match=r"overflows in torch\.float16"):
        save_merged(open_base(tmp_path / "base"), update, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def fill_disk(monkeypatch):
    """The disk fills while the first file is written."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_folder, "_added", full)


def too_small_disk(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize(
    ("spoil", "line"), [(fill_disk, "No space left"), (too_small_disk, "the disk has 10 left")]
)
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, base, spoil, line):
    spoil(monkeypatch)
    with pytest.raises(tm.TipminiError, match=line):
        save_merged(base, random_adapter(1).factors, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_what_is_there_is_kept(tmp_path, base):
    (tmp_path / "out").mkdir()
    save_merged(base, random_adapter(1).factors, tmp_path / "out")  # an empty folder may be there
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(tm.TipminiError, match="is there already"):
        save_merged(base, random_adapter(2).factors, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
