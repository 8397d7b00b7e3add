"""Tiny random LLaMAs that read the embedded model's tokens, adapters in PEFT's layout, own rows."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

TASKS = ("openbookqa", "rte")  # of the tiny profile


OWN = {  # a user's own files: the same two texts but for the answers
    "own.txt": "The sky is blue.\n\nWater is wet.\n",
    "own.jsonl": '{"text": "The sky is blue."}\n{"prompt": "Water is", "answer": "wet."}\n',
    "a.jsonl": '{"prompt": "The sky is ", "response": "blue."}\n{"text": "Water is wet."}\n',
    "b.jsonl": '{"prompt": "A rose is", "answer": "red"}\n{"prompt": "1 + 1 =", "answer": "2"}\n',
}
COLOURS = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{train: {rows}, test: {rows}}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "The {{{{thing}}}} is"
doc_to_choice: [red, green, blue]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def save_own(folder: Path) -> None:
    """A user's own rows, and a task of lm-eval's: three questions in tasks/colours.yaml."""
    for name, content in OWN.items():
        (folder / name).write_text(content)
    rows = [{"thing": thing, "answer": i} for i, thing in enumerate(("rose", "leaf", "sky"))]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tasks").mkdir()
    (folder / "tasks/colours.yaml").write_text(COLOURS.format(rows=folder / "rows.jsonl"))


def llama(vocabulary: int = 49152, seed: int = 0, length: int = 2048) -> LlamaForCausalLM:
    """Two layers; weights large enough for its answers to differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=length,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def save_llama(folder: Path, tokenizer, seed: int = 0) -> Path:
    """A folder that stands in for the embedded model's."""
    llama(seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, seed: int) -> Path:
    """A random adapter of the tiny LLaMA, written by PEFT itself."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,  # B random as well: an adapter that does something
        task_type="CAUSAL_LM",
    )
    model = llama()
    torch.manual_seed(seed)
    get_peft_model(model, config).save_pretrained(folder)
    return folder
