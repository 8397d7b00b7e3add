"""The two pictures of the whole book, and what its pages say of what is measured."""

import math

import pandas as pd
import pytest

from tipmini_lab.book import answers
from tipmini_lab.book.claims import Verdict
from tipmini_lab.book.claims.page import Audited
from tipmini_lab.results.statistics import MISSING, Interval


@pytest.fixture(scope="module")
def counts(audited) -> pd.DataFrame:
    return answers.verdict_counts([*audited.values()])


def test_every_claim_is_counted_once_in_print_and_once_here(audited, counts):
    papers = pd.Series([each.claim.paper for each in audited.values()]).value_counts(sort=False)
    assert list(counts.index.unique("where")) == ["in print", "here"]
    for words in ("in print", "here"):
        own = counts.xs(words, level="where").sum(axis="columns")
        assert sorted(own) == sorted(papers)
    assert counts.sum().sum() == 2 * len(audited)


def test_a_verdict_is_counted_as_what_it_means(audited):
    """Three claims of TIP, by their verdicts here."""
    some = [one for one in audited.values() if one.claim.paper == "tip"][:3]
    found = (Verdict.CONTRARY, Verdict.DEPENDS, Verdict.SAME_SETTING)
    made_up = [
        Audited(one.claim, one.in_print, one.here._replace(verdict=verdict))
        for one, verdict in zip(some, found, strict=True)
    ]
    here = answers.verdict_counts(made_up).loc["TIP", "here"]
    assert dict(here[here > 0]) == {answers.NOT: 1, answers.DEPENDS: 1, answers.UNTESTED: 1}


def test_counts_are_told_without_those_of_none(counts):
    told = answers._in_words(counts).split("; ")
    assert len(told) == len(counts) and not any(" 0 " in one for one in told)
    (paper, where), first = counts.index[0], counts.iloc[0]
    held = first[answers.HELD]
    assert told[0].startswith(f"{paper}, {where}: {held} holds, ")


def test_bars_have_the_lengths_of_their_counts(counts):
    figure = answers.verdicts(counts)
    widths = [bar.get_width() for bars in figure.axes[0].containers for bar in bars]
    shares = counts.div(counts.sum(axis="columns"), axis="index")
    assert widths == pytest.approx(list(shares.to_numpy().T.ravel()))


def test_criteria_are_told_from_the_lowest_perplexity_on():
    rows = {"unpruned": (20, 25), "vanilla, Eq. 3": (300, 90), "random": (200, math.nan)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["short", "long"])
    told = "after few steps random, vanilla (Eq. 3); after many steps "
    assert answers.in_order(frame) == f"{told}vanilla (Eq. 3)"
    assert answers.in_order(frame.assign(long=math.nan)) == f"{told}{MISSING}"


def test_what_is_not_measured_has_no_mark():
    merges = dict.fromkeys(("Base", "Single", "TIP"), Interval(0.5, 0.4, 0.6)) | {"DARE": None}
    rows = {"unpruned": (20.0, math.nan), "LoRAPrune": (300.0, 100.0), "random": (9e4, math.nan)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["short", "long"])
    here, paper, half = answers.glance(merges, {"TIP": 0.65}, frame).axes
    assert [tick.get_text() for tick in here.get_yticklabels()] == ["TIP", "DARE"]
    assert MISSING in [text.get_text() for text in here.texts]
    assert [text.get_text() for text in here.texts if text.get_text() != MISSING] == [
        "Base",
        "Single",
    ]
    assert len(paper.lines) == 2  # an interval of no width, and its mark
    marks = [line.get_xdata()[0] for line in half.lines if len(line.get_xdata()) == 1]
    assert [x for x in marks if not math.isnan(x)] == [300, 100, 9e4]


def test_the_pages_say_how_much_is_stored(audited, monkeypatch):
    values = answers.page_values([*audited.values()])
    assert values["lora_state"].endswith("declared runs are measured")
    lora = [each for each in audited.values() if each.claim.paper == "lora"]
    held = [
        sum(getattr(each, w).verdict is Verdict.HOLDS for each in lora) for w in Audited._fields[1:]
    ]
    told = f"of {len(lora)} claims, {held[0]} in print and {held[1]} here are found to hold"
    assert values["lora_claims"] == told
    mini = answers.load_profile("mini")
    found = answers.lora_tables.rows(mini, "lora-methods")  # every example's mean over the seeds
    own = found["lora"].groupby(level=0).mean().mean()
    assert f"on two tasks, it scores {own:.3f}" in values["lora_found"]
    assert answers._tuned(pd.DataFrame()).endswith(MISSING)
    monkeypatch.setattr(answers.elastic_tables, "read", lambda declared: {})
    none = answers.page_values([*audited.values()])["elastic_state"]
    assert none.startswith("none of the ")
