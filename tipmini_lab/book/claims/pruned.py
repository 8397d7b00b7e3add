"""Checks of LoRAPrune's sentences: printed numbers, shapes, settings and the bench."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from tipmini.papers.loraprune import lora_gradient, threshold_mask
from tipmini_lab.book import pruning_costs, pruning_tables
from tipmini_lab.book.claims.declared import Verdict
from tipmini_lab.book.claims.evidence import Evidence, Finding
from tipmini_lab.book.claims.in_print import not_run
from tipmini_lab.book.pruning_costs import CRITERIA, INFERENCE, MASKS, RECOMPUTED, all_bytes, part
from tipmini_lab.book.pruning_tables import Gap, Model
from tipmini_lab.experiments.declared import Planned, grid

NAMES = {
    **{"wikitext2": "WikiText2", "ptb": "PTB", "gigabytes": "GPU memory, GB"},
    **{"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune", "loraprune_8bit": "LoRAPrune (8-bit)"},
    **{"vanilla": "vanilla", "lora_guided": "LoRA-guided"},
    "lora_guided_8bit": "LoRA-guided (8-bit)",
}
DECIMALS = {"perplexity": 2, "memory": 1}
A100 = 80  # gigabytes of the GPU that the introduction names


# Printed cells ------------------------------------------------------------------------------------


def shown(evidence: Evidence, table: str, row: str, column: str) -> str:
    """A cell with the decimals that the paper prints."""
    return f"{_value(evidence, table, row, column):.{DECIMALS[table]}f}"


def _value(evidence: Evidence, table: str, row: str, column: str) -> float:
    return evidence.pruned[table][row][column]["value"]


def _read_in(evidence: Evidence, table: str, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Where the cells were read, each source once."""
    keys = {evidence.pruned[table][r][c]["source"]: None for r in rows for c in columns}
    return "Read in " + " and ".join(evidence.pruned["sources"][key] for key in keys) + "."


def perplexity_gap(
    evidence: Evidence, *, printed: float, tolerance: float, of: str, against: str, corpus: str
) -> Finding:
    """Whether a printed reduction is the difference of the two printed perplexities."""
    old, new = (_value(evidence, "perplexity", row, corpus) for row in (against, of))
    verdict = Verdict.HOLDS if _near(old - new, printed, tolerance) else Verdict.DOES_NOT_HOLD
    earlier = evidence.records["earlier_loraprune"]
    where = _read_in(evidence, "perplexity", (against, of), (corpus,))
    return Finding(
        verdict,
        f"{old:.2f} − {new:.2f} = {old - new:.2f}, relative {100 * (old - new) / old:.1f}%",
        f"{where} An earlier version of the paper gave {earlier['reduction'][corpus]} "
        f"({earlier['source']}).",
    )


def memory_share(
    evidence: Evidence, *, printed: float, tolerance: float, of: str, against: str, saved: bool
) -> Finding:
    """Whether a printed percentage is the memory saved, or with `saved` False the memory used."""
    old, new = (_value(evidence, "memory", row, "gigabytes") for row in (against, of))
    shares = {True: 100 * (old - new) / old, False: 100 * new / old}
    if _near(shares[saved], printed, tolerance):
        verdict = Verdict.HOLDS
    else:
        other = not saved and _near(shares[True], printed, tolerance)
        verdict = Verdict.SAVED_NOT_USED if other else Verdict.DOES_NOT_HOLD
    return Finding(
        verdict,
        f"{new:.1f} of {old:.1f} GB: {shares[False]:.1f}% used, {shares[True]:.1f}% saved",
        _read_in(evidence, "memory", (against, of), ("gigabytes",)),
    )


def _near(value: float, printed: float, tolerance: float) -> bool:
    return abs(value - printed) <= tolerance + 1e-9


