"""What one `tipmini merge` is asked to do: flags and a YAML file, checked, typed and opened."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tipmini.cli.arguments import nearest
from tipmini.errors import RULES, TipminiError, check_options, is_rule
from tipmini.methods.table import (
    ALIASES,
    BY_BLOCK,
    METHODS,
    PRESETS,
    equal_weight,
    method_options,
    preset,
    total_over_norms,
)
from tipmini.models import base_folder, hub, peft_folder
from tipmini.models.base_folder import BaseFolder, modules_of_base, open_base
from tipmini.models.files import TensorFile, largest, one_line, shown
from tipmini.models.identity import (
    common_base,
    common_revision,
    core,
    spellings,
)

if TYPE_CHECKING:
    import torch

    from tipmini.models.adapter import LoraAdapter

    Adapter = LoraAdapter | peft_folder.AdapterHeader


def _path(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    os.fsencode(value)  # raises ValueError of half a character, which YAML can name
    return Path(value)


def _name(value: object) -> object:
    """Of a model: also a folder's path."""
    _path(value)
    return value


def _paths(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


def _weights(value: object) -> object:
    if is_file(value):
        return _path(value)
    if isinstance(value, str) and "," in value:
        return [float(number) for number in value.split(",")]
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
    base_model: Annotated[str, BeforeValidator(_name)] | None = _must(
        "base_model must be a model's name"
    )
    heads: str | None = _must("heads must be an adapter's name, or average")
    dtype: Literal["float32", "bfloat16", "float16"] | None = _must(
        "dtype must be float32, bfloat16 or float16"
    )
    rank_pattern: bool = _must("rank_pattern must be true or false", False)
    pickle: bool = _must("pickle must be true or false", False)
    overwrite: bool = _must("overwrite must be true or false", False)

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        import torch

        return self.dtype and getattr(torch, self.dtype)

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
    if isinstance(method, str) and method in BY_BLOCK:
        raise TipminiError(f"method {method} runs the base model; use `tipmini blockwise`")
    known = [*METHODS, *PRESETS]
    method = ALIASES.get(method, method) if isinstance(method, str) else method
    if method not in known:
        listed = ", ".join(known)
        raise TipminiError(
            f"no merge method {shown(method)}{nearest(method, known)}; there are {listed}"
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
        what, read = READERS[types[name][0]]
        try:
            if isinstance(value, list | dict):  # few lines of YAML can name billions of parts
                raise ValueError
            none = "None" in types[name] and str(value).lower() in ("none", "null")
            options[name] = None if none else read(str(value))
        except (KeyError, ValueError):
            told = f"option {name} of {method} must be {what}, got {shown(value)}"
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
    for name in ("norms", "grams"):
        if getattr(request, name) and name != need:
            readers = ", ".join(m for m, row in METHODS.items() if row.needs == name)
            raise TipminiError(f"--{name} is not read by {request.method}, but by {readers}")
    if request.into and request.heads:
        raise TipminiError(
            "--into can't keep heads: a base has one of its own; merge into an adapter, or leave "
            "out modules_to_save"
        )
    if request.into and request.dtype:
        raise TipminiError("dtype is of a merged adapter; with --into the base keeps its own")
    if need and getattr(request, need) is None:
        raise TipminiError(f"method {request.method} needs --{need}, one file an adapter")
    if request.into and request.options.get("on") == "delta" and request.options["rank"]:
        raise TipminiError("rank cuts a merged adapter; with --into a delta is added whole")
    sources = [*request.adapters, *(request.norms or ()), *(request.grams or ()), request.into]
    read = [x for x in (request.weights, request.base_model) if isinstance(x, str | Path)]
    _refuse_meeting(request.out, [x for x in sources if x], [*read, "."])
    results = [request.out / name for name in (peft_folder.CONFIG, "config.json")]
    taken = request.overwrite and request.out.is_dir() and any(request.out.iterdir())
    if taken and ((request.out / ".git").exists() or not any(file.is_file() for file in results)):
        told = "holds no adapter and no model that --overwrite could replace"
        raise TipminiError(f"--out {request.out} {told}; choose another")


def _refuse_meeting(
    given: Path, sources: Iterable[Path], others: Iterable[str | Path] = ()
) -> None:
    """Raise TipminiError where the result would stand in a source, or take the place of a folder
    that holds one or another."""
    # realpath: unlike resolve, which raises for a loop of links
    out = Path(os.path.realpath(given))
    for source in sources:
        if out.is_relative_to(os.path.realpath(source)):
            raise TipminiError(f"--out {given} lies in the input {source}; choose another")
    for source in (*sources, *others):
        if Path(os.path.realpath(source)).is_relative_to(out):
            raise TipminiError(f"--out {given} holds {source}; choose another")


# Opened -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inputs:
    """Adapters whole or as headers; everything else is read when it is needed. By their names."""

    folders: dict[str, Path]  # of the adapters, also of those that the hub has
    adapters: "dict[str, Adapter]"
    called: dict[str, dict[str, str]]  # adapter -> {module as it names it: as the result does}
    norms: dict[str, TensorFile] | None
    grams: dict[str, TensorFile] | None
    weights: str | dict  # as `tm.merge` takes them
    base: BaseFolder | None  # of --into
    base_model: str | None  # what all adapters belong to
    notes: list[str]  # what is done as asked, but worth knowing

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of every module that is merged."""
        return {
            self.called[name][module]: pair.shape
            for name, adapter in self.adapters.items()
            for module, pair in adapter.factors.items()
        }


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Adapters by their folders' names; where two have one, by their paths, numbered if need be."""
    whole = [str(path) for path in paths]
    # realpath: unlike resolve, which raises for a loop of links
    own = [Path(os.path.realpath(path)).name or str(path) for path in paths]
    numbered = [f"{name} ({place})" for place, name in enumerate(whole, 1)]
    names = next(names for names in (own, whole, numbered) if len(set(names)) == len(names))
    return dict(sorted(zip(names, paths, strict=True)))


def open_inputs(
    request: Request,
    load: "Callable[..., Adapter]",
    learnt: "Callable[[Path, Sequence[tuple[str, Adapter]]], list]",
    digest: "Callable[[Adapter], str] | None" = None,
) -> Inputs:
    """Open all inputs; raises TipminiError for one that can't be read or doesn't fit the base, and
    for a folder that the result can't go into.

    load: of an adapter's folder. learnt: the adapters' weights of a file. digest: what files of
    norms know an adapter by; None where its numbers are not read.
    """
    into = open_base(request.into) if request.into else None
    told = request.base_model
    at_hand = into or (open_base(told) if told and Path(told, "config.json").is_file() else None)
    paths = named(request.adapters)
    folders = {n: peft_folder.adapter_folder(p, pickle=request.pickle) for n, p in paths.items()}
    _refuse_meeting(request.out, folders.values())  # also those of the hub's cache
    adapters = {name: load(folder, base=at_hand) for name, folder in folders.items()}
    notes = [
        f"{paths[name]}: {note}"
        for name, folder in folders.items()
        for note in peft_folder.notes_of(folder, _smaller(adapters[name]) if digest else {})
    ]
    bases = {name: adapter.base_model for name, adapter in adapters.items()}
    common_revision({name: adapter.revision for name, adapter in adapters.items()})
    order = [next(n for n, p in paths.items() if p is path) for path in request.adapters]
    weights, files = request.weights, {}
    if isinstance(weights, Path):
        weights = learnt(weights, [(str(paths[name]), adapters[name]) for name in order])
    if isinstance(weights, list):
        weights = dict(zip(order, weights, strict=bool(weights)))
    for what in ("norms", "grams"):
        given = getattr(request, what)
        files[what] = given and _matched(given, order, adapters, digest, notes)
    base_model = told or common_base(bases)
    known = modules_of_base(str(at_hand.folder) if at_hand else base_model)
    inputs = Inputs(
        folders=folders,
        called=spellings({name: adapter.factors for name, adapter in adapters.items()}, known),
        adapters=adapters,
        weights=weights,
        base=into,
        base_model=base_model,
        notes=notes,
        **files,
    )
    cores = {core(name) for name in known}
    if cores and (unknown := [name for name in inputs.shapes if core(name) not in cores]):
        told = f"{at_hand.folder if at_hand else base_model} has no module {unknown[0]}"
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        notes.append(f"{told}{more}, which PEFT then leaves out")
    if request.options.get("on") == "delta":
        _refuse_huge(inputs.shapes)
    if into:
        into.check(inputs.shapes)
        _compare(into, inputs.base_model, notes)
    if request.overwrite:
        return inputs
    if into:
        base_folder.refuse_taken(request.out, into.size)
    else:
        peft_folder.refuse_taken(request.out)
    return inputs


def _refuse_huge(shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise TipminiError for a delta that no memory here holds: of small factors it can be huge."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for module, (d, k) in shapes.items():
        if 4 * d * k > memory:
            told = f"its delta of {d:,} x {k:,} takes more than the {memory:,} bytes of memory here"
            raise TipminiError(f"{module}: {told}; merge factors (on=factors)")


def _smaller(adapter: "LoraAdapter") -> dict[str, float]:
    """Of each module the largest magnitude in A or that in B, whichever is less."""
    pairs = adapter.factors.items()
    return {module: min(largest(pair.a), largest(pair.b)) for module, pair in pairs}


def _matched(
    given: Sequence[Path],
    order: Sequence[str],
    adapters: "Mapping[str, Adapter]",
    digest: "Callable[[Adapter], str] | None",
    notes: list[str],
) -> dict[str, TensorFile]:
    """Files of norms by the adapters that they were measured of, which they say themselves."""
    files = [TensorFile(path) for path in given]
    if unsaid := ", ".join(str(file.path) for file in files if "factors" not in file.told):
        notes.append(f"{unsaid}: not said of which adapter; taken by their place")
    if unsaid or digest is None:
        return dict(zip(order, files, strict=True))
    known: dict[str, list[str]] = {}  # adapters of equal factors take theirs in turn
    for name in order:
        known.setdefault(digest(adapters[name]), []).append(name)
    found: dict[str, TensorFile] = {}
    for file in files:
        names = known.get(file.told["factors"])
        if names is None:
            of = file.told.get("adapter") or file.told.get("task", "another adapter")
            raise TipminiError(
                f"{file.path}: measured of {one_line(of)}, none of the adapters given"
            )
        free = [name for name in names if name not in found]
        if not free:
            told = f"adapter {names[-1]} has its file already, it came twice"
            raise TipminiError(f"{file.path}: {told}")
        found[free[0]] = file
    return found


def _compare(base: BaseFolder, named: str | None, notes: list[str]) -> None:
    """Note where the folder calls itself otherwise than the adapters' base, which fits all the
    same."""
    own = base.config.get("_name_or_path")
    if isinstance(own, str) and own and named:
        try:
            common_base({"the folder": own, "the adapters": named})
        except TipminiError:
            told = f"{base.folder} calls itself {one_line(own)}, the adapters' base is {named}"
            notes.append(f"{told}; their modules and shapes agree")


def describe(request: Request, inputs: Inputs) -> dict[str, object]:
    """What is merged how into what; an adapter of the hub with its commit."""
    told = ("out", "into", "method", "options", "seed", "weights", "adapters")
    plain = request.model_dump(mode="json")
    facts = {name: plain[name] for name in told}
    of = {path: hub.source(inputs.folders[name]) for name, path in named(request.adapters).items()}
    facts["adapters"] = [of[path] or str(path) for path in request.adapters]
    if isinstance(request.weights, str) and not total_over_norms(request.weights):
        facts["weight"] = equal_weight(request.weights, len(request.adapters))
    return facts | {"modules": len(inputs.shapes), "notes": inputs.notes}
