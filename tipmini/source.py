"""What stands in a module of this project, read as text: importing it may take seconds (torch)."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def names(module: str, constant: str) -> tuple[str, ...]:
    """The keys of a module's dict, or the items of its tuple, that are plain words there."""
    return tuple(_words(_defined(module)[constant]))


def _words(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Constant):
        yield value.value
    elif isinstance(value, ast.Tuple):
        for item in value.elts:
            yield from _words(item)
    elif isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            yield from _words(inner if key is None else key)  # **{...} has no key of its own


def summary(module: str, function: str) -> str:
    """The first line of a function's docstring."""
    return ast.get_docstring(_defined(module)[function]).splitlines()[0]


def options(module: str, function: str) -> dict[str, tuple[tuple[str, ...], object]]:
    """{keyword-only argument: (the types that it declares, e.g. int and None; its default)}."""
    given = _defined(module)[function].args
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    types = {arg: tuple(ast.unparse(arg.annotation).split(" | ")) for arg in given.kwonlyargs}
    return {arg.arg: (types[arg], ast.literal_eval(value)) for arg, value in pairs}


@cache
def _defined(module: str) -> Mapping[str, ast.AST]:
    """The functions and the constants' values at a module's top level."""
    body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_bytes()).body
    found = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = node.value
    return found
