"""What one `tipmini merge` is asked to do: flags and a YAML file, checked and typed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

import tipmini as tm
from tipmini.cli.arguments import nearest
from tipmini.errors import RULES, TipminiError, check_options, is_finite, is_rule
from tipmini.methods.table import METHODS, PRESETS, method_options, preset
from tipmini.models.files import one_line, shown

READERS = {
    "bool": ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    "int": ("a whole number", int),
    "float": ("a number", float),
    "str": ("a word", str),
}


def parse_options(given: Sequence[str]) -> dict[str, str]:
    """{name: text} of `name=value` items; dashes in a name stand for underscores."""
    found: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals):
            raise TipminiError(f"--option needs name=value, e.g. sign=-1, got {item!r}")
        if name in found:
            raise TipminiError(f"option {name} is given twice")
        found[name] = value.strip()
    return found


def typed_options(method: str, given: Mapping[str, object]) -> dict[str, object]:
    """All options of the method, those given in the type that the method declares."""
    known = tm.method_options(method)
    for name in given:
        if name not in known:
            listed = f"it has {', '.join(known)}" if known else "it has none"
            hint = nearest(name, list(known))
            raise TipminiError(f"merge method {method} has no option {name!r}{hint}; {listed}")
    return known | {name: _typed(method, name, value) for name, value in given.items()}


def _typed(method: str, name: str, value: object) -> object:
    """A value from YAML or the command line, where all is text, as what the method declares."""
    types = tm.METHODS[preset(method).method].types[name]
    if "None" in types and str(value).lower() in ("none", "null"):
        return None
    what, read = READERS[types[0]]
    try:
        return read(str(value))
    except (KeyError, ValueError):
        raise TipminiError(f"option {name} of {method} must be {what}, got {value!r}") from None


# Values of `tipmini merge` ------------------------------------------------------------------------
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


# What one `tipmini merge` is asked to do ----------------------------------------------------------
ARGUMENTS = ("adapters", "out", "into", "method", "weights", "norms", "grams", "seed", "base_model")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `tm.merge`, with paths in place of what they hold."""

    adapters: list[Path]
    out: Path
    method: str
    options: dict[str, object]  # all of the method's, defaults among them
    weights: str | list[float] | Path  # a file: learnt ones
    norms: list[Path] | None
    grams: list[Path] | None
    seed: int
    into: Path | None
    base_model: str | None


def make_request(flags: Mapping[str, object], config: Path | None) -> Request:
    """The flags over the file's keys; raises TipminiError for what is unknown, missing or wrong.

    flags has only what was given; it and the file name the method's options beside ARGUMENTS.
    """
    given = (_read(config) if config else {}) | dict(flags)
    if "method" not in given:
        _check_default(given)
    method = _method(given.get("method", _default_method(given.get("weights"))))
    options = typed_options(method, {k: v for k, v in given.items() if k not in ARGUMENTS})
    request = Request(
        adapters=paths("adapters", given.get("adapters")) or [],
        out=path("out", given.get("out")),
        method=method,
        options=options,
        weights=weights(given.get("weights", preset(method).weights)),
        norms=paths("norms", given.get("norms")),
        grams=paths("grams", given.get("grams")),
        seed=seed(given.get("seed", 0)),
        into=path("into", given.get("into"), needed=False),
        base_model=model_name("base_model", given.get("base_model")),
    )
    _check(request)
    return request


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
    method = _method(content.get("method") or _default_method(content.get("weights")))
    known = [*ARGUMENTS, *method_options(method)]
    for key in content:
        if key not in known and not _of_another_method(key):
            hint = nearest(key, known)
            raise TipminiError(f"{file}: merge has no argument {key!r}{hint}")
    # An empty argument is one not given; an empty option says None, e.g. of rescale.
    return {k: value for k, value in content.items() if value is not None or k not in ARGUMENTS}


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that stands there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise ValueError(f"a name stands there twice{node.start_mark}")
        return found


def _of_another_method(key: object) -> bool:
    """Whether it can still be right, should the command line name another method."""
    return any(key in method_options(method) for method in METHODS)


def _check_default(given: Mapping[str, object]) -> None:
    """Raise TipminiError for what the default method would leave unread."""
    for argument in ("norms", "grams"):
        if given.get(argument):
            readers = ", ".join(name for name, m in METHODS.items() if m.needs == argument)
            raise TipminiError(f"{argument} are read by {readers}; name one with --method")
    for option in (name for name in given if name not in ARGUMENTS):
        readers = ", ".join(m for m in METHODS if option in method_options(m))
        if readers:
            raise TipminiError(f"{option} is an option of {readers}; name one with --method")


def _default_method(weights: object) -> str:
    """The recommended one; learnt weights are those of the exact sum."""
    return "cat" if is_file(weights) else "recommended"


def _method(name: object) -> str:
    known = [*METHODS, *PRESETS]
    if name not in known:
        listed = ", ".join(known)
        raise TipminiError(f"no merge method {name!r}{nearest(name, known)}; there are {listed}")
    return str(name)


def _check(request: Request) -> None:
    """What no single argument can tell, and the values of the method's options."""
    check_options(preset(request.method).method, request.options)
    if not request.adapters:
        raise TipminiError("nothing to merge; give at least one adapter folder")
    _check_counts(request)
    need = METHODS[preset(request.method).method].needs
    if need and getattr(request, need) is None:
        raise TipminiError(f"method {request.method} needs --{need}, one file an adapter")
    if request.into and request.options.get("on") == "delta" and request.options["rank"]:
        raise TipminiError("rank cuts a merged adapter; with --into a delta is added whole")
    for source in [*request.adapters, *([request.into] if request.into else [])]:
        if _real(request.out).is_relative_to(_real(source)):
            raise TipminiError(f"--out {request.out} lies in the input {source}; choose another")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike resolve, which raises for a loop of links


def _check_counts(request: Request) -> None:
    count = len(request.adapters)
    for name in ("weights", "norms", "grams"):
        given = getattr(request, name)
        if isinstance(given, list) and len(given) != count:
            raise TipminiError(f"{name} must be one an adapter, {count}, got {len(given)}")
