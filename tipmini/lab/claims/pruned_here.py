"""Checks of LoRAPrune's sentences from this book's own pruned models and their bench."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import LEVEL, Evidence, Finding
from tipmini.lab.claims.here import verdict_of
from tipmini.lab.claims.settings import not_run
from tipmini.lab.pruning import tables
from tipmini.lab.pruning.declared import grid
from tipmini.lab.pruning.perplexity import CORPORA
from tipmini.lab.statistics import COVERED, holm_of

Model = Sequence  # [method, share, tuned], as experiments/pruning/grid.yaml has them

# Perplexities -------------------------------------------------------------------------------


def perplexity_below(
    evidence: Evidence,
    *,
    of: Sequence[str],
    against: Sequence[str],
    shares: Sequence[float],
    corpora: Sequence[str] = CORPORA,
) -> Finding:
    """Whether fine-tuned models of some criteria have lower perplexities than those of others.

    Both read the same windows: t tests of the windows' losses, averaged over the seeds, corrected
    (Holm) for the number of comparisons. It holds where all are clear.
    """
    pairs = [((o, s, True), (a, s, True)) for o, a, s in product(of, against, shares)]
    return _all_lower(evidence, pairs, corpora)


def tuning_lowers(evidence: Evidence, *, of: str, shares: Sequence[float]) -> Finding:
    """Whether fine-tuning while pruning lowers the perplexity of what is pruned at once."""
    return _all_lower(evidence, [((of, s, True), (of, s, False)) for s in shares], CORPORA)


def _all_lower(
    evidence: Evidence, pairs: Sequence[tuple[Model, Model]], corpora: Sequence[str]
) -> Finding:
    from scipy.stats import ttest_1samp

    gaps = {(*pair, corpus): _gap(evidence, *pair, corpus) for pair in pairs for corpus in corpora}
    if any(gap is None for gap in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    p = holm_of({place: float(ttest_1samp(gap, 0).pvalue) for place, gap in gaps.items()})
    clear = [gaps[place].mean() for place in gaps if p[place] < LEVEL]
    lower = sum(gap < 0 for gap in clear)
    higher = len(clear) - lower
    return Finding(
        verdict_of(lower, higher, len(gaps), False),
        f"clearly lower {lower}, clearly higher {higher}, neither {len(gaps) - len(clear)}",
        "; ".join(_told(gaps)) + ". Perplexities of a small model on two other corpora.",
    )


def _told(gaps: dict[tuple, np.ndarray]) -> Iterator[str]:
    """A part of a sentence for every pair of criteria, shares and corpora together."""
    for names in dict.fromkeys((one[0], one[2], two[0], two[2]) for one, two, _ in gaps):
        own = [
            100 * math.expm1(gap.mean())
            for (one, two, _), gap in gaps.items()
            if (one[0], one[2], two[0], two[2]) == names
        ]
        one, two = (f"{_title(names[i])}{'' if names[i + 1] else ', not tuned'}" for i in (0, 2))
        yield f"{one} is {min(own):+.1f}% to {max(own):+.1f}% from {two}"


def on_a_par(evidence: Evidence, *, of: Model, against: Sequence[Model], within: float) -> Finding:
    """Whether two models' perplexities differ by no more than `within` percent, surely.

    That is, with the whole 95% interval over the windows; on both corpora.
    """
    gaps = {(other[0], c): _gap(evidence, of, other, c) for other, c in product(against, CORPORA)}
    if any(gap is None for gap in gaps.values()):
        return not_run(evidence, note="Not all of the models that it takes are measured.")
    ends = {place: _percent(gap) for place, gap in gaps.items()}
    inside = sum(-within <= low and high <= within for low, high in ends.values())
    verdict = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    told = [f"{_title(n)}, {c}: [{low:+.1f}, {high:+.1f}]%" for (n, c), (low, high) in ends.items()]
    return Finding(
        Verdict.HOLDS if inside == len(ends) else verdict,
        f"within {within:g}%: {inside} of {len(ends)}",
        f"How far {_title(of[0])}'s perplexity lies from that of " + "; ".join(told) + ".",
    )


def _gap(evidence: Evidence, one: Model, two: Model, corpus: str) -> np.ndarray | None:
    """(windows,) losses of one minus another's; None where one is not measured."""
    runs = grid().runs("mini")
    both = [tables.windows(tables.seeds(evidence.prunings, runs, *m), corpus) for m in (one, two)]
    return None if any(losses is None for losses in both) else both[0] - both[1]


def _percent(gap: np.ndarray) -> tuple[float, float]:
    reach = COVERED * gap.std(ddof=1) / math.sqrt(len(gap))
    return tuple(100 * math.expm1(gap.mean() + sign * reach) for sign in (-1, 1))


def _title(method: str) -> str:
    return grid().titles()[method]


# Time, memory and masks ---------------------------------------------------------------------


