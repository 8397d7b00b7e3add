"""The table of merge methods and presets; read without torch.

To add a method, write its function, from parts (the adapters with their weights) to an update, and
give it a row. Its keyword-only arguments are its options, and the first line of its docstring says
what it does.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from tipmini import source
from tipmini.errors import RULES, TOTAL, TipminiError, is_rule


@dataclass(frozen=True)
class Method:
    """place: "module:function". reference: of book/references.bib. needs: what must be told of
    each adapter's inputs, by the name of `merge`'s argument, "norms" or "grams"; "rows": the
    batches of `merge_blockwise`. What a dry run
    reckons with: cost, about how many nanoseconds it takes for each number that it changes and adds
    up; summed, how it puts factors together where no option says; whole, whether it takes all
    adapters' deltas of a module at once, not row by row."""

    place: str
    reference: str
    needs: str | None = None
    cost: float = 30
    summed: str = "linear"  # or "cat", "svd", "span": as cat, less what is null
    whole: bool = False

    @cached_property
    def summary(self) -> str:
        return source.summary(*self.place.split(":"))

    @cached_property
    def options(self) -> dict[str, object]:
        """{option: default}."""
        return {name: default for name, (_, default) in self._declared.items()}

    @cached_property
    def types(self) -> dict[str, tuple[str, ...]]:
        """{option: what it may be}, e.g. ("int", "None")."""
        return {name: types for name, (types, _) in self._declared.items()}

    @cached_property
    def _declared(self) -> dict[str, tuple[tuple[str, ...], object]]:
        return source.options(*self.place.split(":"))


METHODS = {
    "linear": Method("tipmini.methods.merge:sum_linear", "mangrulkar2022peft", cost=2),
    "cat": Method("tipmini.methods.merge:sum_cat", "mangrulkar2022peft", cost=1, summed="cat"),
    "svd": Method("tipmini.methods.merge:sum_svd", "mangrulkar2022peft", cost=1, summed="svd"),
    "dare": Method("tipmini.methods.baselines:merge_dare", "yu2024dare", cost=10),
    "ties": Method("tipmini.methods.baselines:merge_ties", "yadav2023ties", cost=35, whole=True),
    "dare_ties": Method(
        "tipmini.methods.baselines:merge_dare_ties", "yu2024dare", cost=25, whole=True
    ),
    "magnitude": Method(
        "tipmini.methods.baselines:merge_magnitude", "mangrulkar2022peft", cost=20, whole=True
    ),
    "wanda": Method("tipmini.methods.tip:merge_wanda", "sun2024wanda", needs="norms", cost=25),
    "tip": Method("tipmini.methods.tip:merge_tip", "yun2025tip", needs="norms", cost=30),
    "regmean": Method(
        "tipmini.methods.baselines:merge_regmean",
        "jin2023regmean",
        needs="grams",
        cost=1,
        summed="cat",
    ),
    "knots": Method(
        "tipmini.methods.baselines:merge_knots", "stoica2025knots", cost=40, summed="span"
    ),
    "tsv": Method("tipmini.methods.subspace:merge_tsv", "gargiulo2025tsv", cost=5, summed="span"),
    "iso": Method("tipmini.methods.subspace:merge_iso", "marczak2025iso", cost=5, summed="span"),
    "wudi": Method("tipmini.methods.subspace:merge_wudi", "cheng2025wudi", cost=5, summed="cat"),
}
# Methods that run the base model over rows of each adapter's task, and merge block by block: see
# `tipmini.methods.blockwise`. They need the base and unlabelled rows.
BY_BLOCK = {
    "regmean++": Method(
        "tipmini.methods.blockwise:regmean_block", "nguyen2025regmeanpp", needs="rows"
    ),
    "drift": Method("tipmini.methods.blockwise:drift_block", "jin2023regmean", needs="rows"),
    "layerwise": Method(
        "tipmini.methods.blockwise:layerwise_block", "xu2025prodistill", needs="rows"
    ),
}
# Commands that train on rows of each adapter's task: what they do, what they need, whose it is.
TRAINED = {
    "weigh": (
        "One coefficient an adapter and module of the exact sum, learned (after AdaMerging).",
        "base model, labelled rows, gradients",
        "yang2024adamerging",
    ),
    "distill": (
        "All factors taught to answer as each adapter does; recommended with its rows at hand.",
        "base model, unlabelled rows, gradients",
        "xu2025prodistill",
    ),
}
# What a method needs besides the adapters, in words.
NEEDS = {
    None: "adapters alone",
    "norms": "rows of its task",
    "grams": "rows of its task",
    "rows": "base model, unlabelled rows",
}
# Other tools' names of the same: PEFT's, mergekit's.
ALIASES = {
    "concatenation": "cat",
    "dare_linear": "dare",
    "magnitude_prune": "magnitude",
    "task_arithmetic": "cat",
}
# What TIP reads W of Eq. 1 as (its option `on`) -> the tensors of a module that are scored.
TARGETS = {"factors": ("a", "b"), "A": ("a",), "delta": ("delta",)}


