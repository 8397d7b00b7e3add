"""results/parity.json, and the tables that the book makes of it. Needs no peer."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from tipmini.errors import TipminiError
from tipmini.lab import paths

STORED = paths.REPOSITORY / "results" / "parity.json"
BITS, ROUNDING, DIFFERS = RELATIONS = ("bit for bit", "to rounding", "differs")

COLUMNS = ("function", "tipmini", "relation", "cases", "relative difference", "why")
PITFALL_COLUMNS = ("`add_weighted_adapter`", "PEFT", "tipmini", "policy")


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
    found = [case["difference"] for case in row["cases"]]
    if row["relation"] == DIFFERS and len(found) > 1:
        difference = f"{min(found):.2g} to {max(found):.2g}"
    else:
        difference = f"{max(found):.1g}" if row["relation"] == ROUNDING else f"{max(found):.2g}"
    calls = (f"`{row['function']}`", f"`{row['ours']}`")
    return [*calls, row["relation"], str(len(found)), difference, row["reason"]]


def _pitfall(row: dict) -> list[str]:
    case = row["cases"][0]
    situation = row["function"].removeprefix("add_weighted_adapter, ")
    return [situation, case["theirs"], f"`{row['ours']}`: {case['mine']}", row["reason"]]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = chain([columns, ["---"] * len(columns)], rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
