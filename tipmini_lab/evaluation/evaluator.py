"""The lm-eval model `tipmini`: one base in memory, any adapter active on it, packed requests."""

import hashlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import torch
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from peft import PeftModel
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from tipmini_lab.evaluation import llama
from tipmini_lab.evaluation.model import load_base, load_tokenizer, scored_targets
from tipmini_lab.evaluation.packing import Row, batches, collate, flatten, pack_requests, together


class Resident:
    """A base model with one of several PEFT adapters active at a time, or none.

    base: a transformers model; its linear layers are wrapped where an adapter needs it, and
    outside of `active` it computes what it computed before.
    """

    def __init__(self, base: nn.Module):
        self.base = base
        self.peft = None  # a PeftModel around the base once there is an adapter
        self.known: set[str] = set()

    @contextmanager
    def active(self, folder: Path | str | None) -> Iterator[nn.Module]:
        """The PeftModel with the folder's adapter alone active; for None the base as it is.

        A folder is read the first time and when its factors have changed. Raises what PEFT raises
        for a folder that is none.
        """
        if folder is None:
            yield self.base
            return
        files = sorted(Path(folder).glob("adapter_*"))
        name = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        if name not in self.known:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                self.peft.load_adapter(folder, name)
            self.peft.eval()
            self.known.add(name)
        self.peft.base_model.enable_adapter_layers()
        self.peft.set_adapter(name)
        try:
            yield self.peft
        finally:
            self.peft.base_model.disable_adapter_layers()

    def forget(self) -> None:
        """Take all adapters from the model, which would hold each that ever was active."""
        with warnings.catch_warnings(action="ignore"):  # of the active one's being among them
            while self.known:
                self.peft.delete_adapter(self.known.pop())


# The lm-eval model `tipmini` ----------------------------------------------------------------------
MAX_GENERATED = 256  # lm-eval's own default
ENCODED = 8192  # texts whose tokens are remembered: adapter after adapter is asked the same
DIGITS = 5  # of a margin

Generated = tuple[list[list[int]], list[float]]  # tokens and leads, as `llama.greedy` tells


@dataclass
class Stop(StoppingCriteria):
    """Ends each sequence of a batch by itself, once its text holds a stop string."""

    tokenizer: PreTrainedTokenizerBase
    prompt: int
    until: Sequence[str]
    first_line: bool

    def __call__(self, input_ids, scores, **_):
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :])
        return torch.tensor([self.ends(text) for text in texts], device=input_ids.device)

    def ends(self, text: str) -> bool:
        line = self.first_line and "\n" in text.lstrip()
        return line or any(stop in text for stop in self.until)


