"""LoRAPrune's claims: checks of its printed cells, of shapes, of pruned models and of the bench."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch

from tipmini.papers.loraprune import lora_gradient, threshold_mask
from tipmini_lab.book import pruning_costs, pruning_tables
from tipmini_lab.book.claims import Verdict, checks
from tipmini_lab.book.claims.checks import (
    Evidence,
    Finding,
    Names,
    NotMeasured,
    here,
    in_print,
    setting,
)
from tipmini_lab.book.pruning_costs import CRITERIA, INFERENCE, RECOMPUTED, all_bytes, part
from tipmini_lab.book.pruning_tables import ACCURACY, UNPRUNED, Gap, Model, ModelPair, clear
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments.declared import Planned, grid
from tipmini_lab.results.statistics import COVERED

NAMES = {
    **{"wikitext2": "WikiText2", "ptb": "PTB", "gigabytes": "GPU memory, GB"},
    **{"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune", "loraprune_8bit": "LoRAPrune (8-bit)"},
    "mean": "mean accuracy, %",
}
DECIMALS = {"perplexity": 2, "memory": 1, "accuracy": 2}  # as they were read
PROFILE = "mini"


# What is printed, or told by the note -------------------------------------------------------------
def cells(evidence: Evidence, table: str) -> pd.DataFrame:
    """A row a cell that is at hand: row, column, value, `shown` as it was read, `source`."""
    found = [
        {"row": row, "column": column, "shown": f"{cell['value']:.{DECIMALS.get(table, 1)}f}"}
        | cell
        for row, own in evidence.printed["loraprune"][table].items()
        for column, cell in own.items()
    ]
    return pd.DataFrame(found).set_index(["row", "column"])


def _read_in(evidence: Evidence, sources: Iterable[str]) -> str:
    known = evidence.printed["loraprune"]["sources"]
    return f"Read in {' and '.join(known[source] for source in dict.fromkeys(sources))}."


@in_print
def two_cells(evidence: Evidence, *, of: str, against: str, column: str) -> dict:
    """How much less one cell is than another: `less`; in per cent `saved`, and what is `used`.

    What is saved may stand in print as what is used.
    """
    table = "memory" if column == "gigabytes" else "perplexity"
    both = cells(evidence, table).xs(column, level="column").loc[[against, of]]
    old, new = both["value"]
    saved, earlier = 100 * (1 - new / old), evidence.records["earlier_loraprune"]
    return {
        **{"old": old, "new": new, "less": old - new, "saved": saved, "used": 100 * new / old},
        **{"earlier": earlier["reduction"].get(column), "earlier_source": earlier["source"]},
        **{"instead": ([saved], Verdict.SAVED_NOT_USED), "read": _read_in(evidence, both.source)},
    }


@in_print
def below(evidence: Evidence, *, table: str, of: str, against: Names) -> Finding:
    """Whether the cells at hand of a row are below those of others, in every column."""
    known = cells(evidence, table)
    own, others = known.loc[of], known.loc[list(against)]
    told = [
        f"{NAMES[c]}: {NAMES[of]} {own.shown[c]}, {NAMES[row]} {other.shown}"
        for (row, c), other in others.iterrows()
    ]
    lower = sum(own.value[c] < value for (_, c), value in others.value.items())
    some = Verdict.IN_PART if lower else Verdict.DOES_NOT_HOLD
    read = _read_in(evidence, known.loc[[of, *against]].source)
    return Finding(Verdict.AT_HAND if lower == len(others) else some, "; ".join(told), read)


@in_print
def per_cent(evidence: Evidence, *, printed: float, saved: float = 0, added: float = 0) -> dict:
    """A percentage of which the cells are not at hand, as times of a time or a speed.

    value: of a whole model's time, what pruning saves of it, and then unmerged LoRA adds.
    """
    share, saving, adding = printed / 100, saved / 100, added / 100
    found = {"faster": 1 / (1 - share), "longer": 1 + share, "less": 1 / (1 + share)}
    found |= {"saved": saved, "added": added, "saving": saving, "adding": adding}
    return found | {"value": (1 - saving) * (1 + adding)}


@in_print
def weights(evidence: Evidence, *, model: str, gpu: float = 80) -> dict:
    """Billions of a LLaMA's weights, counted from its shapes; norms are left out.

    sixteen: their GB in 16 bits; in 8 they are the billions. beside: GB of BA in 16 bits and a mask
    in 8, as booleans have, for every linear weight (q, k, v, o; gate, up, down). gpus: of so many
    GB, which those fill.
    """
    shape = evidence.records["shapes"][model]
    linear = shape["layers"] * (4 * shape["width"] ** 2 + 3 * shape["width"] * shape["inner"])
    billions = (linear + 2 * shape["vocabulary"] * shape["width"]) / 1e9  # embedding and output
    found = {"value": billions, "sixteen": 2 * billions, "beside": 3 * linear / 1e9}
    return found | {"gpus": -(-found["beside"] // gpu), "source": shape["source"]}


# Settings, and what follows from shapes -----------------------------------------------------------
@setting
def pruning_has(evidence: Evidence, *, setting: str, part: str = "") -> dict:
    """A setting of the runs that prune while they are fine-tuned, or of a part of the bench."""
    if not part:
        own = getattr(grid().size(PROFILE).recipe(tuned=True), setting)
        return prunings(evidence) and checks.setting_of(setting, own, "the declared prunings")
    stored = evidence.benched.get(part, {})
    passes = [e | {"rounds": len(e["seconds"])} for e in stored.get("inference", [])]
    found = {own[setting] for own in [stored, *passes] if setting in own}
    if len(found) != 1:
        raise NotMeasured("This part of the bench has not one number of it.")
    return checks.setting_of(setting, found.pop(), "the bench")


@setting
def prunings(evidence: Evidence, *, method: str = "", tasks: Names = ()) -> dict:
    """Whether pruned models, or those of a method, are stored, and scored on these tasks."""
    models = [m for m in evidence.prunings if not method or m.startswith(f"{method}-")]
    if not models:
        raise NotMeasured("No pruned model is stored yet.")
    scored, title = len(set(tasks) & set(grid().tasks)), grid().titles().get(method)
    found = {"value": scored == len(tasks), "scored": scored, "tasks": len(tasks)}
    return found | {"models": len(models), "title": title}


@setting
def equations(evidence: Evidence, *, rank: int = 8) -> dict:
    """Whether functions of equations are, on drawn factors, what the text says of them.

    eta: Eq. 9 is the step of learning rate 1 of Eqs. 7 and 8. binary: Eq. 12 gives one boolean for
    each group. as_large: the gradient of BA, Eq. 9, has as many numbers as W in every matrix.
    """
    drawn = torch.Generator().manual_seed(0)
    a, grad_a = torch.randn(2, 3, 5, generator=drawn, dtype=torch.float64)
    b, grad_b = torch.randn(2, 7, 3, generator=drawn, dtype=torch.float64)
    step = b @ a - (b - grad_b) @ (a - grad_a)
    mask, shape, numbers = threshold_mask(torch.arange(5.0), 2.0), pruning_costs.LLAMA_7B, 0
    for d, k in shape.modules:
        empty = [torch.empty(size, device="meta") for size in ((rank, k), (d, rank))]
        numbers += shape.layers * lora_gradient(*empty, *empty).numel()
    sizes = {"of_ba": numbers, "of_w": shape.weights, "of_factors": shape.factors(rank)}
    return {
        "eta": torch.allclose(lora_gradient(a, b, grad_a, grad_b), step),
        "binary": mask.dtype == torch.bool and mask.shape == (5,),
        **{"as_large": numbers == shape.weights, "model": shape.name},
        **{name: pruning_costs.size(pruning_costs.WIDTH * n) for name, n in sizes.items()},
    }


@here
def bytes_beside(evidence: Evidence, *, method: str, rank: int = 8) -> dict:
    """How many times the weights' bytes a method keeps at least, in order to prune."""
    needs = {need.title: need.count for need in pruning_costs.NEEDS}
    shapes, told = (pruning_costs.LLAMA_7B, pruning_costs.LLAMA_65B), []
    for shape in shapes:
        own, ours = (pruning_costs.size(needs[m](shape, rank)) for m in (method, "LoRAPrune"))
        told.append(f"{shape.name}: {method} {own}, LoRAPrune {ours}")
    times = [needs[method](s, rank) / s.weights / pruning_costs.WIDTH for s in shapes]
    return {"value": min(times), "shown": "; ".join(told)}


