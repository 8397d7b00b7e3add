"""The embedded rows against lm-eval's own tasks, loaded lm-eval's own way over official rows."""

import hashlib
import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.hellaswag.utils import preprocess
from official import HUB, IDENTITY, OFFICIAL, official_task

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import documents, tasks

pytestmark = pytest.mark.usefixtures("embedded")

# evaluation rows, train rows
COUNTS = {
    "arc_challenge": (1172, 1119),
    "boolq": (3270, 9427),
    "coqa": (234, 266),
    "hellaswag": (10042, 39905),
    "openbookqa": (500, 4957),
    "piqa": (1838, 16113),
    "rte": (139, 138),
}
ROWS = 60  # compared, of each task
# The metric of each task as the paper's numbers are read: length-normalised, plain, exact match.
METRIC = {
    "acc_norm": {"arc_challenge", "hellaswag", "openbookqa", "piqa"},
    "acc": {"boolq", "rte"},
    "em": {"coqa"},
}


@cache
def pair(task: str):
    """Ours over some rows, and the official one over the same documents in the same order."""
    ours = tasks.load(task, ROWS)
    key = IDENTITY[task]
    place = {}
    for number, row in enumerate(OFFICIAL[task]()):
        place.setdefault(identity(row, key), number)
    rows = OFFICIAL[task]()
    order = [place[identity(doc, key)] for doc in ours.eval_docs]
    return ours, official_task(task, [rows[number] for number in order])


def identity(row: dict, key: str) -> str:
    """PIQA has no ids; two rows can share a goal. HellaSwag's `ind` is not unique either."""
    if key == "goal":
        return repr((row["goal"], row["sol1"], row["sol2"]))
    return repr((row["ind"], row["endings"])) if key == "ind" else str(row[key])


# Counts and splits ----------------------------------------------------------------------------


def test_the_seven_tasks():
    assert set(documents.TASKS) == set(COUNTS)


@pytest.mark.parametrize("task", COUNTS)
def test_counts(task):
    found = [len(tasks.rows(task, split)) for split in ("evaluation", "train")]
    assert tuple(found) == COUNTS[task]


def test_halves_are_disjoint_and_complete():
    """Of RTE and CoQA: a row trains or evaluates, by a fixed hash of its id, never both."""
    for task, every in (("rte", 277), ("coqa", 500)):
        key = IDENTITY[task]
        halves = [{row[key] for row in tasks.rows(task, s)} for s in ("evaluation", "train")]
        assert not halves[0] & halves[1]
        assert halves[0] | halves[1] == {row[key] for row in OFFICIAL[task]()}
        assert sum(map(len, halves)) == every
        for name in halves[0]:
            assert hashlib.sha256(str(name).encode()).digest()[0] % 2 == 1


def test_coqa_has_all_turns():
    stories = tasks.rows("coqa", "evaluation") + tasks.rows("coqa", "train")
    assert sum(len(story["questions"]["input_text"]) for story in stories) == 7983


def told(task: str, row: dict) -> str:
    """What a row says, whatever its id: the question and its options."""
    if task == "hellaswag":
        return repr([preprocess(ending) for ending in row["endings"]])
    keys = {"arc_challenge": ["question"], "openbookqa": ["question_stem"]}
    keys |= {"boolq": ["passage", "question"], "piqa": ["goal", "sol1", "sol2"]}
    options = row["choices"]["text"] if "choices" in row else []
    return repr([row[key] for key in keys[task]] + options)


@pytest.mark.parametrize("task", sorted(set(COUNTS) - {"rte", "coqa"}))
def test_train_rows_are_not_evaluated(task):
    """The official splits repeat a few documents word for word: under one in five hundred."""
    evaluated = {told(task, row) for row in tasks.rows(task, "evaluation")}
    learnt = {told(task, row) for row in tasks.rows(task, "train")}
    assert len(evaluated & learnt) < len(evaluated) / 500, len(evaluated & learnt)


@given(st.integers(1, 3000), st.data())
def test_order_is_a_permutation_and_fixed(count, data):
    order = tasks.order(count)
    assert sorted(order) == list(range(count))
    smaller = data.draw(st.integers(1, count))
    assert tasks.order(smaller) == [i for i in order if i < smaller]


