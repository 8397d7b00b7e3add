"""Tables over many variants: numbers from cells, and where one is missing the row says so."""

from types import SimpleNamespace

import made_up
import pytest
from made_up import CHOOSING, ROWS, SMOKE, TITLES, keep_scored, scored

from tipmini_lab.book import comparisons, method_tables
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.experiments.catalogue import Catalogue, Choice, Group, Variant
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import MISSING, Pair, compare
from tipmini_lab.results.store import Bundle


def pairs(*both: tuple[str, str]) -> list[Pair]:
    return [Pair(*pair, SMOKE.tasks) for pair in both]


# Differences by task --------------------------------------------------------------------------


def test_a_difference_is_taken_apart_by_task():
    frame = comparisons.by_task(ROWS, SMOKE, pairs(("good", "tip"), ("ties", "tip")), TITLES)
    assert list(frame.columns) == ["OBQA", "RTE†", "mean of 2", "without the<br>largest"]
    told = ["+50.0", "+0.0", "+25.0", "OpenBookQA:<br>+0.0<br>[+0.0, +0.0]"]
    assert list(frame.loc["Good minus TIP"]) == told
    assert set(frame.loc["TIES minus TIP"]) == {EMPTY}


# Seeds ----------------------------------------------------------------------------------------


def test_seeds_are_found_in_their_order():
    names = ["dare-s10", "dare", "dare-s2", "dare-ties-s1", "dare-s2x"]
    rows = made_up.rows({name: {"rte": [1]} for name in names})
    assert comparisons.seeds_of(rows, "dare") == ["dare", "dare-s2", "dare-s10"]
    assert comparisons.seeds_of(rows, "tip.random") == []


def test_seeds_keep_the_two_spreads_apart():
    """Errors by the textbook: sqrt(p (1 - p) / 7) of eight rows."""
    rows = made_up.rows({str(n): {"rte": [1] * n + [0] * (8 - n)} for n in (2, 4, 6)})
    mean, between, error, lowest, highest = comparisons.seeds(rows, "246", ["rte"]).values()
    assert (mean, between, lowest, highest) == pytest.approx((0.5, 0.25, 0.25, 0.75))
    assert error == pytest.approx((sum(p * (1 - p) / 7 for p in (0.25, 0.5, 0.75)) / 3) ** 0.5)


def test_no_spread_without_two_whole_seeds():
    frame = comparisons.seed_table(ROWS, SMOKE, ["tip", "good"])
    assert list(frame.index) == ["OBQA", "RTE†", "mean of 2"]
    assert frame.loc["OBQA", "mean"] == "0.750"
    assert frame.loc["RTE†", "spread of seeds (sd)"] == "0.000"
    assert frame.index.name == "smoke, 2 seeds"
    frame = comparisons.seed_table(ROWS, SMOKE, ["tip", "ties"])
    assert set(frame.loc["OBQA"]) == set(frame.loc["mean of 2"]) == {MISSING}
    assert comparisons.seeds(ROWS, ["good"], SMOKE.tasks) == {}


def test_what_is_left_without_a_task_is_told_in_a_line():
    (whole,) = [Pair("good", "tip", SMOKE.tasks)]
    task, told = comparisons.without_in_line(ROWS, whole).split(", ", 1)
    left, rest = comparisons.without_largest(ROWS, whole)
    assert (task, told.split(" [")[0]) == (comparisons.TITLES[left], f"{100 * rest.value:+z.1f}")


# Choices --------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path):
    return Profile(name="tiny", description="d", tasks=CHOOSING, results=str(tmp_path))


def catalogue(weights: dict[str, str | float], **choices: tuple[str, ...]) -> Catalogue:
    """Variants of such weights, and choices among them."""
    variants = {
        name: Variant(name=name, title=name.upper(), method=name.split("-")[0], weights=weight)
        for name, weight in weights.items()
    }
    made = [Choice(name=n, title=f"the {n}", among=a, finalists=2) for n, a in choices.items()]
    return Catalogue({"tuned": Group(description="d", choices=tuple(made))}, {}, variants)


KNOWN = catalogue(dict.fromkeys(("linear", "cat", "svd"), "sum"), best=("linear", "cat", "svd"))


def test_a_merge_has_one_name_whichever_choice_came_to_it(tmp_path):
    known = catalogue(
        {"linear": "sum", "recommended": "chosen"},
        **{"linear-tuned": ("linear",), "better-alone": ("linear",), "better": ("linear",)},
    )
    known.choices["linear-tuned"].__dict__["title"] = "Linear, tuned"
    assert comparisons.titles(known, tmp_path)["better"] == "the better"
    for name, of in (("linear-tuned", "Linear"), ("better-alone", "Linear"), ("better", "TIP")):
        title = f"older: {of}, weight 0.05"
        storage.keep(tmp_path, Bundle(name=name, title=title, settings={}, facts={}, cells=[]))
    titles = comparisons.titles(known, tmp_path)
    assert titles["linear"] == "LINEAR" and titles["better"] == "TIP, weight 0.05"
    one = {titles[name] for name in ("linear-tuned", "better-alone", "recommended")}
    assert one == {"Linear, tuned (weight 0.05)"}


