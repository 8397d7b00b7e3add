"""What an adapter answers, kept for the runs that ask the same of it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import safetensors

from tipmini_lab.evaluation.agreement import Answered
from tipmini_lab.evaluation.packing import Row
from tipmini_lab.results import checked


def save(every: Sequence[Answered], file: Path, seconds: float) -> None:
    """All, and how long it took, in one safetensors file, there whole or not at all."""
    told = [vars(each) | {"row": vars(each.row), "own": None} for each in every]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, owns = file.with_suffix(".partial"), {str(i): e.own for i, e in enumerate(every)}
    checked.save_file(owns, partial, {"examples": json.dumps(told), "seconds": str(seconds)})
    os.replace(partial, file)


def load(file: Path) -> tuple[list[Answered], float]:
    """What `save` wrote; nothing where the file is missing or damaged."""
    if not checked.is_whole(file):
        return [], 0.0
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        told = json.loads(metadata["examples"])
        owns = [opened.get_tensor(str(i)) for i in range(len(told))]
    found = [
        Answered(**each | {"row": Row(**each["row"]), "own": own})
        for each, own in zip(told, owns, strict=True)
    ]
    return found, float(metadata["seconds"])
