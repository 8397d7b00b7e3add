"""TIP's printed Table 1 recomputed, and the checks of its claims alone."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, product

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.stats import norm, spearmanr
from torch import Tensor

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.book import serving
from tipmini_lab.book.claims import Verdict, checks
from tipmini_lab.book.claims.checks import (
    WORDS,
    Evidence,
    Finding,
    Names,
    here,
    in_print,
    setting,
)
from tipmini_lab.book.claims.choices import choice
from tipmini_lab.book.tables import TITLES, p_text
from tipmini_lab.results import checked
from tipmini_lab.results.statistics import LEVEL, holm

COLUMNS = ("single", "linear", "dare", "tip")
# Whatever the text sets against each other: the family that printed tests belong to.
COMPARED = (
    *(("tip", "single"), ("tip", "linear"), ("tip", "dare")),
    *(("linear", "single"), ("dare", "single")),
)


# Table 1, of which nothing is known but accuracies and rows ---------------------------------------
def standard_error(share, rows):
    """Binomial standard error of a share of right rows; numbers, or series of the same length."""
    return (share * (1 - share) / rows) ** 0.5


def z_score(first, second, rows):
    """(first - second) over its pooled standard error, both shares being of as many rows.

    The test for unpaired proportions: rows that both get right or both wrong are not known. Where
    two methods agree on many rows, a paired test would find smaller differences.
    """
    with np.errstate(invalid="ignore"):  # two shares of 0 or of 1 differ by no z
        spread = 2**0.5 * standard_error((first + second) / 2, rows)
        return np.nan_to_num(np.divide(first - second, spread))


def whole_count(share: float, rows: int, digits: int = 4) -> int | None:
    """The number of right rows that prints as `share` to so many digits, or None."""
    nearest = round(share * rows)
    return nearest if round(nearest / rows, digits) == round(share, digits) else None


def by_accident(rows: int, digits: int = 4) -> float:
    """The share of all numbers of so many digits in [0, 1] that are a whole count over `rows`."""
    reached = {round(count / rows, digits) for count in range(rows + 1)}
    return len(reached) / (10**digits + 1)


def table1(evidence: Evidence) -> pd.DataFrame:
    """(tasks, methods) accuracies; of the official split its `rows`, and if all are `whole`."""
    splits = pd.DataFrame(evidence.records["splits"]).T.astype({"rows": int, "whole": bool})
    return pd.DataFrame(evidence.printed["table1"]["tasks"]).T.join(splits[["rows", "whole"]])


@cache
def tests(evidence: Evidence) -> pd.DataFrame:
    """Tests of first - second by (first, second, task): of every compared pair, both ways.

    difference: a share, 0.01 is a point. p: unpaired, two-sided. corrected: by Holm over all of
    `COMPARED` on all tasks.
    """
    table, found = table1(evidence), {}
    for one, two in COMPARED:
        z = z_score(table[one], table[two], table["rows"])
        gap = (table[one] - table[two]).round(4)
        found[one, two] = pd.DataFrame({"difference": gap, "z": z}, table.index)
    found = pd.concat(found)
    found["p"] = 2 * norm.sf(found["z"].abs())
    found["corrected"] = holm(found["p"])
    found["clear"] = found["corrected"] < LEVEL
    turned = found.assign(difference=-found["difference"], z=-found["z"]).swaplevel(0, 1)
    return pd.concat([found, turned]).sort_index()


# What the text says of Table 1 --------------------------------------------------------------------
@in_print
def gain(evidence: Evidence, *, printed: float, of: str, against: Names, task: str) -> dict:
    """A gain against each baseline: relative, in per cent; it may be printed in points instead."""
    table = table1(evidence)[[of, *against]]
    values = table.mean() if task == "mean" else table.loc[task]
    points = {m: 100 * (values[of] - values[m]) for m in against}
    relative = {m: gap / values[m] for m, gap in points.items()}
    told = [f"{WORDS[m]} {points[m]:.2f} points, relative {relative[m]:.1f}%" for m in against]
    return {
        "value": [*relative.values()],
        "points": [*points.values()],
        "instead": ([*points.values()], Verdict.IN_POINTS),
        "shown": "; ".join(f"against {words}" for words in told),
        "words": _closest(points, printed),
    }


def _closest(points: Mapping[str, float], printed: float) -> str:
    """Which baseline's points print as the number: rounded, or with the digits behind cut off."""
    ways = {
        "rounded to a decimal": lambda x: round(x + 1e-9, 1),
        "cut off after a decimal": lambda x: math.floor(x * 10 + 1e-6) / 10,
    }
    for way, shown in ways.items():
        if same := [method for method, value in points.items() if shown(value) == printed]:
            return f"{printed:g} are the points against {checks.names(same)}, {way}."
    return f"{printed:g} are no baseline's points to the printed digit."


