"""The papers' printed tables, recomputed: frames for the page of the claims."""

from collections.abc import Sequence

import pandas as pd

from tipmini.lab.claims.evidence import Evidence, Printed
from tipmini.lab.claims.proportions import standard_error, whole_count
from tipmini.lab.claims.pruned import DECIMALS, NAMES, shown
from tipmini.lab.tables import TITLES

METHODS = ("single", "linear", "dare", "tip")


# TIP's Table 1 --------------------------------------------------------------------------------


def means(printed: Printed) -> pd.DataFrame:
    """The columns' means, and what TIP's is above them in points and relative."""
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


# LoRAPrune ------------------------------------------------------------------------------------


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
