"""Sentences of what the prunings come to: they say what the made-up outcomes say."""

import made_up_prunings as made_up
import numpy as np
import pytest

from tipmini_lab.book import pruning_tables
from tipmini_lab.book.pruning_tables import Gap
from tipmini_lab.experiments import declared
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(
    GRID
)  # the more goes the worse, tuning helps, each method worse than the last


def gap(*seeds: float, noise: float = 0.01) -> Gap:
    """Of 16 windows, with so much noise between them."""
    values = np.mean(seeds) + noise * np.linspace(-1, 1, 16)
    return Gap(values, np.array(seeds), (len(seeds), 1))


@pytest.mark.parametrize(
    ("both", "found"),
    [
        ((gap(-0.1), gap(-0.1)), "lower"),
        ((gap(0.1), gap(0.1)), "higher"),
        ((gap(-0.1, -0.2), gap(-0.1, -0.05)), "lower"),
        ((gap(-0.1, 0.05), gap(-0.1, -0.05)), "not surely either"),  # one seed the other way
        ((gap(-0.1), gap(0.1)), "not surely either"),  # the other corpus the other way
        ((gap(-0.1), gap(-0.1, noise=1.0)), "not surely either"),  # windows are too unlike
        ((gap(0.0, noise=0.0), gap(0.0, noise=0.0)), "not surely either"),  # a tie
        ((gap(-0.1), None), MISSING),
    ],
)
def test_lower_is_clearly_so_on_both_corpora_and_with_every_seed(both, found):
    assert pruning_tables.verdicts({"a": both}) == {"a": found}


def test_tests_are_corrected_together():
    """Of one pair alone a p of 0.03 is clear; of many that show nothing it is not."""
    weak, none = gap(-0.1, noise=0.29), gap(0.0, noise=1.0)
    assert 0.025 < weak.p < 0.05
    alone = pruning_tables.verdicts({"a": (gap(-1.0), weak)})
    among = pruning_tables.verdicts({"a": (gap(-1.0), weak), "b": (none, none), "c": (none, none)})
    assert alone["a"] == "lower" and among["a"] == "not surely either"


def test_every_sentence_follows_from_the_outcomes():
    lines = pruning_tables.told(FOUND, GRID, RUNS).splitlines()
    assert len(lines) == 2 + 4 + 1 + 2
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
    assert "*higher*: 50%. *not surely either*: 20%; 20%, tuned; 50%, tuned (3 runs" in lines[6]
    assert "without a part, 50%, tuned**, perplexity beside it, *higher*: importances" in lines[7]
    assert all(m.title in lines[7] for m in GRID.ablations)
    assert all(m.title in lines[8] for m in GRID.variants)


def test_a_turned_outcome_turns_the_sentence():
    """Wanda alone gets worse by tuning at one half, and falls behind LoRAPrune."""
    found = dict(FOUND)
    for seed in range(3):
        name = declared.run_name("wanda", 0.5, True, seed)
        found[name] = made_up.bundle(RUNS[name], (), 6.0)
    lines = pruning_tables.told(found, GRID, RUNS).splitlines()
    assert "*higher*: Wanda (3 runs against 1)." in lines[1] and "higher" not in lines[0]
    assert "Wanda" in lines[5].split(". *higher*: ")[1]


def test_what_is_missing_is_said():
    assert pruning_tables.told({}, GRID, RUNS).count(MISSING) == 9
    name = declared.run_name("wanda", 0.5, True, 0)
    few = {run: b for run, b in FOUND.items() if not run.startswith("wanda-50-tuned")}
    line = pruning_tables.told(few | {name: FOUND[name]}, GRID, RUNS).splitlines()[5]
    assert line.endswith(f"*{MISSING}*: Wanda.")  # one seed of three is not all
    assert "random (3 runs against 3)" in line
