"""What the chapters on TIP ask of merges: each comparison is declared here and tested once.

A page looks a pair up, whichever way round, so that a question has one p and one verdict wherever
it stands. A pair is tested on all examples, at `full`; where a variant has no cells there, at the
profile of the page. All pairs that are tested at the same profile are corrected together.
"""

import json
from collections.abc import Sequence
from functools import cache
from itertools import chain, permutations, product
from pathlib import Path

import pandas as pd

from tipmini_lab import paths
from tipmini_lab.book import comparisons, method_tables, tables
from tipmini_lab.book.tables import EMPTY, Titles, narrow, p_text, points, variant_rows
from tipmini_lab.experiments.catalogue import Catalogue, catalogue
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import digests, frame, statistics, store
from tipmini_lab.results.statistics import LEVEL, Pair, Verdict, compare

Asked = tuple[tuple[str, str], ...]  # (variant, the one that it is held against)

SCALED = tuple(
    (merge, f"{merge}.{control}")
    for merge in ("tip", "tip-inverted", "tip-cat")
    for control in ("scaled", "scaled-blocks")
)
RIVALS = ("linear", "linear-tuned", "dare-tuned")
AGAINST_RIVALS = ("tip", "tip-tuned", "tip-inverted", "tip-cat", "cat-tuned", "dare-delta-tuned")
QUESTIONS: dict[str, Asked] = {
    "works": (
        *(("tip", "base"), ("tip", "linear"), ("tip", "dare"), ("tip", "single")),
        *(("linear-tuned", "base"), ("linear-tuned", "tip"), ("linear-tuned", "single")),
    ),
    "sign": (("tip-inverted", "tip"), ("tip-inverted-cat", "tip-cat")),
    "static": (
        *(("tip", "tip.static"), ("tip", "tip.shuffled")),
        *(("tip-cat", "tip-cat.static"), ("tip-cat", "tip-cat.shuffled")),
    ),
    "score": (
        *(("tip", "tip.magnitude"), ("tip", "tip.random")),
        *(("tip-cat", "tip-cat.magnitude"), ("tip-cat", "tip-cat.random")),
    ),
    "cross": (("tip-cat", "tip"), ("cat", "linear"), ("tip-cat", "cat")),
    "scale": SCALED,
    "breaks": (("linear-weight-mean", "linear"), ("linear-tuned", "linear"), ("cat", "base")),
    "combined": tuple((name, "tip") for name in ("better", "linear", "base")),
    "tuned": tuple((m, r) for m in (*AGAINST_RIVALS, "better") for r in RIVALS),
    "means": (("tip-weight-mean", "linear-tuned"),),
    "better": (
        ("linear-tuned", "single"),
        *((("better", name)) for name in ("single", "base", "linear-tuned", "tip", "tip-tuned")),
        *((name, "linear-tuned") for name in ("cat-learnt", "tip-tuned", "ties", "knots")),
        ("unlabelled-regmean", "linear-tuned"),
        *((name, "linear-tuned") for name in ("regmean", "dare-tuned", "cat-tuned")),
        ("dare-delta-tuned", "linear-tuned"),
        ("better", "ties"),
    ),
    "taught": (
        *((name, "linear-tuned") for name in ("coefficients-module", "distilled-56")),
        *((f"distilled-{name}", "linear-tuned") for name in ("8", "more-56", "many-56", "many-8")),
        *((f"distilled-{name}", "single") for name in ("56", "8", "more-56", "many-56", "many-8")),
        *(("distilled-56", name) for name in ("fresh-distilled-56", "fresh-gold-56", "gold-56")),
        *(("distilled-8", name) for name in ("fresh-distilled-8", "fresh-gold-8")),
        *(("distilled-many-56", name) for name in ("fresh-many-56", "fresh-gold-many-56")),
        ("fresh-many-56", "fresh-gold-many-56"),
        *(("distilled-many-56", name) for name in ("multitask-56", "distilled-more-56")),
        *(("distilled-many-8", name) for name in ("fresh-many-8", "distilled-many-56")),
        *(("distilled-56", f"distilled-{n}") for n in ("from-sum", "from-coefficients", "choices")),
        ("distilled-56", "distilled-unbalanced"),
    ),
    "taught-pruned": (
        ("distilled-tip", "distilled-56"),
        *(
            ("distilled-masked-tip", f"distilled-masked-{name}")
            for name in ("magnitude", "nothing")
        ),
    ),
}
DRAWS = 20_000  # of a permutation test: so many corrections need more than one comparison does
# Three draws of a control, averaged example by example, stand for chance.
CONTROLS = tuple(f"{m}.{c}" for m in ("tip", "tip-cat") for c in ("shuffled", "random"))
SEEDS = 3


