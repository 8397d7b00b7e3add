"""Where each figure and table of the notebooks comes from: found when the book is staged.

A table rests on the cells whose names its own cell uses, theirs in turn, and on the stored results
that these cells read (`tracing`). What those results are of stands in them (`results.runs`).
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
from pydantic import BaseModel

from tipmini_lab import paths
from tipmini_lab.book.tracing import READS
from tipmini_lab.results import digests, runs

LABEL = re.compile(r"^:::\{table\}.*\n:name: ([\w-]+)", re.MULTILINE)  # of `tables.numbered`
PROFILE = re.compile(r'^profile\b[^=]*= "(\w+)"', re.MULTILINE)


@dataclass
class Shown:
    """A figure or a table, the cell that shows it and the stored files that it rests on."""

    label: str
    notebook: str
    cell: int
    profile: str
    files: list[str] = field(default_factory=list)
    csv: str = ""  # of a figure; a table's is made of its cells, once it is built


def take(name: str, notebook: nbformat.NotebookNode) -> Iterator[Shown]:
    """What an executed notebook shows; what only tells of it is taken out of the notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    reads = [_taken(cell) for cell in code]
    profiles = [match[1] for cell in code for match in PROFILE.finditer(cell.source)]
    for place, cell in enumerate(code):
        csv = "".join(output.data.pop("text/csv", "") for output in _displayed(cell))
        labels = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name")]
        texts = [output.data.get("text/markdown", "") for output in _displayed(cell)]
        labels += [found for text in texts for found in LABEL.findall(text)]
        used = [place, *_rests_on([one.source for one in code[: place + 1]])]
        files = sorted({file for one in used for file in reads[one]})
        for label in filter(None, labels):
            source = f"notebooks/{name}.ipynb"
            count = cell.execution_count or place + 1
            profile = profiles[-1] if profiles else ""
            yield Shown(label, source, count, profile, files, csv if label == labels[0] else "")


def _displayed(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in cell.outputs if "data" in output]


def _taken(cell: nbformat.NotebookNode) -> list[str]:
    told = [output for output in _displayed(cell) if READS in output.data]
    cell.outputs = [output for output in cell.outputs if output not in told]
    read = [file for output in told for file in output.data[READS]]
    # Folders are opened as well, and what was looked for and isn't there.
    return [file for file in read if (paths.REPOSITORY / file).is_file()]


# Which cells a cell rests on ----------------------------------------------------------------------


def _rests_on(sources: list[str]) -> list[int]:
    """The places of the cells that the last one uses names of, directly or not."""
    *before, last = map(_names, sources)
    needed, found = set(last[1]), []
    for place in reversed(range(len(before))):
        given, used = before[place]
        if given & needed:
            needed |= used
            found.append(place)
    return found


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives, and those that it uses."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    given, used = set(), set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                given.add(name)
    return given, used


# In words -----------------------------------------------------------------------------------------


def facts(shown: Shown) -> dict[str, str]:
    """{what: text} of the line below a figure or a table, in the order of reading."""
    measured = runs.of_files(paths.REPOSITORY / file for file in shown.files)
    hashes = runs.inputs(measured)
    found = {
        "Notebook": f"{shown.notebook}, cell {shown.cell}",
        "Profile": shown.profile,
        "Rests on at most": "; ".join(_folders(shown.files)),
        "Measured": ", ".join(filter(None, [_count(measured), runs.dates(measured)])),
        "Number format": ", ".join(runs.formats(measured)),
        "Machine": "; ".join(runs.machines(measured)),
        "Time of measuring": _duration(measured),
        "Model, SHA-256": _short(hashes["model"]),
        "Adapters, SHA-256": _short(hashes["adapter"]),
        "Data, SHA-256": _short(hashes["data"]),
        "All inputs, SHA-256": _short(hashes["all"]),
        "Stored results, SHA-256": _short([_content(shown.files)] if shown.files else []),
    }
    return {what: text for what, text in found.items() if text}


def _duration(measured: list[runs.Run]) -> str:
    taken = runs.seconds(measured)
    return "" if taken is None else runs.duration(taken)


def _content(files: list[str]) -> str:
    """One hash of the files, by name and content."""
    return digests.digest({file: _file_digest(paths.REPOSITORY / file) for file in files})


_file_digest = cache(digests.file_digest)


def _count(measured: list[runs.Run]) -> str:
    return f"{len(measured):,} measurement{'s' * (len(measured) > 1)}" if measured else ""


def _folders(files: Iterable[str]) -> Iterator[str]:
    """Single files by name, several of a folder by their number."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folder = file.partition("/")[0] if file.startswith("adapters/") else Path(file).parent
        folders.setdefault(str(folder), []).append(file)
    for folder, own in folders.items():
        yield own[0] if len(own) == 1 else f"{folder}/ ({len(own)} files)"


def _short(hashes: list[str]) -> str:
    """The first hashes by their first 12 digits, and how many more there are."""
    told = ", ".join(value[:12] for value in hashes[:4])
    return f"{told} and {len(hashes) - 4} more" if len(hashes) > 4 else told


def unique(shown: Iterable[Shown]) -> dict[str, Shown]:
    """By label; a label that two cells have is Sphinx's to complain of."""
    found = list(shown)
    counts = Counter(one.label for one in found)
    return {one.label: one for one in found if counts[one.label] == 1}


class Facts(BaseModel):
    """What the last step of a build is told: it stands beside the staged book."""

    title: str
    author: str
    year: str
    commit: str
    address: str  # of the repository; empty where that isn't set
    shown: dict[str, dict[str, str]]  # {label: `facts`}
    csv: dict[str, str]  # {label of a figure: what it shows as numbers}
