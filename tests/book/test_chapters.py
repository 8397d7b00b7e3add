"""How a chapter is built: the answer first, few tables, plumbing folded."""

import ast
import re

import nbformat
import pytest
import standins
import yaml

from tipmini_lab import paths
from tipmini_lab.book.site import appendices

PARTS = yaml.safe_load((paths.REPOSITORY / "_toc.yml").read_text())["parts"]
NUMBERED = [c["file"] for part in PARTS if part.get("numbered") for c in part["chapters"]]
CHAPTERS = [file for file in NUMBERED if not appendices.letter(file)]
FOLDED = {"hide-cell", "hide-input"}
# Figures whose words in their cell stay true whatever is measured: drawn from weights.
FIXED = {"fig-loraprune-5", "fig-loraprune-1", "fig-loraprune-schedule", "fig-lora-1"}
FIXED |= {"fig-elastic-3", "fig-elastic-2"}


def cells(file: str) -> list[nbformat.NotebookNode]:
    return nbformat.read(paths.REPOSITORY / f"{file}.ipynb", 4).cells


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return {*cell.metadata.get("tags", [])}


@pytest.mark.parametrize("file", CHAPTERS)
def test_a_chapter_opens_with_what_was_found_and_one_figure(file):
    title, *rest = [cell for cell in cells(file) if "hide-cell" not in tags(cell)]
    assert title.source.startswith("# ") and "\n" not in title.source
    assert "tables.found(" in rest[0].source
    assert "figure" in rest[1].metadata["mystnb"] and rest[2].cell_type == "markdown"


@pytest.mark.parametrize("file", CHAPTERS)
def test_a_chapter_has_at_most_six_tables_and_folds_what_makes_them(file):
    """All but examples, the cells called -check, which are there to be read."""
    own = [c for c in cells(file) if c.cell_type == "code"]
    assert sum(len(standins.TABLE.findall(c.source)) for c in own) <= 6
    shows = ("tables.numbered(", "tables.figure(", "tables.found(", "tables.source(")
    made = [c for c in own if any(word in c.source for word in shows)]
    assert all(tags(c) & FOLDED or c.id.endswith("-check") for c in made)


@pytest.mark.parametrize("file", NUMBERED)
def test_a_figure_s_words_are_made_of_its_results(file):
    """Who doesn't see a figure reads what it found, not what it is made of."""
    own = [cell for cell in cells(file) if "figure" in cell.metadata.get("mystnb", {})]
    labels = {cell.metadata.mystnb.figure.name: cell for cell in own}
    for label in labels.keys() - FIXED:
        calls = [
            node
            for node in ast.walk(ast.parse(labels[label].source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tables.figure"
        ]
        assert all(len(call.args) == 2 for call in calls), label
        # Whatever else the cell shows would be a second figure of that name.
        assert not re.search(r"\b(print|tables\.text)\(", labels[label].source), label
        assert calls or "draw" in labels[label].source, label
