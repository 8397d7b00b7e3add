"""The base model, adapters on it, and log-probabilities read off a packed batch."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tipmini.errors import TipminiError
from tipmini.lab.packing import Batch


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing each back to the kernel.

    A forward pass frees and asks for the same large blocks in every layer; faulting their pages
    in anew costs a tenth of the time on a CPU. Elsewhere than on glibc this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc.mallopt(mmap_threshold, 1 << 25)  # the most that glibc takes
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 1 << 28)


def load_base(
    path: Path | str, dtype: str = "bfloat16", device: str = "cpu", attention: str = "sdpa"
) -> nn.Module:
    """A frozen causal LM in evaluation mode; `path` is a folder or a hub id.

    attention="eager" trains faster on a CPU: the backward pass of sdpa's takes five times as long.

    Raises
    ------
    TipminiError
        No such device here, or neither folder nor hub has the model.
    """
    from transformers import AutoModelForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        raise TipminiError(f"model {path}: device cuda: no GPU here; run it where there is one")
    with _from_hub(path):
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=attention
        )
    return model.eval().requires_grad_(False).to(device)


def load_tokenizer(path: Path | str):
    """The model's tokenizer; raises as `load_base`."""
    from transformers import AutoTokenizer

    with _from_hub(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # LLaMA-2's has none
    return tokenizer


def download(adapter: str) -> Path:
    """The local copy of a hub adapter: configuration and safetensors only, never a pickle."""
    from huggingface_hub import snapshot_download

    with _from_hub(adapter):
        patterns = ["adapter_config.json", "adapter_model.safetensors"]
        return Path(snapshot_download(adapter, allow_patterns=patterns))


@contextmanager
def _from_hub(name: Path | str) -> Iterator[None]:
    """The hub's many failures as one line."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (OSError, HfHubHTTPError) as error:
        first = str(error).strip().splitlines()[0]
        raise TipminiError(f"{name}: not in the hub's cache and not fetched: {first}") from error


def target_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """(P, D) last hidden states where a prediction is scored."""
    hidden = model.base_model(
        batch.tokens.to(model.device),
        attention_mask=None if batch.mask is None else _additive(batch.mask, model),
        position_ids=batch.positions.to(model.device),
        use_cache=False,
    ).last_hidden_state
    return hidden[batch.rows, batch.reads]


def _additive(mask: Tensor, model: nn.Module) -> Tensor:
    """0 where a token may attend, -inf elsewhere: what every attention takes."""
    blank = torch.zeros(mask.shape, dtype=model.dtype)
    return blank.masked_fill_(~mask, -torch.inf).to(model.device)


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(P, V) float32 logits, made only where a prediction is scored."""
    return model.lm_head(target_hidden(model, batch)).float()


def target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(P, V), (P,) -> (P,) log-probabilities of the targets."""
    at_target = logits.gather(1, targets.to(logits.device)[:, None])[:, 0]
    return at_target - logits.logsumexp(-1)


class HeadLogprobs(torch.autograd.Function):
    """(P, D) hidden states, (V, D) frozen head, (P,) targets -> (P,) float32 log-probabilities.

    The gradient is made on the way, in chunks, so that no (P, V) tensor is ever kept:

        d log p_t / d h = W_t - sum_v p_v W_v
    """

    CHUNK = 256

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        logp, slopes = [], []
        parts = zip(
            hidden.split(HeadLogprobs.CHUNK), targets.split(HeadLogprobs.CHUNK), strict=True
        )
        for h, t in parts:
            logits = (h @ head.T).float()
            logp.append(target_logprobs(logits, t))
            if ctx.needs_input_grad[0]:
                slopes.append(head[t] - logits.softmax(-1).to(head.dtype) @ head)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logp)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), None, None
