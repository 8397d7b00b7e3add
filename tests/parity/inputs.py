"""What both sides of a case are given: random adapters of two modules, all from one seed."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from unittest import mock

import torch
from torch import Tensor

from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors
from tipmini.papers.dare import named_generator

QUERY, VALUE = MODULES = tuple(f"model.layers.0.self_attn.{n}" for n in ("q_proj", "v_proj"))


@dataclass(frozen=True)
class Inputs:
    """One adapter for each weight; the query's delta is of `shape`, the value's half as high.

    tied: factors of a few small halves, so that equal magnitudes and sums of 0 are frequent.
    opposed: every adapter is the first or its negative in turn, so that two of them cancel.
    """

    seed: int
    shape: tuple[int, int] = (24, 40)
    rank: int = 4
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    density: float = 0.5
    tied: bool = False
    opposed: bool = False

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        weights = " ".join(f"{weight:g}" for weight in self.weights)
        kind = ", ties" * self.tied + ", opposed" * self.opposed
        return f"{shape}, rank {self.rank}, weights {weights}, density {self.density:g}{kind}"

    @property
    def names(self) -> list[str]:
        return [f"adapter{place}" for place in range(len(self.weights))]

    @property
    def weight(self) -> dict[str, float]:
        return dict(zip(self.names, self.weights, strict=True))

    @property
    def drop_rate(self) -> float:
        """1 - density as one writes it: 0.1 for 0.9, not 0.09999999999999998."""
        return round(1 - self.density, 12)

    @cached_property
    def adapters(self) -> dict[str, LoraAdapter]:
        """Scalings 2, 1, 1/2, ...; powers of two, which no file rounds."""
        generator = torch.Generator().manual_seed(self.seed)
        adapter = lambda scaling: LoraAdapter(  # noqa: E731
            {module: self._factors(module, scaling, generator) for module in MODULES}
        )
        if not self.opposed:
            return {name: adapter(2.0 / 2**place) for place, name in enumerate(self.names)}
        first = adapter(1.0)
        negative = first.map(lambda _, factors: replace(factors, b=-factors.b))
        return dict(zip(self.names, itertools.cycle((first, negative)), strict=False))

    def _factors(self, module: str, scaling: float, generator: torch.Generator) -> LoraFactors:
        height, width = self.shape[0] // (2 if module == VALUE else 1), self.shape[1]
        a = torch.randn(self.rank, width, generator=generator)
        b = torch.randn(height, self.rank, generator=generator)
        if self.tied:
            a, b = a.mul(2).round().div(2), b.mul(2).round().div(2)
        return LoraFactors(a, b, scaling)

    def deltas(self, module: str) -> list[Tensor]:
        return [adapter.delta(module) for adapter in self.adapters.values()]

    @cached_property
    def grams(self) -> dict[str, dict[str, Tensor]]:
        """Gram matrices X^T X of random inputs, three rows a channel, in float64."""
        generator, width = torch.Generator().manual_seed(self.seed + 1), self.shape[1]
        draw = lambda: torch.randn(3 * width, width, generator=generator, dtype=torch.float64)  # noqa: E731
        gram = lambda rows: rows.T @ rows  # noqa: E731
        return {name: {module: gram(draw()) for module in MODULES} for name in self.names}

    def base(self, module: str) -> Tensor:
        """A weight for the adapters to stand on."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn(self.deltas(module)[0].shape, generator=generator)

    def rows(self) -> Tensor:
        """Inputs of a module, five rows."""
        return torch.randn(5, self.shape[1], generator=torch.Generator().manual_seed(self.seed + 3))

    def _draw(self, tensor: str, name: str) -> Tensor:
        """For the tensor "<module>", "<module>.lora_A" or "<module>.lora_B" of one adapter."""
        module, _, letter = tensor.partition(".lora_")
        factors = self.adapters[name].factors[module]
        shape = {"": factors.shape, "A": factors.a.shape, "B": factors.b.shape}[letter]
        return torch.rand(*shape, generator=named_generator(self.seed, name, tensor))

    @contextmanager
    def drawing(self, tensors: Iterable[str]) -> Iterator[None]:
        """Hand a peer the draws that tipmini makes: one for each tensor of each adapter, in turn.

        Only what is left of randomness is replaced, `torch.bernoulli` and `torch.rand_like`.
        """
        draws = itertools.starmap(self._draw, itertools.product(tensors, self.names))

        def bernoulli(probability: Tensor, **_: object) -> Tensor:
            return (next(draws) >= self.drop_rate).to(probability.dtype)

        with (
            mock.patch.object(torch, "bernoulli", bernoulli),
            mock.patch.object(torch, "rand_like", lambda *_, **__: next(draws)),
        ):
            yield


FACTORS = [f"{module}.lora_{letter}" for module in MODULES for letter in "AB"]