def time_saved(
    evidence: Evidence, *, share: float, printed: float = 0.0, tolerance: float = 0.0
) -> Finding:
    """Whether a model without this share of its weights takes so many per cent less time."""
    ratios = _ratios(evidence, (share, True), (0.0, True))
    if not ratios:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    saved = {batch: 100 * (1 - ratio) for batch, ratio in ratios.items()}
    enough = sum(value > max(printed - tolerance, 0) for value in saved.values())
    return Finding(
        _share_of(enough, len(saved)),
        ", ".join(f"batch {batch}: {value:.1f}% less" for batch, value in saved.items()),
        "A forward pass on a CPU; the model's embeddings and head keep their size.",
    )


def unmerged_costs(
    evidence: Evidence, *, share: float, printed: float = 0.0, tolerance: float = 0.0
) -> Finding:
    """Whether a pass with the adapter beside takes so much longer than the unpruned one, merged."""
    ratios = _ratios(evidence, (share, False), (0.0, True))
    if not ratios:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    more = {batch: 100 * (ratio - 1) for batch, ratio in ratios.items()}
    enough = sum(value > max(printed - tolerance, 0) for value in more.values())
    return Finding(
        _share_of(enough, len(more)),
        ", ".join(f"batch {batch}: {value:+.1f}%" for batch, value in more.items()),
        "An adapter of rank 8 on all seven matrices, computed by PEFT in the model's dtype.",
    )


def _ratios(evidence: Evidence, one: tuple, two: tuple) -> dict[int, float]:
    """{batch: median over the rounds of one way's time over the other's}."""
    entries = evidence.benched["inference"] if evidence.benched else []
    timed = {(e["share"], e["merged"], e["batch"]): e["seconds"] for e in entries}
    return {
        batch: statistics.median(np.divide(timed[*one, batch], timed[*two, batch]).tolist())
        for share, merged, batch in timed
        if (share, merged) == one
    }


def memory_saved(
    evidence: Evidence,
    *,
    side: str,
    against: str = "vanilla",
    printed: float = 0.0,
    tolerance: float = 0.0,
) -> Finding:
    """Whether a step of a criterion takes so many per cent less memory than another's."""
    if not evidence.benched or not evidence.benched["cost"]["vanilla"]["step_bytes"]:
        return not_run(evidence, note="No memory of pruning is stored yet.")
    own, other = (_bytes(evidence.benched["cost"][name]) for name in (side, against))
    saved = 100 * (1 - own / other)
    return Finding(
        _share_of(int(saved > max(printed - tolerance, 0)), 1),
        f"{own / 1e6:.0f} of {other / 1e6:.0f} MB: {saved:.1f}% less",
        "Model and the peak of a step. In a small model activations are a larger part of it.",
    )


def throughput_gained(evidence: Evidence, *, printed: float, tolerance: float = 0.0) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    if not evidence.benched:
        return not_run(evidence, note="No throughput of pruning is stored yet.")
    own, other = (evidence.benched["cost"][n]["rows_a_second"] for n in ("lora-guided", "vanilla"))
    more = 100 * (own / other - 1)
    verdict = _share_of(int(more > printed - tolerance), 1)
    return Finding(verdict, f"{more:+.1f}%", f"{own:.2f} and {other:.2f} rows a second on a CPU.")


def masks_agree(evidence: Evidence, *, share: float) -> Finding:
    """Whether both criteria agree on more groups than halfway from chance to all."""
    entries = evidence.benched["agreement"] if evidence.benched else []
    own = [e for e in entries if e["share"] == share and e["reduction"] == "paper" and e["removed"]]
    if not own:
        return not_run(evidence, note="No similarity of masks is stored yet.")
    enough = sum(2 * e["same"] > 1 + e["chance_same"] for e in own)
    same, chance = (statistics.mean(e[name] for e in own) for name in ("same", "chance_same"))
    return Finding(
        _share_of(enough, len(own)),
        f"{same:.1%} of the groups alike, {chance:.1%} by chance",
        f"At {share:.0%}; {len(own)} comparisons, over kinds of groups and adapters.",
    )


def masks_part(evidence: Evidence, *, low: float, high: float) -> Finding:
    """Whether the criteria agree on fewer groups at a higher share."""
    entries = evidence.benched["agreement"] if evidence.benched else []
    found = [
        [e["same"] for e in entries if e["share"] == share and e["kind"] == "channels"]
        for share in (low, high)
    ]
    if not all(found):
        return not_run(evidence, note="No similarity of masks is stored yet.")
    fewer = min(found[0]) > max(found[1])
    pairs = zip(found, (low, high), strict=True)
    return Finding(
        _share_of(int(fewer), 1),
        " and ".join(f"{statistics.mean(one):.1%} at {share:.0%}" for one, share in pairs),
        "Channels of the MLPs; random masks agree on fewer at a higher share, too.",
    )


def _bytes(cost: dict) -> float:
    return cost["model_bytes"] + cost["step_bytes"]


def _share_of(enough: int, asked: int) -> Verdict:
    if enough == asked:
        return Verdict.HOLDS
    return Verdict.IN_PART if enough else Verdict.NOT_SUPPORTED


CHECKS = (
    *(perplexity_below, tuning_lowers, on_a_par),
    *(time_saved, unmerged_costs, memory_saved, throughput_gained, masks_agree, masks_part),
)
