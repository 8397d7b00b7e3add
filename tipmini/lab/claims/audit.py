"""Every claim's checks run, and refused where a verdict is not the declared one."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tipmini.errors import TipminiError
from tipmini.lab import paths
from tipmini.lab.claims import (
    bench_here,
    here,
    in_print,
    pruned,
    pruned_here,
    pruning_settings,
    settings,
)
from tipmini.lab.claims.combined import combining
from tipmini.lab.claims.declared import Check, Claim, declared
from tipmini.lab.claims.evidence import Evidence, Finding, gathered
from tipmini.strict import one_line

LEVELS = {"in_print": "in print", "here": "at this book's scale"}
HERE = (
    *(*here.CHECKS, *settings.CHECKS),
    *(*pruned_here.CHECKS, *bench_here.CHECKS, *pruning_settings.CHECKS),
)
CHECKS: dict[str, dict[str, Callable[..., Finding]]] = {
    "in_print": {check.__name__: check for check in (*in_print.CHECKS, *pruned.CHECKS)},
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
