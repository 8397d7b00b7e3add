"""The grid of 4 bits: zeros stay zeros, ends are met, and torch's own kernel computes the same."""

import pytest
import torch

from tipmini.errors import TipminiError
from tipmini.models import int4
from tipmini.papers.elastic import on_grid


def weight(rows: int = 32, columns: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, columns, generator=generator)
    return drawn * (torch.rand(rows, columns, generator=generator) < 0.5)


def test_a_group_worked_by_hand():
    """From -1 to 2 in steps of 0.2: zero lies at the fifth, and 0.33 goes to 0.4."""
    scale, zero = int4.grid(torch.tensor([[-1.0, 2.0, 0.0, 0.33]]), group=4)
    assert scale.item() == pytest.approx(0.2) and zero.item() == 5
    rounded = on_grid(torch.tensor([[-1.0, 2.0, 0.0, 0.33]]), scale, zero)
    assert rounded.tolist()[0] == pytest.approx([-1.0, 2.0, 0.0, 0.4])


def test_what_is_sparse_stays_sparse_and_no_weight_moves_by_more_than_a_step():
    whole = weight()
    scale, zero = int4.grid(whole)
    found = on_grid(whole, scale, zero)
    assert torch.equal(found == 0, (found == 0) | (whole == 0)) and (found[whole == 0] == 0).all()
    step = scale.repeat_interleave(int4.GROUP, 1)
    assert ((found - whole).abs() <= step).all()
    assert torch.allclose(on_grid(found, scale, zero), found, atol=1e-6)


def test_a_group_of_zeros_has_a_grid():
    scale, zero = int4.grid(torch.zeros(2, 64))
    assert (on_grid(torch.zeros(2, 64), scale, zero) == 0).all() and zero.eq(0).all()


def test_the_kernel_of_torch_computes_the_same_product():
    scale, zero = int4.grid(weight())
    found = on_grid(weight(), scale, zero)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    codes, told = int4.packed(found, scale, zero)
    product = torch._weight_int4pack_mm_for_cpu(x, codes, int4.GROUP, told)
    assert torch.allclose(product, x @ found.T, atol=1e-4)


def test_rows_without_whole_groups_are_refused():
    with pytest.raises(TipminiError, match="rows of 48 weights have no whole groups of 64"):
        int4.grid(torch.ones(2, 48))
