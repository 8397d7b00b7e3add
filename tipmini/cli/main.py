"""The command line of those who merge; the laboratory adds its own commands to it."""

import errno
import json
import re
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

import tipmini as tm
from tipmini.cli import merge
from tipmini.cli.arguments import Adapters, AsJson, examples, first_line
from tipmini.errors import TipminiError, printable

UsageError = typer.BadParameter.__base__  # typer carries click inside and exports this alone

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="TIP: task importance-based pruning for merging LoRA adapters.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("tipmini"))
        raise typer.Exit


@app.callback()
def tipmini(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    """TIP: task importance-based pruning for merging LoRA adapters."""


@app.command(epilog=examples("tipmini methods", "tipmini methods --json"))
def methods(as_json: AsJson = False) -> None:
    """List the merge methods and what each needs, then their presets, one line each.

    What needs the base model is `tipmini blockwise`'s, or a command of its name where it needs
    gradients; everything else is `tipmini merge`'s.
    """
    from tipmini.methods.table import BY_BLOCK, NEEDS, TRAINED

    found: dict[str, dict] = {}
    for name, row in (tm.METHODS | BY_BLOCK).items():
        told = {"needs": row.needs, "reference": row.reference}
        found[name] = {"what": row.summary, "options": row.options} | told
        if not as_json:
            print(f"{name:12} {row.summary} [{NEEDS[row.needs]}]")
    for name, (what, needs, reference) in TRAINED.items():
        found[name] = {"what": what, "options": {}, "needs": needs, "reference": reference}
        if not as_json:
            print(f"{name:12} {what} [{needs}]")
    for name, preset in tm.PRESETS.items():
        told = {"preset_of": preset.method, "weights": preset.weights}
        found[name] = {"what": first_line(name), "options": tm.method_options(name)} | told
        if not as_json:
            print(f"{name:12} {found[name]['what']}")
    if as_json:
        print(json.dumps(found))


@app.command(
    epilog=examples(
        "tipmini inspect adapters/piqa adapters/boolq", "tipmini inspect --json adapters/piqa"
    )
)
def inspect(adapters: Adapters, as_json: AsJson = False) -> None:
    """Show rank, scaling, targets, size and base model of adapters, and what bars a merge."""
    from tipmini.models.identity import common_base

    found = {str(path): tm.inspect_folder(path) for path in adapters}
    for facts in found.values():
        if not facts["modules"]:  # nothing to show
            raise TipminiError(facts["problems"][0])
    if as_json:
        print(json.dumps(found))
    for path, facts in {} if as_json else found.items():
        print(path)
        for name, value in facts.items():
            shown = ", ".join(map(str, value)) or "-" if isinstance(value, list) else value
            print(f"  {name:10} {shown}")
    for facts in found.values():
        for problem in facts["problems"]:
            raise TipminiError(problem)
    common_base({path: facts["base"] for path, facts in found.items()})


app.command(epilog=merge.EPILOG)(merge.merge)


def main() -> None:
    """Run; what the user can mend is one line and exit code 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no text
    try:
        sys.exit(app(prog_name="tipmini", standalone_mode=False) or 0)
    except TipminiError as error:
        line = f"tipmini: {' '.join(str(error).splitlines())}"  # a path can hold a line's end
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # only what was given can be so long
            raise
        line = f"tipmini: {str(error.filename)[:40]}...: {error.strerror}; name another"
    except ModuleNotFoundError as error:
        package = (error.name or "tipmini").partition(".")[0]
        if package == "tipmini" or find_spec(package):  # it is there: a bug
            raise
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "it")
        line = f"tipmini: {command} needs {package}, which is not installed: "
        line += f"pip install {_bringing(package)}"
    except UsageError as error:
        told = " ".join(error.format_message().split()).rstrip(".")
        if not told:  # no arguments at all: the help was shown instead
            sys.exit(2)
        where = error.ctx.command_path if error.ctx else "tipmini"
        line = f"{where}: {told}; see `{where} --help`"
    except typer.Abort:
        sys.exit(130)
    print(printable(line), file=sys.stderr)
    sys.exit(2)


def _bringing(package: str) -> str:
    """What to install for a package: the extra that names it, else the package itself."""
    from importlib.metadata import requires

    for line in requires("tipmini") or ():
        found = re.fullmatch(r"([\w.-]+).*extra == [\"'](\w+)[\"'].*", line)
        if found and re.sub(r"[-.]", "_", found[1]).lower() == package.lower():
            return f"'tipmini[{found[2]}]'"
    return package
