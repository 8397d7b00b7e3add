"""The fidelity of a merge, against dense float64 matrices."""

import pytest
import torch
from tiny import MODULES, random_adapter, random_norms

import tipmini as tm
from tipmini.methods.merge import Fidelity

CASES = [
    ("linear", {}),
    ("cat", {}),
    ("svd", {"rank": 2}),
    ("dare", {"on": "delta"}),
    ("tip", {}),
    ("tip", {"on": "delta", "sign": -1}),
]


def dense(merged):
    return merged.double() if isinstance(merged, torch.Tensor) else merged.delta().double()


@pytest.mark.parametrize(("method", "options"), CASES)
def test_as_dense_matrices_say(method, options):
    adapters = [random_adapter(seed) for seed in range(3)]
    norms = [random_norms(adapter, 5) for adapter in adapters]
    given = {"weights": [1.0, 0.5, -0.7], "norms": norms}
    _, update = tm.merge_update(adapters, method, **given, **options)
    _, exact = tm.merge_update(adapters, "cat", weights=given["weights"])
    fidelity = Fidelity(update, exact)
    off = norm = 0.0
    for module in fidelity:
        terms = zip(given["weights"], adapters, strict=True)
        total = sum(w * a.scaling[module] * dense_product(a, module) for w, a in terms)
        apart = dense(fidelity[module]) - total
        wanted = (apart.norm() / total.norm()).item()
        assert fidelity.modules()[module] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        off, norm = off + apart.norm() ** 2, norm + total.norm() ** 2
    assert len(fidelity) == len(MODULES)
    assert fidelity.whole() == pytest.approx((off / norm).sqrt().item(), rel=1e-4, abs=1e-6)


def dense_product(adapter, module):
    pair = adapter.factors[module]
    return pair.b.double() @ pair.a.double()


def test_an_exact_sum_of_zero_has_no_ratio():
    one = random_adapter(1, modules=MODULES[:1])
    for method in ("linear", "cat"):
        _, update = tm.merge_update([one, one], method, weights=[1.0, -1.0])
        _, exact = tm.merge_update([one, one], "cat", weights=[0.0, 0.0])
        fidelity = Fidelity(update, exact)
        fidelity[MODULES[0]]
        assert fidelity.whole() is None and fidelity.modules() == {MODULES[0]: None}
