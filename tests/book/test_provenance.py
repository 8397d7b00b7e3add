"""What a figure or a table is said to come from: the cells it rests on and what they read."""

import json
import subprocess
import sys

import nbformat
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tipmini_lab import paths
from tipmini_lab.book.plotted import plotted
from tipmini_lab.book.site import provenance, runs_page
from tipmini_lab.book.site.provenance import Shown
from tipmini_lab.book.tracing import READS
from tipmini_lab.results import runs
from tipmini_lab.results.runs import Run

TABLE = ":::{table} A caption\n:name: tab-x\n\n| a |\n|---|\n| 1 |\n:::\n"


def cell(source: str, *reads: str, shows: dict | None = None, **metadata) -> nbformat.NotebookNode:
    outputs = [new_output("display_data", {READS: list(reads)})] if reads else []
    outputs += [new_output("display_data", shows)] if shows else []
    return new_code_cell(source, outputs=outputs, metadata=metadata, execution_count=3)


NOTEBOOK = new_notebook(
    cells=[
        cell('profile: str = "smoke"'),
        cell("first = read()", "results/code.json", "results/mini", "results/no.json"),
        cell("second = read()", "results/bench.json"),
        cell("rows = wide(first)"),
        cell("numbered(rows)", shows={"text/markdown": TABLE}),
        cell(
            "figure(second)",
            shows={"image/svg+xml": "<svg/>", "text/csv": "x,y\n"},
            mystnb={"figure": {"name": "fig-x"}},
        ),
    ]
)


def test_a_table_rests_on_what_the_cells_behind_its_names_read():
    notebook = nbformat.from_dict(json.loads(json.dumps(NOTEBOOK)))
    table, figure = provenance.take("x", notebook)
    assert table == Shown("tab-x", "notebooks/x.ipynb", 3, "smoke", ["results/code.json"])
    assert figure.files == ["results/bench.json"] and figure.csv == "x,y\n"
    kinds = {kind for one in notebook.cells for out in one.outputs for kind in out.data}
    assert kinds == {"text/markdown", "image/svg+xml"}  # what only tells of it is gone


def test_stored_files_say_what_they_are_of(tmp_path, monkeypatch):
    machine = {"processor": "A CPU", "cores": 2, "system": "Linux"}
    made = {"machine": machine, "dtype": "float32", "inputs": {"model": "f" * 64, "adapter": None}}
    one, other = made | {"date": "2026-01-02", "seconds": 30}, made | {"date": "2026-01-01"}
    for name, content in {"a": one, "b": {"cells": [other | {"seconds": 90.0}]}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    told = provenance.facts(Shown("tab-x", "notebooks/x.ipynb", 3, "mini", ["a.json", "b.json"]))
    assert told["Measured"] == "2 measurements, 2026-01-01 to 2026-01-02"
    assert told["Time of measuring"] == "2 min" and told["Machine"] == "A CPU, 2 cores"
    assert told["Number format"] == "float32" and told["Model, SHA-256"] == "f" * 12
    assert len(told["Stored results, SHA-256"]) == 12
    assert told["Rests on at most"] == "./ (2 files)" and "Adapters, SHA-256" not in told


def test_what_rests_on_no_stored_result_says_so_by_saying_nothing():
    told = provenance.facts(Shown("tab-x", "notebooks/x.ipynb", 3, "mini"))
    assert told == {"Notebook": "notebooks/x.ipynb, cell 3", "Profile": "mini"}


@pytest.mark.parametrize(("seconds", "told"), [(None, "–"), (9, "9 s"), (600, "10 min")])
def test_a_duration_is_told_in_its_own_unit(seconds, told):
    assert runs.duration(seconds) == told


def test_all_that_is_stored_is_on_the_page_of_all_runs():
    """Every stored file of cells is in one group, and the groups have titles."""
    found = runs_page.groups()
    files = [file for own in found.values() for file in own]
    stored = [
        f for f in (paths.REPOSITORY / "results").rglob("*.json") if '"machine"' in f.read_text()
    ]
    assert len(files) == len(set(files)) and set(stored) <= set(files)
    assert runs_page.table(found).loc[runs_page.TITLES["mini/cells"], "measurements"] == "35"
    values = runs_page.page_values()
    assert values["runs_details"].count(":::{dropdown}") == sum(
        len(own) > 1 for own in found.values()
    )


def test_a_notebook_notes_what_its_cells_read(tmp_path):
    """In a real kernel's shell; elsewhere nothing is started."""
    program = """
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
from tipmini_lab.book import tracing
tracing.start()
shell.display_pub.publish = lambda data, **_: print(data)
shell.run_cell("open('results/code.json').close()")
shell.run_cell("1 + 1")
"""
    run = [sys.executable, "-c", program.replace("results/", f"{paths.REPOSITORY}/results/")]
    told = subprocess.run(run, capture_output=True, text=True).stdout
    assert told.count(READS) == 1 and "['results/code.json']" in told


def test_what_a_figure_shows_is_kept_as_numbers():
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("a panel")
    axes.errorbar([0.5], [-1], xerr=0.25, label="TIP")
    axes.imshow([[1.0, 2.0]])
    axes.set_yticks([-1], ["RTE"])
    lines = plotted(figure).splitlines()
    assert lines[0] == "panel,series,kind,x,y,value"
    assert "a panel,TIP,point,0.5,RTE," in lines and "a panel,TIP,interval,0.25,RTE," in lines
    assert "a panel,,cell,1,0,2" in lines


def test_what_no_file_tells_is_left_open():
    run = Run("", "A CPU", "", None, {})
    assert runs.dates([run]) == "" and runs.seconds([run]) is None and runs.formats([run]) == []
