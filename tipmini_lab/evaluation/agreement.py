r"""How far a model's answers are from those of each task's own adapter, on rows without labels.

With p_t the answers of task t's adapter, the objective of a distilled merge is

    R = \frac1T \sum_t \frac{KL(p_t \| p_{merged})}{\max(KL(p_t \| p_{base}), floor)},

0 where the merge answers as each adapter does, 1 where it answers as the base does. Of multiple
choice p is the softmax over the listed choices of score / T, as training reads them (`objective`);
of generated text the distribution of every token of the adapter's own greedy answer. The floor
keeps a task whose adapter hardly changes an answer from being divided by next to nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lm_eval.api.task import ConfigurableTask
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import objective, tasks
from tipmini_lab.evaluation.model import TRAINED, HeadLogprobs
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import Batch, batches, pack

SAID = 32  # tokens of a generated answer at most
LINE = "\n"  # ends it


@dataclass(kw_only=True)
class Answered(Example):
    """An example and what the adapter answers: a question's (choices,) scores, and of what is said,
    or of the words of choices where they are learnt, the (P, D) last hidden states, of which the
    head makes the distribution of every token that is predicted."""

    own: Tensor | None
    said: Tensor | None


def divergences(
    model: nn.Module, group: Sequence[Answered], temperature: float = 1.0, words: float = 0.0
) -> Tensor:
    """(len(group),) KL(own || model), nats; of generated answers the mean over their tokens.

    words: what the mean over the tokens of all listed choices counts, beside that of the choices.
    """
    batch, hidden = objective.read_at_targets(model, group)
    if not group[0].lengths:
        return _word_divergences(model, batch, hidden, group)
    logp = objective.target_logp(model, batch, hidden)
    scores = objective.choice_scores(logp, batch, group)
    own = pad_sequence([each.own for each in group], True, padding_value=-torch.inf)
    found = choice_divergences(own / temperature, scores / temperature)
    return found + words * _word_divergences(model, batch, hidden, group) if words else found


def word_divergences(model: nn.Module, group: Sequence[Answered], _: float = 1.0) -> Tensor:
    """(len(group),) the mean over all tokens that are predicted of KL(own || model), nats; of no
    temperature."""
    return _word_divergences(model, *objective.read_at_targets(model, group), group)


def _word_divergences(
    model: nn.Module, batch: Batch, hidden: Tensor, group: Sequence[Answered]
) -> Tensor:
    own = torch.cat([each.said for each in group]).to(hidden)
    each = HeadDivergence.apply(hidden, model.lm_head.weight, own).cpu()
    total = torch.zeros(len(group)).index_add(0, batch.rows, each)
    return total / torch.bincount(batch.rows, minlength=len(group))


def choice_divergences(own: Tensor, other: Tensor) -> Tensor:
    """(questions, choices) scores of both -> (questions,) KL of their softmaxes; absent: -inf."""
    p, q = own.log_softmax(-1), other.log_softmax(-1)
    there = own.isfinite()
    return (p.exp() * torch.where(there, p - torch.where(there, q, 0.0), 0.0)).sum(-1)


class HeadDivergence(torch.autograd.Function):
    """(P, D) hidden states, (V, D) frozen head, (P, D) the adapter's -> (P,) float32 KL.

    The gradient is made on the way, in chunks, as in `HeadLogprobs`:

        d KL / d h = sum_v (q_v - p_v) W_v
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, own: Tensor) -> Tensor:
        found, slopes = [], []
        for h, o in zip(hidden.split(TRAINED), own.split(TRAINED), strict=True):
            q, p = ((x @ head.T).float().log_softmax(-1) for x in (h, o))
            found.append((p.exp() * (p - q)).sum(-1))
            if ctx.needs_input_grad[0]:
                slopes.append((q.exp_() - p.exp_()).to(head.dtype) @ head)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found)

    backward = staticmethod(HeadLogprobs.backward)  # slopes times what comes


# What the adapter answers -------------------------------------------------------------------------
@torch.no_grad()
def answered(
    model: nn.Module, every: Sequence[Example], tokens: int, words: bool = False
) -> list[Answered]:
    """The examples with what the model, its adapter active, answers; of the words of listed choices
    where they are asked for."""
    found: list[Answered | None] = [None] * len(every)
    for part in batches([len(example.row) for example in every], tokens):
        group = [every[i] for i in part]
        batch, hidden = objective.read_at_targets(model, group)
        own: list[Tensor | None] = [None] * len(group)
        said = own
        if group[0].lengths:
            logp = objective.target_logp(model, batch, hidden)
            scores = objective.choice_scores(logp, batch, group)
            own = [row[: len(e.lengths)].clone() for row, e in zip(scores, group, strict=True)]
        if words or not group[0].lengths:
            counts = torch.bincount(batch.rows, minlength=len(group)).tolist()
            said = [states.clone() for states in hidden.cpu().split(counts)]
        for i, example, scored, told in zip(part, group, own, said, strict=True):
            found[i] = Answered(**vars(example), own=scored, said=told)
    return found


def unlabelled(
    model: nn.Module, tokenizer, source: tasks.Source, count: int, passed: int = 0
) -> list[Example]:
    """`count` train rows after the first `passed` of the fixed order, of which no label is used.

    Listed choices are all read. An open question is answered by the model itself, whose adapter is
    to be active; of a text without a question every token counts. Raises TipminiError for a prompt
    that leaves no room for an answer.
    """
    definition, docs = tasks.training(source, passed + count)
    if definition.config.doc_to_choice is not None:
        return [objective.question(definition, doc, tokenizer) for doc in docs[passed:]]
    return [_spoken(model, tokenizer, definition, doc) for doc in docs[passed:]]


@torch.no_grad()
def _spoken(model: nn.Module, tokenizer, definition: ConfigurableTask, doc: dict) -> Example:
    """A prompt with the model's greedy answer, or a conversation with all that it answers."""
    turns = tasks.turns(definition, doc)
    if not turns[0]:
        return objective.plain(tokenizer(tasks.text(definition, doc))["input_ids"])
    ids, reads, last = [], [], None
    cache = DynamicCache(config=model.config)
    for number, turn in enumerate(turns):
        asked = tokenizer(turn, add_special_tokens=not number)["input_ids"]
        if len(ids) + len(asked) + SAID > model.config.max_position_embeddings:
            break
        ids, said = [*ids, *asked], 0
        while True:
            new = torch.tensor([ids[cache.get_seq_length() :]], device=model.device)
            logits = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            last = int(logits[0, -1].argmax())
            reads.append(len(ids) - 1)
            ends = last == tokenizer.eos_token_id or LINE in tokenizer.decode([last]).lstrip(" ")
            if ends or said == SAID:
                break
            ids, said = [*ids, last], said + 1
    if not ids:
        most = model.config.max_position_embeddings
        told = f"a prompt of {len(asked)} tokens, and {SAID} to answer it, of the model's {most}"
        raise TipminiError(f"{definition.config.task}: {told}; shorten it, or leave it out")
    row = pack(ids, [])
    for index in reads:  # what ends an answer is predicted too, whatever follows it
        row.read(index, [*ids, last][index + 1], 0)
    return Example(row, content=row.tokens)


def spread(every: Sequence[Answered]) -> float:
    """The temperature of choices of several tokens where no training told one: the mean over
    questions of the standard deviation of the adapter's scores. 1 of choices of one token."""
    if all(set(example.lengths) <= {1} for example in every):
        return 1.0
    return max(1.0, math.fsum(e.own.std(correction=0).item() for e in every) / len(every))
