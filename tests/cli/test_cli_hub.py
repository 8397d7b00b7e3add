"""Adapters by their id on the hub, for every command that reads one, from a cache of our own."""

import json
from pathlib import Path

import hubs
import pytest
from hubs import COMMIT
from labs import save_adapter
from merge_command import run
from safetensors import safe_open
from tiny import bits

import tipmini as tm


@pytest.fixture
def hub(small, monkeypatch) -> dict[str, str]:
    """The ids of two adapters that the cache has, and the folders that they were made of."""
    hubs.patched(monkeypatch, small / "cache")
    save_adapter(small / "adapters/two/last", 7)
    ids = {"owner/piqa": "adapters/piqa", "owner/two/last": "adapters/two/last"}
    hubs.keep(small / "cache", "owner/piqa", small / "adapters/piqa")
    hubs.keep(small / "cache", "owner/two", small / "adapters/two")
    return ids


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["", "dry"])
def test_a_merge_tells_id_and_commit(hub, more):
    facts = json.loads(run("merge", "--json", "--out", "m", *more, *hub))
    known = [f"{name}@{COMMIT}" for name in hub]
    assert facts["adapters"] == known
    if not more:
        card = Path("m/README.md").read_text()
        assert all(f"| `{name}` |" in card for name in known)
        run("merge", "--out", "here", *hub.values())
        assert bits(tm.load_adapter("m")) == bits(tm.load_adapter("here"))
        run("merge", "--out", "again", *known)  # what is told can be given
        assert bits(tm.load_adapter("again")) == bits(tm.load_adapter("m"))


def test_a_merge_whose_result_is_named_as_an_id_stays_out_of_the_cache(hub, refused):
    assert "lies in the input owner/piqa" in refused("merge", "--out", "owner/piqa", *hub)
    cached = next(Path("cache").rglob("adapter_config.json")).parent
    assert "lies in the input" in refused("merge", "--out", str(cached / "m"), *hub)


def test_an_inspection_tells_id_and_commit(hub):
    facts = json.loads(run("inspect", "--json", *hub))
    assert {name: each["hub"] for name, each in facts.items()} == {
        name: f"{name}@{COMMIT}" for name in hub
    }


def test_norms_are_of_an_id(hub):
    for place, name in enumerate(hub):
        run("calibrate", "--text", "own.txt", "--adapter", name, "--out", f"{place}.safetensors")
        with safe_open(f"{place}.safetensors", "pt") as opened:
            assert opened.metadata()["adapter"] == f"{name}@{COMMIT}"
    norms = ["--norms", "1.safetensors", "--norms", "0.safetensors"]  # found by their factors
    assert "merged by tip" in run("merge", "--method", "tip", *norms, "--out", "m", *hub)


def test_weights_are_of_ids(hub):
    texts = ["--text", "a.jsonl", "--text", "b.jsonl"]
    adapters = [word for name in hub for word in ("--adapter", name)]
    run("weigh", *texts, *adapters, "--epochs", "1", "--out", "w.json")
    assert "merged by cat" in run("merge", "--weights", "w.json", "--out", "m", *hub)


def test_an_id_is_evaluated(hub):
    for name, folder in hub.items():
        for each, out in ((name, "id.json"), (folder, "folder.json")):
            given = ["--task", "rte", "--limit", "3", "--dtype", "float32", "--out", out]
            run("evaluate", *given, "--adapter", each)
        by_id, by_folder = (json.loads(Path(x).read_text()) for x in ("id.json", "folder.json"))
        assert by_id[0]["key"] == by_folder[0]["key"]  # of the same factors
        assert by_id[0]["values"] == by_folder[0]["values"]


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"],
        ["merge", "--out", "m"],
        ["calibrate", "--text", "own.txt", "--out", "x", "--adapter"],
        ["weigh", "--text", "a.jsonl", "--out", "w.json", "--adapter"],
        ["evaluate", "--task", "rte", "--adapter"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_not_there_is_one_line_for_all(hub, refused, words):
    told = "not in the hub's cache and not fetched: HF_HUB_OFFLINE is set"
    assert refused(*words, "owner/none") == f"tipmini: owner/none: no such folder, and {told}"
    mistyped = refused(*words, "adapters/piqq")
    assert mistyped.startswith("tipmini: adapters/piqq: no such folder, and not in the hub's cache")
