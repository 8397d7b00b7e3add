"""The card of a merged adapter, read back as the hub reads it."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from tipmini.errors import TipminiError
from tipmini.methods.model_card import CardInput, model_card
from tipmini.models.peft_folder import is_our_card

INPUTS = {
    "boolq": CardInput("a1" * 32),
    "my | odd `piqa`": CardInput("b2" * 32, weight=-0.5),
}
SPARSITY = {
    "boolq": {"model.layers.0": 0.7, "model.layers.1": 0.65},
    "my | odd `piqa`": {"model.layers.1": 1.0},
}
FIDELITY = {"model.layers.0": 0.1234, "model.layers.1": 1.5}


def card(**changes) -> str:
    given = {
        "method": "tip",
        "options": {"sparsity": 0.7, "on": "factors"},
        "inputs": INPUTS,
        "seed": 3,
        "version": "0.1.0",
        "base_model": "meta-llama/Llama-2-7b-hf",
        "task_type": "CAUSAL_LM",
        "sparsity": SPARSITY,
        "fidelity": FIDELITY,
    }
    return model_card(**given | changes)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, its head first."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if "| ---" not in line]
    return [[cell.strip() for cell in line] for line in cells]


def test_the_hub_reads_the_front_matter():
    data = ModelCard(card()).data.to_dict()
    assert data == {
        "base_model": "meta-llama/Llama-2-7b-hf",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merge", "peft", "tipmini"],
    }


LOCAL = ["/home/me/Llama-2-7b-hf", "runs/checkpoint-500", "a\nb: c", "-x-", "ü: #"]


@pytest.mark.parametrize("base", LOCAL)
def test_a_base_that_is_no_hubs_is_not_named(base):
    """A path says nothing to others, and what is no name could be anything."""
    text = card(base_model=base)
    assert text == card(base_model=None) and base not in text
    matter = text.split("---\n", 1)[1].split("\n---\n")[0]
    assert "base_model" not in yaml.safe_load(matter)


def test_without_a_base_or_a_task_nothing_is_claimed():
    text = card(base_model=None, task_type=None)
    assert ModelCard(text).data.to_dict().keys() == {"library_name", "tags"}
    assert ["Base model", "`not named`"] in rows(text, "Settings")


def test_the_tables_hold_every_setting_input_and_layer():
    text = card()
    assert rows(text, "Settings")[1:] == [
        ["Method", "`tip`"],
        ["Base model", "`meta-llama/Llama-2-7b-hf`"],
        ["`on`", "`factors`"],
        ["`sparsity`", "`0.7`"],
        ["Seed", "`3`"],
        ["tipmini", "`0.1.0`"],
    ]
    assert rows(text, "Adapters")[1:] == [
        ["`boolq`", "1", f"`{'a1' * 32}`"],
        ["`my \\| odd 'piqa'`", "-0.5", f"`{'b2' * 32}`"],
    ]
    assert rows(text, "Layers") == [
        ["Layer", "`boolq`", "`my \\| odd 'piqa'`", "Error"],
        ["`model.layers.0`", "0.7000", "", "0.1234"],
        ["`model.layers.1`", "0.6500", "1.0000", "1.5000"],
    ]


def test_what_is_not_known_is_left_out():
    assert "## Layers" not in card(sparsity=None, fidelity=None)
    assert rows(card(sparsity=None), "Layers")[0] == ["Layer", "Error"]
    assert rows(card(fidelity=None), "Layers")[0] == ["Layer", "`boolq`", "`my \\| odd 'piqa'`"]


def test_the_same_merge_has_the_same_card():
    turned = {"on": "factors", "sparsity": 0.7}
    assert card(options=turned) == card()


def test_sparsity_of_an_adapter_that_was_not_merged_is_refused():
    with pytest.raises(TipminiError, match="sparsity of rte, which is none of boolq, my"):
        card(sparsity={"rte": {}})


def test_the_folder_knows_its_own_card(tmp_path):
    for text, ours in [(card(), True), (card(base_model=None), True), ("# By hand", False)]:
        (tmp_path / "README.md").write_text(text)
        assert is_our_card(tmp_path / "README.md") is ours


def test_a_preset_names_its_method():
    assert ["A preset of", "`tip`"] in rows(card(method="tip-inverted"), "Settings")


def test_a_written_base_is_no_adapter():
    data = ModelCard(card(into=True)).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "merge")
    assert "peft" not in data["tags"] and "PeftModel" not in card(into=True)
