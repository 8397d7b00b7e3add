"""A base whose weights are whole numbers of 4 bits, with one scale and zero point a group.

Rounded to nearest between the least and the most of a group, as torch's and torchao's weight-only
int4 stores it (SQFT takes GPTQ, which chooses the same kind of numbers by the inputs). The
arithmetic here is in the model's own dtype; `packed` hands the very same numbers to torch's kernel.
"""

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.papers.elastic import codes_on

BITS, GROUP = 4, 64  # weights of a row that share a scale


def grid(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """The scale and the zero point of every group, both (d, k / group) float32.

    weight is (d, k). The zero point is a whole number from 0 to 15, so that a weight of 0 stays 0:
    what is sparse stays sparse. Raises TipminiError where a row has no whole groups.
    """
    rows, columns = weight.shape
    if columns % group:
        raise TipminiError(f"rows of {columns} weights have no whole groups of {group}")
    groups = weight.float().view(rows, -1, group)
    low, high = groups.amin(2).clamp_max_(0), groups.amax(2).clamp_min_(0)
    scale = ((high - low) / (2**BITS - 1)).clamp_min_(1e-9)
    return scale, torch.round(-low / scale).clamp_(0, 2**BITS - 1)


def packed(weight: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """What `torch._weight_int4pack_mm_for_cpu` takes for a weight that lies on its grid.

    weight is (d, k), scale and zero (d, g). The kernel computes (q - 8) s + t, with t = (8 - z) s.
    """
    codes = codes_on(weight.float(), scale, zero, BITS).to(torch.int32)
    offsets = torch.stack([scale, (2 ** (BITS - 1) - zero) * scale], dim=-1)  # (d, g, 2)
    told = offsets.transpose(0, 1).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(codes, 1), told