def below(
    evidence: Evidence, *, table: str, of: str, against: Sequence[str], complete: bool = False
) -> Finding:
    """Whether cells of a row are below those of others, in every column.

    complete: these are all the cells that the sentence speaks of. Else it can hold in them alone.
    """
    columns = tuple(evidence.pruned[table][of])
    places = [(row, column) for row in against for column in columns]
    lower = sum(
        _value(evidence, table, of, c) < _value(evidence, table, row, c) for row, c in places
    )
    agreed = Verdict.HOLDS if complete else Verdict.AT_HAND
    some = Verdict.IN_PART if lower else Verdict.DOES_NOT_HOLD
    return Finding(
        agreed if lower == len(places) else some,
        "; ".join(_pairs(evidence, table, of, places)),
        _read_in(evidence, table, (of, *against), columns),
    )


def _pairs(
    evidence: Evidence, table: str, of: str, places: Sequence[tuple[str, str]]
) -> Iterator[str]:
    for row, column in places:
        new, old = (shown(evidence, table, r, column) for r in (of, row))
        yield f"{NAMES[column]}: {NAMES[of]} {new}, {NAMES[row]} {old}"


# Numbers of the text that can be set beside each other --------------------------------------------


def unmerged_slower(evidence: Evidence, *, saved: float, added: float) -> Finding:
    """Whether a pruned model with unmerged LoRA is slower than the whole one, merged.

    saved: of inference time by pruning; added: to it by LoRA that is not merged.
    """
    time = (1 - saved / 100) * (1 + added / 100)
    verdict = Verdict.AT_HAND if time > 1 else Verdict.DOES_NOT_HOLD
    return Finding(
        verdict,
        f"(1 − {saved / 100:.3f}) × (1 + {added / 100:.2f}) = {time:.2f} times the time",
        f"By the text's own {saved:g}% less time for pruning and {added:g}% more for unmerged "
        "LoRA, if both hold at this compression. Table 3 is an image in the text at hand.",
    )


def as_speed(evidence: Evidence, *, printed: float, of: str, note: str) -> Finding:
    """A percentage of which the cells are not at hand, put as a speed or a time."""
    share = printed / 100
    told = {
        "time saved": f"{1 / (1 - share):.2f} times as fast",
        "time added": f"{1 + share:.2f} times the time",
        "throughput added": f"{1 / (1 + share):.2f} of the time for as much",
    }
    return Finding(Verdict.NOT_AT_HAND, told[of], note)


# Counts from shapes -------------------------------------------------------------------------------


def linear_weights(shape: dict) -> int:
    """Weights of the linear modules of a LLaMA: q, k, v, o; gate, up, down."""
    return shape["layers"] * (4 * shape["width"] ** 2 + 3 * shape["width"] * shape["inner"])


def all_weights(shape: dict) -> int:
    """The linear modules, the embedding and the output; norms are left out."""
    return linear_weights(shape) + 2 * shape["vocabulary"] * shape["width"]


def weights_of(evidence: Evidence, *, printed: float, tolerance: float, model: str) -> Finding:
    """Whether a model has so many weights, in billions."""
    shape = evidence.records["shapes"][model]
    billions = all_weights(shape) / 1e9
    verdict = Verdict.HOLDS if _near(billions, printed, tolerance) else Verdict.DOES_NOT_HOLD
    words = f"Counted from its shapes ({shape['source']})."
    return Finding(verdict, f"{billions:.1f} billion weights", words)


def weights_fit(evidence: Evidence, *, model: str) -> Finding:
    """Whether a model's weights alone fit one A100; what pruning needs besides is not known."""
    shape = evidence.records["shapes"][model]
    eight, sixteen = (all_weights(shape) * size / 1e9 for size in (1, 2))
    return Finding(
        Verdict.NOT_AT_HAND if eight < A100 else Verdict.DOES_NOT_HOLD,
        f"weights: {eight:.0f} GB in 8 bits, {sixteen:.0f} GB in 16",
        f"One A100 has {A100} GB: the weights fit in 8 bits, which the experiments used. The "
        f"memory of the run is not in the text at hand. Counted from shapes ({shape['source']}).",
    )


