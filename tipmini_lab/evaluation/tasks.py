"""The tasks: lm-eval's own definitions, reading the embedded rows instead of the hub's."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import datasets
import lm_eval.tasks
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini_lab.evaluation.documents import KNOWN, Task, own_rows

METRIC = {name: task.metric for name, task in KNOWN.items()}

NUMBERS = ("id", "idx", "ind")  # of rows, by which the same question differs


def order(count: int, seed: int = 0) -> list[int]:
    """0 ... count - 1 in a fixed order that looks random and is the same everywhere.

    A smaller profile takes a shorter prefix, so its rows are part of a larger one's. Seed 0 is the
    order of all that is trained on and scored; another gives other rows to calibrate with.
    """
    salt = b"" if seed == 0 else b"seed %d " % seed
    return sorted(range(count), key=lambda i: hashlib.sha256(salt + b"row %d" % i).digest())


def rows(task: str, split: str, count: int | None = None) -> list[dict]:
    """Raw rows of the `evaluation` or `train` split: all, or the first `count` of the order."""
    known = _known(task)
    read = known.evaluation if split == "evaluation" else known.train
    if read is None:
        raise TipminiError(f"task {task}: no train rows")
    every = read()
    return [every[i] for i in order(len(every))[:count]]


def official(task: str) -> Path:
    """lm-eval's own definition of a task; TipminiError for one that is not known."""
    return Path(lm_eval.tasks.__file__).parent / _known(task).official


def _known(task: str) -> Task:
    if task not in KNOWN:
        raise TipminiError(f"task {task!r}: not one of {', '.join(KNOWN)}")
    return KNOWN[task]


def fingerprint(task: str) -> list:
    """What makes a task's numbers besides its rows: the definition, its version, the metric."""
    definition = load_yaml(official(task), resolve_func=False)  # functions by name
    functions = {k: Path(v).name for k, v in definition.items() if v and str(v).startswith("/")}
    return [definition | functions, version("lm_eval"), METRIC[task]]


def load(
    task: str, evaluation: int | None = None, train: int = 0, data: str = "embedded"
) -> ConfigurableTask:
    """lm-eval's task over the first `evaluation` and `train` embedded rows of the fixed order.

    With data="hub" lm-eval reads the hub itself, and all train rows are there. Raises TipminiError
    for a task that is not known and for data that the hub does not give.
    """
    if (
        data == "embedded"
    ):  # train rows are not read where none are wanted: HellaSwag's take seconds
        learnt = rows(task, "train", train) if train else []
        return _over(task, rows(task, "evaluation", evaluation), learnt)
    definition = _definition(task)
    try:
        found = ConfigurableTask(config=definition)
    except OSError as error:  # which the hub's and the data sets' own errors are
        first = str(error).strip().splitlines()[0]
        where = f"{definition['dataset_path']}: not in the hub's cache and not fetched"
        raise TipminiError(f"task {task}: data {where}: {first}") from error
    split = definition.get("test_split") or definition["validation_split"]
    every = found.dataset[split]
    found.dataset[split] = every.select(order(len(every))[:evaluation])
    return found


def resolve(task: str) -> None:
    """Raise TipminiError, one line, unless the hub, or its cache, has a task's data set.

    Its description is fetched, no rows.
    """
    told = _definition(task)
    name, source = told.get("dataset_name"), told["dataset_path"]
    try:
        datasets.load_dataset_builder(source, name)
    except Exception as error:  # of the several libraries that reach the hub
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"data {source}: not in the hub's cache and not fetched: {first}"
        raise TipminiError(f"task {task}: {why}") from error


def held_out(task: str, after: int, count: int) -> ConfigurableTask:
    """lm-eval's task, but scored are embedded train rows: `count` of the order after `after`.

    Those of them that stand before as well are left out: OpenBookQA has questions twice.
    """
    content = lambda row: {key: row[key] for key in row if key not in NUMBERS}  # noqa: E731
    every = rows(task, "train", after + count)
    before = [content(row) for row in every[:after]]
    return _over(task, [row for row in every[after:] if content(row) not in before], [])


