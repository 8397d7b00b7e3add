"""A PEFT adapter without its numbers: shapes, ranks and scalings, from the settings and the header.

All that `load_adapter` refuses but NaN, Inf and overflow is refused here; torch is not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.peft_config import FLOAT32_MAX, config_problems
from tipmini.peft_folder import CONFIG, WEIGHTS, read_settings, refuse, weights_file
from tipmini.peft_modules import is_targeted, scaling_of
from tipmini.peft_tensors import factor_names, modules_of, tensor_problems
from tipmini.strict import naming, one_line
from tipmini.tensor_file import TensorFile
from tipmini.tensor_header import Entry, read_header


@dataclass(frozen=True)
class FactorsHeader:
    """The stored A (r, k) and B (d, r) of one module, and its scaling."""

    a: Entry
    b: Entry
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k), the shape of the delta."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class AdapterHeader:
    """What is known of an adapter before its numbers are read; file holds these."""

    factors: Mapping[str, FactorsHeader]
    file: TensorFile
    base_model: str | None
    task_type: str | None


def read_adapter_header(folder: Path) -> AdapterHeader:
    """Raises TipminiError of one line that names the file; see `load_adapter`."""
    try:
        config = read_settings(folder)
        refuse(folder / CONFIG, config_problems(config))
        path = weights_file(folder)
        refuse(path, tensor_problems(read_header(path)))
        file = TensorFile(path)
    except OSError as error:
        raise TipminiError(f"{folder}: cannot be read ({one_line(error)})") from None
    with naming(folder / CONFIG):
        factors = {m: _factors(config, m, file.entries) for m in modules_of(file.entries)}
    return AdapterHeader(
        factors, file, config.get("base_model_name_or_path"), config.get("task_type")
    )


def _factors(config: dict, module: str, entries: Mapping[str, Entry]) -> FactorsHeader:
    if not is_targeted(config, module):
        raise TipminiError(f"{module} has tensors but is no target, so PEFT would leave it out")
    a, b = (entries[name] for name in factor_names(module))
    return FactorsHeader(a, b, scaling_of(config, module, a.shape[0]))


def refuse_overflow(
    folder: Path, module: str, scaling: float, rank: int, a: float, b: float
) -> None:
    """Raise TipminiError for finite numbers so large, as damage leaves them, that the update
    overflows; a and b are the largest magnitudes of the factors."""
    if max(1.0, abs(scaling)) * rank * a * b > FLOAT32_MAX:  # B A as well
        raise TipminiError(
            f"{folder / WEIGHTS}: {module}: its update overflows float32: numbers up to {a:.0e} "
            f"in lora_A and {b:.0e} in lora_B, scaling {scaling:.3g}"
        )
