"""What was measured: cells, keyed by what went into them, and what measured them.

A cell of the paper's methods has a file of its own; a variant's or a pruned model's stand together
in a bundle. Everything is written whole or not at all, and carries a digest of itself: `checked`.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tipmini.errors import TipminiError
from tipmini.models.sealed import sealed
from tipmini_lab.locks import alone
from tipmini_lab.results import checked
from tipmini_lab.results.digests import Codes, digest
from tipmini_lab.results.statistics import accuracy, sign_p

Place = tuple[str, str]  # (method or variant, task)
Stored = TypeVar("Stored", bound=BaseModel)

LIBRARIES = ("torch", "transformers", "peft", "lm_eval", "datasets")


class Cell(BaseModel, extra="forbid"):
    """One method on one task: a value for every evaluation row, and what made it."""

    key: str
    inputs: dict  # what the key is the hash of
    code: dict[str, str]  # that measured it: see `digests`
    profile: str
    method: str
    task: str
    metric: str
    dtype: str  # that the model was computed in
    values: list[float]  # in the fixed order of the task's rows
    margins: list[float] = []  # how far each is from another: `evaluation.margins`
    seconds: float
    date: str  # of the measurement, UTC
    machine: dict[str, str | int]
    versions: dict[str, str]

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return accuracy(self.values)[0]

    @property
    def stderr(self) -> float:
        """The mean's standard error, as lm-eval prints it."""
        return accuracy(self.values)[1]


def in_one_format(cells: Mapping[Place, Cell]) -> Mapping[Place, Cell]:
    """The cells, to be compared with one another; TipminiError where their formats differ."""
    formats = {cell.dtype: place for place, cell in cells.items()}
    if len(formats) > 1:
        told = ", ".join(f"{'/'.join(place)} in {dtype}" for dtype, place in formats.items())
        raise TipminiError(f"cells of several number formats: {told}; measure with one --dtype")
    return cells


def paired_p(first: Cell, second: Cell) -> float:
    """`sign_p` of two cells of the same rows; TipminiError where their number formats differ.

    Which format it is moves rows by itself, and the test would count them as the methods'.
    """
    if first.dtype != second.dtype:
        told = f"{first.method} in {first.dtype}, {second.method} in {second.dtype}"
        raise TipminiError(f"{first.task}: {told}: measure both with one --dtype")
    return sign_p([a - b for a, b in zip(first.values, second.values, strict=True)])


def write(path: Path, text: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises TipminiError where the disk does not take it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with checked.writing(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)


def text(cell: Cell) -> str:
    """One line of JSON; whole values without a decimal point."""
    content = cell.model_dump()
    content["values"] = [int(v) if v == int(v) else v for v in cell.values]
    return json.dumps(content, separators=(",", ":"))


def save(path: Path, cell: Cell) -> None:
    write(path, sealed(text(cell)))


def load(path: Path, kind: type[Stored] = Cell) -> Stored | None:
    """The stored cell or bundle; None where there is none, or one that is damaged or of another
    format."""
    try:
        found = checked.text(path)
        return kind.model_validate_json(found) if found else None
    except ValidationError:
        return None


def measured(start: float, inputs: dict, code: Codes, **facts: object) -> Cell:
    """The cell of a measurement that began at `start` (`time.perf_counter`) and ends now."""
    return Cell(
        key=digest(inputs),
        inputs=inputs,
        code=dict(code),
        seconds=round(time.perf_counter() - start, 1),
        date=today(),
        machine=machine(),
        versions=versions(),
        **facts,
    )


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def machine() -> dict[str, str | int]:
    """What was measured on; instructions: the widest that PyTorch uses there."""
    import torch

    about = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    models = re.findall(r"(?m)^model name\s*:(.*)", about) or [platform.processor()]
    return {
        "processor": models[0].strip(),
        "cores": os.cpu_count() or 0,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


# The store of variants ----------------------------------------------------------------------------
class Bundle(BaseModel, extra="forbid"):
    """What is known of one variant.

    settings: `Lab.settings`, of which the merge was made. facts: of the merge itself, e.g. its
    size beside that of the exact sum (`merging.sizes`); of a pruning the loss of every step.
    cells: one a task.
    """

    name: str
    title: str
    settings: dict
    facts: dict[str, float | list[float]]
    cells: list[Cell]


def file_of(store: Path, name: str) -> Path:
    return store / f"{name}.json"


def read(store: Path, name: str) -> Bundle | None:
    return load(file_of(store, name), Bundle)


def cell_of(store: Path, name: str, task: str) -> Cell | None:
    bundle = read(store, name)
    return next((cell for cell in bundle.cells if cell.task == task), None) if bundle else None


def names(store: Path) -> list[str]:
    return sorted(file.stem for file in store.glob("*.json"))


def bundles(store: Path, wanted: Iterable[str] | None = None) -> list[Bundle]:
    """All stored variants, or those wanted that are stored."""
    found = [read(store, name) for name in (names(store) if wanted is None else wanted)]
    return [bundle for bundle in found if bundle]


def cells(store: Path, wanted: Iterable[str] | None = None) -> dict[Place, Cell]:
    """{(variant, task): cell} of the `bundles`."""
    return {(b.name, cell.task): cell for b in bundles(store, wanted) for cell in b.cells}


def facts(store: Path) -> dict[str, dict]:
    """{variant: facts of its merge} of the `bundles`."""
    return {bundle.name: bundle.facts for bundle in bundles(store)}


def keep(store: Path, made: Bundle) -> None:
    """Add cells to a variant's; those of other settings, and of the same tasks, are replaced."""
    store.mkdir(parents=True, exist_ok=True)
    with alone(store):  # another process may add a cell of another task
        old = read(store, made.name)
        kept = {c.task: c for c in old.cells} if old and old.settings == made.settings else {}
        kept |= {cell.task: cell for cell in made.cells}
        write(file_of(store, made.name), _text(made, [kept[task] for task in sorted(kept)]))


def _text(bundle: Bundle, every: list[Cell]) -> str:
    """A line for what holds of all cells, and one a cell."""
    head = json.dumps(bundle.model_dump(exclude={"cells"}))[:-1]
    lines = ",\n".join(text(cell) for cell in every)
    return sealed(f'{head}, "cells": [\n{lines}\n]}}')


def find(stores: Iterable[Path], key: str) -> Cell | None:
    """A cell that was measured of the very same things, under whatever name."""
    for file in (file for store in stores for file in sorted(store.glob("*.json"))):
        if key.encode() in file.read_bytes():  # a damaged one may be no text
            bundle = load(file, Bundle)
            for cell in bundle.cells if bundle else filter(None, [load(file)]):
                if cell.key == key:
                    return cell
    return None
