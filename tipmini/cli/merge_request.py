"""What one `tipmini merge` is asked to do: flags and a YAML file, checked, typed and opened."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tipmini.cli.arguments import nearest
from tipmini.errors import RULES, TipminiError, check_options, common_base, is_rule
from tipmini.methods.table import METHODS, PRESETS, method_options, preset
from tipmini.models import base_folder, peft_folder
from tipmini.models.base_folder import BaseFolder, open_base
from tipmini.models.files import TensorFile, one_line, shown

if TYPE_CHECKING:
    from tipmini.models.adapter import LoraAdapter

    Adapter = LoraAdapter | peft_folder.AdapterHeader


def _path(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return Path(value)


def _paths(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


def _weights(value: object) -> object:
    if is_file(value):
        return _path(value)
    if isinstance(value, str):
        if not is_rule(value.strip()):
            raise ValueError
        return value.strip()
    return value if isinstance(value, list) else [value]


def is_file(weights: object) -> bool:
    return isinstance(weights, str | Path) and str(weights).endswith(".json")


A_PATH = Annotated[Path, BeforeValidator(_path)]
LIST = Annotated[list[A_PATH], BeforeValidator(_paths)]
NUMBER = Annotated[float, Field(allow_inf_nan=False)]


def _must(words: str, default: object = None) -> Any:
    """An argument, with what is wrong where it is another."""
    return Field(default, description=words)


class Request(BaseModel):
    """The arguments of `tm.merge`, with paths in place of what they hold, and where it goes."""

    model_config = ConfigDict(frozen=True, strict=True)

    adapters: LIST = _must("adapters must be a list of paths", [])
    out: A_PATH = _must("--out must be a folder", ...)
    method: str = "recommended"
    options: dict[str, object] = {}  # all of the method's, defaults among them
    weights: Annotated[str | list[NUMBER] | Path, BeforeValidator(_weights)] = _must(
        f"weights must be finite numbers (--weight), {RULES}, or a .json file", "sum"
    )
    norms: LIST | None = _must("norms must be a list of paths")
    grams: LIST | None = _must("grams must be a list of paths")
    seed: int = _must("seed must be a whole number", 0)
    into: A_PATH | None = _must("--into must be a folder")
    base_model: Annotated[str, Field(min_length=1)] | None = _must(
        "base_model must be a model's name"
    )

    @property
    def function(self) -> str:
        """The method itself where a preset is asked for."""
        return preset(self.method).method


ARGUMENTS = tuple(name for name in Request.model_fields if name != "options")


def make_request(flags: Mapping[str, object], config: Path | None) -> Request:
    """The flags over the file's keys; raises TipminiError for what is unknown, missing or wrong.

    flags has only what was given; it and the file name the method's options beside ARGUMENTS.
    """
    read = _read(config) if config else {}
    given = read | dict(flags)
    method = given.get("method", "cat" if is_file(given.get("weights")) else "recommended")
    known = [*METHODS, *PRESETS]
    if method not in known:
        listed = ", ".join(known)
        raise TipminiError(
            f"no merge method {method!r}{nearest(method, known)}; there are {listed}"
        )
    options = {name: value for name, value in given.items() if name not in ARGUMENTS}
    for name in options:
        if not any(name in method_options(other) for other in METHODS):
            where = f"{config}: " if name in read else ""
            hint = nearest(name, [*ARGUMENTS, *method_options(method)])
            raise TipminiError(f"{where}merge has no argument {name!r}{hint}")
    if "method" not in given:
        _check_default(given)
    given = {"weights": preset(method).weights} | given
    given |= {"method": method, "options": typed_options(method, options)}
    try:
        request = Request(**{name: given[name] for name in Request.model_fields if name in given})
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        must = Request.model_fields[name].description
        raise TipminiError(f"{must}, got {shown(given.get(name))}") from None
    _check(request)
    return request


def parse_options(given: Sequence[str], taken: Mapping[str, object]) -> dict[str, str]:
    """{name: text} of `name=value` items; dashes in a name stand for underscores.

    taken: by name what is given already, which counts as a second time.
    """
    found: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals):
            raise TipminiError(f"--option needs name=value, e.g. sign=-1, got {item!r}")
        if name in found or name in taken:
            raise TipminiError(f"option {name} is given twice")
        found[name] = value.strip()
    return found


READERS = {
    "bool": ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    "int": ("a whole number", int),
    "float": ("a number", float),
    "str": ("a word", str),
}


def typed_options(method: str, given: Mapping[str, object]) -> dict[str, object]:
    """All options of the method, those given in the type that the method declares.

    Values come from YAML or the command line, where all is text.
    """
    options, types = method_options(method), METHODS[preset(method).method].types
    for name, value in given.items():
        if name not in options:
            listed = f"it has {', '.join(options)}" if options else "it has none"
            raise TipminiError(f"merge method {method} has no option {name!r}; {listed}")
        if "None" in types[name] and str(value).lower() in ("none", "null"):
            options[name] = None
            continue
        what, read = READERS[types[name][0]]
        try:
            options[name] = read(str(value))
        except (KeyError, ValueError):
            told = f"option {name} of {method} must be {what}, got {value!r}"
            raise TipminiError(told) from None
    return options


def _read(file: Path) -> dict[str, object]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)
    # ValueError: also of what YAML takes for a date.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TipminiError(f"{file}: not a readable YAML file ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise TipminiError(f"{file}: must hold merge's arguments as `name: value` lines")
    # YAML 1.1 reads the bare word on as true, also where it is a key.
    content = {"on" if key is True else key: value for key, value in content.items()}
    # An empty argument is one not given; an empty option says None, e.g. of rescale.
    return {k: value for k, value in content.items() if value is not None or k not in ARGUMENTS}


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that stands there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise ValueError(f"a name stands there twice{node.start_mark}")
        return found


def _check_default(given: Mapping[str, object]) -> None:
    """Raise TipminiError for what the default method would leave unread."""
    for name in given:
        if name in ("norms", "grams"):
            readers = ", ".join(m for m, row in METHODS.items() if row.needs == name)
            raise TipminiError(f"{name} are read by {readers}; name one with --method")
        if name not in ARGUMENTS:
            readers = ", ".join(m for m in METHODS if name in method_options(m))
            raise TipminiError(f"{name} is an option of {readers}; name one with --method")


def _check(request: Request) -> None:
    """What no single argument can tell, and the values of the method's options."""
    check_options(request.function, request.options)
    if not request.adapters:
        raise TipminiError("nothing to merge; give at least one adapter folder")
    count = len(request.adapters)
    for name in ("weights", "norms", "grams"):
        given = getattr(request, name)
        if isinstance(given, list) and len(given) != count:
            raise TipminiError(f"{name} must be one an adapter, {count}, got {len(given)}")
    need = METHODS[request.function].needs
    if need and getattr(request, need) is None:
        raise TipminiError(f"method {request.method} needs --{need}, one file an adapter")
    if request.into and request.options.get("on") == "delta" and request.options["rank"]:
        raise TipminiError("rank cuts a merged adapter; with --into a delta is added whole")
    # realpath: unlike resolve, which raises for a loop of links
    out = Path(os.path.realpath(request.out))
    for source in [*request.adapters, *([request.into] if request.into else [])]:
        if out.is_relative_to(os.path.realpath(source)):
            raise TipminiError(f"--out {request.out} lies in the input {source}; choose another")


