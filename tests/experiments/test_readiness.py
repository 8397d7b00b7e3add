"""What `a40` lacks is told before anything heavy starts: all of it, a line each."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.evaluation import tasks
from tipmini_lab.experiments import readiness
from tipmini_lab.experiments.profiles import load_profile

A40 = load_profile("a40")
# Bytes in 16 bits of the model that `hub` has: embedding and head, two layers, the last norm.
WEIGHTS = 2 * (2 * 64 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """All that is needed is there, for changes: repositories' folders, a disk, a GPU."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "vocab_size": 64}
    LlamaConfig(**sizes, **heads).save_pretrained(tmp_path / A40.model)
    for task in A40.tasks:
        name = A40.adapters.format(task=A40.adapter_names.get(task, task))
        (tmp_path / name).mkdir(parents=True)
        told = {"peft_type": "LORA", "base_model_name_or_path": A40.model}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(told))
    found = SimpleNamespace(place=tmp_path, cached=False, free=10**12, memory=48 * 10**9)

    def fetched(name, files, revision=None, *, local=False):
        if not (tmp_path / name).is_dir() or (local and not found.cached):
            raise TipminiError(f"{name}: not in the hub's cache and not fetched: no way out")
        return tmp_path / name

    monkeypatch.setattr(readiness, "fetched", fetched)
    monkeypatch.setattr(tasks, "resolve", lambda task: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=found.free))
    monkeypatch.setattr(paths, "REHEARSAL", tmp_path / "rehearsal.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.memory > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = lambda number: SimpleNamespace(total_memory=found.memory)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", told)
    return found


def test_where_all_is_there_nothing_is_told(hub, capsys):
    readiness.refuse_unready(A40)
    assert capsys.readouterr().err == ""


def test_a_profile_of_packaged_data_needs_nothing():
    assert readiness.missing(load_profile("mini")) == []


def test_everything_that_is_missing_is_told_at_once(monkeypatch, tmp_path, capsys):
    """An empty cache, no way out, no GPU."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TipminiError, match="profile a40: 16 things are missing here"):
        readiness.refuse_unready(A40)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 7 + 7 + 1  # model, adapters, data, GPU
    assert lines[0].startswith("tipmini: model meta-llama/Llama-2-7b-hf: not in the hub's cache")
    assert sum(line.startswith("tipmini: adapter Styxxxx/llama2_7b_lora-") for line in lines) == 7
    assert "tipmini: task rte: data nyu-mll/glue: not in the hub's cache" in "\n".join(lines)
    assert lines[-1] == "tipmini: device cuda: no GPU here; run it where there is one"


def test_weights_are_as_large_as_the_configuration_says(hub):
    assert readiness.weights_size(hub.place / A40.model) == WEIGHTS


def test_adapters_of_another_base_or_kind_are_told(hub):
    told = {"peft_type": "IA3", "base_model_name_or_path": "huggyllama/llama-7b"}
    file = hub.place / "Styxxxx/llama2_7b_lora-bool_q/adapter_config.json"
    file.write_text(json.dumps(told))
    (hub.place / "Styxxxx/llama2_7b_lora-rte/adapter_config.json").unlink()
    one, two, three = readiness.missing(A40)
    name = "adapter Styxxxx/llama2_7b_lora-bool_q: "
    assert one == f"{name}its peft_type is IA3, not LORA"
    assert two == f"{name}it is of huggyllama/llama-7b, the profile's model is {A40.model}"
    assert three.startswith("adapter ") and "llama2_7b_lora-rte" in three


def test_a_licence_that_is_not_accepted_is_told(hub, monkeypatch):
    found = readiness.fetched

    def gated(name, files, revision=None, *, local=False):
        if name == A40.model:
            raise TipminiError(f"{name}: not fetched: it is gated: accept its terms on the hub")
        return found(name, files, revision, local=local)

    monkeypatch.setattr(readiness, "fetched", gated)
    assert readiness.missing(A40) == [
        f"model {A40.model}: not fetched: it is gated: accept its terms on the hub"
    ]


def test_a_disk_without_room_is_told_unless_the_files_are_there(hub):
    hub.free = WEIGHTS - 1
    (line,) = readiness.missing(A40)
    assert line.startswith("disk: ") and line.endswith("0.0 GB free, the model's files take 0.0 GB")
    hub.cached = True
    assert readiness.missing(A40) == []


def test_a_gpu_with_less_memory_than_the_rehearsal_held_is_told(hub):
    steps = {name: {"peak": 30e9} for name in ("calibrate", "evaluate", "generate")}
    paths.REHEARSAL.write_text(json.dumps({"steps": steps | {"train": {"peak": 90e9}}}))
    assert readiness.missing(A40) == []
    hub.memory = 24 * 10**9
    told = "device cuda: its memory is 24.0 GB, 30.0 GB are needed"
    assert readiness.missing(A40) == [told]


@pytest.mark.parametrize("command", ["measure", "norms", "reproduce", "book"])
def test_commands_ask_first(command, monkeypatch, tmp_path):
    from tipmini_lab.commands import batch

    def refuse(profile):
        raise TipminiError(f"{profile.name} is not ready")

    monkeypatch.setattr(readiness, "refuse_unready", refuse)
    with pytest.raises(TipminiError, match="a40 is not ready"):
        getattr(batch, command)(profile="a40")