# The bench ----------------------------------------------------------------------------------------
KEPT = {"activations kept": "", "made again": RECOMPUTED}  # ends of the sides' names


def _asked(
    words: str, gains: Iterable, told: Iterable[str], least: float = 0, turn: str = ""
) -> Finding:
    """Whether medians of gains are as many per cent as asked; of 0, whether all are above 0.

    turn: what lies above 0, where that is said.
    """
    reached = [bool(np.median(own) >= least if least else np.all(own > 0)) for own in gains]
    some = Verdict.IN_PART if any(reached) else Verdict.NOT_SUPPORTED
    turn = f"at least {least:g}%" if least else turn
    words += f" Asked for: {turn}." if turn else ""
    return Finding(Verdict.HOLDS if all(reached) else some, "; ".join(told), words)


@here
def pass_time(
    evidence: Evidence, *, of: list, against: list, words: str, least: float = 0, more: bool = False
) -> Finding:
    """Whether passes of pruned models take so many per cent less time than others, or `more`.

    of, against: [pruning ratio, whether the adapter is merged], by pairs, in the same rounds.
    """
    entries = part(evidence.benched, INFERENCE, "inference", [])
    timed = {(e["share"], e["merged"], e["batch"]): np.array(e["seconds"]) for e in entries}
    changes = {
        f"{f'{one[0]:.0%}, ' if of[1:] else ''}batch {batch}": timed[place] / timed[*two, batch] - 1
        for one, two in zip(of, against, strict=True)
        for place in timed
        if place[:2] == tuple(one) and (batch := place[2])
    }
    if not changes:
        raise NotMeasured("No inference time of a pruned model is stored yet.")
    told = ", ".join(f"{name}: {np.median(own):+.1%} of time" for name, own in changes.items())
    gains = [100 * own if more else -100 * own for own in changes.values()]
    return _asked(words, gains, [told], least, f"each of {len(gains[0])} rounds")


