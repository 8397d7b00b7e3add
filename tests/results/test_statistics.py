"""What cells say together: against hand-made numbers, slow references and simulated rows."""

import math
import statistics as textbook
from itertools import permutations

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini_lab.book import comparisons
from tipmini_lab.results import statistics
from tipmini_lab.results.statistics import Interval, Pair, Verdict

TASKS = ["rte", "coqa"]
GOOD, BAD, HALF = [1] * 40, [0] * 40, [1, 0] * 20
CELLS = made_up.cells(
    {
        "good": {"rte": GOOD, "coqa": HALF},
        "also good": {"rte": GOOD, "coqa": HALF},
        "bad": {"rte": BAD, "coqa": HALF},
        "worst": {"rte": BAD, "coqa": BAD},
        "some": {"rte": GOOD},
    }
)


def simulated(seed: int, rows: int = 150, shift: float = 0.1) -> dict:
    """Two variants whose rows go together; the second is right more often by `shift`."""
    random = np.random.default_rng(seed)
    rows_of = {}
    for task in TASKS:
        level = random.random(rows)  # how hard a row is, for both alike
        first, second = (
            level + 0.3 * random.standard_normal(rows) < top for top in (0.5, 0.5 + shift)
        )
        rows_of[task] = (first, second)
    return made_up.cells(
        {name: {t: rows_of[t][i] for t in TASKS} for i, name in enumerate(("first", "second"))}
    )


# Holm -----------------------------------------------------------------------------------------

HOLM = [  # p-values, and what R's p.adjust(p, "holm") gives for them
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
    ([0.5, 0.9], [1.0, 1.0]),
    ([0.02], [0.02]),
    ([0.02, 0.02], [0.04, 0.04]),
    ([], []),
]


@pytest.mark.parametrize(("ps", "corrected"), HOLM)
def test_holm(ps, corrected):
    assert statistics.holm(ps) == pytest.approx(corrected)


def test_holm_by_name_keeps_the_order():
    named = {"b": 0.04, "a": 0.01, "c": 0.03}
    assert list(statistics.holm_of(named).items()) == list(
        zip("bac", statistics.holm([0.04, 0.01, 0.03]), strict=True)
    )


def slow_holm(ps: list[float]) -> list[float]:
    """By the definition: the largest of m p(1), (m - 1) p(2), ... up to a p-value's own place."""
    ranked = sorted(ps)
    steps = [min(1, (len(ps) - place) * p) for place, p in enumerate(ranked)]
    return [max(steps[: ranked.index(p) + ranked.count(p)]) for p in ps]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_by_the_definition(ps):
    corrected = statistics.holm(ps)
    assert corrected == pytest.approx(slow_holm(ps))
    assert all(p <= c <= 1 for p, c in zip(ps, corrected, strict=True))


# Two variants ---------------------------------------------------------------------------------


def test_alike_variants_have_no_width_and_p_1():
    assert statistics.difference(CELLS, "good", "also good", TASKS) == Interval(0, 0, 0)
    assert statistics.flip_p(CELLS, "good", "also good", TASKS) == 1.0


def test_all_rows_differing_alike_leave_no_doubt():
    assert statistics.difference(CELLS, "good", "bad", TASKS) == Interval(0.5, 0.5, 0.5)
    assert statistics.flip_p(CELLS, "good", "bad", TASKS) == pytest.approx(1 / 10_001)


def test_the_interval_is_that_of_redrawn_rows():
    """Against the plain bootstrap: rows drawn one by one, thousands of times."""
    cells, random = simulated(1), np.random.default_rng(5)
    gains = [
        np.subtract(cells["second", task].values, cells["first", task].values) for task in TASKS
    ]
    drawn = np.mean([random.choice(g, (10_000, len(g))).mean(axis=1) for g in gains], axis=0)
    found = statistics.difference(cells, "second", "first", TASKS)
    assert found.value == pytest.approx(np.mean([gain.mean() for gain in gains]))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.004)


def test_intervals_cover_the_truth():
    """95% of them should; 200 of them between 90.5% and 99% (three standard deviations down)."""
    many = simulated(10**6, rows=200_000)
    truth = statistics.difference(many, "second", "first", TASKS, draws=2).value
    found = [
        statistics.difference(simulated(n), "second", "first", TASKS, draws=500) for n in range(200)
    ]
    assert 0.905 <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.99


def test_p_values_of_alike_variants_are_even():
    """Where nothing differs but chance, a p below 0.1 comes in about a tenth of cases."""
    ps = [
        statistics.flip_p(simulated(n, shift=0), "second", "first", TASKS, draws=300)
        for n in range(200)
    ]
    assert 0.04 <= np.mean(np.array(ps) < 0.1) <= 0.17


def test_p_of_few_rows_is_the_exact_one():
    """Five of five rows won: both signs alike in 2 of 2^5 draws."""
    cells = made_up.cells({"a": {"rte": [1] * 5}, "b": {"rte": [0] * 5}})
    assert statistics.flip_p(cells, "a", "b", ["rte"]) == pytest.approx(2 / 32, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)), st.permutations(TASKS))
def test_order_has_no_say(order, tasks):
    cells = simulated(2, rows=30)
    turned = {
        place: cell.model_copy(update={"values": [cell.values[i] for i in order]})
        for place, cell in cells.items()
    }
    one = statistics.difference(cells, "second", "first", TASKS, draws=200)
    two = statistics.difference(turned, "second", "first", tasks, draws=200)
    assert vars(one) == pytest.approx(vars(two))
    p = [statistics.flip_p(c, "second", "first", tasks, draws=200) for c in (cells, turned)]
    assert p[0] == p[1]


