"""The embedded rows against lm-eval's own tasks, loaded lm-eval's own way over official rows."""

import hashlib
import random
from functools import cache

import pytest
from datasets import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
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
READ = ("doc_to_text", "doc_to_target", "doc_to_choice")
# The metric of each task as the paper's numbers are read: length-normalised, plain, exact match.
METRIC = {
    "acc_norm": {"arc_challenge", "hellaswag", "openbookqa", "piqa"},
    "acc": {"boolq", "rte"},
    "em": {"coqa"},
}


@cache
def pair(task: str):
    """Ours over some rows, and the official one over the same documents in the same order."""
    ours, key = tasks.load(task, ROWS), IDENTITY[task]
    first = {identity(row, key): row for row in reversed(OFFICIAL[task]())}
    return ours, official_task(task, [first[identity(doc, key)] for doc in ours.eval_docs])


def identity(row: dict, key: str) -> str:
    """PIQA has no ids; two rows can share a goal. HellaSwag's `ind` is not unique either."""
    if key == "goal":
        return repr((row["goal"], row["sol1"], row["sol2"]))
    return repr((row["ind"], row["endings"])) if key == "ind" else str(row[key])


# Counts and splits ----------------------------------------------------------------------------
@pytest.mark.parametrize("task", COUNTS)
def test_counts_and_splits(task):
    """Scored is lm-eval's own split; fewer rows are a prefix of more."""
    found = [len(tasks.rows(task, split)) for split in ("evaluation", "train")]
    assert tuple(found) == COUNTS[task] and set(documents.TASKS) == set(COUNTS)
    few, more = (tasks.load(task, n, n) for n in (3, 12))
    assert (few.config.test_split or few.config.validation_split) == HUB[task][2]
    assert list(few.eval_docs) == list(more.eval_docs)[:3] and len(more.eval_docs) == 12
    assert tasks.rows(task, "train", 3) == tasks.rows(task, "train", 12)[:3]


@pytest.mark.parametrize(("task", "every"), [("rte", 277), ("coqa", 500)])
def test_halves_are_disjoint_and_complete(task, every):
    """A row trains or evaluates, by a fixed hash of its id, never both."""
    key = IDENTITY[task]
    scored, learnt = ({row[key] for row in tasks.rows(task, s)} for s in ("evaluation", "train"))
    assert not scored & learnt and scored | learnt == {row[key] for row in OFFICIAL[task]()}
    assert len(scored) + len(learnt) == every
    assert all(hashlib.sha256(str(name).encode()).digest()[0] % 2 for name in scored)


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


# The task is the official one -----------------------------------------------------------------
@pytest.mark.parametrize("task", COUNTS)
def test_documents_are_asked_and_scored_as_officially(task):
    """Prompt, choices and target; what the model is asked, what metrics make of its answers."""
    ours, official = pair(task)
    draw = random.Random(0)
    docs = list(zip(ours.eval_docs, official.eval_docs, strict=True))
    assert len(docs) == ROWS
    for number, (mine, theirs) in enumerate(docs):
        for read in READ[: 2 if task == "coqa" else 3]:
            assert getattr(ours, read)(mine) == getattr(official, read)(theirs)
        if number < 15:
            left, right = asked(ours, mine), asked(official, theirs)
            assert left == right
            said = [answer(task, mine, draw) for _ in left]
            scores = ours.process_results(mine, said), official.process_results(theirs, said)
            assert scores[0] == scores[1] and tasks.METRIC[task] in scores[0]


def asked(definition, doc: dict) -> list[tuple]:
    found = definition.construct_requests(doc, definition.doc_to_text(doc))
    return [request.args for request in (found if isinstance(found, list) else [found])]


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
        for told in (config["fewshot_config"] or {}, config):
            for name, value in told.items():  # functions by name: each definition loads them anew
                told[name] = getattr(value, "__qualname__", value)
    assert ours == official


@pytest.mark.parametrize("wanted", [True, False])
def test_reading_draws_no_bars(capfd, wanted):
    """And leaves those of others as they were."""
    (enable_progress_bars if wanted else disable_progress_bars)()
    try:
        assert len(tasks.load("hellaswag", 2).validation_docs()) == 2
        assert are_progress_bars_disabled() is not wanted
    finally:
        enable_progress_bars()
    assert "Map" not in capfd.readouterr().err


