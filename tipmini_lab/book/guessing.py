"""What is scored without looking at the question, and what merged models answer."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from lm_eval.api.task import ConfigurableTask

from tipmini_lab import paths
from tipmini_lab.book import method_tables
from tipmini_lab.book.method_tables import by_chance, same_answer
from tipmini_lab.book.tables import EMPTY, TITLES, Titles, narrow
from tipmini_lab.evaluation import assets, documents, evaluator, tasks
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import digests, store
from tipmini_lab.results.statistics import measured

TITLE = "Guessing"
Scores = dict[str, float]  # by task


def score(definition: ConfigurableTask) -> float:
    """Accuracy of the best guess: the majority class, else a choice at random, else nothing."""
    found = same_answer(definition), by_chance(definition)
    return next((share for share in found if share is not None), 0.0)


def scores(profile: Profile) -> Scores:
    """`score` of every task on the profile's own examples. Empty where these are to be downloaded.

    Computed once and kept below _build: reading all examples takes half a minute.
    """
    if profile.data != "embedded":
        return {}
    asked = profile.model_dump(include={"tasks", "evaluation_rows", "evaluation_rows_of"})
    told = (__file__, *(module.__file__ for module in (documents, method_tables, tasks)))
    code = [digests.file_digest(Path(file)) for file in told]
    key = [asked, assets.embedded().name, code]
    file = paths.BUILD / f"guessing-{digests.digest(key)[:12]}.json"
    if not file.is_file():
        found = {task: score(Lab(profile).definition(task)) for task in profile.tasks}
        store.write(file, json.dumps(found) + "\n")
    return json.loads(file.read_text())


def mean(found: Scores, tasks: Iterable[str] | None = None) -> float | None:
    """Over those of the tasks, as the mean of accuracies is taken."""
    chosen = [found[task] for task in (found if tasks is None else tasks) if task in found]
    return math.fsum(chosen) / len(chosen) if chosen else None


# What is answered ---------------------------------------------------------------------------------


def classes(rows: pd.DataFrame, name: str, definition: ConfigurableTask) -> list[int]:
    """The class that a variant answers on every example of a task of two, from right and wrong."""
    task = definition.config.task
    wanted = [definition.doc_to_target(doc) for doc in definition.eval_docs]
    right = rows.loc[task, name]
    return [y if value == 1 else 1 - y for y, value in zip(wanted, right, strict=True)]


def first_class(rows: pd.DataFrame, name: str, definition: ConfigurableTask) -> float:
    """The share of examples on which a variant answers what is right most often."""
    wanted = [definition.doc_to_target(doc) for doc in definition.eval_docs]
    usual = max(set(wanted), key=wanted.count)
    given = classes(rows, name, definition)
    return given.count(usual) / len(given)


def answers_table(
    rows: pd.DataFrame,
    names: Sequence[str],
    definitions: Mapping[str, ConfigurableTask],
    titles: Titles = TITLES,
) -> pd.DataFrame:
    """A row a variant: how often it gives the majority class, and CoQA's examples with a hit.

    definitions: of tasks with two choices each.
    """
    lines = {}
    for name in names:
        line = lines[titles.get(name, name)] = {}
        for task, definition in definitions.items():
            known = measured(rows, [name], [task])
            told = first_class(rows, name, definition) if known else math.nan
            line[f"{TITLES[task]}: majority class"] = EMPTY if math.isnan(told) else f"{told:.0%}"
        if measured(rows, [name], ["coqa"]):
            own = rows.loc["coqa", name]
            line["CoQA: right at least in part"] = f"{(own > 0).sum()} of {len(own)}"
    return pd.DataFrame(lines).T.rename_axis("answers")


def written(lm: evaluator.PackedLM, definition: ConfigurableTask, letters: int = 24) -> list[str]:
    """What a model writes for each example, on one line, its end cut; unseen letters by code."""
    texts = [str(sample["resps"][0][0]) for sample in evaluator.samples(lm, definition)]
    plain = ["".join(map(_seen, " ".join(text.split()))) for text in texts]
    return [text if len(text) <= letters else f"{text[:letters]} …" for text in plain]


def _seen(letter: str) -> str:
    return letter if letter.isprintable() else f"[{ord(letter):02X}]"


def written_table(
    spoken: Mapping[str, Sequence[str]], definition: ConfigurableTask
) -> pd.DataFrame:
    """A row an example: its question, the right answer, and what each model writes.

    spoken: {model: `written`}.
    """
    lines = {}
    for place, doc in enumerate(definition.eval_docs):
        asked = definition.doc_to_text(doc).rpartition("Q:")[2].partition("\n")[0].strip()
        right = definition.doc_to_target(doc)
        right = right if isinstance(right, str) else right[0]
        said = {model: narrow(texts[place] or "(nothing)", 14) for model, texts in spoken.items()}
        lines[narrow(asked, 18)] = {"right": narrow(right, 14)} | said
    return (
        pd.DataFrame(lines)
        .T.rename(columns=lambda model: narrow(model, 14))
        .rename_axis("question")
    )
