"""From executed notebooks and pages to the built book: stage what may be published, build it.

The stage is a copy of the book's sources in which notebooks carry the outputs of their last run
and pages the numbers of the stored results. Only a stage that passed every check is built, and
only a build without a warning replaces the book that is there.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
import yaml
from matplotlib.figure import Figure

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import explorer
from tipmini_lab.book.plotted import plotted
from tipmini_lab.book.site import provenance
from tipmini_lab.book.site.finishing import finish
from tipmini_lab.book.site.origin import Origin, origin, settings
from tipmini_lab.book.site.provenance import Facts
from tipmini_lab.book.site.standalone import begin
from tipmini_lab.book.tables import ALT, VALUE, svg

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory: differs from run to run
MATHJAX = "sphinx-mathjax-offline"
DESCRIBED = re.compile(r"^:alt: .*$", re.MULTILINE)
FACTS = "facts.json"  # of the stage, for the last step of its build


def stage(
    executed: Path,
    stage_dir: Path,
    values: dict[str, str],
    pictures: dict[str, Figure],
    repository: Path = paths.REPOSITORY,
    known: Origin | None = None,
) -> None:
    """Write everything that Jupyter Book reads into `stage_dir`, which is emptied first.

    executed: the folder of the executed notebooks, each under the file name of its source. values:
    Markdown for every ``{{ name }}`` of a page. pictures: shown by pages as ``pictures/NAME.svg``.
    known: of where this copy comes from.
    Raises TipminiError for a notebook that may not be published (see `published`) and for a page
    that names a value which is not there; the stage is then left as it was.
    """
    known = known or origin(repository=repository)
    contents = yaml.safe_load((repository / "_toc.yml").read_text())
    pages = [Path(c["file"]) for part in contents["parts"] for c in part["chapters"]]
    names = [page.name for page in pages if page.parent.name == "notebooks"]
    notebooks = {n: published(repository / f"notebooks/{n}.ipynb", executed) for n in names}
    for page in sorted((repository / "book").glob("*.md")):
        for name in VALUE.findall(page.read_text()):
            if name not in values:
                raise TipminiError(f"book/{page.name}: no value is given for {{{{ {name} }}}}")

    shutil.rmtree(stage_dir, ignore_errors=True)
    shutil.copytree(repository / "book", stage_dir / "book")
    (stage_dir / "book/pictures").mkdir()
    for name, picture in pictures.items():
        (stage_dir / f"book/pictures/{name}.svg").write_text(svg(picture))
    explorer.write(stage_dir / "book/assets/explorer")
    for page in (stage_dir / "book").glob("*.md"):  # where MyST itself replaces nothing
        page.write_text(DESCRIBED.sub(lambda line: filled(line[0], values), page.read_text()))
    # The front page is the stage's index, or it would be built below book/.
    front = (stage_dir / "book/index.md").rename(stage_dir / "index.md")
    front.write_text(front.read_text().replace("{figure} pictures/", "{figure} book/pictures/"))
    (stage_dir / "_toc.yml").write_text(yaml.safe_dump(contents | {"root": "index"}))
    shutil.copy(repository / "CHANGELOG.md", stage_dir)  # a page includes it
    config = settings(yaml.safe_load((repository / "_config.yml").read_text()), known)
    config["parse"]["myst_substitutions"] = dict(sorted(values.items()))
    (stage_dir / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True))
    _vendor_mathjax(stage_dir / "vendor")
    (stage_dir / "notebooks").mkdir()
    found = [shown for name, own in notebooks.items() for shown in provenance.take(name, own)]
    for name, notebook in notebooks.items():
        nbformat.write(begin(notebook, known), stage_dir / f"notebooks/{name}.ipynb")
    shown = provenance.unique(found)
    facts = Facts(
        title=config["title"],
        author=config["author"],
        year=config["copyright"],
        commit=str(known.commit or ""),
        address=known.address or "",
        shown={label: provenance.facts(one) for label, one in shown.items()},
        csv={label: one.csv for label, one in shown.items() if one.csv}
        | {name: plotted(picture) for name, picture in pictures.items()},
    )
    (stage_dir / FACTS).write_text(facts.model_dump_json())


def filled(text: str, values: Mapping[str, str]) -> str:
    return VALUE.sub(lambda named: values[named[1]], text)


def published(source: Path, executed: Path) -> nbformat.NotebookNode:
    """The notebook as the book shows it: text and captions of `source`, outputs of its run.

    Text is taken from the source so that an edit of prose needs no new run. What differs between
    two runs of the same code (times, durations, addresses, absolute paths, messages on stderr)
    is left out. Raises TipminiError where there is no run, it failed or stopped half-way, or it is
    a run of other code.
    """
    name = f"notebooks/{source.name}"
    if not (executed / source.name).is_file():
        raise TipminiError(f"{name}: not executed: {executed / source.name} is missing")
    page, run = (nbformat.read(folder / source.name, 4) for folder in (source.parent, executed))
    for fault in _faults(run):
        raise TipminiError(f"{name}{fault}; execute it again")
    ran = [cell for cell in run.cells if cell.cell_type == "code"]
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    parameters = [cell for cell in ran if "injected-parameters" in _tags(cell)]  # by papermill
    ran = [cell for cell in ran if cell not in parameters]
    if [cell.source for cell in ran] != [cell.source for cell in code]:
        raise TipminiError(f"{name}: its code is not the code that was run; execute it again")
    for cell, done in zip(code, ran, strict=True):
        kept = [output for output in done.outputs if output.get("name") != "stderr"]
        cell.outputs = nbformat.from_dict(json.loads(_portable(json.dumps(kept))))
        cell.execution_count = done.execution_count
        for output in cell.outputs:
            if alt := output.get("data", {}).pop(ALT, ""):
                cell.metadata["mystnb"]["image"]["alt"] = alt
    place = next((i + 1 for i, c in enumerate(page.cells) if "parameters" in _tags(c)), 0)
    for cell in parameters:  # those that were used stand below their defaults
        used = {"id": "parameters-used", "execution_count": cell.execution_count}
        used["metadata"] = {"tags": ["hide-cell"]}
        page.cells.insert(place, nbformat.v4.new_code_cell(_portable(cell.source), **used))
    page.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3"})
    return page


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _faults(run: nbformat.NotebookNode) -> Iterator[str]:
    """Why an executed notebook may not be published."""
    if run.metadata.get("papermill", {}).get("exception"):
        yield ": papermill marked the run as failed"
    for number, cell in enumerate(run.cells, start=1):
        line = cell.source.strip().partition("\n")[0]
        where = f", cell {number} ({line[:50]}): "
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"{where}it ended in {output.ename}"
        if cell.metadata.get("papermill", {}).get("exception"):
            yield f"{where}papermill marked it as failed"
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            yield f"{where}it was not executed"


def _portable(text: str) -> str:
    """`text` without what belongs to this machine or this run."""
    places = ((paths.REPOSITORY, "."), (paths.cache(), "TIPMINI_CACHE"), (Path.home(), "~"))
    for place, name in places:
        text = text.replace(f"{place}{os.sep}", f"{name}/")
    return ADDRESS.sub("", text)


def _vendor_mathjax(into: Path) -> None:
    """Copy what a page loads of MathJax (1.6 of 24 MB), so that the book reads offline."""
    for file in importlib.metadata.distribution(MATHJAX).files:
        if file.name == "tex-chtml.js" or file.suffix == ".woff":
            target = into / "mathjax" / Path(*file.parts).relative_to(f"{MATHJAX}/static/mathjax")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def build(stage_dir: Path, out: Path) -> dict[str, int]:
    """Build the staged book into the folder `out` (its `index.html` is the front page).

    Returns how many bytes every page is and loads, without MathJax: see `finishing.weight`.

    Raises TipminiError where Sphinx warned (an unresolved reference, an unknown citation, ...) or a
    page shows a directive as text; `out` then stays as it was.
    """
    work = out.with_name(f".{out.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(stage_dir), "--path-output", str(work)]
    # A fixed hash seed: Sphinx writes some sets in iteration order.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    run = subprocess.run(
        [*command, "-W", "-n", "--keep-going", "-q"],
        capture_output=True,
        text=True,
        env=environment,
    )
    if run.returncode:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stderr)  # without its colours
        print(plain, file=sys.stderr)
        lines = plain.strip().splitlines() or ["no message"]
        warnings = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[:1]
        told = f"{len(warnings)} warnings; the first: {warnings[0].strip()}"
        raise TipminiError(f"book: not published, {told}")
    for page in sorted((work / "_build/html").rglob("*.html")):
        if "<p>:::{" in page.read_text():  # of a cell whose Markdown is not read as MyST
            raise TipminiError(f"book: not published, {page.name} shows a directive as text")
    facts = Facts.model_validate_json((stage_dir / FACTS).read_text())
    weights = finish(work / "_build/html", facts)
    # Two renames: never a half-written book.
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    (work / "_build/html").rename(out)
    for folder in (old, work):
        shutil.rmtree(folder, ignore_errors=True)
    return weights
