"""Notebook sources are committed as written: valid, never executed, without outputs."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
TRACES = {"papermill", "widgets", "execution", "ExecuteTime"}  # times and absolute paths of a run


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_carries_no_trace_of_a_run(file):
    notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert not any(TRACES & set(part.metadata) for part in (notebook, *notebook.cells))
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert [cell.cell_type for cell in tagged] == ["code"]
