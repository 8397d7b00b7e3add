"""`tipmini merge`: its flags and its help, the merge itself, and its report."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import tipmini as tm
from tipmini.cli.arguments import ADAPTERS, AsJson, complete_method, complete_option, examples
from tipmini.errors import TipminiError, printable

if TYPE_CHECKING:  # what the methods and torch are needed for comes after the arguments are read
    from tipmini.cli.merge_request import Inputs, Request
    from tipmini.methods.merge import Fidelity, Part

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

INTO = "folder of the base model: write it merged instead of an adapter"
RULES = (
    "or: sum (1 each), mean (1/T), sqrt (1/sqrt(T)), chosen, 0.7/T; 0.7/norm (adds up to 0.7, in"
    " proportion to 1 / each update's norm), 0.7/module-norm; 0.5,0.5; weigh's .json file"
)
EACH = "one file an adapter; it says which, else they stand in the adapters' order"
ONE_BASE = "name or folder of the adapters' one base, where they name it or its modules unlike"
HEADS = "of modules trained whole: the adapter's name whose are kept, or average"
HOW = ("config", "dry_run", "quiet", "as_json", "option", "weight")  # what is no argument itself

Progress = Callable[..., Iterable]  # (things, desc="merging", unit="module") -> the things


def merge(
    adapters: list[Path] = typer.Argument(None, help=ADAPTERS, show_default=False),
    out: Path = typer.Option(None, help="folder of the result"),
    into: Path = typer.Option(None, help=INTO),
    method: str = typer.Option(
        None, help="see `tipmini methods`; recommended by default", autocompletion=complete_method
    ),
    weight: list[float] = typer.Option(None, help="one an adapter, in their order"),
    weights: str = typer.Option(None, help=RULES),
    norms: list[Path] = typer.Option(None, help=f"input norms, {EACH}"),
    grams: list[Path] = typer.Option(None, help=f"Gram matrices, {EACH}"),
    sparsity: str = typer.Option(None, help="of tip (S_org), wanda, magnitude"),
    sign: str = typer.Option(None, help="of tip: 1 as in Eq. 5, -1 inverted"),
    drop_rate: str = typer.Option(None, help="p of dare and dare_ties"),
    density: str = typer.Option(None, help="fraction kept, of ties, knots"),
    on: str = typer.Option(None, help="factors or delta; A too for tip"),
    summation: str = typer.Option(None, help="linear, cat or svd"),
    rank: str = typer.Option(None, help="of an adapter cut by SVD"),
    option: list[str] = typer.Option(
        None,
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="any option of the method; again for several",
        autocompletion=complete_option,
    ),
    seed: int = typer.Option(None, help="of the random methods; 0 by default"),
    base_model: str = typer.Option(None, help=ONE_BASE),
    heads: str = typer.Option(None, help=HEADS),
    dtype: str = typer.Option(None, help="of the result: float32, bfloat16, float16"),
    rank_pattern: bool = typer.Option(
        False, "--rank-pattern", help="each module its own rank; else one for all, by zeros"
    ),
    pickle: bool = typer.Option(
        False, "--pickle", help="read adapter_model.bin, numbers alone; safetensors else"
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="replace what the folder holds"),
    config: Path = typer.Option(None, help="YAML file of these arguments"),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="check and estimate the cost, write nothing"
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="no progress"),
    as_json: AsJson = False,
) -> None:
    """Merge adapters of one base model into one; the base model is not needed.

    Its relative error is its distance from the exact sum of the adapters, each times its weight.
    """
    # Nothing else is local yet: the flags.
    given = {n: v for n, v in locals().items() if n not in HOW and v not in (None, [], False)}
    from tipmini.cli.merge_request import make_request, parse_options

    options = parse_options(option or (), taken=given)
    if weight and weights:
        raise TipminiError("give --weight numbers or --weights, not both")
    given |= options | ({"weights": weight} if weight else {})
    request = make_request(given, config)
    if dry_run:
        from tipmini.cli.merge_plan import reckon

        facts, tell = reckon(request), _tell_plan
    else:
        facts, tell = run(request, _bar(silent=quiet or as_json)), _tell
    for note in facts["notes"]:
        print(f"tipmini: {printable(note)}", file=sys.stderr)
    print(json.dumps(facts)) if as_json else tell(facts)


def run(request: "Request", progress: Progress) -> dict[str, object]:
    """Read, merge, measure the error and write; returns what there is to tell of it."""
    from tipmini.cli.merge_request import describe, open_inputs
    from tipmini.methods.merge import Fidelity
    from tipmini.methods.weighting import adapter_digest, weights_of

    load = partial(tm.load_adapter, heads=bool(request.heads), pickle=request.pickle)
    inputs = open_inputs(request, load, weights_of, adapter_digest)
    start = time.perf_counter()
    shared = {"weights": inputs.weights, "base_model": inputs.base_model}
    given = {"method": request.method, "norms": inputs.norms, "grams": inputs.grams}
    given |= shared | {"seed": request.seed} | request.options
    parts, exact = tm.merge_update(inputs.adapters, "cat", norms=inputs.norms, **shared)
    facts = describe(request, inputs)
    if inputs.base:
        fidelity = Fidelity(tm.merge_update(inputs.adapters, **given)[1], exact)
        tm.save_merged(
            inputs.base,
            fidelity,
            request.out,
            fan_in_fan_out=any(part.adapter.fan_in_fan_out for part in parts),
            beside={"README.md": lambda: _card(request, inputs, parts, fidelity).encode()},
            overwrite=request.overwrite,
            progress=partial(progress, desc="merging", unit="tensor"),
        )
    else:
        step = partial(progress, desc="merging", unit="module")
        heads = request.heads or "refuse"
        merged = tm.merge(inputs.adapters, **given, heads=heads, progress=step)
        merged = merged if request.rank_pattern else merged.of_one_rank()
        fidelity = Fidelity(merged.rounded(request.torch_dtype).factors, exact)
        for module in progress(merged.modules, desc="comparing", unit="module"):
            fidelity[module]  # reading measures
        card = _card(request, inputs, parts, fidelity)
        merged.save(request.out, request.torch_dtype, card, overwrite=request.overwrite)
        facts["max_lora_rank"] = max(merged.ranks.values())
    facts["relative_error"] = {"whole": fidelity.whole(), "modules": fidelity.modules()}
    return facts | {"seconds": time.perf_counter() - start}


def _card(request: "Request", inputs: "Inputs", parts: "list[Part]", fidelity: "Fidelity") -> str:
    """The README.md of the merged adapter or base."""
    from importlib.metadata import version

    from tipmini.methods.model_card import CardInput, model_card
    from tipmini.methods.weighting import told
    from tipmini.models.hub import source

    learnt = isinstance(request.weights, Path)
    by_module = not learnt and str(request.weights).endswith("/module-norm")
    used = {}
    for part, folder in zip(parts, inputs.folders.values(), strict=True):
        weight = request.weights if by_module else part.weight
        if learnt:
            weight = told(inputs.weights[part.name].values())
        used[part.name] = CardInput(_sha256(folder), weight, source(folder))
    return model_card(
        request.method,
        request.options,
        used,
        seed=request.seed,
        version=version("tipmini"),
        base_model=inputs.base_model,
        task_type=None if inputs.base else parts[0].adapter.task_type,
        sparsity=_sparsities(request, parts),
        fidelity=fidelity.layers() if request.options.get("layer", "block") == "block" else None,
        into=bool(inputs.base),
    )


def _sha256(folder: Path) -> str:
    """Of the factors' file, as the hub shows it."""
    from tipmini.models.peft_folder import PICKLE, WEIGHTS

    file = folder / WEIGHTS
    with (file if file.is_file() else folder / PICKLE).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sparsities(request: "Request", parts: "list[Part]") -> dict[str, dict[str, float]] | None:
    """{adapter: {layer: S_l}} of a method that prunes by TIP's layers, as wanda does with one S."""
    from tipmini.methods.tip import layer_names, sparsities_of
    from tipmini.papers.tip import Reading

    if "layer" not in request.options:
        return None
    fields = Reading.__dataclass_fields__
    reading = Reading(**{n: value for n, value in request.options.items() if n in fields})
    found = sparsities_of([(part.adapter, part.norms) for part in parts], reading)
    return {
        part.name: dict(zip(layer_names(part.adapter, reading), shares.tolist(), strict=True))
        for part, shares in zip(parts, found, strict=True)
    }


