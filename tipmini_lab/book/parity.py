"""results/parity.json, and the tables that the book makes of it. Needs no peer."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from tipmini.errors import TipminiError
from tipmini_lab import paths

STORED = paths.REPOSITORY / "results" / "parity.json"
BITS, ROUNDING, DIFFERS = RELATIONS = ("bit for bit", "to rounding", "differs")

# Few columns, so that a page shows them whole: of two calls the upper one is the peer's.
COLUMNS = ("peer, tipmini", "relation", "cases", "why")
PITFALL_COLUMNS = ("`add_weighted_adapter`", "what happens", "policy")


def read() -> dict:
    """The stored outcomes; raises TipminiError where there are none."""
    if not STORED.is_file():
        raise TipminiError(f"{STORED} is missing; run make parity")
    return json.loads(STORED.read_text())


def counts(comparisons: Sequence[dict]) -> dict[str, int]:
    """The number of cases of every relation."""
    found = Counter(row["relation"] for row in comparisons for _ in row["cases"])
    return {relation: found[relation] for relation in RELATIONS}


def page_values() -> dict[str, str]:
    """Markdown for every {{ parity_... }} of book/parity.md."""
    stored = read()
    rows = stored["comparisons"]
    told = [row for row in rows if _words(row)]
    values = {
        "parity_cases": str(sum(counts(rows).values())),
        "parity_cases_bits": str(counts(rows)[BITS]),
        "parity_cases_rounding": str(counts(rows)[ROUNDING]),
        "parity_cases_differs": str(counts(rows)[DIFFERS]),
        "parity_versions": ", ".join(f"{name} {v}" for name, v in stored["versions"].items()),
        "parity_date": stored["date"],
        "parity_pitfalls": _table(PITFALL_COLUMNS, map(_pitfall, told)),
    }
    for peer in dict.fromkeys(row["peer"] for row in rows):
        measured = [_measured(row) for row in rows if row["peer"] == peer and not _words(row)]
        values[f"parity_{peer.replace('-', '_')}"] = _table(COLUMNS, measured)
    return values


def _words(row: dict) -> bool:
    """Whether its sides told in words what happened."""
    return row["cases"][0]["difference"] is None


def _measured(row: dict) -> list[str]:
    calls = f"`{row['function']}`<br>`{row['ours']}`"
    return [calls, _relation(row), str(len(row["cases"])), row["reason"]]


def _relation(row: dict) -> str:
    """The relation, and the relative differences that were found."""
    found = [case["difference"] for case in row["cases"]]
    if row["relation"] == BITS:
        return BITS
    if row["relation"] == ROUNDING:
        return f"{ROUNDING}, {max(found):.1g}"
    spread = sorted({f"{min(found):.2g}", f"{max(found):.2g}"}, key=float)
    return f"{DIFFERS} by {' to '.join(spread)}"


def _pitfall(row: dict) -> list[str]:
    case = row["cases"][0]
    situation = row["function"].removeprefix("add_weighted_adapter, ")
    happens = f"PEFT: {case['theirs']}<br>`{row['ours']}`: {case['mine']}"
    return [situation, happens, row["reason"]]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = chain([columns, ["---"] * len(columns)], rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
