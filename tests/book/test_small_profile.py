"""Chapters on stored results run at a profile of fewer tasks, of which nothing is stored."""

import nbformat
import pytest

from tipmini_lab import paths
from tipmini_lab.book import tables

FAST = ["05_accuracies", "06_better_merge", "10_lora_measured", "12_elastic_measured"]
FAST += ["b_readings", "c_sweeps", "e_pruning_tables", "f_pruning_cost", "g_lora_tables"]


@pytest.mark.parametrize("name", FAST)
def test_what_is_not_measured_is_left_out_or_says_so(name, monkeypatch):
    told, names = [], {}
    monkeypatch.setattr(tables, "text", told.append)
    monkeypatch.setattr(tables, "figure", lambda figure, alt="": told.append(alt))
    for cell in nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, {cell.id}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names["profile"] = "smoke"
    assert told and "nan" not in " ".join(told).split()