def intermediates(evidence: Evidence, *, printed: float, model: str) -> Finding:
    """Whether BA (16 bits) and a mask (8 bits, as booleans have) fill so many A100s."""
    shape = evidence.records["shapes"][model]
    size = linear_weights(shape) * 3 / 1e9
    needed = -(-size // A100)
    return Finding(
        Verdict.HOLDS if printed == needed else Verdict.DOES_NOT_HOLD,
        f"{size:.0f} GB, {needed:.0f} GPUs",
        f"BA in 16 bits and a mask in 8 for every linear weight ({shape['source']}), over {A100} "
        "GB. The text does not say how wide the entries of the mask are.",
    )


# Elsewhere ----------------------------------------------------------------------------------------


def as_cited(evidence: Evidence, *, printed: float, work: str) -> Finding:
    """Whether a number that is given of another work is that work's own."""
    record = evidence.records["cited"][work]
    verdict = Verdict.HOLDS if record["value"] == printed else Verdict.DOES_NOT_HOLD
    return Finding(verdict, f"{record['value']}{record['unit']}", f"By {record['source']}.")


def not_at_hand(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.NOT_AT_HAND, "-", note)


PRUNED = (
    *(perplexity_gap, memory_share, below, unmerged_slower, as_speed),
    *(weights_of, weights_fit, intermediates, as_cited, not_at_hand),
)


# Pruned models in the words of the claims' page ---------------------------------------------------
PROFILE = "mini"


@cache
def runs() -> Mapping[str, Planned]:
    return grid().runs(PROFILE)


def gap(evidence: Evidence, one: Model, two: Model, measure: str) -> Gap | None:
    """Of what is stored: see `gaps.gap`."""
    return pruning_tables.gap(evidence.prunings, runs(), one, two, measure)


def name(model: Model) -> str:
    """A model as a sentence calls it: "LoRAPrune, base in 8 bits", "the unpruned model"."""
    method, share, tuned = model
    whole = "the unpruned model, fine-tuned" if tuned else "the unpruned model"
    return grid().titles()[method] if share else whole


def setting(models: Iterable[Model]) -> str:
    """The share, and whether it is tuned, of models that a sentence sets against each other."""
    first, *others = models
    shares = {model[1] for model in (first, *others)} - {0.0}
    told = [f"{share:.0%}" for share in sorted(shares)]
    if len({model[2] for model in (first, *others)}) == 1:
        told += ["with fine-tuning" if first[2] else "without fine-tuning"]
    return ", ".join(told)


def seeds_told(found: Iterable[Gap]) -> str:
    """Of either side of every gap."""
    own, others = map(_counted, zip(*(gap.counts for gap in found), strict=True))
    return own if own == others else f"{own} against {others}"


def _counted(counts: Iterable[int]) -> str:
    low, high = (f(counts := list(counts)) for f in (min, max))
    if high == 1:
        return "one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


# Checks of LoRAPrune's settings -------------------------------------------------------------------
NOTHING = "No pruned model is stored yet."


def pruning_has(evidence: Evidence, *, setting: str, value: object) -> Finding:
    """Whether a setting of the runs that prune while they are fine-tuned is the paper's."""
    if not evidence.prunings:
        return not_run(evidence, note=NOTHING)
    own = getattr(grid().size(PROFILE).recipe(tuned=True), setting)
    value = tuple(value) if isinstance(own, tuple) else value
    return _compared(setting, own, value, "Read from the declared prunings.")


def bench_has(evidence: Evidence, *, part: str, setting: str, value: int) -> Finding:
    """Whether a part of the bench, as it is stored, has the paper's number of something."""
    stored = evidence.benched.get(part, {})
    found = {own[setting] for own in [stored, *_passes(stored)] if setting in own}
    if len(found) != 1:
        return not_run(evidence, note="This part of the bench has not one number of it.")
    return _compared(setting, found.pop(), value, "Read from the bench.")


def _passes(stored: Mapping) -> list[dict]:
    """What was timed of pruned models, with the number of times."""
    return [entry | {"rounds": len(entry["seconds"])} for entry in stored.get("inference", [])]


def _compared(setting: str, own: object, value: object, words: str) -> Finding:
    verdict = Verdict.SAME_SETTING if own == value else Verdict.OTHER_SETTING
    return Finding(verdict, f"{setting.replace('_', ' ')}: {_plain(own)}", words)


def _plain(own: object) -> str:
    if isinstance(own, tuple):
        return ", ".join(own)
    return f"{own:g}" if isinstance(own, float) else str(own)


def scores_tasks(evidence: Evidence, *, tasks: Sequence[str]) -> Finding:
    """Whether pruned models are scored on these tasks."""
    if not evidence.prunings:
        return not_run(evidence, note=NOTHING)
    missing = sorted(set(tasks) - set(grid().tasks))
    shown = f"{len(tasks) - len(missing)} of {len(tasks)} tasks"
    verdict = Verdict.OTHER_SETTING if missing else Verdict.SAME_SETTING
    return Finding(verdict, shown, "Scored without examples in the prompt, on fewer rows.")


def is_pruned(evidence: Evidence, *, method: str) -> Finding:
    """Whether models of a declared method are stored."""
    found = [name for name in evidence.prunings if name.startswith(f"{method}-")]
    if not found:
        return not_run(evidence, note=NOTHING)
    title = grid().titles()[method]
    return Finding(Verdict.SAME_SETTING, f"{len(found)} models", f"{title}: pruned and scored.")


def mask_is_binary(evidence: Evidence) -> Finding:
    """Whether Eq. 12's function gives one boolean for each group."""
    mask = threshold_mask(torch.arange(5.0), 2.0)
    alike = mask.dtype == torch.bool and mask.shape == (5,)
    verdict = Verdict.SAME_SETTING if alike else Verdict.OTHER_SETTING
    return Finding(verdict, "one boolean a group", "The function of Eq. 12, on drawn importances.")


# Counted from shapes ------------------------------------------------------------------------------


def keeps_beside(evidence: Evidence, *, method: str, least: float, rank: int = 8) -> Finding:
    """Whether a method keeps, in order to prune, at least so many times the weights' bytes."""
    need, ours = (
        next(n for n in pruning_costs.NEEDS if n.title == title) for title in (method, "LoRAPrune")
    )
    shapes = (pruning_costs.LLAMA_7B, pruning_costs.LLAMA_65B)
    enough = all(need.count(s, rank) >= least * pruning_costs.WIDTH * s.weights for s in shapes)
    told = [
        f"{s.name}: {method} {pruning_costs.size(need.count(s, rank))}, "
        f"LoRAPrune {pruning_costs.size(ours.count(s, rank))}"
        for s in shapes
    ]
    verdict = Verdict.HOLDS if enough else Verdict.DOES_NOT_HOLD
    asked = f"Asked for: {least:g} times the weights' own bytes."
    return Finding(
        verdict, "; ".join(told), f"Counted from shapes, as in this book's Table 1. {asked}"
    )


def gradient_of_product_is_as_large(evidence: Evidence, *, rank: int = 8) -> Finding:
    """Whether the gradient of BA, Eq. 9, has as many numbers as that of W, in every matrix."""
    shape = pruning_costs.LLAMA_7B
    found = shape.layers * sum(_product(d, k, rank).numel() for d, k in shape.modules)
    of_ba, of_w, of_factors = (
        pruning_costs.size(pruning_costs.WIDTH * n)
        for n in (found, shape.weights, shape.factors(rank))
    )
    verdict = Verdict.HOLDS if found == shape.weights else Verdict.DOES_NOT_HOLD
    told = f"{shape.name}: gradient of BA {of_ba}, of W {of_w}; of A and B {of_factors}"
    return Finding(verdict, told, "Counted from what the function of Eq. 9 gives.")


def _product(d: int, k: int, rank: int) -> torch.Tensor:
    a, b = (torch.empty(shape, device="meta") for shape in ((rank, k), (d, rank)))
    return lora_gradient(a, b, a, b)


PRUNING_SETTINGS = (
    *(pruning_has, bench_has, scores_tasks, is_pruned, mask_is_binary),
    *(keeps_beside, gradient_of_product_is_as_large),
)


# Checks of LoRAPrune's sentences from the bench ---------------------------------------------------
KEPT = {"activations kept": "", "made again": RECOMPUTED}  # ends of the sides' names

# Inference ----------------------------------------------------------------------------------------


def time_saved(evidence: Evidence, *, share: float, least: float) -> Finding:
    """Whether a model without this share of its weights takes so many per cent less time."""
    saved = {b: 1 - ratios for b, ratios in _ratios(evidence, (share, True), (0.0, True)).items()}
    words = "A forward pass on a CPU; the model's embeddings and head keep their size."
    return _timed(evidence, saved, -1, words, least)


def unmerged_costs(evidence: Evidence, *, share: float, least: float) -> Finding:
    """Whether a pass with the adapter beside takes so much longer than the unpruned one, merged."""
    more = {b: ratios - 1 for b, ratios in _ratios(evidence, (share, False), (0.0, True)).items()}
    words = "An adapter on all seven matrices, computed by PEFT in the model's dtype."
    return _timed(evidence, more, 1, words, least)


def merging_spares(evidence: Evidence, *, shares: Sequence[float]) -> Finding:
    """Whether pruned models take less time with the adapter merged than with it beside."""
    saved = {
        f"{share:.0%}, {batch}": 1 - ratios
        for share in shares
        for batch, ratios in _ratios(evidence, (share, True), (share, False)).items()
    }
    words = "Merged, a pruned model is a plain checkpoint: there is no adapter left to compute."
    return _timed(evidence, saved, -1, words, 0)


def _timed(
    evidence: Evidence, shares: Mapping[str, np.ndarray], sign: int, words: str, least: float
) -> Finding:
    """Whether {batch: changes of the time in every round, times sign} is so many per cent."""
    if not shares:
        return not_run(evidence, note="No inference time of a pruned model is stored yet.")
    enough = sum(_reaches(100 * rounds, least) for rounds in shares.values())
    told = ", ".join(
        f"{batch}: {sign * np.median(rounds):+.1%} of time" for batch, rounds in shares.items()
    )
    rounds = f"each of {len(next(iter(shares.values())))} rounds"
    return Finding(_share_of(enough, len(shares)), told, f"{words} {_asked(least, rounds)}")


def _ratios(evidence: Evidence, one: tuple, two: tuple) -> dict[str, np.ndarray]:
    """{batch: one way's time over the other's in every round}."""
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): e["seconds"] for e in entries}
    return {
        f"batch {batch}": np.divide(timed[*one, batch], timed[*two, batch])
        for share, merged, batch in timed
        if (share, merged) == one
    }


