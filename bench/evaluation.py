"""What this machine can do at best, and evaluation and calibration beside their peers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn

import tipmini as tm
from bench import timing
from tipmini_lab.evaluation import evaluator, tasks
from tipmini_lab.evaluation.model import load_base, scored_targets
from tipmini_lab.evaluation.packing import flatten, pack
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import load_profile


def measure_limits(lab: Lab) -> dict:
    """Operations a second of matrix products, bytes a second of a copy, and a forward pass."""
    return {
        "matrix_product": timing.matmul_peak(getattr(torch, lab.dtype)),
        "bandwidth": timing.bandwidth(),
        "forward": forward(lab),
    }


@torch.inference_mode()
def forward(lab: Lab) -> dict[str, float | str]:
    """Tokens and operations a second of one full pass of packed questions."""
    batch = flatten([pack(list(range(1, 65)), [[5] * 17] * 4) for _ in range(16)])
    head, tokens = lab.base.lm_head.weight.numel(), batch.tokens.numel()
    operations = 2 * (block_parameters(lab.base) * tokens + head * len(batch.reads))
    taken = timing.median_seconds(lambda: scored_targets(lab.base, batch))
    return {"dtype": lab.dtype, "tokens": tokens / taken, "operations": operations / taken}


def block_parameters(model: nn.Module) -> int:
    """Weights that every token meets: those of the blocks, without embedding and head."""
    return sum(p.numel() for n, p in model.named_parameters() if ".layers." in n)


# The mini suite beside lm-eval's own Hugging Face backend -----------------------------------------
TRIAL = 8  # rows of every task that choose the backend's batch size
SIZES = (1, 4, 16)
STEP = 0.125  # of a bfloat16 number between 16 and 32, as logits are
ALIKE = 24  # rows of every task that are compared in float32


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter]:
    """The "tokens" and "passes" that a decoder computes, padding included."""
    found = Counter()
    note = lambda _, inputs: found.update(tokens=inputs[0].numel(), passes=1)  # noqa: E731
    handle = model.get_input_embeddings().register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def backend(lab: Lab, batch: int, model: nn.Module) -> HFLM:
    """lm-eval's `hf` model."""
    same = {"tokenizer": lab.tokenizer, "backend": "causal", "device": lab.profile.device}
    return HFLM(pretrained=model, batch_size=batch, **same)


def measure_evaluation(lab: Lab) -> dict:
    """Every task of the profile with both: tokens, seconds, and how often they say the same."""
    trial = [tasks.load(name, TRIAL) for name in lab.profile.tasks]
    stock = load_base(lab.model_path, lab.dtype, lab.profile.device, attention="sdpa")
    peers = {size: backend(lab, size, stock) for size in SIZES}
    taken = {
        size: sum(timing.seconds(partial(evaluator.samples, lm, task)) for task in trial)
        for size, lm in peers.items()
    }
    best = min(taken, key=taken.__getitem__)
    other = min(taken.keys() - {best})
    found = {name: beside(lab, peers[best], peers[other], name) for name in lab.profile.tasks}
    sizes = {"batch_size": best, "other_size": other, "tried": taken}
    return sizes | {"parameters": block_parameters(lab.base), "tasks": found}


def beside(lab: Lab, peer: HFLM, again: HFLM, name: str) -> dict:
    """One task with both models, one after the other, on all rows of the profile.

    again: the peer at another batch size, which tells how often rounding alone changes an answer.
    """
    definition, before = lab.task(name), lab.lm.needed
    found: dict = {"rows": len(definition.eval_docs)}
    said: dict[str, list[dict]] = {}
    for side, lm in {"ours": lab.lm, "peer": peer}.items():
        answer = lambda lm=lm, side=side: said.update({side: evaluator.samples(lm, definition)})  # noqa: E731
        with counted(lm.model) as counter:
            found[f"{side}_seconds"] = timing.seconds(answer)
        found |= {f"{side}_{what}": counter[what] for what in ("tokens", "passes")}
    same = lambda one: [prediction(a, name) == b for a, b in zip(one, theirs, strict=True)]  # noqa: E731
    theirs = [prediction(sample, name) for sample in said["peer"]]
    clear = [decided(sample, name) for sample in said["peer"]]
    ours = same(said["ours"])
    return found | {
        "needed": lab.lm.needed - before,
        "same": sum(ours),
        "decided": sum(clear),
        "same_decided": sum(a and b for a, b in zip(ours, clear, strict=True)),
        "itself": sum(same(evaluator.samples(again, definition))),
    }


def prediction(sample: dict, task: str) -> object:
    """What a model answered: the number of a choice, or the line that CoQA's metric reads."""
    if task == "coqa":
        return sample["filtered_resps"][0].strip().split("\n")[0]
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
    """Whether a choice leads by more than a step of a logit in bfloat16, which rounding can move.

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
    peaks = [timing.in_new_process(memory_of, work) for work in (ours, theirs)]
    memory = dict(zip(("bytes", "peer_bytes"), peaks, strict=True))
    timed = timing.side_by_side(partial(ours, lab, encoded), partial(theirs, lab, encoded))
    return {"task": TASK, **size, "apart": apart, **memory, **timed}


def sequences(lab: Lab) -> list[list[int]]:
    return lab.tokenizer(lab.norms.texts(TASK))["input_ids"]


def ours(lab: Lab, encoded: list[list[int]]) -> dict[str, Tensor]:
    modules = [f"model.layers.{name}" for name in _linear(lab.base.model.layers)]
    return tm.calibrate(lab.base, lab.norms.padded(encoded), modules)


def theirs(lab: Lab, encoded: list[list[int]]) -> dict[str, Tensor]:
    return wandas_norms(lab.base, encoded)


def memory_of(work: Callable[[Lab, list[list[int]]], object]) -> float | None:
    """Bytes above model and texts; to be called in a process of its own."""
    lab = Lab(load_profile("mini"))
    encoded = sequences(lab)
    theirs(lab, encoded[:1])  # the weights' pages are read from the file at their first use
    return timing.peak_memory(lambda: work(lab, encoded))


def _linear(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


@torch.no_grad()
def wandas_norms(model: nn.Module, encoded: list[list[int]]) -> dict[str, Tensor]:
    """As Wanda's release measures: the inputs of each block are kept, and every sequence goes
    through a block once to be measured and once more, as if pruned, to feed the next block."""
    hidden = [model.model.embed_tokens(torch.tensor([tokens])) for tokens in encoded]
    places = [torch.arange(len(tokens))[None] for tokens in encoded]
    rotate = model.model.rotary_emb
    rotary = [rotate(h, position_ids=p) for h, p in zip(hidden, places, strict=True)]
    norms: dict[str, Tensor] = {}
    for number, block in enumerate(model.model.layers):
        layers = _linear(block)
        squares = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}
        hooks = [layer.register_forward_hook(_adding(squares[n])) for n, layer in layers.items()]
        for states, turn in zip(hidden, rotary, strict=True):
            block(states, position_embeddings=turn)
        for hook in hooks:
            hook.remove()
        pairs = zip(hidden, rotary, strict=True)
        hidden = [block(states, position_embeddings=turn) for states, turn in pairs]
        for name, total in squares.items():
            norms[f"model.layers.{number}.{name}"] = (total / len(encoded)).sqrt()
    return norms


def _adding(total: Tensor):
    def hook(_, inputs: tuple[Tensor, ...], __) -> None:
        total.add_(inputs[0].reshape(-1, len(total)).float().square().sum(0))

    return hook