@here
def memory_saved(evidence: Evidence, *, side: str, least: float, against: str = "vanilla"):
    """Whether a step of a criterion takes so many per cent less memory than another's.

    Both where activations are kept and where they are made again in the backward pass.
    """
    cost, saved, told = part(evidence.benched, CRITERIA, "cost", {}), [], []
    if not cost or not cost["vanilla"]["step_bytes"]:
        raise NotMeasured("No memory of pruning is stored yet.")
    for kept, end in KEPT.items():
        own, other = (all_bytes(cost[f"{name}{end}"]) for name in (side, against))
        saved.append(100 * (1 - own / other))
        told.append(f"{kept}: {own / 1e6:.0f} of {other / 1e6:.0f} MB, {saved[-1]:.1f}% less")
    words = "Memory: model and the peak of a step; in a small model activations are much of it."
    return _asked(words, saved, told, least)


@here
def throughput_gained(evidence: Evidence, *, least: float) -> Finding:
    """Whether steps of the LoRA-guided criterion are so much faster than the vanilla one's."""
    cost, gains, told = part(evidence.benched, CRITERIA, "cost", {}), [], []
    if not cost or not all("seconds" in own for own in cost.values()):
        raise NotMeasured("No times of steps are stored yet.")
    for kept, end in KEPT.items():
        old, new = (np.array(cost[f"{n}{end}"]["seconds"]) for n in ("vanilla", "lora-guided"))
        gain = 100 * (np.median(old) / np.median(new) - 1)
        gains.append(gain if least else old - new)
        told.append(f"{kept}: {gain:+.1f}% rows a second")
    turn = f"each of {len(old)} steps"
    return _asked("Throughput: rows a second on a CPU.", gains, told, least, turn)


def _masks(evidence: Evidence, share: float, kinds: Names = ("heads", "channels")) -> pd.DataFrame:
    """Comparisons of masks at a share; beyond: the part of the way from chance to all."""
    found = pruning_costs.agreement(evidence.benched).query("reduction == 'paper'")
    found = found[(found.share == share) & found.kind.isin(kinds)]
    if found.empty:
        raise NotMeasured("No similarity of masks is stored yet.")
    return found.assign(beyond=(found.same - found.chance_same) / (1 - found.chance_same))


@here
def masks_alike(evidence: Evidence, *, share: float) -> Finding:
    """Whether both criteria agree on more groups than halfway from chance to all."""
    own = _masks(evidence, share)
    told = f"{own.same.mean():.1%} of the groups alike, {own.chance_same.mean():.1%} by chance"
    kinds = " and ".join(own.kind.unique())
    words = f"At {share:.0%}; {len(own)} comparisons, of {kinds} and several adapters."
    return _asked(words, own.beyond - 0.5, [told], turn="more than halfway from chance to all")


