"""How much is removed when: the authors' schedule, others, and how layers take turns.

From the authors' code of LoRAPrune; the paper gives no schedule.
"""

import math
from collections.abc import Callable

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill [0, 1) more evenly than any other's

# Shares of the whole ------------------------------------------------------------------------------


def cubic_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The share removed after `step` of `steps`: $S (1 - (1 - \tau)^3)$, fast first.

    $\tau$ runs from 0 to 1 between warm-up and cool-down, shares of the steps before and after
    it. From the authors' code; the paper gives no schedule.
    """
    return share * (1 - (1 - _progress(step, steps, warmup, cooldown)) ** 3)


def linear_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The share removed after `step` of `steps`: $S \tau$, with the times of `cubic_share`."""
    return share * _progress(step, steps, warmup, cooldown)


def one_shot_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    """The whole share once the warm-up is over, and at the last step at the latest."""
    return share if step > warmup * steps or step >= steps else 0.0


def at_end_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    """The whole share at the last step: tuned first, pruned after, which nothing recovers from."""
    return share if step >= steps else 0.0


SCHEDULES: dict[str, Callable[..., float]] = {
    **{"cubic": cubic_share, "linear": linear_share},
    **{"one-shot": one_shot_share, "at-end": at_end_share},
}


def _progress(step: int, steps: int, warmup: float, cooldown: float) -> float:
    if step > steps - cooldown * steps or step >= steps:
        return 1.0
    return min(1.0, max(0.0, (step - warmup * steps) / (steps - (warmup + cooldown) * steps)))


# Groups of one family -----------------------------------------------------------------------------


def offsets(count: int) -> list[float]:
    """(count,) numbers evenly spread in (0, 1), those of neighbours far apart.

    The ranks of the multiples of the golden ratio, so that layers next to each other are not cut
    one right after the other.
    """
    turned = [number * GOLDEN % 1 for number in range(count)]
    order = sorted(range(count), key=turned.__getitem__)
    places = {number: place for place, number in enumerate(order)}
    return [(places[number] + 0.5) / count for number in range(count)]


def staggered_count(final: int, fraction: float, offset: float) -> int:
    """How many of a family's `final` groups are gone once `fraction` of all is to be gone.

    Rounding is down, after the family's own offset of [0, 1) is added: nothing is gone at 0, all
    of `final` at 1, and families with the `offsets` of their number come, in sum, as near to the
    fraction as whole groups can. This project's choice: a layer of a model with grouped-query
    attention has few groups of heads, and without offsets all layers would lose theirs at once.
    """
    return min(final, math.floor(final * fraction + offset + 1e-9))
