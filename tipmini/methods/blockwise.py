r"""Merges that run the base model: block by block, on what the blocks merged so far put out.

RegMean takes each adapter's inputs as that adapter alone makes them. In the merged model a block
reads what the merged blocks before it have made of the text, which is another thing, the more so
the deeper it is. The methods here (`BY_BLOCK` of the table) take each block's inputs from there,
and need the base model and unlabelled rows of each adapter's task. For every adapter a stream of
hidden states is pushed through the merged blocks and, where a method asks for it, another through
the adapter's own, (B, T, D) a batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name

import torch
from torch import Tensor, nn

from tipmini.errors import TipminiError, check_options, refuse_negative, require
from tipmini.methods.baselines import balanced_weight, merge_regmean, root_of, shrunk
from tipmini.methods.merge import Adapters, Part, Weights, assembled, block_of, merge_update
from tipmini.methods.table import BY_BLOCK
from tipmini.models.adapter import LoraAdapter
from tipmini.models.calibration import Batch, decoder_inputs, evaluating
from tipmini.models.factors import LoraFactors, at_least_float32
from tipmini.models.lowrank import truncate

Factors = dict[str, LoraFactors]
BOTH = ("drift", "layerwise")  # methods that read the adapters' own streams as well


@dataclass
class Stream:
    """An adapter's text at one block: a list has an item a batch.

    part: the adapter's factors in the block alone. arguments: what else the block is called with.
    masks: (B, T), True at tokens. merged, own: the hidden states that come into the block from the
    merged model, and from the base with this adapter alone.
    """

    part: Part
    arguments: list[dict]
    masks: list[Tensor]
    merged: list[Tensor]
    own: list[Tensor]

    @property
    def tokens(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks)


@dataclass(frozen=True)
class Block:
    """One block of a decoder and the full names of its modules."""

    name: str
    layer: nn.Module

    def module(self, name: str) -> nn.Module:
        return self.layer.get_submodule(name.removeprefix(f"{self.name}."))


def merge_blockwise(
    model: nn.Module,
    adapters: Adapters,
    batches: Iterable[Iterable[Batch]] | Mapping[str, Iterable[Batch]],
    method: str = "regmean++",
    *,
    weights: Weights = None,
    base_model: str | None = None,
    progress: Callable[[Sequence[Block]], Iterable[Block]] = iter,
    **options: object,
) -> LoraAdapter:
    """Merge adapters block by block, on rows of each one's task, into one adapter of scaling 1.

    model: the bare base, a transformers causal model. adapters, weights (in proportion alone, from
    0 on) and base_model as `merge` takes them. batches: for each adapter, in a list or by name as
    the adapters are, dicts as `calibrate` reads them. method: a name in BY_BLOCK; options are its
    own. progress: wraps the blocks. Raises TipminiError for what does not fit together, as adapters
    of modules outside the model's blocks.
    """
    require("method", method, BY_BLOCK)
    function = resolve_name(BY_BLOCK[method].place)
    known = BY_BLOCK[method].options
    for option in options.keys() - known.keys():
        told = ", ".join(known)
        raise TipminiError(f"merge method {method} has no option {option!r}; it has {told}")
    check_options(method, known | options)
    parts, update = merge_update(adapters, "cat", weights=weights, base_model=base_model)
    refuse_negative({part.name: part.weight for part in parts})
    blocks = _blocks(model, parts)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if len(kinds) > 1:  # the first block's mask would be every block's
        told = ", ".join(sorted(kinds))
        raise TipminiError(f"merging by blocks needs one kind of attention, got {told}")
    named = isinstance(batches, Mapping)
    texts = dict(batches) if named else {str(i): own for i, own in enumerate(batches)}
    if texts.keys() != {part.name for part in parts}:
        need, have = ", ".join(part.name for part in parts), ", ".join(texts)
        raise TipminiError(f"batches must be one for each adapter ({need}), got ({have})")
    merged: Factors = {}
    with torch.no_grad(), evaluating(model):
        streams = [_start(model, blocks[0].layer, part, texts[part.name]) for part in parts]
        for block in progress(blocks):
            both = zip(streams, parts, strict=True)
            here = [_within(block, stream, part) for stream, part in both]
            found = function(block, here, **known | options)
            for stream, own in zip(streams, here, strict=True):
                stream.merged = _pushed(block, stream.merged, stream, found)
                if method in BOTH:
                    stream.own = _pushed(block, stream.own, stream, own.part.adapter.factors)
            merged |= found
    return assembled(parts, {module: merged[module] for module in update})


# The methods --------------------------------------------------------------------------------------
def regmean_block(
    block: Block,
    streams: Sequence[Stream],
    *,
    shrink: float = 0.9,
    scale: float = 1.0,
    balance: float = 0.0,
) -> Factors:
    r"""RegMean on inputs that the blocks merged so far make (RegMean++), layer by layer.

    $\Delta^* = \left(\sum_i w_i \Delta_i G_i\right) \left(\sum_i w_i G_i\right)^{-1}$ as in
    `merge_regmean`, with $G_i$ of what the modules of each adapter's own block read when the blocks
    before it are the merged ones. Options as there. Source: Nguyen et al., "RegMean++: enhancing
    effectiveness and generalization of regression mean for model merging" (arXiv 2508.03121), and
    its code: within the block it is the adapter that computes, not the merge.
    """
    parts = []
    for stream in streams:
        factors, grams = stream.part.adapter.factors, {}
        for i, hidden in enumerate(stream.merged):
            read = _read(block, factors, hidden, stream.arguments[i], factors)
            for names, x in _by_tensor(read):
                rows = x[stream.masks[i]].double()
                gram = rows.T @ rows / stream.tokens
                for name in names:
                    grams[name] = grams.get(name, 0) + gram
        parts.append(replace(stream.part, grams={name: g.cpu() for name, g in grams.items()}))
    return dict(merge_regmean(parts, shrink=shrink, scale=scale, balance=balance))


def drift_block(
    block: Block,
    streams: Sequence[Stream],
    *,
    rank: int | None = None,
    shrink: float = 0.9,
    balance: float = 0.0,
    correction: float = 1.0,
) -> Factors:
    r"""Each adapter's own outputs made of the merged model's inputs, as well as a rank can.

    With inputs X in the model merged so far and Y in the base with adapter i alone, it minimises
    $\sum_i w_i \lVert X (W + \Delta)^\top - Y (W + \Delta_i)^\top \rVert^2$ over the $\Delta$ of
    that rank (`drift_corrected`), module by module in the order in which they are read. By default
    the rank is that of the exact sum. shrink and balance as in `merge_regmean`; correction
    multiplies what is due to $Y \ne X$: at 0 it is RegMean on the merged model's inputs. The
    objective is RegMean's (Jin et al., ICLR 2023), with each side's own inputs.
    """
    first, merged = streams[0], Factors()
    every = {name: None for stream in streams for name in stream.part.adapter.factors}
    for names in _reading_order(block, every, first):
        sums = [_drift_sums(block, names[0], stream, merged) for stream in streams]
        for name in names:
            own = [
                (stream.part, *of)
                for stream, of in zip(streams, sums, strict=True)
                if name in stream.part.adapter.factors
            ]
            top = rank or sum(part.adapter.factors[name].rank for part, _, _ in own)
            weight = block.module(name).weight.double().cpu()
            shares = [balanced_weight(part, name, gram, balance) for part, gram, _ in own]
            pairs = [part.adapter.factors[name] for part, _, _ in own]
            found = drift_corrected(
                weight,
                pairs,
                [shrunk(gram, shrink) for _, gram, _ in own],
                [correction * apart for _, _, apart in own],
                shares,
                top,
                name,
            )
            merged[name] = found
    return merged


def drift_corrected(
    weight: Tensor,
    pairs: Sequence[LoraFactors],
    grams: Sequence[Tensor],
    drifts: Sequence[Tensor],
    shares: Sequence[float],
    rank: int,
    module: str = "the module",
) -> LoraFactors:
    r"""$\Delta^* = \left(\sum_i w_i (\Delta_i G_i + (W + \Delta_i) D_i)\right) G^{-1}$, cut.

    weight W is (d, k); $G_i = X^\top X$ (k, k) of the inputs that there are and $D_i = (Y - X)^\top
    X$ (k, k) of those that the adapter knows, float64; shares are the $w_i$ and $G = \sum_i w_i
    G_i$. With $G = L L^\top$ the error of another $\Delta$ is $\lVert (\Delta - \Delta^*) L
    \rVert^2$ more than the least, so the best of a rank has the largest singular values of
    $\Delta^* L$. Raises TipminiError for a singular G.
    """
    whole = sum(w * gram for w, gram in zip(shares, grams, strict=True))
    right = weight @ sum(w * drift for w, drift in zip(shares, drifts, strict=True))
    for share, pair, gram, drift in zip(shares, pairs, grams, drifts, strict=True):
        right += (share * pair.scaling * pair.b.double()) @ (pair.a.double() @ (gram + drift))
    root = root_of(module, whole)
    turned = torch.linalg.solve_triangular(root, right.T, upper=False).T  # Delta* L
    u, s, vh = torch.linalg.svd(turned, full_matrices=False)
    a = torch.linalg.solve_triangular(root.T, vh[:rank].T, upper=True).T * s[:rank, None]
    return LoraFactors(a.to(pairs[0].a.dtype), u[:, :rank].to(pairs[0].b.dtype), scaling=1.0)


def _drift_sums(
    block: Block, module: str, stream: Stream, merged: Factors
) -> tuple[Tensor, Tensor]:
    """(k, k) each: the mean over tokens of x x^T and of (y - x) x^T; x of the merged model's
    module, y of the adapter's own."""
    gram = drift = 0
    own = stream.part.adapter.factors
    for i, arguments in enumerate(stream.arguments):
        x, y = (
            _read(block, factors, hidden, arguments, [module])[module][stream.masks[i]].double()
            for factors, hidden in ((merged, stream.merged[i]), (own, stream.own[i]))
        )
        gram, drift = gram + x.T @ x, drift + (y - x).T @ x
    return (gram / stream.tokens).cpu(), (drift / stream.tokens).cpu()