@here
def masks_part(evidence: Evidence, *, shares: Sequence[float]) -> Finding:
    """Whether the criteria agree on fewer groups at the second share; and on fewer beyond chance.

    Two masks that know nothing agree on fewer at a higher share, too.
    """
    low, high = both = [_masks(evidence, share, ["channels"]) for share in shares]
    told = [
        f"{own.same.mean():.1%} at {share:.0%}, {own.beyond.mean():.0%} of the way from chance to "
        "all"
        for own, share in zip(both, shares, strict=True)
    ]
    words = "Channels of the MLPs. Of random masks, too, fewer are alike at a higher share."
    return _asked(words, [low[how].min() - high[how].max() for how in ("same", "beyond")], told)


# Pruned models ------------------------------------------------------------------------------------
Gaps = Mapping[ModelPair, Gap]


@cache
def runs() -> Mapping[str, Planned]:
    return grid().runs(PROFILE)


def gaps(evidence: Evidence, pairs: Iterable[tuple[Model, Model]], measures: Names) -> Gaps:
    """{(one, two, measure): gap}; raises NotMeasured where one is not measured."""
    places = [(tuple(one), tuple(two), m) for (one, two), m in product(pairs, measures)]
    found = {place: pruning_tables.gap(evidence.prunings, runs(), *place) for place in places}
    if None in found.values():
        raise NotMeasured("Not all of the models that it takes are measured.")
    return found


@here
def better(
    evidence: Evidence,
    *,
    of: Names,
    against: Names,
    shares: Sequence[float],
    tuned: Sequence[bool],
    measures: Names = CORPORA,
    least: float = 0,
) -> Finding:
    """Whether models of some criteria have lower perplexities (or higher accuracies) than others.

    tuned: whether models with, without, or of both kinds of fine-tuning, as the sentence speaks of.
    measures: corpora, or "accuracy" alone, over the rows of all averaged tasks.
    least: the per cent by which a perplexity is to be lower. Both read the same windows (rows): t
    tests of the windows' losses, averaged over the seeds, corrected (Holm) for the number of
    comparisons; with several seeds every pair of them has to agree too.
    """
    pairs = [((o, s, t), (a, s, t)) for t, s, o, a in product(tuned, shares, of, against)]
    return _compared(gaps(evidence, pairs, measures), least)


@here
def tuning_recovers(evidence: Evidence, *, of: Names, shares: Sequence[float]) -> Finding:
    """Whether fine-tuning while pruning lowers what pruning costs.

    That is how far the perplexity lies above the unpruned model's, either of them tuned the same
    way: tuning lowers the unpruned model's perplexity too, which is no recovery.
    """
    found = gaps(evidence, [((o, s, True), (o, s, False)) for s, o in product(shares, of)], CORPORA)
    for place, one in found.items():
        (other,) = gaps(evidence, [(UNPRUNED, ("base", 0.0, False))], [place[2]]).values()
        seeds = np.subtract.outer(one.seeds, other.seeds).ravel()
        found[place] = Gap(one.values - other.values, seeds, one.counts)
    return _compared(found, words=", above the unpruned model's, tuned alike")


def _compared(found: Gaps, least: float = 0, words: str = "") -> Finding:
    measures = [*dict.fromkeys(measure for *_, measure in found)]
    what = f"Perplexity on {' and '.join(measures)}{words}"
    sign, for_it, against = -1, "lower", "higher"
    if measures == [ACCURACY]:
        sign, for_it, against, what = 1, "higher", "lower", "Accuracy over all rows of tasks"
    sure = [sign * gap.mean for gap in clear(found).values()]
    good = [gain for gain in sure if gain > 0]
    enough, bad = sum(gain >= -math.log1p(-least / 100) for gain in good), len(sure) - len(good)
    much = f", {enough} by as much as asked" if least else ""
    counted = f"clearly {for_it} {len(good)}{much}, clearly {against} {bad}, "
    counted += f"neither {len(found) - len(sure)}"
    asked = f" Asked for: at least {least:g}% lower." if least else ""
    told = f"{what}. {_settings(found)}.{asked} Of a small model, as all that is measured here."
    return Finding(checks.verdict_of(enough, bad, len(found)), counted, told)


def _settings(found: Gaps) -> str:
    """For every share and way of tuning, and every model: how far it lies from whom."""
    rows = [
        (
            told_setting([one, two]),
            told_model(one),
            "the same not tuned" if one[:2] == two[:2] else told_model(two),
            _size(gap.mean, measure),
            gap,
        )
        for (one, two, measure), gap in found.items()
    ]
    frame, told = pd.DataFrame(rows, columns=["where", "one", "other", "size", "gap"]), []
    for where, own in frame.groupby("where", sort=False):
        sizes = own.groupby(["one", "other"], sort=False)["size"].agg(" and ".join)
        against = sizes + " against " + sizes.index.get_level_values("other")
        models = against.groupby("one", sort=False).agg(", ".join)
        named = ", ".join(f"{one} {words}" for one, words in models.items())
        told.append(f"{where} ({told_seeds(own.gap)}): {named}")
    return "; ".join(told)


