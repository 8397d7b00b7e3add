"""Files of learnt weights: for each adapter and module the number that its scaling is times."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, FiniteFloat, ValidationError

from tipmini.errors import TipminiError
from tipmini.models.files import one_line, parse_json
from tipmini.models.sealed import unsealed

if TYPE_CHECKING:  # a dry run compares modules, without torch
    from torch import Tensor

    from tipmini.models.adapter import LoraAdapter
    from tipmini.models.peft_folder import AdapterHeader

ByModule = dict[str, dict[str, float]]  # adapter's name -> module -> weight


class Made(BaseModel, extra="allow"):
    """What they were learnt of; more is said for the reader."""

    identity: str
    adapters: dict[str, str]  # name -> `adapter_digest`


class LearntWeights(BaseModel, extra="forbid"):
    weights: dict[str, dict[str, FiniteFloat]]
    made: Made


def adapter_digest(adapter: "LoraAdapter") -> str:
    """SHA-256 of the factors' values, wherever and in whatever precision they are stored."""

    def digest(tensor: "Tensor") -> str:
        own = tensor.detach().cpu().float().contiguous()
        return hashlib.sha256(own.numpy().tobytes()).hexdigest()

    factors = sorted(adapter.factors.items())
    values = [(module, f.scaling, digest(f.a), digest(f.b)) for module, f in factors]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(file: Path) -> LearntWeights:
    """Raises TipminiError, one line, for a file that is missing, damaged or none of these."""
    try:
        return LearntWeights.model_validate(parse_json(unsealed(file.read_bytes())))
    except OSError as error:
        raise TipminiError(f"{file}: cannot be read ({one_line(error)})") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {one_line(first['msg'])}"
    except ValueError as error:
        what = one_line(error)
    raise TipminiError(f"{file}: not a file of learned weights: {what}")


def weights_of(file: Path, adapters: "Sequence[tuple[str, LoraAdapter]]") -> list[dict[str, float]]:
    """The weights of each of the adapters, by path, found by their factors' values.

    Adapters of equal factors take theirs in turn. Raises TipminiError for an adapter that the
    weights were not learnt with.
    """
    found, weights = read(file), []
    names: dict[str, list[str]] = {}
    for name in sorted(found.weights.keys() & found.made.adapters.keys()):
        names.setdefault(found.made.adapters[name], []).append(name)
    for path, adapter in adapters:
        own = names.get(adapter_digest(adapter))
        if not own:
            raise _not_learnt(file, path)
        weights.append(found.weights[own.pop(0) if len(own) > 1 else own[0]])
    return weights


def refuse_unlearnt(file: Path, adapters: "Sequence[tuple[str, AdapterHeader]]") -> list:
    """Raise TipminiError for an adapter whose modules are none that weights were learnt for, which
    is what can be told before its numbers are read; so there are no weights to return."""
    known = [own.keys() for own in read(file).weights.values()]
    for path, adapter in adapters:
        if adapter.factors.keys() not in known:
            raise _not_learnt(file, path)
    return []


def _not_learnt(file: Path, path: str) -> TipminiError:
    return TipminiError(f"{file}: not learned with {path}; run `tipmini weigh` with it")


def told(weights: Iterable[float]) -> str:
    """An adapter's weights in a few words."""
    every = list(weights)
    return f"{min(every):.2f} to {max(every):.2f}, mean {sum(every) / len(every):.2f}"
