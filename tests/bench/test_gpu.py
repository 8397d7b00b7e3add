"""`scripts/gpu-check` itself, on the CPU with a tiny model: the code that a GPU would run."""

import json
import sys

import pytest
import torch

from bench import gpu
from tipmini.errors import TipminiError
from tipmini.methods.table import METHODS
from tipmini_lab import paths
from tipmini_lab.book import rehearsed
from tipmini_lab.experiments.walking import STEPS


@pytest.fixture(scope="module")
def stored(embedded, tmp_path_factory) -> dict:
    file = gpu.check("cpu", "bfloat16", tmp_path_factory.mktemp("gpu"), tiny=True)
    return json.loads(file.read_text()) | {"name": file.name}


def test_every_path_is_walked_and_told_as_what_it_is(stored):
    assert stored["name"] == "no-gpu-bfloat16-tiny.json"
    assert (stored["weights"], stored["tiny"], stored["device"]) == ("random", True, "cpu")
    assert stored["steps"].keys() == STEPS.keys()
    for step in stored["steps"].values():
        assert step["tokens"] > 0 and step["seconds"] > 0 and step["peak"] > 0
    assert stored["merges"].keys() == {*METHODS, "into"}
    assert stored["throughput"].keys() == {"ours", "hf"}


def test_the_cpus_own_answers_are_no_distance_away(stored):
    assert set(stored["beside_cpu"]["float32"].values()) == {0.0}
    assert all(apart > 0 for apart in stored["beside_cpu"]["bfloat16"].values())


def test_answers_that_are_off_are_refused(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", {"calibrate": STEPS["calibrate"]})
    monkeypatch.setitem(gpu.APART, "bfloat16", 1e-9)
    a40 = gpu.load_profile("a40")
    with pytest.raises(TipminiError, match=r"calibrate in bfloat16 on cpu: .* 1e-09 at most"):
        gpu.beside_cpu(a40, tmp_path, "cpu", "bfloat16")


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu-check"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    line = "gpu-check: no GPU here; --device cpu --tiny tries the script itself\n"
    assert (stopped.value.code, capsys.readouterr().err) == (2, line)


def test_no_more_memory_than_an_a40_has(monkeypatch):
    asked = []
    told = type("", (), {"total_memory": 96e9})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: told)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    gpu.cap_memory()
    assert asked == [0.5]


def test_a_gpus_run_is_shown_in_the_book(stored, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "GPU", tmp_path)
    run = stored | {"device": "cuda", "machine": {"gpu": "NVIDIA A40"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert "| NVIDIA A40, bfloat16, random weights | train an adapter |" in rehearsed.gpu_runs()
