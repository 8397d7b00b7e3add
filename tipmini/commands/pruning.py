"""`tipmini prune`: its flags, its help and what it prints."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tipmini import source
from tipmini.commands.arguments import AsJson, Base, Dtype, Tasks, examples, nearest
from tipmini.errors import TipminiError
from tipmini.schedules import SCHEDULES

EPILOG = examples(
    "tipmini prune --share 0.5 --out half",
    "tipmini prune --share 0.2 --method taylor --no-tune --rows 128 --out fifth",
    "tipmini prune --share 0.5 --task boolq --steps 40 --reduction released --out boolq-half",
    "tipmini prune --share 0.5 --threshold global --exempt-first 0.1 --exempt-last 1 --out masks",
    "tipmini prune --method wanda-2:4 --rows 128 --out sparse",
    "tipmini prune --share 0.5 --dry-run --out half",
)
SEMI = ("magnitude-2:4", "wanda-2:4")
ALL = (*source.names("criteria", "CRITERIA"), "random", *SEMI)
REDUCTIONS = source.names("criteria", "REDUCTIONS")


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
    from tipmini.lab.pruning import work
    from tipmini.lab.pruning.recipe import Recipe

    semi = method in SEMI
    recipe = Recipe(**options, method=method.removesuffix("-2:4"))
    folder = work.local_folder(base)
    if dry_run:
        facts = work.plan(folder, recipe, out, semi)
    else:
        facts = work.prune(folder, recipe, out, dtype, semi)
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
