"""Calibration beside Wanda's procedure: block after block, each sequence twice."""

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.lab import packing
from tipmini.lab.bench.timing import peak_memory, side_by_side
from tipmini.lab.experiments import Lab


def measure(lab: Lab, task: str = "hellaswag") -> dict:
    """The norms of what every linear layer reads, of the same texts, with both."""
    encoded = lab.tokenizer(lab.calibration_texts(task))["input_ids"]
    modules = [n for n, m in lab.base.model.named_modules(prefix="model") if _linear(m)]
    parts = packing.batches([len(tokens) for tokens in encoded], lab.profile.tokens)
    padded = [
        lab.tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
        for part in parts
    ]
    ours = lambda: tm.calibrate(lab.base, padded, modules)  # noqa: E731
    theirs = lambda: wandas_norms(lab.base, encoded)  # noqa: E731
    mine, other = ours(), theirs()
    apart = max(((mine[n] - other[n]).norm() / other[n].norm()).item() for n in modules)
    memory = {"bytes": peak_memory(ours), "peer_bytes": peak_memory(theirs)}
    size = {"rows": len(encoded), "tokens": sum(map(len, encoded)), "modules": len(modules)}
    return {"task": task, **size, "apart": apart, **memory, **side_by_side(ours, theirs)}


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