def _definition(task: str) -> dict:
    return {key: value for key, value in load_yaml(official(task)).items() if key != "tag"}


def _over(task: str, scored: list[dict], learnt: list[dict]) -> ConfigurableTask:
    tested = datasets.Dataset.from_list(scored)
    train = datasets.Dataset.from_list(learnt) if learnt else tested.select([])
    found = datasets.DatasetDict(train=train, validation=tested, test=tested)
    definition = _definition(task) | {"custom_dataset": lambda **_: found}
    if read := definition.get("process_docs"):
        definition["process_docs"] = _without_bars(read)
    return ConfigurableTask(config=definition)


def _without_bars(read: Callable) -> Callable:
    """The same without datasets' bars: rows that are there already are read in no time."""

    @wraps(read)
    def quietly(docs: datasets.Dataset) -> datasets.Dataset:
        if datasets.are_progress_bars_disabled():
            return read(docs)
        datasets.disable_progress_bars()
        try:
            return read(docs)
        finally:
            datasets.enable_progress_bars()

    return quietly


def text(definition: ConfigurableTask, doc: dict) -> str:
    """A document as a training text: the prompt and its (first) right answer."""
    choices, gold = answers(definition, doc)
    return f"{definition.doc_to_text(doc)}{definition.config.target_delimiter}{choices[gold]}"


def answers(definition: ConfigurableTask, doc: dict) -> tuple[list[str], int]:
    """A document's choices and which is right; without choices its (first) right answer alone."""
    target = definition.doc_to_target(doc)
    target = target[0] if isinstance(target, list) else target
    if definition.config.doc_to_choice is None:
        return [str(target)], 0
    choices = definition.doc_to_choice(doc)
    return choices, choices.index(target) if isinstance(target, str) else target


# What is learnt of: packaged tasks, lm-eval's, and a user's own -----------------------------------
Source = str | ConfigurableTask  # a packaged task's name, or a definition that has its train rows


def sources(
    names: Sequence[str], files: Sequence[Path] = (), include: Path | None = None
) -> dict[str, Source]:
    """By its name each task that train rows are read of, then each of a user's own files.

    include: the folder of a user's own YAMLs, all names are then lm-eval's. Raises TipminiError,
    one line, for what is not there, has no train rows, or comes twice.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of rows that we hand it
    packaged = () if include else KNOWN
    others = [name for name in names if name not in packaged]
    manager = known_to_lm_eval(others, include) if others else None
    found = {n: n if n in packaged else _declared(n, manager) for n in names}
    found |= {file.name: _own(file) for file in files}
    if len(found) < len(names) + len(files):
        raise TipminiError("a task or a text is given twice; give each once, under its own name")
    return found


def training(source: Source, count: int) -> tuple[ConfigurableTask, list[dict]]:
    """A source's definition, and its first `count` train rows of the fixed order."""
    if isinstance(source, str):
        definition = load(source, evaluation=1, train=count)
        return definition, list(definition.training_docs())
    docs = source.training_docs()
    return source, [docs[i] for i in order(len(docs))[:count]]


def texts(source: Source, count: int) -> list[str]:
    """The first `count` train rows as texts."""
    definition, docs = training(source, count)
    return [text(definition, doc) for doc in docs]


def unlabelled(definition: ConfigurableTask, docs: Sequence[dict]) -> list[str]:
    """Documents as texts that tell no answer: each with one of the choices that it lists, the next
    document with the next; a conversation up to its first question. A text without a prompt is one
    itself."""
    found = []
    for number, doc in enumerate(docs):
        prompt = turns(definition, doc)[0]
        if definition.config.doc_to_choice is not None:
            choices = definition.doc_to_choice(doc)
            prompt += f"{definition.config.target_delimiter}{choices[number % len(choices)]}"
        found.append(prompt or text(definition, doc))
    return found


