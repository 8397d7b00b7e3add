"""Number formats: which one is chosen, and what is told of how much they matter."""

import functools
import json

import pytest
import torch
from labs import TASKS as LABS
from labs import llama
from made_up import cell

from tipmini.errors import TipminiError
from tipmini_lab.book.tables import TITLES
from tipmini_lab.evaluation import model
from tipmini_lab.experiments import formats, proof
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.variants import TABLE_1, cell_file
from tipmini_lab.results import store

TASKS = ("piqa", "rte")


@pytest.mark.parametrize(
    ("stored", "device", "chosen"),
    [
        ("float32", "cpu", "fast"),
        ("bfloat16", "cpu", "fast"),  # widened where that is float32
        ("float16", "cpu", "float32"),  # never rounded to another 16 bits
        ("float16", "cuda", "float16"),
        ("bfloat16", "cuda", "fast"),
    ],
)
def test_auto_is_what_the_machine_is_fast_in(tmp_path, monkeypatch, stored, device, chosen):
    config = {"model_type": "llama", "dtype": stored}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(model, "fastest_dtype", lambda device: "fast")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert model.number_format(tmp_path, "auto", device) == chosen
    assert model.number_format(tmp_path, "float16", device) == "float16"


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_without_a_gpu_it_is_refused_in_one_line(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TipminiError, match="device cuda: no GPU here; run it where there is one"):
        model.number_format(tmp_path, dtype, "cuda")


