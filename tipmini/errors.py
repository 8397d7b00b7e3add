"""The one error that a user can mend, and all that is refused before anything is computed.

Without torch, so that a dry run refuses what the merge itself would.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from sys import float_info
from typing import Any


class TipminiError(ValueError):
    """Something the user can put right: one line saying what, where, and what would be right.

    The command line prints it without a traceback and leaves with exit code 2.
    """


def printable(text: str) -> str:
    """The text with what a terminal would obey, and halves of characters, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require(what: str, value: object, known: Iterable) -> None:
    """Raise TipminiError unless the value is one of those known."""
    known = list(known)
    if value not in known:
        raise TipminiError(f"{what} must be one of {', '.join(map(str, known))}, got {value!r}")


def require_share(what: str, value: object) -> None:
    """Raise TipminiError unless the value is a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise TipminiError(f"{what} must lie in [0, 1], got {value!r}")


def is_number(value: object) -> bool:
    """What a file of options may hold in place of a number is no number: a text, yes, no."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """A number that a float holds: no NaN, no Inf, no whole number of a thousand digits."""
    return is_number(value) and abs(value) <= float_info.max


# What the options of merges may be: their words, their ranges, and what goes together -------------
Check = Callable[[str, object], None]  # (name, value); raises TipminiError


def _one_of(*words: object) -> Check:
    return lambda name, value: require(name, value, words)


def _must_be(what: str, holds: Callable[[Any], bool]) -> Check:
    def check(name: str, value: object) -> None:
        if not holds(value):
            raise TipminiError(f"{name} must be {what}, got {value!r}")

    return check


_COUNT = _must_be(
    "a whole number from 1 on",
    lambda count: isinstance(count, int) and not isinstance(count, bool) and count > 0,
)
check_rank = partial(_COUNT, "rank")
CHECKS: dict[str, Check] = {
    "assignment": _one_of("layer", "mean", "shuffled"),
    "balance": _must_be("a finite number from 0 on", lambda p: is_finite(p) and p >= 0),
    "bounds": _one_of("clip", "mean_preserving"),
    "correction": require_share,
    "density": require_share,
    "drop_rate": _must_be("a number in [0, 1)", lambda p: is_number(p) and 0 <= p < 1),
    "epochs": _COUNT,
    "group": _one_of("row", "matrix"),
    "isotropic": _one_of(True, False),
    "layer": _one_of("block", "module", "factor"),
    "learning_rate": _must_be("a finite number above 0", lambda r: is_finite(r) and r > 0),
    "mean": _one_of("elements", "modules"),
    "normalized": _one_of("within", "across"),
    "on": _one_of("factors", "delta"),
    "parts": _COUNT,
    "rank": lambda _, value: value is None or check_rank(value),
    "rescale": _must_be("'expected', 'l1' or None", lambda r: r in ("expected", "l1", None)),
    "ridge": _must_be("a finite number from 0 on", lambda r: is_finite(r) and r >= 0),
    "scale": _must_be("finite", is_finite),
    "scaled": _one_of(True, False),
    "score": _one_of("wanda", "magnitude", "random"),
    "shift_range": _must_be("a finite number from 0 on", lambda r: is_finite(r) and r >= 0),
    "shrink": require_share,
    "sign": _must_be("1 (as in Eq. 5) or -1 (inverted)", lambda sign: sign in (1, -1)),
    "sparsity": require_share,
    "summation": _one_of("linear", "cat", "svd"),
    "variant": _one_of("peft", "authors", "mergekit"),
}
_SCORED = {
    "group": _one_of("row", "matrix", "layer"),
    "on": _one_of("factors", "A", "delta"),
    "rescale": _one_of(False, True),
}
# Where a method takes other values than the rest.
OWN = {"tip": _SCORED, "wanda": _SCORED, "knots": {"variant": _one_of("peft", "mergekit")}}


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Raise TipminiError for a value that an option of the method can't have, and for options
    that do nothing together. Those not given are not looked at."""
    checks = CHECKS | OWN.get(method, {})
    for name, value in options.items():
        if name in checks:  # a method's own may be free
            checks[name](name, value)
    on, summation = options.get("on"), options.get("summation", "linear")
    if on == "delta" and summation != "linear":
        raise TipminiError(f"on='delta' adds up exactly; summation={summation!r} is for factors")
    if on and on != "delta" and summation != "svd" and options.get("rank") is not None:
        raise TipminiError("rank is for on='delta' or summation='svd'; nothing else is cut")
    if options.get("variant") == "mergekit" and options.get("on", "delta") != "delta":
        raise TipminiError("variant 'mergekit' merges whole weights; it needs on='delta'")


RULES = "sum, mean, sqrt, chosen or a total such as 0.7/norm or 0.7/T"
TOTAL = re.compile(r"([0-9]{0,9}\.?[0-9]{1,9})/(T|norm|module-norm)")


def is_rule(text: str) -> bool:
    """Whether weights are told by a rule that there is."""
    total = TOTAL.fullmatch(text)
    return text in ("sum", "mean", "sqrt", "chosen") or (total is not None and float(total[1]) > 0)


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Raise TipminiError for a weight that RegMean can't take; by the adapters' names."""
    for name, weight in weights.items():
        if weight < 0:
            raise TipminiError(f"regmean needs weights from 0 on, adapter {name} has {weight}")


# Whether what is merged fits together, told by names and shapes alone -----------------------------
def check_shapes(module: str, factors: Mapping[str, Any]) -> None:
    """factors: of one module, with its delta's shape (d, k), by the adapters that have it."""
    shapes = {name: pair.shape for name, pair in factors.items()}
    if len(set(shapes.values())) > 1:
        raise TipminiError(f"adapters of different base models: {module} is {_listed(shapes)}")


def check_ranks(module: str, factors: Mapping[str, Any]) -> None:
    """What adding factors up asks for."""
    ranks = {name: pair.rank for name, pair in factors.items()}
    if len(set(ranks.values())) > 1:
        raise TipminiError(f"linear needs equal ranks, {module} has {_listed(ranks)}; try cat")


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{value} in {name}" for name, value in values.items())


def input_norm(norms: Mapping[str, Any], module: str, name: str, channels: int) -> Any:
    """The norms of what a tensor of the module reads: A x for B, x for everything else."""
    key = f"{module}.lora_B" if name == "b" else module
    shape = tuple(norms[key].shape) if key in norms else "nothing"
    if shape != (channels,):
        raise TipminiError(
            f"norms need {(channels,)} under {key!r}, got {shape}; use calibrate_adapter"
        )
    return norms[key]


def input_gram(grams: Mapping[str, Any] | None, module: str, channels: int) -> Any:
    """The Gram matrix of what the module reads."""
    found, need = (grams or {}).get(module), (channels, channels)
    if found is None:
        raise TipminiError(f"regmean needs the Gram matrix of {module}; calibrate with 'gram'")
    if found.shape != need:
        raise TipminiError(f"{module} needs a finite Gram matrix {need}, got {tuple(found.shape)}")
    return found
