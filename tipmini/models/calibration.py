r"""Input norms: how strongly every input channel of a module is driven by a task's own text.

Wanda's released statistic for channel j is $n_j^2 = \frac1N \sum x_j^2$ over all tokens of N
sequences (sequences, not tokens). `norms[name]` is always the norm of what the module `name` reads:
for a LoRA adapter on "model.layers.0.self_attn.q_proj" that is x under this very name, which goes
with A, and A x under "model.layers.0.self_attn.q_proj.lora_B", which goes with B. RegMean needs
more than norms: the whole Gram matrix, by token, so that long texts weigh no more than short ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tipmini.errors import TipminiError, require

Batch = Mapping[str, Tensor]
Progress = Callable[[Iterable[Batch]], Iterable[Batch]]

STATISTICS = ("wanda", "rms", "mean_l2", "gram", "gram_sequences")
GRAMS = ("gram", "gram_sequences")  # matrices, where the others are norms
PER_TOKEN = ("rms", "gram")  # the others are divided by sequences


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    modules: Iterable[str],
    *,
    statistic: str = "wanda",
    progress: Progress = iter,
) -> dict[str, Tensor]:
    r"""Run the batches through the decoder and return {module: (k,) float32 norms, on the CPU}.

    model: a transformers causal model, or a PeftModel around one (then with its active adapter).
    batches: dicts with input_ids (B, T) and, where there is padding, attention_mask (B, T); on
    which side the padding lies and how sequences are batched does not matter.
    modules: names as in the base model, also below a PEFT layer ("...q_proj.lora_B.default").
    statistic: "wanda" as above; "rms" divides by tokens instead of sequences; "mean_l2" is the
    mean over sequences of a sequence's L2 norm (the words of TIP). "gram" returns no norms but the
    mean of $x x^\top$ over tokens, as RegMean's authors take it, (k, k) for each module; until the
    end all are held in float64. "gram_sequences" divides by sequences instead: its diagonal is
    $n_j^2$.
    progress: wraps the batches, e.g. `tqdm.tqdm`.

    The LM head never runs, so no logits are computed, and gradients are off. Modules that read the
    same tensor (q, k, v; gate, up) share the work. Raises TipminiError for an unknown module or
    statistic, for a module that the decoder never reaches, and for inputs that are not finite.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(causal, "base_model", causal)  # transformers' name for all below the head
    found = _find_modules(model, causal, modules)
    sums = _InputSums(statistic)
    device = next(decoder.parameters()).device
    with torch.no_grad(), evaluating(decoder), sums.hooked(found):
        for batch in progress(batches):
            decoder(**sums.start(batch, device), use_cache=False)
    return {name: sums.result(name) for name in found}


def calibrate_adapter(
    model: nn.Module,
    batches: Iterable[Batch],
    adapter: str = "default",
    *,
    statistic: str = "wanda",
    progress: Progress = iter,
) -> dict[str, Tensor]:
    """What a merge needs of one adapter: the norms of x and of A x for each of its modules.

    model is a PeftModel that holds `adapter`, which alone is active during the run. Returns
    {"<module>": (k,), "<module>.lora_B": (r,)}, float32; with a statistic of GRAMS, which are for
    RegMean, {"<module>": (k, k)}. Else as `calibrate`; raises TipminiError also when the model has
    no such adapter.
    """
    known = getattr(model, "peft_config", {})
    if adapter not in known:
        raise TipminiError(f"no adapter {adapter!r} in the model; it has {', '.join(known) or '-'}")
    layers = model.get_base_model().named_modules()
    names = [name for name, layer in layers if adapter in getattr(layer, "lora_A", ())]
    reads = {name: name for name in names}
    if statistic not in GRAMS:
        reads |= {f"{name}.lora_B": f"{name}.lora_B.{adapter}" for name in names}
    with _active(model, adapter):
        norms = calibrate(model, batches, reads.values(), statistic=statistic, progress=progress)
    return {name: norms[hooked] for name, hooked in reads.items()}


