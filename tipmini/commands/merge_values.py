"""Values of `tipmini merge`, from the command line or YAML, checked and typed.

Each raises TipminiError, in which `name` is what the value was given as.
"""

from pathlib import Path

from tipmini.errors import TipminiError, is_finite
from tipmini.strict import shown
from tipmini.weighting import RULES, is_rule


def paths(name: str, value: object) -> list[Path] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, str | Path) else value
    if not (isinstance(values, list) and all(map(_is_path, values))):
        raise TipminiError(f"{name} must be a list of paths, got {value!r}")
    return [Path(v) for v in values]


def path(name: str, value: object, *, needed: bool = True) -> Path | None:
    if value is None and not needed:
        return None
    if not _is_path(value) or not str(value):
        raise TipminiError(f"--{name} must be a folder, got {value!r}")
    return Path(value)


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) and "\0" not in str(value)


def model_name(name: str, value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise TipminiError(f"{name} must be a model's name, got {value!r}")
    return value


def weights(value: object) -> str | list[float] | Path:
    if is_file(value):
        return path("weights", value)
    if isinstance(value, str):
        if not is_rule(value.strip()):
            hint = "; a number goes with --weight" if _is_number(value) else ""
            raise TipminiError(f"weights must be {RULES}, or a .json file, got {value!r}{hint}")
        return value.strip()
    numbers = value if isinstance(value, list) else [value]
    if not all(map(is_finite, numbers)):
        raise TipminiError(f"weights must be finite numbers, {RULES}, got {shown(value)}")
    return [float(n) for n in numbers]


def seed(value: object) -> int:
    if type(value) is not int:
        raise TipminiError(f"seed must be a whole number, got {value!r}")
    return value


def is_file(weights: object) -> bool:
    return isinstance(weights, str | Path) and str(weights).endswith(".json")


def _is_number(text: str) -> bool:
    try:
        return is_finite(float(text))
    except ValueError:
        return False
