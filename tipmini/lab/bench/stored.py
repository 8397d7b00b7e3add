"""results/bench.json, and what the book and the terminal show of it."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini.errors import TipminiError
from tipmini.lab import figures, paths
from tipmini.lab.show import markdown_table

STORED = paths.REPOSITORY / "results" / "bench.json"
AXES = (("adapters", "blocks"), ("blocks", "adapters"))  # what grows, and what is held


def read() -> dict:
    """The stored figures of the last `make bench`; raises TipminiError where there are none."""
    if not STORED.is_file():
        raise TipminiError(f"{STORED} is missing; run make bench")
    return json.loads(STORED.read_text())


def page_values() -> dict[str, str]:
    """Markdown for every {{ bench_... }} of book/performance.md."""
    found = read()
    machine, whole = found["machine"], found["merging"]["whole"]
    by_adapters, by_blocks = (slopes(found, *axes) for axes in AXES)
    return {
        "bench_machine": f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        "bench_versions": ", ".join(f"{name} {v}" for name, v in found["versions"].items()),
        "bench_date": found["date"],
        "bench_beside": markdown_table(beside_table(found)),
        "bench_limits": markdown_table(limits_table(found)),
        "bench_whole_seconds": f"{whole['seconds']:.0f}",
        "bench_whole_memory": "not known" if whole["bytes"] is None else gigabytes(whole["bytes"]),
        "bench_slope_adapters": by_adapters,
        "bench_slope_blocks": by_blocks,
    }


def pictures() -> dict[str, Figure]:
    """The page's figures, by file name."""
    found = read()
    return {"growth": figures.growth({along: growth_lines(found, along, f) for along, f in AXES})}


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def limits_table(found: dict) -> pd.DataFrame:
    """What the machine was measured to do at best, and what share of it each step reached."""
    peak, forward = found["matrix_product"], found["forward"]
    rows = {
        f"matrix product, {forward['dtype']}": (f"{peak / 1e9:.0f} GFLOP/s", ""),
        "packed forward pass": (
            f"{forward['tokens']:,.0f} tokens/s",
            f"{forward['operations'] / peak:.0%} of the matrix products' peak",
        ),
        "copy in memory": (f"{found['bandwidth'] / 1e9:.1f} GB/s", ""),
    }
    for row in found["merging"]["beside"]:
        if "bytes" in row:
            speed = row["bytes"] / row["seconds"]
            share = f"{speed / found['bandwidth']:.0%} of the bandwidth"
            rows[f"merge {row['name']}"] = (f"{speed / 1e9:.1f} GB/s of factors", share)
    return pd.DataFrame(rows, index=["measured", "share"]).T.rename_axis("step")


def slopes(found: dict, along: str, fixed: str) -> str:
    """The exponents of growth, method by method, in words."""
    lines = growth_lines(found, along, fixed)
    return ", ".join(f"{exponent(*line):.2f} for {method}" for method, line in lines.items())


def beside_table(found: dict) -> pd.DataFrame:
    """Every comparison with a peer: both medians and their ratio."""
    rows = [
        {
            "tipmini": row["name"],
            "peer": row["peer"],
            "of": row["of"],
            "tipmini, s": f"{row['seconds']:.3g}",
            "peer, s": f"{row['peer_seconds']:.3g}",
            "ratio": f"{row['ratio']:.3f}",
        }
        for row in found["merging"]["beside"]
    ]
    return pd.DataFrame(rows).set_index("tipmini")


def growth_lines(found: dict, along: str, fixed: str) -> dict[str, tuple[list, list]]:
    """{method: (numbers, seconds)} of the points between which only `along` differs."""
    points = found["merging"]["growth"]
    held = [point[fixed] for point in points]
    usual = max(held, key=held.count)
    lines: dict[str, tuple[list, list]] = {}
    for point in sorted(points, key=lambda point: point[along]):
        if point[fixed] == usual:
            numbers, taken = lines.setdefault(point["method"], ([], []))
            numbers.append(point[along])
            taken.append(point["seconds"])
    return lines


def exponent(numbers: list, taken: list) -> float:
    r"""$\alpha$ of seconds $\propto n^\alpha$, by least squares of the logarithms."""
    return float(np.polyfit(np.log(numbers), np.log(taken), 1)[0])


def report(found: dict) -> str:
    """What `make bench` prints."""
    whole = found["merging"]["whole"]
    memory = "" if whole["bytes"] is None else f", {gigabytes(whole['bytes'])} beyond one delta"
    tables = (beside_table(found), limits_table(found))
    return "\n\n".join(
        [
            *(table.to_string() for table in tables),
            f"tip over delta W of all modules: {whole['seconds']:.0f} s{memory}",
            *(f"seconds ~ {along}^a, a = {slopes(found, along, held)}" for along, held in AXES),
        ]
    )
