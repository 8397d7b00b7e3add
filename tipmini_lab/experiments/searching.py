"""The search among the sub-adapters of a trained super-network: NSGA-II, by pymoo."""

import json
import time
from dataclasses import dataclass

import numpy as np
import torch

from tipmini_lab.experiments.supernet import Configuration, SuperNet
from tipmini_lab.results import store


@dataclass(frozen=True)
class SearchRecipe:
    """NSGA-II: so many configurations in each generation."""

    population: int = 12
    generations: int = 6


@dataclass(frozen=True)
class Found:
    """Every configuration that a search looked at, in its order, and what it cost."""

    configurations: list[Configuration]
    scores: list[float]
    macs: list[float]
    seconds: float

    def best(self, most: float) -> int:
        """The number of the highest score of at most so many operations; the fewest, of equals."""
        fitting = [n for n, macs in enumerate(self.macs) if macs <= most]
        return max(fitting, key=lambda n: (self.scores[n], -self.macs[n]))

    def smallest(self, least: float) -> int:
        """The number of the fewest operations with at least this score; the best, of equals."""
        fitting = [n for n, score in enumerate(self.scores) if score >= least]
        return min(fitting, key=lambda n: (self.macs[n], -self.scores[n]))


def search(net: SuperNet, recipe: SearchRecipe) -> Found:
    """NSGA-II over held-out score (more) and operations (fewer), by the shared weights.

    The first generation has the midpoint, the whole and the smallest, and else what is drawn. What
    was looked at stands in a file beside the network: a killed search goes on there.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    axes, free = net.space.axes, net.space.free
    file = net.out / "search.json"
    kept = json.loads(file.read_text()) if file.is_file() else {"seconds": 0.0, "seen": []}
    known = {tuple(c): (s, m) for c, s, m in kept["seen"]}
    order: list[Configuration] = []

    def look(configuration: Configuration) -> tuple[float, float]:
        if configuration not in known:
            start = time.perf_counter()
            net.apply(configuration)
            known[configuration] = net.score(), net.facts()["macs"]
            kept["seconds"] += time.perf_counter() - start
            kept["seen"].append([configuration, *known[configuration]])
            store.write(file, json.dumps(kept))
        order.append(configuration)
        return known[configuration]

    class Trade(ElementwiseProblem):
        def __init__(self) -> None:
            most = np.array([len(axes[n]) - 1 for n in free])
            super().__init__(n_var=len(free), n_obj=2, xl=0, xu=most, vtype=int)

        def _evaluate(self, x, out, *_, **__):
            chosen = [axis[0] for axis in axes]
            for number, place in zip(free, x, strict=True):
                chosen[number] = axes[number][int(place)]
            score, macs = look(tuple(chosen))
            out["F"] = [-score, macs]

    ends = net.space.ends()
    drawn = (torch.Generator().manual_seed(net.recipe.seed * 1009 + n) for n in range(10**6))
    start = [ends[name] for name in ("midpoint", "whole", "smallest")][: recipe.population]
    start += [net.space.sample(next(drawn)) for _ in range(recipe.population - len(start))]
    places = [[axes[n].index(configuration[n]) for n in free] for configuration in start]
    whole = {"vtype": int, "repair": RoundingRepair()}
    algorithm = NSGA2(
        pop_size=recipe.population,
        sampling=np.array(places),
        crossover=SBX(prob=0.9, eta=3.0, **whole),
        mutation=PM(prob=1.0, eta=3.0, **whole),
        eliminate_duplicates=True,
    )
    minimize(Trade(), algorithm, ("n_gen", recipe.generations), seed=net.recipe.seed)
    scores, macs = zip(*(known[c] for c in order), strict=True)
    return Found(order, list(scores), list(macs), kept["seconds"])
