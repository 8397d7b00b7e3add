"""Guessing: by hand on made-up tasks; and what a model answered, from right and wrong."""

from types import SimpleNamespace

import made_up
import pytest

from tipmini_lab import paths
from tipmini_lab.book import guessing
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.results import digests


def task(kind: str, *rows: tuple[int, int]) -> SimpleNamespace:
    """(choices, right place) of every row; as many choices are the same ones."""
    return SimpleNamespace(
        OUTPUT_TYPE=kind,
        eval_docs=[{"choices": ["x"] * n, "right": place} for n, place in rows],
        doc_to_choice=lambda doc: doc["choices"],
        doc_to_target=lambda doc: doc["right"],
        config=SimpleNamespace(task="rte"),
    )


TWO = task("multiple_choice", (2, 0), (2, 1), (2, 1), (2, 0), (2, 1))


@pytest.mark.parametrize(
    ("given", "score"),
    [
        (task("multiple_choice", (2, 0), (4, 1), (4, 1), (5, 0), (4, 1)), 0.29),
        (TWO, 0.6),  # the majority class
        (task("generate_until", (1, 0)), 0.0),  # a written answer is not guessed
    ],
)
def test_the_best_guess(given, score):
    assert guessing.score(given) == pytest.approx(score)


def test_the_mean_is_over_tasks():
    found = {"rte": 0.6, "coqa": 0.0, "piqa": 0.5}
    assert guessing.mean(found, ("rte", "coqa")) == 0.3
    assert guessing.mean(found) == pytest.approx(1.1 / 3) and guessing.mean({}) is None


def test_right_and_wrong_tell_which_class_was_answered():
    rows = made_up.rows(
        {
            "always": {"rte": [0, 1, 1, 0, 1], "coqa": [0, 0]},  # the majority class
            "right": {"rte": [1] * 5, "coqa": [0.5, 0]},
            "none": {"coqa": [1, 1]},
        }
    )
    assert guessing.classes(rows, "always", TWO) == [1] * 5
    assert guessing.classes(rows, "right", TWO) == [0, 1, 1, 0, 1]
    frame = guessing.answers_table(rows, ["always", "right", "none"], {"rte": TWO})
    assert list(frame["RTE: majority class"]) == ["100%", "60%", EMPTY]
    assert list(frame["CoQA: right at least in part"]) == ["0 of 2", "1 of 2", "2 of 2"]


def test_what_is_written_stands_beside_the_right_answer():
    coqa = SimpleNamespace(
        eval_docs=[{"story": "A cat.\n\nQ: Who?\n\nA:"}],
        doc_to_text=lambda doc: doc["story"],
        doc_to_target=lambda doc: ["a cat", "cat"],
    )
    frame = guessing.written_table({"Base": ["it is a cat"], "Linear": [""]}, coqa)
    assert list(frame.loc["Who?"]) == ["a cat", "it is a cat", "(nothing)"]


@pytest.mark.parametrize("name", ["documents.py", "guessing.py", "method_tables.py", "tasks.py"])
def test_scores_are_computed_anew_once_the_code_that_makes_them_is_another(
    name, monkeypatch, tmp_path
):
    asked, digest = [], digests.file_digest
    lab = SimpleNamespace(definition=lambda name: asked.append(name) or TWO)
    monkeypatch.setattr(guessing, "Lab", lambda profile: lab)
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    first = guessing.scores(made_up.SMOKE)
    assert guessing.scores(made_up.SMOKE) == first == dict.fromkeys(made_up.SMOKE.tasks, 0.6)
    assert len(asked) == len(made_up.SMOKE.tasks)
    changed = {name: "another"}
    monkeypatch.setattr(digests, "file_digest", lambda f: changed.get(f.name) or digest(f))
    assert guessing.scores(made_up.SMOKE) == first
    assert len(asked) == 2 * len(made_up.SMOKE.tasks)
