"""The adapter as data: factors, deltas, scaling, the order of its modules."""

import math

import pytest
import torch
from tiny import MODULES, random_adapter

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, LoraFactors, natural_order


def test_delta_worked_by_hand():
    factors = LoraFactors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]]), scaling=0.5)
    adapter = LoraAdapter({"m": factors})
    assert adapter.delta("m").tolist() == [[1.5, 3.0], [-0.5, -1.0]]
    assert (adapter.modules, adapter.scaling, adapter.ranks) == (["m"], {"m": 0.5}, {"m": 1})
    assert factors.shape == (2, 2)


def test_delta_of_16_bit_factors_is_computed_in_float32():
    adapter = random_adapter(0, dtype=torch.bfloat16)
    delta, factors = adapter.delta(MODULES[0]), adapter.factors[MODULES[0]]
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, 2.0 * (factors.b.float() @ factors.a.float()))


def test_modules_come_in_the_order_of_the_layers():
    names = [f"model.layers.{i}.{m}" for i in range(12) for m in ("q", "v")]
    assert natural_order(reversed(names)) == names
    assert natural_order(["a.b", "1.b", "a", "a.1"]) == ["1.b", "a", "a.1", "a.b"]


@pytest.mark.parametrize("scaling", [math.nan, math.inf])
def test_a_scaling_that_is_no_number_is_refused(scaling):
    with pytest.raises(TipminiError, match="scaling must be finite"):
        LoraFactors(torch.ones(2, 3), torch.ones(4, 2), scaling)


def test_an_unknown_module_is_refused():
    with pytest.raises(TipminiError, match=r"no module 'q'; it has model\.layers\.0"):
        random_adapter(0).delta("q")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), r"got \(2, 3\) and \(4, 3\)"),
        (torch.ones(2), torch.ones(4, 2), r"lora_A must be \(r, k\)"),
        (torch.ones(0, 3), torch.ones(4, 0), "rank is 0"),
        (torch.ones(2, 3, dtype=torch.int8), torch.ones(4, 2), "floating"),
    ],
)
def test_factors_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(TipminiError, match=message):
        LoraFactors(a, b, 1.0)


def test_a_raised_digit_in_a_name_is_no_number():
    pair = LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    assert LoraAdapter({"x1\u00b23": pair, "x1": pair}).modules == ["x1", "x1\u00b23"]
