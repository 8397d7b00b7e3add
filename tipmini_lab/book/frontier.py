"""What every merge keeps, beside what it needs, what it costs, and the rank that comes out."""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache

import pandas as pd
from scipy.stats import kendalltau

from tipmini.errors import TipminiError
from tipmini.methods import weighting
from tipmini_lab import paths
from tipmini_lab.book import questions, router, tables
from tipmini_lab.book.tables import EMPTY, TITLES, Titles, estimate, narrow, share
from tipmini_lab.experiments.catalogue import UNMERGED, Catalogue, Variant, resolved
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import retention, statistics, store
from tipmini_lab.results.runs import duration
from tipmini_lab.results.statistics import Interval

ALONE, UNLABELLED = "adapters alone", "unlabelled examples"
LABELLED, CONTROL = "labelled examples", "control"
KINDS = (ALONE, UNLABELLED, LABELLED, CONTROL)
MERGES = KINDS[:-1]
ROUTED = "all adapters kept"  # what a router reaches, no merge
GROUPS = ("nine-tenths", "distilled")  # whose variants are compared, with every method
SETS = {"one seed": "", "a seed each": "-seeds"}  # of adapters, by how A was drawn; of a profile
OTHERS = ("cat-tuned", "tip-tuned", "dare-tuned", "better", "cat-learnt")


def variants(known: Catalogue) -> dict[str, Variant]:
    """All that are compared, each merge once, by name; choices are those made for `full`."""
    mini, full, found = load_profile("mini"), load_profile("full"), {}
    declared = [name for group in GROUPS for name in known.names(group, mini)]
    every = dict.fromkeys([*questions.methods(), *declared, *OTHERS])
    for name in sorted(every, key=known.choices.__contains__):  # a choice is one of what is known
        if name in known.choices:
            try:
                chosen = resolved(known.choices[name], known, full)
            except TipminiError:  # its candidates are not measured
                continue
            if chosen.settings() not in [each.settings() for each in found.values()]:
                found[name] = chosen
        elif name not in UNMERGED:
            found[name] = known.variant(name)
    return found


def kind(variant: Variant) -> str:
    """What a merge needs, of KINDS; what is learnt from nothing, or of labels, is a control."""
    taught = variant.distill
    if taught and (taught.fresh or taught.gold):
        return CONTROL
    if variant.weights == "learnt" or (variant.needs and variant.inputs.answers is True):
        return LABELLED
    return UNLABELLED if taught or variant.needs else ALONE


def points(
    rows: pd.DataFrame, profile: Profile, compared: Mapping[str, Variant], titles: Titles
) -> pd.DataFrame:
    """A line a variant: title, kind, kept and without (an Interval each), value of kept, rank
    and seconds of one core; nan of what is not measured. The last is what a router reaches.

    rows: `tables.variant_rows`. without: kept, but for the highest task.
    """
    facts = store.facts(profile.variant_store)
    told = {
        name: (titles.get(name, name), kind(each), *cost(name, each, facts.get(name, {}), profile))
        for name, each in compared.items()
    }
    if retention.measured(rows, retention.OWN, profile.tasks):
        rows = rows.assign(router=router.values(rows, profile))
        told["router"] = ("router to all adapters", ROUTED, math.nan, math.nan)
    lines = {}
    for name, (title, of, rank, seconds) in told.items():
        found = retention.retention(rows, name, profile.tasks)
        kept = found.get(retention.MEAN)
        lines[name] = {
            **{"title": title, "kind": of, "kept": kept, "without": found.get(retention.WITHOUT)},
            **{"value": kept.value if kept else math.nan, "rank": rank, "seconds": seconds},
        }
    frame = pd.DataFrame.from_dict(lines, orient="index", dtype=object)  # None stays None
    return frame.astype({"value": float, "rank": float, "seconds": float})


