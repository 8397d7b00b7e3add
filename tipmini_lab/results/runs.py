"""What was measured when, on what and for how long, of whatever is stored as JSON.

Here a run is a measurement: any part of a stored file that names the machine it is of, so a cell, a
benchmark or a training.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tipmini_lab.results.digests import digest


class Run(NamedTuple):
    """One measurement; what its file doesn't tell is empty, or None."""

    date: str
    machine: str
    dtype: str
    seconds: float | None
    inputs: dict


@cache
def of_file(file: Path) -> tuple[Run, ...]:
    return tuple(_runs(json.loads(file.read_text()))) if file.suffix == ".json" else ()


def of_files(files: Iterable[Path]) -> list[Run]:
    return [run for file in files for run in of_file(file)]


def _runs(part: object) -> Iterator[Run]:
    if isinstance(part, dict):
        if "machine" in part:
            seconds = part.get("seconds")
            timed = float(seconds) if isinstance(seconds, int | float) else None
            inputs = part.get("inputs", {})
            facts = part.get("date", ""), _machine(part["machine"]), part.get("dtype", "")
            yield Run(*facts, timed, inputs)
        for inner in part.values():
            yield from _runs(inner)
    elif isinstance(part, list):
        for inner in part:
            if isinstance(inner, dict | list):
                yield from _runs(inner)


def _machine(told: dict | str) -> str:
    if isinstance(told, str):
        return told
    cores = f"{told['cores']} cores" if told.get("cores") else ""
    named = [told.get("accelerator", ""), told.get("processor", "")]
    return ", ".join(filter(None, [*named, cores, told.get("instructions", "")]))


# Many runs in a line ------------------------------------------------------------------------------


def dates(runs: Iterable[Run]) -> str:
    """The first and the last day."""
    days = sorted({run.date for run in runs} - {""})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def machines(runs: Iterable[Run]) -> list[str]:
    return sorted({run.machine for run in runs})


def formats(runs: Iterable[Run]) -> list[str]:
    return sorted({run.dtype for run in runs} - {""})


def seconds(runs: Iterable[Run]) -> float | None:
    """Of those that tell it, all together; None where none does."""
    told = [run.seconds for run in runs if run.seconds is not None]
    return sum(told) if told else None


def duration(taken: float | None) -> str:
    if taken is None:
        return "–"
    if taken < 100:
        return f"{taken:.0f} s"
    return f"{taken / 60:.0f} min" if taken < 6000 else f"{taken / 3600:.1f} h"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def inputs(runs: Iterable[Run]) -> dict[str, list[str]]:
    """{what goes in: its distinct SHA-256s} of the model, the adapters and the data; and `all`,
    the one hash of everything that the runs were measured of."""
    runs = list(runs)
    found = {}
    for name in ("model", "adapter", "data"):
        hashes = {run.inputs.get(name) for run in runs}
        found[name] = sorted(value for value in hashes if isinstance(value, str))
    keys = sorted(digest(run.inputs) for run in runs if run.inputs)
    return found | {"all": [digest(keys)] if keys else []}
