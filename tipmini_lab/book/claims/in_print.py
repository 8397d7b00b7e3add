"""Checks of a claim from printed cells alone, and of the settings that this book shares."""

import math
from collections.abc import Sequence

import torch

import tipmini as tm
from tipmini_lab.book.claims.declared import Verdict, by_accident, whole_count
from tipmini_lab.book.claims.evidence import Evidence, Finding, Tested
from tipmini_lab.book.tables import TITLES, p_text

WORDS = {"mean": "the mean of the tasks", **TITLES}


def names(keys: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c' of the names that tables use."""
    told = [WORDS[key] for key in keys]
    return " and ".join([", ".join(told[:-1]), told[-1]] if told[1:] else told)


# Numbers in the text ------------------------------------------------------------------------------


def gain(
    evidence: Evidence,
    *,
    printed: float,
    tolerance: float,
    of: str,
    against: Sequence[str],
    task: str,
) -> Finding:
    """Whether a printed gain is relative or a difference in points, and against which baseline."""
    new = evidence.printed.value(of, task)
    old = {method: evidence.printed.value(method, task) for method in against}
    points = {method: 100 * (new - value) for method, value in old.items()}
    relative = {method: 100 * (new - value) / value for method, value in old.items()}
    if _near(relative, printed, tolerance):
        verdict = Verdict.HOLDS
    else:
        near = _near(points, printed, tolerance)
        verdict = Verdict.IN_POINTS if near else Verdict.DOES_NOT_HOLD
    told = [
        f"against {WORDS[m]} {points[m]:.2f} points, relative {relative[m]:.1f}%" for m in against
    ]
    return Finding(verdict, "; ".join(told), _closest(points, printed))


def _near(values: dict[str, float], printed: float, tolerance: float) -> list[str]:
    return [m for m, value in values.items() if abs(value - printed) <= tolerance + 1e-9]


def _closest(points: dict[str, float], printed: float) -> str:
    """Which baseline's points print as the number: rounded, or with the digits behind cut off."""
    ways = {
        "rounded to a decimal": lambda x: round(x + 1e-9, 1),
        "cut off after a decimal": lambda x: math.floor(x * 10 + 1e-6) / 10,
    }
    for way, shown in ways.items():
        same = [method for method, value in points.items() if shown(value) == printed]
        if same:
            return f"{printed:g} are the points against {names(same)}, {way}."
    return f"{printed:g} are no baseline's points to the printed digit."


def tasks_of_the_table(evidence: Evidence, *, printed: float) -> Finding:
    count = len(evidence.printed.tasks)
    verdict = Verdict.HOLDS if count == printed else Verdict.DOES_NOT_HOLD
    return Finding(verdict, f"{count} rows of Table 1", "Counted in the table.")


# Comparisons in the text --------------------------------------------------------------------------


def above(
    evidence: Evidence,
    *,
    higher: Sequence[str],
    lower: Sequence[str],
    tasks: Sequence[str] | None = None,
    or_equal: bool = False,
    some: bool = False,
) -> Finding:
    """Whether printed accuracies of `higher` lie above those of `lower`, and how clearly.

    On every task asked about, or with `some` on one of them at least. A difference is clear where
    its unpaired test is, corrected for all the differences that the text speaks of. It holds in
    part where some are clear only.
    """
    asked = tasks or evidence.printed.tasks
    places = [(h, low, task) for h in higher for low in lower for task in asked]
    tests = {place: evidence.printed.tests[place] for place in places}
    shown = [t for t in tests.values() if t.difference > 0 or (or_equal and t.difference == 0)]
    clear = [t for t in shown if t.clear]
    every = len(shown if or_equal else clear) == len(tests)  # what is kept need not be clear
    verdict = _direction(len(shown), len(clear), every or some)
    counted = f"{len(shown)} of {len(tests)} printed differences; clear: {len(clear)}"
    return Finding(verdict, counted, _differences(tests))


def _direction(shown: int, clear: int, enough: bool) -> Verdict:
    if not shown:
        return Verdict.DOES_NOT_HOLD
    if not clear:
        return Verdict.WITHIN_ERROR
    return Verdict.HOLDS if enough else Verdict.IN_PART


def _differences(tests: dict[tuple[str, str, str], Tested]) -> str:
    """The differences one by one where they are few, else those against the sentence."""
    few = tests if len(tests) <= 3 else {k: t for k, t in tests.items() if t.difference <= 0}
    told = [
        f"{WORDS[task]}: {WORDS[h]} − {WORDS[low]} {100 * t.difference:+.2f} points "
        f"(z {t.z:.2f}, p {p_text(t.p)}, corrected {p_text(t.corrected)})"
        for (h, low, task), t in few.items()
    ]
    unclear = sum(not t.clear and t.difference > 0 for t in tests.values())
    if few is not tests and unclear:
        told.append(f"{unclear} with the claimed sign are within the sampling error")
    return "; ".join(told or ["all are clear"]) + "."


def mean_above(evidence: Evidence, *, higher: str, lower: str) -> Finding:
    """Whether a printed column's mean lies above another's by more than its sampling error."""
    gap, error, p = evidence.printed.mean_test(higher, lower)
    clear = Verdict.HOLDS if p < 0.05 else Verdict.WITHIN_ERROR
    verdict = clear if gap > 0 else Verdict.DOES_NOT_HOLD
    shown = f"{WORDS[higher]} − {WORDS[lower]}: {100 * gap:+.2f} ± {100 * error:.2f} points"
    return Finding(
        verdict, shown, f"The difference of the means has z {gap / error:.2f}, p {p_text(p)}."
    )


def largest_gains(evidence: Evidence, *, of: str, against: str, tasks: Sequence[str]) -> Finding:
    """Whether the gains on these tasks are larger than on any other."""
    found = {
        t: 100 * evidence.printed.tests[of, against, t].difference for t in evidence.printed.tasks
    }
    order = sorted(found, key=found.get, reverse=True)
    verdict = Verdict.HOLDS if set(order[: len(tasks)]) == set(tasks) else Verdict.DOES_NOT_HOLD
    told = ", ".join(f"{WORDS[t]} {found[t]:+.2f}" for t in order)
    return Finding(verdict, f"{WORDS[of]} − {WORDS[against]} in points", f"In order: {told}.")


# Table 1 against what is known of the data and of the base ----------------------------------------


def equals_records(evidence: Evidence, *, method: str, digits: int = 4) -> Finding:
    """How many printed accuracies are the base model's public ones to the printed digit."""
    same = [
        task
        for task in evidence.printed.tasks
        if round(evidence.base_model[task]["value"], digits) == evidence.printed.value(method, task)
    ]
    count = f"{len(same)} of {len(evidence.printed.tasks)}"
    verdict = Verdict.IDENTICAL if len(same) == len(evidence.printed.tasks) else Verdict.SETTING
    low, high = evidence.usual_spread
    return Finding(
        verdict,
        f"{count} equal to the printed digit",
        "{numref}`tab-claims-records` has both. Records of one model usually differ by "
        f"{low:g} to {high:g} points between harness versions and machines. The paper prints no "
        "column for the base model.",
    )


def whole_counts(evidence: Evidence) -> Finding:
    """Whether every printed accuracy is a whole number of right rows of the official split."""
    table = evidence.printed
    whole = [task for task in table.tasks if table.splits[task]["whole"]]
    cells = [(task, value) for task in whole for value in table.accuracy[task].values()]
    found = sum(whole_count(value, table.rows(task)) is not None for task, value in cells)
    verdict = Verdict.HOLDS if found == len(cells) else Verdict.DOES_NOT_HOLD
    chances = ", ".join(f"{WORDS[t]} {100 * by_accident(table.rows(t)):.0f}%" for t in whole)
    return Finding(
        verdict,
        f"{found} of {len(cells)} cells are whole counts",
        "CoQA is left out: its exact match counts rows in part. Of all numbers of four digits "
        f"these shares are whole counts by accident: {chances}. So it fits the official splits "
        "without proving them; {numref}`tab-claims-counts` has the counts.",
    )


# The method ---------------------------------------------------------------------------------------


def shift_has_mean_zero(evidence: Evidence, *, tolerance: float) -> Finding:
    """Eqs. 3 and 4 on made-up importances: the mean of the shifts."""
    drawn = torch.rand(100, 32, generator=torch.Generator().manual_seed(0))
    means = [tm.sparsity_shift(tm.normalize_importance(row)).mean().abs() for row in drawn]
    largest = torch.stack(means).max().item()
    verdict = Verdict.HOLDS if largest <= tolerance else Verdict.DOES_NOT_HOLD
    words = "By the equation itself: what the mean is subtracted from has mean 0."
    return Finding(verdict, f"mean shift 0 within {tolerance:g}", words)


def sparsity_is_a_share(evidence: Evidence, *, base_sparsity: float) -> Finding:
    """Eq. 5 as printed, on importances of three layers: whether S_l stays within [0, 1]."""
    shift = tm.sparsity_shift(tm.normalize_importance(torch.tensor([1.0, 3.0, 2.0])))
    found = (base_sparsity + shift).tolist()
    inside = all(0 <= value <= 1 for value in found)
    verdict = Verdict.HOLDS if inside else Verdict.DOES_NOT_HOLD
    told = ", ".join(f"{value:.1f}" for value in found)
    return Finding(
        verdict,
        f"importances 1, 3, 2 give {told}",
        "The shifts always span exactly 1, so that some layer leaves [0, 1] unless the least "
        "important one comes out at exactly 0. The paper does not say what is done then.",
    )


# What no cell can tell ----------------------------------------------------------------------------


def setting(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.SETTING, "-", note)


def no_number(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.NO_NUMBER, "-", note)


CHECKS = (
    *(gain, tasks_of_the_table, above, mean_above, largest_gains, equals_records, whole_counts),
    *(shift_has_mean_zero, sparsity_is_a_share, setting, no_number),
)


# Checks of a claim on a setting -------------------------------------------------------------------
def profile_has(evidence: Evidence, *, setting: str, value: object) -> Finding:
    """Whether a setting of the profile is the paper's."""
    own = getattr(evidence.profile, setting)
    own = len(own) if setting == "tasks" else own
    verdict = Verdict.SAME_SETTING if own == value else Verdict.OTHER_SETTING
    return Finding(verdict, f"{setting.replace('_', ' ')}: {own}", "Read from the profile.")


def rows_are_official(evidence: Evidence) -> Finding:
    """Whether the cells stand on every row of the official splits."""
    official = evidence.printed.splits
    counts = {task: cell.count for (_, task), cell in evidence.cells.items()}
    fewer = [t for t, count in counts.items() if count != official[t]["rows"]]
    verdict = Verdict.OTHER_SETTING if fewer else Verdict.SAME_SETTING
    told = [f"{names([t])} {counts[t]:,} of {official[t]['rows']:,}" for t in fewer]
    words = "The other tasks have all rows." if fewer else "All tasks have all rows."
    return Finding(verdict, f"rows: {', '.join(told) or 'all'}", words)


def rank_is(evidence: Evidence, *, value: int) -> Finding:
    """Whether every committed adapter has that rank."""
    pairs = [p for t in evidence.profile.tasks for p in evidence.adapter(t).factors.values()]
    ranks = sorted({pair.rank for pair in pairs})
    verdict = Verdict.SAME_SETTING if ranks == [value] else Verdict.OTHER_SETTING
    return Finding(verdict, f"rank {', '.join(map(str, ranks))}", "Read from the adapters.")


def has_importances(evidence: Evidence, *, tasks: Sequence[str]) -> Finding:
    """Whether input norms of these tasks are stored, from which the layers' importances follow."""
    if not set(tasks) <= evidence.importances.keys():
        return not_run(evidence, note="No input norms are stored.")
    shown = f"{len(evidence.importances)} tasks"
    return Finding(Verdict.SAME_SETTING, shown, f"{names(tasks)} are among them.")


def one_importance_a_layer(evidence: Evidence) -> Finding:
    """Whether Eqs. 1 and 2 come to one number for every layer of every adapter."""
    lines = list(evidence.importances.values())
    if not lines:
        return not_run(evidence, note="No input norms are stored.")
    alike = all(line.ndim == 1 and len(line) == len(lines[0]) for line in lines)
    verdict = Verdict.SAME_SETTING if alike else Verdict.OTHER_SETTING
    shown = f"{len(lines[0])} importances in each of {len(lines)} adapters"
    return Finding(verdict, shown, "A layer is a block here: one number for all of its factors.")


def eta_is_one(evidence: Evidence) -> Finding:
    """Whether `lora_gradient` is the step of learning rate 1 of LoRAPrune's Eqs. 7 and 8."""
    drawn = torch.Generator().manual_seed(0)
    a, grad_a = torch.randn(2, 3, 5, generator=drawn, dtype=torch.float64)
    b, grad_b = torch.randn(2, 7, 3, generator=drawn, dtype=torch.float64)
    step = b @ a - (b - grad_b) @ (a - grad_a)
    alike = torch.allclose(tm.lora_gradient(a, b, grad_a, grad_b), step)
    verdict = Verdict.SAME_SETTING if alike else Verdict.OTHER_SETTING
    return Finding(verdict, "η = 1", "The function of Eq. 9, on drawn factors, is that one step.")


def other_setting(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.OTHER_SETTING, "-", note)


def not_run(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.NOT_RUN, "-", note)


SETTINGS = (
    *(profile_has, rows_are_official, rank_is, has_importances, one_importance_a_layer),
    *(eta_is_one, other_setting, not_run),
)
