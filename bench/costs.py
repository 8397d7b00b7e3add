"""What every merge of the packaged adapters costs: seconds, memory, and the rank that comes out.

What is learnt or runs the model is left out: how long that took is stored with its cells.
"""

from functools import cache

import torch

from bench.timing import median_seconds, peak_memory, seconds
from tipmini_lab.book import frontier
from tipmini_lab.experiments.catalogue import Inputs, catalogue
from tipmini_lab.experiments.experiment import Bundled, Lab, Merge

ROUNDS = 3


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
    lab.norms.of = cache(lab.norms.of)  # read once: it hashes what it reads
    _ = lab.lm  # loaded before anything is timed
    inputs, found = {}, {}
    for name in frontier.variants(catalogue()):
        merge = lab.experiment(name)
        if merge.is_learnt or merge.variant.needs == "rows":
            continue
        chosen = merge.variant.measured
        if merge.variant.needs and chosen not in inputs:
            inputs[chosen] = sum(_measuring(lab, task, chosen) for task in merge.tasks)
        found[name] = _cost(merge) | {"inputs": inputs[chosen] if merge.variant.needs else 0.0}
    return found


def _measuring(lab: Lab, task: str, chosen: Inputs) -> float:
    told = task, lab.norms.texts(task, chosen), chosen.statistic, chosen.source
    return seconds(lambda: lab.norms.measure(*told))


def _cost(merge: Merge) -> dict:
    rank = max(merge.merge().ranks.values())  # its inputs are there before it is timed
    peak = peak_memory(merge.merge)
    return {"seconds": median_seconds(merge.merge, ROUNDS), "peak": peak, "rank": rank}
