"""What may be published, and that the stage and the build say so in one line."""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import standins
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tipmini.errors import TipminiError
from tipmini.methods import merge
from tipmini.methods.pruner import Pruner
from tipmini.models import calibration
from tipmini_lab import paths
from tipmini_lab.book import tables
from tipmini_lab.book.site import appendices, staging
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.pruning import Run
from tipmini_lab.experiments.searching import search
from tipmini_lab.experiments.supernet import SuperNet
from tipmini_lab.results import digests


@pytest.fixture
def ran(tmp_path):
    """A call that spoils the stand-in run of a small notebook and returns what is published."""
    source, executed = tmp_path / "notebooks" / "x.ipynb", tmp_path / "executed"
    source.parent.mkdir()
    cells = [
        new_markdown_cell("# Heading", id="heading"),
        new_code_cell('profile = "mini"', metadata={"tags": ["parameters"]}, id="parameters"),
        new_code_cell("print(profile)", id="print"),
    ]
    nbformat.write(new_notebook(cells=cells), source)

    def published(change=lambda run: None, heading="# Heading", metadata=None):
        cells[2].metadata = nbformat.from_dict(metadata or {})
        nbformat.write(new_notebook(cells=cells), source)
        standins.execute(source, executed)
        run = nbformat.read(executed / source.name, 4)
        change(run)
        nbformat.write(run, executed / source.name)
        cells[0].source = heading
        nbformat.write(new_notebook(cells=cells), source)
        return staging.published(source, executed)

    return published


ERROR = new_output("error", ename="KeyError", evalue="rte", traceback=[])
BROKEN = {
    r", cell 3 \(print\(profile\)\): it ended in KeyError": lambda run: run.cells[2].update(
        outputs=[ERROR]
    ),
    r", cell 3 \(print\(profile\)\): it was not executed": lambda run: run.cells[2].update(
        execution_count=None
    ),
    ", cell 2 .*: papermill marked it as failed": lambda run: run.cells[1].metadata.update(
        papermill={"exception": True}
    ),
    ": papermill marked the run as failed": lambda run: run.metadata.update(
        papermill={"exception": True}
    ),
    ": its code is not the code that was run": lambda run: run.cells[2].update(source="1"),
}


@pytest.mark.parametrize(("message", "change"), BROKEN.items())
def test_a_broken_notebook_is_refused_in_one_line(ran, message, change):
    with pytest.raises(TipminiError, match=rf"^notebooks/x\.ipynb{message}.*$"):
        ran(change)


def test_a_notebook_without_a_run_is_refused(tmp_path):
    with pytest.raises(TipminiError, match=r"notebooks/x\.ipynb: not executed"):
        staging.published(tmp_path / "x.ipynb", tmp_path / "executed")


def test_text_comes_from_the_source_and_outputs_from_the_run(ran):
    page = ran(heading="# A better heading")
    assert page.cells[0].source == "# A better heading"
    assert [len(c.outputs) for c in page.cells[1:]] == [2, 2]  # one of them says what was read


def test_a_figure_says_what_its_run_found(ran):
    """In place of its cell's own words, where the run has any."""
    own = {"mystnb": {"image": {"alt": "lines"}}}

    def figure(run, **data):
        run.cells[2].outputs = [new_output("display_data", {"image/svg+xml": "<svg/>"} | data)]

    def page(**data):
        return ran(lambda run: figure(run, **data), metadata=own).cells[2]

    assert page().metadata["mystnb"]["image"]["alt"] == "lines"
    told = page(**{tables.ALT: "TIP is the highest"})
    assert told.metadata["mystnb"]["image"]["alt"] == "TIP is the highest"
    assert {*told.outputs[0].data} == {"image/svg+xml"}


def test_used_parameters_stand_below_their_defaults(ran):
    tags = {"tags": ["injected-parameters"]}
    used = new_code_cell('profile = "smoke"', metadata=tags, execution_count=2)
    page = ran(lambda run: run.cells.insert(2, used))
    assert [c.source for c in page.cells[1:3]] == ['profile = "mini"', 'profile = "smoke"']


def test_what_differs_between_two_runs_is_left_out(ran):
    here = f"<Model at 0x7f3a5c0ff>, {paths.REPOSITORY}/book, {Path.home()}/data"
    told = {"stdout": here, "stderr": "100%|##| 3.2 s"}
    outputs = [new_output("stream", name=name, text=text) for name, text in told.items()]
    page = ran(lambda run: run.cells[2].update(outputs=outputs))
    assert [o.text for o in page.cells[2].outputs] == ["<Model>, ./book, ~/data"]
    assert all("papermill" not in part.metadata for part in (page, *page.cells))