# Opened -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inputs:
    """Adapters whole or as headers; everything else is read when it is needed."""

    adapters: "list[Adapter]"
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
    """Open all inputs; raises TipminiError for one that can't be read or doesn't fit the base, and
    for a folder that the result can't go into.

    load: of an adapter's folder. learnt: the adapters' weights of a file.
    """
    adapters = {str(path): load(path) for path in request.adapters}
    named = {path: adapter.base_model for path, adapter in adapters.items()}
    weights, files = request.weights, {}
    for name in ("norms", "grams"):
        paths = getattr(request, name)
        files[name] = paths and [TensorFile(path) for path in paths]
    inputs = Inputs(
        adapters=[adapters[str(path)] for path in request.adapters],
        weights=learnt(weights, adapters) if isinstance(weights, Path) else weights,
        base=open_base(request.into) if request.into else None,
        base_model=request.base_model or common_base(named),
        **files,
    )
    if inputs.base:
        inputs.base.check(inputs.shapes)
        base_folder.refuse_taken(request.out, inputs.base.size)
    else:
        peft_folder.refuse_taken(request.out)
    return inputs


def describe(request: Request, inputs: Inputs) -> dict[str, object]:
    """What is merged how into what."""
    told = ("out", "into", "method", "options", "seed", "weights", "adapters")
    plain = request.model_dump(mode="json")
    return {name: plain[name] for name in told} | {"modules": len(inputs.shapes)}
