import dataclasses
import errno
import json
import math
import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from tiny import MODULES, llama, peft_llama, random_adapter, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from tipmini.adapter import LoraAdapter, LoraFactors, load_adapter, natural_order
from tipmini.errors import TipminiError
from tipmini.model_card import model_card
from tipmini.peft_config import EXTRAS, SETTINGS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"

# LoraConfig's arguments -> the scaling of (layer 0's q_proj, layer 1's q_proj, layer 0's v_proj).
SCALINGS = {
    "plain": ({}, (2.0, 2.0, 2.0)),
    "rslora": ({"use_rslora": True}, (4.0, 4.0, 4.0)),
    "rank_pattern": ({"rank_pattern": {"q_proj": 2}}, (4.0, 4.0, 2.0)),
    "alpha_pattern": ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, (2.0, 0.5, 2.0)),
    "both": (
        {"rank_pattern": {"layers.0.*": 8}, "alpha_pattern": {"v_proj": 3}},
        (1.0, 2.0, 3 / 8),
    ),
    "rslora and rank_pattern": (
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}},
        (4.0, 4.0, 8 / math.sqrt(2)),
    ),
    "one layer only": ({"layers_to_transform": [1]}, (None, 2.0, None)),
}


def write_peft(folder: Path, **arguments) -> Path:
    """A folder as PEFT itself writes it."""
    peft_llama(default=arguments).save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, 7)).logits


# Reading and writing what PEFT reads and writes ------------------------------------------------


@pytest.mark.parametrize(("arguments", "scalings"), SCALINGS.values(), ids=SCALINGS)
def test_a_peft_folder_means_what_peft_makes_of_it(tmp_path, arguments, scalings):
    model = peft_llama(default=arguments)
    model.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    names = [f"model.layers.{i}.self_attn.{m}_proj" for i, m in [(0, "q"), (1, "q"), (0, "v")]]
    assert [adapter.scaling.get(name) for name in names] == pytest.approx(scalings)
    for module in adapter.modules:
        layer = model.get_base_model().get_submodule(module)
        assert torch.equal(adapter.factors[module].a, layer.lora_A["default"].weight)
        assert torch.equal(adapter.factors[module].b, layer.lora_B["default"].weight)
        torch.testing.assert_close(adapter.delta(module), layer.get_delta_weight("default"))


@pytest.mark.parametrize(("arguments", "scalings"), SCALINGS.values(), ids=SCALINGS)
def test_stock_peft_loads_what_save_writes(tmp_path, arguments, scalings, recwarn):
    model = peft_llama(default=arguments)
    model.save_pretrained(tmp_path / "peft")
    load_adapter(tmp_path / "peft").save(tmp_path / "ours")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert not [w for w in recwarn if "key" in str(w.message)]  # none missing, none unexpected


