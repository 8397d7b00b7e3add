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
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.tables import TITLES, every_method, markdown_table
from tipmini_lab.evaluation import tasks
from tipmini_lab.experiments import experiment, formats, merging
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.experiment import TABLE_1, Lab
from tipmini_lab.experiments.input_norms import DEFAULT, FIRST
from tipmini_lab.experiments.measuring import Bundled, one_bar
from tipmini_lab.experiments.merging import PAPER, ROUNDING, adapter_hash
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import UNMERGED, Inputs
from tipmini_lab.locks import alone
from tipmini_lab.results import store
from tipmini_lab.results.store import Cell

MINUTES = 3.0  # that the book's part takes
PROBED = 6  # rows a task by which the speed is measured ...
PROBED_OF = {"coqa": 2}  # ... and stories
NORMS_APART = 1e-4  # relative: sums of squares over thousands of tokens


class Report(BaseModel):
    """What was computed again, and how it compares."""

    model_config = ConfigDict(extra="forbid")

    profile: str
    dtype: str
    minutes: float | None  # asked for; None: all of it
    merges: dict[str, float]  # method -> relative difference from the stored merge; 0: every bit
    norms: dict[str, float]  # task -> largest difference from the stored norm, relative
    calibration_rows: int
    rows: dict[str, int]  # evaluated, by task
    same: dict[str, int]  # answers that count as stored, by task, all methods together
    ties: dict[str, int]  # answers that count otherwise, but that rounding alone may decide
    others: list[str]  # answers that count otherwise
    estimate: float  # seconds, told before
    seconds: float
    resumed: bool  # after a kill, which the seconds before it are lost with
    date: str
    machine: dict[str, str | int]
    threads: int
    versions: dict[str, str]

    @property
    def answers(self) -> int:
        return len(TABLE_1) * sum(self.rows.values())


class Again(Lab):
    """A profile's experiments once more, in a store of their own and in the stored format.

    rows: how many are evaluated, by task. A part reads the stored norms; the whole measures them.
    """

    def __init__(self, profile: Profile, folder: Path, whole: bool):
        self.kept = None if whole else profile.store
        places = [(method, task) for method in TABLE_1 for task in profile.tasks]
        stored = {place: experiment.stored(profile, *place) for place in places}
        if None in stored.values():
            raise TipminiError(
                f"profile {profile.name}: no stored cells to compare with; "
                f"run `tipmini measure --profile {profile.name}`"
            )
        dtype = store.in_one_format(stored)[places[0]].dtype
        super().__init__(profile.model_copy(update={"results": str(folder), "dtype": dtype}))
        self.rows = {task: stored["base", task].count for task in profile.tasks}

    def limit(self, rows: dict[str, int]) -> None:
        self.rows = rows
        self._definitions.clear()

    def task(self, name: str, train: int = 0):
        return tasks.load(name, self.rows[name], train, self.profile.data)


