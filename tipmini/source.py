"""What stands in a module of this project, read as text: importing it may take seconds (torch)."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def names(module: str, constant: str) -> tuple[str, ...]:
    """The keys of a module's dict, or the items of its tuple, that are plain words there."""
    value = _defined(module)[constant]
    items = value.keys if isinstance(value, ast.Dict) else value.elts
    return tuple(item.value for item in items if isinstance(item, ast.Constant))


def summary(module: str, function: str) -> str:
    """The first line of a function's docstring."""
    return ast.get_docstring(_defined(module)[function]).splitlines()[0]


def options(module: str, function: str) -> dict[str, tuple[tuple[str, ...], object]]:
    """{keyword-only argument: (the types that it declares, by name; its default)}."""
    given = _defined(module)[function].args
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {arg.arg: (_types(arg.annotation), ast.literal_eval(value)) for arg, value in pairs}


def _types(annotation: ast.expr) -> tuple[str, ...]:
    """Of `int | None` int and None."""
    return tuple(ast.unparse(annotation).split(" | "))


@cache
def _defined(module: str) -> Mapping[str, ast.AST]:
    """The functions and the constants' values at a module's top level."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_bytes()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = node.value
    return found
