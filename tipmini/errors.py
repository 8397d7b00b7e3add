"""The one error that a user can mend, and the checks of options that raise it."""

from collections.abc import Iterable
from numbers import Real
from sys import float_info


class TipminiError(ValueError):
    """Something the user can put right: one line saying what, where, and what would be right.

    The command line prints it without a traceback and leaves with exit code 2.
    """


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
