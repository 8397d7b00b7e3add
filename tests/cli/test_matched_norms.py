"""Norms and Gram matrices say what they were measured of, and go with it whatever their order."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters_on_disk import TASKS, random_grams
from merge_command import ADAPTERS, assert_same, expected, merge
from safetensors.torch import save_file
from tiny import random_norms
from typer.testing import CliRunner

import tipmini as tm
from tipmini.methods.weighting import adapter_digest
from tipmini_lab.commands import main

pytestmark = pytest.mark.usefixtures("told")
METHODS = {"wanda": "norms", "regmean": "grams"}


@pytest.fixture
def told(on_disk):
    """The files of `on_disk`, as `tipmini calibrate` writes them: with the adapter's digest."""
    for seed, task in enumerate(TASKS):
        adapter = tm.load_adapter(f"adapters/{task}")
        facts = {"task": task, "factors": adapter_digest(adapter)}
        save_file(random_norms(adapter, seed), f"{task}.safetensors", facts)
        save_file(random_grams(adapter, seed), f"{task}-grams.safetensors", facts)


def words(what: str, names) -> list[str]:
    end = "-grams" if what == "grams" else ""
    return [word for name in names for word in (f"--{what}", f"{name}{end}.safetensors")]


@pytest.mark.parametrize("method", METHODS)
def test_their_order_does_not_count(method):
    merge("--method", method, *words(METHODS[method], reversed(TASKS)))
    assert_same("m", expected(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("names", "line"),
    [
        ((TASKS[0], TASKS[0], TASKS[1]), f"{TASKS[0]}.*twice"),
        ((*TASKS[:2], "other"), "other.*none of the adapters"),
    ],
)
def test_those_of_another_adapter_are_refused(method, names, line):
    from tiny import random_adapter

    other = random_adapter(9)
    facts = {"task": "other", "factors": adapter_digest(other)}
    save_file(random_norms(other, 9), "other.safetensors", facts)
    save_file(random_grams(other, 9), "other-grams.safetensors", facts)
    given = ["merge", "--method", method, "--out", "m", *words(METHODS[method], names), *ADAPTERS]
    with pytest.raises(tm.TipminiError, match=line):
        CliRunner().invoke(main.app, given, catch_exceptions=False)


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_twice_has_two_files(method):
    """As two tasks saw it: by two paths, or the same folder again."""
    shutil.copytree("adapters/piqa", "adapters/copy")
    piqa, what = tm.load_adapter("adapters/piqa"), METHODS[method]
    facts, make = {"factors": adapter_digest(piqa)}, {"norms": random_norms, "grams": random_grams}
    measured = [make[what](piqa, seed) for seed in (5, 6)]
    for name, tensors in zip("xy", measured, strict=True):
        save_file(tensors, f"{name}{'-grams' * (what == 'grams')}.safetensors", facts)
    wanted = tm.merge([piqa, piqa], method, **{what: measured})
    for out, second in (("m", "adapters/copy"), ("n", "adapters/piqa")):
        merge("--method", method, *words(what, "xy"), out=out, adapters=["adapters/piqa", second])
        for module in wanted.modules:
            torch.testing.assert_close(tm.load_adapter(out).delta(module), wanted.delta(module))


def test_what_says_nothing_of_itself_goes_by_place():
    """Norms of others, or of before: they can't be checked, and that is said."""
    for seed, task in enumerate(TASKS):
        save_file(random_norms(tm.load_adapter(f"adapters/{task}"), seed), f"{task}.safetensors")
    facts = merge("--method", "wanda", *words("norms", TASKS))
    assert_same("m", expected("wanda"))
    assert any("by their place" in note for note in facts["notes"])


def test_one_adapter_twice_has_the_weights_of_both():
    """Learnt for two tasks of one adapter: each is used once, whichever comes first."""
    shutil.copytree("adapters/piqa", "adapters/copy")
    piqa = tm.load_adapter("adapters/piqa")
    weights = {name: dict.fromkeys(piqa.modules, value) for name, value in {"x": 1, "y": 3}.items()}
    made = {"identity": "", "adapters": dict.fromkeys("xy", adapter_digest(piqa))}
    Path("twice.json").write_text(json.dumps({"weights": weights, "made": made}))
    for out, second in (("m", "adapters/copy"), ("n", "adapters/piqa")):
        merge("--weights", "twice.json", out=out, adapters=["adapters/piqa", second])
        for module in piqa.modules:
            found = tm.load_adapter(out).delta(module)
            torch.testing.assert_close(found, 4 * piqa.delta(module))