@register_model("tipmini")
class PackedLM(TemplateLM):
    """A causal LM, with or without a PEFT adapter, for any lm-eval task."""

    def __init__(
        self,
        pretrained,  # a folder, a hub id, or a loaded model (then with its `tokenizer`)
        adapter: Path | str | None = None,  # a PEFT folder; can be set to another one at any time
        tokenizer=None,
        tokens: int = 2048,  # padded tokens of one forward pass
        dtype: str = "auto",  # bfloat16 where its products are measured to be faster
        device: str = "cpu",
        first_line: bool = False,  # stop after the first line with text: CoQA scores no more
        answer_tokens: int = MAX_GENERATED,  # the most where the task itself sets no limit
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        loaded = isinstance(pretrained, nn.Module)
        self.model = pretrained if loaded else load_base(pretrained, dtype, device)
        self.resident, self.adapter = Resident(self.model), adapter
        self.flat = llama.supports(self.model)
        self.tokenizer = tokenizer or load_tokenizer(pretrained)
        self.tokens, self.first_line = int(tokens), first_line
        self.answer_tokens = int(answer_tokens)
        self.max_length = self.model.config.max_position_embeddings
        self._encoded = lru_cache(ENCODED)(self.tokenizer.encode)
        self.needed = 0  # tokens read and written so far, padding and what was finished left out
        self.leads: list[float] = []  # of the answers generated last: see `llama.greedy`

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """With the special tokens that the tokenizer adds by itself: LLaMA-2's sets a BOS."""
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self._encoded(string, **given))

    def get_model_info(self) -> dict:
        """What lm-eval notes beside the results."""
        return {
            "model_dtype": str(self.model.dtype),
            "model_device": str(self.model.device),
            "model_num_parameters": self.model.num_parameters(),
            "adapter": self.adapter and str(self.adapter),
        }

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        """Requests whose contexts begin alike share a row."""
        # The end of a context that fits; a continuation's last token is predicted, never read.
        room = self.max_length + 1
        pairs = [(tuple(context[len(asked) - room :]), asked) for _, context, asked in requests]
        groups = together([context for context, _ in pairs], self.tokens // 2)
        rows = [pack_requests([pairs[i] for i in numbers]) for numbers in groups]
        answers: list = [None] * len(requests)
        parts = batches([len(row) for row in rows], self.tokens, padded=not self.flat)
        with self.resident.active(self.adapter):
            for part in _progress(parts, rows, disable_tqdm):
                for row, owner, *answer in self.score([rows[i] for i in part]):
                    answers[groups[part[row]][owner]] = tuple(answer)
        return answers

    def score(self, rows: Sequence[Row]) -> Iterator[tuple[int, int, float, bool]]:
        """(row, request, log-likelihood, greedy) of every request of a batch."""
        batch = flatten(rows) if self.flat else collate(rows)
        self.needed += sum(map(len, rows))
        logp, greedy = scored_targets(self.model, batch)
        width = int(batch.owners.max()) + 1
        cell = batch.rows * width + batch.owners
        total = torch.zeros(len(rows) * width, dtype=torch.float64).index_add(0, cell, logp)
        misses = torch.zeros(len(rows) * width).index_add(0, cell, (~greedy).float())
        for index in cell.unique().tolist():
            yield *divmod(index, width), total[index].item(), misses[index].item() == 0

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Windows as lm-eval cuts them: every token scored once, with as much context as fits."""
        results = []
        for (text,) in (request.args for request in requests):
            given = self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            pairs = [
                (("", ""), *make_disjoint_window(w)) for w in get_rolling_token_windows(*given)
            ]
            scored = [self._loglikelihood_tokens([pair], disable_tqdm=True) for pair in pairs]
            results.append(sum(logp for ((logp, _),) in scored))
        return results

    @torch.no_grad()
    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy; sequences of similar length together; each ends at its own stop string."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        answers, self.leads = [""] * len(requests), [math.inf] * len(requests)
        settings = lambda i: repr(requests[i].args[1])  # noqa: E731
        parts = batches([len(prompt) for prompt in prompts], 4 * self.tokens)
        every = [groupby(sorted(part, key=settings), settings) for part in parts]
        groups = [list(alike) for part in every for _, alike in part]
        with self.resident.active(self.adapter):
            for group in _progress(groups, prompts, disable_tqdm):
                found = self._generate([prompts[i] for i in group], requests[group[0]].args[1])
                for i, text, lead in zip(group, *found, strict=True):
                    answers[i], self.leads[i] = text, lead
        return answers

    def _generate(self, prompts: list[list[int]], settings: dict) -> tuple[list[str], list[float]]:
        until = settings.get("until", [])
        until = [until] if isinstance(until, str) else list(until)
        limit = int(settings.get("max_gen_toks", self.answer_tokens))
        prompts = [prompt[-(self.max_length - limit) :] for prompt in prompts]
        stop = Stop(self.tokenizer, max(map(len, prompts)), until, self.first_line)
        answer = self._flat_answers if self.flat else self._padded_answers
        said, leads = answer(prompts, limit, stop)
        self.needed += sum(map(len, [*prompts, *said]))
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [min((t.split(s)[0] for s in until), key=len, default=t) for t in texts], leads

    def _flat_answers(self, prompts: list, limit: int, stop: Stop) -> Generated:
        final = self.model.generation_config.eos_token_id
        final = final if isinstance(final, list) else [final]
        ends = lambda said: said[-1] in final or stop.ends(self.tokenizer.decode(said))  # noqa: E731
        return llama.greedy(self.model, prompts, limit, ends)

    def _padded_answers(self, prompts: list, limit: int, stop: Stop) -> Generated:
        pad = self.eot_token_id
        given = self.tokenizer.pad(
            {"input_ids": prompts}, padding_side="left", return_tensors="pt"
        ).to(self.model.device)
        out = self.model.generate(
            **given,
            do_sample=False,
            max_new_tokens=limit,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([stop]),
        )
        said = [[t for t in row if t != pad] for row in out[:, stop.prompt :].tolist()]
        return said, [math.inf] * len(said)  # transformers tells no logits here


def _shows_progress() -> bool:
    return bool(os.environ.get("TIPMINI_PROGRESS", "1"))


def _progress(parts: list[list[int]], rows: Sequence, disable: bool):
    """The parts, with a bar in tokens: its estimate is right although batches differ."""
    total = sum(map(len, rows))
    with tqdm(total=total, unit="tok", disable=disable or not _shows_progress()) as bar:
        for part in parts:
            yield part
            bar.update(sum(len(rows[i]) for i in part))


def samples(lm: LM, task) -> list[dict]:
    """What lm-eval notes of every row of `task`'s evaluation split, in the split's order."""
    from lm_eval.evaluator import evaluate as lm_evaluate  # takes seconds

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    name = task.config.task
    # lm-eval's own bars, two a task, which nothing else turns off: unseen where ours are.
    with nullcontext() if _shows_progress() else redirect_stderr(io.StringIO()):
        found = lm_evaluate(lm=lm, task_dict={name: task}, bootstrap_iters=0, log_samples=True)
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def evaluate(lm: LM, task, metric: str) -> list[float]:
    """One value a row of `task`'s evaluation split, in the split's order."""
    return [float(sample[metric]) for sample in samples(lm, task)]


def answers(lm: PackedLM, task, metric: str) -> tuple[list[float], list[float]]:
    """`evaluate`, and beside each value how far the answer is from being another.

    Of choices that is the lead of the best over the second, as the metric compares them (nats, or
    nats a character); of a generated answer the smallest lead of a token's logit. Empty where
    that is not known: transformers' own generation doesn't tell.
    """
    found = samples(lm, task)
    if task.OUTPUT_TYPE == "generate_until":
        margins = lm.leads if all(map(math.isfinite, lm.leads)) else []
    else:
        ranked = [sorted(scores(sample, metric)) for sample in found]
        margins = [best[-1] - best[-2] for best in ranked]
    return [float(sample[metric]) for sample in found], [round(m, DIGITS) for m in margins]


def scores(sample: dict, metric: str) -> list[float]:
    """Log-likelihoods of the choices, by length in characters where the metric is."""
    pairs = zip(sample["filtered_resps"], sample["arguments"], strict=True)
    normed = metric == "acc_norm"
    return [logp / (len(asked[1]) - 1 if normed else 1) for (logp, _), asked in pairs]