def test_order_stays_what_it_was():
    """Stored results are read by it."""
    assert tasks.order(10) == [7, 5, 2, 4, 1, 0, 9, 3, 8, 6]


@pytest.mark.parametrize("task", COUNTS)
def test_fewer_rows_are_a_prefix_of_more(task):
    few, more = (list(tasks.load(task, n, n).eval_docs) for n in (3, 12))
    assert few == more[:3] and len(more) == 12
    assert tasks.rows(task, "train", 3) == tasks.rows(task, "train", 12)[:3]


# The task is the official one -----------------------------------------------------------------


@pytest.mark.parametrize("task", COUNTS)
def test_documents_are_asked_and_scored_as_officially(task):
    """Prompt, choices and target."""
    ours, official = pair(task)
    docs = list(zip(ours.eval_docs, official.eval_docs, strict=True))
    assert len(docs) == ROWS
    for mine, theirs in docs:
        assert ours.doc_to_text(mine) == official.doc_to_text(theirs)
        assert ours.doc_to_target(mine) == official.doc_to_target(theirs)
        if task != "coqa":
            assert ours.doc_to_choice(mine) == official.doc_to_choice(theirs)


@pytest.mark.parametrize("task", COUNTS)
def test_requests_and_metrics_are_the_official_ones(task):
    """What the model is asked, and what the metrics make of its answers."""
    ours, official = pair(task)
    draw = random.Random(0)
    for mine, theirs in list(zip(ours.eval_docs, official.eval_docs, strict=True))[:15]:
        asked = [t.construct_requests(d, t.doc_to_text(d)) for t, d in zip_pair(mine, theirs, task)]
        left, right = ([r.args for r in listed(requests)] for requests in asked)
        assert left == right
        answers = [answer(task, mine, draw) for _ in left]
        scores = ours.process_results(mine, answers), official.process_results(theirs, answers)
        assert scores[0] == scores[1] and tasks.METRIC[task] in scores[0]


def zip_pair(mine: dict, theirs: dict, task: str):
    ours, official = pair(task)
    return [(ours, mine), (official, theirs)]


def listed(requests):
    return requests if isinstance(requests, list) else [requests]


def answer(task: str, doc: dict, draw: random.Random):
    """Something a model might say: a likelihood, or for CoQA one of the answers, or nonsense."""
    if task != "coqa":
        return (-draw.uniform(1, 60), draw.random() < 0.5)
    right = doc["answers"]["input_text"][-1]
    return draw.choice([f" {right}\n\nQ: and", right.upper(), " I do not know", ""])


@pytest.mark.parametrize("task", COUNTS)
def test_only_the_source_differs(task):
    """The configuration is the official one but for where the rows come from and its tags."""
    ours, official = (definition.dump_config() for definition in pair(task))
    for config in (ours, official):
        for name in ("custom_dataset", "tag", "process_docs"):
            config.pop(name, None)
        config["metadata"].pop("config_source", None)
    assert plain(ours) == plain(official)
    for split in ("test_split", "validation_split", "training_split"):
        assert ours.get(split) == official.get(split)


def plain(config: dict) -> dict:
    """Functions by their code's place: they are loaded anew with each definition."""
    return {k: getattr(v, "__qualname__", v) for k, v in config.items()}


def test_metrics_are_the_papers():
    assert {m: {t for t in documents.TASKS if tasks.METRIC[t] == m} for m in METRIC} == METRIC
    for task in documents.TASKS:
        metrics = {entry["metric"] for entry in tasks.load(task, 1).config.metric_list}
        assert tasks.METRIC[task] in metrics | ({"acc_norm"} if "acc" in metrics else set())


@pytest.mark.parametrize("task", COUNTS)
def test_evaluated_is_lm_evals_own_split(task):
    _, _, split = HUB[task]
    definition = tasks.load(task, 2)
    assert (definition.config.test_split or definition.config.validation_split) == split


# The reconstruction is faithful ---------------------------------------------------------------


def test_openbookqa_rebuilt_equals_the_raw_rows():
    """The validation split is there both ways: rebuilt from requests, and raw, as on the hub."""
    rebuilt = documents._choices("openbookqa-val", "question_stem")
    assert rebuilt == documents.arrow("openbookqa-main")


