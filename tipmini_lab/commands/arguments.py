"""Arguments that the laboratory's commands share, and what the shell completes them with."""

from typing import Annotated

import typer

from tipmini.errors import require
from tipmini_lab import checkout

PRUNING = "pruning"  # a group of `measure` beside those of experiments/*.yaml

Base = Annotated[str, typer.Option(help="model folder, hub id, or `embedded`")]

DTYPES = ("auto", "bfloat16", "float16", "float32")


def _known_dtype(dtype: str) -> str:
    require("dtype", dtype, DTYPES)
    return dtype


Dtype = Annotated[
    str,
    typer.Option(
        help="of the model; auto: bfloat16 where this machine is faster in it, else float32",
        callback=_known_dtype,
        autocompletion=lambda incomplete: [d for d in DTYPES if d.startswith(incomplete)],
    ),
]


def complete_task(incomplete: str) -> list[str]:
    return [task for task in checkout.task_names() if task.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    return [name for name in checkout.profile_names() if name.startswith(incomplete)]


def complete_group(incomplete: str) -> list[str]:
    known = [*checkout.group_names(), PRUNING]
    return [name for name in known if name.startswith(incomplete)]


Profile = Annotated[
    str,
    typer.Option(help="smoke, mini, full, a40, or a YAML file", autocompletion=complete_profile),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="again for several; all by default", autocompletion=complete_task),
]
