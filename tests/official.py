"""lm-eval's own tasks over official rows: as they stand on the hub, from the raw embedded files."""

from collections.abc import Callable
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from tipmini_lab.evaluation import documents

# Where each official definition reads, and which of its splits is scored.
HUB = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "coqa": ("EleutherAI/coqa", None, "validation"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "piqa": ("baber/piqa", None, "validation"),
    "rte": ("nyu-mll/glue", "rte", "validation"),
}


def official_arc() -> list[dict]:
    rows = []
    for doc in documents.requests("arc_challenge-test_rc_5shot"):
        question = doc["query"][len("Question: ") : -len("\nAnswer:")]
        labels = list("ABCDE"[: len(doc["choices"])])
        choices = {"text": doc["choices"], "label": labels}
        key = labels[doc["gold"]]
        rows.append({"id": doc["id"], "question": question, "choices": choices, "answerKey": key})
    return rows


def official_openbookqa() -> list[dict]:
    """The test split; of the validation split the raw rows are embedded too."""
    rows = []
    for doc in documents.requests("openbookqa-test_rc_5shot"):
        stem = doc["query"][len("Question: ") : -len("\nAnswer:")]
        choices = {"text": doc["choices"], "label": list("ABCD")}
        key = "ABCD"[doc["gold"]]
        rows.append({"id": doc["id"], "question_stem": stem, "choices": choices, "answerKey": key})
    return rows


def titles() -> list[str]:
    """Titles of BoolQ's passages, which SuperGLUE writes in front and the plain data set lacks."""
    queries = [doc["query"] for doc in documents.requests("boolq-val_rc_5shot")]
    return [query.split(" -- ", 1)[0] for query in queries]


def official_boolq() -> list[dict]:
    rows = zip(documents.arrow("boolq-none"), titles(), strict=True)
    return [
        {
            "question": row["question"],
            "passage": f"{title} -- {row['passage']}",
            "idx": number,
            "label": int(row["answer"]),
        }
        for number, (row, title) in enumerate(rows)
    ]


def official_coqa() -> list[dict]:
    stories: dict[str, dict] = {}
    for turn in documents.requests("coqa-bpb_0shot"):
        name, number = turn["id"].rsplit("_turn", 1)
        empty = {"source": turn["source"], "story": turn["story"], "turns": {}}
        stories.setdefault(name, empty)["turns"][int(number)] = turn
    return [official_story(name, **story) for name, story in stories.items()]


def official_story(name: str, source: str, story: str, turns: dict[int, dict]) -> dict:
    ordered = [turns[number] for number in range(len(turns))]
    numbers = list(range(1, len(turns) + 1))

    def answers(which: int) -> dict:
        return {"input_text": [t["answers"][which] for t in ordered], "turn_id": numbers}

    return {
        "id": name,
        "source": source,
        "story": story,
        "questions": {"input_text": [t["question"] for t in ordered], "turn_id": numbers},
        "answers": answers(0),
        "additional_answers": {
            str(which - 1): answers(which) for which in range(1, len(ordered[0]["answers"]))
        },
    }


OFFICIAL = {
    "arc_challenge": official_arc,
    "boolq": official_boolq,
    "coqa": official_coqa,
    "hellaswag": lambda: documents.arrow("hellaswag-none"),
    "openbookqa": official_openbookqa,
    "piqa": lambda: documents.arrow("piqa-plain_text"),
    "rte": lambda: documents.arrow("glue-rte"),
}
IDENTITY = {
    "arc_challenge": "id",
    "boolq": "idx",
    "coqa": "id",
    "hellaswag": "ind",
    "openbookqa": "id",
    "piqa": "goal",
    "rte": "idx",
}


def stand_in(patch: pytest.MonkeyPatch, rows: Callable[[str], list[dict]]) -> list[tuple]:
    """Answer for the hub, in every split alike; what was asked for is noted in the list."""
    asked = []

    def load_dataset(path: str, name: str | None = None, **_) -> datasets.DatasetDict:
        asked.append((path, name))
        task = next(task for task, (*source, _) in HUB.items() if tuple(source) == (path, name))
        found = datasets.Dataset.from_list(rows(task))
        return datasets.DatasetDict({"train": found, HUB[task][2]: found})

    patch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def official_task(task: str, rows: list[dict]):
    """lm-eval's own loading of its own definition; only the hub's answer is ours."""
    folder = Path(lm_eval.tasks.__file__).parent / Path(documents.KNOWN[task].official).parent
    with pytest.MonkeyPatch.context() as patch:
        asked = stand_in(patch, lambda _: rows)
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        found = manager.load([task])["tasks"][task]
    assert asked == [HUB[task][:2]]
    return found
