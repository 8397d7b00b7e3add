"""Made-up outcomes of the declared prunings, and a made-up bench of them."""

import random

from tipmini_lab.book import pruning_costs
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments.declared import Grid, Planned
from tipmini_lab.results import store as storage
from tipmini_lab.results.store import Bundle, Cell


def cell(run: str, task: str, metric: str, values: list[float]) -> Cell:
    told = {"date": "2026-01-01", "machine": {"processor": "a CPU", "cores": 2}}
    told |= {"versions": {"torch": "2"}, "profile": "smoke", "seconds": 6.0}
    return Cell(
        key=f"{run}/{task}",
        inputs={},
        code={},
        method=run,
        task=task,
        metric=metric,
        dtype="bfloat16",
        **told,
        values=values,
    )


def losses(level: float, count: int = 16, seed: int = 0) -> list[float]:
    """Of windows: a level and the same differences between windows for every run."""
    drawn = random.Random(seed)
    return [level + drawn.uniform(-0.5, 0.5) for _ in range(count)]


def bundle(run: Planned, tasks: tuple[str, ...], level: float) -> Bundle:
    cells = [cell(run.name, corpus, "nll", losses(level)) for corpus in CORPORA]
    drawn = random.Random(run.name)
    if run.zero_shot:
        rows = lambda: [float(drawn.random() < 0.5) for _ in range(20)]  # noqa: E731
        cells += [cell(run.name, task, "acc", rows()) for task in tasks]
    facts: dict = {"removed_share": run.share, "removed_of_model": 0.8 * run.share}
    facts |= {"removed_heads": 0.0, "removed_channels": run.share, "seconds": 60.0}
    facts |= {"loss": [3.0, 3.2, 3.1], "gone": [0.0, run.share / 2, run.share]}
    return Bundle(name=run.name, title=run.title, settings={}, facts=facts, cells=cells)


def outcomes(grid: Grid, profile: str = "smoke") -> dict[str, Bundle]:
    """Every declared run; the more goes the worse, tuning helps, methods and seeds differ."""
    found = {}
    for run in grid.runs(profile).values():
        place = list(grid.titles()).index(run.method)
        seed = run.recipe.seed if run.recipe else 0
        place += 0.5 * run.longer
        level = 3 + run.share * (4 - 2 * run.tuned) * (1 + 0.02 * place) + 0.01 * seed
        found[run.name] = bundle(run, grid.tasks, level)
    return found


def stored(store, grid: Grid) -> None:
    for made in outcomes(grid).values():
        storage.keep(store, made)


def bench() -> dict:
    """As `benched.read` gives it."""
    cost = {
        name: {
            "model_bytes": size * 1_000_000,
            "step_bytes": step * 1_000_000,
            "rows_a_second": speed,
            "seconds": [96 / speed, 96 / speed],
        }
        for name, size, step, speed in (
            ("vanilla", 270, 520, 2.0),
            ("lora-guided", 270, 300, 3.0),
            ("lora-guided int8", 170, 300, 2.5),
            ("vanilla recomputed", 270, 270, 1.5),
            ("lora-guided recomputed", 270, 60, 2.0),
            ("lora-guided int8 recomputed", 170, 60, 1.6),
        )
    }
    counts = {"heads": lambda share: 30 * int(3 * share), "channels": lambda s: round(100 * s)}
    agreement = [
        {"kind": kind, "share": share, "reduction": reduction, "seed": seed}
        | {"groups": 90 if kind == "heads" else 100, "removed": gone(share)}
        | {"same": 1 - share * (0.6 + 0.05 * seed), "both": 0.7 if gone(share) else None}
        | {"chance_same": 1 - 2 * share * (1 - share), "chance_both": share}
        for kind, gone in counts.items()
        for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
        for reduction in ("paper", "released")
        for seed in range(3)
    ]
    loudest = [
        {"layer": layer, "lighter": 0.05 + layer / 30, "times": 100.0 / (layer + 1)}
        for layer in range(30)
    ]
    inference = [
        {"share": share, "removed": share, "merged": merged, "batch": batch, "prompt": 8}
        | {"seconds": [batch * (1 - share) * (1 if merged else 1.5) * f for f in (1, 1.1, 0.9)]}
        for share in (0.0, 0.2, 0.5)
        for merged in (True, False)
        for batch in (1, 8)
    ]
    sizes = {"task": "boolq", "dtype": "bfloat16", "length": 256, "rank": 8, "rows": 96}
    found = {
        "criteria": {"cost": cost, "rows_a_pass": 1, "repeats": 2},
        "masks": {"agreement": agreement, "loudest": loudest},
        "inference": {"inference": inference},
        "profile": profile(),
        "zeros": zeros(),
    }
    machine = {"processor": "a CPU", "cores": 2, "system": "Linux"}
    made = {"date": "2026-01-01", "machine": machine, "threads": 2, "versions": {"torch": "2"}}
    return {part: sizes | {"made": made} | own for part, own in found.items()}


def zeros() -> dict:
    """As `bench.pruning.zeros` gives it: no zeros in 2 s, sparse rows slower than that."""
    ways = {pruning_costs.DENSE: (0.0, 8, 2.0), pruning_costs.ROWS: (0.5, 8, 2.0)}
    ways |= {pruning_costs.TWO_OF_FOUR: (0.5, 8, 2.0), pruning_costs.CSR: (0.5, 12, 6.0)}
    ways |= {pruning_costs.SPARSER: (0.9, 3, 2.2), pruning_costs.GROUPS: (0.0, 4, 1.2)}
    passes = [
        {"way": way, "tokens": tokens, "zeros": share, "bytes": size}
        | {"seconds": [tokens * second, tokens * second * 1.1]}
        for way, (share, size, second) in ways.items()
        for tokens in (8, 1)
    ]
    merged = [
        {"adapter": task, "way": way, "before": 0.5, "after": after, "of_delta": 2 * after}
        for task, after in (("rte", 0.0), ("piqa", 0.001))
        for way in (pruning_costs.ROWS, pruning_costs.TWO_OF_FOUR)
    ]
    return {"passes": passes, "merged": merged, "refused": "Only CUDA."}


def profile() -> dict:
    """As `bench.pruning.profile` gives it."""
    names = [*pruning_costs.STEP_PARTS, pruning_costs.IMPORTANCES]
    taken = {"vanilla": (2.0, 1.0, 0.2, 0.5, 0.8, 0.3, 1.0, 0.2)}
    taken |= {"lora-guided": (2.0, 0.0, 0.0, 0.5, 0.8, 0.3, 1.0, 0.4)}
    steps = {
        name: {"parts": dict(zip(names, own, strict=True)), "seconds": sum(own) + 0.5}
        for name, own in taken.items()
    }
    passes = [
        {"share": share, "removed": share, "seconds": 5 - 5 * share}
        | {"parts": dict.fromkeys(pruning_costs.STEP_PARTS, 1 - share)}
        for share in (0.0, 0.5)
    ]
    at_peak = {pruning_costs.PRODUCTS: 1.6, pruning_costs.WEIGHTS: 0.8}
    return {"steps": steps, "at_peak": at_peak, "batch": 8, "prompt": 8, "passes": passes}
