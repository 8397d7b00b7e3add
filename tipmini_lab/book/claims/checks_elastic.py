"""The claims on LoNAS, Shears and SQFT: cells of the printed tables, and the stored networks."""

from functools import cache

import numpy as np
import pandas as pd

from tipmini_lab.book import elastic_tables
from tipmini_lab.book.claims.checks import NEAR, Evidence, NotMeasured, here, in_print
from tipmini_lab.book.tables import p_text
from tipmini_lab.experiments import elastic
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import Verdict

PROFILE = "mini"
MEASURE = f"Not measured: `tipmini measure --group {elastic.FILE.stem}`."


@in_print
def relative(evidence: Evidence, *, table: str, of: str, against: str = "LoRA") -> dict:
    """A score over another, both printed numbers, in per cent."""
    rows = evidence.printed["elastic"][table]["rows"]
    new, old = rows[of]["score"], rows[against]["score"]
    value = 100 * new / old
    words = "Recomputed from the table's own scores."
    return {"value": value, "shown": f"{new} / {old} = {value:.1f}%", "words": words}


@in_print
def ratio_of_operations(evidence: Evidence, *, of: str, against: str = "LoRA") -> dict:
    """A ratio of operations, all printed numbers, beside the speed-up."""
    rows = evidence.printed["elastic"]["table1"]["rows"]
    new, old = rows[of], rows[against]
    value = old["tflops"] / new["tflops"]
    most = (old["tflops"] + 0.05) / (new["tflops"] - 0.05)
    shown = f"{old['tflops']} / {new['tflops']} = {value:.2f}, by rounding at most {most:.2f}"
    within = new["speedup"] <= most
    told = "which operations alone can give" if within else "more than operations alone give"
    return {
        "value": within,
        "shown": shown,
        "words": f"The printed number is {new['speedup']:.2f} ×, {told}.",
    }


@in_print
def nonzero_left(evidence: Evidence) -> dict:
    """What is left of LLaMA-13B where the blocks' matrices are pruned, Table 3, and the sizes of an
    adapter beside it, in millions, with which every row rounds to its printed number."""
    width, hidden, blocks, table = 5120, 13824, 40, 32000 * 5120
    pruned = blocks * (4 * width**2 + 3 * width * hidden)
    rows = evidence.printed["elastic"]["table3"]["rows"].values()
    sparse = [row for row in rows if "sparsity" in row]
    left = [(2 * table + (1 - row["sparsity"] / 100) * pruned) / 1e9 for row in sparse]
    room = [1e3 * (row["nonzero_b"] - one) for row, one in zip(sparse, left, strict=True)]
    least, most = max(0, *(gap - 50 for gap in room)), min(gap + 50 for gap in room)
    words = "Of the blocks' matrices of LLaMA-13B, embeddings left whole."
    shown = ", ".join(f"{one:.2f}B" for one in left)
    return {"both": least < most, "least": least, "most": most, "shown": shown, "words": words}


@cache
def _rows() -> pd.DataFrame:
    declared = elastic.experiments(load_profile(PROFILE))
    return elastic_tables.rows(elastic_tables.read(declared), declared)


@cache
def _stored() -> tuple[pd.DataFrame, pd.DataFrame, float | None]:
    declared = elastic.experiments(load_profile(PROFILE))
    found = elastic_tables.read(declared)
    models = elastic_tables.models(found, declared)
    return elastic_tables.tested(_rows()), models, elastic_tables.full_tuning(found)


@here
def scores(evidence: Evidence, *, of: str, against: str) -> dict:
    """A model's score beside another's by the chapter's test: `better`; `no_worse`, which asks that
    the interval keeps within `NEAR` below."""
    own = _stored()[0].set_index(["name", "against"]).loc[(of, against)]
    if own.verdict == Verdict.MISSING:
        raise NotMeasured(MEASURE)
    points = f"{100 * own.value:+.1f} points [{100 * own.low:+.1f}, {100 * own.high:+.1f}]"
    return {
        "better": own.verdict == Verdict.BETTER,
        "no_worse": own.verdict != Verdict.WORSE and own.low > -NEAR,
        "shown": f"{points}, p {p_text(own.corrected)}",
        "words": f"{of} against {against}, by {{numref}}`tab-elastic-questions`.",
    }


@here
def together(evidence: Evidence) -> dict:
    """Whether half of the weights and 4 bits together cost less than both apart."""
    found = elastic_tables.interaction(_rows())
    if found is None:
        raise NotMeasured(MEASURE)
    points = f"{100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    words = "The score with both less what each costs by itself would leave; adapter beside."
    return {"better": found.low > 0, "shown": points, "words": words}


@here
def sizes(evidence: Evidence, *, of: str, against: str) -> dict:
    """Whether a model is `smaller` than another, `faster`, both, or keeps as many zeros."""
    means = _stored()[1].groupby("model")[["parameters", "speed", "sparsity"]].mean()
    if not {of, against} <= {*means.dropna(subset="parameters").index}:
        raise NotMeasured(MEASURE)
    one, two = means.loc[of], means.loc[against]
    told = [f"{m.parameters / 1e6:.1f} M, {m.sparsity:.1%} zeros" for m in (one, two)]
    speed = "" if np.isnan(one.speed) else f"; {one.speed:.2f} times as fast as the base"
    return {
        "both": bool(one.parameters < two.parameters and one.speed > 1),
        "zeros": bool(one.sparsity >= two.sparsity),
        "filled": bool(one.sparsity < 0.01 < two.sparsity),
        "shown": f"{told[0]} against {told[1]}{speed}",
        "words": f"{of} against {against}, counted and timed.",
    }


@here
def cheaper(evidence: Evidence) -> dict:
    """How many times as fast a step is that trains the adapters alone."""
    ratio = _stored()[2]
    if ratio is None:
        raise NotMeasured(MEASURE)
    words = "Forward and backward of one batch, against the gradients of all weights as well."
    return {"value": ratio, "shown": f"{ratio:.2f} times as fast", "words": words}
