"""`tipmini merge`: its flags, its help and what it prints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

import tipmini as tm
from tipmini.cli.arguments import AsJson, complete_method, complete_option, examples
from tipmini.cli.merge_request import parse_options
from tipmini.errors import TipminiError

CONFIG = """\
method: tip
sparsity: 0.6
sign: -1
weights: mean
norms: [piqa.safetensors, rte.safetensors]
adapters: [adapters/piqa, adapters/rte]
out: merged
"""

EPILOG = f"""\
{
    examples(
        "tipmini merge --out merged adapters/piqa adapters/rte",
        "tipmini merge --method linear --weights mean --out merged adapters/piqa adapters/rte",
        "tipmini merge --method tip --sparsity 0.6 -o layer=module --out merged"
        " --norms piqa.safetensors --norms rte.safetensors adapters/piqa adapters/rte",
        "tipmini merge --method regmean --out merged --grams piqa-grams.safetensors"
        " --grams rte-grams.safetensors adapters/piqa adapters/rte",
        "tipmini merge --weights weights.json --out merged adapters/piqa adapters/rte",
        "tipmini merge --method ties -o variant=authors --dry-run --out merged"
        " adapters/piqa adapters/rte",
        "tipmini merge --method cat --into base --out merged-base adapters/piqa adapters/rte",
        "tipmini merge --config merge.yaml --seed 1 --json",
    )
}

merge.yaml gives any of these by name, an option of the method beside the others; what is also on
the command line counts there, and paths are as on the command line:

```yaml
{CONFIG}```
"""

PATHS = "one file an adapter, in their order"


def merge(
    adapters: Annotated[
        list[Path] | None, typer.Argument(help="PEFT adapter folders", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the result")] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="folder of the base model: write it merged instead of an adapter"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="see `tipmini methods`; recommended by default",
            autocompletion=complete_method,
        ),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="one an adapter, in their order")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="or: sum (1 each), mean (1/T), sqrt (1/sqrt(T)), 0.7/T; weigh's .json file"
        ),
    ] = None,
    norms: Annotated[list[Path] | None, typer.Option(help=f"input norms, {PATHS}")] = None,
    grams: Annotated[list[Path] | None, typer.Option(help=f"Gram matrices, {PATHS}")] = None,
    sparsity: Annotated[str | None, typer.Option(help="of tip (S_org), wanda, magnitude")] = None,
    sign: Annotated[str | None, typer.Option(help="of tip: 1 as printed, -1 inverted")] = None,
    drop_rate: Annotated[str | None, typer.Option(help="p of dare and dare_ties")] = None,
    density: Annotated[str | None, typer.Option(help="share that stays, of ties, knots")] = None,
    on: Annotated[str | None, typer.Option(help="factors or delta; A too for tip")] = None,
    summation: Annotated[str | None, typer.Option(help="linear, cat or svd")] = None,
    rank: Annotated[str | None, typer.Option(help="of an adapter cut by SVD")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="any option of the method; again for several",
            autocompletion=complete_option,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the random methods; 0 by default")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="name of the adapters' one base, where they name it unlike")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of these arguments")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check, tell what it would cost, write nothing")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge adapters of one base model into one; the base model is not needed.

    The result is told with its fidelity, how far it is from the exact sum of the adapters, each
    times its weight.
    """
    common = {"sparsity": sparsity, "sign": sign, "drop_rate": drop_rate, "density": density}
    common |= {"on": on, "summation": summation, "rank": rank}
    options = parse_options(
        [*(option or ()), *(f"{n}={v}" for n, v in common.items() if v is not None)]
    )
    flags = {"adapters": adapters, "out": out, "into": into, "method": method, "seed": seed}
    flags |= {
        "weights": _one_of(weight, weights),
        "norms": norms,
        "grams": grams,
        "base_model": base_model,
    }
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    from tipmini.cli.merge_request import make_request

    request = make_request(given | options, config)
    if dry_run:
        from tipmini.cli.merge_plan import reckon

        _tell_plan(reckon(request), as_json)
    else:
        from tipmini.cli.merge_run import run

        _tell(run(request, _bar(silent=quiet or as_json)), as_json)


def _one_of(weight: list[float] | None, weights: str | None) -> object:
    if weight and weights:
        raise TipminiError("give --weight numbers or --weights, not both")
    return weight or weights


def _bar(silent: bool):
    """tqdm on stderr, with an estimate; nothing where that is no terminal."""
    from tqdm import tqdm

    def bar(things: Iterable, what: str, unit: str) -> Iterable:
        # None: shown on a terminal alone
        return tqdm(things, what, unit=unit, disable=silent or None, leave=False)

    return bar


def _tell(facts: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    whole = facts["fidelity"]["whole"]
    print(f"{_what(facts)} merged by {_how(facts)} in {facts['seconds']:.1f} s")
    figure = "the exact sum is 0" if whole is None else f"{whole:.4g}"
    print(f"fidelity: ||merged - exact sum|| / ||exact sum|| = {figure}")


def _tell_plan(facts: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    estimate = facts["estimate"]
    print(f"{_what(facts)} would be merged by {_how(facts)}; nothing is written")
    for path in facts["adapters"]:
        print(f"  adapter  {path}")
    for name, value in facts["options"].items():
        print(f"  option   {name} = {value}")
    print(f"  weights  {facts['weights']}, seed {facts['seed']}")
    print(f"  output   {estimate['output_bytes'] / 1e6:.1f} MB")
    print(f"  memory   about {estimate['memory_bytes'] / 1e6:.0f} MB at the peak")
    print(f"  time     about {estimate['seconds']:.1f} s")


def _how(facts: dict) -> str:
    name = facts["method"]
    if name not in tm.PRESETS:
        return name
    return f"{name} ({tm.PRESETS[name].method}, weights {facts['weights']})"


def _what(facts: dict) -> str:
    target = f" into {facts['into']}" if facts["into"] else ""
    return (
        f"{facts['out']}: {facts['modules']} modules of {len(facts['adapters'])} adapters{target}"
    )
