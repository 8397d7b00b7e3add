"""The tasks' records and rows, in the schema that lm-eval's definitions expect, and two corpora."""

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from string import ascii_uppercase

from tipmini.errors import TipminiError
from tipmini.models.files import one_line, parse_json
from tipmini_lab.evaluation import assets

Rows = Callable[[], list[dict]]


ANSWERS = ("answer", "completion", "response", "output")  # as people call what follows a prompt


def own_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a user's own file, of which a .txt has one a line, and a .jsonl a JSON object.

    An object has "text", or "prompt" and one of `ANSWERS`, between which a blank is put unless
    there is white space already. A row is {"prompt", "answer"}, of a text the answer alone. Raises
    TipminiError, one line, for anything else.
    """
    if file.suffix not in (".txt", ".jsonl"):  # of a .json or .csv each line would be a text
        raise TipminiError(f"{file}: name it .txt (one example a line) or .jsonl")
    try:
        whole = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise TipminiError(f"{file}: not a readable text file ({one_line(error)})") from None
    # split: unlike splitlines, which parts at characters that JSON has within its strings.
    lines = {n: line for n, line in enumerate(whole.split("\n"), 1) if line.strip()}
    if not lines:
        raise TipminiError(f"{file}: holds no text; give one example a line")
    if file.suffix == ".txt":
        return [{"prompt": "", "answer": line} for line in lines.values()]
    return [_own_row(file, number, line) for number, line in lines.items()]


def _own_row(file: Path, number: int, line: str) -> dict[str, str]:
    try:
        row = parse_json(line.encode())
        found = row if isinstance(row, dict) else {}
        answer = next((found[n] for n in ANSWERS if n in found), None)
        parts = [found["text"]] if "text" in found else [found.get("prompt"), answer]
        known = all(isinstance(part, str) and part.strip() for part in parts)
        "".join(parts if known else ()).encode()  # JSON can name half a character
    except ValueError as error:
        raise TipminiError(f"{file}, line {number}: not JSON ({one_line(error)})") from None
    if not known:
        told = f"text, or prompt and one of {', '.join(ANSWERS)}"
        raise TipminiError(f"{file}, line {number}: needs {told}, and none empty")
    *prompt, answer = parts
    close = not prompt or prompt[0][-1].isspace() or answer[0].isspace()
    return {"prompt": "".join(prompt), "answer": answer if close else f" {answer}"}


@cache
def requests(name: str) -> list[dict]:
    """The distinct documents of a `requests.jsonl.gz`, in file order.

    A file repeats a document once a choice, and some repeat all under a second request form.
    """
    documents: dict[str, dict] = {}
    with gzip.open(assets.embedded() / "data" / f"{name}.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            documents.setdefault(json.dumps(row["doc"], sort_keys=True), row["doc"])
    return list(documents.values())


@cache
def arrow(name: str) -> list[dict]:
    """The raw rows of an Arrow file."""
    import pyarrow

    with pyarrow.ipc.open_stream(assets.embedded() / "data" / f"{name}.arrow") as stream:
        return stream.read_all().to_pylist()


def _columns(rows: list[dict], names: str) -> list[dict]:
    return [{name: row[name] for name in names.split()} for row in rows]


def _choices(name: str, question: str) -> list[dict]:
    """Choices and key as ARC and OpenBookQA keep them; `question` is the question's column."""
    rows = []
    for doc in requests(f"{name}_rc_5shot"):
        stem = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        letters = list(ascii_uppercase[: len(doc["choices"])])
        row = {question: stem, "id": doc["id"], "answerKey": letters[doc["gold"]]}
        rows.append(row | {"choices": {"text": doc["choices"], "label": letters}})
    return rows


