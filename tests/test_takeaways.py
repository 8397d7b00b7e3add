"""Sentences of what the prunings come to: they say what the made-up outcomes say."""

import made_up_prunings as made_up
import pytest

from tipmini.lab.pruning import declared, takeaways
from tipmini.lab.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(
    GRID
)  # the more goes the worse, tuning helps, each method worse than the last


def runs(levels: list[float], books: float = 0.0) -> list:
    """One a seed, of the same loss on both corpora but for what `books` adds to the second's."""
    run = next(iter(RUNS.values()))
    found = [made_up.bundle(run, (), level) for level in levels]
    for bundle in found:
        cell = next(c for c in bundle.cells if c.task == "books")
        cell.values[:] = [value + books for value in cell.values]
    return found


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (runs([3.0]), runs([3.1]), "lower"),
        (runs([3.1]), runs([3.0]), "higher"),
        (runs([3.0, 3.05]), runs([3.1, 3.2]), "lower"),
        (runs([3.0, 3.15]), runs([3.1, 3.2]), "neither"),  # one pair of seeds the other way
        (runs([3.0], books=0.2), runs([3.1]), "neither"),  # the other corpus the other way
        (runs([3.0]), [], None),
    ],
)
def test_lower_is_lower_on_both_corpora_and_with_every_seed(first, second, found):
    assert takeaways.compared(first, second) == found


def test_every_sentence_follows_from_the_outcomes():
    lines = takeaways.told(FOUND, GRID, RUNS).splitlines()
    assert len(lines) == 2 + 4 + 1
    names = [m.title for m in GRID.methods]
    for line in lines[:2]:  # tuning helps throughout
        assert "*lower*: random (3 runs against 3); magnitude (3 runs against 1); " in line
        assert all(name in line for name in names)
        assert "higher" not in line and "surely" not in line
    place = names.index("LoRAPrune")
    assert lines[5].startswith("- **50%, tuned**, perplexity beside LoRAPrune's, *lower*: random; ")
    lower, higher = lines[5].split(". *higher*: ")
    assert all(name in lower for name in names[:place])
    assert higher == "LoRAPrune, base in 8 bits (3 runs against 3)."
    assert lines[6].startswith(
        "- **The released reduction**, perplexity beside that of the printed"
    )
    assert "*higher*: 50%; 50%, tuned. *not surely either*: 20%; 20%, tuned (3 runs" in lines[6]


def test_a_turned_outcome_turns_the_sentence():
    """Wanda alone gets worse by tuning at one half, and falls behind LoRAPrune."""
    found = dict(FOUND)
    for seed in range(3):
        name = declared.run_name("wanda", 0.5, True, seed)
        found[name] = made_up.bundle(RUNS[name], (), 6.0)
    lines = takeaways.told(found, GRID, RUNS).splitlines()
    assert "*higher*: Wanda (3 runs against 1)." in lines[1] and "higher" not in lines[0]
    assert "Wanda" in lines[5].split(". *higher*: ")[1]


def test_what_is_missing_is_said():
    assert takeaways.told({}, GRID, RUNS).count(MISSING) == 7
    name = declared.run_name("wanda", 0.5, True, 0)
    few = {run: b for run, b in FOUND.items() if not run.startswith("wanda-50-tuned")}
    line = takeaways.told(few | {name: FOUND[name]}, GRID, RUNS).splitlines()[5]
    assert "Wanda (1 run against 3)" in line
