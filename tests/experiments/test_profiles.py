"""Profiles: the shipped files, and what is said of a wrong one."""

import pytest
import yaml
from pydantic import ValidationError

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.evaluation import documents, tasks
from tipmini_lab.experiments.profiles import FOLDER, Profile, load_profile, names

GOOD = {"name": "mine", "description": "a try", "results": "_build/results/mine"}
COQA = "coqa"


def test_the_four_are_shipped():
    assert names() == ["a40", "full", "mini", "smoke"]


@pytest.mark.parametrize("name", names())
def test_shipped_files_load_and_say_what_they_are(name):
    profile = load_profile(name)
    text = (FOLDER / f"{name}.yaml").read_text()
    assert profile.name == name and len(profile.description) > 20
    assert text.startswith("# ") and text.splitlines()[0].endswith(".")
    assert set(yaml.safe_load(text)) <= set(Profile.model_fields)
    assert profile.store == paths.REPOSITORY / profile.results


def test_every_profile_has_a_store_of_its_own():
    assert len({load_profile(name).store for name in names()}) == len(names())


def test_the_settings_of_the_paper_are_the_same_everywhere():
    """128 train rows, S_org = 0.7, all seven tasks: only `smoke` takes less."""
    for name in set(names()) - {"smoke"}:
        profile = load_profile(name)
        assert (profile.calibration_rows, profile.base_sparsity, profile.seed) == (128, 0.7, 0)
        assert profile.tasks == documents.TASKS


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("smoke", {"rte": 8, "openbookqa": 8}),
        ("mini", {"rte": 96, "hellaswag": 96, "coqa": 32}),
        ("full", {"rte": None, "coqa": None, "hellaswag": 2000}),
        ("a40", {"rte": None, "hellaswag": None}),
    ],
)
def test_rows_of_a_task(name, rows):
    profile = load_profile(name)
    assert {task: profile.rows(task) for task in rows} == rows


def written(folder, **fields) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump(GOOD | fields))
    return str(folder / "mine.yaml")


def test_a_file_of_ones_own(tmp_path):
    profile = load_profile(written(tmp_path, evaluation_rows=5, evaluation_rows_of={COQA: 2}))
    assert profile.rows("rte") == 5 and profile.rows(COQA) == 2
    assert profile.model == "embedded" and profile.calibration_rows == 128


def refusal(file: str) -> str:
    with pytest.raises(TipminiError) as error:
        load_profile(file)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("base_sparcity", "base_sparsity"),
        ("droprate", "drop_rate"),
        ("task", "tasks"),
        ("eval_rows", "evaluation_rows"),
        ("Seed", "seed"),
        ("calibration", "calibration_rows"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path, key, near):
    file = written(tmp_path, **{key: 1})
    assert refusal(file) == f"{file}: unknown key {key!r}; the nearest valid one is {near!r}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_sparsity": 1.5}, "base_sparsity: Input should be less than or equal to 1"),
        ({"drop_rate": 1}, "drop_rate: Input should be less than 1"),
        ({"evaluation_rows": 0}, "evaluation_rows: Input should be greater than or equal to 1"),
        ({"calibration_rows": "many"}, "calibration_rows: Input should be a valid integer"),
        ({"device": "tpu"}, "device: Input should be 'cpu' or 'cuda'"),
        ({"dtype": "int8"}, "dtype: Input should be 'auto', 'bfloat16', 'float16' or 'float32'"),
        ({"tasks": ["rte", "hellswag"]}, "tasks: Value error, 'hellswag' is not one of arc_"),
        ({"evaluation_rows_of": {"hellswag": 5}}, "evaluation_rows_of: Value error, 'hellswag' is"),
        ({"adapter_names": {"boolqq": "b"}}, "adapter_names: Value error, 'boolqq' is not one of"),
        ({"name": None}, "name: Input should be a valid string"),
        ({"evaluation_rows_of": {"rte": "all"}}, "evaluation_rows_of.rte: Input should be a"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, fields, said):
    file = written(tmp_path, **fields)
    assert refusal(file).startswith(f"{file}: {said}")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word", "a: [1,\nb: 2", "a: b: c"])
def test_not_a_mapping(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    refusal(str(tmp_path / "mine.yaml"))


def test_something_missing(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert "description: Field required" in refusal(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["maxi", "", "mini.yml", "nowhere/mine.yaml"])
def test_no_such_profile(name):
    assert refusal(name) == f"profile {name!r}: not one of a40, full, mini, smoke"


def test_a_profile_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_profile("mini").seed = 1


@pytest.mark.parametrize("name", ["smoke", "mini", "full"])
def test_no_reference_answer_is_longer_than_what_may_be_generated(embedded, tokenizer, name):
    task = tasks.load("coqa")
    answers = {answer for doc in task.eval_docs for answer in task.doc_to_target(doc)}
    longest = max(len(tokenizer.encode(f" {answer}\n")) for answer in answers)
    assert longest < load_profile(name).answer_tokens
