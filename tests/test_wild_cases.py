"""Adapters as they come, from wild_cases.yaml: each merged as a user would, or refused in words."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adapters_on_disk import tiny_base
from folders import CONFIG, WEIGHTS, edit_config
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from tiny import llama, logits, peft_llama, random_adapter
from typer.testing import CliRunner

from tipmini.errors import TipminiError
from tipmini_lab.commands import main

CASES = yaml.safe_load((Path(__file__).parent / "wild_cases.yaml").read_text())
EXACT = 1e-5  # of float32 factors beside float64 sums, relative


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_an_adapter_as_it_comes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_base(Path("base"))
    folders = [made(i, edits, model) for i, edits in enumerate(case["adapters"])]
    if case.get("taken"):
        random_adapter(9).save("merged")
    words = ["--method", "cat", "--weights", "sum", "--json", "--out", "merged"]
    words += [*map(str, case.get("given", [])), *folders]
    result = CliRunner().invoke(main.app, ["merge", *words])
    if case["right"] == "refused":
        assert isinstance(result.exception, TipminiError), result.output or result.exception
        line = str(result.exception)
        assert "\n" not in line and all(word in line for word in case["says"]), line
        assert not Path("merged").exists()
        return
    assert result.exit_code == 0, result.output or result.exception
    facts, config = json.loads(result.stdout), json.loads(Path("merged", CONFIG).read_text())
    for name, value in case.get("tells", {}).items():
        found = facts[name]["whole"] if name == "relative_error" else facts[name]
        assert found == value
    for name, value in case.get("writes", {}).items():
        assert config[name] == value
    if "notes" in case:
        (note,) = facts["notes"]
        assert all(word in note for word in case["notes"]) and note in result.stderr
    if "stored" in case:
        assert case["stored"].encode() in Path("merged", WEIGHTS).read_bytes()[:4000]
    if case["right"] == "sum":
        wanted = summed([deltas(folder) for folder in folders])
        assert_near(deltas("merged"), wanted)
        assert_computes(wanted)


def made(place: int, edits: dict, model) -> str:
    """The folder of an adapter, edited."""
    folder = Path("adapters") / edits.get("name", f"a{place}")
    seed = edits.get("seed", place)
    if "peft" in edits:
        torch.manual_seed(seed)
        peft_llama(default=edits["peft"]).save_pretrained(folder)
        edit_config(folder, base_model_name_or_path="tiny")
    else:
        random_adapter(seed).save(folder)
    tensors = load_file(folder / WEIGHTS)
    for pattern, replacement in edits.get("rename", {}).items():
        tensors = {re.sub(pattern, replacement, name, count=1): t for name, t in tensors.items()}
        tensors = {name.replace("\\1", ""): t for name, t in tensors.items()}
    for name, shape in edits.get("add", {}).items():
        own = model.lm_head.weight.detach().numpy() if shape == "base" else None
        tensors[name] = np.full(shape, seed + 1, "float32") if own is None else own
    for pattern, replacement in edits.get("twice", {}).items():
        tensors |= {re.sub(pattern, replacement, name, count=1): t for name, t in tensors.items()}
    for name in tensors:
        if edits.get("zero", "-") in name:
            tensors[name] *= 0
        if edits.get("empty", "-") in name:
            tensors[name] = np.zeros(0, "float32")
    save_file(tensors, folder / WEIGHTS)
    if "rename" in edits:  # as the training saw its modules
        edit_config(folder, target_modules=["q_proj", "v_proj"])
    edit_config(folder, **edits.get("config", {}))
    for name in edits.get("remove", []):
        (folder / name).unlink()
    for name, text in edits.get("files", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def deltas(folder: str) -> dict[str, np.ndarray]:
    """{module: update} in float64 by PEFT's rules, read by other means than the library's."""
    tensors = load_file(Path(folder, WEIGHTS))
    config = json.loads(Path(folder, CONFIG).read_text())
    found = {}
    for name, a in tensors.items():
        match = re.search(r"(layers\.\d+\.[\w.]*?\w+_proj)(?=\.lora_A)", name)
        if match:
            b = tensors[name.replace("lora_A", "lora_B")]
            module = "model." + match[1].replace("_orig_mod.", "").replace(
                "_checkpoint_wrapped_module.", ""
            )
            rank, alpha = a.shape[0], pattern(config, "alpha_pattern", "lora_alpha", module)
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            found[module] = scale * b.astype("float64") @ a.astype("float64")
    return found


def pattern(config: dict, patterns: str, default: str, module: str) -> float:
    known = config.get(patterns) or {}
    fitting = [key for key in known if re.match(rf"(.*\.)?({key})$", module)]
    return known[fitting[0]] if fitting else config[default]


def summed(updates: list[dict]) -> dict[str, np.ndarray]:
    modules = {module for update in updates for module in update}
    return {m: sum(update[m] for update in updates if m in update) for m in modules}


def assert_near(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for module, update in wanted.items():
        assert np.abs(found[module] - update).max() <= EXACT * np.abs(update).max()


def assert_computes(wanted: dict) -> None:
    """Stock PEFT computes with the result what the base does with the updates added."""
    ours = PeftModel.from_pretrained(llama(), "merged").eval()
    theirs = llama()
    with torch.no_grad():
        for module, update in wanted.items():
            theirs.get_submodule(module).weight += torch.tensor(update, dtype=torch.float32)
    assert torch.allclose(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)
