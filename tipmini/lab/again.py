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
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.lab import bundles, controls, experiments, formats, paths, results, tasks
from tipmini.lab.accuracy_tables import every_method
from tipmini.lab.experiments import METHODS, Lab
from tipmini.lab.input_norms import FIRST
from tipmini.lab.measuring import Bundled, one_bar
from tipmini.lab.merging import PAPER, ROUNDING, adapter_hash
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell
from tipmini.lab.show import markdown_table
from tipmini.lab.tables import TITLES
from tipmini.lab.variants import UNMERGED

MINUTES = 4.0  # that a book's part takes
PROBED = 6  # rows a task by which the speed is measured ...
PROBED_OF = {"coqa": 2}  # ... and stories
NORMS_APART = 1e-4  # relative; sums of squares over thousands of tokens


class Report(BaseModel):
    """What was computed again, and how it compares."""

    model_config = ConfigDict(extra="forbid")

    profile: str
    whole: bool  # every norm and cell, or a part
    dtype: str
    merges: dict[str, float]  # method -> relative difference from the stored merge; 0: every bit
    norms: dict[str, float]  # task -> largest difference from the stored norm, relative
    calibration_rows: int
    rows: dict[str, int]  # evaluated, by task
    same: dict[str, int]  # answers that count as stored, by task, all methods together
    ties: dict[str, int]  # answers that count otherwise, but that rounding alone may decide
    others: list[str]  # answers that count otherwise and may not
    estimate: float  # seconds, told before
    seconds: float
    date: str
    machine: dict[str, str | int]
    threads: int
    versions: dict[str, str]

    @property
    def answers(self) -> int:
        return len(METHODS) * sum(self.rows.values())


class Again(Lab):
    """A profile's experiments once more, in a store of their own.

    rows: how many are evaluated, by task. A part reads the stored norms; the whole measures them.
    """

    def __init__(self, profile: Profile, folder: Path, whole: bool, rows: Mapping[str, int]):
        self.kept = None if whole else profile.store
        changes = {"results": str(folder), "dtype": dtype_of(profile)}
        super().__init__(profile.model_copy(update=changes | {"evaluation_rows_of": dict(rows)}))


def dtype_of(profile: Profile) -> str:
    """The number format of a profile's stored cells; TipminiError where there are none."""
    cells = [experiments.stored(profile, "base", task) for task in profile.tasks]
    found = {cell.dtype for cell in cells if cell}
    if len(found) != 1:
        raise TipminiError(
            f"profile {profile.name}: no stored cells to compare with; "
            f"run `tipmini measure --profile {profile.name}`"
        )
    return found.pop()


