"""How much the number format and the processor matter: the paper's methods at `mini`, measured in
float32 and in bfloat16, with a CPU's instructions for it and without.

    python -m tipmini_lab.experiments.formats

The adapters are the same in every way, and the rows are, or the first of them where a way is slow;
what is stored at `mini` is what they are held against. A large CPU acts as a small one by settings
of its libraries alone.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache

import pandas as pd

from tipmini.errors import TipminiError, require
from tipmini_lab import paths
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments.lab import Lab, run_all
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import TABLE_1, stored
from tipmini_lab.results import store
from tipmini_lab.results.store import Cell

STORE = "results/formats"
# What a CPU without AVX512 has; read when a process starts.
SMALL = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
SMALL |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}
FAST = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
SLACK = 10  # times the largest difference between processors: from there on no answer may differ
Cells = dict[tuple[str, str], Cell]


@dataclass(frozen=True)
class Way:
    """A number format and the instructions that compute in it."""

    title: str
    dtype: str
    environment: dict[str, str]
    rows: dict[str, int] = field(default_factory=dict)  # the first ones, where not all


WAYS = {
    "float32-avx2": Way("float32, AVX2", "float32", SMALL),
    "bfloat16-avx512": Way("bfloat16, AVX512", "bfloat16", FAST),
    "bfloat16-emulated": Way(
        "bfloat16, emulated by AVX2", "bfloat16", SMALL, dict.fromkeys(TASKS, 8) | {"coqa": 3}
    ),
}


class InOneWay(Lab):
    """Keeps all cells in bundles of the way's own; norms and merges are those of `mini`."""

    apart = ()
    shares = False  # the same measurement, in another way, is what this is about

    def __init__(self, way: str):
        mini = load_profile("mini")
        rows = mini.evaluation_rows_of | WAYS[way].rows
        changes = {"variants": f"{STORE}/{way}", "dtype": WAYS[way].dtype}
        super().__init__(mini.model_copy(update=changes | {"evaluation_rows_of": rows}))


def measure(way: str) -> None:
    """Whatever is missing of a way, in this process: it must have the way's environment."""
    run_all(InOneWay(way), TABLE_1)


def main() -> None:
    for way in sys.argv[1:]:
        require("way", way, WAYS)
    for way in sys.argv[1:] or WAYS:
        code = f"from tipmini_lab.experiments import formats; formats.measure({way!r})"
        environment = os.environ | WAYS[way].environment
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# What came out ------------------------------------------------------------------------------------
def cells_of(way: str) -> Cells:
    return store.cells(paths.REPOSITORY / STORE / way)


def reference() -> Cells:
    """What is stored at `mini`, in float32."""
    mini = load_profile("mini")
    found = {(m, t): stored(mini, m, t) for m in TABLE_1 for t in mini.tasks}
    return {place: cell for place, cell in found.items() if cell}


def others() -> dict[str, Cells]:
    """Every way's cells by its title; in the last, input norms and merges are of its own too."""
    found = {way.title: cells_of(name) for name, way in WAYS.items()}
    own = store.cells(load_profile("mini").variant_store, TABLE_1)
    return found | {"bfloat16, norms included (AMD EPYC)": own}


def table(titles: dict[str, str]) -> pd.DataFrame:
    """Every way beside what is stored: rows that count otherwise, and each method's mean."""
    fixed = reference()
    rows = {"float32, AVX512 (stored)": _told(fixed, fixed, titles)}
    rows |= {title: _told(found, fixed, titles) for title, found in others().items() if found}
    return pd.DataFrame(rows).T.rename_axis("computed in")


def _told(found: Cells, fixed: Cells, titles: dict[str, str]) -> dict[str, str]:
    rows = _gains(found, fixed)
    row = {"examples<br>that differ": f"{sum(map(bool, rows)):,} of {len(rows):,}"}
    shifts = _shifts(found, fixed) if _whole(found, fixed) else {}  # few rows move a mean far
    told = {m: f"{shifts[m]:+z.2f}" if m in shifts else "–" for m in TABLE_1}
    return row | {f"{titles[m]}, points": told[m] for m in TABLE_1}


def _gains(found: Cells, fixed: Cells) -> list[float]:
    """Of every row that both have."""
    pairs = ((found[place], fixed[place]) for place in fixed if place in found)
    return [a - b for one, two in pairs for a, b in zip(one.values, two.values, strict=False)]


def _shifts(found: Cells, fixed: Cells) -> dict[str, float]:
    """{method: by how many points its mean over the tasks is off}."""
    means: dict[str, list[float]] = {}
    for place in (place for place in found if place in fixed):
        gains = _gains({place: found[place]}, {place: fixed[place]})
        means.setdefault(place[0], []).append(math.fsum(gains) / len(gains))
    return {method: 100 * math.fsum(own) / len(own) for method, own in means.items()}


def _whole(found: Cells, fixed: Cells) -> bool:
    return all(place in found and found[place].count == fixed[place].count for place in fixed)


@cache
def most_points() -> float:
    """By how many points another way moves the difference of two methods' means, at most, where
    it was measured on all rows."""
    fixed = reference()
    every = [_shifts(found, fixed).values() for found in others().values() if _whole(found, fixed)]
    return max(max(shifts) - min(shifts) for shifts in every)


def largest_difference() -> float:
    """By how much a margin in float32 differs between processors, at most."""
    fixed, other = reference(), cells_of("float32-avx2")
    if not other:
        command = "python -m tipmini_lab.experiments.formats"
        raise TipminiError(f"{STORE}: nothing stored; run {command}")
    pairs = ((cell.margins, fixed[place].margins) for place, cell in other.items())
    return max(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))


def tie() -> float:
    """Answers in float32 whose margin is larger are no tie: processors are not that far apart."""
    return SLACK * largest_difference()


def allowed(dtype: str) -> float:
    """The share of answers beyond ties that another processor may count otherwise.

    None in float32; in bfloat16 the share in which the two ways to compute in it differ.
    """
    if dtype == "float32":
        return 0.0
    gains = _gains(cells_of("bfloat16-avx512"), cells_of("bfloat16-emulated"))
    return sum(map(bool, gains)) / len(gains)


if __name__ == "__main__":
    main()
