"""The table of comparisons: which function of a peer, which call of ours, and how they relate."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tests.parity import ours, theirs
from tests.parity.inputs import Inputs
from tests.parity.ours import merge
from tests.parity.pitfalls import GIVEN, PITFALLS, attempt
from tipmini_lab.book.parity import BITS, DIFFERS, ROUNDING

Side = Callable[[Inputs], Sequence[Tensor] | str]  # tensors, or words on what happened


@dataclass(frozen=True)
class Comparison:
    """One row of the table; it counts a case for every one of its inputs.

    apart: the largest ||theirs - ours|| / ||theirs|| that is still rounding, 0 for the same bits;
    or, of what differs, why, in one sentence.
    """

    peer: str
    function: str
    theirs: Side
    mine: Side
    inputs: Sequence[Inputs]
    apart: float | str = 0.0
    call: str = ""  # of ours, where it does not say it itself

    @property
    def ours(self) -> str:
        return self.call or str(self.mine)

    @property
    def reason(self) -> str:
        return self.apart if isinstance(self.apart, str) else ""

    @property
    def within(self) -> float:
        return 0.0 if self.reason else self.apart

    @property
    def relation(self) -> str:
        return DIFFERS if self.reason else ROUNDING if self.within else BITS


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
ONE_TIED = grid([SQUARE], [(1.0,)], tied=True)
ONE_LEAST = grid([SQUARE], [(1.0,)], [0.001])
TINY = grid([LLAMA], [PLAIN, SIGNED])
FEW = grid([SQUARE], [SIGNED], [0.3, 0.5])
FEW_EQUAL = grid([SQUARE], [PLAIN], [0.3, 0.5])
# For singular vectors: a rank that leaves no room for null ones, or that reaches all channels.
FULL = grid([SMALL], [PLAIN, SIGNED], [0.5])
WIDE = grid([SMALL, TALL], [SEVEN], [0.5])
LOW = grid([((24, 12), 4)], [SEVEN], [0.5])
FEW_TINY = grid([LLAMA], [PLAIN, SIGNED], [0.5])

# Reasons that several rows share ---------------------------------------------------------------
AUTHORS = "the authors trim over the whole adapter, the others each tensor by itself"
ELECTION = "PEFT elects before it weights and divides by the count, mergekit the other way round"
TIES_AT_THE_CUT = "equal magnitudes at the cut: the peer keeps any of them, tipmini the later ones"
UNEVEN_COUNT = "no whole number stays: PEFT rounds the kept elements down, tipmini the pruned ones"

A_LOT = 1e-4  # where an SVD or a solver stands between
LITTLE = 1e-6

on_delta = partial(merge, on="delta")


# The table -------------------------------------------------------------------------------------
def _listed(options: dict[str, object]) -> str:
    return "".join(f", {key}={value!r}" for key, value in options.items())


def _peft() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, *given, **options):
        side = partial(theirs.peft_function, name=name, **options)
        return Comparison("peft", f"merge_utils.{name}{_listed(options)}", side, mine, *given)

    by_sum = "tipmini elects by the sum, as the paper does, and not by counting the adapters' signs"
    yield row("task_arithmetic", merge("cat"), RANDOM, LITTLE)
    yield row("ties", on_delta("ties"), RANDOM + OPPOSED)
    yield row("ties", on_delta("ties"), TIED, TIES_AT_THE_CUT)
    yield row("ties", on_delta("ties"), RANDOM, by_sum, majority_sign_method="frequency")
    yield row("dare_linear", on_delta("dare"), RANDOM + TIED, LITTLE)
    yield row("dare_ties", on_delta("dare_ties"), RANDOM + TIED)
    yield row("magnitude_prune", on_delta("magnitude"), WHOLE, LITTLE)
    yield row("magnitude_prune", on_delta("magnitude"), UNEVEN, UNEVEN_COUNT)
    yield row("magnitude_prune", on_delta("magnitude"), TIED, TIES_AT_THE_CUT)
    yield row("ties", on_delta("ties", variant="authors"), FEW_EQUAL, AUTHORS)
    yield row("ties", on_delta("ties", variant="mergekit"), FEW, ELECTION)
    l1 = merge("dare", rescale="l1", on="delta")
    yield row("dare_linear", l1, FEW, "PEFT rescales by 1 / density, mergekit by L1")


def _peft_adapters() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, apart: float | str = 0.0):
        see = "factors" if mine.see == "factors" else "update"
        side = partial(theirs.weighted, combination=name, see=see)
        given = FEW_TINY if isinstance(apart, str) else TINY
        return Comparison("peft", f"add_weighted_adapter, {name!r}", side, mine, given, apart)

    own = {"linear": "linear", "cat": "cat", "ties": "ties", "dare_linear": "dare"}
    own |= {"dare_ties": "dare_ties", "magnitude_prune": "magnitude"}
    for name, method in own.items():
        yield row(name, merge(method, "factors"))
    yield row("svd", merge("svd", "cut"), A_LOT)
    for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune"):
        yield row(f"{name}_svd", on_delta(own[name], "cut"), A_LOT)
    cross = "sums of factors multiply to cross terms of different adapters; cat is the exact sum"
    yield row("linear", merge("cat"), cross)
    apart = "PEFT drops elements of A and B, the authors drop elements of the delta"
    yield row("dare_linear", on_delta("dare"), apart)
    apart = "PEFT trims and elects for A and B, the authors for the delta"
    yield row("ties", on_delta("ties"), apart)


def _mergekit() -> Iterable[Comparison]:
    def row(name: str, mine: ours.Merge, *given, **parameters):
        side = partial(theirs.mergekit, method=name, **parameters)
        function = f"merge_tensors, {name!r}{_listed(parameters)}"
        return Comparison("mergekit", function, side, mine, *given)

    def one(name: str, norm: str | None, mine: ours.Merge, inputs=ONE, apart: float | str = 0.0):
        side = partial(theirs.sparsify, name=name, norm=norm)
        return Comparison("mergekit", f"sparsify.{name}, {norm}", side, mine, inputs, apart)

    magnitude, plain = on_delta("magnitude"), on_delta("dare", rescale=None)
    yield one("magnitude", None, magnitude)
    yield one("magnitude", None, magnitude, ONE_TIED, TIES_AT_THE_CUT)
    yield one("magnitude", "l1", magnitude, ONE, "tipmini never rescales what it trims")
    least = "mergekit keeps one element however small the density, tipmini floor(k n)"
    yield one("magnitude", None, on_delta("ties"), ONE_LEAST, least)
    yield one("bernoulli", None, plain)
    yield one("bernoulli", "l1", on_delta("dare", rescale="l1"), ONE, LITTLE)
    expected = "mergekit restores the L1 norm of the draw, the authors the expectation"
    yield one("bernoulli", "l1", on_delta("dare"), ONE, expected)

    yield row("task_arithmetic", merge("cat"), RANDOM, LITTLE)
    ties = on_delta("ties", variant="mergekit")
    yield row("ties", ties, RANDOM + OPPOSED)
    yield row("ties", ties, TIED, TIES_AT_THE_CUT)
    dare_ties = merge("dare_ties", variant="mergekit", on="delta", rescale="l1")
    yield row("dare_ties", dare_ties, RANDOM + TIED, LITTLE, normalize=True)
    undivided = "mergekit's dare_ties adds what agrees up, without dividing by its weights"
    yield row("dare_ties", dare_ties, FEW, undivided)
    yield row("dare_linear", on_delta("dare", rescale="l1"), RANDOM + TIED, LITTLE)
    yield row("dare_linear", on_delta("dare"), FEW, expected)
    yield row("ties", on_delta("ties", variant="authors"), FEW_EQUAL, AUTHORS)
    yield row("ties", on_delta("ties", variant="peft"), FEW, ELECTION)


def _fusion_bench() -> Iterable[Comparison]:
    row = partial(Comparison, "fusion-bench")
    authors = on_delta("ties", variant="authors")
    mean, ties = partial(theirs.fusion_ties, merge_func="mean"), "ties_merging, {!r}"
    yield row(ties.format("mean"), mean, authors, EQUAL + EQUAL_TIED + OPPOSED)
    for name, what in (("sum", "the sum"), ("max", "the largest")):
        side = partial(theirs.fusion_ties, merge_func=name)
        reason = f"{what} of what agrees; tipmini averages, as the paper does"
        yield row(ties.format(name), side, authors, EQUAL, reason)
    for variant in ("peft", "mergekit"):
        yield row(ties.format("mean"), mean, on_delta("ties", variant=variant), FEW_EQUAL, AUTHORS)
    for rescale, mine in ((True, on_delta("dare")), (False, on_delta("dare", rescale=None))):
        drop = f"param_random_drop_, rescale={rescale}"
        yield row(drop, partial(theirs.fusion_dare, rescale=rescale), mine, ONE)
    regmean, name = theirs.fusion_regmean, "merging_with_regmean_weights"
    for shrink in (0.0, 0.9, 1.0):
        mine = merge("regmean", shrink=shrink)
        yield row(f"{name}, {shrink}", partial(regmean, ratio=shrink), mine, EQUAL, A_LOT)
    side = partial(regmean, ratio=0.9, whole=True)
    yield row(f"{name} of whole weights, 0.9", side, merge("regmean"), EQUAL, A_LOT)
    for scaled, name in ((True, "S V"), (False, "V")):
        call, mine = (
            f"subspace_alignment, then PEFT's ties of {name}",
            merge("knots", scaled=scaled),
        )
        yield row(call, partial(theirs.fusion_knots, scaled=scaled), mine, RANDOM, A_LOT)


def _fusion_bench_subspaces() -> Iterable[Comparison]:
    row = partial(Comparison, "fusion-bench")
    tsv, iso = "TSVM_utils.compute_and_sum_svd_mem_reduction", "iso_utils.iso_c"
    yield row(tsv, theirs.fusion_tsv, merge("tsv"), FULL, A_LOT)
    null = "the peer turns the vectors by arbitrary ones of the singular value 0, tipmini has none"
    yield row(tsv, theirs.fusion_tsv, merge("tsv"), FEW, null)
    yield row(iso, theirs.fusion_iso, merge("iso"), WIDE, A_LOT)
    zeros = "the peer's mean has the values 0 in it, and makes them as large; tipmini leaves them 0"
    yield row(iso, theirs.fusion_iso, merge("iso"), FEW, zeros)
    name = "wudi_merging, {} steps on {} times the deltas"
    for steps, times, apart in (
        (5000, 0.001, A_LOT),
        (300, 1, "300 steps of 1e-5 end near the sum where they start; tipmini's is the minimum"),
    ):
        side = partial(theirs.fusion_wudi, steps=steps, times=times)
        yield row(name.format(steps, times), side, merge("wudi"), LOW, apart)


def _loralib() -> Iterable[Comparison]:
    for function, side, call, mine, within in (
        ("scaling", theirs.lora_scaling, "load_adapter(...).scaling", ours.stored_scaling, 0.0),
        ("eval() merges", theirs.lora_merged, "W + delta(module)", ours.merged_weight, 0.0),
        ("forward", theirs.lora_forward, "x (W + delta)^T", ours.answers, LITTLE),
    ):
        yield Comparison("loralib", f"Linear, {function}", side, mine, ONE, within, call)


def _pitfalls() -> Iterable[Comparison]:
    for situation, theirs_does, call, ours_does, policy in PITFALLS:
        sides = [lambda _, work=work: attempt(work) for work in (theirs_does, ours_does)]
        function = f"add_weighted_adapter, {situation}"
        yield Comparison("peft", function, *sides, (GIVEN,), policy, call)


COMPARISONS: tuple[Comparison, ...] = (
    *_peft(),
    *_peft_adapters(),
    *_pitfalls(),
    *_mergekit(),
    *_fusion_bench(),
    *_fusion_bench_subspaces(),
    *_loralib(),
)
