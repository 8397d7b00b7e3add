"""What every merge keeps, beside what it needs, what it costs, and the rank that comes out."""

import json
import math
from collections.abc import Mapping
from functools import cache

import pandas as pd

from tipmini.errors import TipminiError
from tipmini.methods import weighting
from tipmini_lab import paths
from tipmini_lab.book.tables import EMPTY, Titles, narrow, share
from tipmini_lab.experiments.catalogue import UNMERGED, Catalogue, Variant, resolved
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import retention, store
from tipmini_lab.results.runs import duration
from tipmini_lab.results.statistics import MISSING

ALONE, UNLABELLED = "adapters alone", "unlabelled examples"
LABELLED, CONTROL = "labelled examples", "control"
KINDS = (ALONE, UNLABELLED, LABELLED, CONTROL)
GROUPS = ("methods", "nine-tenths", "distilled")  # whose variants are compared
OTHERS = ("linear-tuned", "cat-tuned", "tip-tuned", "dare-tuned", "better", "cat-learnt")
APART = ("tip-printed", "recommended")  # another's merge under a second name


def variants(known: Catalogue, profile: Profile) -> dict[str, Variant]:
    """All that are compared, by name; of random ones one draw, of choices those that were made."""
    every = [name for group in GROUPS for name in known.names(group, profile)]
    names = [n for n in every if n not in (*UNMERGED, *APART) and not n.startswith("dare-s")]
    found = {}
    for name in dict.fromkeys([*names, *OTHERS]):
        try:
            choice = known.choices.get(name)
            found[name] = resolved(choice, known, profile) if choice else known.variant(name)
        except TipminiError:  # its candidates are not measured
            continue
    return found


def kind(variant: Variant) -> str:
    """What a merge needs, of KINDS; what is learnt from nothing, or of labels, is a control."""
    if taught := variant.distill:
        return CONTROL if taught.fresh or taught.gold else UNLABELLED
    if variant.weights == "learnt":
        return LABELLED
    if not variant.needs:
        return ALONE
    return LABELLED if variant.inputs.answers else UNLABELLED


def points(
    rows: pd.DataFrame, profile: Profile, compared: Mapping[str, Variant], titles: Titles
) -> pd.DataFrame:
    """A line a variant: title, kind, kept and without (an Interval each), value of kept, rank
    and seconds on one thread; nan of what is not measured.

    rows: `tables.variant_rows`. without: kept, but for the highest task.
    """
    facts, lines = store.facts(profile.variant_store), {}
    for name, variant in compared.items():
        found = retention.retention(rows, name, profile.tasks)
        kept = found.get(retention.MEAN)
        rank, seconds = cost(name, variant, facts.get(name, {}))
        lines[name] = {
            **{"title": titles.get(name, name), "kind": kind(variant)},
            **{"kept": kept, "without": found.get(retention.WITHOUT)},
            **{"value": kept.value if kept else math.nan, "rank": rank, "seconds": seconds},
        }
    return pd.DataFrame(lines).T.astype({"value": float, "rank": float, "seconds": float})


def cost(name: str, variant: Variant, facts: Mapping) -> tuple[float, float]:
    """(rank, seconds): as stored of what is learnt or runs the model, else as `python -m bench
    costs` measured it."""
    measured = _costs()
    if variant.weights == "learnt":
        made = weighting.read(load_profile("full").store / "weights.json").made
        return measured.get("cat", {}).get("rank", math.nan), made.seconds
    if variant.distill or variant.needs == "rows":
        return facts.get("rank", math.nan), facts.get("seconds", math.nan)
    own = measured.get(name, {})
    return own.get("rank", math.nan), own.get("seconds", math.nan) + own.get("inputs", 0.0)


@cache
def _costs() -> dict[str, dict]:
    """{variant: what it costs}; empty where it never was measured."""
    stored = json.loads(paths.BENCH.read_text()) if paths.BENCH.is_file() else {}
    return stored.get("costs", {}).get("merges", {})


def front(found: pd.DataFrame, by: str) -> list[str]:
    """Names of those that keep more than all that cost no more, from the cheapest on."""
    measured = found.dropna(subset=[by, "value"])
    best, names = -math.inf, []
    for line in measured.sort_values([by, "value"], ascending=[True, False]).itertuples():
        if line.value > best:
            best = line.value
            names.append(line.Index)
    return names


def table(found: pd.DataFrame) -> pd.DataFrame:
    """`points` to be read: by what is needed, then by what is kept."""
    order = found.assign(of=found.kind.map(KINDS.index))
    lines = {}
    for line in order.sort_values(["of", "value"], ascending=[True, False]).itertuples():
        lines[narrow(line.title, 24)] = {
            "retention": MISSING if math.isnan(line.value) else share(line.kept),
            "without<br>the highest": EMPTY if math.isnan(line.value) else share(line.without),
            "needs": line.kind,
            "rank": EMPTY if math.isnan(line.rank) else f"{line.rank:.0f}",
            "time": EMPTY if math.isnan(line.seconds) else duration(line.seconds),
        }
    return pd.DataFrame(lines).T.rename_axis("merge")
