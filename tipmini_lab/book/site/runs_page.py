"""The page of all measurements: what, when, on what machine, in which format, for how long."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from tipmini_lab import paths
from tipmini_lab.book.tables import markdown_table
from tipmini_lab.results import runs
from tipmini_lab.results.runs import Run

RESULTS = paths.REPOSITORY / "results"
# What the folders and files of `results/` hold; another is named by its place alone.
TITLES = {
    "mini/cells": "Base, Single, Linear, DARE and TIP at `mini`",
    "mini": "variants of the merges at `mini`",
    "full/cells": "Base, Single, Linear, DARE and TIP at `full`",
    "full/variants": "variants of the merges at `full`",
    "full": "learned weights of adapters",
    "selection": "variants on the validation set",
    "selection/finals": "finalists on the whole validation set",
    # Of the adapters of a seed each
    "mini-seeds/cells": "Base, Single, Linear, DARE and TIP at `mini-seeds`",
    "mini-seeds/variants": "variants of the merges at `mini-seeds`",
    "mini-seeds": "learned weights of the adapters of a seed each",
    "full-seeds/cells": "Base, Single, Linear, DARE and TIP at `full-seeds`",
    "full-seeds/variants": "variants of the merges at `full-seeds`",
    "selection/own-seeds": "variants of the adapters of a seed each, on the validation set",
    "selection/own-seeds/finals": "finalists of these on the whole validation set",
    "pruning": "pruned models",
    "pruning/mmlu": "pruned models on MMLU",
    "lora/lora-methods": "ways to tune a model side by side",
    "lora/lora-matrices": "LoRA on other matrices",
    "lora/lora-ranks": "LoRA of other ranks",
    "lora/lora-prefixes": "prefixes of other lengths",
    "lora/lora-scalings": "learning rates at other scales of LoRA",
    "elastic": "elastic adapters and their searches",
    "formats/bfloat16-avx512": "the five methods in bfloat16, AVX512",
    "formats/bfloat16-emulated": "the five methods in bfloat16, emulated",
    "formats/float32-avx2": "the five methods in float32, AVX2",
    "bench.json": "time and memory of the main steps",
    "lora-bench.json": "time and memory of LoRA",
    "serving.json": "time and memory of serving",
    "parity.json": "agreement with other libraries",
    "adapters": "training of the adapters",
    "adapters/own-seeds": "training of the adapters of a seed each",
}
Files = Mapping[Path, list[Run]]


def groups() -> dict[str, Files]:
    """{folder or single file: the files with runs in it}, in the order of `TITLES`."""
    found: dict[str, dict[Path, list[Run]]] = {}
    for file in sorted(RESULTS.rglob("*.json")):
        folder = file.parent.relative_to(RESULTS).as_posix()
        _add(found, file.name if folder == "." else folder, file)
    for file in sorted(paths.ADAPTERS.rglob("training.json")):
        _add(found, file.parents[1].relative_to(paths.REPOSITORY).as_posix(), file)
    known = [name for name in TITLES if name in found]
    return {name: found[name] for name in [*known, *sorted(found.keys() - set(known))]}


def _add(found: dict, group: str, file: Path) -> None:
    if own := list(runs.of_file(file)):
        found.setdefault(group, {})[file] = own


def table(found: Mapping[str, Files]) -> pd.DataFrame:
    """A line a group."""
    lines = {
        title(group): _told([r for own in files.values() for r in own])
        for group, files in found.items()
    }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index.name = "what"
    return frame


def details(files: Files) -> pd.DataFrame:
    """A line a file of a group."""
    lines = {_name(file): _told(own) for file, own in files.items()}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index.name = "file"
    return frame


def _folded(group: str, files: Files) -> str:
    told = markdown_table(details(files))
    return f":::{{dropdown}} {title(group)}: {len(files)} files\n\n{told}\n\n:::"


def title(group: str) -> str:
    return TITLES.get(group, f"`{group}`")


def _name(file: Path) -> str:
    return f"`{file.parent.name if file.name == 'training.json' else file.stem}`"


def _told(own: list[Run]) -> dict[str, str]:
    return {
        "time": runs.duration(runs.seconds(own)),
        "measurements": f"{len(own):,}",
        "measured": runs.dates(own) or "–",
        "number format": ", ".join(runs.formats(own)) or "–",
        "machine": "<br>".join(runs.machines(own)),
    }


def page_values() -> dict[str, str]:
    """What `book/runs.md` names."""
    found = groups()
    every = [run for files in found.values() for own in files.values() for run in own]
    folded = [_folded(group, files) for group, files in found.items() if len(files) > 1]
    return {
        "runs_count": f"{len(every):,}",
        "runs_dates": runs.dates(every),
        "runs_time": runs.duration(runs.seconds(every)),
        "runs_table": markdown_table(table(found)),
        "runs_details": "\n\n".join(folded),
    }
