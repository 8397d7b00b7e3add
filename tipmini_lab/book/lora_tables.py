"""The chapters on LoRA: stored tunings as frames, their tables, and what the bench measured."""

import json
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
import yaml

from tipmini_lab import paths
from tipmini_lab.book import pruning_tables
from tipmini_lab.book.tables import EMPTY, TITLES, p_text, points
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.tunings import NORMS, RANKS
from tipmini_lab.results import frame, statistics
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import COVERED, MISSING, Pair, Verdict

STORED = paths.REPOSITORY / "results" / "lora-bench.json"
BASE, OURS = "base", "lora"
GB = 1e9
FACTS = ("trained", "rate", "held_out", "seconds")


# What is stored of tunings ------------------------------------------------------------------------
def runs(profile: Profile, name: str) -> pd.DataFrame:
    """A line a declared run: way, title, task, seed, rate if it is one of a sweep; what is stored.

    trained, rate, held_out: of its facts. value: the mean of its cell, of a sweep the held-out
    loss. NaN: not stored.
    """
    many = tunings.Tunings(profile, name)
    lines = []
    for run in [*many.sweeps(), *many.runs()]:
        bundle = storage.read(many.store, run.name)
        told = {"name": run.name, "way": run.way.name, "title": run.title, "task": run.task}
        told |= {"seed": run.seed, "swept": run.swept, "stored": bundle is not None}
        facts = {"rate": run.given} | (bundle.facts if bundle else {})
        told |= {key: facts.get(key) for key in FACTS}
        lines.append(told | {"value": bundle.cells[0].mean if bundle else np.nan})
    return pd.DataFrame(lines).set_index("name").astype(dict.fromkeys((*FACTS, "value"), float))


def cells(profile: Profile, name: str) -> dict[storage.Place, storage.Cell]:
    """Everything that is stored of a group, in one number format; nothing is measured."""
    return dict(storage.in_one_format(storage.cells(tunings.folder(profile, name))))


def rows(profile: Profile, name: str) -> pd.DataFrame:
    """(task, row) by ways: whether a row is right, the mean over the seeds that are stored."""
    known = runs(profile, name)
    scored = {
        p: c for p, c in cells(profile, name).items() if p[1] in TITLES and p[0] in known.index
    }
    ways = known["way"]
    parts: dict[str, list[pd.Series]] = {}
    for (run, task), cell in scored.items():
        index = pd.MultiIndex.from_product([[task], range(cell.count)], names=frame.LEVELS)
        parts.setdefault(ways[run], []).append(pd.Series(cell.values, index))
    wide = {way: pd.concat(own).groupby(level=[0, 1]).mean() for way, own in parts.items()}
    return pd.DataFrame(wide) if wide else frame.wide({})


def way_table(found: pd.DataFrame, whole: int) -> pd.DataFrame:
    """Every way: accuracies, the mean and the ends of the seeds, what it trains, its learning rate.

    whole: numbers of the model, for the share that is trained.
    """
    lines = {}
    own = found[~found.swept]
    for title, group in own.groupby("title", sort=False):
        trained = group.trained.dropna()
        line = lines[title] = {}
        by_seed = group.groupby("seed").value.agg(lambda v: v.mean(skipna=False))
        if own.task.nunique() > 1:
            line["mean"] = spread(by_seed)
        for task in own.task.unique():
            told = spread(group[group.task == task].value)
            line[TITLES[task]] = EMPTY if line and told == MISSING else told
        rates = group.rate.dropna()
        line |= {
            "trained": f"{trained.iloc[0]:,.0f}" if len(trained) else "-",
            "of the model": f"{trained.iloc[0] / whole:.3%}" if len(trained) else "-",
            "learning rate": f"{rates.iloc[0]:g}" if len(rates) else "-",
        }
    return pd.DataFrame(lines).T.rename_axis("tuned")


def spread(values: pd.Series) -> str:
    """Mean of the seeds that are stored; of several also the least and the most."""
    known = values.dropna()
    return pruning_tables.spread(known) if len(known) else MISSING


def against(found: pd.DataFrame, side: pd.DataFrame, of: str = OURS) -> pd.DataFrame:
    """`statistics.compare` of LoRA with every other way, over all tasks; with its title."""
    own = found[~found.swept]
    tasks = tuple(own.task.unique())
    others = [way for way in own.way.unique() if way != of]
    compared = statistics.compare(side, [Pair(of, other, tasks) for other in others])
    titles = own.drop_duplicates("way").set_index("way").title
    return compared.assign(title=compared.against.map(titles))


