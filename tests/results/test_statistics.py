"""What rows side by side say: against hand-made numbers, slow references and simulated rows."""

from itertools import permutations

import made_up
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tipmini.errors import TipminiError
from tipmini_lab.results import statistics
from tipmini_lab.results.frame import tidy, wide
from tipmini_lab.results.statistics import Interval, Pair, Verdict

TASKS = ("rte", "coqa")
GOOD, BAD, HALF = [1] * 40, [0] * 40, [1, 0] * 20
ROWS = made_up.rows(
    {
        "good": {"rte": GOOD, "coqa": HALF},
        "also good": {"rte": GOOD, "coqa": HALF},
        "bad": {"rte": BAD, "coqa": HALF},
        "worst": {"rte": BAD, "coqa": BAD},
        "some": {"rte": GOOD},
    }
)


def simulated(seed: int, rows: int = 150, shift: float = 0.1):
    """Two variants whose rows go together; the second is right more often by `shift`."""
    random, both = np.random.default_rng(seed), {"first": {}, "second": {}}
    for task in TASKS:
        level = random.random(rows)  # how hard a row is, for both alike
        for own, top in zip(both.values(), (0.5, 0.5 + shift), strict=True):
            own[task] = level + 0.3 * random.standard_normal(rows) < top
    return made_up.rows(both)


# Rows side by side ----------------------------------------------------------------------------


def test_rows_stand_side_by_side():
    assert list(ROWS.columns) == ["good", "also good", "bad", "worst", "some"]
    assert statistics.tasks_of(ROWS) == list(TASKS)
    assert list(ROWS.loc["coqa", "good"]) == HALF and ROWS.loc["coqa", "some"].isna().all()
    assert wide({}).empty and statistics.tasks_of(wide({})) == []


@pytest.mark.parametrize("other", [[1, 0, 1], [1, 0]])
def test_other_rows_are_refused_in_one_line(other):
    cells = {("a", "rte"): made_up.cell("a", "rte", [1, 0])}
    cells["b", "rte"] = made_up.cell("b", "rte", other, data="other rows")
    with pytest.raises(TipminiError, match=r"^a, b on rte: not measured on the same rows$"):
        wide(cells)


@pytest.mark.parametrize("frame", [wide, tidy])
def test_other_number_formats_are_refused(frame):
    cells = made_up.cells({"a": {"rte": [1]}, "b": {"rte": [1]}})
    cells["b", "rte"].dtype = "bfloat16"
    with pytest.raises(TipminiError, match="a/rte in float32, b/rte in bfloat16"):
        frame(cells)


@pytest.mark.parametrize(
    ("names", "tasks"),
    [(["some"], TASKS), (["none"], TASKS), (["good"], ["piqa"]), ([], TASKS), (["good"], [])],
)
def test_what_is_not_measured(names, tasks):
    assert not statistics.measured(ROWS, names, tasks)
    assert statistics.measured(ROWS, ["some", "bad"], ["rte"])


def test_the_interval_of_a_mean_is_1_96_errors_wide():
    mean, error = statistics.mean_of(ROWS, "good", TASKS)
    errors = [np.std(row, ddof=1) / 40**0.5 for row in (GOOD, HALF)]
    assert (mean, error) == pytest.approx((0.75, np.hypot(*errors) / 2))
    found = statistics.mean_interval(ROWS, "good", TASKS)
    assert (found.value, found.high - found.low) == pytest.approx((mean, 2 * 1.96 * error))
    assert statistics.mean_interval(ROWS, "some", TASKS) is None
    assert statistics.mean_of(ROWS, "good") == (mean, error)
    assert statistics.mean_of(wide({}), "good") is None


# P-values -------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5]), min_size=1, max_size=60))
@example([1.0] * 8 + [-1.0])
def test_the_sign_test_is_mcnemars(gains):
    """Twice the smaller tail of a fair coin thrown once for each row that differs, however far."""
    wins, differing = sum(gain > 0 for gain in gains), len(gains) - gains.count(0)
    tail = 2 * binom.cdf(min(wins, differing - wins), differing, 0.5)
    assert statistics.sign_p(gains) == pytest.approx(min(1.0, tail))


