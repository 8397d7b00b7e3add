"""What is stored of the paper's methods, computed again on this machine: a part of it for the book,
or all of it (`tipmini reproduce`).

Everything is computed in the number format that it is stored in. Merges of the stored norms must be
equal bit for bit or to rounding, norms to rounding, and in float32 every answer that is no tie.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.book import again
from tipmini_lab.book.again import Report
from tipmini_lab.book.tables import every_method
from tipmini_lab.evaluation import tasks
from tipmini_lab.experiments import formats, merging, variants
from tipmini_lab.experiments.catalogue import UNMERGED, Inputs
from tipmini_lab.experiments.estimate import PROBED, seconds_of_all
from tipmini_lab.experiments.experiment import one_bar
from tipmini_lab.experiments.lab import Bundled, Lab
from tipmini_lab.experiments.merging import DEFAULT, FIRST, ROUNDING, adapter_hash
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import PAPER, TABLE_1
from tipmini_lab.locks import alone
from tipmini_lab.results import store
from tipmini_lab.results.store import Cell

MINUTES = 3.0  # that the book's part takes
PROBED_OF = {"coqa": 2}  # rows by which the speed is measured; of others as `estimate` has it
NORMS_APART = 1e-4  # relative: sums of squares over thousands of tokens


class Again(Lab):
    """A profile's experiments once more, in a store of their own and in the stored format.

    rows: how many are evaluated, by task. A part reads the stored norms; the whole measures them.
    """

    def __init__(self, profile: Profile, folder: Path, whole: bool):
        self.kept = None if whole else profile.store
        places = [(method, task) for method in TABLE_1 for task in profile.tasks]
        stored = {place: variants.stored(profile, *place) for place in places}
        if None in stored.values():
            raise TipminiError(
                f"profile {profile.name}: no stored cells to compare with; "
                f"run `tipmini measure --profile {profile.name}`"
            )
        dtype = store.in_one_format(stored)[places[0]].dtype
        super().__init__(profile.model_copy(update={"results": str(folder), "dtype": dtype}))
        self.before, self.rows = profile, {t: stored["base", t].count for t in profile.tasks}

    def task(self, name: str, train: int = 0):
        return tasks.load(name, self.rows[name], train, self.profile.data)


def run(profile: Profile, whole: bool = False, minutes: float = MINUTES) -> Report:
    """Compute and compare a part that takes some minutes, or the whole.

    A kill doesn't lose it: cells are stored, and the plan with them. Raises TipminiError that names
    what may not differ and does, and where another process is at it.
    """
    folder = again.file(profile.name, whole).with_suffix("")
    lab = Again(profile, folder, whole)
    try:
        with alone(folder, wait=False), one_bar():
            report = _run(lab, folder, None if whole else minutes)
            store.write(again.file(profile.name, whole), report.model_dump_json(indent=1) + "\n")
            report.refuse_others()
            shutil.rmtree(folder)
            return report
    except BlockingIOError:
        raise TipminiError(f"{folder}: another process is at it; wait") from None
    except TipminiError:
        shutil.rmtree(folder)  # the next one computes; a kill's is taken up
        raise


def _run(lab: Again, folder: Path, minutes: float | None) -> Report:
    started, whole = time.perf_counter(), minutes is None
    plan = _planned(lab, folder, minutes)
    resumed = plan is not None
    first = norms(lab, lab.norms.first)
    if plan is None:
        plan = _plan(lab, minutes, started)
        store.write(folder / "plan.json", json.dumps(plan) + "\n")
    seconds, count = plan["estimate"], sum(plan["rows"].values())
    told = f"{count:,} rows of {len(plan['rows'])} tasks by {len(TABLE_1)} methods"
    begun = "going on where it stopped" if resumed else "computing again"
    print(f"{begun}: {told}, about {seconds / 60:.1f} minutes in all", flush=True)
    lab.rows = plan["rows"]
    lab._definitions.clear()
    found = norms(lab, DEFAULT) if whole else first
    places = [(method, task) for task in lab.profile.tasks for method in TABLE_1]
    cells = [lab.cell(*place) for place in tqdm(places, unit="cell", smoothing=0)]
    return Report(
        profile=lab.profile.name,
        dtype=lab.dtype,
        merges=merges(lab, found if whole else {}),
        norms=found,
        calibration_rows=lab.profile.calibration_rows if whole else FIRST,
        **plan,
        **compared(lab.before, cells),
        seconds=round(time.perf_counter() - started, 1),
        resumed=resumed,
        date=store.today(),
        machine=store.machine(),
        threads=torch.get_num_threads(),
        versions=store.versions(),
    )


# How much is computed -----------------------------------------------------------------------------


def _planned(lab: Again, folder: Path, minutes: float | None) -> dict | None:
    """The plan of a run that was killed; what is left of another one goes."""
    if (folder / "plan.json").is_file():
        plan = json.loads((folder / "plan.json").read_text())
        if plan["minutes"] == minutes and plan["rows"].keys() == lab.rows.keys():
            return plan
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return None


def _plan(lab: Again, minutes: float | None, started: float) -> dict:
    """How many rows of every task, and seconds in all, by the speed on the first of them."""
    rows, taken = lab.rows, []
    for task in (lab.profile.tasks[0], *lab.profile.tasks):
        few = tasks.load(task, _probed(task), data=lab.profile.data)
        first = partial(lab.measure, "single", lab.adapter_path(task), few)
        taken += [seconds_of_all(first, lab.definition(task).eval_docs, _probed(task))]
    seconds = len(TABLE_1) * sum(taken[1:])  # before them the model was loaded
    spent = time.perf_counter() - started
    if minutes is None:
        for task in lab.profile.tasks:
            texts = lab.norms.texts(task)
            seconds += seconds_of_all(partial(lab.norms.measure, task, texts[:FIRST]), texts, FIRST)
    else:
        part = min(1.0, max(0.0, 60 * minutes - spent) / seconds)
        rows = {t: min(n, max(_probed(t), math.floor(part * n))) for t, n in rows.items()}
        seconds *= part
    return {"rows": rows, "estimate": spent + seconds, "minutes": minutes}


def _probed(task: str) -> int:
    return PROBED_OF.get(task, PROBED)


# What is compared ---------------------------------------------------------------------------------


def norms(lab: Again, chosen: Inputs) -> dict[str, float]:
    """{task: largest difference from what is stored}; TipminiError beyond rounding."""
    before, found = Lab(lab.before), {}
    for task in tqdm(lab.profile.tasks, desc="norms", unit="task", smoothing=0):
        then, now = before.norms.stored(task, chosen, lab.dtype), lab.norms.of(task, chosen)
        if then is None:
            print(f"norms of {task}: none are stored in {lab.dtype} to compare with")
        else:
            found[task] = max(apart(now[name], then[name]) for name in then)
    refuse_apart("norms", found.items(), NORMS_APART)
    return found


def apart(now: Tensor, then: Tensor) -> float:
    """The largest difference, over the largest element."""
    if torch.equal(now, then):
        return 0.0
    return ((now - then).abs().max() / then.abs().max()).item()


def compared(profile: Profile, cells: list[Cell]) -> dict:
    """The answers that count as the stored ones, that are ties, and the others by name."""
    same, ties = (dict.fromkeys(profile.tasks, 0) for _ in range(2))
    others, tie = [], formats.tie()
    for cell in cells:
        then = variants.stored(profile, cell.method, cell.task)
        margins = then.margins or [math.inf] * then.count
        rows = zip(cell.values, then.values, margins, strict=False)  # here the first ones alone
        for row, (now, before, margin) in enumerate(rows):
            if now == before:
                same[cell.task] += 1
            elif margin < tie:
                ties[cell.task] += 1
            else:
                told = f"{before:g} stored, {now:g} here"
                others.append(f"{cell.method} on {cell.task}, row {row} ({told})")
    return {"same": same, "ties": ties, "others": others}


def merges(lab: Again, own_norms: dict[str, float]) -> dict[str, float]:
    """Every method's merge of the stored norms beside the one of its stored cells.

    own_norms: how far this machine's are from the stored ones, where it merges by its own. RegMean
    is left out: it takes Gram matrices, which are not stored.
    """
    bundled, found, own = Bundled(lab.before), {}, {}
    for name in every_method():
        variant, bundle = bundled.variant(name), store.read(lab.before.variant_store, name)
        if name not in UNMERGED and variant.needs != "grams" and bundle:
            merged = bundled.experiment(name).merge()
            sizes = merging.sizes(merged, bundled.experiment(name).exact())
            apart = [abs(now - bundle.facts[fact]) / sizes["sum"] for fact, now in sizes.items()]
            bits = _hash_of(merged) == bundle.cells[0].inputs["adapter"]
            found[name] = 0.0 if bits else max(apart)
    for name in PAPER:
        then = variants.stored(lab.before, name, lab.profile.tasks[0]).inputs["adapter"]
        folder, stored = lab.merged(name), tm.load_adapter(lab.before.store / "merged" / name)
        sizes = merging.sizes(tm.load_adapter(folder), stored)
        bits = adapter_hash(folder) == then
        own[f"{name}, {lab.dtype} norms"] = 0.0 if bits else sizes["distance"] / sizes["sum"]
    refuse_apart("merges", found.items(), ROUNDING)
    refuse_apart("merges", own.items(), turned(own_norms))
    return found | own


def turned(norms: dict[str, float]) -> float:
    """How far rounding of the norms may take a merge: elements whose scores lie that near to the
    one where pruning ends fall on its other side, of n some 2 d n, of its size each."""
    return ROUNDING + math.sqrt(4 * max(norms.values(), default=0.0))


def _hash_of(merged: tm.LoraAdapter) -> str:
    with tempfile.TemporaryDirectory() as work:
        merged.save(Path(work) / "merged", torch.float32)
        return adapter_hash(Path(work) / "merged")


def refuse_apart(what: str, found: Iterable[tuple[str, float]], most: float) -> None:
    wrong = [f"{name} by {far:.1e}" for name, far in sorted(found) if not far <= most]
    if wrong:
        raise TipminiError(f"computed again, {what} are others than stored: {', '.join(wrong)}")
