"""Hashes that results are known by: of what they were measured of, and of the code that did it.

A code's digest covers whatever a function reaches inside this project, by what it does: comments,
docstrings, annotations, layout and the words of errors don't count, nor do imports and the places
of modules. So it survives a move. What it does not survive though the results stay the same
(a renaming, a faster way) is proven by measuring again, and listed in results/code.json.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from tipmini_lab.intact import file_digest as file_digest
from tipmini_lab.paths import REPOSITORY as ROOT

EQUAL = ROOT / "results" / "code.json"  # {kind: [digests whose results are the same]}
OURS = ("tipmini", "tipmini_lab")
# What stores a result has no say in it; what is read, from the rows on, is hashed by itself.
APART = ("tipmini.errors", "tipmini_lab.locks", "tipmini_lab.paths", "tipmini_lab.results.digests")
APART += ("tipmini_lab.intact", "tipmini_lab.results.store", "tipmini_lab.results.checked")
APART += tuple(f"tipmini_lab.evaluation.{name}" for name in ("assets", "documents", "tasks"))

Codes = Mapping[str, str]  # {kind of work, e.g. "evaluation": digest of the code that did it}
Definition = tuple[str, str]  # (module, name of a definition at its top level)


def digest(content: object) -> str:
    """SHA-256 of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_same_code(then: Codes, now: Codes) -> bool:
    """Whether results of one code are known to be those of the other."""
    return then.keys() == now.keys() and all(
        then[kind] == now[kind] or {then[kind], now[kind]} <= set(equal().get(kind, ()))
        for kind in now
    )


def known_as(kind: str, code: str) -> str:
    """The first digest of those whose results are the same, the code's own where it is alone."""
    same = equal().get(kind, ())
    return same[0] if code in same else code


@cache
def equal(file: Path = EQUAL) -> dict[str, list[str]]:
    return json.loads(file.read_text()) if file.is_file() else {}


@cache
def code_digest(*entries: Callable) -> str:
    """Of functions and classes, and of all of this project's that they reach."""
    return digest(sorted(reached(*entries).values()))


def reached(*entries: Callable) -> dict[Definition, str]:
    """{where a definition stands: what it does} of the entries and of what they reach."""
    found: dict[Definition, str] = {}
    open_ends = [(entry.__module__, entry.__qualname__.split(".")[0]) for entry in entries]
    while open_ends:
        place = open_ends.pop()
        if place not in found and place[0] not in APART:
            module = _module(place[0])
            found[place] = module.bare(place[1])
            open_ends += module.reaches(place[1])
    return found


class _Module:
    """A module's text: what is defined at its top level, and what its names mean."""

    def __init__(self, name: str):
        tree = ast.parse(_file(name).read_bytes())
        self.name, self.defined, self.imported = name, {}, {}
        for node in tree.body:
            for defined in _names(node):
                self.defined[defined] = node
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (alias.name, None)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (node.module, alias.name)

    def meant(self, name: str) -> Definition | str | None:
        """Where a name used here is defined; a str for a module of ours; None for another's."""
        if name in self.defined:
            return self.name, name
        module, inner = self.imported.get(name, ("", None))
        if module.partition(".")[0] not in OURS:
            return None
        if inner is None or _file(f"{module}.{inner}"):
            return module if inner is None else f"{module}.{inner}"
        return _place(module, inner)

    def reaches(self, name: str) -> Iterator[Definition]:
        for node in ast.walk(self.defined[name]):
            if isinstance(node, ast.Name) and isinstance(place := self.meant(node.id), tuple):
                yield place
            elif isinstance(node, ast.Attribute) and (module := self.module_of(node)):
                yield _place(module, node.attr)
            elif isinstance(node, ast.Constant) and (place := _told(node.value)):
                yield place

    def module_of(self, node: ast.Attribute) -> str | None:
        """The module of ours that an attribute is read of."""
        named = isinstance(node.value, ast.Name) and self.meant(node.value.id)
        return named if isinstance(named, str) else None

    def bare(self, name: str) -> str:
        return ast.unparse(_Bare(self).visit(ast.parse(ast.unparse(self.defined[name]))))


class _Bare(ast.NodeTransformer):
    """Leaves of a definition what it does."""

    def __init__(self, module: _Module):
        self.module = module

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.visit_ClassDef(node)

    def visit_ClassDef(self, node):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Attribute(self, node):
        if self.module.module_of(node):
            return ast.Name(node.attr)
        return self.generic_visit(node)

    def visit_Constant(self, node):
        return ast.Constant(place[1]) if (place := _told(node.value)) else node


_module = cache(_Module)


@cache
def _file(module: str) -> Path | None:
    """A module's or a package's source; None where there is none of that name."""
    place = ROOT / module.replace(".", "/")
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]


def _place(module: str, name: str) -> Definition:
    """Where what a module calls `name` is defined: there, or where it was imported from."""
    known = _module(module)
    if name in known.defined:
        return module, name
    if isinstance(found := known.meant(name), tuple):
        return found
    found = getattr(import_module(module), name)  # a package that imports when asked
    return found.__module__, found.__qualname__


@cache
def _told(value: object) -> Definition | None:
    """What a string such as "sums:sum_linear" refers to."""
    if not (isinstance(value, str) and re.fullmatch(r"[a-z_.]+:\w+", value)):
        return None
    module, _, name = value.partition(":")
    return _place(module, name) if module.startswith(OURS) and _file(module) else None
