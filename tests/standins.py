"""A stand-in for a run of the notebooks: their sources with made-up outputs, in no time."""

import functools
import re
from pathlib import Path

import nbformat
from matplotlib.figure import Figure

from tipmini_lab import paths
from tipmini_lab.book import figures, tables
from tipmini_lab.book.claims.page import page_values
from tipmini_lab.book.plotted import plotted
from tipmini_lab.book.site import staging
from tipmini_lab.book.tracing import READS

LONG = "a line that is much wider than a telephone " * 5
WIDE = "<table class='dataframe'><tr>" + "<td>a wide cell of a table</td>" * 12 + "</tr></table>"
READ = ["results/mini/cells/base-rte.json"]  # by every cell
TABLE = re.compile(r'name="(tab-[\w-]+)"')  # of `show.numbered`
PICTURE = re.compile(r"pictures/(\w+)\.svg")


def execute(source: Path, executed: Path) -> None:
    """Write `source` into the folder `executed` as papermill would, without running anything."""
    run = nbformat.read(source, 4)
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.outputs = [_output("figure" in cell.metadata.get("mystnb", {}))]
        cell.outputs += [nbformat.v4.new_output("display_data", {READS: READ})]
        cell.outputs += [_table(name) for name in TABLE.findall(cell.source)]
        cell.metadata["papermill"] = {"exception": False, "start_time": "2026-01-01T00:00:00"}
    run.metadata["papermill"] = {"exception": None, "output_path": str(executed / source.name)}
    executed.mkdir(parents=True, exist_ok=True)
    nbformat.write(run, executed / source.name)


def _output(figure: bool) -> nbformat.NotebookNode:
    data = {"text/html": WIDE, "text/plain": LONG}
    if figure:
        data = {"image/svg+xml": tables.svg(drawn()), "text/csv": plotted(drawn())}
    return nbformat.v4.new_output("display_data", data)


@functools.cache
def drawn() -> Figure:
    return figures.layers_by_task({"RTE": [1, 3, 2], "PIQA": [3, 1, 2]}, "importance")


def _table(name: str) -> nbformat.NotebookNode:
    rows = ["| # | a |", "|---|---|", "| 1 | +2.0<br>[1, 3] |", "| 2 | – |", "| 3 | -10.5 |"]
    table = "\n".join(
        [f":::{{table}} A made-up table\n:name: {name}\n:class: sortable\n", *rows, ":::\n"]
    )
    return nbformat.v4.new_output("display_data", {"text/markdown": table})


def values() -> dict[str, str]:
    """Something for every value that a page names; of the claims, which need no run, their own."""
    pages = [page.read_text() for page in paths.BOOK.glob("*.md")]
    made_up = {name: "0.500" for page in pages for name in staging.VALUE.findall(page)}
    return made_up | page_values()


def pictures() -> dict[str, Figure]:
    """A figure for every picture that a page shows."""
    pages = [page.read_text() for page in paths.BOOK.glob("*.md")]
    return {name: drawn() for page in pages for name in PICTURE.findall(page)}


def stage(work: Path) -> Path:
    """The real pages and the real text of the notebooks, with made-up outputs and values."""
    for source in paths.NOTEBOOKS.glob("*.ipynb"):
        execute(source, work / "executed")
    staging.stage(work / "executed", work / "stage", values(), pictures())
    return work / "stage"


@functools.cache
def built(work: Path) -> Path:
    """The folder of the stand-in book, built in `work` once a test run."""
    staging.build(stage(work), work / "html")
    return work / "html"
