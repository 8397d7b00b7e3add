"""What was computed again on this machine (see `recomputing`), as the book tells it."""

from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.tables import TITLES, markdown_table
from tipmini_lab.experiments import formats
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.variants import TABLE_1


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

    def refuse_others(self) -> None:
        """Raise TipminiError where more answers differ than the format's two ways of computing."""
        if len(self.others) > formats.allowed(self.dtype) * self.answers:
            first, more = "; ".join(self.others[:5]), len(self.others) - 5
            first += f"; and {more} more" if more > 0 else ""
            raise TipminiError(f"computed again, answers count otherwise: {first}")


def file(profile: str, whole: bool) -> Path:
    return paths.BUILD / f"{'reproduced' if whole else 'again'}-{profile}.json"


def read(profile: str = "mini", whole: bool = False) -> Report | None:
    """What was told last; None where nothing was computed again on this machine."""
    try:
        return Report.model_validate_json(file(profile, whole).read_text())
    except (FileNotFoundError, ValidationError):  # the latter: of another version
        return None


def line(report: Report | None) -> str:
    """A sentence to stand below a table of stored cells."""
    if report is None:
        return "Nothing of it was computed again on this machine; `tipmini again` does."
    same, ties, others = sum(report.same.values()), sum(report.ties.values()), len(report.others)
    tied = (f", {ties} ties" if ties else "") + (f", {others} different" if others else "")
    machine, after = report.machine, " after a stop" if report.resumed else ""
    return (
        f"Computed again on this machine: {same:,} of {report.answers:,} answers the same{tied} "
        f"({machine['processor']}, {machine['cores']} cores, {machine['instructions']}, "
        f"{report.dtype}, {report.seconds:.0f} s{after})."
    )


def page_values() -> dict[str, str]:
    """Markdown for every {{ again_... }} of book/again.md.

    Raises TipminiError where nothing was computed again, or too many answers count otherwise.
    """
    report, whole = read(), read(whole=True)
    if report is None:
        raise TipminiError("the book tells what was computed again here; run `tipmini again` first")
    report.refuse_others()
    rows = pd.Series(report.rows)
    counts = {
        "examples": rows,
        "answers": len(TABLE_1) * rows,
        "same": report.same,
        "ties": report.ties,
    }
    answers = pd.DataFrame(counts).rename(TITLES).rename_axis("task")
    titles = TITLES | {name: variant.title for name, variant in catalogue().variants.items()}
    merges = {}
    for name, apart in report.merges.items():
        method = name.partition(",")[0]  # then the norms it was merged by
        merges[name.replace(method, titles.get(method, method), 1)] = apart
    return {
        "again_line": line(report),
        "again_minutes": f"{report.minutes:g}",
        "again_tie": f"{formats.tie():.1e}",
        "again_slack": str(formats.SLACK),
        "again_rows": str(report.calibration_rows),
        "again_answers": markdown_table(answers),
        "again_merges": _differences(merges, "method"),
        "again_norms": _differences({TITLES[task]: d for task, d in report.norms.items()}, "task"),
        "reproduced_line": line(whole) if whole else "That was not done on this machine.",
    }


def _differences(found: dict[str, float], what: str) -> str:
    told = {name: f"{d:.1e}" if d else "nothing, bit for bit" for name, d in found.items()}
    return markdown_table(pd.DataFrame({"is off by": told}).rename_axis(what))
