"""The mini suite beside lm-eval's own Hugging Face backend, in one run and with one model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from tipmini.lab import evaluation, tasks
from tipmini.lab.bench.limits import block_parameters
from tipmini.lab.bench.timing import seconds
from tipmini.lab.experiments import Lab
from tipmini.lab.model import load_base

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


def measure(lab: Lab) -> dict:
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
    return sum(seconds(lambda d=d: evaluation.samples(lm, d)) for d in definitions.values())


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
                lambda lm=lm, side=side: said.update({side: evaluation.samples(lm, definition)})
            )
        found[f"{side}_tokens"], found[f"{side}_passes"] = counter.tokens, counter.passes
    found["needed"] = lab.lm.needed - before
    found["same"] = _same(said["ours"], said["peer"], name)
    clear = [decided(sample, name) for sample in said["peer"]]
    found["decided"] = sum(clear)
    pick = lambda samples: [s for s, is_clear in zip(samples, clear, strict=True) if is_clear]  # noqa: E731
    found["same_decided"] = _same(pick(said["ours"]), pick(said["peer"]), name)
    found["itself"] = _same(evaluation.samples(again, definition), said["peer"], name)
    return found


def _same(one: list[dict], other: list[dict], task: str) -> int:
    pairs = zip(one, other, strict=True)
    return sum(prediction(a, task) == prediction(b, task) for a, b in pairs)


def prediction(sample: dict, task: str) -> object:
    """What a model answered: the number of a choice, or the line that CoQA's metric reads."""
    answers = sample["filtered_resps"]
    if task == "coqa":
        return answers[0].strip().split("\n")[0]
    found = evaluation.scores(sample, tasks.METRIC[task])
    return found.index(max(found))


def alike(lab: Lab) -> dict:
    """Both in float32, where nothing but the order of sums differs, on some rows of every task."""
    model = load_base(lab.model_path, "float32")
    ours = evaluation.PackedLM(model, tokenizer=lab.tokenizer, first_line=True)
    peer = backend(lab, SIZES[1], model)
    found = {"rows": 0, "same": 0, "ties": 0, "apart": 0.0}
    for name in lab.profile.tasks:
        definition = tasks.load(name, ALIKE if name != "coqa" else TRIAL)
        pairs = zip(*(evaluation.samples(lm, definition) for lm in (ours, peer)), strict=True)
        for mine, other in pairs:
            found["rows"] += 1
            found["same"] += prediction(mine, name) == prediction(other, name)
            if name != "coqa":
                found["ties"] += tied(evaluation.scores(other, tasks.METRIC[name]))
                found["apart"] = max(found["apart"], _apart(mine, other))
    return found


def decided(sample: dict, task: str) -> bool:
    """Whether the best two choices are further apart than one step of a bfloat16 logit.

    A logit of 16 to 32 has steps of 1/8. Of a generated answer nobody can tell: it counts.
    """
    if task == "coqa":
        return True
    second, first = sorted(evaluation.scores(sample, tasks.METRIC[task]))[-2:]
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
