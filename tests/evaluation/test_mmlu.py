"""MMLU's prompts against lm-eval's own loading of its own definitions, and against plain text."""

import datasets
import pytest
from lm_eval.tasks import TaskManager

from tipmini_lab.evaluation import mmlu
from tipmini_lab.evaluation.assets import SUBJECTS

pytestmark = pytest.mark.usefixtures("embedded")
COMPARED = ("abstract_algebra", "high_school_us_history", "moral_scenarios")


def official(subject: str):
    """lm-eval's own task; only the hub's answer is ours, and it knows all test rows."""

    def load_dataset(path: str, name: str, **_) -> datasets.DatasetDict:
        assert (path, name) == ("cais/mmlu", subject)
        rows = {split: mmlu.rows(subject, split) for split in ("dev", "test")}
        return datasets.DatasetDict({n: datasets.Dataset.from_list(r) for n, r in rows.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        manager = TaskManager(include_defaults=False, include_path=str(mmlu.FOLDER))
        (found,) = manager.load([f"mmlu_{subject}"])["tasks"].values()
    found.set_config("num_fewshot", mmlu.SHOTS)
    return found


def requests(task) -> list[tuple]:
    """What a model is asked of the first three rows."""
    task.build_all_requests(limit=3, rank=0, world_size=1)
    return [request.args for request in task.instances]


@pytest.mark.parametrize("subject", COMPARED)
def test_a_model_is_asked_what_lm_eval_asks(subject):
    ours, theirs = mmlu.definition(subject, 4), official(subject)
    told = requests(ours)
    assert told == requests(theirs) and len(told) == 3 * 4
    assert len(ours.eval_docs) == 4 and len(theirs.eval_docs) == len(mmlu.rows(subject, "test"))
    said = [(-float(number), False) for number in (3, 1, 2, 4)]  # B
    for doc in ours.eval_docs:
        right = {"acc": float(doc["answer"] == 1)}
        assert right.items() <= ours.process_results(doc, said).items()


def question(row: dict) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def test_a_prompt_is_the_subject_five_answered_questions_and_the_question():
    subject = "abstract_algebra"
    shots = [f"{question(r)} {'ABCD'[r['answer']]}" for r in mmlu.rows(subject, "dev")]
    head = "The following are multiple choice questions (with answers) about abstract algebra."
    first = mmlu.rows(subject, "test")[0]
    prompt, letter = requests(mmlu.definition(subject, 1))[1]
    assert len(shots) == 5 and letter == " B"
    assert prompt == "\n\n".join([head, *shots, question(first)])


def test_every_subject_is_there_with_all_its_rows():
    assert sorted(f.stem[5:] for f in mmlu.FOLDER.glob("mmlu_*.yaml")) == sorted(SUBJECTS)
    tested = {subject: mmlu.rows(subject, "test") for subject in SUBJECTS}
    assert (len(tested), sum(map(len, tested.values()))) == (57, 14042)
    assert {len(mmlu.rows(subject, "dev")) for subject in SUBJECTS} == {mmlu.SHOTS}
    rows = [row for own in tested.values() for row in own]
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in rows)


def test_all_subjects_are_asked_in_order(two_subjects):
    found = mmlu.asked(2)
    rows = [row for subject in two_subjects for row in mmlu.rows(subject, "test")[:2]]
    assert [right for *_, right in found] == [row["answer"] for row in rows]
    assert all(question(row) in prompt for row, (prompt, *_) in zip(rows, found, strict=True))
    assert all(letters == list("ABCD") for _, letters, _ in found)
