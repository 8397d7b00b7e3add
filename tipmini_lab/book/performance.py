"""results/bench.json, and what the book and the terminal show of it."""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import figures, pruning_costs
from tipmini_lab.book.tables import TITLES, markdown_table, threads

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
    whole, evaluation = found["merging"]["whole"], found["evaluation"]
    alike, tasks = evaluation["float32"], pd.DataFrame(evaluation["tasks"]).sum(axis=1)
    floor = tasks["needed"] / tokens_at_peak(found)  # seconds; no evaluator can be faster here
    pruning = pruning_costs.of(found)
    return {
        "bench_made": made(found),
        "bench_beside": markdown_table(beside_table(found)),
        "bench_limits": markdown_table(limits_table(found)),
        "bench_whole_seconds": f"{whole['seconds']:.0f}",
        "bench_whole_memory": gigabytes(whole["bytes"]),
        **{f"bench_slope_{along}": slopes(found, along, held) for along, held in AXES},
        "bench_eval_dtype": found["limits"]["forward"]["dtype"],
        "bench_eval_batch": str(evaluation["batch_size"]),
        "bench_eval_other": str(evaluation["other_size"]),
        "bench_evaluation": markdown_table(evaluation_table(found)),
        "bench_eval_floor": f"{floor:.1f}",
        "bench_eval_cap": f"{tasks['peer_seconds'] / floor:.1f}",
        **{f"bench_alike_{name}": str(alike[name]) for name in ("rows", "same", "ties")},
        "bench_alike_apart": f"{alike['apart']:.1g}",
        "bench_calibration": markdown_table(calibration_table(found)),
        "bench_pruning_sizes": pruning_costs.made_with(pruning, pruning_costs.CRITERIA),
        "bench_pruning_cost": markdown_table(pruning_costs.cost_table(pruning)),
        "bench_pruning_inference": markdown_table(pruning_costs.inference_table(pruning)),
    }


def pictures() -> dict[str, Figure]:
    """The page's figures, by file name."""
    found = read()
    lines = {along: growth_lines(found, along, fixed) for along, fixed in AXES}
    titled = {a: {TITLES[m]: line for m, line in own.items()} for a, own in lines.items()}
    return {"growth": figures.growth(titled)}


def made(found: dict) -> str:
    """Which parts were measured where, with what and when."""
    places: dict[str, dict[str, list[str]]] = {}
    for part, own in ((part, own["made"]) for part, own in found.items()):
        where = [own["machine"]["processor"], threads(own["threads"]), own["machine"]["system"]]
        where += [f"{name} {version}" for name, version in own["versions"].items()]
        places.setdefault(", ".join(where), {}).setdefault(own["date"], []).append(part)
    told = [
        f"{where}: " + ", ".join(f"{', '.join(parts)} on {day}" for day, parts in days.items())
        for where, days in places.items()
    ]
    return "; ".join(told)


def gigabytes(count: float | None) -> str:
    return "not known" if count is None else f"{count / 1e9:.2f} GB"


# Tables -------------------------------------------------------------------------------------------


def limits_table(found: dict) -> pd.DataFrame:
    """What the machine was measured to do at best, and what share of it each step reached."""
    limits, forward = found["limits"], found["limits"]["forward"]
    peak, bandwidth = limits["matrix_product"], limits["bandwidth"]
    of_peak = f"{forward['operations'] / peak:.0%} of the matrix products' peak"
    rows = {
        f"matrix product, {forward['dtype']}": (f"{peak / 1e9:.0f} GFLOP/s", ""),
        "packed forward pass": (f"{forward['tokens']:,.0f} tokens/s", of_peak),
        "copy in memory": (f"{bandwidth / 1e9:.1f} GB/s", ""),
    }
    for row in found["merging"]["beside"]:
        if "bytes" in row:
            speed = row["bytes"] / row["seconds"]
            share = f"{speed / bandwidth:.0%} of the bandwidth"
            rows[f"merge {row['name']}"] = (f"{speed / 1e9:.1f} GB/s of factors", share)
    return pd.DataFrame(rows, index=["measured", "share"]).T.rename_axis("step")


