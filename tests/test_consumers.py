"""A merged folder in the tools that read it: stock PEFT, and the rules of llama.cpp and vLLM."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import CONFIG, WEIGHTS, edit_config
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from tiny import peft_llama
from transformers import (
    AutoModel,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner
from vision_models import gemma3, llava

from tipmini_lab.commands import main

RANKS = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}}


def merge(*words) -> dict:
    result = CliRunner().invoke(main.app, ["merge", "--json", *map(str, words)])
    assert result.exit_code == 0, result.output or result.exception
    return json.loads(result.stdout)


@pytest.fixture
def ragged(tmp_path, monkeypatch) -> tuple[dict, dict, dict]:
    """Adapters of several ranks and alphas, merged: what was told, settings, tensors."""
    monkeypatch.chdir(tmp_path)
    for name, arguments in {"a": RANKS, "b": {"r": 2, "use_rslora": True}}.items():
        peft_llama(default=arguments).save_pretrained(name)
    told = merge("--method", "cat", "--weights", "sum", "--out", "m", "a", "b")
    return told, json.loads(Path("m", CONFIG).read_text()), load_file(Path("m", WEIGHTS))


def pairs(tensors: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (a, tensors[name.replace("lora_A", "lora_B")])
        for name, a in tensors.items()
        if "lora_A" in name
    }


def test_llama_cpp_reads_one_alpha_and_the_tensors_own_rank(ragged):
    """Its scale is lora_alpha over the rows of A, whatever the patterns say."""
    _, config, tensors = ragged
    stock = PeftModel.from_pretrained(LlamaForCausalLM(peft_llama(default={}).config), "m")
    for name, (a, b) in pairs(tensors).items():
        layer = stock.get_submodule(name.removesuffix(".lora_A.weight"))
        ours = layer.get_delta_weight("default").detach().numpy()
        assert np.allclose(config["lora_alpha"] / len(a) * b @ a, ours, atol=1e-5)


def test_vllm_takes_one_rank_that_is_told(ragged):
    """Its buffers are as wide as max_lora_rank, from which r must not stick out; patterns, DoRA,
    bias and modules to save are refused."""
    told, config, tensors = ragged
    assert {len(a) for a, _ in pairs(tensors).values()} == {config["r"]}
    assert told["max_lora_rank"] == config["r"]
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert not config["use_dora"] and config["bias"] == "none"
    assert not config.get("modules_to_save")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
BERT = BertConfig(**SMALL, intermediate_size=48, num_labels=2)
KINDS = {
    "CAUSAL_LM": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=48)),
        ["q_proj", "v_proj"],
    ),
    "GPT-2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)),
        ["c_attn", "c_proj"],
    ),
    "SEQ_2_SEQ_LM": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64)
        ),
        ["q", "v"],
    ),
    "SEQ_CLS": (lambda: BertForSequenceClassification(BERT), ["query", "value"]),
    "SEQ_CLS of two layers": (
        lambda: RobertaForSequenceClassification(
            RobertaConfig(**SMALL, intermediate_size=48, num_labels=2, pad_token_id=1)
        ),
        ["query", "value"],
    ),
    "TOKEN_CLS": (lambda: BertForTokenClassification(BERT), ["query", "value"]),
    "QUESTION_ANS": (lambda: BertForQuestionAnswering(BERT), ["query", "value"]),
    "FEATURE_EXTRACTION": (
        lambda: AutoModel.from_config(LlamaConfig(**SMALL, intermediate_size=48)),
        ["q_proj", "v_proj"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_computes_the_sum(kind, tmp_path, monkeypatch):
    """Of every type of model: with the merged adapter it answers as with both at once."""
    monkeypatch.chdir(tmp_path)
    build, targets = KINDS[kind]
    task = "CAUSAL_LM" if kind == "GPT-2" else kind.split()[0]
    torch.manual_seed(0)
    build().save_pretrained("base")
    load = type(build()).from_pretrained
    wanted, headed = load("base").eval(), task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2 + seed, target_modules=targets, task_type=task, init_lora_weights=False
        )
        peft = get_peft_model(load("base"), config)
        peft.save_pretrained(name)
        for module, layer in peft.get_base_model().named_modules():
            if hasattr(layer, "get_delta_weight"):
                wanted.get_submodule(module).weight.data += layer.get_delta_weight("default").data
    heads = ["--heads", "a"] if headed else []
    merge("--method", "cat", "--weights", "sum", "--out", "m", *heads, "a", "b")
    tokens = torch.arange(8).reshape(2, 4)
    given = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if "SEQ_2" in kind else {})
    with torch.no_grad():
        found = PeftModel.from_pretrained(load("base"), "m").eval()(**given)[0]
        assert torch.allclose(found, wanted(**given)[0], atol=1e-4)


def test_an_adapter_without_a_task_type_loads_by_itself(tmp_path, monkeypatch):
    """PEFT then keeps the model's class in auto_mapping, which AutoPeftModel reads."""
    monkeypatch.chdir(tmp_path)
    build, targets = KINDS["CAUSAL_LM"]
    build().save_pretrained("base")
    for name in "ab":
        model = LlamaForCausalLM.from_pretrained("base")
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(name)
    merge("--method", "cat", "--out", "m", "a", "b")
    assert isinstance(AutoPeftModel.from_pretrained("m").get_base_model(), LlamaForCausalLM)


@pytest.mark.parametrize("kept", [[], ["--rank-pattern"]])
@pytest.mark.parametrize("build", [llava, gemma3])
def test_stock_peft_reads_the_names_that_vision_models_had(build, kept, tmp_path, monkeypatch):
    """It renames their tensors as transformers renamed the modules, but nothing of the settings."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    build().save_pretrained("base")
    load = type(build()).from_pretrained
    wanted = load("base").eval()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2 + seed,
            target_modules=r".*language_model.*[qv]_proj",
            rank_pattern={"layers.1.self_attn.q_proj": 1},
            init_lora_weights=False,
        )
        peft = get_peft_model(load("base"), config)
        peft.save_pretrained(name)
        for module, layer in peft.get_base_model().named_modules():
            if hasattr(layer, "get_delta_weight"):
                wanted.get_submodule(module).weight.data += layer.get_delta_weight("default").data
        edit_config(Path(name), target_modules=["q_proj", "v_proj"])
        tensors = load_file(Path(name, WEIGHTS))
        now, then = "model.language_model.layers", "language_model.model.layers"
        save_file({k.replace(now, then): v for k, v in tensors.items()}, Path(name, WEIGHTS))
        assert then in next(iter(load_file(Path(name, WEIGHTS))))
    merge("--method", "cat", "--weights", "sum", "--out", "m", *kept, "a", "b")
    tokens = torch.arange(8).reshape(2, 4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", "Found missing adapter keys")
        found = PeftModel.from_pretrained(load("base"), "m").eval()(input_ids=tokens).logits
        assert torch.allclose(found, wanted(input_ids=tokens).logits, atol=1e-5)
