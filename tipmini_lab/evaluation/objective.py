r"""What is trained on: packed train rows and their losses, and plain text for pruning.

Multiple choice is trained on the listed choices, as it is scored: with log-likelihood l_i of
choice i and, where the task's metric is length-normalised, its length b_i,

    score_i = l_i \bar b / b_i,    loss = -log softmax_i(score_i / T)[gold].

T makes the untrained model's confidence fit its accuracy (temperature scaling): sums over many
tokens differ so much that without it a few surely wrong rows make all of the gradient.

CoQA is trained on the likelihood of every answer of a story, all turns in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import tasks
from tipmini_lab.evaluation.model import HeadLogprobs, target_hidden
from tipmini_lab.evaluation.packing import Batch, Row, batches, collate, pack


@dataclass
class Example:
    """A packed row, the gold choice (None: all targets are right) and the choices' lengths.

    content: every token that is read, which tells examples apart however they are packed.
    """

    row: Row
    gold: int | None = None
    lengths: tuple[int, ...] = ()
    content: Sequence[int] = ()


def examples(source: tasks.Source, tokenizer, count: int) -> list[Example]:
    """The first `count` train rows of the fixed order, packed."""
    definition, docs = tasks.training(source, count)
    make = question if definition.config.doc_to_choice is not None else answer
    make = conversation if definition.config.task == "coqa" else make
    return [make(definition, doc, tokenizer) for doc in docs]


def question(definition, doc: dict, tokenizer) -> Example:
    """A multiple-choice document with its choices; lm-eval's template and its lengths."""
    context, (choices, gold) = definition.doc_to_text(doc), tasks.answers(definition, doc)
    head, between = tokenizer(context)["input_ids"], definition.config.target_delimiter
    whole = [tokenizer(f"{context}{between}{choice}")["input_ids"] for choice in choices]
    normed = tasks.is_normed(definition)
    lengths = tuple(len(c) if normed else 1 for c in choices)
    asked = [w[len(head) :] for w in whole]
    content = [*head, *(token for choice in asked for token in choice[:-1])]
    return Example(pack(head, asked), gold, lengths, content)


def answer(definition, doc: dict, tokenizer) -> Example:
    """A prompt and its right answer, of which the answer is scored; all of a text without one."""
    head = (
        tokenizer(definition.doc_to_text(doc))["input_ids"] if definition.doc_to_text(doc) else ()
    )
    whole = tokenizer(tasks.text(definition, doc))["input_ids"]
    if not 0 < len(head) < len(whole):
        return plain(whole)
    return Example(pack(head, [whole[len(head) :]]), content=whole)


def conversation(definition, doc: dict, tokenizer) -> Example:
    """A whole CoQA story; scored are all answers and the turn that follows each."""
    answers = doc["answers"]["input_text"]
    text = definition.doc_to_text(doc) + f" {answers[-1]}\n\nQ:"
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans, end = [], len(doc["story"])
    for asked, answer in zip(doc["questions"]["input_text"], answers, strict=True):
        turn = f"Q: {asked}\n\nA:"
        start = text.index(turn, end) + len(turn)
        end = start + len(f" {answer}\n\n")
        spans.append((start, end + len("Q:")))
    row = pack(encoded["input_ids"], [])
    for index, (left, _) in enumerate(encoded["offset_mapping"]):
        if any(start <= left < stop for start, stop in spans):
            row.read(index - 1, encoded["input_ids"][index], 0)
    return Example(row, content=row.tokens)


def losses(model: nn.Module, group: Sequence[Example], temperature: float = 1.0) -> Tensor:
    """(len(group),) one loss an example."""
    batch, logp = _scored(model, group)
    if group[0].gold is None:
        total = torch.zeros(len(group)).index_add(0, batch.rows, logp)
        return -total / torch.bincount(batch.rows, minlength=len(group))
    return choice_losses(choice_scores(logp, batch, group), gold(group), temperature)


def gold(group: Sequence[Example]) -> Tensor:
    """(len(group),) the right choices."""
    return torch.tensor([example.gold for example in group])


def choice_losses(scores: Tensor, right: Tensor, temperature: float) -> Tensor:
    """(questions, choices), (questions,) -> (questions,) -log softmax(scores / T) at the gold."""
    return nn.functional.cross_entropy(scores / temperature, right, reduction="none")


