r"""A LoRA adapter as data: two factors and a scaling for every module.

Notation (LoRA, Hu et al., 2022): A is (r, k), B is (d, r), the scaling s is alpha / r, or
alpha / sqrt(r) with rsLoRA; the adapter adds s B A to the (d, k) weight of its module.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.models.base_folder import BaseFolder
from tipmini.models.factors import LoraFactors
from tipmini.models.files import largest, one_line
from tipmini.models.identity import natural_order
from tipmini.models.peft_folder import (
    PICKLE,
    PREFIX,
    WEIGHTS,
    AdapterHeader,
    adapter_folder,
    factor_names,
    read_adapter_header,
    refuse_numbers,
    write_folder,
)
from tipmini.models.peft_settings import lora_config


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """LoRA factors by module, modules named as in the base model, e.g.
    "model.layers.0.self_attn.q_proj".

    base_model and task_type are PEFT's base_model_name_or_path and task_type, as given; so are
    revision, auto_mapping and fan_in_fan_out. heads: the tensors of modules that were trained
    whole, e.g. "score.weight".
    """

    factors: Mapping[str, LoraFactors]
    base_model: str | None = None
    task_type: str | None = "CAUSAL_LM"
    revision: str | None = None
    auto_mapping: Mapping[str, str | None] | None = None  # the model's class, without a task type
    fan_in_fan_out: bool = False  # whether the base stores its weights as (inputs, outputs)
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()  # what PEFT calls the modules of the heads

    @property
    def modules(self) -> list[str]:
        """The modules' names; layer 2 comes before layer 10."""
        return natural_order(self.factors)

    @property
    def scaling(self) -> dict[str, float]:
        """What B A is multiplied by, for every module."""
        return {module: self.factors[module].scaling for module in self.modules}

    @property
    def ranks(self) -> dict[str, int]:
        return {module: self.factors[module].rank for module in self.modules}

    def delta(self, module: str) -> Tensor:
        """The update of one module's weight: scaling * B @ A, (d, k), in float32 at least."""
        if module not in self.factors:
            raise TipminiError(
                f"the adapter has no module {module!r}; it has {', '.join(self.modules)}"
            )
        return self.factors[module].delta()

    def map(self, change: Callable[[str, LoraFactors], LoraFactors]) -> "LoraAdapter":
        """The same adapter with `change(module, factors)` for the factors of every module."""
        changed = {module: change(module, self.factors[module]) for module in self.modules}
        return replace(self, factors=changed)

    def of_one_rank(self) -> "LoraAdapter":
        """The same updates with one rank and a scaling of 1 everywhere, by rows of zeros.

        Tools that read one rank and one lora_alpha for all (llama.cpp, vLLM) then compute what
        PEFT does.
        """
        rank = max(self.ranks.values())

        def fill(_: str, pair: LoraFactors) -> LoraFactors:
            a = torch.nn.functional.pad(pair.a, (0, 0, 0, rank - pair.rank))
            b = pair.b if pair.scaling == 1 else pair.b * pair.scaling
            return LoraFactors(a, torch.nn.functional.pad(b, (0, rank - pair.rank)), 1.0)

        return self.map(fill)

    def rounded(self, dtype: torch.dtype | None) -> "LoraAdapter":
        """With the factors as they are stored in a dtype; None keeps theirs.

        Raises TipminiError for a number that is too large for the dtype.
        """

        def stored(module: str, pair: LoraFactors) -> LoraFactors:
            found = replace(pair, a=pair.a.to("cpu", dtype), b=pair.b.to("cpu", dtype))
            for before, after in ((pair.a, found.a), (pair.b, found.b)):
                if largest(after) == math.inf > largest(before):
                    raise TipminiError(f"{module} overflows in {dtype}; take bfloat16 or float32")
            return found

        return self.map(stored)

    def save(
        self,
        path: str | PathLike,
        dtype: torch.dtype | None = None,
        card: str | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write a PEFT folder that `PeftModel.from_pretrained` loads, all at once or not at all.

        dtype: what the factors are stored in; None keeps theirs. card: the text of a README.md
        beside them (see `model_card`). overwrite: replace a folder that holds other files (a
        README.md without our tag is one), which is refused else. Raises TipminiError when there is
        no module, when a number overflows in the dtype, when PEFT's settings can't hold a name or
        scaling, or when it can't be written.
        """
        if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TipminiError(f"dtype must be a floating one of 16, 32 or 64 bits, got {dtype}")
        if not self.factors:
            raise TipminiError(f"{path}: the adapter has no module, so there is nothing to save")
        tensors = {}
        for module, pair in self.rounded(dtype).factors.items():
            for name, factor in zip(factor_names(module), (pair.a, pair.b), strict=True):
                tensors[name] = factor
        for name, tensor in self.heads.items():
            tensors[f"{PREFIX}{name}"] = tensor.to("cpu", dtype)
        kept = {"task_type": self.task_type, "base_model_name_or_path": self.base_model}
        if self.heads:
            kept["modules_to_save"] = list(self.modules_to_save)
        for name in ("revision", "auto_mapping", "fan_in_fan_out"):
            if value := getattr(self, name):
                kept[name] = value
        config = lora_config(self.ranks, self.scaling, **kept)
        write_folder(Path(path), config, tensors, card, overwrite=overwrite)


def load_adapter(
    path: str | PathLike,
    *,
    heads: bool = False,
    base: BaseFolder | None = None,
    pickle: bool = False,
) -> LoraAdapter:
    """Read a PEFT folder; the factors keep their stored dtype.

    Where there is no such folder, the path can be an id of the hub: see `hub.folder_of`.

    Only safetensors and only plain LoRA on linear modules: a pickle, a missing or damaged file,
    NaN or Inf, a factor without its partner, and DoRA, bias or embedding tensors each raise a
    TipminiError of one line that names the file (`inspect_folder` lists all that is wrong).
    rsLoRA, rank_pattern and alpha_pattern are read as PEFT reads them, and tensors that PEFT
    would leave out, as their module is no target, are refused.

    heads: read modules that were trained whole as well, which are refused else. base: what whole
    layers that PEFT saved beside the factors are compared with; they must be the base's own.
    pickle: read adapter_model.bin where there is no safetensors file, of which PyTorch then takes
    tensors alone and no code.
    """
    folder = adapter_folder(path, pickle=pickle)
    if pickle and not (folder / WEIGHTS).exists() and (folder / PICKLE).is_file():
        with tempfile.TemporaryDirectory() as work:
            file = Path(work) / WEIGHTS
            save_file(_unpickled(folder / PICKLE), file)
            return _loaded(folder, read_adapter_header(folder, heads=heads, weights=file), base)
    return _loaded(folder, read_adapter_header(folder, heads=heads), base)


def _unpickled(file: Path) -> dict[str, Tensor]:
    """{name: tensor} of a pickle that holds nothing else, no more of it than the file has."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start == b"version ":
            told = "a Git-LFS pointer in its place; fetch it with git lfs pull"
            raise TipminiError(f"{file}: {told}")
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TipminiError(f"{file}: cannot be read ({one_line(error)})") from None
    except (MemoryError, TipminiError):
        raise
    except Exception as error:  # of nine kinds at least, by what stands in the file
        # Its own words advise to run the file, so the line has its kind alone; the cause is kept.
        told = f"not a pickle of tensors alone ({type(error).__name__}), so it is not read"
        raise TipminiError(f"{file}: {told}; save it as safetensors") from error
    most = 64 * file.stat().st_size  # bytes: no tensor that is a small one, drawn out
    tensors = {}
    for name, tensor in found.items() if isinstance(found, dict) else ():
        plain = isinstance(name, str) and name.isprintable() and isinstance(tensor, Tensor)
        plain = plain and (tensor.layout, tensor.device.type) == (torch.strided, "cpu")
        if not plain or tensor.is_quantized or tensor.numel() * tensor.element_size() > most:
            raise TipminiError(f"{file}: {one_line(repr(name))} is no plain tensor of a name")
        tensors[name] = tensor.detach().contiguous().clone()
    if not tensors:
        raise TipminiError(f"{file}: not a mapping of names to tensors")
    return tensors


def _loaded(folder: Path, header: AdapterHeader, base: BaseFolder | None) -> LoraAdapter:
    # Not mapped: who writes into a file that we have mapped ends our process.
    tensors = load(header.file.path.read_bytes())
    refuse_numbers(folder, header, {name: largest(tensor) for name, tensor in tensors.items()})
    for name, own in header.in_base(base).items():
        if not torch.equal(tensors[name].float(), base.files[own][own].float()):
            told = f"{header.file.path}: {name} differs from {base.folder}'s"
            raise TipminiError(f"{told}: the whole layer was trained, and would be lost")
    factors = {
        module: LoraFactors(*(tensors[name] for name in header.names[module]), known.scaling)
        for module, known in header.factors.items()
    }
    known = header.settings
    return LoraAdapter(
        factors,
        known.base_model_name_or_path,
        known.task_type,
        known.revision,
        known.auto_mapping,
        bool(known.fan_in_fan_out),
        {name.removeprefix(PREFIX): tensors[name] for name in header.heads},
        tuple(known.modules_to_save or ()) if header.heads else (),
    )
