"""results/bench.json, and what the book and the terminal show of it."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import figures, pruning_costs
from tipmini_lab.book.tables import markdown_table

NEEDED = ("limits", "evaluation", "calibration", "merging")  # by the page; pruning's can wait
AXES = (("adapters", "blocks"), ("blocks", "adapters"))  # what grows, and what is held


def read() -> dict:
    """{part: what it found and what made it}; TipminiError where one but pruning's is missing."""
    found = json.loads(paths.BENCH.read_text()) if paths.BENCH.is_file() else {}
    missing = [part for part in NEEDED if part not in found]
    if missing:
        command = f"python -m bench {' '.join(missing)}"
        raise TipminiError(f"{paths.BENCH}: {', '.join(missing)} not measured; run {command}")
    return found


def page_values() -> dict[str, str]:
    """Markdown for every {{ bench_... }} of book/performance.md."""
    found = read()
    whole = found["merging"]["whole"]
    by_adapters, by_blocks = (slopes(found, *axes) for axes in AXES)
    values = {
        "bench_made": made(found),
        "bench_beside": markdown_table(beside_table(found)),
        "bench_limits": markdown_table(limits_table(found)),
        "bench_whole_seconds": f"{whole['seconds']:.0f}",
        "bench_whole_memory": "not known" if whole["bytes"] is None else gigabytes(whole["bytes"]),
        "bench_slope_adapters": by_adapters,
        "bench_slope_blocks": by_blocks,
    }
    return values | _evaluation_values(found) | _pruning_values(pruning_costs.of(found))


def made(found: dict) -> str:
    """Which parts were measured where, with what and when."""
    places: dict[str, dict[str, list[str]]] = {}
    for part, own in found.items():
        machine, versions = own["made"]["machine"], own["made"]["versions"].items()
        where = f"{machine['processor']}, {own['made']['threads']} threads, {machine['system']}"
        where += f", {', '.join(f'{name} {version}' for name, version in versions)}"
        places.setdefault(where, {}).setdefault(own["made"]["date"], []).append(part)
    return "; ".join(f"{where}: {_days(days)}" for where, days in places.items())


def _days(days: dict[str, list[str]]) -> str:
    return ", ".join(f"{', '.join(parts)} on {day}" for day, parts in days.items())


def _pruning_values(found: pruning_costs.Found) -> dict[str, str]:
    return {
        "bench_pruning_sizes": pruning_costs.made_with(found, pruning_costs.CRITERIA),
        "bench_pruning_cost": markdown_table(pruning_costs.cost_table(found)),
        "bench_pruning_inference": markdown_table(pruning_costs.inference_table(found)),
    }


def _evaluation_values(found: dict) -> dict[str, str]:
    alike = found["evaluation"]["float32"]
    return {
        "bench_eval_dtype": found["limits"]["forward"]["dtype"],
        "bench_eval_batch": str(found["evaluation"]["batch_size"]),
        "bench_eval_other": str(found["evaluation"]["other_size"]),
        "bench_evaluation": markdown_table(evaluation_table(found)),
        **_evaluation_floor(found),
        "bench_alike_rows": str(alike["rows"]),
        "bench_alike_same": str(alike["same"]),
        "bench_alike_ties": str(alike["ties"]),
        "bench_alike_apart": f"{alike['apart']:.1g}",
        "bench_calibration": markdown_table(calibration_table(found)),
    }


def pictures() -> dict[str, Figure]:
    """The page's figures, by file name."""
    found = read()
    return {"growth": figures.growth({along: growth_lines(found, along, f) for along, f in AXES})}


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def limits_table(found: dict) -> pd.DataFrame:
    """What the machine was measured to do at best, and what share of it each step reached."""
    limits = found["limits"]
    peak, forward = limits["matrix_product"], limits["forward"]
    rows = {
        f"matrix product, {forward['dtype']}": (f"{peak / 1e9:.0f} GFLOP/s", ""),
        "packed forward pass": (
            f"{forward['tokens']:,.0f} tokens/s",
            f"{forward['operations'] / peak:.0%} of the matrix products' peak",
        ),
        "copy in memory": (f"{limits['bandwidth'] / 1e9:.1f} GB/s", ""),
    }
    for row in found["merging"]["beside"]:
        if "bytes" in row:
            speed = row["bytes"] / row["seconds"]
            share = f"{speed / limits['bandwidth']:.0%} of the bandwidth"
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


def evaluation_table(found: dict) -> pd.DataFrame:
    """Every task with tipmini's model and with lm-eval's, and all of them."""
    tasks = found["evaluation"]["tasks"]
    names = ("rows", "needed", "ours_tokens", "peer_tokens", "ours_seconds", "peer_seconds")
    names += ("same", "itself", "decided", "same_decided")
    total = {name: sum(row[name] for row in tasks.values()) for name in names}
    passing = tokens_at_peak(found)
    rows = {task: _evaluated(row, passing) for task, row in (tasks | {"all": total}).items()}
    return pd.DataFrame(rows).T.rename_axis("task")


def tokens_at_peak(found: dict) -> float:
    """Tokens a second of the blocks, were they done at the speed of matrix products alone."""
    return found["limits"]["matrix_product"] / (2 * found["evaluation"]["parameters"])


def _evaluation_floor(found: dict) -> dict[str, str]:
    """The seconds below which no evaluator of these requests can come here."""
    rows = found["evaluation"]["tasks"].values()
    needed, peer = (sum(row[name] for row in rows) for name in ("needed", "peer_seconds"))
    floor = needed / tokens_at_peak(found)
    return {"bench_eval_floor": f"{floor:.1f}", "bench_eval_cap": f"{peer / floor:.1f}"}


def _evaluated(row: dict, passing: float) -> dict[str, str]:
    return {
        "rows": str(row["rows"]),
        "tokens needed": f"{row['needed']:,}",
        "computed": f"{row['ours_tokens']:,}",
        "by `hf`": f"{row['peer_tokens']:,}",
        "seconds": f"{row['ours_seconds']:.1f}",
        "of `hf`": f"{row['peer_seconds']:.1f}",
        "times faster": f"{row['peer_seconds'] / row['ours_seconds']:.2f}",
        "of the peak": f"{row['ours_tokens'] / row['ours_seconds'] / passing:.0%}",
        "same": f"{row['same'] / row['rows']:.1%}",
        "same, decided": f"{row['same_decided'] / row['decided']:.1%} of {row['decided']}",
        "`hf` and itself": f"{row['itself'] / row['rows']:.1%}",
    }


def calibration_table(found: dict) -> pd.DataFrame:
    """Seconds and memory of both procedures for the same norms."""
    row = found["calibration"]
    memory = [row["bytes"], row["peer_bytes"]]
    columns = {
        "seconds": [f"{row['seconds']:.1f}", f"{row['peer_seconds']:.1f}"],
        "memory": ["not known" if m is None else gigabytes(m) for m in memory],
    }
    sides = pd.Index(["tipmini", "Wanda's procedure"], name=f"{row['rows']} rows of {row['task']}")
    return pd.DataFrame(columns, index=sides)


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
    tables = [
        table(found) for table in (beside_table, evaluation_table, calibration_table, limits_table)
    ]
    return "\n\n".join(
        [
            *(table.to_string() for table in tables),
            f"tip over delta W of all modules: {whole['seconds']:.0f} s{memory}",
            *(f"seconds ~ {along}^a, a = {slopes(found, along, held)}" for along, held in AXES),
        ]
    )
