"""What a request names, opened: whole for a merge, by the headers alone for a dry run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tipmini import base_folder
from tipmini.base_folder import BaseFolder, open_base
from tipmini.bases import common_base
from tipmini.commands.merge_request import Request
from tipmini.peft_write import refuse_taken
from tipmini.tensor_file import TensorFile

if TYPE_CHECKING:
    from tipmini.adapter import LoraAdapter
    from tipmini.adapter_header import AdapterHeader

    Adapter = LoraAdapter | AdapterHeader


@dataclass(frozen=True)
class Inputs:
    """Adapters whole or as headers; everything else is read when it is needed."""

    adapters: list[Any]
    norms: list[TensorFile] | None
    grams: list[TensorFile] | None
    weights: str | list  # as `tm.merge` takes them
    base: BaseFolder | None  # of --into
    base_model: str | None  # what all adapters belong to

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of every module that is merged."""
        factors = [item for adapter in self.adapters for item in adapter.factors.items()]
        return {module: pair.shape for module, pair in factors}


def open_inputs(
    request: Request,
    load: "Callable[[Path], Adapter]",
    learnt: "Callable[[Path, Mapping[str, Adapter]], list]",
) -> Inputs:
    """Open all inputs; raises TipminiError for one that can't be read or doesn't fit the base.

    load: of an adapter's folder. learnt: the adapters' weights of a file.
    """
    adapters = {str(path): load(path) for path in request.adapters}
    named = {path: adapter.base_model for path, adapter in adapters.items()}
    weights = request.weights
    inputs = Inputs(
        [adapters[str(path)] for path in request.adapters],
        _tensor_files(request.norms),
        _tensor_files(request.grams),
        learnt(weights, adapters) if isinstance(weights, Path) else weights,
        open_base(request.into) if request.into else None,
        request.base_model or common_base(named),
    )
    if inputs.base:
        inputs.base.check(inputs.shapes)
    return inputs


def _tensor_files(paths: list[Path] | None) -> list[TensorFile] | None:
    return None if paths is None else [TensorFile(path) for path in paths]


def refuse_out(request: Request, inputs: Inputs) -> None:
    """Raise TipminiError, before the long part, for a folder that the result can't go into."""
    if inputs.base:
        base_folder.refuse_taken(request.out, inputs.base.size)
    else:
        refuse_taken(request.out)


def describe(request: Request, inputs: Inputs) -> dict[str, object]:
    """What is merged how into what."""
    return {
        "out": str(request.out),
        "into": str(request.into) if request.into else None,
        "method": request.method,
        "options": request.options,
        "seed": request.seed,
        "weights": str(request.weights) if isinstance(request.weights, Path) else request.weights,
        "adapters": [str(path) for path in request.adapters],
        "modules": len(inputs.shapes),
    }
