"""The README's Python example runs as printed, on the committed adapters."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import tipmini as tm

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "adapters" / "piqa"
FILE = "model.safetensors"


def test_python_example_runs(tmp_path, monkeypatch):
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    base = tmp_path / "SmolLM2-135M-Instruct"  # of zeros, so that the sum is the update itself
    shapes = {f"{m}.weight": p.shape for m, p in tm.load_adapter(ADAPTER).factors.items()}
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, base / FILE)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["score"].shape == (8, 576)
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()
    written = load_file(tmp_path / "merged-model" / FILE)
    assert written.keys() == shapes.keys()
    for name, weight in written.items():
        module = name.removesuffix(".weight")
        exact = names["arc"].delta(module) + names["piqa"].delta(module)
        torch.testing.assert_close(weight, exact, rtol=1e-4, atol=1e-6)