@in_print
def above(
    evidence: Evidence,
    *,
    higher: Names,
    lower: Names,
    tasks: Names = (),
    or_equal: bool = False,
    some: bool = False,
    corrected: bool = True,
) -> Finding:
    """Whether printed accuracies of `higher` lie above those of `lower`, and how clearly.

    On every task asked about, or with `some` on one of them at least. A difference is clear where
    its unpaired test is, corrected for all the differences that the text speaks of. It holds in
    part where some are clear only.
    """
    places = tuple(product(higher, lower, tasks or table1(evidence).index))
    asked = tests(evidence).loc[list(places)]
    clear = asked.clear if corrected else asked.p < LEVEL
    shown = (asked.difference > 0) | (or_equal & (asked.difference == 0))
    good, bad = (shown & clear).sum(), (~shown & clear).sum()
    every = shown.all() if or_equal else good == len(asked)  # what is kept need not be clear
    few = asked if len(asked) <= 3 else asked[asked.difference <= 0]  # those against the sentence
    told = [
        f"{WORDS[task]}: {WORDS[h]} − {WORDS[low]} {100 * t.difference:+.2f} points "
        f"(z {t.z:.2f}, p {p_text(t.p)}, corrected {p_text(t.corrected)})"
        for (h, low, task), t in few.iterrows()
    ]
    unclear = (~clear & (asked.difference > 0)).sum()
    if few is not asked and unclear:
        told.append(f"{unclear} with the claimed sign are within the sampling error")
    counted = f"{shown.sum()} of {len(asked)} printed differences; significant: {good}"
    verdict = _direction(good, bad, every or some)
    return Finding(
        verdict, counted, "; ".join(told or ["all are significant"]) + ".", () if some else places
    )


def _direction(good: int, bad: int, enough: bool = True) -> Verdict:
    """Of so many differences that are clear for a sentence, and against it.

    Neither confirmed nor refuted is what no clear difference stands for.
    """
    if good or bad:
        some = Verdict.HOLDS if enough else Verdict.IN_PART
        return some if good else Verdict.DOES_NOT_HOLD
    return Verdict.WITHIN_ERROR


@in_print
def mean_above(evidence: Evidence, *, higher: str, lower: str, tasks: Names = ()) -> Finding:
    """Whether a printed column's mean lies above another's by more than its sampling error.

    Tasks are independent.
    """
    table = table1(evidence)
    table = table.loc[list(tasks)] if tasks else table
    variances = [standard_error(table[m], table["rows"]) ** 2 for m in (higher, lower)]
    error = sum(variances).sum() ** 0.5 / len(table)
    gap = table[higher].mean() - table[lower].mean()
    p = 2 * norm.sf(abs(gap / error))
    shown = f"{WORDS[higher]} − {WORDS[lower]}: {100 * gap:+.2f} ± {100 * error:.2f} points"
    words = f"The difference of the means has z {gap / error:.2f}, p {p_text(p)}."
    clear = p < LEVEL
    verdict = _direction(clear and gap > 0, clear and gap < 0)
    return Finding(verdict, shown, words, ((higher, lower, "mean"),))


choice("baseline")(lambda own, known: {f"against {WORDS[m]}": m for m in COLUMNS[:3] if m != own})


@in_print
def largest_gains(evidence: Evidence, *, of: str, baseline: str, tasks: Names) -> Finding:
    """Whether the least gain on these tasks is larger than the largest on any other, and clearly.

    A gain is of two columns, so that the error of the difference of two gains is one of four cells.
    """
    table = table1(evidence)
    gains = table[of] - table[baseline]
    order = gains.sort_values(ascending=False, kind="stable")
    ends = [gains[tasks].idxmin(), gains.drop(tasks).idxmax()]
    errors = [standard_error(table[m], table["rows"])[ends] for m in (of, baseline)]
    z = np.subtract(*gains[ends]) / (sum(error**2 for error in errors).sum() ** 0.5)
    p = 2 * norm.sf(abs(z))
    told = ", ".join(f"{WORDS[task]} {100 * gain:+.2f}" for task, gain in order.items())
    words = f"In order: {told}. {WORDS[ends[0]]} beside {WORDS[ends[1]]}: z {z:.2f}, p {p_text(p)}."
    verdict = _direction(p < LEVEL and z > 0, p < LEVEL and z < 0)
    return Finding(verdict, f"{WORDS[of]} − {WORDS[baseline]} in points", words)


