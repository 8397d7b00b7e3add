"""Computing again, on a tiny model: what is compared, what may differ, and what a kill leaves."""

import json

import pytest
import torch
from labs import TASKS

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import again, recomputing
from tipmini_lab.experiments import formats, merging, variants
from tipmini_lab.experiments.lab import Lab, measure
from tipmini_lab.experiments.variants import TABLE_1, cell_file
from tipmini_lab.locks import alone
from tipmini_lab.results import digests, store

ROWS = 4  # of the tiny profile, a task
ALL = dict.fromkeys(TASKS, ROWS * len(TABLE_1))


@pytest.fixture
def stored(profile, monkeypatch):
    """A profile whose cells and norms are stored, those of the first rows as well."""
    monkeypatch.setattr(formats, "tie", lambda: 1e-4)
    monkeypatch.setattr(formats, "allowed", lambda dtype: 0.0)
    monkeypatch.setattr(merging, "FIRST", 2)
    monkeypatch.setattr(recomputing, "FIRST", 2)
    monkeypatch.setattr(recomputing, "PROBED", 2)
    lab = Lab(profile)
    for task in TASKS:
        lab.norms.of(task, lab.norms.first)
        for method in TABLE_1:
            lab.cell(method, task)
    return profile


def change(profile, margin: float) -> None:
    """Store another answer of TIP on the second row of RTE, with that margin."""
    cell = variants.stored(profile, "tip", "rte")
    cell.values[1], cell.margins[1] = 1 - cell.values[1], margin
    store.save(cell_file(profile, "tip", "rte"), cell)


@pytest.mark.parametrize("whole", [False, True])
def test_the_same_comes_out(stored, whole, capsys):
    report = recomputing.run(stored, whole, minutes=10)
    assert report.rows == dict.fromkeys(TASKS, ROWS) and report.dtype == "float32"
    assert report.same == ALL and not any(report.ties.values())
    assert report.answers == sum(report.same.values())
    assert set(report.merges.values()) == {0.0} and len(report.merges) == 3
    assert report.norms == pytest.approx(dict.fromkeys(TASKS, 0.0), abs=1e-6)
    assert report.calibration_rows == (4 if whole else 2)
    assert report == again.read("tiny", whole) and report.estimate > 0
    assert "8 rows of 2 tasks by 5 methods, about" in capsys.readouterr().out
    assert not again.file("tiny", whole).with_suffix("").exists()


def test_a_stored_merge_comes_out_again_whatever_else_is_told_of_it(stored, monkeypatch):
    measure(stored, "methods", ["cat"])
    bundle = store.read(stored.variant_store, "cat")
    assert bundle.facts.keys() == {"norm", "sum", "distance", "rank"}
    assert recomputing.run(stored, minutes=0).merges["cat"] == 0.0
    monkeypatch.setattr(recomputing, "_hash_of", lambda merged: "another")
    assert recomputing.run(stored, minutes=0).merges["cat"] < 1e-6


def test_no_time_leaves_the_rows_that_tell_the_speed(stored):
    report = recomputing.run(stored, minutes=0)
    assert report.rows == dict.fromkeys(TASKS, 2)
    assert report.same == dict.fromkeys(TASKS, 2 * len(TABLE_1))


def test_another_answer_is_named(stored, monkeypatch):
    change(stored, margin=0.01)
    with pytest.raises(TipminiError, match=r"count otherwise: tip on rte, row 1 \(\d stored, \d "):
        recomputing.run(stored, minutes=10)
    told = again.read("tiny")  # what came out is told
    assert told.same["rte"] == ALL["rte"] - 1
    assert "39 of 40 answers the same, 1 different (" in again.line(told)
    monkeypatch.setattr(again, "read", lambda *_, **__: told)
    with pytest.raises(TipminiError, match="answers count otherwise"):
        again.page_values()  # and no book is made of it
    assert not (paths.BUILD / "again-tiny").exists()  # the next one computes anew
    monkeypatch.setattr(formats, "allowed", lambda dtype: 1 / 40)  # as in bfloat16
    assert len(recomputing.run(stored, minutes=10).others) == 1


