"""What LoRA costs beside its rivals: time of a pass, of switching a task, and a step of training.

Every way has a model of its own; the weights of the base are shared. All take a pass in turn, so
that a drifting machine hits all alike, and a ratio compares two passes of one round.
"""

import copy
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn

from bench import timing
from bench.serving import prompts
from tipmini_lab.book import lora_tables
from tipmini_lab.evaluation import assets, model, objective
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.training import add_lora
from tipmini_lab.experiments.tuning import Tuning, TuningRecipe, tunable
from tipmini_lab.results import store as storage

GROUP = "lora-methods"  # whose ways are measured, as they are declared
RIVALS = ("adapter-h", "adapter-l", "adapter-p", "adapter-drop", "prefix", "prompt")
POINTS = ((1, 1), (8, 1), (32, 1), (1, 128), (8, 128), (32, 128), (1, 512), (8, 512))
ROUNDS, STEPS = 5, 5
TASK = "openbookqa"  # whose rows a step trains on


# A pass -------------------------------------------------------------------------------------------
def served(base: nn.Module) -> dict[str, nn.Module]:
    """{way: model}: the base, LoRA beside its weights and merged into them, and the rivals."""
    ways = {way.name: way.parts for way in tunings.group(GROUP).ways}
    shared = lambda: copy.deepcopy(base, {id(p): p for p in base.parameters()})  # noqa: E731
    told = {key: value for key, value in ways["lora"][0].items() if key != "part"}
    adapted = lambda of: add_lora(of, **told, seed=0, cast=False)  # noqa: E731  PEFT's own layer
    found = {"base": base, "merged": adapted(copy.deepcopy(base)).merge_and_unload()}
    found["lora"] = adapted(shared()).get_base_model()
    return found | {name: tunable(shared(), ways[name], 0)[0] for name in RIVALS}


@torch.inference_mode()
def one_pass(of: nn.Module, tokens: Tensor) -> Tensor:
    """(B, V) logits after (B, T) tokens."""
    places = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    out = of.base_model(tokens, attention_mask=None, position_ids=places, use_cache=False)
    return of.lm_head(out.last_hidden_state[:, -1])


def latencies(
    base: nn.Module, points: Sequence[tuple[int, int]] = POINTS, rounds: int = ROUNDS
) -> list[dict]:
    """Seconds of every round, of every way at every batch and length."""
    found, models = [], served(base)
    for batch, length in points:
        tokens = prompts(base, batch, length)
        works = {
            way: partial(timing.seconds, partial(one_pass, of, tokens))
            for way, of in models.items()
        }
        for way, taken in timing.in_turn(works, rounds).items():
            found.append({"way": way, "batch": batch, "length": length, "seconds": taken})
    return found


# Switching a task ---------------------------------------------------------------------------------
def switching(load: Callable[[], nn.Module], folders: Mapping[str, object], rounds: int) -> dict:
    """Seconds to get from one task's adapter to another's, and what is left of the weights.

    moved: the share of the adapted weights that are no longer what they were, after an adapter was
    added to them and taken away again.
    """
    (first, one), (second, other) = list(folders.items())[:2]
    same = {"autocast_adapter_dtype": False}
    peft = PeftModel.from_pretrained(load(), one, adapter_name=first, **same)
    peft.load_adapter(other, second, **same)
    layers = [m.base_layer for m in peft.modules() if hasattr(m, "base_layer")]
    before = [layer.weight.clone() for layer in layers]
    active = [second, first]  # taken in turn

    def beside() -> None:
        active.reverse()
        peft.set_adapter(active[0])

    def merged() -> None:
        peft.unmerge_adapter()
        beside()
        peft.merge_adapter()

    peft.merge_adapter()
    works = {"BA swapped in the weights": partial(timing.seconds, merged)}
    found = timing.in_turn(works, rounds)
    peft.unmerge_adapter()
    works = {"BA swapped beside the weights": partial(timing.seconds, beside)}
    works["whole model read"] = partial(timing.seconds, load)
    found |= timing.in_turn(works, rounds)
    moved = sum((layer.weight != b).sum() for layer, b in zip(layers, before, strict=True))
    return {"seconds": found, "moved": int(moved) / sum(b.numel() for b in before)}


# A step of training -------------------------------------------------------------------------------
def training(way: str, rows: int) -> Tuning:
    """A run in float32, whose steps need no copies."""
    path = assets.embedded() / "model"
    base = model.load_base(path, "float32", attention="eager")
    every = objective.examples(TASK, model.load_tokenizer(path), rows + 1)
    parts = next(each.parts for each in tunings.group(GROUP).ways if each.name == way)
    return Tuning(base, parts, TuningRecipe(rows, batch=rows, held_out=1, epochs=9), every, 1.0)


def step_memory(way: str, rows: int) -> dict:
    """Bytes of a step in a process of its own: weights, gradients, moments, all that it took."""
    made = training(way, rows)
    timing.give_memory_back()
    risen = timing.peak_memory(lambda: made.step(0))
    states = [t for s in made.optimizer.state.values() for t in s.values() if t.ndim]
    trained = sum(p.numel() for p in made.factors.values())
    return {
        **{"trained": trained, "gradients": 4 * trained, "risen": risen},
        "weights": sum(4 * p.numel() for p in made.model.parameters()),
        "moments": sum(t.numel() * t.itemsize for t in states),
    }


def steps(ways: Sequence[str] = ("full", "lora"), rows: int = 16, rounds: int = STEPS) -> dict:
    """Memory and seconds of a step of full tuning and of LoRA."""
    memory = {way: timing.in_new_process(step_memory, way, rows) for way in ways}
    runs = {way: training(way, rows) for way in ways}
    works = {way: partial(timing.seconds, partial(run.step, 1)) for way, run in runs.items()}
    taken = timing.in_turn(works, rounds)
    tokens = sum(len(example.row) for example in runs[ways[0]].train)
    found = {way: memory[way] | {"seconds": taken[way]} for way in ways}
    return {"dtype": "float32", "rows": rows, "tokens": tokens, "ways": found}


# All of it ----------------------------------------------------------------------------------------
def measure(lab: Lab, points: Sequence[tuple[int, int]] = POINTS, rounds: int = ROUNDS) -> dict:
    load = partial(model.load_base, lab.model_path, lab.dtype, attention="sdpa")
    folders = {task: lab.adapter_path(task) for task in lab.profile.tasks[:2]}
    return {
        "points": latencies(load(), points, rounds),
        "switching": switching(load, folders, rounds),
        "training": steps(rounds=rounds),
    }


def store(lab: Lab, **options: object) -> str:
    """Measure, write results/lora-bench.json, and return what the terminal shows."""
    model.keep_memory()
    told = {"command": "python -m bench lora", "profile": lab.profile.name, "dtype": lab.dtype}
    found = told | timing.made() | measure(lab, **options)
    storage.write(lora_tables.STORED, json.dumps(found, indent=1) + "\n")
    medians = {
        f"{p['way']}, {p['batch']} x {p['length']}": statistics.median(p["seconds"])
        for p in found["points"]
    }
    return json.dumps({"medians": medians, "switching": found["switching"]}, indent=1)
