"""The base model: loaded, and asked for log-probabilities of packed batches."""

import ctypes
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tipmini.errors import TipminiError
from tipmini.models.hub import fetched
from tipmini_lab.evaluation import llama
from tipmini_lab.evaluation.packing import Batch

CHUNK = 256  # predictions whose logits are held at a time ...
FEW = 16  # ... and whose logits are read at a time: in float32 they fit into the caches
CLEARLY = 1.3  # times as fast
TRAINED = 64  # predictions whose logits are held at a time where gradients are made of them
MODEL = ("*.json", "*.model", "*.safetensors", "*.txt")  # files of one on the hub


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


def return_memory() -> None:
    """Hand back to the kernel what glibc keeps: passes of many lengths leave, over time, more and
    more pieces that nothing fits into. Elsewhere than on glibc this does nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def number_format(path: Path | str, dtype: str = "auto", device: str = "cpu") -> str:
    """The name of the dtype that a model is loaded in: the given one, or for "auto" a fast one.

    Weights stored in 16 bits are widened, never rounded to another 16: float16 stays what it is on
    a GPU, and becomes float32 on a CPU, which has no fast products of it. Raises as `load_base`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TipminiError(f"model {path}: device cuda: no GPU here; run it where there is one")
    if dtype != "auto":
        return dtype
    with _from_hub(path):
        stored = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype
    if stored == torch.float16:
        return "float32" if device == "cpu" else "float16"
    return fastest_dtype(device)


@cache
def fastest_dtype(device: str = "cpu", size: int = 768, rows: int = 128) -> str:
    """bfloat16 where a matrix product in it is measured to be clearly faster than in float32.

    A small one: CPUs without instructions for bfloat16 take 75 times as long as in float32.
    Clearly, and in turn: a stopwatch must not choose anew in every process, nor on a busy machine.
    """
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(6):
        for dtype, own in taken.items():
            few, matrix = (torch.ones(n, size, dtype=dtype, device=device) for n in (rows, size))
            product = lambda a=few, b=matrix: (a @ b)[0, 0].item()  # noqa: E731  waits for a GPU
            own.append(timeit.timeit(product, number=1))
    single, half = (min(own[1:]) for own in taken.values())  # the first warms up
    return "bfloat16" if CLEARLY * half < single else "float32"


def load_base(
    path: Path | str, dtype: str = "auto", device: str = "cpu", attention: str = llama.NAME
) -> nn.Module:
    """A frozen causal LM in evaluation mode; `path` is a folder or a hub id.

    dtype: a name in torch, or "auto" for `number_format`'s.
    attention="eager" trains faster on a CPU: the backward pass of sdpa's takes five times as long.
    With several GPUs its layers are divided among them. Raises TipminiError where there is no such
    device or neither folder nor hub has the model.
    """
    chosen = getattr(torch, number_format(path, dtype, device))
    several = device == "cuda" and torch.cuda.device_count() > 1
    divided = {"device_map": "auto"} if several else {}  # by accelerate, which moves what is read
    with _from_hub(path):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=chosen,
            attn_implementation=attention,
            trust_remote_code=False,  # else transformers asks, and a "y" runs the folder's code
            use_safetensors=True,  # else it reads a pickle
            **divided,
        )
    model = model.eval().requires_grad_(False)
    return model if several else model.to(device)


def recompute(model: nn.Module) -> None:
    """Let backward passes run every layer forward once more, so that only its input is kept."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.base_model.layers:
        layer.training = True  # transformers asks for it; what is inside stays in evaluation


def load_tokenizer(path: Path | str):
    """The model's tokenizer; raises as `load_base`, and for a folder that has none."""
    missing = f"{path}: has no tokenizer that can be read; save the model's there (tokenizer.json)"
    with _from_hub(path):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except HFValidationError:
            raise
        except (ValueError, KeyError) as error:  # there is none, or one that is damaged
            raise TipminiError(missing) from error
    # Of its settings alone transformers makes one that knows no word.
    files = [Path(path, name) for name in tokenizer.vocab_files_names.values()]
    if Path(path).is_dir() and not any(file.is_file() for file in files):
        raise TipminiError(missing)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # LLaMA-2's has none
    return tokenizer


def download(
    name: str, patterns: Sequence[str] = ("adapter_config.json", "adapter_model.safetensors")
) -> Path:
    """The local copy of a hub adapter, or of MODEL: configuration and safetensors, never a pickle.

    Raises TipminiError for a name that is neither a folder nor on the hub.
    """
    return fetched(name, patterns)


@contextmanager
def _from_hub(name: Path | str) -> Iterator[None]:
    """The hub's many failures as one line, and what is no model without code of its own."""
    try:
        yield
    except TipminiError:
        raise
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise TipminiError(f"{name}: not in the hub's cache and not fetched: {first}") from error
    except ValueError as error:
        first = str(error).strip().partition("\n")[0]
        raise TipminiError(f"{name}: no model of transformers' own: {first}") from error


def target_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """(P, D) last hidden states where a prediction is scored; flat where `llama.supports` alone."""
    if batch.groups:
        return llama.hidden_states(model, batch)
    hidden = model.base_model(
        batch.tokens.to(model.device),
        attention_mask=llama.additive(batch.mask, model.dtype, model.device),
        position_ids=batch.positions.to(model.device),
        use_cache=False,
    ).last_hidden_state
    return hidden[batch.rows, batch.reads]


def scored_targets(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(P,) float64 log-probabilities of the targets, (P,) whether no token is likelier.

    The (P, V) logits are made and read in chunks: whole they would take a gigabyte.
    """
    logp, greedy = [], []
    hidden = target_hidden(model, batch).to(model.lm_head.weight.device)
    targets = batch.targets.to(hidden.device)
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = model.lm_head(h)
        for few, own in zip(logits.split(FEW), t.split(FEW), strict=True):
            found = few.float()
            at_target, top = found.gather(1, own[:, None])[:, 0], found.amax(-1)
            total = found.sub_(top[:, None]).exp_().sum(-1)
            logp.append(at_target - top - total.log())
            greedy.append(at_target == top)
    return torch.cat(logp).double().cpu(), torch.cat(greedy).cpu()


class HeadLogprobs(torch.autograd.Function):
    """(P, D) hidden states, (V, D) frozen head, (P,) targets -> (P,) float32 log-probabilities.

    The gradient is made on the way, in chunks, so that no (P, V) tensor is ever kept:

        d log p_t / d h = W_t - sum_v p_v W_v
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        logp, slopes = [], []
        for h, t in zip(hidden.split(TRAINED), targets.split(TRAINED), strict=True):
            every = (h @ head.T).float().log_softmax(-1)
            logp.append(every.gather(1, t[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                slopes.append(head[t] - every.exp_().to(head.dtype) @ head)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logp)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), None, None
