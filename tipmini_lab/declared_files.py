"""YAML files that declare something, read by pydantic; one line for what is wrong in one."""

from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tipmini.errors import TipminiError
from tipmini.models.files import one_line


class Declared(BaseModel):
    """Read from a file, checked, and then not changed any more."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], file: Path) -> Model:
    """What a file declares.

    Raises TipminiError that names the file: no valid YAML, a wrong value, or an unknown key, with
    the nearest valid one.
    """
    try:
        return model.model_validate(yaml.safe_load(file.read_text()))
    except ValidationError as error:
        raise TipminiError(f"{file}: {what_is_wrong(error, model)}") from error
    # ValueError: also of what YAML takes for a date.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TipminiError(f"{file}: not valid YAML: {one_line(error)}") from error


def what_is_wrong(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first of what is wrong, and where it stands."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    if model and first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        near = get_close_matches(where, model.model_fields, n=1, cutoff=0.0)
        return f"unknown key {where!r}; the nearest valid one is {near[0]!r}"
    return f"{where}: {one_line(first['msg'])}"
