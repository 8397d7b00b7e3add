r"""DARE: drop elements at random and rescale the survivors.

Source: Yu et al., "Language models are super Mario" (ICML 2024). Three incompatible rules carry
the name; `rescale` tells the two ways to rescale apart, and what is dropped (the factors A and B,
as PEFT's `dare_linear` does, or the full delta) is the caller's choice.
"""

import hashlib

import torch
from torch import Tensor

from tipmini.errors import TipminiError, check_options


def dare(
    delta: Tensor,
    drop_rate: float,
    *,
    generator: torch.Generator,
    rescale: str | None = "expected",
) -> Tensor:
    r"""Keep each element with probability $1 - p$, independently, and rescale what is kept.

    delta has any shape; the result has its shape and dtype. p = drop_rate lies in [0, 1).
    rescale: "expected" multiplies by $1 / (1 - p)$, so that the expectation is delta (the authors,
    and PEFT with density $1 - p$); "l1" by the ratio of the L1 norms before and after (mergekit);
    None leaves the survivors as they are. The draws come from `generator` alone, in float32, so a
    mask does not depend on delta's dtype. Raises TipminiError for an argument outside its range.
    """
    check_options("dare", {"drop_rate": drop_rate, "rescale": rescale})
    if not isinstance(generator, torch.Generator):
        raise TipminiError(f"dare needs a torch.Generator, got {type(generator).__name__}")
    draws = torch.rand(delta.shape, generator=generator, device=generator.device)
    keeps = draws.ge_(drop_rate).to(delta)  # 1 and 0: a product has no branch
    kept = delta * keeps
    if rescale == "expected":
        return kept.div_(1 - drop_rate) if kept.is_floating_point() else kept / (1 - drop_rate)
    if rescale == "l1":
        return kept * _l1_ratio(delta, kept)
    return kept


def named_generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the names alone.

    One for every (adapter, tensor): the result is then the same in any order of iteration and
    with any number of workers. SHA-256, because Python's own `hash` changes from run to run.
    """
    digest = hashlib.sha256(repr((int(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def _l1_ratio(before: Tensor, after: Tensor) -> float:
    """The factor that restores the L1 norm; 1 where nothing survived (0 / 0)."""
    norm = after.abs().sum(dtype=torch.float64).item()
    return before.abs().sum(dtype=torch.float64).item() / norm if norm else 1.0
