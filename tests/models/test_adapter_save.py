"""Saving an adapter, all at once or not at all."""

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import CONFIG, WEIGHTS
from peft import PeftModel
from tiny import MODULES, llama, random_adapter

from tipmini.errors import TipminiError
from tipmini.methods.model_card import model_card
from tipmini.models.adapter import load_adapter
from tipmini.models.factors import LoraFactors


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_an_adapter_takes_the_place_of_an_older_one(tmp_path, monkeypatch):
    """Parents are made, a relative path will do, and files are as readable as any other."""
    monkeypatch.chdir(tmp_path)
    Path("any").write_text("")
    random_adapter(0).save("a/out")
    random_adapter(1).save("a/out")
    expected = random_adapter(1).factors[MODULES[0]].a
    assert torch.equal(load_adapter("a/out").factors[MODULES[0]].a, expected)
    assert os.listdir("a") == ["out"]
    assert {file.stat().st_mode for file in Path("a/out").iterdir()} == {Path("any").stat().st_mode}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("out/notes.txt", r"also holds notes\.txt; choose another folder"),
        ("out", "out: cannot be written"),
    ],
)
def test_what_is_in_the_way_is_never_swept_away(tmp_path, name, why):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(TipminiError, match=why):
        random_adapter(0).save(tmp_path / "out")
    assert listing(tmp_path) == {name: b"mine"}


def test_a_card_goes_with_its_adapter(tmp_path):
    card = model_card("cat", {}, {}, seed=0, version="1")
    random_adapter(0).save(tmp_path / "out", card=card)
    assert (tmp_path / "out" / "README.md").read_text() == card
    assert PeftModel.from_pretrained(llama(), tmp_path / "out").peft_config["default"].r == 4
    random_adapter(1).save(tmp_path / "out", card=card)
    random_adapter(2).save(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("text", ["", "# Mine", "- tipmini", "---\n- tipmini\n"])
def test_a_card_written_by_hand_is_never_swept_away(tmp_path, text):
    random_adapter(0).save(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text(text)
    before = listing(tmp_path)
    with pytest.raises(TipminiError, match=r"also holds README\.md; choose another folder"):
        random_adapter(1).save(tmp_path / "out", card="mine")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("room", [0, 100, 5000])
@pytest.mark.parametrize("older", [True, False])
def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path, older, room):
    """A real one: the system refuses to let any file grow beyond `room` bytes."""
    if older:
        random_adapter(0).save(tmp_path / "out")
    before = listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(TipminiError, match=r"out: cannot be written \(.*File too large"):
            random_adapter(1).save(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before and os.listdir(tmp_path) == (["out"] if older else [])


@pytest.mark.parametrize(
    ("stopped", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), TipminiError),
    ],
    ids=["interrupted", "full disk"],
)
def test_a_swap_that_stops_half_way_brings_the_older_one_back(
    tmp_path, monkeypatch, stopped, raised
):
    random_adapter(0).save(tmp_path / "out")
    before, rename = listing(tmp_path), os.rename

    def stop_at_new(source, target):
        if Path(source).name == "new":
            raise stopped
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop_at_new)
    with pytest.raises(raised, match="No space left" if raised is TipminiError else None):
        random_adapter(1).save(tmp_path / "out")
    assert listing(tmp_path) == before


LARGE = {"x": LoraFactors(torch.full((1, 2), 1e6), torch.ones(2, 1), 1.0)}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"base_model": "a\nb"}, "base_model_name_or_path must be one line"),
        ({"task_type": "CHAT"}, "task_type must be one of"),
        ({"factors": {}}, "has no module"),
        ({"factors": {"": random_adapter(0).factors[MODULES[0]]}}, "target_modules must be"),
        ({"factors": LARGE}, r"^x overflows in torch\.float16; take bfloat16 or float32$"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, changed, why):
    with pytest.raises(TipminiError, match=why):
        replace(random_adapter(0), **changed).save(tmp_path / "out", dtype=torch.float16)
    assert os.listdir(tmp_path) == []
