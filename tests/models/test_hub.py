"""Ids of the hub as adapters: from its cache, fetched of a server of our own, or one line."""

from pathlib import Path

import hubs
import pytest
import torch
from hubs import COMMIT, OTHER
from tiny import bits, llama, random_adapter

import tipmini as tm
from tipmini.models import hub


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache without a way out, in a working folder that is empty too."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    hubs.patched(monkeypatch, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def repository(tmp_path) -> Path:
    """An adapter, another in a sub-folder, and a pickle that nobody asks for."""
    random_adapter(0).save(tmp_path / "repository")
    random_adapter(1).save(tmp_path / "repository" / "runs" / "last")
    torch.save({"a": torch.ones(1)}, tmp_path / "repository" / "adapter_model.bin")
    return tmp_path / "repository"


def refusal(path: str) -> str:
    """The one line of an id that is no adapter; the inspection says the same."""
    with pytest.raises(tm.TipminiError) as caught:
        tm.load_adapter(path)
    assert tm.inspect_folder(path)["problems"] == [str(caught.value)]
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable()
    return line.removeprefix(f"{path}: ")


def test_an_id_is_read_from_the_cache(cache, repository):
    hubs.keep(cache, "owner/name", repository)
    assert bits(tm.load_adapter("owner/name")) == bits(random_adapter(0))
    assert bits(tm.load_adapter("owner/name/runs/last")) == bits(random_adapter(1))
    facts = tm.inspect_folder("owner/name/runs/last")
    assert facts["problems"] == [] and facts["hub"] == f"owner/name/runs/last@{COMMIT}"


def test_a_revision_is_a_branch_or_a_commit(cache, repository):
    random_adapter(2).save(cache.parent / "other")
    hubs.keep(cache, "owner/name", repository)
    hubs.keep(cache, "owner/name", cache.parent / "other", OTHER, "v2")
    for revision, seed in {"v2": 2, OTHER: 2, COMMIT: 0}.items():
        found = tm.load_adapter(f"owner/name@{revision}")
        assert bits(found) == bits(random_adapter(seed))


def test_what_a_folder_is_of_reads_the_same_again(cache, repository):
    snapshot = hubs.keep(cache, "owner/name", repository)
    for folder in (snapshot, snapshot / "runs" / "last"):
        assert hub.folder_of(hub.source(folder), []) == folder
    assert hub.source(repository) is None


def test_a_folder_here_comes_first(cache, repository):
    hubs.keep(cache, "owner/name", repository)
    random_adapter(3).save("owner/name")
    assert bits(tm.load_adapter("owner/name")) == bits(random_adapter(3))
    Path("owner/name").rename("owner/another")  # the owner's folder does not hide the cache
    assert bits(tm.load_adapter("owner/name")) == bits(random_adapter(0))


def test_only_an_adapters_own_files_are_fetched(cache, repository, monkeypatch):
    with hubs.serving({"owner/name": repository}) as (address, asked):
        hubs.patched(monkeypatch, cache, address)
        assert bits(tm.load_adapter("owner/name/runs/last")) == bits(random_adapter(1))
        files = {line.partition(COMMIT)[2] for line in asked if "resolve" in line}
        names = ("adapter_config.json", "adapter_model.safetensors")
        assert files == {f"/runs/last/{name}" for name in names}
        assert bits(tm.load_adapter("owner/name")) == bits(random_adapter(0))
        assert not any("adapter_model.bin" in line for line in asked)
    hubs.patched(monkeypatch, cache)  # afterwards without the hub
    assert bits(tm.load_adapter("owner/name")) == bits(random_adapter(0))


def test_a_pickle_is_fetched_where_it_is_asked_for(cache, repository, monkeypatch):
    (repository / "adapter_model.safetensors").unlink()
    tensors = {f"base_model.model.{n}": t for n, t in factors(random_adapter(0)).items()}
    torch.save(tensors, repository / "adapter_model.bin")
    with hubs.serving({"owner/name": repository}) as (address, _):
        hubs.patched(monkeypatch, cache, address)
        assert "an adapter_model.bin is fetched with --pickle" in refusal("owner/name")
        assert tm.load_adapter("owner/name", pickle=True).modules == random_adapter(0).modules


def factors(adapter: tm.LoraAdapter) -> dict[str, torch.Tensor]:
    pairs = adapter.factors.items()
    return {f"{m}.lora_{n.upper()}.weight": getattr(p, n) for m, p in pairs for n in "ab"}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("owner/none", "the hub has no such repository, or a private one"),
        ("owner/gated", "it is gated: accept its terms on the hub"),
        ("owner/name@v9", "it has no revision v9"),
        ("owner/name/nowhere", "has nothing of an adapter in nowhere"),
        ("owner/name/runs", "no adapter_config.json in it on the hub; last in it is one"),
        ("owner/base", "in it on the hub; it holds a whole model; give the folder of a PEFT ad"),
    ],
)
def test_what_the_hub_has_not_is_one_line(cache, repository, monkeypatch, path, why):
    llama().save_pretrained(cache.parent / "base")
    given = {"owner/name": repository, "owner/base": cache.parent / "base"}
    with hubs.serving(given) as (address, asked):
        hubs.patched(monkeypatch, cache, address)
        assert why in refusal(path)
    assert not any("model.safetensors" in line for line in asked)


def test_without_the_hub_both_possibilities_are_told(cache, monkeypatch):
    told = "no such folder, and not in the hub's cache and not fetched: "
    assert refusal("owner/name") == f"{told}HF_HUB_OFFLINE is set"
    hubs.patched(monkeypatch, cache, "http://127.0.0.1:1")  # where nobody listens
    assert refusal("owner/name").startswith(f"{told}Got: ConnectError")


def test_a_mistyped_path_asks_no_hub(cache, monkeypatch):
    with hubs.serving({}) as (address, asked):
        hubs.patched(monkeypatch, cache, address)
        random_adapter(0).save("adapters/piqa")
        for path in ("adapters/piqq", "adapters/piqa/inner"):
            line = refusal(path)
            assert line.startswith("no such folder, and not in the hub's cache; mend the path")
            assert line.endswith(f"ask the hub for {path}@main")
        for path in ("nowhere", "../nowhere/a", f"{cache}/a", "a/b\0"):
            with pytest.raises(tm.TipminiError, match="no such folder; a PEFT adapter has"):
                tm.load_adapter(path)
        assert asked == []
        assert "no such repository" in refusal("adapters/piqq@main") and asked


def test_without_huggingface_hub_it_is_named(cache, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refusal("owner/name")
