"""`tipmini merge --into`: bases as they come, against PEFT's own merge_and_unload."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from typer.testing import CliRunner
from vision_models import SMALL, VISION, gemma3, llava

from tipmini_lab.commands import main

SQUARE = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_inner=32)


def captions() -> VisionEncoderDecoderModel:
    """A vision encoder with GPT-2, whose layers are transposed though the model's type isn't."""
    decoder = GPT2Config(**SQUARE.to_diff_dict() | {"add_cross_attention": True})
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    return VisionEncoderDecoderModel(both)


def pair() -> EncoderDecoderModel:
    """Square layers of both kinds in one model: as they are in BERT, transposed in GPT-2."""
    decoder = GPT2Config(**SQUARE.to_diff_dict() | {"add_cross_attention": True})
    return EncoderDecoderModel(
        EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**SMALL), decoder)
    )


BASES = {
    "LLaMA": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), "q_proj"),
    "LLaMA saved without its head": (lambda: AutoModel.from_config(LlamaConfig(**SMALL)), "q_proj"),
    "GPT-2": (lambda: GPT2LMHeadModel(SQUARE), "c_attn"),
    "GPT-2, square layers": (lambda: GPT2LMHeadModel(SQUARE), "c_proj"),
    "a vision model with GPT-2, square layers": (captions, "c_proj"),
    "BERT with GPT-2, square layers of both": (pair, ["query", "c_proj"]),
    "LLaVA": (llava, "q_proj"),
    "Gemma 3": (gemma3, "q_proj"),
}


def merge(*words):
    return CliRunner().invoke(main.app, ["merge", "--json", "--method", "cat", *map(str, words)])


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(build, target: str, names: str = "a"):
    """The base in base/, adapters beside it; the PeftModel of the last."""
    torch.manual_seed(0)
    build().save_pretrained("base")
    for name in names:
        model = type(build()).from_pretrained("base")
        targets = [target] if isinstance(target, str) else target
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        peft = get_peft_model(model, config)
        peft.save_pretrained(name)
    return peft


@pytest.mark.parametrize("kind", BASES)
def test_as_peft_merges_and_unloads(kind):
    build, target = BASES[kind]
    peft = save(build, target)
    result = merge("--weights", "sum", "--into", "base", "--out", "m", "a")
    assert result.exit_code == 0, result.output or result.exception
    theirs = peft.merge_and_unload().state_dict()
    ours = type(build()).from_pretrained("m").state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name


def test_a_gpt2_that_an_adapter_says_nothing_of():
    peft = save(*BASES["GPT-2, square layers"])
    config = json.loads(Path("a/adapter_config.json").read_text())
    Path("a/adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": False}))
    assert merge("--weights", "sum", "--into", "base", "--out", "m", "a").exit_code == 0
    ours = GPT2LMHeadModel.from_pretrained("m").state_dict()
    for name, tensor in peft.merge_and_unload().state_dict().items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name


def test_an_adapter_of_the_whole_model_fits_a_base_saved_without_its_head():
    """The modules are the same: only the names of the class that saved them differ."""
    peft = save(BASES["LLaMA"][0], "q_proj")
    AutoModel.from_pretrained("base").save_pretrained("bare")
    assert merge("--weights", "sum", "--into", "bare", "--out", "m", "a").exit_code == 0
    wanted = peft.merge_and_unload().model.state_dict()
    found = AutoModel.from_pretrained("m").state_dict()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_another_model_is_refused_by_its_sizes():
    save(BASES["LLaMA"][0], "q_proj")
    other = LlamaForCausalLM(LlamaConfig(**SMALL | {"hidden_size": 64}))
    other.save_pretrained("other")
    result = merge("--into", "other", "--out", "m", "a")
    assert "other" in str(result.exception) and not Path("m").exists()


def test_a_base_of_another_name_is_told():
    """The adapters name one base and the folder's config another: told, since folders are moved."""
    save(BASES["LLaMA"][0], "q_proj")
    config = json.loads(Path("a/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "meta-llama/Llama-3.2-1B"
    Path("a/adapter_config.json").write_text(json.dumps(config))
    settings = json.loads(Path("base/config.json").read_text())
    settings["_name_or_path"] = "Qwen/Qwen3-1.7B"
    Path("base/config.json").write_text(json.dumps(settings))
    result = merge("--into", "base", "--out", "m", "a")
    assert result.exit_code == 0
    (note,) = json.loads(result.stdout)["notes"]
    assert "meta-llama/Llama-3.2-1B" in note and "Qwen/Qwen3-1.7B" in note
    assert note in result.stderr


def test_what_else_the_folder_holds_comes_along():
    save(BASES["LLaMA"][0], "q_proj")
    beside = {"1_Pooling/config.json": "{}", "modules.json": "[]", "USE_POLICY.md": "be kind"}
    beside |= {"2_Dense/model.safetensors": "another layer", "onnx/model.onnx": "the old weights"}
    beside |= {"chat_template.jinja": "{{ x }}", "LICENSE": "free", "README.md": "the base's"}
    for name, text in beside.items():
        Path("base", name).parent.mkdir(exist_ok=True)
        Path("base", name).write_text(text)
    Path("base/pytorch_model.bin").write_text("other weights")
    assert merge("--into", "base", "--out", "m", "a").exit_code == 0
    assert not Path("m/onnx").exists()
    for name in beside.keys() - {"README.md", "onnx/model.onnx"}:
        assert Path("m", name).read_text() == beside[name]
    assert not Path("m/pytorch_model.bin").exists()
    card = Path("m/README.md").read_text()
    assert "tipmini" in card and str(Path.cwd()) not in card


def test_the_merged_base_answers_as_the_adapters_do():
    save(BASES["LLaMA"][0], "q_proj", "ab")
    assert merge("--weights", "1,1", "--into", "base", "--out", "m", "a", "b").exit_code == 0
    assert merge("--weights", "1,1", "--out", "adapter", "a", "b").exit_code == 0
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained("base")
    tokens = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, "adapter").eval()(tokens).logits
        ours = AutoModelForCausalLM.from_pretrained("m").eval()(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