def test_metrics_are_the_papers():
    assert {m: {t for t in documents.TASKS if tasks.METRIC[t] == m} for m in METRIC} == METRIC
    for task in documents.TASKS:
        metrics = {entry["metric"] for entry in tasks.load(task, 1).config.metric_list}
        assert tasks.METRIC[task] in metrics | ({"acc_norm"} if "acc" in metrics else set())


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
        for read in READ:
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


@pytest.mark.parametrize("task", sorted(set(COUNTS) - {"rte", "coqa"}))
def test_train_prompts_and_answers_are_those_of_the_files(task):
    """Prompts where the files' own follows the same template: ours is it to the letter."""
    definition = tasks.load(task, evaluation=1, train=100)
    docs = documents.requests(f"{task}-train_rc_5shot")
    queries = {doc["query"] for doc in docs}
    known = {(str(doc["choices"]), doc["choices"][doc["gold"]]) for doc in docs}
    for doc in definition.training_docs():
        choices = definition.doc_to_choice(doc)
        if task in ("arc_challenge", "boolq", "hellaswag"):
            assert definition.doc_to_text(doc) in queries
        if task in ("arc_challenge", "openbookqa", "piqa"):
            assert (str(choices), choices[definition.doc_to_target(doc)]) in known


@pytest.mark.parametrize("task", COUNTS)
def test_a_training_text_is_the_prompt_and_the_right_answer(task):
    definition = tasks.load(task, evaluation=1, train=2)
    for doc in definition.training_docs():
        right = definition.doc_to_target(doc)
        right = right[0] if task == "coqa" else definition.doc_to_choice(doc)[right]
        assert tasks.text(definition, doc) == f"{definition.doc_to_text(doc)} {right}"


@pytest.mark.parametrize("task", COUNTS)
def test_an_unlabelled_text_tells_no_answer(task):
    """The choices in turn, whichever is right; of a conversation no answer at all."""
    definition = tasks.load(task, evaluation=1, train=8)
    docs = list(definition.training_docs())
    for number, (doc, found) in enumerate(
        zip(docs, tasks.unlabelled(definition, docs), strict=True)
    ):
        if task == "coqa":
            assert found == f"{doc['story']}\n\nQ: {doc['questions']['input_text'][0]}\n\nA:"
        else:
            choices = definition.doc_to_choice(doc)
            told = choices[number % len(choices)]
            assert found == f"{definition.doc_to_text(doc)} {told}"


def test_what_is_not_there_is_refused():
    first, *_, last = documents.KNOWN
    with pytest.raises(TipminiError, match=rf"^task 'hellswag': not one of {first}, .*{last}$"):
        tasks.load("hellswag")
    with pytest.raises(TipminiError, match=f"task {last}: no train rows"):
        tasks.rows(last, "train")


# What is scored of pruned models as well ------------------------------------------------------


@pytest.mark.parametrize(("task", "count"), [("arc_easy", 2376), ("winogrande", 1267)])
def test_more_tasks_have_lm_evals_own_split(task, count):
    assert task not in documents.TASKS and len(tasks.rows(task, "evaluation")) == count
    definition = tasks.load(task, 5)
    assert definition.config.output_type == "multiple_choice"
    for doc in definition.eval_docs:
        choices, gold = definition.doc_to_choice(doc), definition.doc_to_target(doc)
        assert len(choices) == len(set(choices)) >= 2
        assert isinstance(gold, str) or 0 <= gold < len(choices)  # a text: what follows the choice


def test_a_choice_of_winogrande_is_a_beginning_that_names_one_of_the_two():
    """lm-eval strips what follows the blank, so spaces are left out."""
    definition = tasks.load("winogrande", 20)
    for doc in definition.eval_docs:
        beginnings, end = definition.doc_to_choice(doc), definition.doc_to_target(doc)
        filled = [doc["sentence"].replace("_", doc[name]) for name in ("option1", "option2")]
        found = [beginning + end for beginning in beginnings]
        assert [f.replace(" ", "") for f in found] == [f.replace(" ", "") for f in filled]
