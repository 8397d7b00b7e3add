"""Calibration beside Wanda's procedure: block after block, each sequence twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.lab.bench.timing import in_new_process, peak_memory, side_by_side
from tipmini.lab.experiments import Lab
from tipmini.lab.profiles import load_profile

TASK = "hellaswag"


def measure(lab: Lab) -> dict:
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
