"""What is told of a folder: its facts, all its problems, what is worth knowing."""

import pytest
import torch
from folders import CONFIG, WEIGHTS, edit_config, factors_file

from tipmini.models.peft_folder import inspect_folder


def test_inspection_tells_facts_and_all_problems(folder):
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and facts["base"] == "tiny" and facts["task"] == "CAUSAL_LM"
    assert (facts["modules"], facts["targets"], facts["ranks"]) == (1, ["q_proj"], [4])
    assert (facts["scaling"], facts["dtypes"], facts["parameters"]) == ([2.0], ["F32"], 256)
    edit_config(folder, use_dora=True, bias="all", lora_alpha="8")
    (folder / WEIGHTS).write_bytes(factors_file(a=None, x=torch.ones(1)))
    facts = inspect_folder(folder)
    names = ["lora_alpha must", "bias is", "use_dora is", "x is no LoRA", "lora_A.weight is miss"]
    assert len(facts["problems"]) == len(names) and facts["scaling"] == []
    assert all(n in problem for n, problem in zip(names, facts["problems"], strict=True))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "unsloth/llama-2-7b-bnb-4bit"}, "the base is quantised"),
        ({"base_model_name_or_path": "TheBloke/Llama-2-7B-GPTQ"}, "the base is quantised"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"fan_in_fan_out": True}, "stores its weights transposed"),
        ({"target_modules": ".*q_proj"}, "target_modules is a regular expression"),
        ({"lora_alpha": 0}, "scaling 0: the adapter changes nothing"),
        ({"marvel_size": 3}, "does not know, ignored: 'marvel_size'"),
    ],
)
def test_inspection_notes_what_is_worth_knowing(folder, changes, note):
    assert inspect_folder(folder)["notes"] == []
    edit_config(folder, **changes)
    facts = inspect_folder(folder)
    assert facts["problems"] == [] and len(facts["notes"]) == 1 and note in facts["notes"][0]


def test_inspection_of_nothing(tmp_path):
    facts = inspect_folder(tmp_path / "nowhere")
    assert facts["problems"] == [
        f"{tmp_path}/nowhere: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}"
    ]