def test_saving_and_loading_again_changes_nothing(tmp_path):
    adapter = load_adapter(write_peft(tmp_path / "peft", rank_pattern={"q_proj": 2}))
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    again.save(tmp_path / "b")
    assert again.modules == adapter.modules and again.scaling == adapter.scaling
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, None])
def test_save_stores_the_dtype_asked_for(tmp_path, dtype):
    adapter = random_adapter(0)
    adapter.save(tmp_path / "out", dtype=dtype)
    stored = load_adapter(tmp_path / "out").factors[MODULES[0]].a
    assert stored.dtype == (dtype or torch.float32)
    assert torch.equal(stored, adapter.factors[MODULES[0]].a.to(dtype or torch.float32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_a_dtype_that_no_adapter_has_is_refused(tmp_path, dtype):
    with pytest.raises(TipminiError, match="dtype must be a floating one"):
        random_adapter(0).save(tmp_path / "out", dtype=dtype)


def test_patterns_name_only_the_odd_ones_out(tmp_path):
    odd = MODULES[0]
    factors = dict(random_adapter(0).factors)
    factors[odd] = LoraFactors(torch.ones(1, 32), torch.ones(32, 1), scaling=0.1)
    LoraAdapter(factors, "base").save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({odd: 1}, {odd: 0.1})
    assert config["target_modules"] == MODULES


def test_a_name_that_ends_another_keeps_its_own_rank(tmp_path):
    """PEFT reads a name in rank_pattern as a pattern for the ends of names."""
    ranks = {"q": 2, "a.q": 3, "b.q": 3, "b.q+": 1}
    factors = {m: LoraFactors(torch.ones(r, 4), torch.ones(4, r), r / 2) for m, r in ranks.items()}
    LoraAdapter(factors).save(tmp_path / "out")
    assert load_adapter(tmp_path / "out").ranks == ranks
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    for module, rank in ranks.items():
        key = get_pattern_key(config["rank_pattern"], module)
        assert config["rank_pattern"].get(key, config["r"]) == rank


PATTERNS = [
    {"q_proj": 2},
    {"layers.1.*": 2, "v_proj": 5},
    {"^model.layers.0.self_attn.q_proj": 3},
    {"^q_proj": 3},
    {r"model\.layers\.[02]\.self_attn\.(q|v)_proj": 6},
    {"proj": 2, "_proj": 3, "q": 5, "attn.q_proj": 7},
    {"layers.1.self_attn.q_proj|v_proj": 3},
    {".*": 1, "q_proj": 3},
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_match_as_pefts_do(tmp_path, pattern):
    model = peft_llama(default={"rank_pattern": pattern, "alpha_pattern": pattern})
    model.save_pretrained(tmp_path / "peft")
    adapter = load_adapter(tmp_path / "peft")
    for module in adapter.modules:
        layer = model.get_base_model().get_submodule(module)
        assert adapter.ranks[module] == layer.r["default"]
        assert adapter.scaling[module] == layer.scaling["default"]
    adapter.save(tmp_path / "ours")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_patterns_are_read_in_the_order_of_the_file(tmp_path):
    """PEFT sorts them when it saves, so that another one may come first: the folder decides."""
    write_peft(tmp_path, alpha_pattern={"self_attn.q_proj": 2, "q_proj": 5})
    reloaded = PeftModel.from_pretrained(llama(), tmp_path).get_base_model()
    for module, scaling in load_adapter(tmp_path).scaling.items():
        assert scaling == reloaded.get_submodule(module).scaling["default"]
    write_peft(tmp_path, rank_pattern={"self_attn.q_proj": 2, "q_proj": 5})
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(llama(), tmp_path)
    with pytest.raises(TipminiError, match=r"rank 5 for .*q_proj, whose tensors have rank 2"):
        load_adapter(tmp_path)


def gpt2() -> GPT2LMHeadModel:
    """A base that stores its weights transposed."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)).eval()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_fan_in_fan_out_only_transposes_the_base(tmp_path):
    arguments = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": False}
    model = get_peft_model(gpt2(), LoraConfig(r=2, task_type="CAUSAL_LM", **arguments)).eval()
    model.save_pretrained(tmp_path / "peft")
    adapter = load_adapter(tmp_path / "peft")
    for module in adapter.modules:
        layer = model.get_base_model().get_submodule(module)
        torch.testing.assert_close(adapter.delta(module).T, layer.get_delta_weight("default"))
    adapter.save(tmp_path / "ours")
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model))


def test_factors_that_share_memory_can_be_saved(tmp_path):
    whole = torch.randn(8, 32)
    halves = [LoraFactors(half, torch.ones(32, 4), 1.0) for half in whole.split(4)]
    LoraAdapter(dict(zip(MODULES[::2], halves, strict=False))).save(tmp_path / "out")
    assert torch.equal(load_adapter(tmp_path / "out").factors[MODULES[0]].a, whole[:4])


# The adapter as data -----------------------------------------------------------------------------


def test_delta_worked_by_hand():
    factors = LoraFactors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]]), scaling=0.5)
    adapter = LoraAdapter({"m": factors})
    assert adapter.delta("m").tolist() == [[1.5, 3.0], [-0.5, -1.0]]
    assert (adapter.modules, adapter.scaling, adapter.ranks) == (["m"], {"m": 0.5}, {"m": 1})
    assert factors.shape == (2, 2)


def test_delta_of_16_bit_factors_is_computed_in_float32():
    adapter = random_adapter(0, dtype=torch.bfloat16)
    delta, factors = adapter.delta(MODULES[0]), adapter.factors[MODULES[0]]
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, 2.0 * (factors.b.float() @ factors.a.float()))


def test_modules_come_in_the_order_of_the_layers():
    names = [f"model.layers.{i}.{m}" for i in range(12) for m in ("q", "v")]
    assert natural_order(reversed(names)) == names
    assert natural_order(["a.b", "1.b", "a", "a.1"]) == ["1.b", "a", "a.1", "a.b"]


@pytest.mark.parametrize("scaling", [math.nan, math.inf])
def test_a_scaling_that_is_no_number_is_refused(scaling):
    with pytest.raises(TipminiError, match="scaling must be finite"):
        LoraFactors(torch.ones(2, 3), torch.ones(4, 2), scaling)


def test_an_unknown_module_is_refused():
    with pytest.raises(TipminiError, match=r"no module 'q'; it has model\.layers\.0"):
        random_adapter(0).delta("q")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), r"got \(2, 3\) and \(4, 3\)"),
        (torch.ones(2), torch.ones(4, 2), r"lora_A must be \(r, k\)"),
        (torch.ones(0, 3), torch.ones(4, 0), "rank is 0"),
        (torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 2), "floating"),
    ],
)
def test_factors_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(TipminiError, match=message):
        LoraFactors(a, b, 1.0)


# Folders that can't be read: one line that names the file ----------------------------------------


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, **changes) -> None:
    """Set a tensor by its name, or take it away with None."""
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({k: t for k, t in tensors.items() if t is not None}, folder / WEIGHTS)


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
        factor = load_file(folder / WEIGHTS)[f"{Q0}.lora_A.weight"]
        factor[1, 2] = value
        edit_tensors(folder, **{f"{Q0}.lora_A.weight": factor})

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
    "binary config": (
        lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"),
        CONFIG,
        "not a readable",
    ),
    "a list for config": (lambda f: (f / CONFIG).write_text("[]"), CONFIG, "not a LoRA adapter"),
    "another method": (lambda f: edit_config(f, peft_type="IA3"), CONFIG, "not a LoRA adapter"),
    "NaN": (spoil(math.nan), WEIGHTS, f"{Q0}.lora_A.weight has NaN or Inf"),
    "Inf": (spoil(-math.inf), WEIGHTS, f"{Q0}.lora_A.weight has NaN or Inf"),
    "no A": (
        lambda f: edit_tensors(f, **{f"{Q0}.lora_A.weight": None}),
        WEIGHTS,
        f"{Q0}.lora_A.weight is missing",
    ),
    "no B": (
        lambda f: edit_tensors(f, **{f"{Q0}.lora_B.weight": None}),
        WEIGHTS,
        f"{Q0}.lora_B.weight is missing",
    ),
    "no tensor": (lambda f: save_file({}, f / WEIGHTS), WEIGHTS, "holds no tensor"),
    "A of another rank": (
        lambda f: edit_tensors(f, **{f"{Q0}.lora_A.weight": torch.ones(3, 32)}),
        WEIGHTS,
        "model.layers.0.self_attn.q_proj: lora_A must be",
    ),
    "rank unlike the config": (lambda f: edit_config(f, r=16), CONFIG, "rank 16 for model.layers"),
    "no alpha": (
        lambda f: edit_config(f, lora_alpha=None),
        CONFIG,
        "lora_alpha must be a number that",
    ),
    "alpha of words": (lambda f: edit_config(f, lora_alpha="8"), CONFIG, "must be a number"),
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
    "a switch of a newer PEFT": (
        lambda f: edit_config(f, use_marvel=True),
        CONFIG,
        "'use_marvel' is no setting of PEFT 0.21",
    ),
    "a start of a newer PEFT": (
        lambda f: edit_config(f, init_lora_weights="marvel"),
        CONFIG,
        "init_lora_weights 'marvel' is unknown to PEFT 0.21",
    ),
    "PiSSA": (
        lambda f: edit_config(f, init_lora_weights="pissa_niter_4"),
        CONFIG,
        "'pissa_niter_4' changes the base model",
    ),
    "DoRA's tensor": (
        lambda f: edit_tensors(f, **{f"{Q0}.lora_magnitude_vector": torch.ones(32)}),
        WEIGHTS,
        "lora_magnitude_vector is no LoRA factor",
    ),
    "bias tensor": (
        lambda f: edit_tensors(f, **{f"{Q0}.lora_B.bias": torch.ones(32)}),
        WEIGHTS,
        "lora_B.bias is no LoRA factor",
    ),
    "embedding": (
        lambda f: edit_tensors(
            f, **{"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)}
        ),
        WEIGHTS,
        "lora_embedding_A is no LoRA factor",
    ),
}


# A value that PEFT's own setting takes and that makes the adapter more than s B A.
SET = {
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 3},
    "bias": "all",
    "ensure_weight_tying": True,
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2]],
    "lora_bias": True,
    "megatron_config": {"hidden_size": 32},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"num_samples": 2},
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [3],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
}


def test_who_overwrites_the_file_does_not_end_the_program(tmp_path):
    random_adapter(0).save(tmp_path)
    adapter = load_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"")  # a mapped file would now be a bus error
    expected = random_adapter(0).factors[MODULES[0]].a
    assert torch.equal(adapter.factors[MODULES[0]].a, expected)


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


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_more_than_lora_is_refused_with_a_reason(good, tmp_path, name):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, **{name: SET[name]})
    with pytest.raises(TipminiError, match=rf"{name} is .*; {re.escape(EXTRAS[name])}; only plain"):
        load_adapter(tmp_path)


def test_every_setting_of_the_installed_peft_is_known():
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= SETTINGS


@pytest.mark.parametrize("init", ["gaussian", "eva", "orthogonal", "mica", True, False, None])
def test_starts_that_leave_the_base_alone_are_read(good, tmp_path, init):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, init_lora_weights=init)
    assert load_adapter(tmp_path).modules == MODULES


def test_what_peft_writes_for_dora_is_refused(tmp_path):
    with pytest.raises(TipminiError, match="use_dora"):
        load_adapter(write_peft(tmp_path, use_dora=True))


EMBEDDING = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole module": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "lora_only"},
    "token embeddings": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("arguments", EMBEDDING.values(), ids=EMBEDDING)
def test_what_peft_writes_beyond_linear_modules_is_refused(tmp_path, arguments):
    with pytest.raises(TipminiError, match=r"only plain LoRA|is no LoRA factor"):
        load_adapter(write_peft(tmp_path, **arguments))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TipminiError, match=r"nowhere: no such folder; a PEFT adapter has"):
        load_adapter(tmp_path / "nowhere")


# Saving, all at once or not at all ---------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_an_adapter_takes_the_place_of_an_older_one(tmp_path):
    random_adapter(0).save(tmp_path / "out")
    random_adapter(1).save(tmp_path / "out")
    expected = random_adapter(1).factors[MODULES[0]].a
    assert torch.equal(load_adapter(tmp_path / "out").factors[MODULES[0]].a, expected)
    assert os.listdir(tmp_path) == ["out"]


def test_both_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "any").write_text("")
    random_adapter(0).save(tmp_path / "out")
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "any").stat().st_mode}


def test_parents_are_made_and_a_relative_path_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_adapter(0).save("a/b/out")
    assert load_adapter("a/b/out").modules == MODULES


def test_other_files_are_never_swept_away(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TipminiError, match=r"also holds notes\.txt; choose another folder"):
        random_adapter(0).save(tmp_path)
    assert listing(tmp_path) == {"notes.txt": b"mine"}


def test_a_card_goes_with_its_adapter(tmp_path):
    card = model_card("cat", {}, {}, seed=0, version="1")
    random_adapter(0).save(tmp_path / "out", card=card)
    assert (tmp_path / "out" / "README.md").read_text() == card
    assert PeftModel.from_pretrained(llama(), tmp_path / "out").peft_config["default"].r == 4
    random_adapter(1).save(tmp_path / "out", card=card)
    random_adapter(2).save(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("text", ["", "# Mine", "- tipmini", "---\n- tipmini\n"])
def test_a_card_written_by_hand_is_never_swept_away(tmp_path, text):
    random_adapter(0).save(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text(text)
    before = listing(tmp_path)
    with pytest.raises(TipminiError, match=r"also holds README\.md; choose another folder"):
        random_adapter(1).save(tmp_path / "out", card="mine")
    assert listing(tmp_path) == before


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("older", [True, False])
def test_a_full_disk_leaves_all_as_it_was(tmp_path, monkeypatch, older):
    if older:
        random_adapter(0).save(tmp_path / "out")
    before = listing(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(TipminiError, match=r"out: cannot be written \(.*No space left"):
        random_adapter(1).save(tmp_path / "out")
    assert listing(tmp_path) == before and os.listdir(tmp_path) == (["out"] if older else [])


@pytest.mark.parametrize("room", [0, 100, 5000])
@pytest.mark.parametrize("older", [True, False])
def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path, older, room):
    """A real one: the system refuses to let any file grow beyond `room` bytes."""
    if older:
        random_adapter(0).save(tmp_path / "out")
    before = listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(TipminiError, match=r"out: cannot be written \(.*File too large"):
            random_adapter(1).save(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before and os.listdir(tmp_path) == (["out"] if older else [])


def test_an_interrupted_swap_brings_the_older_one_back(tmp_path, monkeypatch):
    random_adapter(0).save(tmp_path / "out")
    before, rename = listing(tmp_path), os.rename

    def interrupted(source, target):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        random_adapter(1).save(tmp_path / "out")
    assert listing(tmp_path) == before


def test_a_failed_rename_brings_the_older_one_back(tmp_path, monkeypatch):
    random_adapter(0).save(tmp_path / "out")
    before, rename = listing(tmp_path), os.rename

    def refuse_new(source, target):
        if Path(source).name == "new":
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(TipminiError, match="No space left"):
        random_adapter(1).save(tmp_path / "out")
    assert listing(tmp_path) == before


def test_a_file_in_the_way_stays(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TipminiError, match="out: cannot be written"):
        random_adapter(0).save(tmp_path / "out")
    assert listing(tmp_path) == {"out": b"a file"}


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path):
    factors = LoraFactors(torch.full((1, 2), 1e6), torch.ones(2, 1), 1.0)
    with pytest.raises(TipminiError, match=r"x\.lora_A\.weight has NaN or Inf"):
        LoraAdapter({"x": factors}).save(tmp_path / "out", dtype=torch.float16)
    assert os.listdir(tmp_path) == []