def _scored(model: nn.Module, group: Sequence[Example]) -> tuple[Batch, Tensor]:
    """The examples' batch and the (P,) log-probabilities of its targets, on the CPU."""
    batch, hidden = read_at_targets(model, group)
    return batch, target_logp(model, batch, hidden)


def read_at_targets(model: nn.Module, group: Sequence[Example]) -> tuple[Batch, Tensor]:
    """The examples' batch and the (P, D) last hidden states there, on the head's device."""
    batch = collate([example.row for example in group], multiple=8)
    return batch, target_hidden(model, batch).to(model.lm_head.weight.device)


def target_logp(model: nn.Module, batch: Batch, hidden: Tensor) -> Tensor:
    """(P,) log-probabilities of the batch's targets, on the CPU."""
    targets = batch.targets.to(hidden.device)
    return HeadLogprobs.apply(hidden, model.lm_head.weight, targets).cpu()


def choice_scores(logp: Tensor, batch: Batch, group: Sequence[Example]) -> Tensor:
    """(questions, choices) log-likelihoods, scaled by mean length / length; absent: -inf."""
    lengths = [torch.tensor(example.lengths, dtype=torch.float32) for example in group]
    scales = [own.mean() / own for own in lengths]
    scale = pad_sequence(scales, batch_first=True, padding_value=torch.inf)
    flat = torch.zeros(scale.numel()).index_add(0, batch.rows * scale.shape[1] + batch.owners, logp)
    return torch.where(scale.isinf(), -torch.inf, flat.view(scale.shape) * scale)


@torch.no_grad()
def all_scores(model: nn.Module, every: Sequence[Example], tokens: int) -> Tensor:
    """(questions, choices) `choice_scores` of all examples; absent choices -inf."""
    scores = torch.full((len(every), max(len(e.lengths) for e in every)), -torch.inf)
    for part in batches([len(example.row) for example in every], tokens):
        group = [every[i] for i in part]
        batch, logp = _scored(model, group)
        found = choice_scores(logp, batch, group)
        scores[part, : found.shape[1]] = found
    return scores


def fit_temperature(scores: Tensor, right: Tensor) -> float:
    """The T > 0 with the smallest mean loss, between 1/100 and 100."""
    from scipy.optimize import minimize_scalar

    mean = lambda log: choice_losses(scores, right, 10**log).mean().item()  # noqa: E731
    return 10 ** minimize_scalar(mean, bounds=(-2, 2), method="bounded").x


# What a model is pruned and fine-tuned on ---------------------------------------------------------
def plain_examples(
    sources: Sequence[tasks.Source], rows: int, length: int, tokenizer
) -> list[Example]:
    """`rows` rows in all, the first of each task's fixed order, one task after the other in turn.

    A row is prompt and right answer, cut after `length` tokens. Raises TipminiError where the
    tasks have fewer rows.
    """
    found = []
    for i, source in enumerate(sources[:rows]):
        count = rows // len(sources) + (i < rows % len(sources))
        texts = tasks.texts(source, count)
        if len(texts) < count:
            name = source if isinstance(source, str) else source.config.task
            told = f"{len(texts)} train rows, {count} wanted; take more tasks or fewer rows"
            raise TipminiError(f"task {name}: {told}")
        found.append([plain(ids[:length]) for ids in tokenizer(texts)["input_ids"]])
    return [example for turn in zip_longest(*found) for example in turn if example]


def plain(tokens: Sequence[int]) -> Example:
    """A row whose every token but the first is predicted."""
    row = pack(tokens, [])
    for index, target in enumerate(tokens[1:]):
        row.read(index, target, 0)
    return Example(row, content=row.tokens)


def refuse_unpredicted(name: str, every: Sequence[Example]) -> None:
    """Raise TipminiError for a row of which nothing is predicted, as of a single token."""
    if few := sum(not example.row.targets for example in every):
        told = f"{few} of {len(every)} examples have one token, of which nothing is predicted"
        raise TipminiError(f"{name}: {told}; leave them out, or make them longer")


def padded(every: Sequence[Example], tokens: int) -> list[dict[str, Tensor]]:
    """The same rows as `tm.calibrate` takes them."""
    rows = [torch.tensor(example.row.tokens) for example in every]
    pad = lambda part, make: pad_sequence([make(rows[i]) for i in part], True)  # noqa: E731
    return [
        {"input_ids": pad(part, torch.clone), "attention_mask": pad(part, torch.ones_like)}
        for part in batches([len(row) for row in rows], tokens, 0.9)
    ]
