"""`tipmini blockwise`: merges that run the base model over examples of each adapter's task."""

import os
from functools import partial
from pathlib import Path

import tipmini as tm
from tipmini.errors import require
from tipmini.methods.table import BY_BLOCK
from tipmini.models.peft_folder import refuse_taken
from tipmini_lab.commands.arguments import (
    Base,
    Device,
    Dtype,
    Include,
    OneEach,
    Overwrite,
    TaskEach,
    Texts,
    option,
)
from tipmini_lab.commands.one import laboratory, refuse_unwritable, sources_named


def blockwise(
    adapters: OneEach,
    out: option(Path, "PEFT folder to write"),
    method: option(str, ", ".join(BY_BLOCK), known=lambda: BY_BLOCK) = "regmean++",
    task: TaskEach = None,
    text: Texts = None,
    include_path: Include = None,
    base: Base = "embedded",
    rows: option(int, "training examples per task", min=1) = 128,
    rank: option(int | None, "of the result, not of regmean++; default: all together") = None,
    shrink: option(float | None, "of what is off the Gram matrices' diagonal; 0.9") = None,
    balance: option(float | None, "power of each update's own output, 0 to 1; 0") = None,
    correction: option(float | None, "of drift: of what the merge's inputs are off by; 1") = None,
    epochs: option(int | None, "of layerwise, over these examples; 3", min=1) = None,
    learning_rate: option(float | None, "of layerwise, then a cosine; 0.001") = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Merge block by block, on what the blocks merged so far make of each adapter's own examples.

    It runs the base model, each adapter over its examples, which takes some minutes. Which
    of an example's choices is right isn't read, nor what answers a prompt.
    """
    require("method", method, BY_BLOCK)
    given = {"rank": rank, "shrink": shrink, "balance": balance, "correction": correction}
    given |= {"epochs": epochs, "learning_rate": learning_rate}
    named = sources_named(adapters, task, text)
    own = list(map(tm.load_adapter, adapters))
    if not overwrite:
        refuse_taken(out)
    refuse_unwritable(Path(f"{os.path.abspath(out)}.new"))  # before the minutes of work
    from tqdm import tqdm

    from tipmini.methods.blockwise import merge_blockwise
    from tipmini_lab.evaluation import tasks

    sources = tasks.sources(*named, include_path)
    lab = laboratory(base, dtype=dtype, device=device)
    texts = [tasks.unlabelled(*tasks.training(of, rows)) for of in sources.values()]
    encoded = [lab.tokenizer(own)["input_ids"] for own in texts]
    merged = merge_blockwise(
        lab.base,
        dict(zip(sources, own, strict=True)),
        dict(zip(sources, map(lab.norms.padded, encoded), strict=True)),
        method,
        base_model=base if Path(base).is_dir() else None,
        progress=partial(tqdm, desc=method, unit="block", disable=None, leave=False),
        **{name: value for name, value in given.items() if value is not None},
    ).of_one_rank()
    merged.save(out, overwrite=overwrite)
    print(f"{out}: {', '.join(sources)} merged by {method}, rank {max(merged.ranks.values())}")