def _reading_order(block: Block, modules: Iterable[str], stream: Stream) -> list[list[str]]:
    """The modules as they are read, those of one tensor together."""
    read = _read(block, {}, stream.merged[0], stream.arguments[0], modules)
    return [names for names, _ in _by_tensor(read)]


def _by_tensor(read: Mapping[str, Tensor]) -> Iterator[tuple[list[str], Tensor]]:
    """Modules that read one and the same tensor share it."""
    groups: dict[int, list[str]] = {}
    for name, x in read.items():
        groups.setdefault(id(x), []).append(name)
    for names in groups.values():
        yield names, read[names[0]]


def layerwise_block(
    block: Block,
    streams: Sequence[Stream],
    *,
    rank: int | None = None,
    epochs: int = 3,
    parts: int = 12,
    learning_rate: float = 1e-3,
) -> Factors:
    r"""Each block taught to put out what it does with each adapter, where that adapter is right.

    From `drift_block`'s factors of that rank on AdamW lowers the mean over all adapters i, by
    their weights, of $\lVert f(X_i; \Delta) - f(Y_i; \Delta_i) \rVert^2 / \lVert f(Y_i; 0) -
    f(Y_i; \Delta_i) \rVert^2$, f the whole block, X in the model merged so far and Y in the base
    with adapter i alone, over tokens. 1 is a block that does to the adapter's own inputs what the
    base does. An epoch takes every batch once, in at most so many parts, a step each (an adapter of
    fewer batches has them in turn); the learning rate falls by a cosine. To distil layers one after
    the other on both streams is ProDistill's (Xu et al., ICML 2025), which learns a coefficient for
    every weight; all factors, by these ratios, is ours.
    """
    start = drift_block(block, streams, rank=rank)
    streams = [own for own in streams if own.part.weight]
    if not start or not streams:
        return start
    every = sum(own.part.weight for own in streams)
    goals = [_pushed(block, own.own, own, own.part.adapter.factors) for own in streams]
    sizes = [
        sum(map(_apart, own.masks, _pushed(block, own.own, own, {}), goal)).clamp_min(1e-12)
        for own, goal in zip(streams, goals, strict=True)
    ]
    learnt = {}
    for name, pair in start.items():
        even = truncate(pair, pair.rank)  # both factors of a size, as a step is for both
        factors = {x: getattr(even, x).to(sizes[0].device).requires_grad_() for x in "ab"}
        learnt[name] = replace(even, **factors)
    leaves = [factor for pair in learnt.values() for factor in (pair.a, pair.b)]
    parts = min(parts, max(map(len, goals)))
    optimizer = torch.optim.AdamW(leaves, weight_decay=0.0)
    for step in range(epochs * parts):
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        for own, goal, size in zip(streams, goals, sizes, strict=True):
            for i in _part(len(goal), step % parts, parts):
                with torch.enable_grad(), _adding(block, learnt):
                    out = block.layer(own.merged[i], **own.arguments[i])
                    out = out[0] if isinstance(out, tuple) else out
                    loss = _apart(own.masks[i], out, goal[i])
                    loss *= min(parts, len(goal)) * own.part.weight / (size * every)
                # Of the factors alone: the block's own weights may ask for gradients too.
                for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    leaf.grad += slope
        cosine = 0.5 * (1 + math.cos(math.pi * step / (epochs * parts)))
        optimizer.param_groups[0]["lr"] = learning_rate * cosine
        optimizer.step()
    return {
        name: replace(pair, a=pair.a.detach().cpu(), b=pair.b.detach().cpu())
        for name, pair in learnt.items()
    }


