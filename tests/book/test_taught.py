"""Merges that are taught, as a table: what they were learnt of, how far they came."""

import numpy as np
import pandas as pd
import pytest

from tipmini_lab.book import taught
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import load_profile

FACTS = {"R": [1.0, 0.4, 0.52], "rank": 56, "seconds": 300.0, "threads": 2}


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
    assert line["examples"] == "600"  # 96 of six tasks and 24 conversations
    assert line["time"] == "10 min"
    bare = stored.drop(columns="distilled-56")
    told = taught.table(catalogue(), found, titles, stored, Lab(mini), bare, full)
    assert told.iloc[0]["retention,<br>full"] == "–"