@pytest.mark.parametrize(
    ("ps", "corrected"),  # p-values, and what R's p.adjust(p, "holm") gives for them
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(ps, corrected):
    assert statistics.holm(ps) == pytest.approx(corrected)
    named = statistics.holm_of(dict(enumerate(ps)))
    assert list(named.items()) == list(enumerate(statistics.holm(ps)))


# Two variants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "value", "p"), [("also good", 0, 1.0), ("bad", 0.5, 1 / 10_001)])
def test_rows_that_all_differ_alike_leave_no_width(other, value, p):
    assert statistics.difference(ROWS, "good", other, TASKS) == Interval(value, value, value)
    assert statistics.flip_p(ROWS, "good", other, TASKS) == pytest.approx(p)


def test_the_draws_are_those_of_before():
    """Every interval and p of the book follows from them."""
    rows = simulated(1)
    found = statistics.difference(rows, "second", "first", TASKS)
    assert found == pytest.approx((0.13 / 3, -0.02, 0.32 / 3), rel=1e-12)
    assert statistics.flip_p(rows, "second", "first", TASKS) == 2247 / 10_001


def test_the_interval_is_that_of_redrawn_rows():
    """Against the plain bootstrap: rows drawn one by one, thousands of times."""
    rows, random = simulated(1), np.random.default_rng(5)
    gains = [(rows["second"] - rows["first"]).loc[task].to_numpy() for task in TASKS]
    drawn = np.mean([random.choice(g, (10_000, len(g))).mean(axis=1) for g in gains], axis=0)
    found = statistics.difference(rows, "second", "first", TASKS)
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
    rows = made_up.rows({"a": {"rte": [1] * 5}, "b": {"rte": [0] * 5}})
    assert statistics.flip_p(rows, "a", "b", ["rte"]) == pytest.approx(2 / 32, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(60)), st.permutations(TASKS))
def test_order_has_no_say(order, tasks):
    rows = simulated(2, rows=30)
    turned = rows.iloc[order]
    one = statistics.difference(rows, "second", "first", TASKS, draws=200)
    assert one == pytest.approx(statistics.difference(turned, "second", "first", tasks, draws=200))
    p = [statistics.flip_p(r, "second", "first", tasks, draws=200) for r in (rows, turned)]
    assert p[0] == p[1]


def test_turning_a_comparison_round_turns_the_sign_alone():
    rows = simulated(3)
    one = statistics.difference(rows, "second", "first", TASKS)
    two = statistics.difference(rows, "first", "second", TASKS)
    assert two == (-one.value, -one.high, -one.low)
    ps = [statistics.flip_p(rows, *pair, TASKS) for pair in permutations(("first", "second"))]
    assert ps[0] == ps[1] < 1


# Many variants --------------------------------------------------------------------------------


def compared(*pairs: tuple[str, str], rows=ROWS, tasks=TASKS):
    return statistics.compare(rows, [Pair(*pair, tuple(tasks)) for pair in pairs])


def test_comparisons_are_corrected_together_and_count_tasks():
    names = ("bad", "worst", "also good", "some")
    found = compared(*((name, "good") for name in names)).set_index("name")
    assert list(found.verdict) == ["worse", "worse", "not significant", "not measured yet"]
    assert list(found.worse[:3]) == [1, 2, 0] and list(found.better[:3]) == [0, 0, 0]
    assert found.loc["some", ["value", "low", "high", "p", "corrected", "better"]].isna().all()
    assert found.p["bad"] == pytest.approx(1 / 10_001)
    assert found.corrected["bad"] == pytest.approx(3 / 10_001)  # of what is missing none counts
    assert found.loc["bad", ["value", "low", "high"]].tolist() == [-0.5, -0.5, -0.5]
    assert compared().empty


def test_a_task_is_won_only_after_the_correction():
    """Six rows of six: p = 1/32, significant alone, not among two."""
    rows = made_up.rows({"a": {"rte": [1] * 6, "coqa": HALF}, "b": {"rte": [0] * 6, "coqa": HALF}})
    found = [compared(("a", "b"), rows=rows, tasks=t).better[0] for t in (["rte"], TASKS)]
    assert found == [1, 0]


def test_pairs_may_have_tasks_of_their_own():
    """A variant of fewer adapters is compared on their tasks; p is corrected over all pairs."""
    pairs = [Pair("some", "bad", ("rte",)), Pair("worst", "good", TASKS)]
    found = statistics.compare(ROWS, pairs)
    assert found.value.tolist() == [1, -0.75] and found.corrected[0] == pytest.approx(2 / 10_001)
    assert (found.better[0], found.worse[1]) == (1, 2)


@pytest.mark.parametrize(
    ("name", "against", "word"),
    [
        ("good", ["bad"], Verdict.BETTER),
        ("good", ["also good"], Verdict.OPEN),
        ("good", ["bad", "worst"], Verdict.BETTER),
        ("good", ["bad", "also good"], Verdict.OPEN),  # it must beat all of them
        ("bad", ["good", "worst"], Verdict.WORSE),
        ("some", ["bad"], Verdict.MISSING),
        ("good", ["bad", "some"], Verdict.MISSING),
    ],
)
def test_verdicts(name, against, word):
    assert statistics.verdict(compared(*((name, other) for other in against))) is word


def test_that_all_hold_needs_no_correction():
    """Six rows of six against each of two: p is 1/32 for both, 1/16 corrected."""
    rows = made_up.rows({"a": {"rte": [1] * 6}, "b": {"rte": [0] * 6}, "c": {"rte": [0] * 6}})
    found = compared(("a", "b"), ("a", "c"), rows=rows, tasks=["rte"])
    assert list(found.verdict) == [Verdict.OPEN] * 2
    assert statistics.verdict(found) is Verdict.BETTER
