"""Every claim's checks run, refused where a verdict is another, and shown on the claims' page."""

import html
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini_lab import paths
from tipmini_lab.book.claims import here, in_print, pruned, pruned_here
from tipmini_lab.book.claims.declared import (
    Check,
    Claim,
    Declared,
    Verdict,
    declared,
    standard_error,
    whole_count,
)
from tipmini_lab.book.claims.evidence import COMPARED, Evidence, Finding, Printed, gathered
from tipmini_lab.book.claims.here import combining
from tipmini_lab.book.claims.pruned import DECIMALS, NAMES, shown
from tipmini_lab.book.tables import TITLES, markdown_table

LEVELS = {"in_print": "in print", "here": "at this book's scale"}
HERE = (
    *(*here.CHECKS, *in_print.SETTINGS),
    *(*pruned_here.CHECKS, *pruned.BENCHED, *pruned.PRUNING_SETTINGS),
)
CHECKS: dict[str, dict[str, Callable[..., Finding]]] = {
    "in_print": {check.__name__: check for check in (*in_print.CHECKS, *pruned.PRUNED)},
    "here": {check.__name__: check for check in (*HERE, *combining(HERE))},
}


class Audited(NamedTuple):
    """A claim and what its two checks found now."""

    claim: Claim
    in_print: Finding
    here: Finding


def audit(file: Path = paths.CLAIMS, evidence: Evidence | None = None) -> list[Audited]:
    """Run every check of the file; see `refuse_changed` for verdicts that are not as declared.

    Raises
    ------
    TipminiError
        The file is not valid, or names a check or an argument that there is not.
    """
    evidence = evidence or gathered()
    claims = declared(file).claims
    return [Audited(c, *(run(c, level, evidence) for level in LEVELS)) for c in claims]


def run(claim: Claim, level: str, evidence: Evidence) -> Finding:
    """What a claim's check of a level finds."""
    asked: Check = getattr(claim, level)
    check = CHECKS[level].get(asked.check)
    if check is None:
        raise TipminiError(
            f"claim {claim.id}: check {asked.check!r} is not one of {', '.join(CHECKS[level])}"
        )
    offered = {"printed": claim.printed, "tolerance": asked.tolerance}
    known = inspect.signature(check).parameters
    stated = {name: value for name, value in offered.items() if value is not None}
    given = {name: value for name, value in stated.items() if name in known} | asked.arguments
    try:
        inspect.signature(check).bind(evidence, **given)
    except TypeError as error:
        raise TipminiError(f"claim {claim.id}, {asked.check}: {one_line(error)}") from None
    return check(evidence, **given)


def changes(audited: Iterable[Audited]) -> list[str]:
    """A line for every verdict that is not the declared one."""
    return [
        f"{claim.id}, {words}: declared {declared.value!r}, computed {found.value!r}"
        for claim, *findings in audited
        for (level, words), finding in zip(LEVELS.items(), findings, strict=True)
        if (declared := getattr(claim, level).verdict) != (found := finding.verdict)
    ]


def refuse_changed(audited: Sequence[Audited]) -> None:
    """Raise TipminiError, one line, where a verdict is not the declared one."""
    if lines := changes(audited):
        more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
        raise TipminiError(
            f"claim {lines[0]}{more}; where that is right, declare it in {paths.CLAIMS.name}"
        )


# The papers' printed tables, recomputed -----------------------------------------------------------
COLUMNS = ("single", "linear", "dare", "tip")


# TIP's Table 1 ------------------------------------------------------------------------------------


def means(printed: Printed) -> pd.DataFrame:
    """The columns' means, and what TIP's is above them in points and relative."""
    rows = {}
    for method in COLUMNS:
        gap = printed.mean("tip") - printed.mean(method)
        relative = f"{100 * gap / printed.mean(method):+.1f}%"
        differs = (f"{100 * gap:+.2f}", relative) if method != "tip" else ("-", "-")
        values = (f"{printed.mean(method):.4f}", *differs)
        rows[TITLES[method]] = dict(
            zip(("mean", "TIP − it, points", "relative"), values, strict=True)
        )
    return pd.DataFrame(rows).T.rename_axis("column")


