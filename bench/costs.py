"""What every merge of the packaged adapters costs: seconds, memory, and the rank that comes out.

Inputs are measured on a few examples of each task, and their time is told of all by the letters.
What is learnt or runs the model is left out: how long that took is stored with its cells.
"""

import torch
from torch import Tensor

from bench.timing import median_seconds, peak_memory, seconds
from tipmini_lab.book import frontier
from tipmini_lab.experiments.catalogue import Inputs, Variant, catalogue
from tipmini_lab.experiments.lab import Bundled, Lab
from tipmini_lab.experiments.variants import Merge

ROUNDS = 3
ROWS = 16  # of a task, whose inputs are measured


def measure(lab: Lab) -> dict:
    """{variant: seconds of the merge, seconds of its adapters' inputs, peak in bytes, rank}, on
    one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"threads": 1, "merges": _merges(Bundled(lab.profile))}
    finally:
        torch.set_num_threads(threads)


def _merges(lab: Lab) -> dict[str, dict]:
    _ = lab.lm  # loaded before anything is timed
    inputs: dict[Inputs, float] = {}
    read: dict[tuple[str, Inputs], dict[str, Tensor]] = {}
    lab.norms.of = lambda task, chosen: read[task, chosen]  # what was just measured
    found = {}
    for name, variant in frontier.variants(catalogue()).items():
        if variant.distill or variant.weights == "learnt" or variant.needs == "rows":
            continue
        if variant.needs:
            variant = variant.changed(inputs=variant.inputs.model_copy(update={"rows": ROWS}))
            chosen = variant.measured
            if chosen not in inputs:
                inputs[chosen] = sum(_time(lab, t, chosen, read) for t in lab.profile.tasks)
        found[name] = _cost(lab, variant) | {"inputs": inputs[chosen] if variant.needs else 0.0}
    return found


def _time(lab: Lab, task: str, few: Inputs, read: dict) -> float:
    """Seconds that the inputs of all of a task's examples take; those of the first are `read`."""
    every = lab.norms.texts(task, few.model_copy(update={"rows": None}))
    first = every[:ROWS]

    def measured() -> None:
        read[task, few] = lab.norms.measure(task, first, few.statistic, few.source)

    return seconds(measured) * sum(map(len, every)) / sum(map(len, first))


def _cost(lab: Lab, variant: Variant) -> dict:
    merge = Merge(lab, variant)
    rank = max(merge.merge().ranks.values())  # the adapters are read before anything is timed
    peak = peak_memory(merge.merge)
    return {"seconds": median_seconds(merge.merge, ROUNDS), "peak": peak, "rank": rank}