class _InputSums:
    """Running sums over sequences of what each hooked module reads."""

    def __init__(self, statistic: str) -> None:
        require("statistic", statistic, STATISTICS)
        self.statistic = statistic
        self.totals: dict[str, Tensor] = {}
        self.sequences = self.tokens = 0
        self.mask = torch.empty(0)  # of the batch that is running; (B, T), True at its tokens
        self.shared: MutableMapping[Tensor, Tensor] = {}  # tensor read in this batch -> its sum

    def start(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Note the batch's tokens; return what the decoder is to be called with."""
        given = decoder_inputs(batch, device)
        self.mask = given["attention_mask"].bool()
        # Weak keys, so that no activation outlives its use for the sharing's sake.
        self.shared = WeakTensorKeyDictionary()
        self.sequences += int(self.mask.any(1).sum())
        self.tokens += int(self.mask.sum())
        return given

    @contextmanager
    def hooked(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in modules.items():
                handle = module.register_forward_pre_hook(partial(self._add, name))
                hooks.callback(handle.remove)
            yield

    def _add(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x not in self.shared:
            self.shared[x] = self._sum(name, x)
        self.totals[name] = self.totals.get(name, 0) + self.shared[x]

    def _sum(self, name: str, x: Tensor) -> Tensor:
        """(B, T, k) to (k,): squares summed over a sequence in float32, over sequences in float64;
        to (k, k), all in float64, for Gram matrices.

        The double sum over sequences keeps the result from depending on how they were batched.
        """
        if x.shape[:-1].numel() != self.mask.numel():
            raise TipminiError(
                f"module {name!r} reads {tuple(x.shape)}; calibration needs one row a token, "
                f"{tuple(self.mask.shape)} of them"
            )
        x = x.reshape(*self.mask.shape, -1).float()
        if self.statistic in GRAMS:
            rows = x[self.mask.to(x.device)].double()  # (tokens, k)
            return rows.T @ rows
        weights = self.mask[:, None].to(x)  # (B, 1, T), 0 at padding: a product sums fastest
        squares = (weights @ x.square())[:, 0]  # (B, k)
        by_sequence = squares.sqrt() if self.statistic == "mean_l2" else squares
        return by_sequence.sum(0, dtype=torch.float64)

    def result(self, name: str) -> Tensor:
        """The finished statistic of one module, (k,) or (k, k) float32."""
        if not self.tokens:
            raise TipminiError("no token to calibrate with; the batches are empty")
        if name not in self.totals:
            raise TipminiError(
                f"module {name!r} read nothing; the LM head never runs, an inactive adapter neither"
            )
        mean = self.totals[name] / (self.tokens if self.statistic in PER_TOKEN else self.sequences)
        done = mean.sqrt() if self.statistic in ("wanda", "rms") else mean
        if not done.isfinite().all():
            raise TipminiError(f"module {name!r} read NaN or Inf; check the model and its dtype")
        return done.float().cpu()


def decoder_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What a decoder is called with, (B, T) each; without a mask every token counts."""
    ids = batch["input_ids"].to(device)
    mask = batch.get("attention_mask", torch.ones_like(ids)).to(device)
    # Counted from each sequence's first token, so that left padding changes nothing.
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _find_modules(
    model: nn.Module, causal: nn.Module, names: Iterable[str]
) -> dict[str, nn.Module]:
    known = dict(model.named_modules()) | dict(causal.named_modules())
    names = list(names)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TipminiError(f"the model has no module {name!r}{hint}")
    return {name: known[name] for name in names}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for the while, then every module in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _active(model: nn.Module, adapter: str) -> Iterator[None]:
    """`adapter` alone active; afterwards the former one, and what was trainable, as before."""
    former = model.active_adapter
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.set_adapter(adapter)
    try:
        yield
    finally:
        model.set_adapter(former)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
