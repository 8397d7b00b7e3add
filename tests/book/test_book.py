"""What may be published, and that the stage and the build say so in one line."""

import ast
import hashlib
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import standins
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tipmini.errors import TipminiError
from tipmini.methods import merge
from tipmini.methods.pruner import Pruner
from tipmini.models import calibration
from tipmini_lab import paths
from tipmini_lab.book import staging
from tipmini_lab.experiments.pruning import Run
from tipmini_lab.results import digests

LABEL = re.compile(r"^\$\$ *\(([\w-]+)\)", re.MULTILINE)
# A function that implements an equation opens its docstring with it: "TIP Eq. 1: $A_{ij} = ...$"
EQUATION = re.compile(r"(\w+) Eq\. (\d+)[^:\n]*: \$")
EQUATIONS = {"tip": 5, "loraprune": 13}  # how many each paper has


def _source(folder: Path) -> Path:
    """A small notebook: a heading, parameters, a cell that prints."""
    cells = [
        new_markdown_cell("# Heading", id="heading"),
        new_code_cell('profile = "mini"', metadata={"tags": ["parameters"]}, id="parameters"),
        new_code_cell("print(profile)", id="print"),
    ]
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "x.ipynb")
    return folder / "x.ipynb"


def _run(tmp_path: Path, change=lambda run: None) -> tuple[Path, Path]:
    """The source of a notebook and the folder of its stand-in run, spoilt by `change`."""
    source = _source(tmp_path / "notebooks")
    standins.execute(source, tmp_path / "executed")
    run = nbformat.read(tmp_path / "executed/x.ipynb", 4)
    change(run)
    nbformat.write(run, tmp_path / "executed/x.ipynb")
    return source, tmp_path / "executed"


def _error(run):
    run.cells[2].outputs = [new_output("error", ename="KeyError", evalue="rte", traceback=[])]


def _not_executed(run):
    run.cells[2].execution_count = None


def _failed_cell(run):
    run.cells[1].metadata["papermill"] = {"exception": True}


def _failed_notebook(run):
    run.metadata["papermill"] = {"exception": True}


def _other_code(run):
    run.cells[2].source = "print('something else')"