@dataclass(frozen=True)
class Preset:
    """A method with some of its options set, and the weights that it is meant for."""

    method: str
    options: dict[str, object] = field(default_factory=dict)
    weights: str = "sum"


PRESETS: dict[str, Preset] = {
    "tip-printed": Preset("tip"),
    "tip-inverted": Preset("tip", {"sign": -1}),
    "tip-dlp": Preset("tip", {"shift_range": 0.3}),
    # Chosen on held-out train rows, among merges that need the adapters alone and draw nothing.
    "recommended": Preset("linear", weights="chosen"),
}
# The rule "chosen" by the number of adapters; the last also for more. One alone stays as it is; the
# others were chosen on held-out train rows of the tasks that were merged (few-2 to few-7).
CHOSEN = {1: "sum", 2: "0.7/T", 3: "1/T", 4: "0.7/T", 5: "0.35/T", 6: "0.35/T", 7: "0.35/T"}


def preset(method: str) -> Preset:
    """A preset by its name; a method's own is its defaults and weights of 1 each."""
    return PRESETS.get(method, Preset(ALIASES.get(method, method)))


def method_options(method: str) -> dict[str, object]:
    """{option: default} of a method or preset; raises TipminiError for an unknown one."""
    if method not in (*METHODS, *PRESETS, *ALIASES):
        known = ", ".join([*METHODS, *PRESETS])
        raise TipminiError(f"no merge method {method!r}; there are {known}")
    chosen = preset(method)
    return METHODS[chosen.method].options | chosen.options


def plain_rule(rule: str, count: int) -> str:
    """The rule itself, or of "chosen" the one for so many adapters."""
    return CHOSEN[min(count, max(CHOSEN))] if rule == "chosen" else rule


@dataclass(frozen=True)
class Total:
    """What weights add up to, shared out over the adapters' norms: "0.7/norm" by those of whole
    updates, "0.7/module-norm" by those of each module."""

    sum: float
    over: str


def total_over_norms(rule: str) -> Total | None:
    """None where the rule needs no norms: then each adapter has the same weight."""
    found = TOTAL.fullmatch(rule) if is_rule(rule) else None
    return Total(float(found[1]), found[2]) if found and found[2] != "T" else None


def equal_weight(rule: str, count: int) -> float:
    """The weight that a rule gives each of T = `count` adapters.

    "sum" is 1, "mean" 1 / T, "sqrt" 1 / sqrt(T), "0.7/T" what adds up to 0.7, and "chosen" the rule
    that `CHOSEN` has for T. Raises TipminiError for anything else, and for a total over norms.
    """
    if not is_rule(rule) or total_over_norms(rule):
        raise TipminiError(f"weights must be numbers, {RULES}, got {rule!r}")
    rule = plain_rule(rule, count)
    named = {"sum": 1.0, "mean": 1 / count, "sqrt": 1 / math.sqrt(count)}
    return named[rule] if rule in named else float(rule.removesuffix("/T")) / count
