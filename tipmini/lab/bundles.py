"""The store of variants: one JSON a variant, with what was merged and the cells of its tasks."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tipmini.lab import results
from tipmini.lab.locks import alone
from tipmini.lab.results import Cell


class Bundle(BaseModel):
    """What is known of one variant.

    settings: `Lab.settings`, of which the merge was made. facts: of the merge itself, e.g. its
    size beside that of the exact sum (`controls.sizes`); of a pruning the loss of every step.
    cells: one a task.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    settings: dict
    facts: dict[str, float | list[float]]
    cells: list[Cell]


def file_of(store: Path, name: str) -> Path:
    return store / f"{name}.json"


def read(store: Path, name: str) -> Bundle | None:
    """None where there is none, or one of another format."""
    try:
        return Bundle.model_validate_json(file_of(store, name).read_text())
    except (FileNotFoundError, ValidationError):
        return None


def cell_of(store: Path, name: str, task: str) -> Cell | None:
    bundle = read(store, name)
    return next((cell for cell in bundle.cells if cell.task == task), None) if bundle else None


def names(store: Path) -> list[str]:
    return sorted(file.stem for file in store.glob("*.json"))


def cells(store: Path, wanted: Iterable[str] | None = None) -> dict[tuple[str, str], Cell]:
    """{(variant, task): cell} of all stored variants, or of those wanted that are stored."""
    found = (read(store, name) for name in (names(store) if wanted is None else wanted))
    return {(b.name, cell.task): cell for b in found if b for cell in b.cells}


def titles(store: Path, wanted: Iterable[str] | None = None) -> dict[str, str]:
    """{variant: title}, as `cells`; of a choice it tells what was chosen."""
    found = (read(store, name) for name in (names(store) if wanted is None else wanted))
    return {b.name: b.title for b in found if b}


def facts(store: Path, wanted: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
    """{variant: facts of its merge}, as `cells`."""
    found = (read(store, name) for name in (names(store) if wanted is None else wanted))
    return {b.name: b.facts for b in found if b}


def keep(store: Path, made: Bundle) -> None:
    """Add cells to a variant's; those of other settings, and of the same tasks, are replaced."""
    store.mkdir(parents=True, exist_ok=True)
    with alone(store):  # another process may add a cell of another task
        old = read(store, made.name)
        kept = {c.task: c for c in old.cells} if old and old.settings == made.settings else {}
        kept |= {cell.task: cell for cell in made.cells}
        results.write(file_of(store, made.name), _text(made, [kept[task] for task in sorted(kept)]))


def _text(bundle: Bundle, every: list[Cell]) -> str:
    """A line for what holds of all cells, and one a cell."""
    head = json.dumps(bundle.model_dump(exclude={"cells"}))[:-1]
    lines = ",\n".join(results.text(cell) for cell in every)
    return f'{head}, "cells": [\n{lines}\n]}}\n'


def find(stores: Iterable[Path], key: str) -> Cell | None:
    """A cell that was measured of the very same things, under whatever name."""
    for store in stores:
        for file in sorted(store.glob("*.json")):
            text = file.read_text()
            if key not in text:
                continue
            bundle, single = read(store, file.stem), results.load(file)
            every = bundle.cells if bundle else [single] if single else []
            found = [cell for cell in every if cell.key == key]
            if found:
                return found[0]
    return None