def told_model(model: Model) -> str:
    """A model as a sentence calls it: "LoRAPrune, base in 8 bits", "the unpruned model"."""
    method, share, tuned = model
    whole = "the unpruned model, fine-tuned" if tuned else "the unpruned model"
    return grid().titles()[method] if share else whole


def told_setting(models: Sequence[Model]) -> str:
    """The share, and whether it is tuned, of models that a sentence sets against each other."""
    told = [f"{share:.0%}" for share in sorted({model[1] for model in models} - {0.0})]
    if len({model[2] for model in models}) == 1:
        told += ["with fine-tuning" if models[0][2] else "without fine-tuning"]
    return ", ".join(told)


def told_seeds(found: Iterable[Gap]) -> str:
    """Of either side of every gap."""
    sides = []
    for counts in zip(*(gap.counts for gap in found), strict=True):
        low, high = min(counts), max(counts)
        several = f"{high} seeds" if low == high else f"{low} to {high} seeds"
        sides.append("one seed" if high == 1 else several)
    return " against ".join(dict.fromkeys(sides))


def _size(mean: float, measure: str) -> str:
    """Points of an accuracy; percent of a perplexity, or above a factor of ten how many times."""
    if measure == ACCURACY:
        return f"{100 * mean:+.1f} points"
    if abs(mean) < math.log(10):
        return f"{100 * math.expm1(mean):+.1f}%"
    return f"{'÷' if mean < 0 else '×'}{pruning_tables.three_digits(math.exp(abs(mean)))}"


@here
def no_worse(evidence: Evidence, *, of: Model, against: Sequence[Model], within: float) -> Finding:
    """Whether a model's perplexity is at most `within` per cent above others', surely; or below.

    That is, with the whole 95% interval over the windows, and every pair of seeds; both corpora.
    """
    found, told, inside = gaps(evidence, [(of, other) for other in against], CORPORA), [], 0
    for (_, other, corpus), gap in found.items():
        reach = COVERED * gap.values.std(ddof=1) / math.sqrt(len(gap.values))
        ends = min(gap.mean - reach, gap.seeds.min()), max(gap.mean + reach, gap.seeds.max())
        low, high = 100 * np.expm1(ends)
        inside += high <= within
        told.append(f"{told_model(other)}, {corpus}: [{low:+,.1f}, {high:+,.1f}]%")
    some = Verdict.IN_PART if inside else Verdict.NOT_SUPPORTED
    return Finding(
        Verdict.HOLDS if inside == len(found) else some,
        f"at most {within:g}% above: {inside} of {len(found)}",
        f"How far the perplexity of {told_model(of)} ({told_setting([of])}; "
        f"{told_seeds(found.values())}) lies from that of {'; '.join(told)}. Below is as good.",
    )


# Tables above the claims --------------------------------------------------------------------------
def page_tables(evidence: Evidence) -> dict[str, pd.DataFrame | str]:
    """By the names that `recomputed` of loraprune.yaml has."""
    found = pd.concat([cells(evidence, table) for table in DECIMALS])
    known = evidence.printed["loraprune"]
    read = {key: told for key, told in known["sources"].items() if key in set(found.source)}
    shown = (found.shown + " (" + found.source + ")").unstack("column", sort=False)
    return {
        "at_hand": shown.rename(index=NAMES, columns=NAMES).rename_axis("LLaMA-7B, 50%"),
        "sources": "; ".join(f"*{key}*: {told}" for key, told in read.items()) + ".",
        "address": known["address"],
        "margins": ", ".join(f"{least:g}% {what}" for what, least in margins(evidence).items()),
    }


def margins(evidence: Evidence) -> dict[str, float]:
    """Half of what is told of LoRAPrune, per cent: what "greatly" is taken to ask for at least."""
    memory = cells(evidence, "memory").value.droplevel("column")
    faster = cells(evidence, "throughput").value["lora_guided", "gain"]
    found = {
        "less memory": 100 - 100 * memory.loraprune / memory.llm_pruner,
        "less in 8 bits against 16": 100 - 100 * memory.loraprune_8bit / memory.loraprune,
        "more throughput": faster,
    }
    return {what: round(share / 2, 1) for what, share in found.items()}
