"""results/serving.json, and what the chapter on serving and the terminal show of it."""

import json
import statistics

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini.errors import TipminiError
from tipmini.lab import paths, serving_figures
from tipmini.lab.bench.serving_cost import Sizes, floor_seconds, products

STORED = paths.REPOSITORY / "results" / "serving.json"
STEPS = {"prompt": "prompt", "token": "next token"}
TITLES = {
    "base": "base model",
    "one adapter": "one merged adapter",
    "weights": "merged into the weights",
}
TICKS = {"base": "0", "one adapter": "A", "weights": "W"}


def read() -> dict:
    """The stored figures of the last measurement; raises TipminiError where there are none."""
    if not STORED.is_file():
        raise TipminiError(f"{STORED} is missing; run python -m tipmini.lab.bench serving")
    return json.loads(STORED.read_text())


def title(way: str) -> str:
    count = way.removeprefix("mixed ")
    plural = "" if count == "1" else "s"
    return TITLES.get(way) or f"{count} unmerged adapter{plural}"


def points(found: dict, step: str, batch: int) -> dict[str, dict]:
    """{way: point} of one step at one batch size."""
    chosen = [p for p in found["points"] if (p["step"], p["batch"]) == (step, batch)]
    return {p["way"]: p for p in chosen}


def batches(found: dict) -> list[int]:
    return sorted({point["batch"] for point in found["points"]})


def ways(found: dict) -> list[str]:
    """All ways to serve, in their order."""
    return list(points(found, "prompt", batches(found)[-1]))


def most(found: dict) -> str:
    """The mixed batch of the most adapters."""
    return f"mixed {max(point['adapters'] for point in found['points'])}"


def relative(found: dict, step: str, batch: int) -> dict[str, tuple[float, float, float]]:
    """{way: (median, least, most)} of its time over the base model's in the same round."""
    chosen = points(found, step, batch)
    base, ratios = chosen["base"]["seconds"], {}
    for way, point in chosen.items():
        each = [own / alone for own, alone in zip(point["seconds"], base, strict=True)]
        ratios[way] = statistics.median(each), min(each), max(each)
    return ratios


def slower(found: dict, step: str, batch: int, way: str) -> bool:
    """Whether it took longer in every round than the base model and than the merge in the weights.

    These two are one program. Of three alike, one and the same is the slowest in all of five rounds
    once in 243 times.
    """
    chosen = points(found, step, batch)
    alike = zip(chosen["base"]["seconds"], chosen["weights"]["seconds"], strict=True)
    return all(own > max(two) for own, two in zip(chosen[way]["seconds"], alike, strict=True))


def slope(found: dict, step: str, batch: int) -> tuple[float, float, float]:
    """What every further adapter of a mixed batch adds, as a share of the base model's time.

    Median, least and most over the rounds, by least squares within each: a drift of the machine
    from round to round has no part in it.
    """
    chosen = points(found, step, batch)
    mixed = [point for way, point in chosen.items() if way.startswith("mixed")]
    counts = [point["adapters"] for point in mixed]
    rounds = np.array([point["seconds"] for point in mixed]) / chosen["base"]["seconds"]
    each = np.polyfit(counts, rounds, 1)[0].tolist()
    return statistics.median(each), min(each), max(each)


# Figure -------------------------------------------------------------------------------------


def figure(found: dict) -> Figure:
    """TIP's Figure 1: time of every way beside the base model's, and memory."""
    times = {
        f"batch {batch}": {
            name: {
                TICKS.get(way) or way.removeprefix("mixed "): ratio
                for way, ratio in relative(found, step, batch).items()
            }
            for step, name in STEPS.items()
        }
        for batch in batches(found)
    }
    ticks = [TICKS.get(way) or way.removeprefix("mixed ") for way in ways(found)]
    return serving_figures.serving(times, ticks, memory_lines(found))


def memory_lines(found: dict) -> dict[str, tuple[list[int], list[float]]]:
    """{title: (batch sizes, MB that a pass over prompts takes)} of what differs most."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for way in ("base", most(found), "one adapter", "weights"):
        for batch in batches(found):
            risen = memory(found, way, batch)
            if risen is not None:
                sizes, megabytes = lines.setdefault(title(way), ([], []))
                sizes.append(batch)
                megabytes.append(risen / 1e6)
    return lines


# Tables -------------------------------------------------------------------------------------


def table(found: dict, shown: tuple[int, ...]) -> pd.DataFrame:
    """Every way: what it adds in counts, and its median times at some batch sizes."""
    rows = {title(way): _counts(found, way) | _times(found, way, shown) for way in ways(found)}
    return pd.DataFrame(rows).T.rename_axis("served")


def _counts(found: dict, way: str) -> dict[str, str]:
    size, last = Sizes(**found["sizes"]), batches(found)[-1]
    own, base = (points(found, "token", last)[name] for name in (way, "base"))
    return _adapters(found, way) | {
        "operations, token": f"{own['operations'] / base['operations'] - 1:+.2%}",
        "matrix products": str(products(size, own["adapters"])),
    }


def _adapters(found: dict, way: str) -> dict[str, str]:
    size, last = Sizes(**found["sizes"]), batches(found)[-1]
    weights = points(found, "token", last)[way]["adapters"] * size.adapter * size.width
    return {"adapter weights, MB": f"{weights / 1e6:.2f}"}


def _times(found: dict, way: str, shown: tuple[int, ...]) -> dict[str, str]:
    cells = {}
    for batch in shown:
        for step, name in STEPS.items():
            cells[f"{name}, batch {batch}"] = _time(found, way, step, batch)
    return cells


def _time(found: dict, way: str, step: str, batch: int) -> str:
    point = points(found, step, batch).get(way)
    if point is None:
        return "-"
    middle, low, high = relative(found, step, batch)[way]
    taken = statistics.median(point["seconds"])
    return f"{taken * 1e3:.0f} ms<br>{middle:.2f} ({low:.2f} to {high:.2f})"


def memory_table(found: dict) -> pd.DataFrame:
    """MB of the adapters that a way keeps, and by how much a pass over prompts rises above that."""
    rows = {title(way): _adapters(found, way) | _rises(found, way) for way in ways(found)}
    rows = {name: row for name, row in rows.items() if len(row) > 1}  # not measured of all
    return pd.DataFrame(rows).T.fillna("-").rename_axis("served")


def _rises(found: dict, way: str) -> dict[str, str]:
    risen = {batch: memory(found, way, batch) for batch in batches(found)}
    return {f"batch {b}": f"{rise / 1e6:.0f}" for b, rise in risen.items() if rise is not None}


def memory(found: dict, way: str, batch: int) -> float | None:
    """Bytes by which a pass over prompts rises above what is kept; None where not measured."""
    return points(found, "prompt", batch).get(way, {}).get("memory")


def floor_table(found: dict) -> pd.DataFrame:
    """Median times of some ways as multiples of the time that they need at least."""
    rows = {}
    for way in ("base", most(found), "one adapter", "weights"):
        rows[title(way)] = {
            f"{name}, batch {batch}": above_floor(found, way, step, batch)
            for step, name in STEPS.items()
            for batch in batches(found)
            if way in points(found, step, batch)
        }
    return pd.DataFrame(rows).fillna("-").rename_axis("step")


def above_floor(found: dict, way: str, step: str, batch: int) -> str:
    """The median time as a multiple of the least time it needs, and that time."""
    point = points(found, step, batch)[way]
    least = floor_seconds(point, found)
    return f"{statistics.median(point['seconds']) / least:.1f} × {least * 1e3:.1f} ms"
