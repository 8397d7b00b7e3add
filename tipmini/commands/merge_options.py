"""Options of merge methods, in the types that the methods declare."""

from collections.abc import Mapping, Sequence

import tipmini as tm
from tipmini.commands.arguments import nearest
from tipmini.errors import TipminiError
from tipmini.methods import preset

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
