"""Markdown for every {{ claims_... }} of book/claims.md, computed when the book is built."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from tipmini.lab import paths
from tipmini.lab.claims.audit import Audited, audit, refuse_changed
from tipmini.lab.claims.declared import Claim, Declared, Verdict, declared
from tipmini.lab.claims.evidence import COMPARED, Evidence, Finding, Printed, gathered
from tipmini.lab.claims.proportions import standard_error, whole_count
from tipmini.lab.show import markdown_table
from tipmini.lab.tables import TITLES

METHODS = ("single", "linear", "dare", "tip")


def page_values(file: Path = paths.CLAIMS, evidence: Evidence | None = None) -> dict[str, str]:
    """What the page shows; raises TipminiError where a verdict is not the declared one."""
    evidence = evidence or gathered()
    told, audited = declared(file), audit(file, evidence)
    refuse_changed(audited)
    values = {
        "claims_count": str(len(audited)),
        "claims_verdicts": _verdicts(audited),
        "claims_means": markdown_table(_means(evidence.printed)),
        "claims_records": markdown_table(_records(evidence)),
        "claims_counts": markdown_table(_counts(evidence.printed)),
        "claims_tip_differences": markdown_table(_differences(evidence.printed, COMPARED[:3])),
        "claims_merge_differences": markdown_table(_differences(evidence.printed, COMPARED[3:])),
        "claims_compared": str(len(COMPARED) * len(evidence.printed.tasks)),
    }
    for paper in told.papers:
        own = [each for each in audited if each.claim.paper == paper]
        values[f"claims_{paper}_summary"] = markdown_table(_summary(own))
        values |= _sections(paper, told, own)
    return values


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


def _verdicts(audited: Sequence[Audited]) -> str:
    """Every verdict that is given, what it means and how often it is."""
    given = [finding.verdict for each in audited for finding in (each.in_print, each.here)]
    rows = {
        f"*{verdict.value}*": {"times": str(given.count(verdict)), "meaning": verdict.meaning}
        for verdict in Verdict
        if verdict in given
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
    """One claim as an admonition: quote, translation, values, both verdicts."""
    claim = each.claim
    return "\n".join(
        [
            f"::::{{admonition}} {claim.title}",
            f":name: claim-{claim.id}",
            "",
            f'> <span lang="{language}">{_plain(claim.quote)}</span>',
            "",
            f"*{_plain(claim.english)}*",
            "",
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


# Tables of the whole Table 1 ----------------------------------------------------------------


def _means(printed: Printed) -> pd.DataFrame:
    rows = {}
    for method in METHODS:
        gap = printed.mean("tip") - printed.mean(method)
        relative = f"{100 * gap / printed.mean(method):+.1f}%"
        differs = (f"{100 * gap:+.2f}", relative) if method != "tip" else ("-", "-")
        values = (f"{printed.mean(method):.4f}", *differs)
        rows[TITLES[method]] = dict(
            zip(("mean", "TIP − it, points", "relative"), values, strict=True)
        )
    return pd.DataFrame(rows).T.rename_axis("column")


def _records(evidence: Evidence) -> pd.DataFrame:
    rows = {
        f"{TITLES[task]}<br>{record['metric']}": {
            "Single, then record": f"{evidence.printed.value('single', task):.4f}<br>"
            f"{record['value']:.4f}",
            "recorded in": record["source"],
        }
        for task, record in evidence.base_model.items()
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def _counts(printed: Printed) -> pd.DataFrame:
    """The right rows behind every printed accuracy, and its binomial standard error in points."""
    rows = {
        f"{TITLES[task]}<br>{printed.rows(task):,} rows": {
            TITLES[m]: _count(printed, m, task) for m in METHODS
        }
        for task in printed.tasks
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def _count(printed: Printed, method: str, task: str) -> str:
    share, rows = printed.value(method, task), printed.rows(task)
    count = whole_count(share, rows) if printed.splits[task]["whole"] else None
    shown = f"{count:,}" if count is not None else "not whole"
    return f"{shown}<br>±\N{NO-BREAK SPACE}{100 * standard_error(share, rows):.2f}"


def _differences(printed: Printed, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
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
