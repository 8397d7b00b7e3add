"""What PEFT writes is read as PEFT means it, and what is written is what stock PEFT loads."""

import math

import pytest
import torch
from folders import CONFIG, WEIGHTS, write_peft
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import MODULES, llama, logits, peft_llama, random_adapter
from transformers import GPT2Config, GPT2LMHeadModel

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, LoraFactors, load_adapter

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
