"""A step of several passes is the step of one: how many fit into memory is not seen in a result."""

import pytest
import torch
from prunable import SMALL

from tipmini_lab.evaluation.packing import batches
from tipmini_lab.experiments.pruning import Run
from tipmini_lab.experiments.recipe import PruningRecipe

pytestmark = pytest.mark.usefixtures("small_runs")

LENGTH = 12  # tokens of every row, so that passes are cut by their number alone
WHOLE, ONE_BY_ONE = 10**6, LENGTH  # padded tokens of a pass


def stepped(base, tmp_path, tokens: int, steps: int, **settings) -> tuple[Run, list[float]]:
    one = Run(
        base,
        PruningRecipe(**SMALL | {"length": LENGTH, "tokens": tokens} | settings),
        tmp_path / "out",
        "float32",
    )
    return one, [one.step(number) for number in range(steps)]


@pytest.mark.parametrize("tokens", [ONE_BY_ONE, 2 * ONE_BY_ONE, WHOLE])
def test_passes_are_as_many_as_the_tokens_ask_for(base, tmp_path, tokens):
    one, _ = stepped(base, tmp_path, tokens, 0)
    lengths = [len(one.rows[i].row) for i in one.steps[0]]
    assert len(batches(lengths, tokens)) == {ONE_BY_ONE: 3, 2 * ONE_BY_ONE: 2, WHOLE: 1}[tokens]


@pytest.mark.parametrize("method", ["lora-guided", "vanilla"])
@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"reduction": "released"}])
def test_importances_and_updates_do_not_show_the_passes(base, tmp_path, method, settings):
    settings = settings | {"method": method}
    (first, losses), (other, others) = (
        stepped(base, tmp_path, tokens, 3, **settings) for tokens in (WHOLE, ONE_BY_ONE)
    )
    assert losses == pytest.approx(others, rel=1e-5)
    for name, average in first.pruner.averages.items():
        assert average.max() > 0
        torch.testing.assert_close(other.pruner.averages[name], average, rtol=2e-3, atol=1e-9)
        assert torch.equal(other.pruner.masks[name], first.pruner.masks[name])
    moved = 0.0
    for name, factor in first.factors.items():
        torch.testing.assert_close(other.factors[name], factor, rtol=1e-3, atol=1e-4)
        moved += factor.abs().sum().item() if "lora_B" in name else 0.0
    assert moved > 0


def test_a_batch_weighs_every_row_alike_however_it_is_cut(base, tmp_path):
    """A pass of one row counts a third of a batch of three, not as much as a pass of two."""
    (whole, _), (cut, _) = (stepped(base, tmp_path, t, 0) for t in (WHOLE, 2 * ONE_BY_ONE))
    for one in (whole, cut):
        one.backward([one.rows[i] for i in one.steps[0]])
    grads = [{n: p.grad for n, p in one.factors.items()} for one in (whole, cut)]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-7)
