"""Every declared relation to a peer holds, and results/parity.json is what was declared."""

import pytest
import torch

from tests.parity import measure, peers
from tests.parity.cases import BITS, COMPARISONS, DIFFERS, ROUNDING, Comparison
from tests.parity.inputs import MODULES, Inputs
from tipmini.errors import TipminiError
from tipmini_lab.book import parity

GIVEN = Inputs(seed=0)


def name(comparison: Comparison) -> str:
    return f"{comparison.peer}: {comparison.function} | {comparison.ours} | {comparison.relation}"


@pytest.mark.parametrize("comparison", COMPARISONS, ids=name)
def test_every_case_comes_out_as_declared(comparison):
    measure.run(comparison)


def test_the_stored_outcomes_are_those_of_the_declared_cases():
    found = parity.read()["comparisons"]
    assert [{n: row[n] for n in row if n != "cases"} for row in found] == [
        measure.declared(comparison) for comparison in COMPARISONS
    ]
    for row, comparison in zip(found, COMPARISONS, strict=True):
        assert [case["inputs"] for case in row["cases"]] == list(map(str, comparison.inputs))
        assert all(measure.holds(comparison, case) for case in row["cases"])


def test_the_stored_versions_are_those_installed():
    found = parity.read()["versions"]
    assert peers.versions().items() <= found.items() and found["torch"]
    pins = [line.split()[0] for line in peers.REQUIREMENTS.read_text().splitlines() if "==" in line]
    assert {f"{peer}=={found[peer]}" for peer in peers.NAMES if peer != "peft"} == set(pins)


def test_every_comparison_is_told_apart():
    assert len({(name(each), each.reason) for each in COMPARISONS}) == len(COMPARISONS)
    assert all(len(set(each.inputs)) == len(each.inputs) > 0 for each in COMPARISONS)


def test_the_inputs_are_what_they_say():
    tied, opposed = Inputs(0, tied=True), Inputs(0, weights=(1.0, 1.0), opposed=True)
    for module in MODULES:
        delta = tied.deltas(module)[0]
        assert len(delta.unique()) < delta.numel() / 5  # many are equal
        assert not sum(opposed.deltas(module)).any()
        again = Inputs(0).deltas(module)
        assert all(map(torch.equal, GIVEN.deltas(module), again))
    assert str(opposed) == "24x40, rank 4, weights 1 1, density 0.5, opposed"


@pytest.mark.parametrize(
    ("apart", "relation", "change"),
    [(0.0, BITS, 1e-6), (1e-6, ROUNDING, 1e-2), ("why", DIFFERS, 0.0), ("why", DIFFERS, 1e-6)],
)
def test_a_peer_that_changes_is_noticed(apart, relation, change):
    """Of the deltas one element is moved."""

    def changed(given: Inputs) -> list[torch.Tensor]:
        found = given.deltas(MODULES[0])
        found[0][0, 0] += change
        return found

    sides = (lambda given: given.deltas(MODULES[0])), changed
    comparison = Comparison("p", "f", *sides, (GIVEN,), apart, "ours")
    with pytest.raises(TipminiError, match=f"parity: p f and ours: not '{relation}' but"):
        measure.run(comparison)
    with pytest.raises(TipminiError, match="the peer gave"):
        measure.relative_difference([torch.ones(2)], [torch.ones(3)])


def test_a_missing_folder_of_peers_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    with pytest.raises(TipminiError, match=r"requirements-peers\.txt; run scripts/peers$"):
        peers.load("loralib:Linear")


def test_missing_results_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STORED", tmp_path / "parity.json")
    with pytest.raises(TipminiError, match=r"parity\.json is missing; run make parity$"):
        parity.page_values()


def test_the_tables_of_the_page_are_whole():
    values = parity.page_values()
    shown = parity.read()["comparisons"]
    rows = 0
    for key in ("peft", "pitfalls", "mergekit", "fusion_bench", "loralib"):
        lines = values[f"parity_{key}"].splitlines()
        assert {line.count(" | ") for line in lines} == {lines[0].count(" | ")}
        rows += len(lines) - 2
    assert rows == len(shown)
    compared = [case for row in shown for case in row["cases"] if case["difference"] is not None]
    total = len(compared)  # what is told in words has no relation
    kinds = [int(values[f"parity_cases_{kind}"]) for kind in ("bits", "rounding", "differs")]
    assert int(values["parity_cases"]) == sum(kinds) == total and min(kinds) > 0