def contents(folder: Path) -> dict[Path, bytes]:
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_building_twice_gives_the_same_files_and_what_is_amiss_changes_none(
    tmp_path, tmp_path_factory
):
    first = contents(standins.built(tmp_path_factory.getbasetemp() / "book"))
    stage, out = standins.stage(tmp_path), tmp_path / "html"
    staging.build(stage, out)
    assert contents(out) == first
    described = re.findall(r"^:alt: (.*)$", (stage / "index.md").read_text(), re.MULTILINE)
    assert described and "0.500" in described[0] and "{{" not in described[0]

    staged, values = contents(stage), standins.values()
    values.pop("printed_tip")
    with pytest.raises(TipminiError, match=r"book/tip\.md: no value .* printed_tip"):
        staging.stage(tmp_path / "executed", stage, values, standins.pictures())
    assert contents(stage) == staged

    (stage / "_toc.yml").write_text("format: jb-book\nroot: book/a40\n")
    (stage / "book/a40.md").write_text("# A page\n\nwith an unknown {ref}`label`.\n")
    with pytest.raises(TipminiError, match=r"not published.*a40\.md"):
        staging.build(stage, out)
    (stage / "book/a40.md").write_text("# A page\n\n\\:::{table} that is no table\n")
    with pytest.raises(TipminiError, match=r"not published, a40\.html shows a directive as text"):
        staging.build(stage, out)
    assert contents(out) == first


def test_a_chapter_has_the_number_in_its_file_s_name_and_an_appendix_its_letter():
    parts = yaml.safe_load((paths.REPOSITORY / "_toc.yml").read_text())["parts"]
    numbered = [c["file"] for part in parts if part.get("numbered") for c in part["chapters"]]
    chapters = [file for file in numbered if not appendices.letter(file)]
    assert len(chapters) >= 10
    for number, file in enumerate(chapters, 1):
        assert file.startswith(f"notebooks/{number:02d}_")
    lettered = numbered[len(chapters) :]
    letters = [appendices.letter(file) for file in lettered]
    assert letters == sorted(set(letters))


def test_what_an_appendix_has_is_counted_by_its_letter(tmp_path_factory):
    html = standins.built(tmp_path_factory.getbasetemp() / "book")
    page = BeautifulSoup((html / "notebooks/b_readings.html").read_text(), "html.parser")
    assert page.select_one("h1 .section-number").text == "B. "
    assert page.select_one("h2 .section-number").text == "B.1. "
    assert page.select_one("caption .caption-number").text == "Table B.1 "
    front = BeautifulSoup((html / "index.html").read_text(), "html.parser")
    assert front.select_one(".bd-links a[href*=b_readings]").text.startswith("B. ")


def test_what_a_cell_shows_with_a_role_or_as_a_table_is_read_as_myst():
    role = re.compile(r"\{(eq|numref|cite|ref|doc)\}`|tables\.(numbered|found)\(")
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code" and role.search(cell.source):
                told = cell.metadata.get("mystnb", {}).get("markdown_format")
                assert told == "myst", f"{path.name}, {cell.id}"


# Equations ----------------------------------------------------------------------------------------
LABEL = re.compile(r"^\$\$ *\(([\w-]+)\)", re.MULTILINE)
# A function that implements an equation opens its docstring with it: "TIP Eq. 1: $A_{ij} = ...$"
EQUATION = re.compile(r"(\w+) Eq\. (\d+)[^:\n]*: \$")
EQUATIONS = {  # how many each paper has
    "tip": 5,
    "loraprune": 13,
    "lora": 6,
    "elastic": 8,
}
EVERY = Counter(f"{paper}-eq-{n + 1}" for paper, m in EQUATIONS.items() for n in range(m))
# What a chapter derives, but nothing measured computes: another equation stands for it there.
DERIVATIONS = {
    "loraprune-eq-1": "PEFT's layer computes it",
    "loraprune-eq-2": "d k losses; Eq. 3 stands for it",
    "loraprune-eq-5": "d k losses; Eq. 6 stands for it",
    "loraprune-eq-6": "Eq. 10 with the gradient of BA itself, which needs dL/dW",
    "loraprune-eq-7": "Eq. 9 is what follows",
    "loraprune-eq-8": "Eq. 9 is what follows",
    "lora-eq-1": "tasks are trained on their choices, as they are scored: see `objective`",
    "lora-eq-2": "likewise",
    "lora-eq-3": "PEFT's layer computes it",
    "lora-eq-4": "PEFT's parameters are counted",
    "elastic-eq-2": "training's own sum computes it in place",
}


def test_every_equation_has_one_label_and_one_function_which_results_are_measured_by():
    notebooks = [nbformat.read(path, 4) for path in paths.NOTEBOOKS.glob("*.ipynb")]
    texts = [c.source for n in notebooks for c in n.cells if c.cell_type == "markdown"]
    texts += [page.read_text() for page in paths.BOOK.glob("*.md")]
    assert Counter(label for text in texts for label in LABEL.findall(text)) == EVERY

    found: dict[str, list] = {}
    for file in (paths.REPOSITORY / "tipmini").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            doc = isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
            if doc and (match := EQUATION.match(doc)):
                module = ".".join(file.relative_to(paths.REPOSITORY).with_suffix("").parts)
                label = f"{match[1].lower()}-eq-{match[2]}"
                found.setdefault(label, []).append((module, node.name))
    assert {label: len(places) for label, places in found.items() if label in EVERY} == EVERY
    measured = [merge.merge, Run, Pruner, calibration.calibrate, SuperNet, search]
    measured += [tunings.shared_directions, tunings.amplified_norms]
    reached = digests.reached(*measured)
    assert {label for label in EVERY if found[label][0] not in reached} == set(DERIVATIONS)