class Run:
    """One computing again, which a kill doesn't lose: cells are stored, and the plan with them."""

    def __init__(self, profile: Profile, whole: bool, minutes: float = MINUTES):
        self.profile, self.whole, self.minutes = profile, whole, minutes
        kind = "reproduced" if whole else "again"
        self.report_file = paths.BUILD / f"{kind}-{profile.name}.json"
        self.folder = paths.BUILD / kind / profile.name
        self.started = time.perf_counter()

    def run(self) -> Report:
        """Compute and compare; raises TipminiError that names the answers which may not differ."""
        plan = self.plan()
        lab = Again(self.profile, self.folder, self.whole, plan["rows"])
        norms = self.norms(lab)
        cells = list(self.cells(lab))
        told = self.compared(cells)
        report = Report(
            profile=self.profile.name,
            whole=self.whole,
            dtype=lab.dtype,
            merges=merges(self.profile, lab),
            norms=norms,
            calibration_rows=self.profile.calibration_rows if self.whole else FIRST,
            rows=plan["rows"],
            **told,
            estimate=plan["estimate"],
            seconds=round(plan["spent"] + time.perf_counter() - self.started, 1),
            date=results.today(),
            machine=results.machine(),
            threads=torch.get_num_threads(),
            versions=results.versions(),
        )
        results.write(self.report_file, report.model_dump_json(indent=1) + "\n")
        shutil.rmtree(self.folder)
        refuse_others(report)
        return report

    # How much -------------------------------------------------------------------------------

    def plan(self) -> dict:
        """Rows a task and seconds in all; of a run that was killed, its own."""
        file = self.folder / "plan.json"
        if file.is_file():
            return json.loads(file.read_text()) | {"estimate": 0.0}
        rows = self.every_row
        seconds = self.seconds_of_all()
        spent = time.perf_counter() - self.started
        if not self.whole:
            part = min(1.0, max(0.0, 60 * self.minutes - spent) / seconds)
            rows = {t: max(_probed(t), math.floor(part * n)) for t, n in rows.items()}
            seconds *= part
        plan = {"rows": rows, "spent": 0.0, "estimate": round(spent + seconds)}
        results.write(file, json.dumps(plan) + "\n")
        said = f"{sum(rows.values()):,} rows of {len(rows)} tasks by {len(METHODS)} methods"
        print(f"computing again {said}: about {_minutes(plan['estimate'])} in all", flush=True)
        return plan

    @cached_property
    def stored_lab(self) -> Lab:
        return Again(self.profile, self.folder, self.whole, self.every_row)

    @cached_property
    def every_row(self) -> dict[str, int]:
        cells = {t: experiments.stored(self.profile, "base", t) for t in self.profile.tasks}
        return {task: cell.count for task, cell in cells.items() if cell}

    def seconds_of_all(self) -> float:
        """By the speed on the first rows of every task; what a row takes goes by its letters."""
        lab, total = self.stored_lab, 0.0
        warm = True
        for task in self.profile.tasks:
            letters = _letters(lab.definition(task))
            few = tasks.load(task, _probed(task), data=self.profile.data)
            if warm:
                lab.measure("single", lab.adapter_path(task), few)
                warm = False
            start = time.perf_counter()
            lab.measure("single", lab.adapter_path(task), few)
            speed = (time.perf_counter() - start) / sum(letters[: _probed(task)])
            total += len(METHODS) * speed * sum(letters)
            if self.whole:
                total += self._calibration(lab, task)
        return total

    def _calibration(self, lab: Lab, task: str) -> float:
        """Seconds of a task's norms, by those of their first rows."""
        texts = lab.norms.texts(task)
        start = time.perf_counter()
        lab.norms.measure(task, texts[:FIRST])
        return (time.perf_counter() - start) * sum(map(len, texts)) / sum(map(len, texts[:FIRST]))

    # What is compared -----------------------------------------------------------------------

    def norms(self, lab: Lab) -> dict[str, float]:
        """All norms of the whole; of a part those of the first rows, which are stored as well."""
        chosen = experiments.DEFAULT if self.whole else lab.norms.first
        before = Lab(self.profile.model_copy(update={"dtype": lab.dtype}))
        found = {}
        for task in tqdm(self.profile.tasks, desc="norms", unit="task"):
            then = before.norms.stored(task, chosen)
            now = lab.norms.of(task, chosen)
            if then:
                found[task] = max(_apart(now[name], then[name]) for name in then)
        wrong = [f"{task} by {apart:.1e}" for task, apart in found.items() if apart > NORMS_APART]
        if wrong:
            raise TipminiError(f"computed again, norms differ: {', '.join(wrong)}")
        return found

    def cells(self, lab: Lab) -> Iterator[Cell]:
        """Measured here; what a killed run has stored is read."""
        places = [(method, task) for task in self.profile.tasks for method in METHODS]
        with one_bar(), tqdm(places, unit="cell", smoothing=0) as bar:
            for place in bar:
                yield lab.cell(*place)

    def compared(self, cells: list[Cell]) -> dict:
        tasks = list(self.profile.tasks)
        found = {"same": dict.fromkeys(tasks, 0), "ties": dict.fromkeys(tasks, 0), "others": []}
        tie = formats.tie()
        for cell in cells:
            then = experiments.stored(self.profile, cell.method, cell.task)
            margins = then.margins or [math.inf] * then.count
            rows = zip(cell.values, then.values, margins, strict=False)
            for row, (now, before, margin) in enumerate(rows):
                if now == before:
                    found["same"][cell.task] += 1
                elif margin < tie:
                    found["ties"][cell.task] += 1
                else:
                    place = f"{cell.method} on {cell.task}, row {row}"
                    found["others"].append(f"{place} ({before:g} stored, {now:g} here)")
        return found


