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
from tipmini.models.adapter import LoraAdapter, LoraFactors, load_adapter


def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_an_adapter_takes_the_place_of_an_older_one(tmp_path):
    random_adapter(0).save(tmp_path / "out")
    random_adapter(1).save(tmp_path / "out")
    expected = random_adapter(1).factors[MODULES[0]].a
    assert torch.equal(load_adapter(tmp_path / "out").factors[MODULES[0]].a, expected)
    assert os.listdir(tmp_path) == ["out"]


def test_both_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "any").write_text("")
    random_adapter(0).save(tmp_path / "out")
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "any").stat().st_mode}


def test_parents_are_made_and_a_relative_path_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_adapter(0).save("a/b/out")
    assert load_adapter("a/b/out").modules == MODULES


def test_other_files_are_never_swept_away(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TipminiError, match=r"also holds notes\.txt; choose another folder"):
        random_adapter(0).save(tmp_path)
    assert listing(tmp_path) == {"notes.txt": b"mine"}


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


def test_a_file_in_the_way_stays(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TipminiError, match="out: cannot be written"):
        random_adapter(0).save(tmp_path / "out")
    assert listing(tmp_path) == {"out": b"a file"}


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path):
    factors = LoraFactors(torch.full((1, 2), 1e6), torch.ones(2, 1), 1.0)
    with pytest.raises(TipminiError, match=r"x\.lora_A\.weight has NaN or Inf"):
        LoraAdapter({"x": factors}).save(tmp_path / "out", dtype=torch.float16)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"base_model": "a\nb"}, "base_model_name_or_path must be one line"),
        ({"task_type": "CHAT"}, "task_type must be one of"),
        ({"factors": {}}, "has no module"),
        ({"factors": {"": random_adapter(0).factors[MODULES[0]]}}, "target_modules must be"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, changed, why):
    with pytest.raises(TipminiError, match=why):
        replace(random_adapter(0), **changed).save(tmp_path / "out")
    assert os.listdir(tmp_path) == []
