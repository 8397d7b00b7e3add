"""Merges that are taught, as a table: what they were learnt of, how far they came."""

import numpy as np
import pandas as pd
import pytest

from tipmini_lab.book import taught
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import load_profile

FACTS = {"R": [1.0, 0.4, 0.52], "rank": 56, "seconds": 300.0, "threads": 2, "steps": 48}
FACTS |= {"memory": 4.13e9}


@pytest.fixture
def stored(monkeypatch):
    found = {"distilled-56": FACTS, "distilled-8": FACTS | {"rank": 8}, "tip": {"rank": 8}}
    monkeypatch.setattr(taught.store, "facts", lambda folder: found)
    tasks = load_profile("mini").tasks
    index = pd.MultiIndex.from_product([tasks, range(64)], names=["task", "row"])
    half = np.arange(len(index)) % 2
    return pd.DataFrame({"base": 0.0, "single": 1.0, "distilled-56": half}, index=index)


def test_a_row_is_what_is_measured_on_all_tasks(stored):
    mini, full = load_profile("mini"), load_profile("full")
    found = taught.measured(catalogue(), stored, mini)
    assert found == {"distilled-56": FACTS}  # of the other no example is evaluated, tip isn't one
    titles = {"distilled-56": "distilled, rank 56"}
    told = taught.table(catalogue(), found, titles, stored, Lab(mini), stored, full)
    (line,) = told.to_dict("records")
    assert list(told.index) == ["distilled, rank 56"]
    assert line["mean accuracy"].startswith("0.500<br>± 0.0")
    assert line["retention,<br>full"].startswith("50%<br>[")
    assert line["R"] == "1.00<br>to 0.40" and line["rank"] == "56"
    assert line["examples,<br>steps"] == "600<br>48"  # 96 of six tasks and 24 conversations
    assert line["time,<br>memory"] == "10 min<br>4.1 GB"
    found = {"distilled-56": {key: FACTS[key] for key in FACTS if key != "memory"}}
    bare = stored.drop(columns="distilled-56")
    told = taught.table(catalogue(), found, titles, stored, Lab(mini), bare, full)
    assert told.iloc[0]["retention,<br>full"] == "–"
    assert told.iloc[0]["time,<br>memory"] == "10 min<br>–"


def test_what_is_left_of_a_task_under_the_floor_is_a_share_of_the_floor():
    lab = Lab(load_profile("mini"))
    base, left = [0.02, 0.4, 0.1, 0.1, 0.1, 0.1, 0.0035], [0.01, 0.1, 0.1, 0.0, 0.2, 0.05, 0.0162]
    found = {"distilled-56": FACTS | {"base": base, "left": left}}
    told = taught.by_task(found, {"distilled-56": "distilled"}, lab).loc["distilled"]
    assert list(told) == ["0.50", "0.25", "1.00", "0.00", "2.00", "0.50", "1.62"]
    assert list(told.index[[0, -1]]) == ["ARC-Challenge", "RTE"]


def test_the_lowest_is_a_merge_of_no_higher_rank_that_reads_no_labels(stored, monkeypatch):
    known, mini = catalogue(), load_profile("mini")
    rows = stored.assign(**{"distilled-8": 0.5, "fresh-distilled-8": 0.5})
    facts = {"distilled-56": FACTS, "distilled-8": FACTS | {"R": [1.0, 0.5], "rank": 8}}
    facts |= {"fresh-distilled-8": FACTS | {"R": [1.0, 0.1], "rank": 8}}
    monkeypatch.setattr(taught.store, "facts", lambda folder: facts)
    assert taught.lowest(known, rows, mini) == "distilled-56"
    assert taught.lowest(known, rows, mini, rank=8) == "distilled-8"
    assert taught.lowest(known, rows, mini, rank=4) is None