def test_boolq_rebuilt_equals_the_raw_rows():
    rows, raw = documents._boolq("val"), documents.arrow("boolq-none")
    for number, (row, plain_row) in enumerate(zip(rows, raw, strict=True)):
        assert row["idx"] == number and row["question"] == plain_row["question"]
        assert row["label"] == int(plain_row["answer"])
        title, passage = row["passage"].split(" -- ", 1)
        assert title and passage == plain_row["passage"]


def test_hellaswag_train_rows_are_rebuilt(monkeypatch):
    """Raw rows cleaned the official way, then taken for train rows, come out the same again."""
    raw = documents.arrow("hellaswag-none")[:300]
    monkeypatch.setattr(documents, "requests", lambda _: [cleaned(row) for row in raw])
    rebuilt = official_task("hellaswag", documents._hellaswag_train())
    official = official_task("hellaswag", raw)
    for mine, theirs in zip(rebuilt.eval_docs, official.eval_docs, strict=True):
        for read in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            assert getattr(rebuilt, read)(mine) == getattr(official, read)(theirs)


def cleaned(row: dict) -> dict:
    """A raw row as the files of prompted train rows hold it."""
    context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
    return {
        "ind": row["ind"],
        "query": preprocess(f"{row['activity_label']}: {context}"),
        "choices": [preprocess(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


@pytest.mark.parametrize("task", ["arc_challenge", "boolq", "hellaswag"])
def test_train_prompts_are_those_of_the_files(task):
    """Where the files' own prompt follows the same template, ours is it to the letter."""
    definition = tasks.load(task, evaluation=1, train=100)
    docs = documents.requests(f"{task}-train_rc_5shot")
    queries = Counter(doc["query"] for doc in docs)
    for doc in definition.training_docs():
        assert queries[definition.doc_to_text(doc)]


@pytest.mark.parametrize("task", ["arc_challenge", "openbookqa", "piqa"])
def test_train_answers_are_those_of_the_files(task):
    definition = tasks.load(task, evaluation=1, train=100)
    docs = documents.requests(f"{task}-train_rc_5shot")
    known = {(str(doc["choices"]), doc["choices"][doc["gold"]]) for doc in docs}
    for doc in definition.training_docs():
        choices = definition.doc_to_choice(doc)
        assert (str(choices), choices[definition.doc_to_target(doc)]) in known


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", COUNTS)
def test_a_training_text_is_the_prompt_and_the_right_answer(task):
    definition = tasks.load(task, evaluation=1, train=2)
    for doc in definition.training_docs():
        right = definition.doc_to_target(doc)
        right = right[0] if task == "coqa" else definition.doc_to_choice(doc)[right]
        assert tasks.text(definition, doc) == f"{definition.doc_to_text(doc)} {right}"


def test_unknown_task():
    with pytest.raises(
        TipminiError, match=r"^task 'hellswag': not one of arc_challenge, .*winogrande$"
    ):
        tasks.load("hellswag")


# What is scored of pruned models as well ------------------------------------------------------


@pytest.mark.parametrize(("task", "count"), [("arc_easy", 2376), ("winogrande", 1267)])
def test_more_tasks_have_lm_evals_own_split(task, count):
    assert task not in documents.TASKS and len(tasks.rows(task, "evaluation")) == count
    definition = tasks.load(task, 5)
    assert definition.config.output_type == "multiple_choice"
    for doc in definition.eval_docs:
        choices, gold = definition.doc_to_choice(doc), definition.doc_to_target(doc)
        assert len(choices) == len(set(choices)) >= 2
        assert task == "winogrande" or 0 <= gold < len(choices)


def test_a_choice_of_winogrande_is_a_beginning_that_names_one_of_the_two():
    definition = tasks.load("winogrande", 20)
    for doc in definition.eval_docs:
        beginnings, end = definition.doc_to_choice(doc), definition.doc_to_target(doc)
        found = [_bare(beginning + end) for beginning in beginnings]
        filled = [doc["sentence"].replace("_", doc[name]) for name in ("option1", "option2")]
        assert found == [_bare(sentence) for sentence in filled]


def _bare(text: str) -> str:
    """lm-eval strips what follows the blank, so spaces are left out."""
    return text.replace(" ", "")


def test_more_tasks_are_no_default_of_what_trains():
    with pytest.raises(TipminiError, match="task winogrande: no train rows"):
        tasks.rows("winogrande", "train")
