"""What both sides of a case are given: random adapters of two modules, all from one seed."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from unittest import mock

import torch
from torch import Tensor

from tipmini.models.adapter import LoraAdapter, LoraFactors
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
        if self.opposed:
            return self._opposed(generator)
        return {
            name: LoraAdapter({m: self._factors(m, 2.0 / 2**place, generator) for m in MODULES})
            for place, name in enumerate(self.names)
        }

    def _opposed(self, generator: torch.Generator) -> dict[str, LoraAdapter]:
        first = LoraAdapter({m: self._factors(m, 1.0, generator) for m in MODULES})
        negative = first.map(lambda _, factors: replace(factors, b=-factors.b))
        return {name: (first, negative)[i % 2] for i, name in enumerate(self.names)}

    def _factors(self, module: str, scaling: float, generator: torch.Generator) -> LoraFactors:
        height, width = self.shape[0] // (2 if module == VALUE else 1), self.shape[1]
        a = torch.randn(self.rank, width, generator=generator)
        b = torch.randn(height, self.rank, generator=generator)
        if self.tied:
            a, b = a.mul(2).round().div(2), b.mul(2).round().div(2)
        return LoraFactors(a, b, scaling)

    @cached_property
    def grams(self) -> dict[str, dict[str, Tensor]]:
        """Gram matrices X^T X of random inputs, three rows a channel, in float64."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        width = self.shape[1]

        def gram() -> Tensor:
            rows = torch.randn(3 * width, width, generator=generator, dtype=torch.float64)
            return rows.T @ rows

        return {name: {module: gram() for module in MODULES} for name in self.names}

    def deltas(self, module: str) -> list[Tensor]:
        return [adapter.delta(module) for adapter in self.adapters.values()]

    def base(self, module: str) -> Tensor:
        """A weight for the adapters to stand on."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn(self.deltas(module)[0].shape, generator=generator)

    def rows(self) -> Tensor:
        """Inputs of a module, five rows."""
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randn(5, self.shape[1], generator=generator)

    def _shape_of(self, name: str, tensor: str) -> torch.Size:
        """Of the tensor "<module>", "<module>.lora_A" or "<module>.lora_B" of one adapter."""
        module, _, letter = tensor.partition(".lora_")
        factors = self.adapters[name].factors[module]
        shapes = {"": factors.shape, "A": factors.a.shape, "B": factors.b.shape}
        return torch.Size(shapes[letter])

    @contextmanager
    def drawing(self, tensors: Iterable[str]) -> Iterator[None]:
        """Hand a peer the draws that tipmini makes: one for each tensor of each adapter, in turn.

        Only what is left of randomness is replaced, `torch.bernoulli` and `torch.rand_like`.
        """
        draws = (
            torch.rand(self._shape_of(name, tensor), generator=self._generator(name, tensor))
            for tensor, name in itertools.product(tensors, self.names)
        )

        def bernoulli(probability: Tensor, **_: object) -> Tensor:
            return (next(draws) >= self.drop_rate).to(probability.dtype)

        with (
            mock.patch.object(torch, "bernoulli", bernoulli),
            mock.patch.object(torch, "rand_like", lambda *_, **__: next(draws)),
        ):
            yield

    def _generator(self, name: str, tensor: str) -> torch.Generator:
        return named_generator(self.seed, name, tensor)


FACTORS = [f"{module}.lora_{letter}" for module in MODULES for letter in "AB"]
