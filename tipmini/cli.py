"""The command line: `tipmini --help`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import tipmini as tm
from tipmini.errors import TipminiError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="TIP: task importance-based pruning for merging LoRA adapters.",
)

Adapters = Annotated[list[Path], typer.Argument(help="PEFT adapter folders", show_default=False)]
Profile = Annotated[str, typer.Option(help="smoke, mini, full, a40, or a YAML file")]
Base = Annotated[str, typer.Option(help="model folder, hub id, or `embedded`")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


@app.command(epilog="Example: `tipmini methods`")
def methods(as_json: AsJson = False) -> None:
    """List what can be merged how, one line each."""
    lines = {name: merge.__doc__.splitlines()[0] for name, merge in tm.METHODS.items()}
    if as_json:
        found = {n: {"what": lines[n], "options": tm.method_options(n)} for n in tm.METHODS}
        print(json.dumps(found))
        return
    for name, line in lines.items():
        print(f"{name:8} {line}")


@app.command(epilog="Example: `tipmini inspect adapters/piqa adapters/boolq`")
def inspect(adapters: Adapters, as_json: AsJson = False) -> None:
    """Show rank, scaling, targets, size and base model of adapters."""
    found = {str(path): _description(tm.load_adapter(path)) for path in adapters}
    if as_json:
        print(json.dumps(found))
        return
    for path, facts in found.items():
        print(path)
        for name, value in facts.items():
            print(f"  {name:10} {value}")


def _description(adapter: tm.LoraAdapter) -> dict[str, object]:
    factors = adapter.factors.values()
    return {
        "base": adapter.base_model,
        "modules": len(adapter.modules),
        "targets": sorted({module.rsplit(".", 1)[-1] for module in adapter.modules}),
        "ranks": sorted(set(adapter.ranks.values())),
        "scaling": sorted(set(adapter.scaling.values())),
        "parameters": sum(pair.a.numel() + pair.b.numel() for pair in factors),
    }


@app.command(
    epilog="Example: `tipmini merge --method linear --out merged adapters/piqa adapters/rte`"
)
def merge(
    adapters: Adapters,
    out: Annotated[Path, typer.Option(help="folder of the merged adapter")],
    method: Annotated[str, typer.Option(help="see `tipmini methods`")] = "tip",
    norms: Annotated[
        list[Path] | None, typer.Option(help="input norms, one file an adapter, in their order")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="S_org of tip")] = None,
    drop_rate: Annotated[float | None, typer.Option(help="p of dare")] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="one an adapter, in their order; 1 each by default")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the random methods")] = 0,
) -> None:
    """Merge adapters of one base model into one; the base model is not needed."""
    from safetensors.torch import load_file

    given = {"sparsity": sparsity, "drop_rate": drop_rate}
    options = {name: value for name, value in given.items() if value is not None}
    loaded = [tm.load_adapter(path) for path in adapters]
    read = [load_file(_existing(path)) for path in norms] if norms else None
    merged = tm.merge(loaded, method, norms=read, weights=weight or None, seed=seed, **options)
    merged.save(out)
    print(f"{out}: {len(loaded)} adapters merged by {method}")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise TipminiError(f"{path}: no such file; `tipmini calibrate` writes norms")
    return path


@app.command(epilog="Example: `tipmini calibrate --task piqa --out piqa.safetensors`")
def calibrate(
    task: Annotated[str, typer.Option(help="its train rows are read")],
    out: Annotated[Path, typer.Option(help="where the norms are written")],
    base: Base = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="default `adapters/TASK`")] = None,
    rows: Annotated[int, typer.Option(help="train rows")] = 128,
) -> None:
    """Measure the input norms that tip needs of an adapter, on a task's own train rows."""
    from tipmini.lab.experiments import save_tensors

    own = str((adapter or Path("adapters") / task).resolve())
    lab = _lab(base, adapters=own, calibration_rows=rows)
    save_tensors(lab.calibrate(task), out, {"task": task, "adapter": own, "base": base})
    print(f"{out}: input norms of {own} on {rows} rows of {task}")


