"""Weights of the adapters in a merge: rules by name, numbers, or learnt ones, from a file."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from tipmini.errors import TipminiError, is_finite
from tipmini.models.files import one_line, parse_json

if TYPE_CHECKING:  # rules are checked without torch
    from tipmini.models.adapter import LoraAdapter, LoraFactors

Weight = float | Mapping[str, float]  # of an adapter: one, or one for each of its modules
Weights = str | Iterable[Weight] | Mapping[str, Weight] | None

RULES = "sum, mean, sqrt or a total such as 0.7/T"
TOTAL = re.compile(r"([0-9]{0,9}\.?[0-9]{1,9})/T")


def is_rule(text: str) -> bool:
    if text in ("sum", "mean", "sqrt"):
        return True
    found = TOTAL.fullmatch(text)
    return found is not None and float(found[1]) > 0


def equal_weight(rule: str, count: int) -> float:
    """The weight that a rule gives each of T = `count` adapters.

    "sum" is 1, "mean" 1 / T, "sqrt" 1 / sqrt(T), and "0.7/T" what adds up to 0.7. Raises
    TipminiError for anything else.
    """
    if not is_rule(rule):
        raise TipminiError(f"weights must be numbers, {RULES}, got {rule!r}")
    named = {"sum": 1.0, "mean": 1 / count, "sqrt": 1 / math.sqrt(count)}
    return named[rule] if rule in named else float(rule.removesuffix("/T")) / count


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Raise TipminiError for a weight that RegMean can't take; by the adapters' names."""
    for name, weight in weights.items():
        if weight < 0:
            raise TipminiError(f"regmean needs weights from 0 on, adapter {name} has {weight}")


def weighed(name: str, adapter: "LoraAdapter", weight: Weight) -> tuple["LoraAdapter", float]:
    """The adapter and its one weight; weights of modules go into their scalings."""
    if not isinstance(weight, Mapping):
        if not is_finite(weight):
            raise TipminiError(f"the weight of adapter {name} must be finite, got {weight}")
        return adapter, float(weight)
    for module in adapter.factors.keys() ^ weight.keys():
        raise TipminiError(f"the weights of adapter {name} must be of its modules; see {module}")
    for module, own in weight.items():
        if not is_finite(own):
            raise TipminiError(f"the weight of {module} of {name} must be finite, got {own}")

    def scaled(module: str, pair: "LoraFactors") -> "LoraFactors":
        return replace(pair, scaling=pair.scaling * weight[module])

    return adapter.map(scaled), 1.0


# Files of learnt weights, one for each adapter and module -----------------------------------------
if TYPE_CHECKING:  # a dry run compares modules, without torch
    from torch import Tensor

    from tipmini.models.adapter import LoraAdapter
    from tipmini.models.inspection import AdapterHeader

ByModule = dict[str, dict[str, float]]  # adapter's name -> module -> weight


class Made(BaseModel):
    """What they were learnt of; more is said for the reader."""

    model_config = ConfigDict(extra="allow")

    identity: str
    adapters: dict[str, str]  # name -> `adapter_digest`


class LearntWeights(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weights: dict[str, dict[str, FiniteFloat]]
    made: Made


def adapter_digest(adapter: "LoraAdapter") -> str:
    """SHA-256 of the factors' values, wherever and in whatever precision they are stored."""
    factors = sorted(adapter.factors.items())
    values = [(module, f.scaling, _digest(f.a), _digest(f.b)) for module, f in factors]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest(tensor: "Tensor") -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


def read(file: Path) -> LearntWeights:
    """Raises TipminiError, one line, for a file that is missing or none of these."""
    try:
        return LearntWeights.model_validate(parse_json(file.read_bytes()))
    except OSError as error:
        raise TipminiError(f"{file}: cannot be read ({one_line(error)})") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {one_line(first['msg'])}"
    except ValueError as error:
        what = one_line(error)
    raise TipminiError(f"{file}: not a file of learnt weights: {what}")


def weights_of(file: Path, adapters: "Mapping[str, LoraAdapter]") -> list[dict[str, float]]:
    """The weights of each of the adapters (by path), found by their factors' values.

    Raises TipminiError for an adapter that the weights were not learnt with.
    """
    found = read(file)
    names = {digest: name for name, digest in found.made.adapters.items()}
    chosen = {path: names.get(adapter_digest(adapter)) for path, adapter in adapters.items()}
    for path, name in chosen.items():
        if name not in found.weights:
            raise _not_learnt(file, path)
    return [found.weights[name] for name in chosen.values()]


def refuse_unlearnt(file: Path, adapters: "Mapping[str, AdapterHeader]") -> list:
    """Raise TipminiError for an adapter whose modules are none that weights were learnt for, which
    is what can be told before its numbers are read; so there are no weights to return."""
    known = [own.keys() for own in read(file).weights.values()]
    for path, adapter in adapters.items():
        if adapter.factors.keys() not in known:
            raise _not_learnt(file, path)
    return []


def _not_learnt(file: Path, path: str) -> TipminiError:
    return TipminiError(f"{file}: not learnt with {path}; run `tipmini weigh` with it")


def told(weights: Iterable[float]) -> str:
    """An adapter's weights in a few words."""
    every = list(weights)
    return f"{min(every):.2f} to {max(every):.2f}, mean {sum(every) / len(every):.2f}"
