"""Links, pipes, folders and shards where an adapter's file should be."""

import json
import os
from pathlib import Path

import pytest
from folders import CONFIG, MODULE, WEIGHTS, A, refusal

from tipmini.errors import TipminiError
from tipmini.models.adapter import load_adapter


def move(folder: Path, name: str, target: Path) -> None:
    """The file elsewhere, and a link to it in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(target)
    (folder / name).symlink_to(os.path.relpath(target, folder))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_that_leaves_the_folder_is_refused(folder, name):
    move(folder, name, folder.parent / "elsewhere")
    assert refusal(folder).startswith(f"/{name}: a link that leaves the folder")


@pytest.mark.parametrize("target", [CONFIG, "nothing", "/dev/zero", "/dev/stdin"])
def test_a_link_to_no_file_is_refused(folder, target):
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(target)
    assert refusal(folder).startswith(f"/{CONFIG}: ")


def test_links_within_the_folder_and_within_the_hubs_cache_are_read(folder, tmp_path):
    move(folder, CONFIG, folder / "inner" / "settings")
    assert load_adapter(folder).modules == [MODULE]
    cached = tmp_path / "models--a--b" / "snapshots" / "0123"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    move(cached, WEIGHTS, tmp_path / "models--a--b" / "blobs" / "4567")
    (tmp_path / "link").symlink_to(cached)
    assert load_adapter(cached).modules == load_adapter(tmp_path / "link").modules == [MODULE]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pipe_is_never_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder).startswith(f"/{name}: not a file")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refusal(folder).startswith(f"/{name}: not a file")


def test_shards_are_named(folder):
    index = {"weight_map": {A: "../../elsewhere.safetensors"}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    assert "index.json names other files, and an adapter is one" in refusal(folder)


@pytest.mark.parametrize("path", ["", "x" * 5000, "a\0b"], ids=["empty", "long", "NUL"])
def test_a_folder_with_nothing_in_it_or_no_possible_name(tmp_path, path):
    with pytest.raises(TipminiError):
        load_adapter(f"{tmp_path}/{path}")