def test_turning_a_comparison_round_turns_the_sign_alone():
    cells = simulated(3)
    one = statistics.difference(cells, "second", "first", TASKS)
    two = statistics.difference(cells, "first", "second", TASKS)
    assert two.value == -one.value
    assert (-two.high, -two.low) == pytest.approx((one.low, one.high), abs=0.005)
    ps = [statistics.flip_p(cells, *pair, TASKS) for pair in permutations(("first", "second"))]
    assert ps[0] == ps[1] < 1


@pytest.mark.parametrize("other", [[1, 0, 1], [1, 0]])
def test_other_rows_are_refused_in_one_line(other):
    cells = {("a", "rte"): made_up.cell("a", "rte", [1, 0])}
    cells["b", "rte"] = made_up.cell("b", "rte", other, data="other rows")
    with pytest.raises(TipminiError, match=r"^a, b on rte: not measured on the same rows$"):
        statistics.difference(cells, "b", "a", ["rte"])


# Many variants --------------------------------------------------------------------------------


def test_comparisons_are_corrected_and_name_the_tasks():
    found = statistics.comparisons(CELLS, ["bad", "worst", "also good", "some"], "good", TASKS)
    assert found["some"] is None
    assert found["bad"].worse == ("rte",) and found["bad"].better == ()
    assert found["worst"].worse == ("rte", "coqa")
    assert found["bad"].p == pytest.approx(1 / 10_001)
    assert found["bad"].corrected == pytest.approx(3 / 10_001)
    words = [found[name].verdict() for name in ("bad", "worst", "also good")]
    assert words == [Verdict.WORSE, Verdict.WORSE, Verdict.OPEN]


def test_a_task_is_won_only_after_the_correction():
    """Six rows of six: p = 1/32, significant alone, not among two."""
    rows = {"a": {"rte": [1] * 6, "coqa": HALF}, "b": {"rte": [0] * 6, "coqa": HALF}}
    alone = statistics.comparisons(made_up.cells(rows), ["a"], "b", ["rte"])
    both = statistics.comparisons(made_up.cells(rows), ["a"], "b", TASKS)
    assert (alone["a"].better, both["a"].better) == (("rte",), ())


def test_pairs_may_have_tasks_of_their_own():
    """A variant of fewer adapters is compared on their tasks; p is corrected over all pairs."""
    pairs = [Pair("some", "bad", ("rte",)), Pair("worst", "good", tuple(TASKS))]
    one, two = statistics.compare(CELLS, pairs)
    assert (one.value, one.better, two.value, two.worse) == (1, ("rte",), -0.75, ("rte", "coqa"))
    assert one.corrected == pytest.approx(2 / 10_001)


VERDICTS = [
    ("good", "bad", Verdict.BETTER),
    ("bad", "good", Verdict.WORSE),
    ("good", "also good", Verdict.OPEN),
    ("good", ["bad", "worst"], Verdict.BETTER),
    ("good", ["bad", "also good"], Verdict.OPEN),  # it must beat all of them
    ("bad", ["good", "worst"], Verdict.WORSE),
    ("some", "bad", Verdict.MISSING),
    ("good", ["bad", "some"], Verdict.MISSING),
]


@pytest.mark.parametrize(("name", "against", "word"), VERDICTS)
def test_verdicts(name, against, word):
    assert statistics.verdict(CELLS, name, against, TASKS) is word


# Means and seeds ------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_1_96_errors_wide():
    mean, error = statistics.mean_of(CELLS, "good", TASKS)
    found = statistics.mean_interval(CELLS, "good", TASKS)
    assert (found.value, found.high - found.low) == pytest.approx((mean, 2 * 1.96 * error))
    assert statistics.mean_interval(CELLS, "some", TASKS) is None


def test_seeds_keep_the_two_spreads_apart():
    rows = {f"seed {n}": [1] * n + [0] * (8 - n) for n in (2, 4, 6)}
    cells = made_up.cells({name: {"rte": row} for name, row in rows.items()})
    found = comparisons.seeds(cells, list(rows), ["rte"])
    errors = [textbook.stdev(row) / math.sqrt(8) for row in rows.values()]
    assert (found.count, found.mean, found.lowest, found.highest) == (3, 0.5, 0.25, 0.75)
    assert found.between == pytest.approx(0.25)
    assert found.error == pytest.approx(math.sqrt(sum(e**2 for e in errors) / 3))


@pytest.mark.parametrize("names", [[], ["good"], ["good", "some"]])
def test_no_spread_without_two_whole_seeds(names):
    assert comparisons.seeds(CELLS, names, TASKS) is None


def test_seeds_are_averaged_row_by_row_where_all_are_there():
    rows = {"s0": {"rte": [1, 0, 1], "piqa": [1]}, "s1": {"rte": [1, 1, 0]}}
    found = comparisons.averaged(made_up.cells(rows), ["s0", "s1"], "drawn")
    assert {p: cell.values for p, cell in found.items()} == {("drawn", "rte"): [1, 0.5, 0.5]}
    assert comparisons.averaged(made_up.cells(rows), ["s0", "s2"], "drawn") == {}
    other = made_up.cells(rows) | {("s1", "rte"): made_up.cell("s1", "rte", [1, 1, 0], data="e")}
    with pytest.raises(TipminiError, match="not measured on the same rows"):
        comparisons.averaged(other, ["s0", "s1"], "drawn")