# Told ---------------------------------------------------------------------------------------------
def _bar(silent: bool) -> Progress:
    """tqdm on stderr, with an estimate; nothing where that is no terminal."""
    from tqdm import tqdm

    return partial(tqdm, disable=silent or None, leave=False)  # None: shown on a terminal alone


def _tell(facts: dict) -> None:
    whole = facts["relative_error"]["whole"]
    print(f"{_what(facts)} merged by {_how(facts)} in {facts['seconds']:.1f} s")
    figure = ": the exact sum is 0" if whole is None else f" = {whole:.4g}"
    print(f"relative error: ||merged - exact sum|| / ||exact sum||{figure}")
    print("that is how far it is from the plain sum, not how good: evaluate it on your tasks")
    if rank := facts.get("max_lora_rank"):
        print(f"rank {rank}: what serves it must allow as much (vLLM: --max-lora-rank)")


def _tell_plan(facts: dict) -> None:
    estimate = facts["estimate"]
    print(f"{_what(facts)} would be merged by {_how(facts)}; nothing is written")
    for path in facts["adapters"]:
        print(f"  adapter  {path}")
    for name, value in facts["options"].items():
        print(f"  option   {name} = {value}")
    print(f"  weights  {_weights(facts)}, seed {facts['seed']}")
    print(f"  output   {estimate['output_bytes'] / 1e6:.1f} MB")
    print(f"  memory   about {estimate['memory_bytes'] / 1e6:.0f} MB at the peak")
    print(f"  time     about {estimate['seconds']:.1f} s")


def _how(facts: dict) -> str:
    name = facts["method"]
    of = f"{tm.PRESETS[name].method}, " if name in tm.PRESETS else ""
    return f"{name} ({of}weights {_weights(facts)})"


def _weights(facts: dict) -> str:
    each = f", {facts['weight']:.4g} each" if "weight" in facts else ""
    return f"{facts['weights']}{each}"


def _what(facts: dict) -> str:
    target = f" into {facts['into']}" if facts["into"] else ""
    count = len(facts["adapters"])
    several = "s" if count > 1 else ""
    return f"{facts['out']}: {facts['modules']} modules of {count} adapter{several}{target}"