def cost(name: str, variant: Variant, facts: Mapping, profile: Profile) -> tuple[float, float]:
    """(rank, seconds of one core): as stored of what is learnt or runs the model, else as `python
    -m bench costs` measured it."""
    measured = _costs()
    if variant.weights == "learnt":
        file = profile.kept_store / "weights.json"
        made = weighting.read(file).made if file.is_file() else None
        seconds = made.seconds * made.threads if made else math.nan
        return measured.get("cat", {}).get("rank", math.nan), seconds
    if variant.distill or variant.needs == "rows":
        seconds = facts.get("seconds", math.nan) * facts.get("threads", 1)
        if variant.needs in ("norms", "grams"):  # of the merge that is learnt from
            seconds += measured.get(variant.method, {}).get("inputs", math.nan)
        return facts.get("rank", math.nan), seconds
    own = measured.get(name, {})
    return own.get("rank", math.nan), own.get("seconds", math.nan) + own.get("inputs", 0.0)


@cache
def _costs() -> dict[str, dict]:
    """{variant: what it costs}; empty where it never was measured."""
    stored = json.loads(paths.BENCH.read_text()) if paths.BENCH.is_file() else {}
    return stored.get("costs", {}).get("merges", {})


def front(found: pd.DataFrame, by: str) -> list[str]:
    """Names of those that keep more than all that cost no more, from the cheapest on; no controls.

    by: "seconds" or "rank".
    """
    measured = found[found.kind.isin(MERGES)].dropna(subset=[by, "value"])
    best, names = -math.inf, []
    for line in measured.sort_values([by, "value"], ascending=[True, False]).itertuples():
        if line.value > best:
            best = line.value
            names.append(line.Index)
    return names


def fronts(found: Mapping[str, pd.DataFrame], costs: Iterable[str]) -> dict[str, str]:
    """{name: title} of what is on the `front` of any cost in any of `sets`."""
    return {n: own.title[n] for own in found.values() for by in costs for n in front(own, by)}


def most(found: Mapping[str, pd.DataFrame]) -> str:
    """The merge that keeps the most, of every one of `sets` that has one, in words."""
    merges = {which: own[own.kind.isin(MERGES)] for which, own in found.items()}
    best = {which: own.loc[own.value.idxmax()] for which, own in merges.items() if len(own)}
    return "; ".join(
        f"{own.title}{which and f', adapters of {which}'}: {own.value:.0%}"
        for which, own in best.items()
    )


def sets(known: Catalogue, titles: Titles, name: str = "full") -> dict[str, pd.DataFrame]:
    """`points` of every method with each of a profile's SETS that it is measured with, by the set's
    title; one alone needs none."""
    every, found = variants(known), {}
    for title, suffix in SETS.items():
        profile = load_profile(f"{name}{suffix}")
        found[title] = points(questions.rows(profile), profile, every, titles)
    merges = {title: own.value[own.kind.isin(MERGES)] for title, own in found.items()}
    there = {title: found[title] for title, own in merges.items() if own.notna().any()}
    return there if len(there) > 1 else dict(zip([""], there.values(), strict=False))


def counted(found: Mapping[str, pd.DataFrame], name: str) -> str:
    """The tasks that retention of `sets` is told of, in words: of each set its own."""
    told = {}
    for title, suffix in SETS.items():
        profile = load_profile(f"{name}{suffix}")
        own = retention.learnt(questions.rows(profile), profile.tasks)
        told[title] = ", ".join(TITLES[task] for task in own)
    shown = {title: told[title or next(iter(SETS))] for title in found}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"with {title} {tasks}" for title, tasks in shown.items())


def compared(known: Catalogue, profile: Profile) -> list[str]:
    """Every method, and all of `variants` that a profile's tasks are evaluated with."""
    methods, rows = questions.methods(), questions.rows(profile)
    others = (n for n in variants(known) if statistics.measured(rows, [n], profile.tasks))
    return list(dict.fromkeys([*methods, *others]))


