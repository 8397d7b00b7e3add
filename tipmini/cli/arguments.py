"""Arguments that several commands share, and what the shell completes them with."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

import tipmini as tm

ADAPTERS = "PEFT adapter folders, or ids of the hub: OWNER/NAME[/SUBFOLDER][@REVISION]"
Adapters = Annotated[list[Path], typer.Argument(help=ADAPTERS, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


def examples(*lines: str) -> str:
    """A command's epilog; tests run every line of it."""
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *(f"`{x}`" for x in lines)])


def nearest(word: object, known: list[str]) -> str:
    """'; did you mean ...?', or nothing where no known word is near."""
    near = get_close_matches(word, known, n=1) if isinstance(word, str) else ()
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(method: str) -> str:
    """What a method does, or which method a preset sets which options of."""
    if method in tm.METHODS:
        return tm.METHODS[method].summary
    preset = tm.PRESETS[method]
    settings = preset.options | ({"weights": preset.weights} if preset.weights != "sum" else {})
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"Preset: {preset.method} with {told or 'its defaults, Eqs. 1 to 5 as written'}."


def complete_method(incomplete: str) -> list[tuple[str, str]]:
    known = [*tm.METHODS, *tm.PRESETS]
    return [(name, first_line(name)) for name in known if name.startswith(incomplete)]


def complete_option(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`name=` of every option that the method given before has."""
    method = context.params.get("method") or "recommended"
    if method not in (*tm.METHODS, *tm.PRESETS):
        return []
    options = tm.method_options(method).items()
    return [(f"{n}=", f"default {v}") for n, v in options if f"{n}=".startswith(incomplete)]
