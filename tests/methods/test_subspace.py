"""TSV-M, Iso-C and WUDI: against slow dense versions, and against core space as it is defined."""

import pytest
import torch
from tiny import HIDDEN, MODULES, random_adapter

import tipmini as tm
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors

ADAPTERS = {n: random_adapter(i, dtype=torch.float64) for i, n in enumerate("abc")}
WEIGHTS = {"a": 1.0, "b": -0.3, "c": 0.8}
Q = MODULES[0]


def deltas(module: str, adapters: dict = ADAPTERS) -> list[torch.Tensor]:
    return [WEIGHTS[name] * adapter.delta(module) for name, adapter in adapters.items()]


def merged(method: str, adapters: dict = ADAPTERS, **options) -> LoraAdapter:
    return tm.merge(adapters, method, weights=WEIGHTS, **options)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


# TSV-M and Iso-C ----------------------------------------------------------------------------------
def flattened(matrix: torch.Tensor) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    own = s > 1e-9 * s[0]
    return s[own].mean() * u[:, own] @ vh[own]


def nearest_orthonormal(x: torch.Tensor) -> torch.Tensor:
    """By the inverse root of X^T X, which is not how the method does it."""
    values, vectors = torch.linalg.eigh(x.T @ x)
    return x @ vectors @ torch.diag(values**-0.5) @ vectors.T


def slow_tsv(matrices: list[torch.Tensor], stay: int) -> torch.Tensor:
    us, ss, vs = [], [], []
    for matrix in matrices:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        us.append(u[:, :stay]), ss.append(s[:stay]), vs.append(vh[:stay].T)
    left, right = (nearest_orthonormal(torch.cat(x, dim=1)) for x in (us, vs))
    return left @ torch.diag(torch.cat(ss)) @ right.T


@pytest.mark.parametrize("isotropic", [False, True])
def test_tsv_is_the_dense_one_without_null_directions(isotropic):
    found = merged("tsv", isotropic=isotropic)
    for module in MODULES:
        slow = slow_tsv(deltas(module), stay=4)  # of 32 or 16 channels there is room for 4 of each
        close(found.delta(module), flattened(slow) if isotropic else slow)


def test_where_there_is_no_room_the_largest_stay():
    """16 channels of v_proj, and four of the rank 7."""
    adapters = {n: random_adapter(i, rank=7, dtype=torch.float64) for i, n in enumerate("abc")}
    found = merged("tsv", adapters)
    for module, stay in zip(MODULES[:2], (7, 5), strict=True):
        close(found.delta(module), slow_tsv(deltas(module, adapters), stay))
        assert found.ranks[module] == 3 * stay


def in_core_space(module: str, combine) -> torch.Tensor:
    """As its authors define it: bases of all A and all B, cores, and back."""
    pairs = [adapter.factors[module] for adapter in ADAPTERS.values()]
    right = torch.linalg.svd(torch.cat([p.a for p in pairs]), full_matrices=False).Vh
    left = torch.linalg.svd(torch.cat([p.b for p in pairs], dim=1), full_matrices=False).U
    cores = [
        w * p.scaling * (left.T @ p.b) @ (p.a @ right.T)
        for w, p in zip(WEIGHTS.values(), pairs, strict=True)
    ]
    return left @ combine(cores) @ right


