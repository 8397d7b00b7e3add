"""What this machine can do at best, and evaluation and calibration beside their peers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tipmini as tm
from bench.timing import (
    bandwidth,
    in_new_process,
    matmul_peak,
    median_seconds,
    peak_memory,
    seconds,
    side_by_side,
)
from tipmini_lab.evaluation import evaluator, tasks
from tipmini_lab.evaluation.model import load_base, scored_targets
from tipmini_lab.evaluation.packing import flatten, pack
from tipmini_lab.experiments.experiment import Lab
from tipmini_lab.experiments.profiles import load_profile


def measure_limits(lab: Lab) -> dict:
    """Operations a second of matrix products, bytes a second of a copy, and a forward pass."""
    return {
        "matrix_product": matmul_peak(getattr(torch, lab.dtype)),
        "bandwidth": bandwidth(),
        "forward": forward(lab),
    }


@torch.inference_mode()
def forward(lab: Lab) -> dict[str, float | str]:
    """Tokens and operations a second of one full pass of packed questions."""
    questions = [pack(list(range(1, 65)), [[5] * 17] * 4) for _ in range(16)]
    batch = flatten(questions)
    blocks = block_parameters(lab.base)
    head = lab.base.lm_head.weight.numel()
    operations = 2 * (blocks * batch.tokens.numel() + head * len(batch.reads))
    taken = median_seconds(lambda: scored_targets(lab.base, batch))
    speed = {"tokens": batch.tokens.numel() / taken, "operations": operations / taken}
    return {"dtype": lab.dtype} | speed


def block_parameters(model: nn.Module) -> int:
    """Weights that every token meets: those of the blocks, without embedding and head."""
    return sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)


# The mini suite beside lm-eval's own Hugging Face backend -----------------------------------------
TRIAL = 8  # rows of every task that choose the backend's batch size
SIZES = (1, 4, 16)
STEP = 0.125  # of a bfloat16 number between 16 and 32, as logits are
ALIKE = 24  # rows of every task that are compared in float32


@dataclass
class Counter:
    """Tokens and passes that a decoder computed, padding included."""

    tokens: int = 0
    passes: int = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter]:
    found = Counter()

    def note(_, inputs: tuple) -> None:
        found.tokens += inputs[0].numel()
        found.passes += 1

    handle = model.get_input_embeddings().register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def backend(lab: Lab, batch: int, model: nn.Module):
    """lm-eval's `hf` model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        tokenizer=lab.tokenizer,
        backend="causal",
        batch_size=batch,
        device=lab.profile.device,
    )


def measure_evaluation(lab: Lab) -> dict:
    """Every task of the profile with both: tokens, seconds, and how often they say the same."""
    trial = {name: tasks.load(name, TRIAL) for name in lab.profile.tasks}
    stock = load_base(lab.model_path, lab.dtype, lab.profile.device, attention="sdpa")
    taken = {size: _suite_seconds(backend(lab, size, stock), trial) for size in SIZES}
    best = min(taken, key=taken.__getitem__)
    other = min(taken.keys() - {best})
    peers = [backend(lab, size, stock) for size in (best, other)]
    found = {name: beside(lab, *peers, name) for name in lab.profile.tasks}
    sizes = {"batch_size": best, "other_size": other, "tried": taken}
    return sizes | {"parameters": block_parameters(lab.base), "tasks": found}


def _suite_seconds(lm, definitions: dict) -> float:
    return sum(seconds(lambda d=d: evaluator.samples(lm, d)) for d in definitions.values())


def beside(lab: Lab, peer, again, name: str) -> dict:
    """One task with both models, one after the other, on all rows of the profile.

    again: the peer at another batch size, which tells how often rounding alone changes an answer.
    """
    definition = lab.task(name)
    rows = {"ours": lab.lm, "peer": peer}
    found: dict = {"rows": len(definition.eval_docs)}
    before = lab.lm.needed
    said = {}
    for side, lm in rows.items():
        with counted(lm.model) as counter:
            found[f"{side}_seconds"] = seconds(
                lambda lm=lm, side=side: said.update({side: evaluator.samples(lm, definition)})
            )
        found[f"{side}_tokens"], found[f"{side}_passes"] = counter.tokens, counter.passes
    found["needed"] = lab.lm.needed - before
    found["same"] = _same(said["ours"], said["peer"], name)
    clear = [decided(sample, name) for sample in said["peer"]]
    found["decided"] = sum(clear)
    pick = lambda samples: [s for s, is_clear in zip(samples, clear, strict=True) if is_clear]  # noqa: E731
    found["same_decided"] = _same(pick(said["ours"]), pick(said["peer"]), name)
    found["itself"] = _same(evaluator.samples(again, definition), said["peer"], name)
    return found


def _same(one: list[dict], other: list[dict], task: str) -> int:
    pairs = zip(one, other, strict=True)
    return sum(prediction(a, task) == prediction(b, task) for a, b in pairs)


def prediction(sample: dict, task: str) -> object:
    """What a model answered: the number of a choice, or the line that CoQA's metric reads."""
    answers = sample["filtered_resps"]
    if task == "coqa":
        return answers[0].strip().split("\n")[0]
    found = evaluator.scores(sample, tasks.METRIC[task])
    return found.index(max(found))