class Run:
    """One computing again, which a kill doesn't lose: cells are stored, and the plan with them."""

    def __init__(self, profile: Profile, whole: bool, minutes: float = MINUTES):
        self.profile, self.whole = profile, whole
        self.minutes = None if whole else minutes
        self.folder = _file(profile.name, whole).with_suffix("")
        self.lab = Again(profile, self.folder, whole)
        self.started = time.perf_counter()

    def run(self) -> Report:
        """Compute and compare; raises TipminiError that names what may not differ and does.

        Also where another process is at it.
        """
        try:
            with alone(self.folder, wait=False), one_bar():
                return self._run()
        except BlockingIOError:
            raise TipminiError(f"{self.folder}: another process is at it; wait") from None
        except TipminiError:
            shutil.rmtree(self.folder)  # the next one computes; a kill's is taken up
            raise

    def _run(self) -> Report:
        plan = self.planned()
        resumed = plan is not None
        first = self.norms(self.lab.norms.first)
        plan = plan or self.plan()
        self.lab.limit(plan["rows"])
        norms = self.norms(DEFAULT) if self.whole else first
        cells = self.cells()
        report = Report(
            profile=self.profile.name,
            dtype=self.lab.dtype,
            merges=merges(self.profile, self.lab, norms if self.whole else {}),
            norms=norms,
            calibration_rows=self.profile.calibration_rows if self.whole else FIRST,
            **plan,
            **compared(self.profile, cells),
            seconds=round(time.perf_counter() - self.started, 1),
            resumed=resumed,
            date=store.today(),
            machine=store.machine(),
            threads=torch.get_num_threads(),
            versions=store.versions(),
        )
        store.write(_file(self.profile.name, self.whole), report.model_dump_json(indent=1) + "\n")
        refuse_others(report)
        shutil.rmtree(self.folder)
        return report

    def planned(self) -> dict | None:
        """The plan of a run that was killed; what is left of another one goes."""
        file = self.folder / "plan.json"
        if file.is_file():
            plan = json.loads(file.read_text())
            if plan["minutes"] == self.minutes and plan["rows"].keys() == self.lab.rows.keys():
                print(f"going on where it stopped: {_said(plan)} in all", flush=True)
                return plan
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return None

    def norms(self, chosen: Inputs) -> dict[str, float]:
        """{task: largest difference from what is stored}."""
        before, apart = Lab(self.profile), {}
        for task in tqdm(self.profile.tasks, desc="norms", unit="task", smoothing=0):
            then = before.norms.stored(task, chosen, self.lab.dtype)
            now = self.lab.norms.of(task, chosen)
            if then is None:
                print(f"norms of {task}: none are stored in {self.lab.dtype} to compare with")
            else:
                apart[task] = max(_apart(now[name], then[name]) for name in then)
        _refuse_apart("norms", apart.items(), NORMS_APART)
        return apart

    def plan(self) -> dict:
        """How many rows of every task, and seconds in all."""
        rows, seconds = self.lab.rows, self.seconds_of_cells()
        spent = time.perf_counter() - self.started
        if self.minutes is None:
            seconds += self.seconds_of_norms()
        else:
            part = min(1.0, max(0.0, 60 * self.minutes - spent) / seconds)
            rows = {t: min(n, max(_probed(t), math.floor(part * n))) for t, n in rows.items()}
            seconds *= part
        plan = {"rows": rows, "estimate": round(spent + seconds), "minutes": self.minutes}
        store.write(self.folder / "plan.json", json.dumps(plan) + "\n")
        print(f"computing again {_said(plan)} in all", flush=True)
        return plan

    def seconds_of_cells(self) -> float:
        """By the speed on the first rows of every task; what a row takes goes by its letters."""
        total = 0.0
        self._probe(self.profile.tasks[0])  # loads the model, and warms up
        for task in self.profile.tasks:
            letters = _letters(self.lab.definition(task))
            start = time.perf_counter()
            self._probe(task)
            taken = time.perf_counter() - start
            total += taken * sum(letters) / sum(letters[: _probed(task)])
        return len(TABLE_1) * total

    def _probe(self, task: str) -> None:
        few = tasks.load(task, _probed(task), data=self.profile.data)
        self.lab.measure("single", self.lab.adapter_path(task), few)

    def seconds_of_norms(self) -> float:
        """By the first rows of every task, as `seconds_of_cells`."""
        total = 0.0
        for task in self.profile.tasks:
            texts = self.lab.norms.texts(task)
            start = time.perf_counter()
            self.lab.norms.measure(task, texts[:FIRST])
            taken = time.perf_counter() - start
            total += taken * sum(map(len, texts)) / sum(map(len, texts[:FIRST]))
        return total

    def cells(self) -> list[Cell]:
        """Measured here; what a killed run has stored is read."""
        places = [(method, task) for task in self.profile.tasks for method in TABLE_1]
        return [self.lab.cell(*place) for place in tqdm(places, unit="cell", smoothing=0)]


# What is compared ---------------------------------------------------------------------------------


def compared(profile: Profile, cells: list[Cell]) -> dict:
    """The answers that count as the stored ones, that are ties, and the others by name."""
    found: dict = {kind: dict.fromkeys(profile.tasks, 0) for kind in ("same", "ties")}
    found["others"], tie = [], formats.tie()
    for cell in cells:
        then = experiment.stored(profile, cell.method, cell.task)
        margins = then.margins or [math.inf] * then.count
        rows = zip(cell.values, then.values, margins, strict=False)  # here the first ones alone
        for row, (now, before, margin) in enumerate(rows):
            if now == before:
                found["same"][cell.task] += 1
            elif margin < tie:
                found["ties"][cell.task] += 1
            else:
                told = f"{before:g} stored, {now:g} here"
                found["others"].append(f"{cell.method} on {cell.task}, row {row} ({told})")
    return found


def refuse_others(report: Report) -> None:
    """Raise TipminiError where more answers differ than the format's two ways of computing do."""
    if len(report.others) > formats.allowed(report.dtype) * report.answers:
        first = "; ".join(report.others[:5])
        more = f"; and {len(report.others) - 5} more" if len(report.others) > 5 else ""
        raise TipminiError(f"computed again, answers count otherwise: {first}{more}")


def merges(profile: Profile, lab: Lab, norms: dict[str, float]) -> dict[str, float]:
    """Every method's merge of the stored norms beside the one of its stored cells.

    norms: how far this machine's are from the stored ones, where it merges by its own. RegMean is
    left out: it takes Gram matrices, which are not stored.
    """
    bundled, found = Bundled(profile), {}
    for name in every_method():
        variant, bundle = bundled.variant(name), store.read(profile.variant_store, name)
        if name not in UNMERGED and variant.needs != "grams" and bundle:
            merged = bundled.merges.merge(variant)
            sizes = merging.sizes(merged, bundled.merges.exact(variant))
            facts = [abs(sizes[name] - then) / sizes["sum"] for name, then in bundle.facts.items()]
            bits = _hash_of(merged) == bundle.cells[0].inputs["adapter"]
            found[name] = 0.0 if bits else max(facts)
    for name in PAPER:
        stored_hash = experiment.stored(profile, name, profile.tasks[0]).inputs["adapter"]
        folder = lab.merged(name)
        stored = tm.load_adapter(profile.store / "merged" / name)
        sizes = merging.sizes(tm.load_adapter(folder), stored)
        bits = adapter_hash(folder) == stored_hash
        found[f"{name}, {lab.dtype} norms"] = 0.0 if bits else sizes["distance"] / sizes["sum"]
    own = {name: apart for name, apart in found.items() if name.endswith(" norms")}
    _refuse_apart("merges", found.items() - own.items(), ROUNDING)
    _refuse_apart("merges", own.items(), turned(norms))
    return found