def authors_tsv(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Their release: an equal share of all singular vectors of each, null ones among them."""
    stay = min(matrices[0].shape) // len(matrices)
    us, ss, vhs = zip(*(torch.linalg.svd(m, full_matrices=False) for m in matrices), strict=True)
    left, right = torch.cat([u[:, :stay] for u in us], 1), torch.cat([v[:stay] for v in vhs])
    polar = lambda x: (lambda u, s, vh: u @ vh)(*torch.linalg.svd(x, full_matrices=False))  # noqa: E731
    return polar(left) @ torch.diag(torch.cat([s[:stay] for s in ss])) @ polar(right)


def authors_iso(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Their release: the mean over all singular values, those that are 0 among them."""
    u, s, vh = torch.linalg.svd(sum(matrices), full_matrices=False)
    return s.mean() * u @ vh


@pytest.mark.parametrize("module", MODULES[:2])
def test_they_are_what_the_authors_code_makes_in_core_space(module):
    close(merged("tsv").delta(module), in_core_space(module, authors_tsv))
    close(merged("iso").delta(module), in_core_space(module, authors_iso))


def test_of_dense_updates_the_authors_code_makes_another_thing():
    """32 channels, of which three adapters of rank 4 reach 12."""
    iso, dense = merged("iso").delta(Q), authors_iso(deltas(Q))
    u, _, vh = torch.linalg.svd(sum(deltas(Q)))
    u, vh = u[:, :12], vh[:12]
    close(u @ (u.T @ dense @ vh.T) @ vh, 12 / HIDDEN * iso)  # the zeros are in the mean ...
    assert torch.linalg.matrix_rank(dense) == HIDDEN  # ... and come out as large as the others
    tsv, dense = merged("tsv").delta(Q), authors_tsv(deltas(Q))
    assert (tsv - dense).norm() > 0.1 * tsv.norm()


def test_iso_is_flat():
    found = merged("iso")
    for module in MODULES:
        values = torch.linalg.svdvals(found.delta(module))[:12]
        expected = torch.linalg.svdvals(sum(deltas(module)))[:12].mean()
        close(values, expected.expand(12))
        close(found.delta(module), flattened(sum(deltas(module))))


def test_one_adapter_of_rank_one_stays_itself():
    one = random_adapter(0, rank=1)
    found = tm.merge([one], "iso")
    for module in MODULES:
        torch.testing.assert_close(found.delta(module), one.delta(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["tsv", "iso"])
def test_an_adapter_twice_adds_no_direction(method):
    """A polar factor of dependent columns is none of arbitrary ones beside."""
    twice = {"a": ADAPTERS["a"], "b": ADAPTERS["a"]}
    found = tm.merge(twice, method, weights=1.0).delta(Q)
    assert torch.linalg.matrix_rank(found, rtol=1e-9) == 4
    rows = torch.linalg.svd(ADAPTERS["a"].delta(Q)).Vh[:4]
    close(found @ rows.T @ rows, found)


# WUDI ---------------------------------------------------------------------------------------------
def interference(found: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    return sum(((found - m) @ m.T).square().sum() / m.square().sum() for m in matrices)


@pytest.mark.parametrize("module", MODULES[:2])
def test_wudi_is_the_least_squares_of_its_objective(module):
    """All rows of $(\\Delta - \\Delta_i) \\Delta_i^T / ||\\Delta_i||$ as one system, min norm."""
    own = deltas(module)
    left = torch.cat([m / m.norm() for m in own])
    right = torch.cat([m @ m.T / m.norm() for m in own])
    slow = torch.linalg.lstsq(left, right, driver="gelsd").solution.T
    found = merged("wudi").delta(module)
    close(found, slow)
    least = interference(found, own)
    assert least < interference(sum(own), own) and least < interference(sum(own) / 3, own)
    generator = torch.Generator().manual_seed(0)
    step = 1e-3 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
    assert least < interference(found + step, own)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_ridge_is_the_pull_towards_the_sum(ridge):
    own = deltas(Q)
    grams = [m.T @ m / m.square().sum() for m in own]
    rho = ridge * 3 / 12  # three traces of 1 over the twelve dimensions of the adapters' rows
    eye = rho * torch.eye(HIDDEN, dtype=torch.float64)
    slow = (
        sum(m @ (g + eye) for m, g in zip(own, grams, strict=True)) @ (sum(grams) + eye).inverse()
    )
    close(merged("wudi", ridge=ridge).delta(Q), slow)


def test_far_ridge_is_the_sum_and_far_steps_are_the_minimum():
    """As the authors': from the sum, gradient descent comes to the minimum with no null part."""
    own = deltas(Q)
    close(merged("wudi", ridge=1e12).delta(Q), sum(own))
    found, grams = sum(own), [m.T @ m / m.square().sum() for m in own]
    rate = 1 / torch.linalg.matrix_norm(sum(grams), 2)
    for _ in range(3000):
        found = found - rate * sum((found - m) @ g for m, g in zip(own, grams, strict=True))
    torch.testing.assert_close(merged("wudi").delta(Q), found, rtol=1e-4, atol=1e-4)


def test_orthogonal_rows_leave_every_update_as_it_is():
    eye = torch.eye(12, dtype=torch.float64)
    parts = [
        LoraAdapter({Q: LoraFactors(eye[4 * i : 4 * i + 4], pair.b, 2.0)})
        for i, pair in enumerate(adapter.factors[Q] for adapter in ADAPTERS.values())
    ]
    close(tm.merge(parts, "wudi").delta(Q), sum(part.delta(Q) for part in parts))