@app.command(epilog="Example: `tipmini evaluate --adapter adapters/rte --task rte --limit 20`")
def evaluate(
    task: Annotated[list[str], typer.Option("--task", "--tasks", help="again for several")],
    base: Base = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder; none: the base alone")] = None,
    limit: Annotated[int | None, typer.Option(help="rows a task; all by default")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file of the results")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model, with or without an adapter, on tasks."""
    from tipmini.lab import results

    lab = _lab(base, evaluation_rows=limit)
    names = [name for given in task for name in given.split(",")]
    way = "adapter" if adapter else "base"
    cells = [lab.measure(way, adapter, lab.task(name)) for name in names]
    for cell in cells:
        _show(cell, as_json)
    if out:
        results.write(out, json.dumps([cell.model_dump() for cell in cells]) + "\n")


@app.command(epilog="Example: `tipmini measure --profile smoke --method single --task rte`")
def measure(
    method: Annotated[list[str] | None, typer.Option(help="all by default")] = None,
    task: Annotated[list[str] | None, typer.Option(help="all of the profile by default")] = None,
    profile: Profile = "mini",
    as_json: AsJson = False,
) -> None:
    """Measure cells of a profile and store them; what is stored is read."""
    from tipmini.lab.experiments import METHODS, Lab
    from tipmini.lab.profiles import load_profile

    lab = Lab(load_profile(profile))
    for name in task or lab.profile.tasks:
        for way in method or METHODS:
            _show(lab.cell(way, name), as_json)


@app.command(epilog="Example: `tipmini norms --profile smoke --task rte`")
def norms(
    task: Annotated[list[str] | None, typer.Option(help="all of the profile by default")] = None,
    profile: Profile = "mini",
) -> None:
    """Measure the input norms of a profile's adapters and store them; what is stored is kept."""
    from tipmini.lab.experiments import Lab
    from tipmini.lab.profiles import load_profile

    lab = Lab(load_profile(profile))
    for name in task or lab.profile.tasks:
        print(f"norms   {name:14} of {len(lab.input_norms(name))} inputs", flush=True)


def _lab(base: str, **settings: object):
    """A Lab of its own for one command, which stores nothing."""
    from tipmini.lab.experiments import Lab
    from tipmini.lab.profiles import Profile

    made = {"name": "command line", "description": "one command", "results": "_build/results/cli"}
    return Lab(Profile(**made, model=base, **settings))


def _show(cell, as_json: bool) -> None:
    facts = cell.model_dump(include={"method", "task", "metric"})
    facts |= {"mean": cell.mean, "stderr": cell.stderr, "count": cell.count}
    line = f"{cell.method:7} {cell.task:14} {cell.metric:8} {cell.mean:.4f} +- {cell.stderr:.4f}"
    print(json.dumps(facts) if as_json else f"{line} ({cell.count} rows)", flush=True)


@app.command(epilog="Example: `tipmini fetch`")
def fetch() -> None:
    """Fetch the embedded model and data, verified by hash, into the cache."""
    from tipmini.lab import assets

    print(assets.fetch())


@app.command(epilog="Example: `tipmini adapters --task rte`")
def adapters(
    task: Annotated[list[str] | None, typer.Option(help="all seven by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder; default `adapters`")] = None,
) -> None:
    """Train the task adapters; a killed training goes on where it stopped."""
    from tipmini.lab import assets, paths, training

    assets.fetch()
    for name in task or training.RECIPES:
        print(training.train(name, (out or paths.ADAPTERS) / name))


@app.command(epilog="Example: `tipmini book --profile mini`")
def book(profile: Profile = "mini") -> None:
    """Recompute what changed, execute the notebooks, build `_build/html/index.html`."""
    from tipmini.lab import workflow

    workflow.run(profile)


@app.command(epilog="Example: `tipmini publish _build/executed/mini`")
def publish(executed: Annotated[Path, typer.Argument(help="folder of executed notebooks")]) -> None:
    """Check executed notebooks and build the book of them (a step of `tipmini book`)."""
    from tipmini.lab import book, paths, tables

    book.stage(executed, paths.BUILD / "stage", tables.front_page_values())
    book.build(paths.BUILD / "stage", paths.BUILD / "html")


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: `tipmini lm-eval run --help`",
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with the model `tipmini` registered."""
    from lm_eval.__main__ import cli_evaluate

    import tipmini.lab  # noqa: F401  registers the model

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()


def main() -> None:
    """Run; what the user can mend is one line and exit code 2."""
    try:
        app()
    except TipminiError as error:
        print(f"tipmini: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
