"""Options that the laboratory's commands share, and what the shell completes them with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from tipmini import source
from tipmini.errors import require
from tipmini_lab import paths

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("cpu", "cuda")


def option(
    kind: object,
    help: str,
    *names: str,
    known: Callable[[], Iterable[str]] = lambda: (),
    **more: object,
) -> object:
    """The annotation of a command's option; `known` is what completes it, asked for only then."""
    offered = lambda incomplete: [n for n in known() if n.startswith(incomplete)]  # noqa: E731
    return Annotated[kind, typer.Option(*names, help=help, autocompletion=offered, **more)]


def task_names() -> tuple[str, ...]:
    return source.names("tipmini_lab.evaluation.documents", "ADAPTED")


def group_names() -> list[str]:
    return paths.declared("experiments")


def _known_dtype(dtype: str) -> str:
    require("dtype", dtype, DTYPES)
    return dtype


def _known_device(device: str) -> str:
    require("device", device, DEVICES)
    return device


FORMAT = "of the model; auto: bfloat16 where this machine is faster in it, else float32"
YAML = "smoke, mini, full, a40, or a YAML file"

Base = option(str, "model folder, hub id, or `embedded`")
Dtype = option(str, FORMAT, known=lambda: DTYPES, callback=_known_dtype)
Device = option(str, "cpu or cuda", known=lambda: DEVICES, callback=_known_device)
Overwrite = option(bool, "replace a file of something else", "--overwrite")
Profile = option(str, YAML, known=lambda: paths.declared("profiles"))
OWN = "your own examples: a .txt (one per line) or .jsonl (text, or prompt and answer)"
Texts = option(list[Path] | None, f"{OWN}; again for several", "--text")
Include = option(Path | None, "folder of lm-eval's task YAMLs of your own")
Tasks = option(list[str] | None, "again for several; all by default", "--task", known=task_names)
OneEach = Annotated[list[Path], typer.Argument(help="PEFT folders, one per task or text")]
EACH = "one per adapter, in order; default: the folders' names"
TaskEach = option(list[str] | None, EACH, "--task", known=task_names)
