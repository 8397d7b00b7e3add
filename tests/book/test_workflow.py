"""What makes a step run again, and what doesn't."""

import json
import shutil

import pytest

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import workflow
from tipmini_lab.locks import alone


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A copy of the notebooks that a test may edit."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    return shutil.copytree(paths.REPOSITORY / "notebooks", tmp_path / "notebooks")


def test_every_notebook_of_the_book_is_executed():
    contents = (paths.REPOSITORY / "_toc.yml").read_text()
    assert workflow.notebooks()
    assert all(f"notebooks/{name}\n" in contents for name in workflow.notebooks())


@pytest.mark.parametrize(("kind", "again"), [("markdown", False), ("code", True)])
def test_only_an_edit_of_code_executes_a_notebook_again(notebooks, kind, again):
    name = workflow.notebooks()[-1]
    before = workflow.notebook_digest(name, "mini")
    content = json.loads((notebooks / f"{name}.ipynb").read_text())
    cell = next(c for c in content["cells"] if c["cell_type"] == kind)
    cell["source"] = [*cell["source"], "\n# another line"]
    (notebooks / f"{name}.ipynb").write_text(json.dumps(content))
    assert (workflow.notebook_digest(name, "mini") != before) is again
    assert workflow.notebook_digest(name, "smoke") != workflow.notebook_digest(name, "mini")


def test_what_a_notebook_imports_is_an_input_and_nothing_else_is():
    found = {
        name: {str(f.relative_to(paths.REPOSITORY)) for f in workflow.reached(workflow.code(name))}
        for name in workflow.notebooks()
    }
    for name, modules in found.items():
        assert "tipmini/papers/tip.py" in modules  # by a name that `tm` imports once asked for
        assert "tipmini/methods/baselines.py" in modules  # by a string in the table of methods
        assert ("tipmini_lab/book/serving.py" in modules) == (name == "a_serving")
        assert not any(room in module for module in modules for room in ("/cli", "/commands"))
        assert workflow.reads_again(name) == (name == "d_accuracies")
    assert "tipmini_lab/book/workflow.py" not in set.union(*found.values())


@pytest.mark.parametrize(
    ("place", "notebooks"),
    [("results/mini", True), ("results/serving.json", ["a_serving"]), ("results/parity.json", [])],
)
def test_data_are_inputs_of_the_notebooks_that_read_them(tmp_path, monkeypatch, place, notebooks):
    seen = []
    monkeypatch.setattr(workflow, "digest", lambda _, __, *places: seen.append(places))
    for name in workflow.notebooks():
        workflow.notebook_digest(name, "mini")
        read = notebooks is True or name in notebooks
        assert (paths.REPOSITORY / place in seen[-1]) is read


def test_a_folder_counts_with_all_that_it_holds(tmp_path):
    before = workflow.digest("mini", "", tmp_path)
    (tmp_path / "one.json").write_text("{}")
    assert workflow.digest("mini", "", tmp_path) != before


def test_an_unknown_profile_is_refused_before_anything_runs():
    with pytest.raises(TipminiError, match="'mimi': not one of a40, full, mini, smoke"):
        workflow.run("mimi")


def test_a_second_run_beside_the_first_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with alone(tmp_path), pytest.raises(TipminiError, match="another run is at work"):
        workflow.run("smoke")