def test_rounds_are_ordered_by_the_first_and_tell_the_second(profile):
    keep_scored(profile, scored(linear=([1, 0, 1, 0], [1, 0])))
    assert comparisons.rounds("best", KNOWN, profile).iloc[0, 0] == MISSING
    assert comparisons.chosen("best", KNOWN, profile) == MISSING
    keep_scored(profile, scored(cat=([1, 1, 1, 1], [1, 1]), svd=([0, 0, 0, 0], [0, 0])))
    keep_scored(profile, scored(linear=([1, 1], [1, 1]), cat=([0, 0], [1, 1])), final=True)
    assert comparisons.chosen("best", KNOWN, profile) == "LINEAR"
    frame = comparisons.rounds("best", KNOWN, profile)
    assert list(frame.index) == ["CAT", "LINEAR", "SVD"]
    assert list(frame["finalists"]) == ["0.500 ± 0.000", "1.000 ± 0.000", EMPTY]
    assert frame.loc["LINEAR", "first round"].startswith("0.500 ± ")
    assert len(comparisons.rounds("best", KNOWN, profile, count=2)) == 2


def test_finalists_lie_apart_in_errors_of_their_difference(profile):
    """1/4 and 3/4 of four rows of two tasks: the error of either mean is 1/4 / sqrt(2)."""
    assert comparisons.finalists_apart(["best"], KNOWN, profile) == []
    keep_scored(profile, scored(linear=([1, 1], [1, 1]), cat=([1, 1], [1, 1]), svd=([0], [0])))
    assert comparisons.finalists_apart(["best"], KNOWN, profile) == []
    few, most = [1, 0, 0, 0], [1, 1, 1, 0]
    keep_scored(profile, scored(linear=(few, few), cat=(most, most)), final=True)
    assert comparisons.finalists_apart(["best"], KNOWN, profile) == pytest.approx([2.0])


def test_weights_stand_in_lines_and_the_chosen_one_is_bold(profile):
    weights = {"linear-w-mean": "mean", "linear-w-0.1": 0.1, "cat-w-0.1": 0.1}
    known = catalogue(weights, linear=("linear-w-*",), cat=("cat-w-*",))
    first = {"linear-w-mean": ([1, 0], [1, 0]), "linear-w-0.1": ([1, 1], [1, 0])}
    keep_scored(profile, scored(**first))
    frame = comparisons.weights(["linear", "cat"], known, profile)
    assert dict(frame["the linear"]) == {"1/T": "0.500", "0.1": "0.750"}  # no second round yet
    assert dict(frame["the cat"]) == {"1/T": EMPTY, "0.1": MISSING}
    last = {"linear-w-mean": ([1, 1], [1, 1]), "linear-w-0.1": ([1, 1], [0, 0])}
    keep_scored(profile, scored(**last), final=True)
    frame = comparisons.weights(["linear"], known, profile)
    assert dict(frame["the linear"]) == {"1/T": "**0.500<br>1.000**", "0.1": "0.750<br>0.500"}


def test_weights_of_several_methods_and_few_adapters_are_told_by_both(profile):
    names = ("linear", "cat", "linear-w-mean", "cat-w-mean")
    known = catalogue(dict.fromkeys(names, "mean"), both=("*-w-mean",))
    for name in names:
        known.variant(name).__dict__["adapters"] = 1
    both = scored(**{"linear-w-mean": ([1, 0], [1]), "cat-w-mean": ([1, 1], [1])})
    keep_scored(profile, {place: own for place, own in both.items() if place[1] == "boolq"})
    frame = comparisons.weights(["both"], known, profile)
    assert dict(frame["the both"]) == {"CAT, 1/T": "1.000", "LINEAR, 1/T": "0.500"}


# The ledger -----------------------------------------------------------------------------------


def reading(option: str, name: str, against: str = "tip") -> SimpleNamespace:
    return SimpleNamespace(option=option, name=name, against=against)


def point(number: int, question: str, note: str, *readings) -> SimpleNamespace:
    return SimpleNamespace(
        point=number, question=question, ours="as read", note=note, readings=readings
    )


class Merged(SimpleNamespace):
    """A declared variant that is evaluated on the last `count` tasks."""

    def tasks(self, every):
        return every[-self.count :]


POINTS = (
    point(8, "sign", "", reading("-", "good"), reading("0", "none")),
    point(1, "W", "seen", reading("A", "ties", "base")),
)
VARIANTS = {name: Merged(count=1 if name == "ties" else 2) for name in (*TITLES, "none")}


def ledger():
    pairs = method_tables.ledger_pairs(POINTS, VARIANTS, SMOKE)
    return method_tables.ledger(POINTS, compare(ROWS, pairs).assign(profile="smoke"))


def test_readings_follow_the_points_and_keep_to_common_tasks():
    found = ledger()
    assert found[["point", "question", "reading"]].to_numpy().tolist() == [
        [1, "W", "A"],
        [8, "sign", "-"],
        [8, "sign", "0"],
    ]
    assert list(found.tasks) == [("rte",), SMOKE.tasks, SMOKE.tasks]


def test_the_ledger_has_a_line_a_reading():
    frame = method_tables.ledger_table(ledger(), {"good": {"norm": 3.0, "sum": 2.0}})
    assert list(frame.index) == [1, 8, 8] and frame.index.name == "#"
    assert list(frame["verdict"]) == ["not<br>significant", "better", "not<br>measured<br>yet"]
    assert list(frame["points"].str.split("<br>").str[0]) == ["+0.0", "+25.0", EMPTY]
    assert list(frame["size"]) == [EMPTY, "1.50", EMPTY]


def test_what_is_not_varied_is_settled_as_declared():
    frame = method_tables.settled(POINTS)
    assert frame.to_numpy().tolist() == [["W", "as read (seen)"], ["sign", "as read"]]
    assert list(frame.index) == [1, 8]
