"""Checks of what pruned models answer of MMLU, 5-shot."""

from collections.abc import Sequence
from itertools import product

from tipmini_lab.book import pruning_mmlu
from tipmini_lab.book.claims import checks
from tipmini_lab.book.claims.checks import Evidence, Finding, Names, NotMeasured, here, setting
from tipmini_lab.book.pruning_mmlu import BASE, interval, is_above_chance
from tipmini_lab.evaluation import mmlu
from tipmini_lab.evaluation.assets import SUBJECTS
from tipmini_lab.experiments.declared import grid, run_name
from tipmini_lab.results.statistics import LEVEL


def _measured(evidence: Evidence, names: Names) -> pruning_mmlu.Cells:
    if not {BASE, *names} <= evidence.few_shot.keys():
        raise NotMeasured("MMLU is not measured yet of all the models that it takes.")
    return evidence.few_shot


def _unpruned(evidence: Evidence) -> str:
    """What there is for pruning to keep."""
    cell = evidence.few_shot[BASE]
    told = "The unpruned model has {:.3f}, 95% interval [{:.3f}, {:.3f}]"
    nothing = f", and chance is {mmlu.CHANCE}: there is nothing that a pruned model could keep"
    return told.format(cell.mean, *interval(cell)) + nothing * (not is_above_chance(cell))


@setting
def shots(evidence: Evidence) -> dict:
    """With how many examples before the question MMLU is asked; models: of how many, so far."""
    cells = _measured(evidence, ())
    if not cells.keys() - {BASE}:
        raise NotMeasured("MMLU is measured of no pruned model yet.")
    counts = {"questions": cells[BASE].count, "subjects": len(SUBJECTS), "models": len(cells)}
    return checks.setting_of("shots", mmlu.SHOTS, "what lm-eval is asked for") | counts


@here
def few_shot_higher(
    evidence: Evidence,
    *,
    of: Names,
    against: Names,
    shares: Sequence[float],
    corrected: bool = True,
) -> Finding:
    """Whether models of some criteria, not fine-tuned, answer more of MMLU than others.

    Sign tests on the same questions, corrected (Holm) for the number of comparisons; first seeds.
    """
    asked = [*product(shares, of, against)]
    pairs = [tuple(run_name(m, share, False, 0) for m in models) for share, *models in asked]
    cells = _measured(evidence, [name for pair in pairs for name in pair])
    found = pruning_mmlu.gaps(cells, pairs, corrected)
    clear = [gap.mean for gap in found.values() if gap.p < LEVEL]
    better = sum(gain > 0 for gain in clear)
    worse = len(clear) - better
    counted = f"significantly higher {better}, lower {worse}, neither {len(found) - len(clear)}"
    titles = grid().titles()
    sizes = "; ".join(
        f"{share:.0%}, {titles[one]} against {titles[two]}: {100 * found[pair].mean:+.1f} points"
        for (share, one, two), pair in zip(asked, pairs, strict=True)
    )
    words = f"Without fine-tuning. {sizes}. {_unpruned(evidence)}."
    compared = tuple((*pair, mmlu.NAME) for pair in pairs)
    return Finding(checks.verdict_of(better, worse, len(found)), counted, words, compared)


@here
def few_shot_kept(evidence: Evidence, *, of: str, share: float) -> dict:
    """Whether a model that is not fine-tuned answers as much of MMLU as the unpruned one.

    That asks for something to keep: value is whether the unpruned model is above chance, and the
    pruned one not significantly below it, by the test of the appendix's table.
    """
    name = run_name(of, share, False, 0)
    gap = pruning_mmlu.beside_unpruned(_measured(evidence, [name]))[name]
    kept = is_above_chance(evidence.few_shot[BASE]) and not (gap.p < LEVEL and gap.mean < 0)
    points = f"{100 * gap.mean:+.1f} ± {100 * gap.reach:.1f} points"
    return {"value": kept, "points": points, "unpruned": _unpruned(evidence)}