@in_print
def numbers_of_the_table(evidence: Evidence, *, digits: int = 4) -> dict:
    """Table 1 against what is known of the data and of the base model, of so many `tasks`.

    identical: whether all of Single, else how many (same), are a public accuracy of the base model
    to the printed digit; other: how many of the public ones are another number. every: whether all
    cells are whole numbers of right rows, else how many.
    """
    table = table1(evidence)
    public = public_records(evidence)
    equal = public.value.round(digits) == table["single"].loc[public.task].array
    same = public.task[equal].nunique()
    own = table[table.whole]
    cells = [(row[method], row.rows) for _, row in own.iterrows() for method in COLUMNS]
    whole = sum(whole_count(*cell, digits) is not None for cell in cells)
    chances = [f"{WORDS[t]} {100 * by_accident(rows):.0f}%" for t, rows in own["rows"].items()]
    found = {"tasks": len(table), "same": same, "identical": same == len(table)}
    found |= {"sources": public.source.nunique(), "public": len(public), "other": sum(~equal)}
    found |= {"whole": whole, "cells": len(cells), "every": whole == len(cells)}
    return found | {"chances": ", ".join(chances)}


def public_records(evidence: Evidence) -> pd.DataFrame:
    """A line a public accuracy of the base model: source, task, metric, value."""
    lines = [
        (source, task, metric, value)
        for source, row in evidence.records["base_model"].items()
        for task, own in row.items()
        for metric, value in own.items()
    ]
    return pd.DataFrame(lines, columns=["source", "task", "metric", "value"])


# Layers -------------------------------------------------------------------------------------------
@cache
def stored_adapters(evidence: Evidence) -> dict[str, tuple[Tensor, set[int]]]:
    """(L,) importance of every layer, TIP Eq. 2, and the ranks, of adapters with stored norms."""
    found = {}
    for task in evidence.profile.tasks:
        file = evidence.profile.store / "norms" / f"{task}.safetensors"
        if checked.is_whole(file):
            own = tm.load_adapter(paths.REPOSITORY / evidence.profile.adapters.format(task=task))
            ranks = {pair.rank for pair in own.factors.values()}
            found[task] = tm.tip_importance(own, load_file(file)), ranks
    return found


def _importances(evidence: Evidence, tasks: Names = ()) -> dict[str, Tensor]:
    found = {task: line for task, (line, _) in stored_adapters(evidence).items()}
    if not found or not set(tasks) <= found.keys():
        raise checks.NotMeasured("No input norms are stored.")
    return found


@setting
def adapters(evidence: Evidence, *, of: Names = ()) -> dict:
    """Whether Eqs. 1 and 2 come to one number for every layer of every adapter, of these too."""
    lines = _importances(evidence, of).values()
    layers = len(next(iter(lines)))
    ranks = sorted(set.union(*(ranks for _, ranks in stored_adapters(evidence).values())))
    alike = all(line.shape == (layers,) for line in lines)
    found = {"value": alike, "layers": layers, "adapters": len(lines)}
    return found | {"rank": ", ".join(map(str, ranks))}


@here
def rank_correlation(evidence: Evidence, *, of: Names, unlike: float) -> dict:
    """Whether Spearman's rho of two adapters' importances is below 1 - `unlike`; of how many.

    pearson: the mean of Pearson's correlations of all pairs, which chapters print.
    """
    found = _importances(evidence, of)
    pairs = [*combinations(found, 2), of]
    *every, rho = (float(spearmanr(*(found[t] for t in pair)).statistic) for pair in pairs)
    first, second = (_shift(found[task]) for task in of)
    alike = 1 - unlike
    return {
        **{"value": rho < alike, "rho": rho, "alike": alike},
        **{"below": sum(other < alike for other in every), "pairs": len(every)},
        **{"layers": len(first), "tops": [int(found[task].argmax()) for task in of]},
        "apart": (first - second).abs().max().item(),
        "pearson": np.mean([np.corrcoef(found[a], found[b])[0, 1] for a, b in pairs[:-1]]),
    }


def _shift(importance: Tensor) -> Tensor:
    return tm.sparsity_shift(tm.normalize_importance(importance))


@in_print
@here
def shifts(evidence: Evidence, *, base: float, of: Sequence = ()) -> dict:
    """Eqs. 3 to 5: the largest mean of the shifts, and the layers whose sparsity is no share.

    base: the overall sparsity. of: importances of some layers; else those of every adapter.
    """
    lines = [torch.tensor(of)] if of else [*_importances(evidence).values()]
    found = [base + _shift(line) for line in lines]
    outside = [int(((line < 0) | (line > 1)).sum()) for line in found]
    clipped = [line.clamp(0, 1).mean().item() for line in found]
    return {
        "value": max(_shift(line).mean().abs().item() for line in lines),
        **{"adapters": len(lines), "layers": sum(map(len, lines)), "outside": sum(outside)},
        **{"leaving": sum(map(bool, outside)), "least": min(clipped), "most": max(clipped)},
        "first": ", ".join(f"{value:.1f}" for value in found[0].tolist()),
    }