def _reaches(values: np.ndarray, least: float) -> bool:
    """Whether the median is as much as asked; where only a side is asked, whether all lie there."""
    return bool(np.median(values) >= least if least else (values > 0).all())


def _asked(least: float, turn: str) -> str:
    return f"Asked for: at least {least:g}%." if least else f"Asked for: {turn}."


# A step of a criterion ----------------------------------------------------------------------------


def memory_saved(
    evidence: Evidence, *, side: str, least: float, against: str = "vanilla"
) -> Finding:
    """Whether a step of a criterion takes so many per cent less memory than another's.

    Both where activations are kept and where they are made again in the backward pass.
    """
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not cost or not cost["vanilla"]["step_bytes"]:
        return not_run(evidence, note="No memory of pruning is stored yet.")
    both = {
        kept: [all_bytes(cost[f"{name}{end}"]) for name in (side, against)]
        for kept, end in KEPT.items()
    }
    saved = {kept: 100 * (1 - own / other) for kept, (own, other) in both.items()}
    told = [
        f"{k}: {a / 1e6:.0f} of {b / 1e6:.0f} MB, {saved[k]:.1f}% less"
        for k, (a, b) in both.items()
    ]
    words = "Memory: model and the peak of a step; in a small model activations are much of it."
    enough = sum(_reaches(np.array([value]), least) for value in saved.values())
    asked = f" {_asked(least, '')}" if least else ""
    return Finding(_share_of(enough, len(saved)), "; ".join(told), words + asked)