def alike(lab: Lab) -> dict:
    """Both in float32, where nothing but the order of sums differs, on some rows of every task."""
    model = load_base(lab.model_path, "float32")
    ours = evaluator.PackedLM(model, tokenizer=lab.tokenizer, first_line=True)
    peer = backend(lab, SIZES[1], model)
    found = {"rows": 0, "same": 0, "ties": 0, "apart": 0.0}
    for name in lab.profile.tasks:
        definition = tasks.load(name, ALIKE if name != "coqa" else TRIAL)
        pairs = zip(*(evaluator.samples(lm, definition) for lm in (ours, peer)), strict=True)
        for mine, other in pairs:
            found["rows"] += 1
            found["same"] += prediction(mine, name) == prediction(other, name)
            if name != "coqa":
                found["ties"] += tied(evaluator.scores(other, tasks.METRIC[name]))
                found["apart"] = max(found["apart"], _apart(mine, other))
    return found


def decided(sample: dict, task: str) -> bool:
    """Whether the best two choices are further apart than one step of a bfloat16 logit.

    A logit of 16 to 32 has steps of 1/8. Of a generated answer nobody can tell: it counts.
    """
    if task == "coqa":
        return True
    second, first = sorted(evaluator.scores(sample, tasks.METRIC[task]))[-2:]
    shortest = min(len(arguments[1]) - 1 for arguments in sample["arguments"])
    return first - second > STEP / (shortest if tasks.METRIC[task] == "acc_norm" else 1)


def tied(values: Sequence[float]) -> bool:
    """Whether the best two lie within what float32 leaves open."""
    second, first = sorted(values)[-2:]
    return first - second < 1e-4 * abs(first)


def _apart(mine: dict, other: dict) -> float:
    """The largest relative difference of a log-likelihood."""
    pairs = zip(mine["filtered_resps"], other["filtered_resps"], strict=True)
    return max(abs(a - b) / abs(b) for (a, _), (b, _) in pairs)


# Calibration beside Wanda's procedure -------------------------------------------------------------
TASK = "hellaswag"


def measure_calibration(lab: Lab) -> dict:
    """The norms of what every linear layer reads, of the same texts, with both."""
    encoded = sequences(lab)
    mine, other = ours(lab, encoded), theirs(lab, encoded)
    apart = max(((mine[n] - other[n]).norm() / other[n].norm()).item() for n in other)
    size = {"rows": len(encoded), "tokens": sum(map(len, encoded)), "modules": len(other)}
    memory = {
        "bytes": in_new_process(memory_of, ours),
        "peer_bytes": in_new_process(memory_of, theirs),
    }
    timed = side_by_side(lambda: ours(lab, encoded), lambda: theirs(lab, encoded))
    return {"task": TASK, **size, "apart": apart, **memory, **timed}


def sequences(lab: Lab) -> list[list[int]]:
    return lab.tokenizer(lab.norms.texts(TASK))["input_ids"]


def ours(lab: Lab, encoded: list[list[int]]) -> dict[str, Tensor]:
    blocks = lab.base.model.layers.named_modules(prefix="model.layers")
    modules = [name for name, module in blocks if _linear(module)]
    return tm.calibrate(lab.base, lab.norms.padded(encoded), modules)


def theirs(lab: Lab, encoded: list[list[int]]) -> dict[str, Tensor]:
    return wandas_norms(lab.base, encoded)


def memory_of(work: Callable[[Lab, list[list[int]]], object]) -> float | None:
    """Bytes above model and texts; to be called in a process of its own."""
    lab = Lab(load_profile("mini"))
    encoded = sequences(lab)
    theirs(lab, encoded[:1])  # the weights' pages are read from the file at their first use
    return peak_memory(lambda: work(lab, encoded))


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@torch.no_grad()
def wandas_norms(model: nn.Module, encoded: list[list[int]]) -> dict[str, Tensor]:
    """As Wanda's release measures: the inputs of each block are kept, and every sequence goes
    through a block once to be measured and once more, as if pruned, to feed the next block."""
    hidden, positions = _first_inputs(model, encoded)
    norms: dict[str, Tensor] = {}
    for number, block in enumerate(model.model.layers):
        layers = {n: m for n, m in block.named_modules() if _linear(m)}
        squares = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}
        hooks = [layer.register_forward_hook(_adding(squares[n])) for n, layer in layers.items()]
        for states, rotary in zip(hidden, positions, strict=True):
            block(states, position_embeddings=rotary)
        for hook in hooks:
            hook.remove()
        pairs = zip(hidden, positions, strict=True)
        hidden = [block(states, position_embeddings=rotary) for states, rotary in pairs]
        for name, total in squares.items():
            norms[f"model.layers.{number}.{name}"] = (total / len(encoded)).sqrt()
    return norms


def _first_inputs(model: nn.Module, encoded: list[list[int]]) -> tuple[list, list]:
    """What the first block reads of every sequence, and its rotary positions."""
    hidden = [model.model.embed_tokens(torch.tensor([tokens])) for tokens in encoded]
    places = [torch.arange(len(tokens))[None] for tokens in encoded]
    rotate = model.model.rotary_emb
    return hidden, [rotate(h, position_ids=p) for h, p in zip(hidden, places, strict=True)]


def _adding(total: Tensor):
    def hook(_, inputs: tuple[Tensor, ...], __) -> None:
        total.add_(inputs[0].reshape(-1, len(total)).float().square().sum(0))

    return hook
