"""What every merge of the packaged adapters costs: seconds, memory, and the rank that comes out.

What is learnt or runs the model is left out: how long that took is stored with its cells.
"""

from bench.timing import median_seconds, peak_memory, seconds
from tipmini_lab.book import frontier
from tipmini_lab.experiments.catalogue import Inputs, catalogue
from tipmini_lab.experiments.experiment import Bundled, Lab, Merge

ROUNDS = 3


def measure(lab: Lab) -> dict:
    """{variant: seconds of the merge, seconds of its adapters' inputs, peak in bytes, rank}."""
    own, known, inputs, found = Bundled(lab.profile), catalogue(), {}, {}
    for name in frontier.variants(known, lab.profile):
        merge = own.experiment(name)
        if merge.is_learnt or merge.variant.needs == "rows":
            continue
        chosen = merge.variant.measured
        if merge.variant.needs and chosen not in inputs:
            inputs[chosen] = sum(_measuring(own, task, chosen) for task in merge.tasks)
        found[name] = _cost(merge) | {"inputs": inputs[chosen] if merge.variant.needs else 0.0}
    return {"merges": found}


def _measuring(lab: Lab, task: str, chosen: Inputs) -> float:
    texts = lab.norms.texts(task, chosen)
    told = task, texts, chosen.statistic, chosen.source
    return seconds(lambda: lab.norms.measure(*told))


def _cost(merge: Merge) -> dict:
    rank = max(merge.merge().ranks.values())  # what it reads is stored before it is timed
    peak = peak_memory(merge.merge)
    return {"seconds": median_seconds(merge.merge, ROUNDS), "peak": peak, "rank": rank}