def throughput_gained(evidence: Evidence, *, least: float) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost = part(evidence.benched, CRITERIA, "cost", {})
    if not all("seconds" in own for own in (cost or {"": {}}).values()):
        return not_run(evidence, note="No times of steps are stored yet.")
    taken = {
        kept: [np.array(cost[f"{name}{end}"]["seconds"]) for name in ("vanilla", "lora-guided")]
        for kept, end in KEPT.items()
    }
    gained = {k: 100 * (np.median(a) / np.median(b) - 1) for k, (a, b) in taken.items()}
    enough = sum(
        _reaches(np.array([gained[k]]) if least else a - b, least) for k, (a, b) in taken.items()
    )
    told = "; ".join(f"{kept}: {gain:+.1f}% rows a second" for kept, gain in gained.items())
    steps = f"each of {len(next(iter(taken.values()))[0])} steps"
    words = f"Throughput: rows a second on a CPU. {_asked(least, steps)}"
    return Finding(_share_of(enough, len(gained)), told, words)


# Masks --------------------------------------------------------------------------------------------


def masks_agree(evidence: Evidence, *, share: float) -> Finding:
    """Whether both criteria agree on more groups than halfway from chance to all."""
    entries = part(evidence.benched, MASKS, "agreement", [])
    own = [e for e in entries if e["share"] == share and e["reduction"] == "paper" and e["removed"]]
    if not own:
        return not_run(evidence, note="No similarity of masks is stored yet.")
    enough = sum(_beyond_chance(e) > 0.5 for e in own)
    same, chance = (statistics.mean(e[name] for e in own) for name in ("same", "chance_same"))
    kinds = " and ".join(dict.fromkeys(e["kind"] for e in own))
    return Finding(
        _share_of(enough, len(own)),
        f"{same:.1%} of the groups alike, {chance:.1%} by chance",
        f"At {share:.0%}; {len(own)} comparisons, of {kinds} and several adapters. Asked for: more "
        "than halfway from chance to all.",
    )


