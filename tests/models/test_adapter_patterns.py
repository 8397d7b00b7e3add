"""rank_pattern and alpha_pattern: read as PEFT reads them, and written so that PEFT does."""

import json

import pytest
import torch
from folders import CONFIG, write_peft
from peft import PeftModel
from peft.utils.other import get_pattern_key
from tiny import MODULES, llama, logits, peft_llama, random_adapter

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, LoraFactors, load_adapter
from tipmini.models.peft_settings import Settings


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


def test_a_name_that_as_a_pattern_misses_itself_counts_literally():
    patterns = {"b.q+": 2}
    settings = Settings(r=4, lora_alpha=8, alpha_pattern=patterns)
    assert get_pattern_key(patterns, "b.q+") in patterns
    assert settings.scaling("b.q+", 4) == 2 / 4 and settings.scaling("b.qq", 4) == 2 / 4
    assert settings.scaling("b.p", 4) == 8 / 4
