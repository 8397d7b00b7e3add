"""Every claim's checks run, refused where a verdict is another, and shown on the claims' page."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.claims import Claim, Paper, Verdict, declared
from tipmini_lab.book.claims.checks import Evidence, Finding, gathered, modules, run
from tipmini_lab.book.staging import VALUE
from tipmini_lab.book.tables import markdown_table

LEVELS = {"in_print": "in print", "here": "at this book's scale"}


class Audited(NamedTuple):
    """A claim and what its two checks found now."""

    claim: Claim
    in_print: Finding
    here: Finding


def audit(folder: Path = paths.CLAIMS, evidence: Evidence | None = None) -> list[Audited]:
    """Run every check that is declared; see `refuse_changed` for verdicts that are not as declared.

    Raises
    ------
    TipminiError
        A file is not valid, or names a check or an argument that there is not.
    """
    evidence = evidence or gathered()
    claims = [claim for paper in declared(folder).values() for claim in paper.claims]
    return [Audited(c, *(run(c, level, evidence) for level in LEVELS)) for c in claims]


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
        file = f"{paths.CLAIMS.name}/{lines[0].partition('-')[0]}.yaml"
        raise TipminiError(f"claim {lines[0]}{more}; where that is right, declare it in {file}")


# Markdown for every {{ claims_... }} of book/claims.md --------------------------------------------
def page_values(folder: Path = paths.CLAIMS, evidence: Evidence | None = None) -> dict[str, str]:
    """What the page shows; raises TipminiError where a verdict is not the declared one."""
    evidence = evidence or gathered()
    audited = audit(folder, evidence)
    refuse_changed(audited)
    papers = declared(folder)
    own = {name: [each for each in audited if each.claim.paper == name] for name in papers}
    *others, last = (
        f"[{paper.name}](claims-{name}), {len(own[name])} claims" for name, paper in papers.items()
    )
    tables = {name: module.page_tables(evidence) for name, module in modules().items()}
    shown = [_paper(name, papers[name], own[name], tables.get(name, {})) for name in papers]
    listed = f"{', '.join(others)}, and {last}" if others else last
    return {"claims_listed": listed, "claims_of_papers": "\n\n".join(shown)}


def _paper(name: str, paper: Paper, audited: list[Audited], tables: Mapping) -> str:
    """A paper's part of the page: its head, what is recomputed, its claims by section."""
    values = {"count": str(len(audited))}
    values |= {k: t if isinstance(t, str) else markdown_table(t) for k, t in tables.items()}

    def filled(text: str) -> str:
        if unknown := set(VALUE.findall(text)) - values.keys():
            raise TipminiError(f"claims/{name}.yaml: no value is given for {sorted(unknown)[0]!r}")
        return VALUE.sub(lambda found: values[found[1]], text)

    parts = [
        *(f"(claims-{name})=\n## {paper.name}", filled(paper.about), _counts(audited)),
        *(f"### All claims of {paper.name}", _summary(audited), filled(paper.recomputed)),
    ]
    for section, words in paper.sections.items():
        parts.append(f"### {paper.name}: {words}")
        own = (each for each in audited if each.claim.section == section)
        parts += [_claim(each, paper.language) for each in own]
    return "\n\n".join(parts)


def _counts(audited: Sequence[Audited]) -> str:
    """How often every verdict is given."""
    found = {
        words: Counter(getattr(each, level).verdict for each in audited)
        for level, words in (("in_print", "in print"), ("here", "here"))
    }
    rows = {
        f"*{v.value}*": {words: counts[v] or "-" for words, counts in found.items()}
        for v in Verdict
        if any(v in counts for counts in found.values())
    }
    return markdown_table(pd.DataFrame(rows).T.rename_axis("verdict"))


def _summary(audited: Iterable[Audited]) -> str:
    rows = {
        f"[{each.claim.title}](claim-{each.claim.id})": {
            "in print": each.in_print.verdict.value,
            "here": each.here.verdict.value,
        }
        for each in audited
    }
    return markdown_table(pd.DataFrame(rows).T.rename_axis("claim"))


def _claim(each: Audited, language: str) -> str:
    """One claim as an admonition: quote, translation where it needs one, values, both verdicts."""
    claim = each.claim
    spoken = "en" if claim.english is None else language
    printed = "-" if claim.printed is None else claim.printed
    printed = f"{printed:g}" if isinstance(printed, float) else printed
    return "\n".join(
        [
            f"::::{{admonition}} {claim.title}",
            f":name: claim-{claim.id}",
            "",
            f'> <span lang="{spoken}">{plain(claim.quote)}</span>',
            "",
            *([] if claim.english is None else [f"*{plain(claim.english)}*", ""]),
            _line("Printed", f"{printed}{claim.unit}"),
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


def plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    return re.sub(r"([\\`*_{}\[\]~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