def differ_note(compared: pd.DataFrame) -> str:
    """How many of a group's ways differ significantly from one of them, in a sentence."""
    if (compared.verdict == Verdict.MISSING).any():
        return ""
    differ = compared[compared.verdict != Verdict.OPEN]
    named = f": {', '.join(differ.title)}" if len(differ) else ""
    return (
        f"Of the {len(compared)} others {len(differ)} differ significantly from q and v at rank 8, "
        f"the paper's choice, corrected together{named}."
    )


def points_in_line(one: pd.Series) -> str:
    """A line of `against`: "+2.0 points [-0.8, +4.8], not significant"."""
    found = points(statistics.Interval(one.value, one.low, one.high))
    return f"{found.replace('<br>', ' points ')}, {one.verdict}"


def longest_note(compared: pd.DataFrame) -> str:
    """Whether the longest prefix differs from the shorter ones, in a sentence."""
    if (compared.verdict == Verdict.MISSING).any():
        return ""
    own = compared[compared.title.str.startswith("prefix-layer")].set_index("title")
    told = "; ".join(f"{title}: {points_in_line(one)}" for title, one in own.iterrows())
    return f"The longest prefix in the layers, its accuracy minus that of {told}."


def against_table(compared: pd.DataFrame) -> pd.DataFrame:
    """LoRA's accuracy minus every other way's, in points."""
    lines = {
        one.title: {
            "difference, points": points(statistics.Interval(one.value, one.low, one.high)),
            "p, corrected": p_text(one.corrected),
            "LoRA is": str(one.verdict),
        }
        for one in compared.itertuples()
    }
    return pd.DataFrame(lines).T.rename_axis("against")


def rate_table(found: pd.DataFrame) -> pd.DataFrame:
    """Held-out loss at every learning rate that was tried; the lowest of a way is bold."""
    lines = {}
    for title, own in found[found.swept].groupby("title", sort=False):
        best = own.held_out.idxmin() if own.held_out.notna().any() else None
        told = own.held_out.map("{:.3f}".format, na_action="ignore")
        told = told.mask(own.held_out > tunings.DIVERGED / 1000, "diverged")
        told = told.astype(object).fillna(MISSING)
        lines[title] = {
            f"{one.rate:g}": f"**{told[one.Index]}**" if one.Index == best else told[one.Index]
            for one in own.itertuples()
        }
    wide = pd.DataFrame(lines).T.fillna("")
    return wide[sorted(wide, key=float)].rename_axis("learning rate")


def best_rates(found: pd.DataFrame) -> dict[str, float]:
    """{way: the tried learning rate of the lowest held-out loss}, of those with all stored."""
    swept = found[found.swept]
    whole = {w: own for w, own in swept.groupby("way", sort=False) if own.held_out.notna().all()}
    return {way: float(own.rate[own.held_out.idxmin()]) for way, own in whole.items()}


def scalings_note(best: Mapping[str, float]) -> str:
    """Whether one learning rate is best at every rank, by how the scaling goes, in sentences."""
    ways = {"α at 16": "divided", "α at twice the rank": "constant"}
    lines = []
    for words, how in ways.items():
        names = {2: f"r2-{how}", 8: "r8-both", 64: f"r64-{how}"}
        if not {*names.values()} <= best.keys():
            return ""
        told = ", ".join(f"{best[name]:g} at rank {rank}" for rank, name in names.items())
        one = len({best[name] for name in names.values()}) == 1
        lines.append(
            f"With {words} the lowest loss is at {told}: {'one rate' if one else 'no one rate'}."
        )
    return " ".join(lines)


