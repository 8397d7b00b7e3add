"""results/parity.json, and the tables that the book makes of it. Needs no peer."""

import json
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book.tables import markdown_table

STORED = paths.REPOSITORY / "results" / "parity.json"
BITS, ROUNDING, DIFFERS = RELATIONS = ("bit for bit", "to rounding", "differs")


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
    rows = pd.DataFrame(stored["comparisons"])
    first = pd.json_normalize(rows["cases"].str[0])
    in_words = first["difference"].isna()  # both sides told what happened
    compared = [row for row in stored["comparisons"] if row["cases"][0]["difference"] is not None]
    bits, rounding, differs = counts(compared).values()
    values = {
        "parity_cases": str(bits + rounding + differs),
        "parity_cases_bits": str(bits),
        "parity_cases_rounding": str(rounding),
        "parity_cases_differs": str(differs),
        "parity_versions": ", ".join(f"{name} {v}" for name, v in stored["versions"].items()),
        "parity_date": stored["date"],
    }
    # Few columns, so that a page shows them whole: of two calls the upper one is the peer's.
    shown = {
        "relation": rows.apply(_relation, axis=1),
        "cases": rows["cases"].map(len),
        "why": rows["reason"],
    }
    table = pd.DataFrame(shown).set_index("`" + rows["function"] + "`<br>`" + rows["ours"] + "`")
    for peer in rows["peer"].unique():
        own = table[(~in_words & (rows["peer"] == peer)).to_numpy()]
        name = f"parity_{peer.replace('-', '_')}"
        values[name] = markdown_table(own.rename_axis("peer, tipmini"))
    happens = "PEFT: " + first["theirs"] + "<br>`" + rows["ours"] + "`: " + first["mine"]
    pitfalls = pd.DataFrame({"what happens": happens, "policy": rows["reason"]})
    pitfalls.index = rows["function"].str.removeprefix("add_weighted_adapter, ")
    pitfalls = pitfalls[in_words.to_numpy()].rename_axis("`add_weighted_adapter`")
    return values | {"parity_pitfalls": markdown_table(pitfalls)}


def _relation(row: pd.Series) -> str:
    """The relation, and the relative differences that were found."""
    found = [case["difference"] for case in row["cases"]]
    if row["relation"] == BITS or None in found:
        return row["relation"]
    if row["relation"] == ROUNDING:
        return f"{ROUNDING}, {max(found):.1g}"
    spread = sorted({f"{min(found):.2g}", f"{max(found):.2g}"}, key=float)
    return f"{DIFFERS} by {' to '.join(spread)}"