def _apart(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The square of what lies between hidden states (B, T, D), summed over tokens."""
    return (at_least_float32(one[mask]) - at_least_float32(other[mask])).square().sum()


def _part(count: int, number: int, parts: int) -> range:
    """The places of a part, some of each size; of fewer than there are parts one, in turn."""
    return range(number % min(count, parts), count, parts)


# Running a block ----------------------------------------------------------------------------------
class _Enough(Exception):
    """All that was asked for has been read; what follows need not run."""


def _blocks(model: nn.Module, parts: Sequence[Part]) -> list[Block]:
    """All blocks of the decoder, in order; raises TipminiError for modules outside of them."""
    known = dict(model.named_modules())
    factors = {module: pair for part in parts for module, pair in part.adapter.factors.items()}
    for module, pair in factors.items():
        linear, shape = known.get(module), tuple(pair.shape)
        if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != shape:
            raise TipminiError(f"{module}: the model has no linear layer {shape} of this name")
    stacks = {block_of(module).rpartition(".")[0]: module for module in factors}
    parent, *others = stacks
    if others or not isinstance(known.get(parent), nn.ModuleList):
        told = ", ".join(stacks.values())
        raise TipminiError(f"merging by blocks needs modules of one stack of blocks, got {told}")
    return [Block(f"{parent}.{i}", layer) for i, layer in enumerate(known[parent])]


def _start(model: nn.Module, first: nn.Module, part: Part, batches: Iterable[Batch]) -> Stream:
    """What the first block is called with."""
    decoder, device = getattr(model, "base_model", model), next(model.parameters()).device
    stream = Stream(part, [], [], [], [])

    def stop(module: nn.Module, given: tuple, named: dict) -> None:
        hidden = given[0] if given else named.pop("hidden_states")
        stream.merged.append(hidden)
        stream.arguments.append(named)
        raise _Enough

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in batches:
            given = decoder_inputs(batch, device)
            stream.masks.append(given["attention_mask"].bool())
            with suppress(_Enough):
                decoder(**given, use_cache=False)
    finally:
        handle.remove()
    if not stream.masks or not stream.tokens:
        raise TipminiError(f"no token to merge adapter {part.name} with; its batches are empty")
    stream.own = list(stream.merged)
    return stream


def _within(block: Block, stream: Stream, part: Part) -> Stream:
    """The stream with the adapter's factors in the block alone."""
    own = {m: pair for m, pair in part.adapter.factors.items() if m.startswith(f"{block.name}.")}
    return replace(stream, part=replace(part, adapter=replace(part.adapter, factors=own)))


def _pushed(block: Block, hidden: list[Tensor], stream: Stream, factors: Factors) -> list[Tensor]:
    """The hidden states after the block with these factors."""
    with _adding(block, factors):
        every = (block.layer(h, **a) for h, a in zip(hidden, stream.arguments, strict=True))
        return [out[0] if isinstance(out, tuple) else out for out in every]


def _read(
    block: Block,
    factors: Mapping[str, LoraFactors],
    hidden: Tensor,
    arguments: Mapping[str, object],
    modules: Iterable[str],
) -> dict[str, Tensor]:
    """What modules of the block with these factors read, in their order; it runs no further."""
    found: dict[str, Tensor] = {}
    wanted = list(modules)

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[name] = given[0]
        if len(found) == len(wanted):
            raise _Enough

    with _adding(block, factors), ExitStack() as hooks:
        for name in wanted:
            handle = block.module(name).register_forward_pre_hook(partial(note, name))
            hooks.callback(handle.remove)
        if wanted:
            with suppress(_Enough):
                block.layer(hidden, **arguments)
    return found


@contextmanager
def _adding(block: Block, factors: Mapping[str, LoraFactors]) -> Iterator[None]:
    """The modules put out s B A x besides for the while."""

    def add(a: Tensor, b: Tensor, module: nn.Module, given: tuple, out: Tensor) -> Tensor:
        return out + given[0] @ a.T @ b.T

    with ExitStack() as hooks:
        for name, pair in factors.items():
            module = block.module(name)
            a, b = (pair.a * pair.scaling).to(module.weight), pair.b.to(module.weight)
            hooks.callback(module.register_forward_hook(partial(add, a, b)).remove)
        yield
