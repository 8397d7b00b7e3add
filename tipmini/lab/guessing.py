"""What a model gets that knows nothing: the lines below which an accuracy says little."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd
from lm_eval.api.task import ConfigurableTask

from tipmini.lab.accuracy_tables import EMPTY
from tipmini.lab.tables import TITLES


def by_chance(definition: ConfigurableTask) -> float | None:
    """Mean over the rows of one over the number of choices; None where the answer is written."""
    choices = [definition.doc_to_choice(doc) for doc in _choosing(definition)]
    return sum(1 / len(found) for found in choices) / len(choices) if choices else None


def same_answer(definition: ConfigurableTask) -> float | None:
    """Share of the most frequent right answer, such as yes; None where rows have their own."""
    rows = _choosing(definition)
    if len({tuple(definition.doc_to_choice(doc)) for doc in rows}) != 1:
        return None
    answers = Counter(definition.doc_to_target(doc) for doc in rows)
    return max(answers.values()) / answers.total()


def _choosing(definition: ConfigurableTask) -> list[dict]:
    chosen = definition.OUTPUT_TYPE == "multiple_choice"
    return list(definition.eval_docs) if chosen else []


def _told(share: float | None) -> str:
    return EMPTY if share is None else f"{share:.3f}"


def table(definitions: Iterable[ConfigurableTask]) -> pd.DataFrame:
    """A row a task: an answer at random, and always the same one."""
    rows = {
        TITLES[d.config.task]: {
            "by chance": _told(by_chance(d)),
            "always the same answer": _told(same_answer(d)),
        }
        for d in definitions
    }
    return pd.DataFrame(rows).T.rename_axis("knowing nothing")
