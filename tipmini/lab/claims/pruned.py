"""Checks of LoRAPrune's sentences from the numbers it prints, and from shapes."""

from collections.abc import Iterator, Sequence

from tipmini.lab.claims.declared import Verdict
from tipmini.lab.claims.evidence import Evidence, Finding

NAMES = {
    **{"wikitext2": "WikiText2", "ptb": "PTB", "gigabytes": "GPU memory, GB"},
    **{"llm_pruner": "LLM-Pruner", "loraprune": "LoRAPrune", "loraprune_8bit": "LoRAPrune (8-bit)"},
    **{"vanilla": "vanilla", "lora_guided": "LoRA-guided"},
    "lora_guided_8bit": "LoRA-guided (8-bit)",
}
DECIMALS = {"perplexity": 2, "memory": 1}
A100 = 80  # gigabytes of the GPU that the introduction names


# Printed cells ------------------------------------------------------------------------------


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


# Numbers of the text that can be set beside each other ------------------------------------------


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


# Counts from shapes -------------------------------------------------------------------------


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


# Elsewhere ----------------------------------------------------------------------------------


def as_cited(evidence: Evidence, *, printed: float, work: str) -> Finding:
    """Whether a number that is given of another work is that work's own."""
    record = evidence.records["cited"][work]
    verdict = Verdict.HOLDS if record["value"] == printed else Verdict.DOES_NOT_HOLD
    return Finding(verdict, f"{record['value']}{record['unit']}", f"By {record['source']}.")


def not_at_hand(evidence: Evidence, *, note: str) -> Finding:
    return Finding(Verdict.NOT_AT_HAND, "-", note)


CHECKS = (
    *(perplexity_gap, memory_share, below, unmerged_slower, as_speed),
    *(weights_of, weights_fit, intermediates, as_cited, not_at_hand),
)
