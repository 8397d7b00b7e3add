"""The adapter as data; what PEFT writes is read as PEFT means it, and what is written it loads."""

import json
import math

import pytest
import torch
from folders import CONFIG, WEIGHTS, write_peft
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from tiny import MODULES, llama, logits, peft_llama, random_adapter
from transformers import GPT2Config, GPT2LMHeadModel

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, load_adapter
from tipmini.models.factors import LoraFactors
from tipmini.models.peft_settings import Settings


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


def test_an_unknown_module_is_refused():
    with pytest.raises(TipminiError, match=r"no module 'q'; it has model\.layers\.0"):
        random_adapter(0).delta("q")


@pytest.mark.parametrize(
    ("a", "b", "scaling", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), 1.0, r"got \(2, 3\) and \(4, 3\)"),
        (torch.ones(2), torch.ones(4, 2), 1.0, r"lora_A must be \(r, k\)"),
        (torch.ones(0, 3), torch.ones(4, 0), 1.0, "rank is 0"),
        (torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 2), 1.0, "floating"),
        (torch.ones(2, 3), torch.ones(4, 2), math.nan, "scaling must be finite"),
        (torch.ones(2, 3), torch.ones(4, 2), math.inf, "scaling must be finite"),
    ],
)
def test_factors_that_do_not_fit_are_refused(a, b, scaling, message):
    with pytest.raises(TipminiError, match=message):
        LoraFactors(a, b, scaling)


# As PEFT means it ---------------------------------------------------------------------------------
# LoraConfig's arguments -> the scaling of (layer 0's q_proj, layer 1's q_proj, layer 0's v_proj).
SCALINGS = [
    ({}, (2.0, 2.0, 2.0)),
    ({"use_rslora": True}, (4.0, 4.0, 4.0)),
    ({"rank_pattern": {"q_proj": 2}}, (4.0, 4.0, 2.0)),
    ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, (2.0, 0.5, 2.0)),
    ({"rank_pattern": {"layers.0.*": 8}, "alpha_pattern": {"v_proj": 3}}, (1.0, 2.0, 3 / 8)),
    ({"use_rslora": True, "rank_pattern": {"v_proj": 2}}, (4.0, 4.0, 8 / math.sqrt(2))),
    ({"layers_to_transform": [1]}, (None, 2.0, None)),
]
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
CASES = [*SCALINGS, *(({"rank_pattern": p, "alpha_pattern": p}, None) for p in PATTERNS)]


@pytest.mark.parametrize(("arguments", "scalings"), CASES, ids=str)
def test_a_folder_means_what_peft_makes_of_it(tmp_path, arguments, scalings, recwarn):
    model = peft_llama(default=arguments)
    model.save_pretrained(tmp_path / "peft")
    adapter = load_adapter(tmp_path / "peft")
    names = [f"model.layers.{i}.self_attn.{m}_proj" for i, m in [(0, "q"), (1, "q"), (0, "v")]]
    if scalings:
        assert [adapter.scaling.get(name) for name in names] == pytest.approx(scalings)
    for module in adapter.modules:
        layer = model.get_base_model().get_submodule(module)
        assert adapter.ranks[module] == layer.r["default"]
        assert adapter.scaling[module] == layer.scaling["default"]
        assert torch.equal(adapter.factors[module].a, layer.lora_A["default"].weight)
        assert torch.equal(adapter.factors[module].b, layer.lora_B["default"].weight)
        torch.testing.assert_close(adapter.delta(module), layer.get_delta_weight("default"))
    adapter.save(tmp_path / "ours")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    heard = " ".join(str(w.message) for w in recwarn)  # of keys that no file or no model has
    assert "missing" not in heard and "unexpected" not in heard


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


def test_a_name_that_as_a_pattern_misses_itself_counts_literally():
    patterns = {"b.q+": 2}
    settings = Settings(r=4, lora_alpha=8, alpha_pattern=patterns)
    assert get_pattern_key(patterns, "b.q+") in patterns
    assert settings.scaling("b.q+", 4) == 2 / 4 and settings.scaling("b.qq", 4) == 2 / 4
    assert settings.scaling("b.p", 4) == 8 / 4


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


# Written ------------------------------------------------------------------------------------------
def test_saving_and_loading_again_changes_nothing(tmp_path):
    adapter = load_adapter(write_peft(tmp_path / "peft", rank_pattern={"q_proj": 2}))
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    again.save(tmp_path / "b")
    assert again.modules == adapter.modules and again.scaling == adapter.scaling
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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


def test_factors_that_share_memory_can_be_saved(tmp_path):
    whole = torch.randn(8, 32)
    halves = [LoraFactors(half, torch.ones(32, 4), 1.0) for half in whole.split(4)]
    LoraAdapter(dict(zip(MODULES[::2], halves, strict=False))).save(tmp_path / "out")
    assert torch.equal(load_adapter(tmp_path / "out").factors[MODULES[0]].a, whole[:4])
