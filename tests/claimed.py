"""A check called as a claim calls it."""

from tipmini_lab.book.claims import Claim
from tipmini_lab.book.claims.checks import Evidence, Finding, run

NOTES = {
    "in_print": {"words": "no number", "verdict": "no printed number"},
    "here": {"words": "no model", "verdict": "not run"},
}


def found(
    evidence: Evidence, check: str, level: str = "here", printed: object = None, **asked
) -> Finding:
    """What a check finds as declared; `asked` is what else the YAML says, arguments among it."""
    own = {"check": check, "verdict": "holds"} | asked
    head = {"id": "a-claim", "section": "here", "title": "It", "quote": "It holds."}
    told = run(Claim(**head, printed=printed, **NOTES | {level: own}), level, evidence)
    return told._replace(verdict=next(iter(told.readings.values()), told.verdict))
