"""Accuracies of which only the share and the number of rows are known: errors, tests, counts."""

import math


def standard_error(share: float, rows: int) -> float:
    """Binomial standard error of a share of right rows."""
    return math.sqrt(share * (1 - share) / rows)


def z_score(first: float, second: float, rows: int) -> float:
    """(first - second) over its pooled standard error, both shares being of as many rows.

    The test for unpaired proportions: rows that both get right or both wrong are not known. Where
    two methods agree on many rows, a paired test would find smaller differences.
    """
    pooled = (first + second) / 2
    spread = math.sqrt(2) * standard_error(pooled, rows)
    return (first - second) / spread if spread else 0.0


def two_sided(z: float) -> float:
    """The chance of a standard normal number at least as far from 0."""
    return math.erfc(abs(z) / math.sqrt(2))


def whole_count(share: float, rows: int, digits: int = 4) -> int | None:
    """The number of right rows that prints as `share` to so many digits, or None."""
    nearest = round(share * rows)
    return nearest if round(nearest / rows, digits) == round(share, digits) else None


def by_accident(rows: int, digits: int = 4) -> float:
    """The share of all numbers of so many digits in [0, 1] that are a whole count over `rows`."""
    reached = {round(count / rows, digits) for count in range(rows + 1)}
    return len(reached) / (10**digits + 1)
