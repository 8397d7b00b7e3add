"""What is stored carries a digest of itself; what is damaged counts as not stored, in one line."""

import json
import os
import subprocess
from pathlib import Path

import made_up
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.models.sealed import SEAL, sealed, unsealed
from tipmini_lab.paths import REPOSITORY
from tipmini_lab.results import checked, store

CELL = made_up.cell("tip", "rte", [1.0, 0.0, 1 / 3])
BUNDLE = store.Bundle(name="one", title="One", settings={}, facts={"norm": 2.5}, cells=[CELL])
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2, dtype=torch.bfloat16)}


@pytest.fixture(autouse=True)
def told_anew():
    checked._tell.cache_clear()


def flipped(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers()), min_size=1))
def test_sealed_is_json_and_unsealed_again(content):
    text = sealed(json.dumps(content))
    assert json.loads(unsealed(text.encode())) == content
    assert json.loads(text).keys() == content.keys() | {"digest"}


def test_what_has_no_digest_is_as_it_stands():
    assert unsealed(b'{"a": 1}\n') == b'{"a": 1}\n'


@pytest.mark.parametrize("kind", ["cell", "bundle"])
def test_a_stored_cell_with_any_byte_changed_is_as_nothing(tmp_path, capsys, kind):
    file = tmp_path / "one.json"
    if kind == "cell":
        store.save(file, CELL)
        whole, read = CELL, lambda: store.load(file)
    else:
        store.keep(tmp_path, BUNDLE)
        whole, read = BUNDLE, lambda: store.read(tmp_path, "one")
    assert SEAL.search(file.read_bytes()) and read() == whole
    size = file.stat().st_size
    for place in range(0, size - 1, 7):  # the last is the end of the line
        flipped(file, place)
        assert read() is None, place
        flipped(file, place)
    assert read() == whole
    capsys.readouterr()
    os.truncate(file, size // 2)
    checked._tell.cache_clear()
    assert [read(), read()] == [None, None]
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"{file}: damaged")


def test_tensors_with_any_byte_changed_are_not_whole(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    assert not checked.is_whole(file) and capsys.readouterr().err == ""
    checked.save_file(TENSORS, file, {"state": "s"})
    assert checked.is_whole(file)
    with checked.open_checkpoint(file, "pt") as opened:
        assert opened.metadata()["state"] == "s"
        assert all(torch.equal(opened.get_tensor(n), t) for n, t in TENSORS.items())
    name = file.read_bytes().index(b'"digest"') + 1
    for place in {*range(file.stat().st_size)} - {*range(name, name + len("digest"))}:
        flipped(file, place)
        assert not checked.is_whole(file), place
        flipped(file, place)
    assert checked.is_whole(file)
    os.truncate(file, 40)
    with checked.open_checkpoint(file, "pt") as opened:
        assert json.loads(opened.metadata()["state"]) == {"pairs": [["of", None]]}
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"{file}: damaged")


def test_learnt_weights_that_are_damaged_are_refused(tmp_path):
    from tipmini.methods import weighting

    made = {"identity": "i", "adapters": {"a": "d"}}
    file = tmp_path / "w.json"
    file.write_text(sealed(json.dumps({"weights": {"a": {"m": 0.25}}, "made": made})))
    assert weighting.read(file).weights == {"a": {"m": 0.25}}
    file.write_text(file.read_text().replace("0.25", "0.75"))
    with pytest.raises(TipminiError, match=r"w\.json: .*damaged"):
        weighting.read(file)


def test_what_is_listed_is_compared_with_the_list(tmp_path, monkeypatch, capsys):
    """Files from before there were digests; what carries one is asked itself."""
    monkeypatch.setattr(checked, "REPOSITORY", tmp_path)
    file, other = tmp_path / "listed.json", tmp_path / "other.json"
    for each in (file, other):
        store.write(each, store.text(CELL) + "\n")
    known = {"listed.json": checked.file_digest(file)}
    monkeypatch.setattr(checked, "listed", lambda: known)
    assert store.load(file) == store.load(other) == CELL
    for each in (file, other):
        each.write_text(each.read_text().replace("[1,0,", "[0,0,"))
    assert store.load(file) is None and store.load(other).values[0] == 0
    assert capsys.readouterr().err.startswith(f"{file}: damaged")
    store.save(file, CELL)
    assert store.load(file) == CELL


def test_all_committed_results_are_whole():
    """Each carries its digest or is listed; after others were added: scripts/list-results."""
    named = ["git", "ls-files", "results/*/*.json", "results/*/*.safetensors"]
    names = subprocess.check_output(named, cwd=REPOSITORY, text=True).splitlines()
    files = [REPOSITORY / name for name in names if "/merged/" not in name]
    for file in files:
        whole = checked.text(file) if file.suffix == ".json" else checked.is_whole(file)
        assert whole, file
        carries = SEAL.search(file.read_bytes()) if file.suffix == ".json" else None
        assert carries or str(file.relative_to(REPOSITORY)) in checked.listed(), file
    assert len(files) > 900