def on_both(known: Catalogue, name: str) -> pd.DataFrame:
    """A line a variant that a profile has with each of SETS, the highest of the first before.

    Of each set `mean`, with its error, and `apart`, the distance from `linear-tuned` (an Interval).
    """
    names, found = [*retention.OWN, *variants(known)], {}
    for title, suffix in SETS.items():
        profile = load_profile(f"{name}{suffix}")
        rows, tasks = questions.rows(profile), profile.tasks
        there = [n for n in names if statistics.measured(rows, [n, "linear-tuned"], tasks)]
        lines = {
            n: {
                "mean": statistics.mean_of(rows, n, tasks),
                "apart": statistics.difference(rows, n, "linear-tuned", tasks),
            }
            for n in there
        }
        order = sorted(lines, key=lambda n: lines[n]["mean"], reverse=True)
        found[title] = pd.DataFrame([lines[n] for n in order], order, ["mean", "apart"])
    return pd.concat(found, axis=1, join="inner")


def both_table(found: pd.DataFrame, titles: Titles) -> pd.DataFrame:
    """`on_both`, to be read."""
    shown = {title: found[title, "mean"].map(estimate) for title in SETS}
    for title in SETS:
        column = narrow(f"from {titles['linear-tuned']}, {title}", 16)
        shown[column] = found[title, "apart"].map(tables.points)
    names = {name: narrow(titles.get(name, name), 24) for name in found.index}
    return pd.DataFrame(shown).rename(index=names).rename_axis("mean accuracy")


def both_in_words(found: pd.DataFrame, titles: Titles) -> str:
    """How alike the order of merges is with both sets, and which ones turn sides."""
    merges = found.drop(index=[*retention.OWN, "linear-tuned"], errors="ignore")
    if len(merges) < 3:
        return "Of so few merges no order is told."
    first, second = (merges[title, "mean"].map(lambda mean: mean[0]) for title in SETS)
    sides = merges.loc[:, (list(SETS), "apart")].map(_side)
    turned = sides.index[sides.product(axis=1) < 0]
    named = ", ".join(titles.get(name, name) for name in turned) or "no merge"
    return (
        f"The order of {len(merges)} merges is alike by {kendalltau(first, second).statistic:.2f} "
        "(Kendall's τ: 1 the same, 0 as by chance, -1 reversed). Beyond the intervals, on one side "
        f"of *{titles['linear-tuned']}* with one set and on the other with the other is {named}."
    )


def _side(apart: Interval) -> int:
    """-1 below 0 with the whole interval, 1 above it, else 0."""
    return (apart.low > 0) - (apart.high < 0)


def interference(profile: Profile) -> dict[str, dict[str, float]]:
    """{task: {other: its R with both adapters whole}} by the tasks' titles, as `distilling.facts`
    has it of coefficients; empty where none are measured."""
    every = store.facts(profile.variant_store).values()
    flat = next((own["interference"] for own in every if "interference" in own), [])
    names, values = [TITLES[task] for task in profile.tasks], iter(flat)
    lines = {task: dict(zip(names, values, strict=False)) for task in names if flat}
    return {t: {o: r for o, r in line.items() if o != t} for t, line in lines.items()}


def table(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`sets`, of what is measured of the first, to be read: by what is needed, then by what is
    kept; below the retention of each set that without the highest task."""
    first, *_ = found.values()
    order = first.dropna(subset="value").assign(of=first.kind.map([*KINDS, ROUTED].index))
    lines = [
        {
            "merge": narrow(line.title, 24),
            **{
                narrow(f"retention, {title}".strip(", "), 10): "<br>".join(
                    share(own[which].get(line.Index)) for which in ("kept", "without")
                )
                for title, own in found.items()
            },
            "needs": narrow(line.kind, 10),
            "rank": EMPTY if math.isnan(line.rank) else f"{line.rank:.0f}",
            "time": EMPTY if math.isnan(line.seconds) else _told(line.seconds),
        }
        for line in order.sort_values(["of", "value"], ascending=[True, False]).itertuples()
    ]
    return pd.DataFrame(lines).set_index("merge")


def _told(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
