"""TIP's sentence on DARE: how far adapters' updates overlap before and after, of the real ones."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

import tipmini as tm
from tipmini.models.factors import LoraFactors
from tipmini.papers.dare import dare, named_generator
from tipmini_lab import paths
from tipmini_lab.book.claims.checks import Evidence, here
from tipmini_lab.book.claims.choices import choice

Update = Callable[[str, str, LoraFactors], Tensor]  # of an adapter, a module and its factors


MEASURES = {
    "cosine": "by the cosine of two updates",
    "places": "by the positions at which both are not zero",
    "cross": "by their inner product",
    "others": "by the size of all other updates' sum",
}
choice("measured")(lambda own, known: {w: n for n, w in MEASURES.items() if n != own})
choice("dropped_from")(lambda own, known: {"dropped from the updates": "delta"})


@here
def diluted(
    evidence: Evidence,
    *,
    drop_rate: float,
    measured: str = "cosine",
    dropped_from: str = "factors",
    seed: int = 0,
) -> dict:
    r"""How DARE changes what n adapters' updates D have in common, each as times of before.

    dropped_from: "factors", elements of B and A, as the merges of this book; or "delta", those of
    D = sBA.
    places: positions at which two updates are both not zero. cosine: the sum of |cos(D_s, D_t)|
    over pairs. cross: that of <D_s, D_t>. others: the mean over adapters of |sum of all other D|^2.
    expected_*: what follows from independent draws. They keep <D_s, D_t>, and raise |D|^2 to
    |D|^2 / q or, for factors, where element (i, j) is s sum_r B_ir A_rj, by
    (1 / q^2 - 1) s^2 sum_r |b_r|^2 |a_r|^2; q = 1 - p is the chance of an element to be kept.
    """
    before, after, expected = grams(evidence, drop_rate, dropped_from, seed)
    found, derived = of_grams(after, before), of_grams(expected, before)
    found |= {f"expected_{name}": value for name, value in derived.items()}
    return found | {"value": found[measured], "adapters": len(before[0])}


def of_grams(after: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Of inner products and counts of common places, both (n, n)."""
    first, second = (torch.triu_indices(*[len(before[0])] * 2, offset=1)).unbind()

    def of(gram: Tensor, places: Tensor) -> dict[str, Tensor]:
        norms = gram.diagonal()
        pairs = gram[first, second]
        return {
            "places": places[first, second].sum(),
            "cosine": (pairs / (norms[first] * norms[second]).sqrt()).abs().sum(),
            "cross": pairs.sum(),
            "others": gram.sum() - 2 * gram.sum(0) + norms,  # (n,)
        }

    one, two = of(*after), of(*before)
    return {name: (one[name] / two[name]).mean().item() for name in one}


@cache
def grams(
    evidence: Evidence, drop_rate: float, dropped_from: str, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Inner products and common places of the updates: before, after one draw, and expected."""
    folder = evidence.profile.adapters
    adapters = {
        task: tm.load_adapter(paths.REPOSITORY / folder.format(task=task))
        for task in evidence.profile.tasks
    }
    kept = 1 - drop_rate

    def drawn(task: str, module: str, pair: LoraFactors) -> Tensor:
        drawing = named_generator(seed, task, module)
        if dropped_from == "delta":
            return dare(pair.delta(), drop_rate, generator=drawing)
        a, b = (dare(one.float(), drop_rate, generator=drawing) for one in (pair.a, pair.b))
        return LoraFactors(a, b, pair.scaling).delta()

    before = _products(adapters, lambda task, module, pair: pair.delta())
    gram, places = before[0].clone(), before[1].clone()
    ranks = [pair.rank for adapter in adapters.values() for pair in adapter.factors.values()]
    if dropped_from == "delta":
        gram.diagonal().div_(kept)
        places *= kept**2
    else:
        noise = [_spread(adapter) for adapter in adapters.values()]
        gram.diagonal().add_((kept**-2 - 1) * torch.tensor(noise, dtype=gram.dtype))
        places *= (1 - (1 - kept**2) ** max(ranks)) ** 2  # some term of an element's sum is left
    return [before, _products(adapters, drawn), (gram, places)]


def _products(adapters: dict[str, tm.LoraAdapter], update: Update) -> tuple[Tensor, Tensor]:
    """(n, n) inner products of the updates, and in how many places two are both not zero."""
    gram, places = torch.zeros(2, len(adapters), len(adapters), dtype=torch.float64)
    for module in next(iter(adapters.values())).factors:
        rows = [update(task, module, own.factors[module]) for task, own in adapters.items()]
        flat = torch.stack([row.flatten() for row in rows])
        there = (flat != 0).float()
        gram += (flat @ flat.T).double()
        places += (there @ there.T).double()
    return gram, places


def _spread(adapter: tm.LoraAdapter) -> float:
    r"""$s^2 \sum_r |b_r|^2 |a_r|^2$ over all modules: b_r a column of B, a_r a row of A."""
    return sum(
        pair.scaling**2
        * (pair.b.double().square().sum(0) * pair.a.double().square().sum(1)).sum().item()
        for pair in adapter.factors.values()
    )