def drawn(control: str) -> list[str]:
    return [f"{control}-s{seed}" for seed in range(SEEDS)]


def with_controls(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and each random control as the mean of its draws."""
    means = {c: rows.reindex(columns=drawn(c)).mean(axis=1, skipna=False) for c in CONTROLS}
    return rows.assign(**means)


@cache
def _rows(profile: str) -> pd.DataFrame:
    return with_controls(variant_rows(load_profile(profile)))


def rows(profile: Profile) -> pd.DataFrame:
    """All that a profile has stored of variants, and the `CONTROLS`."""
    return _rows(profile.name)


def titles(profile: Profile) -> dict[str, str]:
    """`comparisons.titles`, and those of the `CONTROLS`."""
    named = comparisons.titles(catalogue(), profile.variant_store)
    of_draws = {c: named[drawn(c)[0]].removesuffix(", seed 0") for c in CONTROLS}
    return named | {c: f"{title} (mean of {SEEDS} draws)" for c, title in of_draws.items()}


def pairs(asked: Asked, profile: Profile) -> list[Pair]:
    return [Pair(*names, profile.tasks) for names in asked]


def methods() -> list[str]:
    """Base, Single and every method once: a preset that is another's merge of seven is left out."""
    listed = [name for name in catalogue().members["methods"] if not name.startswith("dare-s")]
    listed = [name for name in listed if name not in ("tip-printed", "recommended")]
    return [*listed, "linear-tuned"]


def declared(known: Catalogue, profile: Profile) -> list[Pair]:
    """Every pair that is tested, once."""
    asked = [pair for question in QUESTIONS.values() for pair in question]
    asked += [(name, "tip") for name in methods() if name != "tip"]
    every = pairs(tuple(asked), profile)
    every += method_tables.ledger_pairs(known.groups["ledger"].points, known.variants, profile)
    return list({_key(pair): pair for pair in every}.values())


def _key(pair: Pair) -> tuple:
    return (frozenset(pair[:2]), pair.tasks)


def _compared(at: Profile, every: Sequence[Pair]) -> list[dict]:
    """`compare` of those that a profile has, corrected together.

    Computed once and kept below _build: it takes a minute.
    """
    folders = at.store / "cells", at.variant_store
    stored = [digests.file_digest(f) for own in folders for f in sorted(own.glob("*.json"))]
    told = (__file__, *(module.__file__ for module in (frame, statistics, store, tables)))
    code = [digests.file_digest(Path(file)) for file in told]
    key = digests.digest([at.name, DRAWS, SEEDS, every, stored, code])
    file = paths.BUILD / f"compared-{key[:12]}.json"
    if not file.is_file():
        found = compare(rows(at), every, DRAWS)
        store.write(file, json.dumps(found[found.p.notna()].to_dict("records")))
    return json.loads(file.read_text())


@cache
def _tested(profile: str) -> dict[tuple, dict]:
    """Every declared pair: at `full`, where it is not measured there at the profile.

    A profile of fewer tasks has the pairs on its own tasks beside those on all.
    """
    profiles = [load_profile(name) for name in dict.fromkeys(("full", profile))]
    asked = [declared(catalogue(), own) for own in profiles]
    found: dict[tuple, dict] = {}
    for every, at in product(asked, profiles):
        left = [pair for pair in every if _key(pair) not in found]
        for one in _compared(at, left) if left else ():
            pair = Pair(one["name"], one["against"], tuple(one["tasks"]))
            found[_key(pair)] = one | {"tasks": pair.tasks, "profile": at.name}
    left = [pair for pair in chain.from_iterable(asked) if _key(pair) not in found]
    missing = compare(pd.DataFrame(), left)
    lines = missing.assign(profile="").to_dict("records")
    return found | {_key(Pair(one["name"], one["against"], one["tasks"])): one for one in lines}


def tested(every: Sequence[Pair], profile: Profile) -> pd.DataFrame:
    """What the one test of each pair found; KeyError for a pair that isn't declared."""
    return pd.DataFrame([turned(_tested(profile.name)[_key(pair)], pair) for pair in every])


def answers(profile: Profile) -> dict[Pair, dict]:
    """What the one test of each pair that is measured found, by the pair either way round."""
    found = [one for one in _tested(profile.name).values() if one["profile"]]
    both = [
        (Pair(*names, one["tasks"]), one)
        for one in found
        for names in permutations((one["name"], one["against"]))
    ]
    return {pair: turned(one, pair) for pair, one in both}


def turned(found: dict, pair: Pair) -> dict:
    """The same comparison as it is asked: the other way round, it has the other sign."""
    if found["name"] == pair.name:
        return found
    other = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    changed = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
    changed |= {"better": found["worse"], "worse": found["better"]}
    verdict = other.get(found["verdict"], found["verdict"])
    return found | changed | {"name": pair.name, "against": pair.against, "verdict": verdict}


def p_and_verdict(one, profile: Profile) -> dict[str, str]:
    """The last columns of a table; which profile, where it isn't `full`."""
    where = "" if one.profile in ("full", "") else f" (at {one.profile})"
    return {"p": p_text(one.corrected), "verdict": narrow(f"{one.verdict}{where}", 16)}


def table(
    every: Sequence[Pair], profile: Profile, named: Titles, *, without: bool = False
) -> pd.DataFrame:
    """Differences in points at `full` with the verdict, beside them those at the page's profile.

    without: also the mean without the task on which the two differ most: one may carry all.
    """
    full, lines = load_profile("full"), {}
    for one in tested(every, profile).itertuples():
        pair = Pair(one.name, one.against, one.tasks)
        at_full = one.profile == full.name
        line = {"points at full": points(one) if at_full else EMPTY}
        line |= p_and_verdict(one, profile)
        if without:
            line["without the<br>largest"] = comparisons.without(rows(full), pair)
        if profile.name != full.name:
            found = compare(rows(profile), [pair], draws=1).iloc[0]
            line[f"points at {profile.name}"] = points(found)
        lines[comparisons.minus(pair, named)] = line
    return pd.DataFrame(lines).T.rename_axis("in points [95%]")


NOTE = (
    "The interval is that of a paired bootstrap over examples, and is not corrected. $p$ is of a "
    "permutation test, corrected for all comparisons of these chapters that are tested at the same "
    f"profile; the verdict is at p < {LEVEL}."
)


def beats_all(name: str, rivals: Sequence[str], profile: Profile) -> Verdict:
    """Better: significantly above each rival; worse: significantly below one of them."""
    found = tested(pairs(tuple((name, rival) for rival in rivals), profile), profile)
    verdicts = set(found.verdict)
    if Verdict.MISSING in verdicts or Verdict.WORSE in verdicts:
        return Verdict.MISSING if Verdict.MISSING in verdicts else Verdict.WORSE
    return Verdict.BETTER if verdicts == {Verdict.BETTER} else Verdict.OPEN
