"""How much is removed when: the authors' schedules, and layers that take turns."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipmini.papers import loraprune


def released(step, steps, share, power):
    """The authors' schedule, from a share of 0, and with the power as a parameter."""
    if step <= 0.1 * steps:
        return 0.0
    if step > steps - 0.1 * steps:
        return share
    left = 1 - (step - 0.1 * steps) / (steps - 0.2 * steps)
    return share - share * left**power


@pytest.mark.parametrize("steps", [10, 37, 200])
@pytest.mark.parametrize(("name", "power"), [("cubic", 3), ("linear", 1)])
def test_schedules_are_the_authors(name, power, steps):
    for step in range(steps + 1):
        found = loraprune.SCHEDULES[name](step, steps, 0.5)
        assert found == pytest.approx(released(step, steps, 0.5, power))


@given(st.sampled_from(sorted(loraprune.SCHEDULES)), st.integers(1, 60), st.floats(0, 1))
def test_every_schedule_rises_from_nothing_to_the_share(name, steps, share):
    shares = [loraprune.SCHEDULES[name](step, steps, share) for step in range(steps + 1)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(share)


def test_one_shot_takes_all_at_once():
    assert {loraprune.one_shot_share(step, 20, 0.5) for step in range(3)} == {0.0}
    assert {loraprune.one_shot_share(step, 20, 0.5) for step in range(3, 21)} == {0.5}


# Layers take turns --------------------------------------------------------------------------------

FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted)


@given(st.integers(1, 90), st.integers(1, 800), FRACTIONS)
def test_layers_lose_in_sum_what_the_schedule_says(layers, final, fractions):
    """To half a group in all; each layer nothing at 0, all of it at 1, never less than before."""
    before = [0] * layers
    for fraction in [0.0, *fractions, 1.0]:
        counts = [loraprune.staggered_count(final, fraction, o) for o in loraprune.offsets(layers)]
        assert all(now >= then for now, then in zip(counts, before, strict=True))
        assert abs(sum(counts) - layers * final * fraction) <= 0.5 + 1e-6 * layers
        assert max(counts) - min(counts) <= 1
        assert fraction > 0 or not any(counts)
        before = counts
    assert before == [final] * layers


@given(st.integers(2, 90))
def test_offsets_are_even_and_neighbours_lie_apart(count):
    found = loraprune.offsets(count)
    assert sorted(found) == [(place + 0.5) / count for place in range(count)]
    assert min(abs(a - b) for a, b in itertools.pairwise(found)) > 0.249


def test_heads_go_layer_by_layer():
    """One group a layer: without offsets all thirty would go with the last step."""
    fractions = [loraprune.cubic_share(step, 20, 1.0) for step in range(21)]
    gone = [
        sum(loraprune.staggered_count(1, fraction, o) for o in loraprune.offsets(30))
        for fraction in fractions
    ]
    assert gone == [round(30 * fraction) for fraction in fractions]
    assert gone[2] == 0 and gone[6] == 17 and gone[18] == 30
