"""What the options of merges may be: their words, their ranges, and what goes together.

Without torch, so that a dry run refuses what the merge itself would.
"""

from collections.abc import Callable, Mapping

from tipmini.errors import TipminiError, is_finite, is_number, require, require_share

Check = Callable[[str, object], None]  # (name, value); raises TipminiError

# What TIP reads W of Eq. 1 as -> the tensors of a module that are scored.
TARGETS = {"factors": ("a", "b"), "A": ("a",), "delta": ("delta",)}


def _one_of(*words: object) -> Check:
    return lambda name, value: require(name, value, words)


def _drop_rate(name: str, value: object) -> None:
    if not (is_number(value) and 0 <= value < 1):
        raise TipminiError(f"{name} must be a number in [0, 1), got {value!r}")


def _rescale(name: str, value: object) -> None:
    if value not in ("expected", "l1", None):
        raise TipminiError(f"{name} must be 'expected', 'l1' or None, got {value!r}")


def _scale(name: str, value: object) -> None:
    if not is_finite(value):
        raise TipminiError(f"{name} must be finite, got {value}")


def _shift_range(name: str, value: object) -> None:
    if not (is_number(value) and 0 <= value < float("inf")):
        raise TipminiError(f"{name} must be a finite number from 0 on, got {value}")


def _sign(name: str, value: object) -> None:
    if value not in (1, -1):
        raise TipminiError(f"{name} must be 1 (as printed) or -1 (inverted), got {value}")


def check_rank(rank: object) -> None:
    """Raise TipminiError unless the rank is a whole number from 1 on."""
    if not (isinstance(rank, int) and rank > 0):
        raise TipminiError(f"rank must be a whole number from 1 on, got {rank!r}")


CHECKS: dict[str, Check] = {
    "assignment": _one_of("layer", "mean", "shuffled"),
    "bounds": _one_of("clip", "mean_preserving"),
    "density": require_share,
    "drop_rate": _drop_rate,
    "group": _one_of("row", "matrix"),
    "layer": _one_of("block", "module", "factor"),
    "mean": _one_of("elements", "modules"),
    "normalized": _one_of("within", "across"),
    "on": _one_of("factors", "delta"),
    "rank": lambda _, value: value is None or check_rank(value),
    "rescale": _rescale,
    "scale": _scale,
    "scaled": _one_of(True, False),
    "score": _one_of("wanda", "magnitude", "random"),
    "shift_range": _shift_range,
    "shrink": require_share,
    "sign": _sign,
    "sparsity": require_share,
    "summation": _one_of("linear", "cat", "svd"),
    "variant": _one_of("peft", "authors", "mergekit"),
}
_SCORED = {"on": _one_of(*TARGETS), "rescale": _one_of(False, True)}
# Where a method takes other values than the rest.
OWN = {"tip": _SCORED, "wanda": _SCORED, "knots": {"variant": _one_of("peft", "mergekit")}}


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Raise TipminiError for a value that an option of the method can't have, and for options
    that do nothing together. Those not given are not looked at."""
    checks = CHECKS | OWN.get(method, {})
    for name, value in options.items():
        if name in checks:  # a method's own may be free
            checks[name](name, value)
    if "on" in options:
        _check_sum(options["on"], options.get("summation", "linear"), options.get("rank"))
    if options.get("variant") == "mergekit" and options.get("on", "delta") != "delta":
        raise TipminiError("variant 'mergekit' merges whole weights; it needs on='delta'")


def _check_sum(on: str, summation: str, rank: int | None) -> None:
    if on == "delta" and summation != "linear":
        raise TipminiError(f"on='delta' adds up exactly; summation={summation!r} is for factors")
    if rank is not None and on != "delta" and summation != "svd":
        raise TipminiError("rank is for on='delta' or summation='svd'; nothing else is cut")
