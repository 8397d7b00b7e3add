"""Markdown for every {{ claims_... }} of book/claims.md, computed when the book is built."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from tipmini.lab import paths
from tipmini.lab.claims import printed_tables as printed
from tipmini.lab.claims.audit import Audited, audit, refuse_changed
from tipmini.lab.claims.declared import Claim, Declared, Verdict, declared
from tipmini.lab.claims.evidence import COMPARED, Evidence, Finding, gathered
from tipmini.lab.show import markdown_table


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
        "claims_means": printed.means(table),
        "claims_records": printed.records(evidence),
        "claims_counts": printed.counts(table),
        "claims_tip_differences": printed.differences(table, COMPARED[:3]),
        "claims_merge_differences": printed.differences(table, COMPARED[3:]),
        "claims_loraprune_perplexities": printed.perplexities(evidence),
        "claims_loraprune_memories": printed.memories(evidence),
    }
    return {name: markdown_table(frame) for name, frame in frames.items()} | {
        "claims_compared": str(len(COMPARED) * len(table.tasks)),
        "claims_loraprune_sources": printed.sources(evidence),
        "claims_loraprune_margins": ", ".join(
            f"{least:g}% {what}" for what, least in printed.margins(evidence).items()
        ),
    }


# Claims -------------------------------------------------------------------------------------


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
