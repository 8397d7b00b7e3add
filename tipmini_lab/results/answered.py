"""What an adapter answers, kept for the runs that ask the same of it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import safetensors

from tipmini_lab.evaluation.agreement import Answered
from tipmini_lab.evaluation.packing import Row
from tipmini_lab.results import checked

TENSORS = ("said", "own")  # of Answered


def save(every: Sequence[Answered], file: Path, seconds: float) -> None:
    """All, and how long it took, in one safetensors file, there whole or not at all."""
    told, tensors = [], {}
    for number, each in enumerate(every):
        own = {f"{name} {number}": getattr(each, name) for name in TENSORS}
        tensors |= {name: tensor for name, tensor in own.items() if tensor is not None}
        told.append(vars(each) | {"row": vars(each.row)} | dict.fromkeys(TENSORS))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    checked.save_file(tensors, partial, {"examples": json.dumps(told), "seconds": str(seconds)})
    os.replace(partial, file)


def load(file: Path) -> tuple[list[Answered], float]:
    """What `save` wrote; nothing where the file is missing or damaged."""
    if not checked.is_whole(file):
        return [], 0.0
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        told = json.loads(metadata["examples"])
        for name in opened.keys():  # noqa: SIM118  no mapping
            kind, number = name.split()
            told[int(number)][kind] = opened.get_tensor(name)
    found = [Answered(**each | {"row": Row(**each["row"])}) for each in told]
    return found, float(metadata["seconds"])