def beside_table(found: dict) -> pd.DataFrame:
    """Every comparison with a peer: both medians and their ratio."""
    rows = pd.DataFrame(found["merging"]["beside"]).set_index("name")
    columns = {
        "peer": rows["peer"],
        "of": rows["of"],
        "tipmini, s": rows["seconds"].map("{:.3g}".format),
        "peer, s": rows["peer_seconds"].map("{:.3g}".format),
        "ratio": rows["ratio"].map("{:.3f}".format),
    }
    return pd.DataFrame(columns).rename_axis("tipmini")


def evaluation_table(found: dict) -> pd.DataFrame:
    """Every task with tipmini's model and with lm-eval's, and all of them."""
    rows = pd.DataFrame(found["evaluation"]["tasks"]).T
    rows.loc["all"] = rows.sum()
    ours, peer, decided = rows["ours_seconds"], rows["peer_seconds"], rows["decided"]
    columns = {
        "examples": ("{:.0f}", rows["rows"]),
        "tokens needed": ("{:,.0f}", rows["needed"]),
        "computed": ("{:,.0f}", rows["ours_tokens"]),
        "by `hf`": ("{:,.0f}", rows["peer_tokens"]),
        "seconds": ("{:.1f}", ours),
        "of `hf`": ("{:.1f}", peer),
        "times faster": ("{:.2f}", peer / ours),
        "of the peak": ("{:.0%}", rows["ours_tokens"] / ours / tokens_at_peak(found)),
        "same": ("{:.1%}", rows["same"] / rows["rows"]),
        "same, decided": ("{:.1%}", rows["same_decided"] / decided),
        "`hf` and itself": ("{:.1%}", rows["itself"] / rows["rows"]),
    }
    table = pd.DataFrame({name: own.map(form.format) for name, (form, own) in columns.items()})
    table["same, decided"] += decided.map(" of {:.0f}".format)
    return table.rename(TITLES).rename_axis("task")


def tokens_at_peak(found: dict) -> float:
    """Tokens a second of the blocks, were they done at the speed of matrix products alone."""
    return found["limits"]["matrix_product"] / (2 * found["evaluation"]["parameters"])


def calibration_table(found: dict) -> pd.DataFrame:
    """Seconds and memory of both procedures for the same norms."""
    row = found["calibration"]
    columns = {
        "seconds": [f"{row['seconds']:.1f}", f"{row['peer_seconds']:.1f}"],
        "memory": [gigabytes(row["bytes"]), gigabytes(row["peer_bytes"])],
    }
    told = f"{row['rows']} examples of {TITLES[row['task']]}"
    sides = pd.Index(["tipmini", "Wanda's procedure"], name=told)
    return pd.DataFrame(columns, index=sides)


# How time grows -----------------------------------------------------------------------------------


def growth_lines(found: dict, along: str, fixed: str) -> dict[str, tuple[list, list]]:
    """{method: (numbers, seconds)} of the points between which only `along` differs."""
    points = pd.DataFrame(found["merging"]["growth"])
    points = points[points[fixed] == points[fixed].mode()[0]].sort_values(along, kind="stable")
    lines = points.groupby("method", sort=False)
    return {method: (own[along].tolist(), own["seconds"].tolist()) for method, own in lines}


def slopes(found: dict, along: str, fixed: str) -> str:
    """The exponents of growth, method by method, in words."""
    lines = growth_lines(found, along, fixed)
    return ", ".join(
        f"{exponent(*line):.2f} for {TITLES[method]}" for method, line in lines.items()
    )


def exponent(numbers: list, taken: list) -> float:
    r"""$\alpha$ of seconds $\propto n^\alpha$, by least squares of the logarithms."""
    return float(np.polyfit(np.log(numbers), np.log(taken), 1)[0])
