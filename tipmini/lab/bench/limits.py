"""What this machine can do at best, and how near a packed forward pass comes to it."""

import torch
from torch import nn

from tipmini.lab.bench.timing import bandwidth, matmul_peak, median_seconds
from tipmini.lab.experiments import Lab
from tipmini.lab.model import scored_targets
from tipmini.lab.packing import flatten, pack


def measure(lab: Lab) -> dict:
    """Operations a second of matrix products, bytes a second of a copy, and a forward pass."""
    return {
        "matrix_product": matmul_peak(getattr(torch, lab.dtype)),
        "bandwidth": bandwidth(),
        "forward": forward(lab),
    }


@torch.inference_mode()
def forward(lab: Lab) -> dict[str, float | str]:
    """Tokens and operations a second of one full pass of packed questions."""
    questions = [pack(list(range(1, 65)), [[5] * 17] * 4) for _ in range(16)]
    batch = flatten(questions)
    blocks = block_parameters(lab.base)
    head = lab.base.lm_head.weight.numel()
    operations = 2 * (blocks * batch.tokens.numel() + head * len(batch.reads))
    taken = median_seconds(lambda: scored_targets(lab.base, batch))
    speed = {"tokens": batch.tokens.numel() / taken, "operations": operations / taken}
    return {"dtype": lab.dtype} | speed


def block_parameters(model: nn.Module) -> int:
    """Weights that every token meets: those of the blocks, without embedding and head."""
    return sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)
