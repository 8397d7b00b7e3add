"""What a profile of the hub's model and data lacks on this machine, before anything heavy starts.

Of every repository no more than its configuration is fetched: whether it is there, and for a gated
one whether its licence is accepted. Each thing that is missing is one line, and all are told.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tipmini.errors import TipminiError
from tipmini.models.hub import fetched
from tipmini.models.peft_folder import read_settings
from tipmini_lab import paths
from tipmini_lab.evaluation import tasks
from tipmini_lab.evaluation.model import MODEL
from tipmini_lab.experiments.profiles import Profile


def refuse_unready(profile: Profile) -> None:
    """Tell on stderr all that is missing, a line each, and raise TipminiError if anything is."""
    lines = missing(profile)
    for line in lines:
        print(f"tipmini: {line}", file=sys.stderr)
    if lines:
        several = "one thing is" if len(lines) == 1 else f"{len(lines)} things are"
        raise TipminiError(f"profile {profile.name}: {several} missing here, told above")


def missing(profile: Profile) -> list[str]:
    """A line for each thing that the profile needs and does not find; none: it is ready."""
    if profile.data != "hub":
        return []
    size, lines = None, []
    try:
        size = weights_size(fetched(profile.model, ["config.json"]))
    except TipminiError as error:
        lines.append(f"model {error}")
    lines += [line for task in profile.tasks for line in _of_task(profile, task)]
    lines += _disk(profile, size)
    return lines + (_gpu(size) if profile.device == "cuda" else [])


def weights_size(folder: Path) -> int:
    """Bytes of a model's weights, by its configuration alone: in 16 bits, as models are stored."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        told = str(error).strip().partition("\n")[0]
        raise TipminiError(f"{folder}: no causal model ({told})") from None
    return 2 * sum(parameter.numel() for parameter in made.parameters())


def _of_task(profile: Profile, task: str) -> Iterator[str]:
    """What is missing of a task's adapter, and of its rows."""
    name = profile.adapters.format(task=profile.adapter_names.get(task, task))
    try:
        settings = read_settings(fetched(name, ["adapter_config.json"]))
        told = settings if isinstance(settings, dict) else {}
        if (kind := told.get("peft_type")) != "LORA":
            yield f"adapter {name}: its peft_type is {kind}, not LORA"
        if (base := told.get("base_model_name_or_path")) != profile.model:
            yield f"adapter {name}: it is of {base}, the profile's model is {profile.model}"
    except TipminiError as error:
        yield f"adapter {error}"
    try:
        tasks.resolve(task)
    except TipminiError as error:
        yield f"{error}"


def _disk(profile: Profile, size: int | None) -> Iterator[str]:
    """Room for the model's files, where they are not in the hub's cache."""
    from huggingface_hub import constants

    try:
        fetched(profile.model, MODEL, local=True)
    except TipminiError:
        place = Path(constants.HF_HUB_CACHE)
        above = next(folder for folder in (place, *place.parents) if folder.is_dir())
        free = shutil.disk_usage(above).free
        if size and free < size:
            yield f"disk: {place} has {_gb(free)} free, the model's files take {_gb(size)}"
    if not os.access(paths.REPOSITORY, os.W_OK):
        yield f"disk: {paths.REPOSITORY} cannot be written, where results go"


def _gpu(size: int | None) -> list[str]:
    """A GPU, or several, with memory for what the rehearsal held at the most."""
    if not torch.cuda.is_available():
        return ["device cuda: no GPU here; run it where there is one"]
    every = range(torch.cuda.device_count())
    memory = sum(torch.cuda.get_device_properties(number).total_memory for number in every)
    needed = max(size or 0, rehearsed())
    if memory < needed:
        return [f"device cuda: its memory is {_gb(memory)}, {_gb(needed)} are needed"]
    return []


def rehearsed() -> int:
    """Bytes at the peak of measuring, as the stored rehearsal has it; 0 where there is none."""
    if not paths.REHEARSAL.is_file():
        return 0
    steps = json.loads(paths.REHEARSAL.read_text())["steps"]
    return max(steps[name]["peak"] for name in ("calibrate", "evaluate", "generate"))


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
