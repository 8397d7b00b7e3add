"""The commands on one model, adapter or task at a time; they import what they need."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import tipmini as tm
from tipmini import checkout, source
from tipmini.commands.arguments import AsJson, Base, Dtype, Tasks, complete_task
from tipmini.commands.batch import show_cell
from tipmini.errors import TipminiError, require
from tipmini.peft_folder import read_settings, weights_file
from tipmini.strict import one_line


def calibrate(
    task: Annotated[
        str, typer.Option(help="its train rows are read", autocompletion=complete_task)
    ],
    out: Annotated[Path, typer.Option(help="safetensors file to write")],
    statistic: Annotated[
        str, typer.Option(help="norms: wanda, rms or mean_l2; Gram matrices, for regmean: gram")
    ] = "wanda",
    base: Base = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="default `adapters/TASK`")] = None,
    rows: Annotated[int, typer.Option(min=1, help="train rows")] = 128,
    dtype: Dtype = "auto",
) -> None:
    """Measure what a merge needs to know of an adapter's inputs, on a task's own train rows.

    tip and wanda need norms, regmean Gram matrices, k x k numbers for each module.
    """
    from tipmini.lab.input_norms import save_tensors

    require("statistic", statistic, source.names("calibration", "STATISTICS"))
    own = os.path.realpath(adapter or Path("adapters") / task)
    tm.load_adapter(own)  # before the model: refused is what no merge would take
    _refuse_unwritable(out)
    place = own.replace("{", "{{").replace("}", "}}")  # a profile's is filled in by format
    lab = _lab(base, adapters=place, calibration_rows=rows, dtype=dtype)
    facts = {"task": task, "adapter": own, "base": base, "statistic": statistic}
    facts["dtype"] = lab.dtype
    save_tensors(lab.norms.measure(task, statistic=statistic), out, facts)
    what = "Gram matrices" if statistic == "gram" else "input norms"
    print(f"{out}: {what} of {own} on {rows} rows of {task}")


def weigh(
    task: Annotated[
        list[str], typer.Option(help="again for several", autocompletion=complete_task)
    ],
    out: Annotated[Path, typer.Option(help=".json file to write")],
    base: Base = "embedded",
    adapter: Annotated[
        list[Path] | None, typer.Option(help="one a task, in their order; default `adapters/TASK`")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="train rows a task")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="how often each row is read")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="of the rows' order")] = 0,
    dtype: Dtype = "auto",
) -> None:
    """Learn the weights of a merge on the tasks' own train rows: one an adapter and module.

    For `tipmini merge --weights FILE`. Some minutes for seven adapters of the embedded
    model; a killed run goes on where it stopped.
    """
    if out.suffix != ".json":
        raise TipminiError(f"{out}: name a .json file, as `tipmini merge --weights` expects")
    folders = adapter or [Path("adapters") / name for name in task]
    if len(folders) != len(task):
        raise TipminiError(f"--adapter must be one a task, {len(task)}, got {len(folders)}")
    own = {name: tm.load_adapter(folder) for name, folder in zip(task, folders, strict=True)}
    _refuse_unwritable(out)
    from tipmini.lab.weighing import Recipe, Weighing

    lab = _lab(base, dtype=dtype)
    recipe = Recipe(rows=rows, stories=min(rows, Recipe.stories), epochs=epochs, seed=seed)
    Weighing(lab.trainable, lab.tokenizer, own, recipe, [out]).weights()
    print(f"{out}: weights of {', '.join(task)}, learnt on {rows} rows a task")


def evaluate(
    task: Annotated[
        list[str],
        typer.Option("--task", "--tasks", help="again for several", autocompletion=complete_task),
    ],
    base: Base = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder; none: the base alone")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows a task; all by default")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file of the results")] = None,
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a model, with or without an adapter, on tasks."""
    from tipmini.lab import results

    if adapter:
        read_settings(adapter)  # before the model
        weights_file(adapter)
    if out:
        _refuse_unwritable(out)
    lab = _lab(base, evaluation_rows=limit, dtype=dtype)
    names = [name for given in task for name in given.split(",")]
    way = "adapter" if adapter else "base"
    cells = [lab.measure(way, adapter, lab.task(name)) for name in names]
    for cell in cells:
        show_cell(cell, as_json)
    if out:
        results.write(out, json.dumps([cell.model_dump() for cell in cells]) + "\n")


def _lab(base: str, **settings: object):
    """A Lab of its own for one command, which stores nothing."""
    from tipmini.lab.experiments import Lab
    from tipmini.lab.profiles import Profile

    made = {"name": "command line", "description": "one command", "results": "_build/results/cli"}
    return Lab(Profile(**made, model=base, **settings))


def _refuse_unwritable(out: Path) -> None:
    """Raise TipminiError, before the long part, for a file that can't be written after it."""
    try:
        if out.is_dir():
            raise TipminiError(f"{out}: a folder; name a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None


def fetch() -> None:
    """Fetch the embedded model and data, verified by hash, into the cache."""
    from tipmini.lab import assets

    print(assets.fetch())


def adapters(
    task: Tasks = None,
    out: Annotated[Path | None, typer.Option(help="folder; default `adapters`")] = None,
) -> None:
    """Train the task adapters; a killed training goes on where it stopped."""
    if not out:
        checkout.require("adapters without --out")
    from tipmini.lab import assets, paths, training

    assets.fetch()
    for name in task or training.RECIPES:
        print(training.train(name, (out or paths.ADAPTERS) / name))


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with the model `tipmini` registered."""
    from lm_eval.__main__ import cli_evaluate

    import tipmini.lab  # noqa: F401  registers the model

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
