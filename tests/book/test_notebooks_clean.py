"""Notebook sources are committed as written: valid, never executed, without outputs."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def test_is_valid(notebook):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4


def test_was_not_executed(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_carries_no_trace_of_a_run(notebook):
    """papermill and Jupyter leave times and absolute paths in the metadata."""
    assert not {"papermill", "widgets"} & set(notebook.metadata)
    for cell in notebook.cells:
        assert not {"papermill", "execution", "ExecuteTime"} & set(cell.metadata)


def test_has_one_parameters_cell(notebook):
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert [cell.cell_type for cell in tagged] == ["code"]
