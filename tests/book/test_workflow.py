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
    shutil.copytree(paths.REPOSITORY / "notebooks", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def edit(file, kind, text):
    content = json.loads(file.read_text())
    cell = next(c for c in content["cells"] if c["cell_type"] == kind)
    cell["source"] = [*cell["source"], text]
    file.write_text(json.dumps(content))


def test_every_notebook_of_the_book_is_executed(notebooks):
    contents = (paths.REPOSITORY / "_toc.yml").read_text()
    assert workflow.notebooks()
    assert all(f"notebooks/{name}\n" in contents for name in workflow.notebooks())


@pytest.mark.parametrize(("kind", "again"), [("markdown", False), ("code", True)])
def test_only_an_edit_of_code_executes_a_notebook_again(notebooks, kind, again):
    name = workflow.notebooks()[-1]
    before = workflow.notebook_digest(name)
    edit(notebooks / f"{name}.ipynb", kind, "\n# another line")
    assert (workflow.notebook_digest(name) != before) is again


def test_the_profile_is_an_input():
    assert workflow.inputs_digest("smoke") != workflow.inputs_digest("mini")


@pytest.mark.parametrize("name", ["variants", "selection"])
def test_stored_variants_are_inputs_of_the_notebooks(tmp_path, monkeypatch, name):
    mini = workflow.load_profile("mini").model_copy(update={name: str(tmp_path)})
    monkeypatch.setattr(workflow, "load_profile", lambda _: mini)
    monkeypatch.setattr(workflow, "_contents", lambda files: sorted(map(str, files)))
    before = workflow.inputs_digest("mini")
    (tmp_path / "one.json").write_text("{}")
    assert workflow.inputs_digest("mini") != before


def test_an_unknown_profile_is_refused_before_anything_runs():
    with pytest.raises(TipminiError, match="'mimi': not one of a40, full, mini, smoke"):
        workflow.run("mimi")


def test_a_second_run_beside_the_first_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with alone(tmp_path), pytest.raises(TipminiError, match="another run is at work"):
        workflow.run("smoke")
