"""Hypothesis for all tests: no deadline, since machines differ, and the same examples each run.

The embedded model and data are fetched once, when a test first asks for them.
"""

import functools
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("folders", "hostile", "merge_command")
settings.register_profile("tipmini", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tipmini")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole adapter of one module."""
    from folders import MODULE
    from tiny import random_adapter

    random_adapter(0, modules=[MODULE]).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def on_disk(tmp_path, monkeypatch) -> Path:
    """The working folder, with all that adapters_on_disk writes."""
    from adapters_on_disk import write_all

    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded model and data."""
    from tipmini_lab.evaluation import assets

    return assets.fetch()


@pytest.fixture(scope="session")
def tokenizer(embedded):
    """The embedded model's own tokenizer."""
    from tipmini_lab.evaluation.model import load_tokenizer

    return load_tokenizer(embedded / "model")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, embedded, tokenizer) -> Path:
    """The embedded data beside a tiny random model: what `assets.embedded()` may stand in for."""
    from labs import save_llama

    from tipmini_lab import intact

    folder = tmp_path_factory.mktemp("tiny")
    save_llama(folder / "model", tokenizer)
    intact.seal(folder)
    (folder / "data").symlink_to(embedded / "data")
    return folder


@pytest.fixture
def place(tiny, tokenizer, tmp_path, monkeypatch) -> Path:
    """A folder with an adapter for each task; the tiny model stands for the embedded one."""
    from labs import TASKS, save_adapter

    from tipmini_lab import paths
    from tipmini_lab.evaluation import assets, model

    monkeypatch.setattr(assets, "embedded", lambda: tiny)
    monkeypatch.setattr(model, "keep_memory", lambda: None)
    monkeypatch.setattr(model, "load_tokenizer", lambda _: tokenizer)  # takes a second
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    for seed, task in enumerate(TASKS):
        save_adapter(tmp_path / "adapters" / task, seed)
    return tmp_path


@pytest.fixture
def profile(place):
    """Of the tiny model."""
    from labs import TASKS

    from tipmini_lab.experiments.profiles import Profile

    return Profile(
        name="tiny",
        description="a tiny random model",
        adapters=f"{place}/adapters/{{task}}",
        results=f"{place}/results",
        tasks=TASKS,
        dtype="float32",
        evaluation_rows=4,
        calibration_rows=4,
    )


@pytest.fixture
def two_subjects(embedded, monkeypatch) -> tuple[str, str]:
    """MMLU has these alone."""
    from tipmini_lab.evaluation import mmlu

    subjects = ("anatomy", "virology")
    monkeypatch.setattr(mmlu, "SUBJECTS", subjects)
    for kept in ("definitions", "asked"):  # of as many rows of all subjects
        monkeypatch.setattr(mmlu, kept, functools.cache(getattr(mmlu, kept).__wrapped__))
    return subjects


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The tasks that are measured, in order, as it happens."""
    from tipmini_lab.evaluation import evaluator

    names, answers = [], evaluator.answers

    @functools.wraps(answers)  # the code that cells name is the real one's
    def counting(lm, task, metric):
        names.append(task.config.task)
        return answers(lm, task, metric)

    monkeypatch.setattr(evaluator, "answers", counting)
    return names


@pytest.fixture(scope="session")
def evidence():
    """What the claims are checked against now."""
    from tipmini_lab.book.claims.checks import gathered

    return gathered()


@pytest.fixture(scope="session")
def audited(evidence) -> dict:
    """Every claim by its id, checked."""
    from tipmini_lab.book.claims import page

    return {each.claim.id: each for each in page.audit(evidence=evidence)}


# Small prunings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    """The folder of a small model that can be pruned."""
    import prunable

    return prunable.save_model(tmp_path_factory.mktemp("base") / "model", tokenizer)


@pytest.fixture
def small_runs(tiny, tokenizer, monkeypatch) -> None:
    """Runs read few documents: see `prunable.small_runs`."""
    import prunable

    prunable.small_runs(monkeypatch, tiny, tokenizer)
