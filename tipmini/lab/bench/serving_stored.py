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


def slope(found: dict, step: str, batch: int) -> float:
    """Seconds that every further adapter of a mixed batch adds, by least squares."""
    chosen = [p for w, p in points(found, step, batch).items() if w.startswith("mixed")]
    counts = [point["adapters"] for point in chosen]
    taken = [statistics.median(point["seconds"]) for point in chosen]
    return float(np.polyfit(counts, taken, 1)[0])


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
            point = points(found, "prompt", batch).get(way)
            if point and point["memory"] is not None:
                sizes, megabytes = lines.setdefault(title(way), ([], []))
                sizes.append(batch)
                megabytes.append(point["memory"] / 1e6)
    return lines


# Tables -------------------------------------------------------------------------------------


def table(found: dict, shown: tuple[int, ...]) -> pd.DataFrame:
    """Every way: what it adds in counts, and its median times at some batch sizes."""
    rows = {title(way): _counts(found, way) | _times(found, way, shown) for way in ways(found)}
    return pd.DataFrame(rows).T.rename_axis("served")


def _counts(found: dict, way: str) -> dict[str, str]:
    size, last = Sizes(**found["sizes"]), batches(found)[-1]
    own, base = (points(found, "token", last)[name] for name in (way, "base"))
    weights = own["adapters"] * size.adapter * size.width
    return {
        "adapter weights, MB": f"{weights / 1e6:.2f}",
        "operations, token": f"{own['operations'] / base['operations'] - 1:+.2%}",
        "matrix products": str(products(size, own["adapters"])),
    }


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
    return f"{taken * 1e3:.0f} ms<br>{middle:.2f} × ({low:.2f} ... {high:.2f})"


def floor_table(found: dict) -> pd.DataFrame:
    """Median times of some ways as multiples of the time that they need at least."""
    rows = {}
    for way in ("base", most(found), "one adapter", "weights"):
        rows[title(way)] = {
            f"{name}, batch {batch}": _above_floor(found, way, step, batch)
            for step, name in STEPS.items()
            for batch in batches(found)
            if way in points(found, step, batch)
        }
    return pd.DataFrame(rows).fillna("-").rename_axis("step")


def _above_floor(found: dict, way: str, step: str, batch: int) -> str:
    point = points(found, step, batch)[way]
    least = floor_seconds(point, found)
    return f"{statistics.median(point['seconds']) / least:.1f} × {least * 1e3:.1f} ms"


# Words --------------------------------------------------------------------------------------


def provenance(found: dict) -> str:
    """What the numbers were measured on, with and how often."""
    machine, speeds = found["machine"], (found["matrix_product"] / 1e9, found["bandwidth"] / 1e9)
    versions = ", ".join(f"{n} {found['versions'][n]}" for n in ("torch", "transformers", "peft"))
    return (
        f"Measured by `{found['command']}` on {found['date']}: {machine['processor']}, "
        f"{machine['cores']} cores, {found['threads']} threads, {versions}, {found['dtype']}, "
        f"prompts of {found['length']} tokens, {found['rounds']} rounds. In the same run a large "
        f"matrix product reached {speeds[0]:.0f} GFLOP/s and a copy in memory {speeds[1]:.0f} GB/s."
    )


def summary(found: dict, batch: int) -> str:
    """What came out at one batch size, every number computed from the stored ones."""
    parts = []
    for step, name in STEPS.items():
        ratios = relative(found, step, batch)
        said = ", ".join(
            f"{ratios[way][0]:.2f} with {title(way)}" for way in (most(found), "one adapter")
        )
        parts.append(
            f"At batch {batch} a pass over the {name} takes, relative to the base model, {said}, "
            f"and {ratios['weights'][0]:.2f} with the merge in the weights."
        )
    more, size = slope(found, "token", batch), Sizes(**found["sizes"])
    parts.append(
        f"Each further adapter adds {more * 1e3:.1f} ms to the pass over the next token, "
        f"{more / size.adapted * 1e6:.0f} µs for each of the {size.adapted} adapted modules."
    )
    return " ".join(parts)


def floors(found: dict, batch: int) -> str:
    """How far the base and the fullest mixed batch are from what they need at least."""
    said = []
    for way in ("base", most(found)):
        above = (_above_floor(found, way, step, batch) for step in STEPS)
        named = (f"{a} ({name})" for a, name in zip(above, STEPS.values(), strict=True))
        said.append(f"{title(way)}: {' and '.join(named)}")
    return f"Measured time as a multiple of the floor at batch {batch}: {'; '.join(said)}."


def report(found: dict) -> str:
    """What the terminal shows."""
    last = batches(found)[-1]
    parts = [table(found, (last,)), floor_table(found)]
    texts = [part.to_string().replace("<br>", " ") for part in parts]
    return "\n\n".join([*texts, summary(found, last), provenance(found)])
