"""The command line: `tipmini --help`. The commands themselves are in tipmini/commands/."""

import re
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from tipmini.commands import auditing, batch, laboratory, listing, merging, pruning
from tipmini.commands.arguments import examples
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


COMMANDS = {
    listing.methods: ["tipmini methods", "tipmini methods --json"],
    listing.inspect: [
        "tipmini inspect adapters/piqa adapters/boolq",
        "tipmini inspect --json adapters/piqa",
    ],
    laboratory.calibrate: [
        "tipmini calibrate --task piqa --out piqa.safetensors",
        "tipmini calibrate --task piqa --statistic gram --out piqa-grams.safetensors",
    ],
    laboratory.weigh: ["tipmini weigh --task piqa --task rte --out weights.json"],
    laboratory.evaluate: ["tipmini evaluate --adapter adapters/rte --task rte --limit 20"],
    batch.measure: [
        "tipmini measure --profile smoke --method single --task rte",
        "tipmini measure --profile mini --group ledger --variant tip-cat",
    ],
    batch.norms: ["tipmini norms --profile smoke --task rte"],
    laboratory.fetch: ["tipmini fetch"],
    laboratory.adapters: ["tipmini adapters --task rte"],
    auditing.claims: ["tipmini claims", "tipmini claims --json"],
    batch.again: ["tipmini again", "tipmini again --minutes 1"],
    batch.reproduce: ["tipmini reproduce --profile mini"],
    batch.book: ["tipmini book --profile mini"],
    batch.publish: ["tipmini publish _build/executed/mini"],
}

for command, lines in COMMANDS.items():
    app.command(epilog=examples(*lines))(command)
app.command(epilog=merging.EPILOG)(merging.merge)
app.command(epilog=pruning.EPILOG)(pruning.prune)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=examples("tipmini lm-eval run --help"),
)(laboratory.lm_eval)


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


if __name__ == "__main__":
    main()