def turns(definition: ConfigurableTask, doc: dict) -> list[str]:
    """What is asked one after the other, each up to where its answer begins."""
    prompt = definition.doc_to_text(doc)
    if definition.config.task != "coqa":
        return [prompt]
    first, *others = (f"Q: {asked}\n\nA:" for asked in doc["questions"]["input_text"])
    return [prompt[: prompt.index(first)] + first, *(f"\n\n{turn}" for turn in others)]


def is_normed(definition: ConfigurableTask) -> bool:
    """Whether choices are scored by their likelihood over their length."""
    if definition.config.task in METRIC:
        return METRIC[definition.config.task] == "acc_norm"
    return any(each["metric"] == "acc_norm" for each in definition.config.metric_list or ())


def _own(file: Path) -> ConfigurableTask:
    """A user's own rows as a task of lm-eval's, whose answers are told rather than chosen."""
    rows = datasets.Dataset.from_list(own_rows(file))
    return ConfigurableTask(
        config={
            "task": file.name,
            "custom_dataset": lambda **_: datasets.DatasetDict(train=rows, test=rows),
            "output_type": "loglikelihood",
            "training_split": "train",
            "test_split": "test",
            "doc_to_text": lambda row: row["prompt"],
            "doc_to_target": lambda row: row["answer"],
            "target_delimiter": "",
        }
    )


def _declared(name: str, manager: TaskManager) -> ConfigurableTask:
    """A task that lm-eval's index has, with its train rows."""
    if name not in manager.all_subtasks:
        raise TipminiError(f"task {name}: a group of lm-eval's; name one task of it")
    try:
        with _data(name):
            (found,) = manager.load([name])["tasks"].values()
    except TipminiError:
        raise
    except Exception as error:  # of any kind, by what stands in the YAML
        told = f"{type(error).__name__}: {one_line(error)}"
        raise TipminiError(f"task {name}: lm-eval can't use its YAML: {told}") from error
    if not found.has_training_docs():
        own = "give others, or rows of your own (--text)"
        raise TipminiError(f"task {name}: its YAML names no training_split; {own}")
    if getattr(found, "multiple_input", 0):
        raise TipminiError(f"task {name}: its choices are contexts, which nothing is learnt of")
    return found


# Tasks that are not packaged here: lm-eval's own, and a user's ------------------------------------
def known_to_lm_eval(names: Sequence[str], include: Path | None = None) -> TaskManager:
    """lm-eval's index of tasks, with those of a folder; TipminiError for a name in neither."""
    if include and not include.is_dir():
        raise TipminiError(f"{include}: no such folder; give the one that holds the task's YAML")
    manager = TaskManager(include_path=str(include), include_defaults=False) if include else None
    if manager and set(names) <= set(manager.all_subtasks):
        return manager  # lm-eval's own index takes seconds
    manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TipminiError(
                f"task {name!r}: neither packaged ({', '.join(KNOWN)}) nor one of lm-eval's{hint}"
                "; --include-path names the folder of your own"
            )
    return manager


@contextmanager
def _data(names: str) -> Iterator[None]:
    """The failures of the hub and of the data sets as one line."""
    try:
        yield
    except OSError as error:  # which theirs are
        first = str(error).strip().splitlines()[0]
        raise TipminiError(f"{names}: data not to be had: {first}") from error


def simple_evaluate(
    lm: LM, names: Sequence[str], manager: TaskManager, limit: int | None
) -> list[dict[str, object]]:
    """lm-eval's own evaluation: task, metric, mean, standard error and count of each metric.

    Raises TipminiError, one line, where a task's rows can't be had.
    """
    with _data(", ".join(names)):
        found = lm_eval.simple_evaluate(
            lm, tasks=list(names), limit=limit, task_manager=manager, log_samples=False
        )
    told = []
    for task, metrics in found["results"].items():
        count = found["n-samples"].get(task, {}).get("effective")
        for key, mean in metrics.items():
            metric, comma, how = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(mean, float | int):
                error = metrics.get(f"{metric}_stderr,{how}")
                told.append(
                    {"task": task, "metric": metric, "mean": mean, "stderr": error, "count": count}
                )
    return told
