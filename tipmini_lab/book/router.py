"""The ceiling of picking each question's own adapter, by a router that reads words alone.

Logistic regression on TF-IDF of words and pairs of words, learnt of the calibration examples'
prompts, which name no answer. A question that it takes to another task counts as wrong, so what is
told is the least that routing reaches.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import pandas as pd

from tipmini_lab.book.tables import EMPTY, TITLES
from tipmini_lab.evaluation import tasks
from tipmini_lab.experiments.profiles import Profile

LEARNT = 128  # calibration examples a task
WORDS = r"\w+|[^\w\s]|\n"  # a mark or the end of a line is a word: templates differ in them


def router(prompts: Mapping[str, Sequence[str]]):
    """A fitted classifier of prompts. prompts: {task: its examples'}."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS)
    every = [(prompt, task) for task, own in prompts.items() for prompt in own]
    return make_pipeline(words, LogisticRegression(C=100, max_iter=1000)).fit(
        *zip(*every, strict=True)
    )


@cache
def routed(names: tuple[str, ...], counts: tuple[int | None, ...]) -> dict[str, list[str]]:
    """{task: the task that each of its first evaluation examples, as many, is taken for}."""
    prompts = {}
    for task in names:
        definition, docs = tasks.training(task, LEARNT)
        prompts[task] = [definition.doc_to_text(doc) for doc in docs]
    read, found = router(prompts), {}
    for task, count in zip(names, counts, strict=True):
        definition = tasks.load(task, count)
        asked = [definition.doc_to_text(doc) for doc in definition.eval_docs]
        found[task] = list(read.predict(asked))
    return found


def confusion(profile: Profile) -> pd.DataFrame:
    """(task, task) how many evaluation examples of the row's are taken for the column's."""
    names = tuple(profile.tasks)
    found = routed(names, tuple(map(profile.rows, names)))
    counts = {task: pd.Series(taken).value_counts() for task, taken in found.items()}
    return pd.DataFrame(counts).T.reindex(index=names, columns=names).fillna(0).astype(int)


def table(counts: pd.DataFrame) -> pd.DataFrame:
    """`confusion` in percent of each row's task; what none is taken for is left empty."""
    shares = counts.div(counts.sum(axis=1), axis=0)
    text = shares.map(lambda share: f"{share:.1%}" if share else EMPTY)
    return text.rename(index=TITLES, columns=TITLES).rename_axis("examples of")


def values(rows: pd.DataFrame, profile: Profile) -> pd.Series:
    """Single's values where the router is right, else 0; of rows of `frame.wide`."""
    names = tuple(profile.tasks)
    found = routed(names, tuple(map(profile.rows, names)))
    right = {task: pd.Series(found[task], rows.loc[task].index) == task for task in names}
    return rows["single"].mul(pd.concat(right, names=rows.index.names))


def at_least(rows: pd.DataFrame, profile: Profile) -> dict[str, float]:
    """{task: accuracy of Single where the router is right; else wrong}: the means of `values`."""
    found = values(rows, profile)
    return {task: float(found[task].mean()) for task in profile.tasks}