@pytest.mark.parametrize(("slow", "chosen"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("busy", [range(0), range(3), range(6, 9)])
def test_the_fastest_is_measured(monkeypatch, slow, chosen, busy):
    """By a clock that stands still but while a product of the slow format is made, or while the
    machine is busy."""
    now, made = [0.0], [0]
    still = functools.partial(model.timeit.timeit, timer=lambda: now[0])
    monkeypatch.setattr(model.timeit, "timeit", still)
    product = torch.Tensor.__matmul__

    def timed(one, other):
        now[0] += 10.0 if one.dtype == getattr(torch, slow) else 1.0
        now[0] += 100.0 * (made[0] in busy)
        made[0] += 1
        return product(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    assert model.fastest_dtype.__wrapped__() == chosen


def test_a_bfloat16_checkpoint_is_widened_bit_for_bit(tmp_path):
    stored = llama(vocabulary=64).bfloat16()
    stored.save_pretrained(tmp_path)
    found = model.load_base(tmp_path, "float32").state_dict()
    for name, weight in stored.state_dict().items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], weight.float())


# What is told -----------------------------------------------------------------------------------


@pytest.fixture
def stored(monkeypatch):
    """Four rows a cell; in bfloat16 TIP has one row of PIQA wrong that was right."""
    made = {(m, t): cell(m, t, [1, 0, 1, 1]) for m in TABLE_1 for t in TASKS}
    fixed = {p: c.model_copy(update={"margins": [0.5, 0.25, 1e-5, 2.0]}) for p, c in made.items()}
    moved = {p: c.model_copy(update={"margins": [0.5, 0.25, 3e-5, 2.0]}) for p, c in made.items()}
    rounded = dict(made) | {("tip", "piqa"): cell("tip", "piqa", [1, 0, 0, 1])}
    ways = {"float32-avx2": moved, "bfloat16-avx512": made, "bfloat16-emulated": rounded}
    monkeypatch.setattr(formats, "reference", lambda: fixed)
    monkeypatch.setattr(formats, "cells_of", ways.__getitem__)
    monkeypatch.setattr(formats.store, "cells", lambda *_: {})


def test_the_table_counts_rows_and_points(stored):
    found = formats.table(TITLES)
    rows = 4 * len(TABLE_1) * len(TASKS)
    counts = dict(found["examples<br>that differ"])
    assert counts["float32, AVX2"] == f"0 of {rows}"
    assert counts["bfloat16, emulated by AVX2"] == f"1 of {rows}"
    assert (
        found.loc["bfloat16, emulated by AVX2", "TIP, points"] == "-12.50"
    )  # 25 points of one of two
    assert found.loc["bfloat16, emulated by AVX2", "Linear, points"] == "+0.00"


def test_only_whole_ways_tell_how_far_a_mean_moves(stored):
    formats.most_points.cache_clear()
    assert formats.most_points() == pytest.approx(12.5)
    few = formats.cells_of("bfloat16-emulated")["tip", "piqa"]
    del few.values[-1]  # of the first rows alone
    formats.most_points.cache_clear()
    assert formats.most_points() == 0
    formats.most_points.cache_clear()


def test_a_tie_is_what_processors_may_decide(stored):
    assert formats.largest_difference() == pytest.approx(2e-5)
    assert formats.tie() == pytest.approx(formats.SLACK * 2e-5)
    assert formats.allowed("float32") == 0
    assert formats.allowed("bfloat16") == pytest.approx(1 / (4 * len(TABLE_1) * len(TASKS)))


def test_what_is_committed_is_whole_and_on_the_same_rows():
    """Each way has every cell that is stored at `mini`, of the same rows and adapters."""
    fixed = formats.reference()
    assert fixed
    for way in formats.WAYS:
        found = formats.cells_of(way)
        assert found.keys() == fixed.keys()
        for place, one in found.items():
            assert one.dtype == formats.WAYS[way].dtype
            few = formats.WAYS[way].rows.get(one.task, fixed[place].count)
            assert one.count == few <= fixed[place].count
            if one.dtype == "float32":  # as the chapter on data says
                assert one.values == fixed[place].values
            rows = {} if few == fixed[place].count else {"data": one.inputs["data"]}
            assert one.inputs == fixed[place].inputs | rows


# Proof: only what comes out the same, measured again, is listed as the same code's ---------------
@pytest.fixture
def proven(profile, monkeypatch):
    lab = Lab(profile)
    for method in TABLE_1:
        lab.cell(method, LABS[0])
    lab.norms.of(LABS[0], lab.norms.first)
    monkeypatch.setattr(proof, "PLACES", [("base", LABS[0]), ("tip", LABS[0])])
    monkeypatch.setattr(proof, "NORMS", [LABS[0]])
    monkeypatch.setattr(formats, "tie", lambda: 1e-6)
    return profile


@pytest.fixture
def known(tmp_path):
    """What stands in results/code.json."""
    file = tmp_path / "code.json"
    file.write_text(json.dumps({kind: ["older"] for kind in proof.KINDS}))
    return file


@pytest.mark.parametrize("kind", ["evaluation", "calibration"])
def test_what_comes_out_the_same_is_listed(proven, known, kind, capsys):
    proof.prove(kind, proven, known)
    today = proof.KINDS[kind][1]()
    assert json.loads(known.read_text())[kind] == ["older", today]
    proof.prove(kind, proven, known)  # once
    assert json.loads(known.read_text())[kind] == ["older", today]
    assert f"{kind}: the same; {today[:12]}" in capsys.readouterr().out


def test_what_comes_out_otherwise_is_named(proven, known):
    one = store.load(cell_file(proven, "tip", LABS[0]))
    one.values[2], one.margins[2] = 1 - one.values[2], 0.5
    store.save(cell_file(proven, "tip", LABS[0]), one)
    before = known.read_text()
    with pytest.raises(TipminiError, match=f"evaluation: .* tip on {LABS[0]}, row 2: . stored"):
        proof.prove("evaluation", proven, known)
    assert known.read_text() == before


def test_norms_that_are_not_stored_are_named(proven, known, monkeypatch):
    monkeypatch.setattr(proof, "NORMS", [LABS[1]])
    (proven.store / "norms" / f"{LABS[1]}.safetensors").unlink()
    with pytest.raises(TipminiError, match=f"norms of {LABS[1]}: none are stored"):
        proof.prove("calibration", proven, known)


def test_an_unknown_kind_is_refused(proven, known):
    with pytest.raises(TipminiError, match="kind must be one of calibration, evaluation"):
        proof.prove("all", proven, known)
