"""The lines of Figure 3: perplexities of stored prunings against the share that is gone."""

import math
from collections.abc import Iterator, Mapping, Sequence

from tipmini.lab.bundles import Bundle
from tipmini.lab.pruning.comparisons import windows
from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.tables import UNPRUNED, Outcomes, cell, perplexity, seeds
from tipmini.lab.statistics import COVERED


def lines(
    outcomes: Outcomes,
    declared: Grid,
    runs: Mapping[str, Planned],
    wanted: Sequence[tuple[str, bool]],
    corpus: str,
) -> dict[str, tuple[list, list, list, list]]:
    """{title: (shares removed, perplexities, lows, highs)} of (method, tuned), from share 0 on."""
    found = {}
    for method, tuned in wanted:
        points = sorted(_points(outcomes, runs, method, tuned, corpus))
        if len(points) > 1:  # more than the unpruned model
            title = f"{declared.titles()[method]}{', fine-tuned' if tuned else ''}"
            found[title] = tuple(map(list, zip(*points, strict=True)))
    return found


def _points(
    outcomes: Outcomes, runs: Mapping[str, Planned], method: str, tuned: bool, corpus: str
) -> Iterator[tuple[float, float, float, float]]:
    """All seeds of a share together; tuned lines begin at what is tuned with nothing removed."""
    start = UNPRUNED if tuned else ("base", 0.0, False)
    shares = sorted({run.share for run in runs.values() if run.method == method} - {0.0})
    for wanted in (start, *((method, share, tuned) for share in shares)):
        every = seeds(outcomes, runs, *wanted)
        if bounds := _bounds(every, corpus):
            yield (every[0].facts.get("removed_share", 0.0), *bounds)


def _bounds(every: Sequence[Bundle], corpus: str) -> tuple[float, float, float] | None:
    """Perplexity and the ends of its 95% interval over the windows, losses averaged over seeds."""
    losses = windows(every, corpus)
    if losses is None:
        return None
    reach = COVERED * losses.std(ddof=1) / math.sqrt(len(losses))
    return tuple(math.exp(losses.mean() + sign * reach) for sign in (0, -1, 1))


def marks(outcomes: Outcomes, declared: Grid, corpus: str) -> dict[str, tuple[float, float]]:
    """The 2:4 models, which have half of the weights in other places."""
    return {
        semi.title: (0.5, perplexity(known)[0])
        for semi in declared.semi_structured
        if semi.name in outcomes and (known := cell(outcomes[semi.name], corpus))
    }
