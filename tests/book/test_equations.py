"""Every labelled equation of the chapters has its paper's number."""

import re

import nbformat

from tipmini_lab import paths
from tipmini_lab.book.site import equations


def test_every_label_has_the_papers_number():
    text = "".join(
        cell.source
        for path in paths.NOTEBOOKS.glob("*.ipynb")
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "markdown"
    )
    labels = re.findall(r"^\$\$ \(([\w-]+)\)$", text, re.MULTILINE)
    assert len(labels) > 20 and all(map(equations.number, labels))
    assert equations.number("tip-eq-5") == "TIP Eq. 5"
    assert equations.number("hand") is None and equations.number("tip-eq-") is None
