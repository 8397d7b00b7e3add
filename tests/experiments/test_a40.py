"""The paper's own setting, as far as it goes without a GPU and the hub: names, path, errors."""

import copy
import json
from pathlib import Path

import pytest
import torch
from labs import save_adapter, save_llama
from official import HUB, OFFICIAL, stand_in
from peft import PeftModel
from tokenizers.processors import TemplateProcessing

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.evaluation import assets, model, tasks
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import TABLE_1

A40 = load_profile("a40")
ADAPTERS = {  # BoolQ's is called otherwise
    "arc_challenge": "Styxxxx/llama2_7b_lora-arc_challenge",
    "boolq": "Styxxxx/llama2_7b_lora-bool_q",
    "coqa": "Styxxxx/llama2_7b_lora-coqa",
    "hellaswag": "Styxxxx/llama2_7b_lora-hellaswag",
    "openbookqa": "Styxxxx/llama2_7b_lora-openbookqa",
    "piqa": "Styxxxx/llama2_7b_lora-piqa",
    "rte": "Styxxxx/llama2_7b_lora-rte",
}


def test_the_setting_is_the_papers():
    assert A40.model == "meta-llama/Llama-2-7b-hf"
    assert (A40.data, A40.device, A40.dtype) == ("hub", "cuda", "float16")
    assert set(A40.tasks) == set(ADAPTERS)
    assert {A40.rows(task) for task in A40.tasks} == {None}  # every row
    assert (A40.calibration_rows, A40.base_sparsity) == (128, 0.7)


def test_hub_ids_of_the_adapters(monkeypatch, tmp_path):
    asked = {}
    for task in A40.tasks:
        monkeypatch.setattr(model, "download", lambda name, t=task: asked.update({t: name}))
        Lab(A40).adapter_path(task)
    assert asked == ADAPTERS


def test_only_configuration_and_safetensors_are_fetched(monkeypatch, tmp_path):
    """A pickle of the hub is not even downloaded."""
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Lab(A40).adapter_path("boolq") == tmp_path
    patterns = ["adapter_config.json", "adapter_model.safetensors"]
    assert asked == [(ADAPTERS["boolq"], patterns)]


@pytest.mark.parametrize("task", HUB)
def test_data_sets_are_the_official_ones(embedded, monkeypatch, task):
    """lm-eval's own source and split, all of its rows, in an order of ours."""
    rows = OFFICIAL[task]()[:30]
    asked = stand_in(monkeypatch, lambda _: rows)
    definition = Lab(A40).task(task)
    assert asked == [HUB[task][:2]]
    docs, order = list(definition.eval_docs), tasks.order(len(rows))
    keys = [key for key in rows[0] if key not in ("additional_answers",)]
    assert [{k: doc[k] for k in keys} for doc in docs] == [
        {k: rows[i][k] for k in keys} for i in order
    ]
    assert len(definition.training_docs()) == len(rows)


# What is missing ------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache and no way out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)


def one_line(call) -> str:
    with pytest.raises(TipminiError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = one_line(lambda: Lab(A40).base)
    assert line.startswith("model meta-llama/Llama-2-7b-hf: device cuda: no GPU here")


MISSING = {
    "adapter": (lambda lab: lab.adapter_path("boolq"), ADAPTERS["boolq"]),
    "adapters": (lambda lab: lab.adapters, ADAPTERS["arc_challenge"]),
    "tokenizer": (lambda lab: lab.tokenizer, "meta-llama/Llama-2-7b-hf"),
    "model": (lambda lab: lab.base, "meta-llama/Llama-2-7b-hf"),
    "data": (lambda lab: lab.task("rte"), "task rte: data nyu-mll/glue"),
    "a cell": (lambda lab: lab.cell("base", "boolq"), "task boolq: data aps/super_glue"),
}


@pytest.mark.parametrize(("call", "said"), MISSING.values(), ids=MISSING)
def test_without_the_hub(no_hub, call, said):
    lab = Lab(A40.model_copy(update={"device": "cpu", "dtype": "float32"}))
    line = one_line(lambda: call(lab))
    assert line.startswith(f"{said}: not in the hub's cache and not fetched: ")


# The same path in small -----------------------------------------------------------------------


def like_llama_2(tokenizer):
    """Sets a BOS by itself and has no token to pad with."""
    other = copy.deepcopy(tokenizer)
    bos = [(other.bos_token, other.bos_token_id)]
    other._tokenizer.post_processor = TemplateProcessing(f"{other.bos_token} $A", None, bos)
    other.pad_token = None
    return other


@pytest.fixture
def small(embedded, tokenizer, tmp_path, monkeypatch) -> Lab:
    """Nothing but sizes differs: a tiny model, tiny adapters, few rows, on the CPU."""

    def download(name: str) -> Path:
        assert name in ADAPTERS.values()
        return tmp_path / name

    monkeypatch.setattr(model, "download", download)
    monkeypatch.setattr(model, "keep_memory", lambda: None)
    monkeypatch.setattr(assets, "embedded", lambda: pytest.fail("the embedded assets were read"))
    for seed, name in enumerate(ADAPTERS.values()):
        save_adapter(tmp_path / name, seed)
    changes = {
        "model": str(save_llama(tmp_path / "llama", like_llama_2(tokenizer))),
        "device": "cpu",
        "dtype": "float32",
        "evaluation_rows": 3,
        "calibration_rows": 3,
        "results": str(tmp_path / "results"),
    }
    return Lab(A40.model_copy(update=changes))


@pytest.fixture(scope="module")
def hub_rows(embedded) -> dict[str, list[dict]]:
    return {task: OFFICIAL[task]()[:8] for task in HUB}


def test_the_whole_path_in_small(hub_rows, small, monkeypatch):
    """Seven adapters of the hub calibrated, merged and evaluated on the hub's data."""
    asked = stand_in(monkeypatch, lambda task: hub_rows[task])
    for method, task in [*((method, "boolq") for method in TABLE_1), ("tip", "coqa")]:
        cell = small.cell(method, task)
        assert cell.count == 3 and cell.metric == tasks.METRIC[task]
        assert cell.inputs["model"] == small.profile.model
    assert {source for source in asked} == {HUB[task][:2] for task in HUB}
    merged = tm.load_adapter(small.merged("tip"))
    assert merged.modules == small.adapters["boolq"].modules
    PeftModel.from_pretrained(small.base, small.merged("tip"))
    config = json.loads((small.merged("tip") / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
