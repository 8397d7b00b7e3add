"""Learnt weights as pictures."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from tipmini.lab.figures import SIGNED, WIDTH, _bar, styled
from tipmini.tip import block_of


@styled
def weight_maps(weights: Mapping[str, Mapping[str, float]]) -> Figure:
    """{task: {module: weight}}: a panel a kind of module, tasks by transformer blocks."""
    kinds = _kinds(weights)
    figure = Figure((WIDTH, 1.0 + 1.9 * len(kinds)), layout="constrained")
    reach = max(abs(w) for own in weights.values() for w in own.values())
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False).ravel()
    for axes, (kind, modules) in zip(panels, kinds.items(), strict=True):
        values = np.array([[own[module] for module in modules] for own in weights.values()])
        image = axes.imshow(values, aspect="auto", cmap=SIGNED, vmin=-reach, vmax=reach)
        axes.set(title=kind)
        axes.set_yticks(range(len(weights)), list(weights))
    panels[-1].set_xlabel("layer (transformer block)")
    _bar(figure, image, list(panels), label="weight", orientation="horizontal")
    return figure


def _kinds(weights: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """{kind: its modules in the order of the blocks}, e.g. "self_attn.q_proj"."""
    kinds: dict[str, list[str]] = {}
    for module in next(iter(weights.values())):
        kind = module.removeprefix(block_of(module)).strip(".") or module
        kinds.setdefault(kind, []).append(module)
    return kinds
