"""The commands on a whole profile: they measure its cells and build the book of them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tipmini.checkout import in_checkout
from tipmini.commands.arguments import PRUNING, AsJson, Profile, Tasks, complete_group
from tipmini.errors import TipminiError


@in_checkout
def measure(
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "--variant", help="again for several; all by default"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="variants of experiments/GROUP.yaml, or pruning", autocompletion=complete_group
        ),
    ] = None,
    task: Tasks = None,
    profile: Profile = "mini",
    as_json: AsJson = False,
) -> None:
    """Measure cells of a profile and store them; what is stored is read.

    With a group, its variants: several such commands share the work, and a killed one goes on.
    The group `pruning` holds the pruned models of experiments/pruning/grid.yaml.
    """
    from tipmini.lab.experiments import METHODS, Lab
    from tipmini.lab.profiles import load_profile

    show = lambda cell: show_cell(cell, as_json)  # noqa: E731
    if group == PRUNING:
        if task:
            raise TipminiError(f"group {PRUNING}: a run is scored on all it declares; omit --task")
        from tipmini.lab.pruning import measuring as prunings

        prunings.measure(load_profile(profile), method or (), show)
        return
    if group:
        from tipmini.lab import measuring

        measuring.measure(load_profile(profile), group, method or (), task or (), show)
        return
    lab = Lab(load_profile(profile))
    for name in task or lab.profile.tasks:
        for way in method or METHODS:
            show_cell(lab.cell(way, name), as_json)


@in_checkout
def norms(task: Tasks = None, profile: Profile = "mini") -> None:
    """Measure the input norms of a profile's adapters and store them; what is stored is kept."""
    from tipmini.lab.experiments import Lab
    from tipmini.lab.profiles import load_profile

    lab = Lab(load_profile(profile))
    for name in task or lab.profile.tasks:
        print(f"norms   {name:14} of {len(lab.input_norms(name))} inputs", flush=True)


@in_checkout
def book(profile: Profile = "mini") -> None:
    """Recompute what changed, execute the notebooks, build `_build/html/index.html`."""
    from tipmini.lab import workflow

    workflow.run(profile)


@in_checkout
def publish(executed: Annotated[Path, typer.Argument(help="folder of executed notebooks")]) -> None:
    """Check executed notebooks and build the book of them (a step of `tipmini book`)."""
    from tipmini.lab import book, paths
    from tipmini.lab.bench.stored import pictures
    from tipmini.lab.claims.page import page_values
    from tipmini.lab.front_page import front_page_values

    values = page_values() | front_page_values()  # a changed verdict is found at once
    book.stage(executed, paths.BUILD / "stage", values, pictures())
    book.build(paths.BUILD / "stage", paths.BUILD / "html")


def show_cell(cell, as_json: bool) -> None:
    facts = cell.model_dump(include={"method", "task", "metric"})
    facts |= {"mean": cell.mean, "stderr": cell.stderr, "count": cell.count}
    line = f"{cell.method:7} {cell.task:14} {cell.metric:8} {cell.mean:.4f} +- {cell.stderr:.4f}"
    print(json.dumps(facts) if as_json else f"{line} ({cell.count} rows)", flush=True)
