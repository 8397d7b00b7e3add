"""Checks of a claim on a setting: whether the measurements of this book are set as the paper's."""

from collections.abc import Sequence

import torch

import tipmini as tm
from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding
from tipmini.lab.claims.in_print import names


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


CHECKS = (
    *(profile_has, rows_are_official, rank_is, has_importances, one_importance_a_layer),
    *(eta_is_one, other_setting, not_run),
)
