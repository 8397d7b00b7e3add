"""The commands on one model, adapter or task at a time, and `tipmini prune`."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import tipmini as tm
from tipmini import source
from tipmini.cli.arguments import AsJson, examples, nearest
from tipmini.errors import TipminiError, require
from tipmini.models.files import one_line
from tipmini.models.peft_folder import read_settings, weights_file
from tipmini_lab import checkout
from tipmini_lab.commands.arguments import Base, Dtype, Tasks, complete_task
from tipmini_lab.commands.batch import show_cell


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
    from tipmini_lab.experiments.input_norms import save_tensors

    require("statistic", statistic, source.names("tipmini.models.calibration", "STATISTICS"))
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
    from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe

    lab = _lab(base, dtype=dtype)
    recipe = WeighingRecipe(
        rows=rows, stories=min(rows, WeighingRecipe.stories), epochs=epochs, seed=seed
    )
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
    from tipmini_lab.results import store

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
        store.write(out, json.dumps([cell.model_dump() for cell in cells]) + "\n")


def _lab(base: str, **settings: object):
    """A Lab of its own for one command, which stores nothing."""
    from tipmini_lab.experiments.experiment import Lab
    from tipmini_lab.experiments.profiles import Profile

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
    from tipmini_lab.evaluation import assets

    print(assets.fetch())


def adapters(
    task: Tasks = None,
    out: Annotated[Path | None, typer.Option(help="folder; default `adapters`")] = None,
) -> None:
    """Train the task adapters; a killed training goes on where it stopped."""
    if not out:
        checkout.require("adapters without --out")
    from tipmini_lab import paths
    from tipmini_lab.evaluation import assets
    from tipmini_lab.experiments import training

    assets.fetch()
    for name in task or training.RECIPES:
        print(training.train(name, (out or paths.ADAPTERS) / name))


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with the model `tipmini` registered."""
    from lm_eval.__main__ import cli_evaluate

    import tipmini_lab  # noqa: F401  registers the model

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()


# `tipmini prune`: its flags, its help and what it prints ------------------------------------------
EPILOG = examples(
    "tipmini prune --share 0.5 --out half",
    "tipmini prune --share 0.2 --method taylor --no-tune --rows 128 --out fifth",
    "tipmini prune --share 0.5 --task boolq --steps 40 --reduction released --out boolq-half",
    "tipmini prune --share 0.5 --threshold global --exempt-first 0.1 --exempt-last 1 --out masks",
    "tipmini prune --method wanda-2:4 --rows 128 --out sparse",
    "tipmini prune --share 0.5 --dry-run --out half",
)
SEMI = ("magnitude-2:4", "wanda-2:4")
ALL = (*source.names("tipmini.methods.criteria", "CRITERIA"), "random", *SEMI)
SCHEDULES = source.names("tipmini.papers.loraprune", "SCHEDULES")
REDUCTIONS = source.names("tipmini.methods.criteria", "REDUCTIONS")


def complete_criterion(incomplete: str) -> list[str]:
    return [name for name in ALL if name.startswith(incomplete)]


def _words(known: object) -> str:
    return ", ".join(known)


def prune(
    out: Annotated[Path, typer.Option(help="folder of the pruned model")],
    base: Base = "embedded",
    method: Annotated[
        str, typer.Option(help=_words(ALL), autocompletion=complete_criterion)
    ] = "lora-guided",
    share: Annotated[
        float, typer.Option(help="of the attention and MLP weights that goes, 0 to 1")
    ] = 0.5,
    reduction: Annotated[
        str, typer.Option(help=f"{_words(REDUCTIONS)}: squares, or as the authors' code")
    ] = "paper",
    schedule: Annotated[str, typer.Option(help=_words(SCHEDULES))] = "cubic",
    tune: Annotated[
        bool, typer.Option(help="fine-tune while pruning; else remove all at once")
    ] = True,
    task: Tasks = None,
    rows: Annotated[int | None, typer.Option(help="train rows in all; 1024")] = None,
    steps: Annotated[int | None, typer.Option(help="in place of epochs")] = None,
    epochs: Annotated[int | None, typer.Option(help="over the rows; 2")] = None,
    batch: Annotated[int | None, typer.Option(help="rows a step, accumulated; 32")] = None,
    length: Annotated[int | None, typer.Option(help="tokens of a row at most; 256")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="1e-4, then a cosine")] = None,
    rank: Annotated[int | None, typer.Option(help="of the adapter; 8")] = None,
    every: Annotated[int | None, typer.Option(help="steps between removals; 10")] = None,
    decay: Annotated[float | None, typer.Option(help="lambda of Eq. 11; 0.9")] = None,
    head_share: Annotated[float | None, typer.Option(help="of the heads; else --share")] = None,
    channel_share: Annotated[
        float | None, typer.Option(help="of the channels; else what fills the share up")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="layer, or global: one for all layers, then masks only")
    ] = None,
    exempt_first: Annotated[float | None, typer.Option(help="share of layers kept whole")] = None,
    exempt_last: Annotated[int | None, typer.Option(help="number of layers kept whole")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="base weights in 8 bits (simulated arithmetic)")
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="activations twice: a fraction of the memory, slower"),
    ] = False,
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="of the adapter, the rows' order, random")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="tell what would go, write nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove heads and MLP channels of a LLaMA; a killed run goes on where it stopped.

    The result is a smaller model that transformers loads as it is, or masks and an adapter where
    the layers keep different numbers of groups.
    """
    if method not in ALL:
        raise TipminiError(f"method {method!r}: not one of {_words(ALL)}{nearest(method, ALL)}")
    given = {"rows": rows, "steps": steps, "epochs": epochs, "batch": batch, "length": length}
    given |= {"learning_rate": learning_rate, "rank": rank, "every": every, "decay": decay}
    given |= {"head_share": head_share, "channel_share": channel_share, "threshold": threshold}
    given |= {"exempt_first": exempt_first, "exempt_last": exempt_last}
    given |= {"tasks": tuple(task) if task else None}
    fixed = {"share": share, "reduction": reduction, "schedule": schedule, "tune": tune}
    fixed |= {"int8": int8, "recompute": recompute, "seed": seed}
    _prune(base, method, out, dtype, _chosen(given) | fixed, dry_run, as_json)


def _chosen(options: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _prune(
    base: str,
    method: str,
    out: Path,
    dtype: str,
    options: dict[str, object],
    dry_run: bool,
    as_json: bool,
) -> None:
    from tipmini_lab.experiments import pruning
    from tipmini_lab.experiments.recipe import PruningRecipe as WeighingRecipe

    semi = method in SEMI
    recipe = WeighingRecipe(**options, method=method.removesuffix("-2:4"))
    folder = pruning.local_folder(base)
    if dry_run:
        facts = pruning.plan(folder, recipe, out, semi)
    else:
        facts = pruning.prune(folder, recipe, out, dtype, semi)
    _tell(facts | {"out": str(out), "method": method, "dry_run": dry_run}, as_json)


def _tell(facts: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    verb = "would remove" if facts["dry_run"] else "removed"
    print(f"{facts['out']}: {facts['method']} {verb} {facts['removed_share']:.1%} of the weights")
    print("  of the attention and MLP matrices; of the whole model", end=" ")
    print(f"{facts['removed_of_model']:.1%}")
    for kind, share in facts["removed_of"].items():
        print(f"  {kind:9} {share:.1%}")
    print(f"  written   {facts['form']}")
    if facts["dry_run"]:
        print(f"  steps     {facts['steps']} over {facts['rows']} rows; nothing is written")
