"""The router of questions to adapters."""

import numpy as np
import pandas as pd
import pytest

from tipmini_lab.book import router
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.experiments.profiles import load_profile

PROFILE = load_profile("mini").model_copy(
    update={"tasks": ("openbookqa", "rte"), "evaluation_rows": 8, "evaluation_rows_of": {}}
)


def test_a_mark_or_the_end_of_a_line_tells_templates_apart():
    prompts = {"a": ["the sky is"] * 3, "b": ["the sky\nis?"] * 3}
    found = router.router(prompts).predict(["the sea is", "the sea\nis?"])
    assert list(found) == ["a", "b"]


def test_questions_are_counted_once_and_a_wrong_way_is_wrong():
    counts = router.confusion(PROFILE)
    assert list(counts.sum(axis=1)) == [8, 8] and counts.loc["rte", "rte"] == 8
    assert list(router.table(counts).loc["RTE"]) == [EMPTY, "100.0%"]
    index = pd.MultiIndex.from_product([PROFILE.tasks, range(8)], names=["task", "row"])
    found = router.at_least(pd.DataFrame({"single": np.ones(16)}, index=index), PROFILE)
    assert found == {task: counts.loc[task, task] / 8 for task in PROFILE.tasks}
    other = [("rte", row) for row in range(8)] + [("piqa", 0)]
    other += [("openbookqa", row) for row in range(8)]  # in an order of their own, and more
    index = pd.MultiIndex.from_tuples(other, names=["task", "row"])
    assert router.at_least(pd.DataFrame({"single": np.ones(17)}, index=index), PROFILE) == found


def test_no_answer_is_read(monkeypatch):
    asked = []
    monkeypatch.setattr(router, "router", lambda prompts: asked.append(prompts) or 1 / 0)
    router.routed.cache_clear()
    with pytest.raises(ZeroDivisionError):
        router.routed(("openbookqa", "rte"), (2, 2))
    (prompts,) = asked
    assert all(prompt.endswith("True or False?\nAnswer:") for prompt in prompts["rte"])
    assert len(prompts["openbookqa"]) == router.LEARNT
