"""`tipmini merge` on the files of adapters_on_disk, and the library doing the same."""

import json

import torch
from adapters_on_disk import TASKS
from safetensors.torch import load_file
from typer.testing import CliRunner

import tipmini as tm
from tipmini.methods.table import METHODS, preset
from tipmini_lab.commands import main

ADAPTERS = [f"adapters/{task}" for task in TASKS]
NORMS = [word for task in TASKS for word in ("--norms", f"{task}.safetensors")]
GRAMS = [word for task in TASKS for word in ("--grams", f"{task}-grams.safetensors")]


def run(*given) -> str:
    """What a command prints."""
    result = CliRunner().invoke(main.app, [str(word) for word in given])
    assert result.exit_code == 0, result.output or result.exception
    return result.stdout


def assert_replaced_on_demand_alone(file, *given) -> None:
    """A command's --out leaves a file of something else alone; its own it writes again."""
    before, given = file.read_bytes(), [*map(str, given), "--out", str(file)]
    refused = CliRunner().invoke(main.app, given).exception
    assert "is there, and is no such file; name another, or --overwrite" in str(refused)
    assert file.read_bytes() == before
    run(*given, "--overwrite")
    run(*given)


def merge(*given, out="m", adapters=ADAPTERS):
    """What `tipmini merge --json` prints."""
    return json.loads(run("merge", "--json", "--out", out, *given, *adapters))


def expected(method, **options):
    """What the library makes of the same."""
    adapters = {task: tm.load_adapter(path) for task, path in zip(TASKS, ADAPTERS, strict=True)}
    norms = {task: load_file(f"{task}.safetensors") for task in TASKS}
    grams = {task: load_file(f"{task}-grams.safetensors") for task in TASKS}
    if isinstance(options.get("weights"), list):
        options["weights"] = dict(zip(TASKS, options["weights"], strict=True))
    return tm.merge(adapters, method, norms=norms, grams=grams, **options)


def needed(method) -> list[str]:
    """The files that a method reads."""
    row = METHODS[preset(method).method]
    return {None: [], "norms": NORMS, "grams": GRAMS}[row.needs]


def assert_same(out, merged):
    written = tm.load_adapter(out)
    assert written.modules == merged.modules
    for module in merged.modules:
        assert torch.equal(written.factors[module].a, merged.factors[module].a)
        assert torch.equal(written.factors[module].b, merged.factors[module].b)