def turned(norms: dict[str, float]) -> float:
    """How far rounding of the norms may take a merge: elements whose scores lie that near to the
    one where pruning ends fall on its other side, of n some 2 d n, of its size each."""
    return ROUNDING + math.sqrt(4 * max(norms.values(), default=0.0))


def _hash_of(merged: tm.LoraAdapter) -> str:
    with tempfile.TemporaryDirectory() as work:
        merged.save(Path(work) / "merged", torch.float32)
        return adapter_hash(Path(work) / "merged")


def _refuse_apart(what: str, found: Iterable[tuple[str, float]], most: float) -> None:
    wrong = [f"{name} by {apart:.1e}" for name, apart in sorted(found) if not apart <= most]
    if wrong:
        raise TipminiError(f"computed again, {what} are others than stored: {', '.join(wrong)}")


def _apart(now: Tensor, then: Tensor) -> float:
    if torch.equal(now, then):
        return 0.0
    return ((now - then).abs().max() / then.abs().max()).item()


def _said(plan: dict) -> str:
    rows, seconds = plan["rows"], plan["estimate"]
    said = f"{sum(rows.values()):,} rows of {len(rows)} tasks by {len(TABLE_1)} methods"
    return f"{said}, about {seconds / 60:.1f} minutes"


def _probed(task: str) -> int:
    return PROBED_OF.get(task, PROBED)


def _letters(definition) -> list[int]:
    """Of what is read of every row."""
    listed = definition.config.doc_to_choice is not None
    return [
        len(definition.doc_to_text(doc))
        + sum(map(len, definition.doc_to_choice(doc) if listed else ()))
        for doc in definition.eval_docs
    ]


# What the book tells ------------------------------------------------------------------------------


def _file(profile: str, whole: bool) -> Path:
    return paths.BUILD / f"{'reproduced' if whole else 'again'}-{profile}.json"


def read(profile: str = "mini", whole: bool = False) -> Report | None:
    """What was told last; None where nothing was computed again on this machine."""
    try:
        return Report.model_validate_json(_file(profile, whole).read_text())
    except (FileNotFoundError, ValidationError):  # the latter: of another version
        return None


def line(report: Report | None) -> str:
    """A sentence to stand below a table of stored cells."""
    if report is None:
        return "Nothing of it was computed again on this machine; `tipmini again` does."
    same, ties = sum(report.same.values()), sum(report.ties.values())
    tied = f", {ties} ties" if ties else ""
    tied += f", {len(report.others)} otherwise" if report.others else ""
    machine, after = report.machine, " after a stop" if report.resumed else ""
    return (
        f"Computed again on this machine: {same:,} of {report.answers:,} answers the same{tied} "
        f"({machine['processor']}, {machine['cores']} cores, {machine['instructions']}, "
        f"{report.dtype}, {report.seconds:.0f} s{after})."
    )


def page_values() -> dict[str, str]:
    """What book/again.md tells; TipminiError where there is nothing to tell."""
    report, whole = read(), read(whole=True)
    if report is None:
        raise TipminiError("the book tells what was computed again here; run `tipmini again` first")
    refuse_others(report)
    answers = {
        TITLES[task]: {
            "rows": str(rows),
            "answers": str(len(TABLE_1) * rows),
            "same": str(report.same[task]),
            "ties": str(report.ties[task]),
        }
        for task, rows in report.rows.items()
    }
    titles = TITLES | {name: variant.title for name, variant in catalogue().variants.items()}
    merged = {}
    for name, apart in report.merges.items():
        method, comma, norms = name.partition(", ")  # of which norms
        merged[f"{titles.get(method, method)}{comma}{norms}"] = {"is off by": _off(apart)}
    norms = {TITLES[task]: {"is off by": _off(apart)} for task, apart in report.norms.items()}
    return {
        "again_line": line(report),
        "again_minutes": f"{report.minutes:g}",
        "again_tie": f"{formats.tie():.1e}",
        "again_slack": str(formats.SLACK),
        "again_rows": str(report.calibration_rows),
        "again_answers": _markdown(answers, "task"),
        "again_merges": _markdown(merged, "method"),
        "again_norms": _markdown(norms, "task"),
        "reproduced_line": line(whole) if whole else "That was not done on this machine.",
    }


def _off(apart: float) -> str:
    return "nothing, bit for bit" if apart == 0 else f"{apart:.1e}"


def _markdown(rows: dict[str, dict[str, str]], what: str) -> str:
    return markdown_table(pd.DataFrame(rows).T.rename_axis(what))
