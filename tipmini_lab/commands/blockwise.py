"""`tipmini blockwise`: merges that run the base model over rows of each adapter's task."""

from functools import partial
from pathlib import Path

import tipmini as tm
from tipmini.errors import TipminiError, require
from tipmini.methods.table import BY_BLOCK
from tipmini.models.peft_folder import refuse_taken
from tipmini_lab.commands.arguments import (
    Base,
    Dtype,
    Include,
    Overwrite,
    Texts,
    option,
    task_names,
)
from tipmini_lab.commands.one import laboratory


def blockwise(
    out: option(Path, "folder of the merged adapter"),
    method: option(str, ", ".join(BY_BLOCK), known=lambda: BY_BLOCK) = "regmean++",
    task: option(list[str] | None, "again for several", known=task_names) = None,
    text: Texts = None,
    include_path: Include = None,
    base: Base = "embedded",
    adapter: option(
        list[Path] | None, "one per task and text, in this order; default `adapters/TASK`"
    ) = None,
    rows: option(int, "training examples per task", min=1) = 128,
    rank: option(int | None, "of drift's result; the adapters' together by default") = None,
    shrink: option(float | None, "of what is off the Gram matrices' diagonal; 0.9") = None,
    balance: option(float | None, "power of each update's own output, 0 to 1; 0") = None,
    correction: option(float | None, "of drift: of what the merge's inputs are off by; 1") = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Merge adapters block by block on what the merged blocks make of unlabelled examples.

    It runs the base model, each adapter over its own examples: about three passes over all of them.
    """
    require("method", method, BY_BLOCK)
    given = {"rank": rank, "shrink": shrink, "balance": balance, "correction": correction}
    names = [*(task or ()), *(file.name for file in text or ())]
    if not names:
        raise TipminiError("give --task or --text: what each adapter's examples are")
    if text and not adapter:
        raise TipminiError("--text needs --adapter: the folders that are merged")
    folders = adapter or [Path("adapters") / name for name in names]
    if len(folders) != len(names):
        raise TipminiError(f"--adapter must be one a task, {len(names)}, got {len(folders)}")
    own = [tm.load_adapter(folder) for folder in folders]
    if not overwrite:
        refuse_taken(out)
    from tqdm import tqdm

    from tipmini.methods.blockwise import merge_blockwise
    from tipmini_lab.evaluation import tasks

    sources = tasks.sources(task or (), text or (), include_path)
    lab = laboratory(base, dtype=dtype)
    encoded = [lab.tokenizer(tasks.texts(of, rows))["input_ids"] for of in sources.values()]
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
    print(f"{out}: {', '.join(names)} merged by {method}, rank {max(merged.ranks.values())}")
