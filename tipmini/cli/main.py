"""The command line of those who merge; the laboratory adds its own commands to it."""

import re
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from tipmini.cli import listing, merge
from tipmini.cli.arguments import examples
from tipmini.errors import TipminiError

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


for command, lines in {
    listing.methods: ["tipmini methods", "tipmini methods --json"],
    listing.inspect: [
        "tipmini inspect adapters/piqa adapters/boolq",
        "tipmini inspect --json adapters/piqa",
    ],
}.items():
    app.command(epilog=examples(*lines))(command)
app.command(epilog=merge.EPILOG)(merge.merge)


def main() -> None:
    """Run; what the user can mend is one line and exit code 2."""
    try:
        sys.exit(app(prog_name="tipmini", standalone_mode=False) or 0)
    except TipminiError as error:
        line = f"tipmini: {error}"
    except ModuleNotFoundError as error:
        package = (error.name or "tipmini").partition(".")[0]
        if package == "tipmini" or find_spec(package):  # it is there: a bug
            raise
        line = f"tipmini: {_command()} needs {package}, which is not installed: "
        line += f"pip install {_bringing(package)}"
    except UsageError as error:
        told = " ".join(error.format_message().split()).rstrip(".")
        if not told:  # no arguments at all: the help was shown instead
            sys.exit(2)
        where = error.ctx.command_path if error.ctx else "tipmini"
        line = f"{where}: {told}; see `{where} --help`"
    except typer.Abort:
        sys.exit(130)
    print(line, file=sys.stderr)
    sys.exit(2)


def _command() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "it")


def _bringing(package: str) -> str:
    """What to install for a package: the extra that names it, else the package itself."""
    from importlib.metadata import requires

    for line in requires("tipmini") or ():
        found = re.fullmatch(r"([\w.-]+).*extra == [\"'](\w+)[\"'].*", line)
        if found and re.sub(r"[-.]", "_", found[1]).lower() == package.lower():
            return f"'tipmini[{found[2]}]'"
    return package