def merges(profile: Profile, lab: Lab) -> dict[str, float]:
    """Every method's merge of the stored norms beside the one that its stored cells wore.

    RegMean is left out: it takes Gram matrices, which are not stored.
    """
    bundled, found = Bundled(profile), {}
    for name in every_method():
        variant = bundled.variant(name)
        bundle = bundles.read(profile.variant_store, name)
        if name in UNMERGED or variant.needs == "grams" or bundle is None:
            continue
        merged = bundled.merges.merge(variant)
        if _hash_of(merged) == bundle.cells[0].inputs["adapter"]:
            found[name] = 0.0
        else:
            now, then = controls.sizes(merged, bundled.merges.exact(variant)), bundle.facts
            found[name] = max(abs(now[fact] - then[fact]) / then[fact] for fact in then)
    for name in PAPER:
        bits = adapter_hash(lab.merged(name)) == _worn(profile, name)
        found[f"{name}, {lab.dtype} norms"] = 0.0 if bits else _differ(profile, lab, name)
    wrong = [f"{name} by {apart:.1e}" for name, apart in found.items() if apart > ROUNDING]
    if wrong:
        raise TipminiError(f"computed again, merges are others than before: {', '.join(wrong)}")
    return found


def _worn(profile: Profile, name: str) -> str:
    """The hash of the adapter that a method's stored cells wore."""
    return experiments.stored(profile, name, profile.tasks[0]).inputs["adapter"]


def _differ(profile: Profile, lab: Lab, name: str) -> float:
    """The distance of a merge from the stored one over that one's size."""
    stored = tm.load_adapter(profile.store / "merged" / name)
    sizes = controls.sizes(tm.load_adapter(lab.merged(name)), stored)
    return sizes["distance"] / sizes["sum"]


def _hash_of(merged: tm.LoraAdapter) -> str:
    with tempfile.TemporaryDirectory() as work:
        merged.save(Path(work) / "merged", torch.float32)
        return adapter_hash(Path(work) / "merged")


def refuse_others(report: Report) -> None:
    """Raise TipminiError where answers differ that may not."""
    allowed = formats.allowed(report.dtype) * report.answers
    if len(report.others) > allowed:
        first = "; ".join(report.others[:5])
        raise TipminiError(f"computed again, {len(report.others)} answers differ: {first}")


def _probed(task: str) -> int:
    return PROBED_OF.get(task, PROBED)


def _letters(definition) -> list[int]:
    """Of what is read of every row."""
    found = []
    for doc in definition.eval_docs:
        choices = definition.doc_to_choice(doc) if definition.config.doc_to_choice else []
        found.append(len(definition.doc_to_text(doc)) + sum(map(len, choices)))
    return found


def _apart(now: torch.Tensor, then: torch.Tensor) -> float:
    return ((now - then).abs().max() / then.abs().max()).item()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


# What the book tells --------------------------------------------------------------------------


def read(profile: str = "mini", whole: bool = False) -> Report | None:
    file = paths.BUILD / f"{'reproduced' if whole else 'again'}-{profile}.json"
    return Report.model_validate_json(file.read_text()) if file.is_file() else None


def page_values() -> dict[str, str]:
    """What book/again.md tells."""
    report, whole = read(), read(whole=True)
    if report is None:
        raise TipminiError("the book tells what was computed again here; run `tipmini again` first")
    answers = {
        TITLES[task]: {
            "rows": str(rows),
            "answers": str(len(METHODS) * rows),
            "the same": str(report.same[task]),
            "ties": str(report.ties[task]),
        }
        for task, rows in report.rows.items()
    }
    found = {name: {"difference": _difference(d)} for name, d in report.merges.items()}
    norms = {TITLES[task]: {"difference": f"{apart:.1e}"} for task, apart in report.norms.items()}
    return {
        "again_line": line(report),
        "again_minutes": f"{MINUTES:g}",
        "again_tie": f"{formats.tie():.1e}",
        "again_slack": str(formats.SLACK),
        "again_rows": str(report.calibration_rows),
        "again_answers": _markdown(answers, "task"),
        "again_merges": _markdown(found, "method"),
        "again_norms": _markdown(norms, "task"),
        "reproduced_line": line(whole) if whole else "On this machine that was not done.",
    }


def _difference(apart: float) -> str:
    return "none, bit for bit" if apart == 0 else f"{apart:.1e} of its size"


def _markdown(rows: dict[str, dict[str, str]], what: str) -> str:
    return markdown_table(pd.DataFrame(rows).T.rename_axis(what))


def line(report: Report | None) -> str:
    """A sentence to stand below a table of stored cells."""
    if report is None:
        return "Nothing of it was computed again on this machine; `tipmini again` does."
    same, ties = sum(report.same.values()), sum(report.ties.values())
    machine = report.machine
    tied = f", {ties} of the others ties" if ties else ""
    return (
        f"Computed again on this machine: {same:,} of {report.answers:,} answers the same{tied} "
        f"({machine['processor']}, {machine['cores']} cores, {machine['instructions']}, "
        f"{report.dtype}, {report.seconds:.0f} s)."
    )