def _boolq(split: str) -> list[dict]:
    """SuperGLUE's passages carry their title ("Title -- text"); choices there are yes, no."""
    rows = []
    for doc in requests(f"boolq-{split}_rc_5shot"):
        passage, question = doc["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
        label = int(doc["choices"][doc["gold"]] == "yes")
        rows.append({"passage": passage, "question": question, "idx": doc["idx"], "label": label})
    return rows


def _hellaswag_train() -> list[dict]:
    """Already cleaned text, cut at the activity label so that lm-eval's cleaning rebuilds it."""
    rows = []
    for doc in requests("hellaswag-train_rc_5shot"):
        label, context = doc["query"].split(": ", 1)
        row = {"ind": doc["ind"], "activity_label": label, "ctx_a": context, "ctx_b": ""}
        rows.append(row | {"endings": doc["choices"], "label": str(doc["gold"])})
    return rows


def _coqa() -> list[dict]:
    """Stories put together again from their turns; up to three further answers a turn."""
    stories: dict[str, dict[int, dict]] = defaultdict(dict)
    for turn in requests("coqa-bpb_0shot"):
        name, _, number = turn["id"].rpartition("_turn")
        stories[name][int(number)] = turn
    rows = []
    for name, numbered in stories.items():
        turns = [numbered[number] for number in sorted(numbered)]
        first, *more = zip(*(turn["answers"] for turn in turns), strict=True)
        row = {"id": name, "story": turns[0]["story"]}
        row["questions"] = {"input_text": [turn["question"] for turn in turns]}
        row["answers"] = {"input_text": list(first)}
        row["additional_answers"] = {str(i): {"input_text": list(a)} for i, a in enumerate(more)}
        rows.append(row)
    return rows


def _halves(read: Rows, key: str) -> tuple[Rows, Rows]:
    """Evaluation and train rows: halves by a fixed hash of the document id, which never mix."""

    def half(side: int) -> list[dict]:
        first = lambda row: hashlib.sha256(str(row[key]).encode()).digest()[0]  # noqa: E731
        return [row for row in read() if first(row) % 2 == side]

    return partial(half, 1), partial(half, 0)


@dataclass(frozen=True)
class Task:
    """All that is known of a task."""

    title: str
    official: str  # lm-eval's own definition
    metric: str  # that the paper's numbers correspond to
    evaluation: Rows
    train: Rows | None = None  # None: no rows are trained on
    short: str = ""  # a title for narrow columns
    halved: bool = False  # evaluation and train rows are parts of lm-eval's evaluation split
    training: Mapping[str, float] = field(default_factory=dict)  # its adapter's `TrainingRecipe`
    choosing: int = 48  # train rows (stories) kept from training, by which merges are chosen


# RTE and CoQA have no train rows here: their evaluation rows are split once. Naming lm-eval's files
# saves indexing its 14,000 (12 s a process).
ADAPTED = {
    "arc_challenge": Task(
        "ARC-Challenge",
        "arc/arc_challenge.yaml",
        "acc_norm",
        lambda: _choices("arc_challenge-test", "question"),
        lambda: _choices("arc_challenge-train", "question"),
        short="ARC-C",
        training={"rows": 959, "epochs": 3, "held_out": 160},
    ),
    "boolq": Task(
        "BoolQ",
        "super_glue/boolq/default.yaml",
        "acc",
        lambda: _boolq("val"),
        lambda: _boolq("train"),
        training={"rows": 1200, "held_out": 240, "batch": 32},
    ),
    "coqa": Task(
        "CoQA",
        "coqa/default.yaml",
        "em",
        *_halves(_coqa, "id"),
        halved=True,
        training={"rows": 206, "held_out": 60, "batch": 4, "learning_rate": 5e-4},
        choosing=16,  # stories, of many questions each
    ),
    "hellaswag": Task(
        "HellaSwag",
        "hellaswag/hellaswag.yaml",
        "acc_norm",
        lambda: _columns(arrow("hellaswag-none"), "ind activity_label ctx_a ctx_b endings label"),
        _hellaswag_train,
        short="Hella-<br>Swag",
        training={"rows": 2000, "held_out": 320, "batch": 32, "checks": 3},
    ),
    "openbookqa": Task(
        "OpenBookQA",
        "openbookqa/openbookqa.yaml",
        "acc_norm",
        lambda: _choices("openbookqa-test", "question_stem"),
        lambda: _choices("openbookqa-train", "question_stem"),
        short="OBQA",
        training={"rows": 4557, "epochs": 2, "batch": 32},
    ),
    "piqa": Task(
        "PIQA",
        "piqa/piqa.yaml",
        "acc_norm",
        lambda: arrow("piqa-plain_text"),
        lambda: _columns(requests("piqa-train_rc_5shot"), "goal sol1 sol2 label"),
        training={"rows": 6000, "batch": 32, "learning_rate": 5e-4},
    ),
    "rte": Task(
        "RTE",
        "glue/rte/default.yaml",
        "acc",
        *_halves(lambda: arrow("glue-rte"), "idx"),
        halved=True,
        training={"rows": 106, "epochs": 5, "held_out": 32, "batch": 8, "learning_rate": 5e-4},
        choosing=32,  # there are no more
    ),
}

# Scored of pruned models as well; no adapter is trained on them.
MORE = {
    "arc_easy": Task(
        "ARC-Easy",
        "arc/arc_easy.yaml",
        "acc_norm",
        lambda: _choices("arc_easy-test", "question"),
        short="ARC-E",
    ),
    "winogrande": Task(
        "WinoGrande",
        "winogrande/default.yaml",
        "acc",
        lambda: arrow("winogrande-winogrande_xl"),
        short="Wino-<br>Grande",
    ),
}

TASKS = tuple(ADAPTED)
KNOWN = ADAPTED | MORE


def _passages() -> list[str]:
    return list(dict.fromkeys(row["passage"] for row in arrow("boolq-none")))


def _narratives() -> list[str]:
    texts = (f"{d['query']} {d['answers_text'][0]}" for d in requests("lambada-bpb_0shot"))
    return list(dict.fromkeys(texts))


# Plain text whose perplexity is measured: passages of Wikipedia (BoolQ's, of its validation split)
# and of books (LAMBADA's), each once.
CORPORA = {"wikipedia": _passages, "books": _narratives}