def records(evidence: Evidence) -> pd.DataFrame:
    """The column Single, and below it the public record of the base model."""
    rows = {
        f"{TITLES[task]}<br>{record['metric']}": {
            "Single, then record": f"{evidence.printed.value('single', task):.4f}<br>"
            f"{record['value']:.4f}",
            "recorded in": record["source"],
        }
        for task, record in evidence.base_model.items()
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def counts(printed: Printed) -> pd.DataFrame:
    """The right rows behind every printed accuracy, and its binomial standard error in points."""
    rows = {
        f"{TITLES[task]}<br>{printed.rows(task):,} rows": {
            TITLES[m]: _count(printed, m, task) for m in COLUMNS
        }
        for task in printed.tasks
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def _count(printed: Printed, method: str, task: str) -> str:
    share, rows = printed.value(method, task), printed.rows(task)
    count = whole_count(share, rows) if printed.splits[task]["whole"] else None
    shown = f"{count:,}" if count is not None else "not whole"
    return f"{shown}<br>±\N{NO-BREAK SPACE}{100 * standard_error(share, rows):.2f}"


def differences(printed: Printed, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences that the text speaks of: points, z, bold where clear."""
    rows = {}
    for task in printed.tasks:
        tests = {pair: printed.tests[*pair, task] for pair in pairs}
        rows[TITLES[task]] = {
            f"{TITLES[a]} − {TITLES[b]}": _marked(f"{100 * t.difference:+.2f}", t.clear)
            + f"<br>z {t.z:.1f}"
            for (a, b), t in tests.items()
        }
    return pd.DataFrame(rows).T.rename_axis("points")


def _marked(text: str, clear: bool) -> str:
    return f"**{text}**" if clear else text


# LoRAPrune ----------------------------------------------------------------------------------------


def perplexities(evidence: Evidence) -> pd.DataFrame:
    """The cells of Table 2 at hand, at 50% compression, and in order where each was read."""
    return _cells(evidence, "perplexity").rename_axis("at 50%")


def memories(evidence: Evidence) -> pd.DataFrame:
    """The cells of Table 4 at hand, in GB, and where each was read."""
    return _cells(evidence, "memory").rename_axis("criterion")


def _cells(evidence: Evidence, table: str) -> pd.DataFrame:
    rows = {}
    for row, cells in evidence.pruned[table].items():
        values = {NAMES[c]: shown(evidence, table, row, c) for c in cells}
        rows[NAMES[row]] = values | {"read in": ", ".join(c["source"] for c in cells.values())}
    return pd.DataFrame(rows).T


def sources(evidence: Evidence) -> str:
    """What the words of the column "read in" stand for."""
    rows = [row for table in DECIMALS for row in evidence.pruned[table].values()]
    read = {cell["source"] for row in rows for cell in row.values()}
    known = evidence.pruned["sources"].items()
    return "; ".join(f"*{key}*: {source}" for key, source in known if key in read) + "."


def margins(evidence: Evidence) -> dict[str, float]:
    """Half of what LoRAPrune prints, per cent: what "greatly" is taken to ask for at least."""
    memory = {name: row["gigabytes"]["value"] for name, row in evidence.pruned["memory"].items()}
    faster = evidence.pruned["throughput"]["lora_guided"]["gain"]["value"]
    found = {
        "less memory": 100 - 100 * memory["lora_guided"] / memory["vanilla"],
        "less in 8 bits against 16": 100 - 100 * memory["lora_guided_8bit"] / memory["lora_guided"],
        "more throughput": faster,
    }
    return {what: round(share / 2, 1) for what, share in found.items()}


# Markdown for every {{ claims_... }} of book/claims.md --------------------------------------------
def page_values(file: Path = paths.CLAIMS, evidence: Evidence | None = None) -> dict[str, str]:
    """What the page shows; raises TipminiError where a verdict is not the declared one."""
    evidence = evidence or gathered()
    told, audited = declared(file), audit(file, evidence)
    refuse_changed(audited)
    values = {"claims_verdicts": _meanings(audited)} | _printed_tables(evidence)
    for paper in told.papers:
        own = [each for each in audited if each.claim.paper == paper]
        values[f"claims_{paper}_count"] = str(len(own))
        values[f"claims_{paper}_verdicts"] = _counts(own)
        values[f"claims_{paper}_summary"] = markdown_table(_summary(own))
        values |= _sections(paper, told, own)
    return values


def _printed_tables(evidence: Evidence) -> dict[str, str]:
    table = evidence.printed
    frames = {
        "claims_means": means(table),
        "claims_records": records(evidence),
        "claims_counts": counts(table),
        "claims_tip_differences": differences(table, COMPARED[:3]),
        "claims_merge_differences": differences(table, COMPARED[3:]),
        "claims_loraprune_perplexities": perplexities(evidence),
        "claims_loraprune_memories": memories(evidence),
    }
    return {name: markdown_table(frame) for name, frame in frames.items()} | {
        "claims_compared": str(len(COMPARED) * len(table.tasks)),
        "claims_loraprune_sources": sources(evidence),
        "claims_loraprune_margins": ", ".join(
            f"{least:g}% {what}" for what, least in margins(evidence).items()
        ),
    }


# Claims -------------------------------------------------------------------------------------------


def _summary(audited: Iterable[Audited]) -> pd.DataFrame:
    rows = {
        f"[{each.claim.title}](claim-{each.claim.id})": {
            "in print": each.in_print.verdict.value,
            "here": each.here.verdict.value,
        }
        for each in audited
    }
    return pd.DataFrame(rows).T.rename_axis("claim")


def _meanings(audited: Sequence[Audited]) -> str:
    """Every verdict that is given, and what it means."""
    given = {finding.verdict for each in audited for finding in (each.in_print, each.here)}
    rows = {f"*{v.value}*": {"meaning": v.meaning} for v in Verdict if v in given}
    return markdown_table(pd.DataFrame(rows).T.rename_axis("verdict"))


def _counts(audited: Sequence[Audited]) -> str:
    """How often every verdict is given."""
    in_print = Counter(each.in_print.verdict for each in audited)
    here = Counter(each.here.verdict for each in audited)
    rows = {
        f"*{v.value}*": {"in print": in_print[v] or "-", "here": here[v] or "-"}
        for v in Verdict
        if v in in_print | here
    }
    return markdown_table(pd.DataFrame(rows).T.rename_axis("verdict"))


def _sections(paper: str, told: Declared, audited: list[Audited]) -> dict[str, str]:
    """A value for each section of a paper: its claims one below the other."""
    language = told.papers[paper].language
    return {
        f"claims_{paper}_{section}": "\n\n".join(
            _claim(each, language) for each in audited if each.claim.section == section
        )
        for section in told.papers[paper].sections
    }


def _claim(each: Audited, language: str) -> str:
    """One claim as an admonition: quote, translation where it needs one, values, both verdicts."""
    claim = each.claim
    spoken = "en" if claim.english is None else language
    return "\n".join(
        [
            f"::::{{admonition}} {claim.title}",
            f":name: claim-{claim.id}",
            "",
            f'> <span lang="{spoken}">{_plain(claim.quote)}</span>',
            "",
            *([] if claim.english is None else [f"*{_plain(claim.english)}*", ""]),
            _line("Printed", _printed(claim)),
            _line("Recomputed", each.in_print.recomputed),
            _line("In print", _told(each.in_print)),
            _line("Measured here", each.here.recomputed),
            _line("Here", _told(each.here)),
            "::::",
        ]
    )


def _line(term: str, text: str) -> str:
    return "" if text == "-" else f"{term}\n: {text}\n"


def _told(finding: Finding) -> str:
    return f"**{finding.verdict.value}**. {finding.words}"


def _printed(claim: Claim) -> str:
    if claim.printed is None:
        return "-"
    value = f"{claim.printed:g}" if isinstance(claim.printed, float) else claim.printed
    return f"{value}{claim.unit}"


def _plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    return re.sub(r"([\\`*_{}\[\]~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