def masks_part(evidence: Evidence, *, low: float, high: float) -> Finding:
    """Whether the criteria agree on fewer groups at a higher share; and on fewer beyond chance.

    Two masks that know nothing agree on fewer at a higher share, too. Beyond chance: the part of
    the way from chance to all.
    """
    entries = part(evidence.benched, MASKS, "agreement", [])
    own = [e for e in entries if (e["kind"], e["reduction"]) == ("channels", "paper")]
    found = [[e for e in own if e["share"] == share] for share in (low, high)]
    if not all(found):
        return not_run(evidence, note="No similarity of masks is stored yet.")
    alike, beyond = (
        [[measure(e) for e in entries] for entries in found]
        for measure in (lambda e: e["same"], _beyond_chance)
    )
    fewer = sum(min(ones[0]) > max(ones[1]) for ones in (alike, beyond))
    told = (
        f"{statistics.mean(same):.1%} at {share:.0%}, {statistics.mean(more):.0%} of the way from "
        "chance to all"
        for same, more, share in zip(alike, beyond, (low, high), strict=True)
    )
    words = "Channels of the MLPs. Of random masks, too, fewer are alike at a higher share."
    return Finding(_share_of(fewer, 2), "; ".join(told), words)


def _beyond_chance(entry: Mapping) -> float:
    return (entry["same"] - entry["chance_same"]) / (1 - entry["chance_same"])


def _share_of(enough: int, asked: int) -> Verdict:
    if enough == asked:
        return Verdict.HOLDS
    return Verdict.IN_PART if enough else Verdict.NOT_SUPPORTED


BENCHED = (
    *(time_saved, unmerged_costs, merging_spares, memory_saved, throughput_gained),
    *(masks_agree, masks_part),
)
