"""What is stored, measured again: only what comes out the same is listed as the same code's."""

import json

import pytest
from labs import TASKS

from tipmini.errors import TipminiError
from tipmini_lab.experiments import formats, proof
from tipmini_lab.experiments.experiment import TABLE_1, Lab, cell_file
from tipmini_lab.results import store


@pytest.fixture
def stored(profile, monkeypatch):
    lab = Lab(profile)
    for method in TABLE_1:
        lab.cell(method, TASKS[0])
    lab.norms.of(TASKS[0], lab.norms.first)
    monkeypatch.setattr(proof, "PLACES", [("base", TASKS[0]), ("tip", TASKS[0])])
    monkeypatch.setattr(proof, "NORMS", [TASKS[0]])
    monkeypatch.setattr(formats, "tie", lambda: 1e-6)
    return profile


@pytest.fixture
def known(tmp_path):
    """What stands in results/code.json."""
    file = tmp_path / "code.json"
    file.write_text(json.dumps({kind: ["older"] for kind in proof.KINDS}))
    return file


@pytest.mark.parametrize("kind", ["evaluation", "calibration"])
def test_what_comes_out_the_same_is_listed(stored, known, kind, capsys):
    proof.prove(kind, stored, known)
    today = proof.KINDS[kind][1]()
    assert json.loads(known.read_text())[kind] == ["older", today]
    proof.prove(kind, stored, known)  # once
    assert json.loads(known.read_text())[kind] == ["older", today]
    assert f"{kind}: the same; {today[:12]}" in capsys.readouterr().out


def test_what_comes_out_otherwise_is_named(stored, known):
    cell = store.load(cell_file(stored, "tip", TASKS[0]))
    cell.values[2], cell.margins[2] = 1 - cell.values[2], 0.5
    store.save(cell_file(stored, "tip", TASKS[0]), cell)
    before = known.read_text()
    with pytest.raises(TipminiError, match=f"evaluation: .* tip on {TASKS[0]}, row 2: . stored"):
        proof.prove("evaluation", stored, known)
    assert known.read_text() == before


def test_norms_that_are_not_stored_are_named(stored, known, monkeypatch):
    monkeypatch.setattr(proof, "NORMS", [TASKS[1]])
    (stored.store / "norms" / f"{TASKS[1]}.safetensors").unlink()
    with pytest.raises(TipminiError, match=f"norms of {TASKS[1]}: none are stored"):
        proof.prove("calibration", stored, known)


def test_an_unknown_kind_is_refused(stored, known):
    with pytest.raises(TipminiError, match="kind must be one of evaluation, calibration"):
        proof.prove("all", stored, known)
