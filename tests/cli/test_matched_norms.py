"""Norms and Gram matrices say what they were measured of, and go with it whatever their order."""

import pytest
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


def test_what_says_nothing_of_itself_goes_by_place():
    """Norms of others, or of before: they can't be checked, and that is said."""
    for seed, task in enumerate(TASKS):
        save_file(random_norms(tm.load_adapter(f"adapters/{task}"), seed), f"{task}.safetensors")
    facts = merge("--method", "wanda", *words("norms", TASKS))
    assert_same("m", expected("wanda"))
    assert any("by their place" in note for note in facts["notes"])