def test_a_tie_may_be_another(stored):
    change(stored, margin=1e-5)
    report = recomputing.run(stored, minutes=10)
    assert report.ties == {"openbookqa": 0, "rte": 1} and report.others == []
    assert "39 of 40 answers the same, 1 ties (" in again.line(report)


def test_other_norms_are_refused(stored):
    lab = Lab(stored)
    norms = lab.norms.of("rte", lab.norms.first)
    key = digests.digest(lab.norms.inputs("rte", lab.norms.first))
    told = {"key": key, "dtype": "float32", "code": merging.calibration_code()}
    for factor, far in {1.01: r"\d", torch.nan: "nan"}.items():
        other = {name: factor * norm for name, norm in norms.items()}
        merging.save_tensors(other, stored.store / "norms" / "first" / "rte.safetensors", told)
        with pytest.raises(TipminiError, match=f"norms are others than stored: rte by {far}"):
            recomputing.run(stored, minutes=10)


def test_other_merges_are_refused(stored, monkeypatch):
    merge = tm.merge

    def otherwise(adapters, method, **given):
        return merge(adapters, "linear") if method == "dare" else merge(adapters, method, **given)

    monkeypatch.setattr(tm, "merge", otherwise)
    with pytest.raises(TipminiError, match=r"merges are others than stored: dare, float32 norms"):
        recomputing.run(stored, minutes=10)


def test_a_kill_loses_no_finished_cell(stored, monkeypatch):
    cell, done = Lab.cell, []

    def dying(lab, *place):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(place)
        return cell(lab, *place)

    with monkeypatch.context() as patch:
        patch.setattr(Lab, "cell", dying)
        with pytest.raises(KeyboardInterrupt):
            recomputing.run(stored, minutes=10)
    measured, measure = [], Lab.measure
    monkeypatch.setattr(Lab, "measure", lambda lab, *a: (measured.append(a), measure(lab, *a))[1])
    report = recomputing.run(stored, minutes=10)  # the first one's plan holds
    assert len(measured) == len(TABLE_1) * len(TASKS) - 7
    assert report.rows == dict.fromkeys(TASKS, ROWS) and report.resumed
    assert "s after a stop)." in again.line(report)


def test_one_at_a_time_and_nothing_left_of_another_run(stored):
    folder = paths.BUILD / "again-tiny"
    with alone(folder), pytest.raises(TipminiError, match="another process is at it; wait"):
        recomputing.run(stored, minutes=10)
    plan = {"rows": {"gone": 9}, "minutes": 10, "estimate": 1}
    (folder / "plan.json").write_text(json.dumps(plan))
    report = recomputing.run(stored, minutes=10)
    assert report.rows == dict.fromkeys(TASKS, ROWS) and not report.resumed


def test_nothing_stored(profile):
    with pytest.raises(TipminiError, match="profile tiny: no stored cells to compare with; run"):
        recomputing.run(profile, whole=True)


def test_norms_that_round_otherwise_turn_a_few_elements_of_a_mask():
    """Pruned by scores whose norms differ by up to d, a merge stays within what is allowed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 4096, generator=generator)
    norms = torch.rand(4096, generator=generator) + 0.5
    other = norms * (1 + 1e-4 * (2 * torch.rand(4096, generator=generator) - 1))
    one, two = (tm.prune_rows(weight, tm.wanda_score(weight, n), 0.7) for n in (norms, other))
    told = {"rte": recomputing.apart(other, norms)}
    one_off = [torch.tensor([1.0, second, 4.0]) for second in (2.0, 2.2)]
    assert recomputing.apart(*one_off) == pytest.approx(0.05)  # over the largest
    assert recomputing.apart(torch.zeros(2), torch.zeros(2)) == 0
    assert 0.001 < (one - two).norm() / one.norm() < recomputing.turned(told)
    assert recomputing.turned({}) == recomputing.turned({"rte": 0.0}) == recomputing.ROUNDING


def test_what_was_not_done_or_told_by_another_version_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    (tmp_path / "again-mini.json").write_text('{"profile": "mini"}')
    assert again.read() is None
    assert again.line(None).startswith("Nothing of it was computed again on this machine")