BROKEN = [
    (_error, r"notebooks/x\.ipynb, cell 3 \(print\(profile\)\): it ended in KeyError"),
    (_not_executed, r"notebooks/x\.ipynb, cell 3 \(print\(profile\)\): it was not executed"),
    (_failed_cell, r"notebooks/x\.ipynb, cell 2 .*: papermill marked it as failed"),
    (_failed_notebook, r"notebooks/x\.ipynb: papermill marked the run as failed"),
    (_other_code, r"notebooks/x\.ipynb: its code is not the code that was run"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_notebook_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(TipminiError, match=message) as refusal:
        staging.published(*_run(tmp_path, change))
    assert "\n" not in str(refusal.value)


def test_a_notebook_without_a_run_is_refused(tmp_path):
    source = _source(tmp_path / "notebooks")
    with pytest.raises(TipminiError, match=r"notebooks/x\.ipynb: not executed"):
        staging.published(source, tmp_path / "executed")


def test_text_comes_from_the_source_and_outputs_from_the_run(tmp_path):
    source, executed = _run(tmp_path)
    edited = nbformat.read(source, 4)
    edited.cells[0].source = "# A better heading"
    nbformat.write(edited, source)
    page = staging.published(source, executed)
    assert page.cells[0].source == "# A better heading"
    assert [len(c.outputs) for c in page.cells[1:]] == [1, 1]


def test_used_parameters_stand_below_their_defaults(tmp_path):
    def inject(run):
        tags = {"tags": ["injected-parameters"]}
        used = new_code_cell('profile = "smoke"', metadata=tags, execution_count=2)
        run.cells.insert(2, used)

    page = staging.published(*_run(tmp_path, inject))
    assert [c.source for c in page.cells[1:3]] == ['profile = "mini"', 'profile = "smoke"']


def test_what_differs_between_two_runs_is_left_out(tmp_path):
    def soil(run):
        here = f"<Model at 0x7f3a5c0ff>, {paths.REPOSITORY}/book, {Path.home()}/data"
        run.cells[2].outputs = [
            new_output("stream", name="stdout", text=here),
            new_output("stream", name="stderr", text="100%|##| 3.2 s"),
        ]

    page = staging.published(*_run(tmp_path, soil))
    assert [o.text for o in page.cells[2].outputs] == ["<Model>, ./book, ~/data"]
    assert all("papermill" not in part.metadata for part in (page, *page.cells))


def test_a_value_that_is_missing_is_named_and_the_stage_stays(tmp_path):
    stage = standins.stage(tmp_path)
    before = _hashes(stage)
    values = standins.values()
    values.pop("printed_tip")
    with pytest.raises(TipminiError, match=r"book/index\.md: no value .* printed_tip"):
        staging.stage(tmp_path / "executed", stage, values, standins.pictures())
    assert _hashes(stage) == before


def test_building_twice_gives_the_same_files(tmp_path, tmp_path_factory):
    first = standins.built(tmp_path_factory.getbasetemp() / "book")
    staging.build(standins.stage(tmp_path), tmp_path / "html")
    assert _hashes(first) == _hashes(tmp_path / "html")


def test_a_warning_publishes_nothing(tmp_path):
    stage, out = standins.stage(tmp_path), tmp_path / "html"
    out.mkdir()
    (out / "index.html").write_text("the last good book")
    (stage / "_toc.yml").write_text("format: jb-book\nroot: book/a40\n")
    (stage / "book/a40.md").write_text("# A page\n\nwith an unknown {ref}`label`.\n")
    with pytest.raises(TipminiError, match=r"not published.*a40\.md"):
        staging.build(stage, out)
    assert (out / "index.html").read_text() == "the last good book"


def test_every_equation_has_one_label_and_one_function():
    labels = Counter(label for text in _markdown() for label in LABEL.findall(text))
    assert labels == Counter(f"{p}-eq-{n}" for p in EQUATIONS for n in range(1, EQUATIONS[p] + 1))
    found = [match for doc in _docstrings() if (match := EQUATION.match(doc))]
    functions = Counter(f"{match[1].lower()}-eq-{match[2]}" for match in found)
    assert labels == Counter({f: n for f, n in functions.items() if f.split("-")[0] in EQUATIONS})


# What a chapter derives, but nothing measured computes: another equation stands for it there.
DERIVATIONS = {
    "loraprune-eq-1": "PEFT's layer computes it",
    "loraprune-eq-2": "d k losses; Eq. 3 stands for it",
    "loraprune-eq-5": "d k losses; Eq. 6 stands for it",
    "loraprune-eq-6": "Eq. 10 with the gradient of BA itself, which needs dL/dW",
    "loraprune-eq-7": "Eq. 9 is what follows",
    "loraprune-eq-8": "Eq. 9 is what follows",
}


def test_every_equation_is_the_one_that_results_are_measured_by():
    work = (merge.merge, Run, Pruner, calibration.calibrate)
    reached, found = digests.reached(*work), {}
    for file in (paths.REPOSITORY / "tipmini" / "papers").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            doc = isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
            if doc and (match := EQUATION.match(doc)):
                label = f"{match[1].lower()}-eq-{match[2]}"
                found[label] = (f"tipmini.papers.{file.stem}", node.name) in reached
    assert len(found) == sum(EQUATIONS.values())
    assert {label for label, used in found.items() if not used} == set(DERIVATIONS)


def _markdown() -> list[str]:
    notebooks = [nbformat.read(path, 4) for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
    cells = [c.source for n in notebooks for c in n.cells if c.cell_type == "markdown"]
    return cells + [page.read_text() for page in sorted(paths.BOOK.glob("*.md"))]


def _docstrings() -> list[str]:
    files = sorted((paths.REPOSITORY / "tipmini").rglob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return [ast.get_docstring(n) or "" for n in nodes if isinstance(n, ast.FunctionDef)]


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
