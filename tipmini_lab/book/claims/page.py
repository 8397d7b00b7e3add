"""Every claim's checks run, refused where a verdict is another, and shown on the claims' page."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.claims import Check, Claim, Paper, Verdict, declared
from tipmini_lab.book.claims.checks import Evidence, Finding, gathered, modules, run
from tipmini_lab.book.tables import VALUE, markdown_table
from tipmini_lab.results.statistics import LEVEL

LEVELS = {"in_print": "in print", "here": "at this book's scale"}
HEADS = {"in_print": "in print", "here": "here"}  # of the tables


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
    evidence, known = evidence or gathered(), {}

    def found(paper: Paper, claim: Claim, level: str) -> Finding:
        asked = paper.name, claim.printed, level, getattr(claim, level).model_dump_json()
        if asked not in known:  # claims share checks
            known[asked] = run(claim, level, evidence, paper.forms)
        return known[asked]

    return [
        Audited(claim, *(found(paper, claim, level) for level in LEVELS))
        for paper in declared(folder).values()
        for claim in paper.claims
    ]


def refuse_changed(audited: Sequence[Audited]) -> None:
    """Raise TipminiError, one line, where a verdict is not the declared one."""
    lines = [
        f"{claim.id}, {words}: declared {told(asked)!r}, computed {told(found)!r}"
        for claim, *findings in audited
        for (level, words), found in zip(LEVELS.items(), findings, strict=True)
        if told(asked := getattr(claim, level)) != told(found)
    ]
    if lines:
        more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
        file = f"{paths.CLAIMS.name}/{lines[0].partition('-')[0]}.yaml"
        raise TipminiError(f"claim {lines[0]}{more}; where that is right, declare it in {file}")


def told(found: Finding | Check) -> str:
    """A verdict, and where it depends between which."""
    between = f": {', '.join(found.between)}" if found.between else ""
    return f"{found.verdict.value}{between}"


# Markdown for every {{ claims_... }} of book/claims.md --------------------------------------------
def page_values(
    folder: Path = paths.CLAIMS,
    evidence: Evidence | None = None,
    audited: Sequence[Audited] | None = None,
) -> dict[str, str]:
    """What the page shows; raises TipminiError where a verdict is not the declared one.

    audited: what `audit` finds of the same evidence, where it is known already.
    """
    evidence = evidence or gathered()
    audited = audited or audit(folder, evidence)
    refuse_changed(audited)
    papers = declared(folder)
    own = {name: [each for each in audited if each.claim.paper == name] for name in papers}
    *others, last = (
        f"[{paper.name}](claims-{name}), {len(own[name])} claims" for name, paper in papers.items()
    )
    tables = {n: m.page_tables(evidence) for n, m in modules().items() if hasattr(m, "page_tables")}
    shown = [_paper(name, papers[name], own[name], tables.get(name, {})) for name in papers]
    listed = f"{', '.join(others)}, and {last}" if others else last
    values = {"claims_listed": listed, "claims_level": f"{LEVEL:.0%}"}
    return values | {"claims_of_papers": "\n\n".join(shown)}


def _paper(name: str, paper: Paper, audited: list[Audited], tables: Mapping) -> str:
    """A paper's part of the page: its head, what is recomputed, its claims by section."""
    values = {"count": str(len(audited))}
    values |= {k: t if isinstance(t, str) else markdown_table(t) for k, t in tables.items()}

    def filled(text: str) -> str:
        if unknown := set(VALUE.findall(text)) - values.keys():
            raise TipminiError(f"claims/{name}.yaml: no value is given for {sorted(unknown)[0]!r}")
        return VALUE.sub(lambda found: values[found[1]], text)

    found = {words: [getattr(each, key) for each in audited] for key, words in HEADS.items()}
    links = [f"[{each.claim.title}](claim-{each.claim.id})" for each in audited]
    found = pd.DataFrame(found, index=pd.Index(links, name="claim"))
    verdicts, counts = found.map(told), found.map(lambda one: one.verdict.value)
    counts = counts.apply(pd.Series.value_counts).reindex([*Verdict]).dropna(how="all")
    counts = counts.map(lambda count: "-" if pd.isna(count) else int(count))
    counts.index = [f"*{verdict}*" for verdict in counts.index]
    parts = [
        *(f"(claims-{name})=\n## {paper.name}", filled(paper.about)),
        *(markdown_table(counts.rename_axis("verdict")), f"### All claims of {paper.name}"),
        *(markdown_table(verdicts), filled(paper.recomputed)),
    ]
    for section, words in paper.sections.items():
        parts.append(f"### {paper.name}: {words}")
        parts += [_claim(each, paper.language) for each in audited if each.claim.section == section]
    return "\n\n".join(parts)


def _claim(each: Audited, language: str) -> str:
    """One claim as an admonition: quote, translation where it needs one, values, both verdicts."""
    claim, found = each.claim, (each.in_print, each.here)
    spoken = "en" if claim.english is None else language
    printed = f"{claim.printed:g}" if isinstance(claim.printed, float) else claim.printed
    in_print, here = (f"**{one.verdict.value}**. {one.words}" for one in found)
    terms = {
        **{"Printed": f"{printed}{claim.unit}" if printed else "-"},
        **{"Recomputed": each.in_print.recomputed, "In print": in_print},
        **{"In print, otherwise read": sensitivity(each.in_print)},
        **{_head(claim.here): each.here.recomputed, "Here": here},
        **{"Here, otherwise read": sensitivity(each.here)},
    }
    return "\n".join(
        [
            *(f"::::{{admonition}} {claim.title}", f":name: claim-{claim.id}", ""),
            *(f'> <span lang="{spoken}">{plain(claim.quote)}</span>', ""),
            *([] if claim.english is None else [f"*{plain(claim.english)}*", ""]),
            *("" if text == "-" else f"{term}\n: {text}\n" for term, text in terms.items()),
            "::::",
        ]
    )


def _head(asked: Check) -> str:
    """Of what a check shows: a setting and a count are no measurement."""
    if asked.counted:
        return "Counted here"
    settings = {Verdict.SAME_SETTING, Verdict.OTHER_SETTING}
    return "Setting here" if asked.verdict in settings else "Measured here"


def sensitivity(found: Finding) -> str:
    """Whether another admissible choice changes a verdict, and every choice by what it comes to."""
    if not found.readings:
        return "-"
    if not found.between:
        return f"No other choice changes it: {'; '.join([*found.readings][1:])}."
    groups = {verdict: [] for verdict in found.between}
    for words, verdict in found.readings.items():
        groups[verdict].append(words)
    return ". ".join(f"*{v.value}*: {'; '.join(words)}" for v, words in groups.items()) + "."


def plain(text: str) -> str:
    """Text on one line in which nothing is markup but formulas in dollars; bold is left out."""
    text, formula = " ".join(text.replace("**", "").split()), re.compile(r"(\$[^$]+\$)")
    return "".join(
        part
        if formula.fullmatch(part)
        else re.sub(r"([\\`*_{}\[\]~$])", r"\\\1", html.escape(part, quote=False))
        for part in formula.split(text)
    )
