"""What a model gets that knows nothing: the lines below which an accuracy says little."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd
from lm_eval.api.task import ConfigurableTask

from tipmini.lab.tables import TITLES


def by_chance(definition: ConfigurableTask) -> float:
    """Mean over the rows of one over the number of choices; 0 where the answer is written."""
    choices = [definition.doc_to_choice(doc) for doc in _choosing(definition)]
    return sum(1 / len(found) for found in choices) / len(choices) if choices else 0.0


def same_answer(definition: ConfigurableTask) -> float:
    """Share of the rows whose right answer stands in the most frequent place."""
    places = Counter(definition.doc_to_target(doc) for doc in _choosing(definition))
    return max(places.values()) / places.total() if places else 0.0


def _choosing(definition: ConfigurableTask) -> list[dict]:
    chosen = definition.OUTPUT_TYPE == "multiple_choice"
    return list(definition.eval_docs) if chosen else []


def table(definitions: Iterable[ConfigurableTask]) -> pd.DataFrame:
    """A row a task: an answer at random, and always the same one."""
    rows = {
        TITLES[d.config.task]: {
            "by chance": f"{by_chance(d):.3f}",
            "always the same answer": f"{same_answer(d):.3f}",
        }
        for d in definitions
    }
    return pd.DataFrame(rows).T.rename_axis("knowing nothing")