# Serving ------------------------------------------------------------------------------------------
@choice("rows")
def _batches(own: int, evidence: Evidence) -> dict:
    """As many rows as there are adapters at least, or all are not in a batch."""
    found = serving.read()
    most = found.frame["adapters"].max()
    return {f"a batch of {n}": n for n in serving.batches(found) if n != own and n >= most}


@choice("step")
def _steps(own: str, evidence: Evidence) -> dict:
    return {f"time of the {words}": n for n, words in serving.STEPS.items() if n != own}


@here
def serving_time(evidence: Evidence, *, step: str, rows: int) -> dict:
    """A batch's times over those of the base model in the same rounds, by way of serving.

    slower: whether in every round it takes longer with unmerged adapters, and longer with more.
    cheaper: whether it takes less with one merged adapter than with the most unmerged ones.
    """
    found = serving.read()
    ratios = serving.relative(found, step, rows)
    mixed = [ratio for way, ratio in ratios.items() if way.startswith("mixed")]
    most, merged = ratios[serving.most(found)], ratios["one adapter"]
    listed = (serving.most(found), "one adapter", "weights")
    return {
        "slower": all(least > 1 for _, least, _ in mixed) and mixed[-1][1] > mixed[0][2],
        "cheaper": merged[2] < most[1],
        **{"few": mixed[0][0], "many": mixed[-1][0], "adapters": len(mixed)},
        **{"most": most, "merged": merged, "rounds": found.rounds},
        "told": ", ".join(f"{serving.title(way)} {ratios[way][0]:.2f}" for way in listed),
    }


# Tables above the claims --------------------------------------------------------------------------
def page_tables(evidence: Evidence) -> dict[str, pd.DataFrame | str]:
    """By the names that `recomputed` of tip.yaml has."""
    return {
        "means": means(evidence),
        "records": records(evidence),
        "counts": counts(evidence),
        "tip_differences": differences(evidence, COMPARED[:3]),
        "merge_differences": differences(evidence, COMPARED[3:]),
        "compared": str(len(tests(evidence)) // 2),
        "searched": str(len(evidence.records["base_model"])),
    }


def means(evidence: Evidence) -> pd.DataFrame:
    """The columns' means, and what TIP's is above them in points and relative."""
    mean = table1(evidence)[[*COLUMNS]].mean()
    points = 100 * (mean["tip"] - mean)
    told = {
        "mean": mean.map("{:.4f}".format),
        "TIP − it, points": points.map("{:+.2f}".format),
        "relative": (points / mean).map("{:+.1f}%".format),
    }
    frame = pd.DataFrame(told).rename(index=TITLES).rename_axis("column")
    frame.loc[TITLES["tip"], "TIP − it, points":] = "-"
    return frame


def records(evidence: Evidence) -> pd.DataFrame:
    """The column Single, and below it every public accuracy of the base model that was read.

    Bold: it is the printed number.
    """
    table = table1(evidence)
    found = public_records(evidence)
    same = found.value.round(4) == table["single"].loc[found.task].array
    value = found.value.map("{:.4f}".format)
    found["shown"] = value.where(~same, "**" + value + "**") + " " + found.metric
    wide = found.groupby(["source", "task"], sort=False)["shown"].agg("<br>".join).unstack("task")
    wide = wide.reindex(index=found.source.unique(), columns=table.index)
    own = table["single"].map("{:.4f}".format).rename("Single, printed")
    frame = pd.concat([own.to_frame().T, wide]).fillna("-")
    return frame.rename(columns=TITLES).rename_axis("")


def counts(evidence: Evidence) -> pd.DataFrame:
    """The right rows behind every printed accuracy, and its binomial standard error in points."""

    def told(share: float, rows: int, whole: bool) -> str:
        count = whole_count(share, rows) if whole else None
        shown = f"{count:,}" if count is not None else "not whole"
        return f"{shown}<br>±\N{NO-BREAK SPACE}{100 * standard_error(share, rows):.2f}"

    rows = {
        f"{TITLES[task]}<br>{row.rows:,} examples": {
            TITLES[m]: told(row[m], row.rows, row.whole) for m in COLUMNS
        }
        for task, row in table1(evidence).iterrows()
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def differences(evidence: Evidence, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences that the text speaks of: points, z, bold where clear."""

    def told(test: pd.Series) -> str:
        mark = "**" if test.clear else ""
        return f"{mark}{100 * test.difference:+.2f}{mark}<br>z {test.z:.1f}"

    shown = tests(evidence).apply(told, axis=1)
    columns = {f"{TITLES[a]} − {TITLES[b]}": shown.loc[a, b] for a, b in pairs}
    return pd.DataFrame(columns).rename(index=TITLES).rename_axis("points")
