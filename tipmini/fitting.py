"""Whether what is merged fits together, told by shapes alone: of tensors, or of their headers."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from tipmini.errors import TipminiError


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class Factors(Shaped, Protocol):
    """Of one module; the shape is the delta's, (d, k)."""

    @property
    def rank(self) -> int: ...


T = TypeVar("T", bound=Shaped)


def check_shapes(module: str, factors: Mapping[str, Factors]) -> None:
    """factors: by the names of the adapters that have the module."""
    shapes = {name: pair.shape for name, pair in factors.items()}
    if len(set(shapes.values())) > 1:
        raise TipminiError(f"adapters of different base models: {module} is {_listed(shapes)}")


def check_ranks(module: str, factors: Mapping[str, Factors]) -> None:
    """What adding factors up asks for."""
    ranks = {name: pair.rank for name, pair in factors.items()}
    if len(set(ranks.values())) > 1:
        raise TipminiError(f"linear needs equal ranks, {module} has {_listed(ranks)}; try cat")


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{value} in {name}" for name, value in values.items())


def input_norm(norms: Mapping[str, T], module: str, name: str, channels: int) -> T:
    """The norms of what a tensor of the module reads: A x for B, x for everything else."""
    key = f"{module}.lora_B" if name == "b" else module
    shape = tuple(norms[key].shape) if key in norms else "nothing"
    if shape != (channels,):
        raise TipminiError(
            f"norms need {(channels,)} under {key!r}, got {shape}; use calibrate_adapter"
        )
    return norms[key]


def input_gram(grams: Mapping[str, T] | None, module: str, channels: int) -> T:
    """The Gram matrix of what the module reads."""
    found = grams.get(module) if grams else None
    if found is None:
        raise TipminiError(f"regmean needs the Gram matrix of {module}; calibrate with 'gram'")
    if found.shape != (channels, channels):
        need = (channels, channels)
        raise TipminiError(f"{module} needs a finite Gram matrix {need}, got {tuple(found.shape)}")
    return found