def rank_table(found: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by adapted matrices and rank, of ways called r1-q, r64-q-k-v-o and so on."""
    own = found[~found.swept]
    parts = own.way.str.extract(r"r(?P<rank>\d+)-(?P<matrices>.*)")
    by = [parts.matrices.str.replace("-", ", "), parts["rank"].astype(int)]
    wide = own.value.groupby(by, sort=False).agg(spread).unstack()
    wide.iloc[:, 1:] = wide.iloc[:, 1:].replace(MISSING, EMPTY)
    return wide.rename(columns="r = {}".format).rename_axis(index="matrices", columns=None)


# Subspaces ----------------------------------------------------------------------------------------
def similarities(profile: Profile, pair: str, name: str = "lora-ranks") -> dict[str, np.ndarray]:
    """{projection: (r1, r2) phi, a mean over the layers} of a declared pair; what is stored."""
    bundle = storage.read(tunings.folder(profile, name), pair)
    if bundle is None:
        return {}
    shape = [int(rank) for rank in bundle.facts["ranks"]]
    return {cell.task: np.reshape(cell.values, shape) for cell in bundle.cells}


def amplifications(profile: Profile, name: str = "lora-ranks") -> pd.DataFrame:
    """(way and projection and layer) x `NORMS` of all that is stored."""
    found = {}
    for (run, projection), cell in cells(profile, name).items():
        if run.startswith("amplified-"):
            table = pd.DataFrame(np.reshape(cell.values, (-1, len(NORMS))), columns=NORMS)
            found[run.removeprefix("amplified-"), projection] = table
    names = ["way", "projection", "layer"]
    return pd.concat(found, names=names) if found else pd.DataFrame(columns=NORMS)


def amplification_table(norms: pd.DataFrame) -> pd.DataFrame:
    """LoRA's Table 7, medians over the layers; what of W lies in the update's directions is the
    update's norm over the factor."""
    if norms.empty:
        return pd.DataFrame({"norms": [MISSING]}, index=["LoRA"])
    shown = pd.DataFrame(
        {
            "‖ΔW‖": norms["delta"],
            "‖W‖": norms["weight"],
            "of W along ΔW": norms["delta"] / norms["factor"],
            "along W itself": norms["own"],
            "along a random matrix": norms["random"],
            "factor": norms["factor"],
        }
    )
    middle = shown.groupby(level=["way", "projection"], sort=False).median()
    middle.index = [f"{way.partition('-')[0][1:]}, {p[0]}" for way, p in middle.index]
    return middle.map("{:.3g}".format).rename_axis("rank, matrix")


def spectra(profile: Profile, name: str = "lora-methods", way: str = "full") -> pd.DataFrame:
    """(projection) x RANKS: share of the update's square in so many directions, and the weight's.

    The mean over tasks and seeds that are stored; rows are (of, projection).
    """
    own = runs(profile, name).query("way == @way and not swept and stored")
    at = tunings.folder(profile, name)
    facts = [storage.read(at, run).facts for run in own.index]
    found = {
        (of, projection): np.mean([f[f"{of}_{projection}"] for f in facts], axis=0)
        for of in ("update", "weight")
        for projection in (tunings.PROJECTIONS if facts else ())
    }
    names = ["of", "projection"]
    index = pd.MultiIndex.from_tuples(list(found), names=names) if found else None
    return pd.DataFrame(list(found.values()), index, RANKS)


# Counts -------------------------------------------------------------------------------------------
@cache
def printed() -> dict:
    """What the paper prints, and the shapes of models that it speaks of."""
    return yaml.safe_load(paths.PRINTED.read_text())["lora"]


def counts() -> pd.DataFrame:
    """Of models of known shape with LoRA as the paper has it: numbers, bytes, times fewer.

    A matrix of d outputs has r (d + k) numbers, Eq. 4 where it is square. Checkpoints in 16 bits;
    moments: Adam's two in 32 bits for every trained number.
    """
    lines = {}
    for shape in printed()["models"].values():
        trained = (
            shape["layers"] * shape["rank"] * sum(shape["width"] + d for d in shape["outputs"])
        )
        whole = shape["parameters"]
        lines[shape["title"]] = {
            **{"rank": shape["rank"], "whole": whole, "trained": trained},
            **{"share": trained / whole, "times": whole / trained},
            **{"checkpoint": 2 * whole, "adapter": 2 * trained},
            **{"moments": 8 * whole, "adapter_moments": 8 * trained},
        }
    return pd.DataFrame(lines).T


def counts_table() -> pd.DataFrame:
    found = counts()
    size = lambda n: f"{n / GB:,.1f} GB" if n >= GB else f"{n / 1e6:,.1f} MB"  # noqa: E731
    return pd.DataFrame(
        {
            "times fewer": found["times"].map("{:,.0f}".format),
            "trained": found["trained"].map(lambda n: f"{n / 1e6:,.2f} M"),
            "numbers": found["whole"].map(lambda n: f"{n / 1e6:,.0f} M"),
            "share": found["share"].map("{:.3%}".format),
            "rank": found["rank"].map("{:.0f}".format),
            "checkpoint": found["checkpoint"].map(size),
            "of LoRA": found["adapter"].map(size),
            "Adam's moments": found["moments"].map(size),
            "LoRA's": found["adapter_moments"].map(size),
        }
    ).rename_axis("model")


# What the bench measured --------------------------------------------------------------------------
def bench() -> dict:
    """results/lora-bench.json; empty where nothing is measured."""
    return json.loads(STORED.read_text()) if STORED.is_file() else {}


def ratios(found: Mapping) -> pd.DataFrame:
    """(batch, length, way) x median, min and max of a pass over the base's of the same round, and
    its median seconds."""
    lines, base = [], {}
    for point in found.get("points", ()):
        place = point["batch"], point["length"]
        taken = np.array(point["seconds"])
        base |= {place: taken} if point["way"] == BASE else {}
        over = taken / base[place]
        told = {"median": np.median(over), "min": over.min(), "max": over.max()}
        lines.append(dict(zip(PLACE, (*place, point["way"]), strict=True)) | told
                     | {"seconds": np.median(taken)})  # fmt: skip
    columns = ["median", "min", "max", "seconds"]
    frame = pd.DataFrame(lines, columns=[*PLACE, *columns]).set_index([*PLACE])
    return frame.sort_index(level=["batch", "length"], sort_remaining=False, kind="stable")


PLACE = ("batch", "length", "way")
WAYS = {
    **{
        BASE: "base model",
        "merged": "LoRA, merged",
        OURS: "LoRA, beside",
        "prefix": "prefix-layer",
    },
    **{"adapter-h": "AdapterH", "adapter-l": "AdapterL", "adapter-p": "AdapterP"},
    **{"adapter-drop": "AdapterDrop", "prefix": "prefix-layer", "prompt": "prefix-embedding"},
}


def latency_table(found: pd.DataFrame, lengths: Sequence[int] = (1, 128, 512)) -> pd.DataFrame:
    """Every way's time over the base's, median (least to most); of the base milliseconds."""
    lines: dict[str, dict[str, str]] = {}
    for (batch, length, way), one in found.iterrows():
        if length in lengths:
            text = f"{1e3 * one.seconds:,.1f} ms"
            if way != BASE:
                text = (
                    f"{one['median'] - 1:+.1%}<br>({one['min'] - 1:+.0%} to {one['max'] - 1:+.0%})"
                )
            lines.setdefault(WAYS[way], {})[f"{batch} × {length}"] = text
    if not lines:
        return pd.DataFrame({"a pass": [MISSING]}, index=["base model"])
    return pd.DataFrame(lines).T.rename_axis("batch × tokens")


def switching_table(found: Mapping) -> pd.DataFrame:
    """How long it takes to get to another task."""
    taken = found.get("switching", {}).get("seconds", {"-": []})
    lines = {
        way: {"milliseconds": f"{1e3 * np.median(own):,.1f}" if own else MISSING}
        for way, own in taken.items()
    }
    return pd.DataFrame(lines).T.rename_axis("switched by")


def training_table(found: Mapping) -> pd.DataFrame:
    """A step of full tuning and of LoRA: megabytes and time."""
    ways = found.get("training", {}).get("ways", {})
    if not ways:
        return pd.DataFrame({"a step": [MISSING]}, index=["LoRA"])
    mb = lambda n: f"{n / 1e6:,.1f}"  # noqa: E731
    heads = {"weights": "weights", "gradients": "gradients", "moments": "Adam's moments"}
    lines = {
        {"full": "full tuning"}.get(way, "LoRA"): {
            **{"trained": f"{one['trained']:,}"},
            **{f"{title}, MB": mb(one[key]) for key, title in heads.items()},
            "rise in a step, MB": mb(one["risen"]) if one["risen"] else "-",
            "seconds a step": f"{np.median(one['seconds']):.2f}",
        }
        for way, one in ways.items()
    }
    return pd.DataFrame(lines).T.rename_axis("step of")


def step_gain(found: Mapping) -> statistics.Interval | None:
    """Full tuning's seconds over LoRA's in the same round, the median, least and most."""
    ways = found.get("training", {}).get("ways", {})
    if not ways:
        return None
    over = np.array(ways["full"]["seconds"]) / np.array(ways["lora"]["seconds"])
    return statistics.Interval(float(np.median(over)), float(over.min()), float(over.max()))


def step_memory(found: Mapping) -> float | None:
    """What a step of full tuning holds over one of LoRA, weights included; None of nothing."""
    ways = found.get("training", {}).get("ways", {})
    if not ways:
        return None
    full, ours = (ways[way]["weights"] + ways[way]["risen"] for way in ("full", "lora"))
    return full / ours


def trained_means(found: pd.DataFrame) -> pd.DataFrame:
    """By title: numbers trained, the mean accuracy of tasks, and its half-width over the seeds."""
    own = found[~found.swept & found.stored & found.trained.notna()]
    by = own.groupby(["title", "seed"], sort=False).agg(
        trained=("trained", "first"), value=("value", "mean")
    )
    means = by.groupby(level="title", sort=False).agg(
        trained=("trained", "first"), value=("value", "mean"), sem=("value", "sem")
    )
    return means.assign(reach=COVERED * means["sem"].fillna(0)) if len(means) else means
