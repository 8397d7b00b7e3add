"""results/rehearsal.json, and results/gpu/*.json, as the book and the terminal show them."""

import json

import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.tables import markdown_table
from tipmini_lab.results.runs import gigabytes

WALKED = {  # path -> for the reader
    "calibrate": "measure the adapters' input norms",
    "evaluate": "score questions with choices",
    "generate": "generate answers",
    "weigh": "learn a merge's weights",
    "distill": "distil a merge",
    "prune": "prune by LoRAPrune",
    "train": "train an adapter",
}
TABLE_1 = ("calibrate", "evaluate", "generate")  # the paths that the paper's table takes


def read() -> dict:
    """The stored rehearsal; TipminiError where there is none."""
    if not paths.REHEARSAL.is_file():
        raise TipminiError(f"{paths.REHEARSAL}: missing; run `tipmini rehearse`")
    return json.loads(paths.REHEARSAL.read_text())


def page_values() -> dict[str, str]:
    """Markdown for every {{ rehearsal_... }} of book/a40.md."""
    found = read()
    steps, merges = found["steps"], found["merges"]
    made, gpu = found["made"], found["gpu"]
    by_method = {name: own["seconds"] for name, own in merges.items() if name != "into"}
    longest = max(by_method, key=by_method.__getitem__)
    shares = [step["efficiency"] for step in steps.values()]
    return {
        "rehearsal": markdown_table(table(found)),
        "rehearsal_hours": f"{sum(steps[name]['seconds'] for name in TABLE_1) / 3600:.1f}",
        "rehearsal_memory": gigabytes(max(steps[name]["peak"] for name in TABLE_1)),
        "rehearsal_gpu": gpu["name"],
        "rehearsal_products": f"{gpu['peaks']['bfloat16'] / 1e12:g}",
        "rehearsal_bandwidth": f"{gpu['peaks']['bytes'] / 1e9:g}",
        "rehearsal_efficiency": f"{min(shares):.0%} to {max(shares):.0%}",
        "rehearsal_longest": f"`{longest}` takes {duration(by_method.pop(longest))}",
        "rehearsal_others": duration(sum(by_method.values())),
        "rehearsal_into": duration(merges["into"]["seconds"]),
        "rehearsal_resident": gigabytes(found["resident"]),
        "rehearsal_made": f"{made['machine']['processor']}, {made['date']}",
        "gpu_runs": gpu_runs(),
    }


def table(found: dict) -> pd.DataFrame:
    """A row a path: how much it reads, what that takes."""
    rows = {
        WALKED.get(name, name): {
            "of": step["of"],
            "tokens": f"{step['tokens']:,}",
            "TFLOP": f"{step['flops'] / 1e12:,.0f}",
            "memory": gigabytes(step["peak"]),
            "projected time": duration(step["seconds"]),
        }
        for name, step in found["steps"].items()
    }
    return pd.DataFrame(rows).T.rename_axis("path")


def told(found: dict) -> str:
    """The same for a terminal."""
    made, gpu = found["made"], found["gpu"]
    into = duration(found["merges"]["into"]["seconds"])
    took = f"{duration(found['seconds'])} of its time, {gigabytes(found['resident'])} of memory"
    lines = [
        f"{found['model']}, random weights, {found['dtype']}; projected for {gpu['name']}",
        table(found).to_string(),
        f"merging {into} to write a base; each method's seconds are in {paths.REHEARSAL}",
        f"walked on {made['machine']['processor']}: {took}",
    ]
    return "\n".join(lines)


def gpu_runs() -> str:
    """What `scripts/gpu-check` stored of GPUs, or that there is nothing of them yet."""
    files = sorted(paths.GPU.glob("*.json")) if paths.GPU.is_dir() else []
    every = [json.loads(file.read_text()) for file in files]
    every = [run for run in every if run["device"] == "cuda"]
    if not every:
        return "No GPU has been measured yet: nothing stands in `results/gpu`."
    rows = [
        {
            "machine": f"{run['machine']['gpu']}, {run['dtype']}, random weights",
            "path": WALKED.get(name, name),
            "tokens a second": f"{step['tokens'] / step['seconds']:,.0f}",
            "memory": gigabytes(step["peak"]),
        }
        for run in every
        for name, step in run["steps"].items()
    ]
    return markdown_table(pd.DataFrame(rows).set_index("machine"))


def duration(seconds: float) -> str:
    """In the unit that a reader would take."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
