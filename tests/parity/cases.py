"""The table of comparisons: which function of a peer, which call of ours, and how they relate."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.parity import ours, theirs
from tests.parity.inputs import Inputs
from tests.parity.ours import merge
from tests.parity.pitfalls import GIVEN, PITFALLS, attempt
from tests.parity.theirs import Side
from tipmini_lab.book.parity import BITS, DIFFERS, ROUNDING


@dataclass(frozen=True)
class Comparison:
    """One row of the table; it counts a case for every one of its inputs.

    within: for "to rounding", the largest ||theirs - ours|| / ||theirs|| that is still rounding.
    reason: for "differs", why, in one sentence. A side gives tensors, or words on what happened.
    """

    peer: str
    function: str
    ours: str
    relation: str
    inputs: Sequence[Inputs]
    theirs: Side
    mine: Side
    within: float = 0.0
    reason: str = ""


# Inputs ----------------------------------------------------------------------------------------

PLAIN, SIGNED = (1.0, 1.0, 1.0), (0.5, -1.0, 0.3)
SEVEN = (0.7, 1.2, -0.2, 0.4, 1.0, -0.5, 0.1)
SQUARE, TALL, SMALL = ((24, 40), 4), ((64, 16), 8), ((10, 30), 3)
LLAMA = ((40, 40), 5)  # a hidden size of 40 and half as many values


def grid(
    shapes: Iterable[tuple] = (SQUARE, TALL),
    weights: Iterable[tuple] = (PLAIN, SIGNED, SEVEN),
    densities: Iterable[float] = (0.1, 0.3, 0.5, 0.9),
    **kind: bool,
) -> tuple[Inputs, ...]:
    every = enumerate(itertools.product(shapes, weights, densities))
    return tuple(Inputs(n, shape, rank, w, d, **kind) for n, ((shape, rank), w, d) in every)


RANDOM = grid()
WHOLE = grid([SQUARE, SMALL])  # shapes of which every density leaves a whole number
UNEVEN = grid([TALL], [PLAIN], [0.1, 0.3, 0.9])
TIED = grid([SQUARE], [PLAIN, SIGNED], tied=True)
EQUAL = grid(weights=[PLAIN])  # for peers that know no weights
EQUAL_TIED = grid([SQUARE], [PLAIN], tied=True)
OPPOSED = grid([SQUARE, TALL], [(1.0, 1.0)], [0.3, 0.5], opposed=True)  # every sum is 0
ONE = grid([SQUARE, SMALL], [(1.0,)])  # for functions of one tensor
TINY = grid([LLAMA], [PLAIN, SIGNED])
FEW = grid([SQUARE], [SIGNED], [0.3, 0.5])
FEW_EQUAL = grid([SQUARE], [PLAIN], [0.3, 0.5])
FEW_TINY = grid([LLAMA], [PLAIN, SIGNED], [0.5])

# Reasons that several rows share ---------------------------------------------------------------

AUTHORS = "the authors trim over the whole adapter, the others each tensor by itself"
ELECTION = "PEFT elects before it weights and divides by the count, mergekit the other way round"
TIES_AT_THE_CUT = "equal magnitudes at the cut: the peer keeps any of them, tipmini the later ones"
UNEVEN_COUNT = "no whole number stays: PEFT rounds the kept elements down, tipmini the pruned ones"

A_LOT = 1e-4  # where an SVD or a solver stands between
LITTLE = 1e-6

# The table -------------------------------------------------------------------------------------


def _peft() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, relation: str, inputs: tuple, *rest, **options):
        side = theirs.peft_function(name, **options)
        listed = "".join(f", {key}={value!r}" for key, value in options.items())
        return Comparison(
            "peft", f"merge_utils.{name}{listed}", str(mine), relation, inputs, side, mine, *rest
        )

    drop = {"rescale": "expected", "on": "delta"}
    yield row("task_arithmetic", merge("cat"), ROUNDING, RANDOM, LITTLE)
    yield row("ties", merge("ties", on="delta"), BITS, RANDOM + OPPOSED)
    yield row("ties", merge("ties", on="delta"), DIFFERS, TIED, 0.0, TIES_AT_THE_CUT)
    yield row(
        *("ties", merge("ties", on="delta"), DIFFERS, RANDOM, 0.0),
        "tipmini elects by the sum alone, as the paper does, never by counting signs",
        majority_sign_method="frequency",
    )
    yield row("dare_linear", merge("dare", on="delta"), ROUNDING, RANDOM + TIED, LITTLE)
    yield row("dare_ties", merge("dare_ties", on="delta"), BITS, RANDOM + TIED)
    magnitude = merge("magnitude", on="delta")
    yield row("magnitude_prune", magnitude, ROUNDING, WHOLE, LITTLE)
    yield row("magnitude_prune", magnitude, DIFFERS, UNEVEN, 0.0, UNEVEN_COUNT)
    yield row("magnitude_prune", magnitude, DIFFERS, TIED, 0.0, TIES_AT_THE_CUT)
    for other, given, why in (("authors", FEW_EQUAL, AUTHORS), ("mergekit", FEW, ELECTION)):
        yield row("ties", merge("ties", on="delta", variant=other), DIFFERS, given, 0.0, why)
    l1 = merge("dare", **drop | {"rescale": "l1"})
    yield row("dare_linear", l1, DIFFERS, FEW, 0.0, "PEFT rescales by 1 / density, mergekit by L1")


def _peft_adapters() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, relation: str, *rest, inputs=TINY):
        side = theirs.weighted(name, "factors" if mine.see == "factors" else "update")
        function = f"add_weighted_adapter, {name!r}"
        return Comparison("peft", function, str(mine), relation, inputs, side, mine, *rest)

    yield row("linear", merge("linear", "factors"), BITS)
    yield row("cat", merge("cat", "factors"), BITS)
    yield row("ties", merge("ties", "factors"), BITS)
    yield row("dare_linear", merge("dare", "factors"), BITS)
    yield row("dare_ties", merge("dare_ties", "factors"), BITS)
    yield row("magnitude_prune", merge("magnitude", "factors"), BITS)
    yield row("svd", merge("svd", "cut"), ROUNDING, A_LOT)
    yield row("ties_svd", merge("ties", "cut", on="delta"), ROUNDING, A_LOT)
    yield row("dare_linear_svd", merge("dare", "cut", on="delta"), ROUNDING, A_LOT)
    yield row("dare_ties_svd", merge("dare_ties", "cut", on="delta"), ROUNDING, A_LOT)
    yield row("magnitude_prune_svd", merge("magnitude", "cut", on="delta"), ROUNDING, A_LOT)
    cross = "sums of factors multiply to cross terms of different adapters; cat is the exact sum"
    yield row("linear", merge("cat"), DIFFERS, 0.0, cross, inputs=FEW_TINY)
    apart = "PEFT drops elements of A and B, the authors drop elements of the delta"
    yield row("dare_linear", merge("dare", on="delta"), DIFFERS, 0.0, apart, inputs=FEW_TINY)
    apart = "PEFT trims and elects for A and B, the authors for the delta"
    yield row("ties", merge("ties", on="delta"), DIFFERS, 0.0, apart, inputs=FEW_TINY)


def _mergekit() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, relation: str, inputs: tuple, *rest, **parameters):
        listed = "".join(f", {key}={value!r}" for key, value in parameters.items())
        side = theirs.mergekit(name, **parameters)
        function = f"merge_tensors, {name!r}{listed}"
        return Comparison("mergekit", function, str(mine), relation, inputs, side, mine, *rest)

    def one(name: str, norm: str | None, mine: ours.Merge, relation: str, *rest, inputs=ONE):
        function, side = f"sparsify.{name}, {norm}", theirs.sparsify(name, norm)
        return Comparison("mergekit", function, str(mine), relation, inputs, side, mine, *rest)

    magnitude, plain = merge("magnitude", on="delta"), merge("dare", on="delta", rescale=None)
    yield one("magnitude", None, magnitude, BITS)
    tied_one = grid([SQUARE], [(1.0,)], tied=True)
    yield one("magnitude", None, magnitude, DIFFERS, 0.0, TIES_AT_THE_CUT, inputs=tied_one)
    yield one("magnitude", "l1", magnitude, DIFFERS, 0.0, "tipmini never rescales what it trims")
    least = "mergekit keeps one element however small the density, tipmini floor(k n)"
    yield one(
        *("magnitude", None, merge("ties", on="delta"), DIFFERS, 0.0, least),
        inputs=grid([SQUARE], [(1.0,)], [0.001]),
    )
    yield one("bernoulli", None, plain, BITS)
    yield one("bernoulli", "l1", merge("dare", on="delta", rescale="l1"), ROUNDING, LITTLE)
    expected = "mergekit restores the L1 norm of the draw, the authors the expectation"
    yield one("bernoulli", "l1", merge("dare", on="delta"), DIFFERS, 0.0, expected)

    yield row("task_arithmetic", merge("cat"), ROUNDING, RANDOM, LITTLE)
    ties = merge("ties", on="delta", variant="mergekit")
    yield row("ties", ties, BITS, RANDOM + OPPOSED)
    yield row("ties", ties, DIFFERS, TIED, 0.0, TIES_AT_THE_CUT)
    l1 = {"on": "delta", "rescale": "l1"}
    dare_ties = merge("dare_ties", variant="mergekit", **l1)
    yield row("dare_ties", dare_ties, ROUNDING, RANDOM + TIED, LITTLE, normalize=True)
    undivided = "mergekit's dare_ties adds what agrees up, without dividing by its weights"
    yield row("dare_ties", dare_ties, DIFFERS, FEW, 0.0, undivided)
    yield row("dare_linear", merge("dare", **l1), ROUNDING, RANDOM + TIED, LITTLE)
    yield row("dare_linear", merge("dare", on="delta"), DIFFERS, FEW, 0.0, expected)
    for other, given, why in (("authors", FEW_EQUAL, AUTHORS), ("peft", FEW, ELECTION)):
        yield row("ties", merge("ties", on="delta", variant=other), DIFFERS, given, 0.0, why)


def _fusion_bench() -> Iterable[Comparison]:
    def row(function: str, side: Side, mine: object, relation: str, inputs: tuple, *rest):
        return Comparison("fusion-bench", function, str(mine), relation, inputs, side, mine, *rest)

    authors = merge("ties", on="delta", variant="authors")
    mean, ties = theirs.fusion_ties("mean"), "ties_merging, {!r}"
    yield row(ties.format("mean"), mean, authors, BITS, EQUAL + EQUAL_TIED + OPPOSED)
    for name, reason in (
        ("sum", "the sum of what agrees; tipmini averages, as the paper does"),
        ("max", "the largest of what agrees; tipmini averages, as the paper does"),
    ):
        side = theirs.fusion_ties(name)
        yield row(ties.format(name), side, authors, DIFFERS, EQUAL, 0.0, reason)
    for variant in ("peft", "mergekit"):
        other = merge("ties", on="delta", variant=variant)
        yield row(ties.format("mean"), mean, other, DIFFERS, FEW_EQUAL, 0.0, AUTHORS)
    dare, plain = merge("dare", on="delta"), merge("dare", on="delta", rescale=None)
    drop = "param_random_drop_, rescale={}"
    yield row(drop.format(True), theirs.fusion_dare(True), dare, BITS, ONE)
    yield row(drop.format(False), theirs.fusion_dare(False), plain, BITS, ONE)
    for shrink in (0.0, 0.9, 1.0):
        mine, name = merge("regmean", shrink=shrink), f"merging_with_regmean_weights, {shrink}"
        yield row(name, theirs.fusion_regmean(shrink), mine, ROUNDING, EQUAL, A_LOT)
    mine, name = merge("regmean"), "merging_with_regmean_weights of whole weights, 0.9"
    yield row(name, theirs.fusion_regmean(0.9, whole=True), mine, ROUNDING, EQUAL, A_LOT)
    for scaled, name in ((True, "S V"), (False, "V")):
        call, mine = (
            f"subspace_alignment, then PEFT's ties of {name}",
            merge("knots", scaled=scaled),
        )
        yield row(call, theirs.fusion_knots(scaled), mine, ROUNDING, RANDOM, A_LOT)


def _loralib() -> Iterable[Comparison]:
    for function, side, name, mine, relation, within in (
        ("scaling", theirs.lora_scaling, "load_adapter(...).scaling", ours.stored_scaling, BITS, 0),
        ("eval() merges", theirs.lora_merged, "W + delta(module)", ours.merged_weight, BITS, 0),
        ("forward", theirs.lora_forward, "x (W + delta)^T", ours.answers, ROUNDING, LITTLE),
    ):
        call = f"Linear, {function}"
        yield Comparison("loralib", call, name, relation, ONE, side, mine, within)


def _pitfalls() -> Iterable[Comparison]:
    for situation, theirs_does, call, ours_does, policy in PITFALLS:
        yield Comparison(
            *("peft", f"add_weighted_adapter, {situation}", call, DIFFERS, (GIVEN,)),
            theirs=lambda _, work=theirs_does: attempt(work),
            mine=lambda _, work=ours_does: attempt(work),
            reason=policy,
        )


COMPARISONS: tuple[Comparison, ...] = (
    *_peft(),
    *_peft_adapters(),
    *_pitfalls(),
    *_mergekit(),
    *_fusion_bench(),
    *_loralib(),
)
