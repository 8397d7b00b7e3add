"""The lines of Figure 3: perplexities of stored prunings against the share that is gone."""

from collections.abc import Iterator, Mapping, Sequence

from tipmini.lab.pruning.declared import Grid, Planned
from tipmini.lab.pruning.tables import Outcomes, cell, perplexity


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
    """Of seed 0, which every share has."""
    if "base" in outcomes and (known := cell(outcomes["base"], corpus)):
        yield (0.0, *perplexity(known))
    for run in runs.values():
        same = (run.method, run.tuned) == (method, tuned) and run.recipe and run.recipe.seed == 0
        if same and run.name in outcomes and (known := cell(outcomes[run.name], corpus)):
            yield (outcomes[run.name].facts["removed_share"], *perplexity(known))


def marks(outcomes: Outcomes, declared: Grid, corpus: str) -> dict[str, tuple[float, float]]:
    """The 2:4 models, which have half of the weights in other places."""
    return {
        semi.title: (0.5, perplexity(known)[0])
        for semi in declared.semi_structured
        if semi.name in outcomes and (known := cell(outcomes[semi.name], corpus))
    }
