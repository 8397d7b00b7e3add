"""What adapters are trained on: choices as lm-eval cuts and scores them, and their losses."""

import functools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labs import llama
from torch.nn import functional

from tipmini_lab.evaluation import documents, evaluator, objective, tasks
from tipmini_lab.evaluation import model as model_module
from tipmini_lab.evaluation.model import HeadLogprobs
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import collate, pack

CHOICE_TASKS = [task for task in documents.TASKS if task != "coqa"]
close = functools.partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_cut_and_scored_as_lm_eval_does(embedded, model, tokenizer, task):
    """Of random log-likelihoods: the highest score is right where lm-eval's metric says so."""
    lm = evaluator.PackedLM(model, tokenizer=tokenizer)
    definition, draw = tasks.load(task, evaluation=1, train=6), random.Random(0)
    examples = objective.examples(task, tokenizer, 6)
    for doc, example in zip(definition.training_docs(), examples, strict=True):
        text, choices = definition.doc_to_text(doc), definition.doc_to_choice(doc)
        pairs = [lm._encode_pair(text, f" {choice}") for choice in choices]
        assert example.row == pack(pairs[0][0], [continuation for _, continuation in pairs])
        assert example.gold == int(definition.doc_to_target(doc))
        said = [-draw.uniform(5, 50) for _ in example.lengths]
        batch = collate([example.row])
        counts = torch.bincount(batch.owners)
        logp = torch.tensor([said[o] / counts[o] for o in batch.owners.tolist()])
        best = int(objective.choice_scores(logp, batch, [example]).argmax())
        metrics = definition.process_results(doc, [(value, False) for value in said])
        assert float(best == example.gold) == metrics[tasks.METRIC[task]]


def test_every_answer_of_a_story_is_scored(embedded, tokenizer):
    """And the blank line and "Q:" after it, so that the model learns to stop there."""
    definition = tasks.load("coqa", evaluation=1, train=8)
    for doc in definition.training_docs():
        example = objective.conversation(definition, doc, tokenizer)
        said = "".join(f" {answer}\n\nQ:" for answer in doc["answers"]["input_text"])
        assert tokenizer.decode(example.row.targets) == said
        for read, target in zip(example.row.reads, example.row.targets, strict=True):
            assert example.row.tokens[read + 1] == target


group_of = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 30)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


@given(group_of, st.randoms(use_true_random=False))
def test_choice_scores_against_slow_sums(questions, draw):
    """Question by question, choice by choice."""
    group = [
        Example(pack([1], [[2] * tokens for tokens, _ in choices]), 0, tuple(n for _, n in choices))
        for choices in questions
    ]
    batch = collate([example.row for example in group])
    logp = [-draw.uniform(0, 9) for _ in batch.owners]
    found = objective.choice_scores(torch.tensor(logp), batch, group)
    owners = list(zip(batch.rows.tolist(), batch.owners.tolist(), strict=True))
    for row, choices in enumerate(questions):
        mean = sum(length for _, length in choices) / len(choices)
        for choice, (_, length) in enumerate(choices):
            own = (v for v, owner in zip(logp, owners, strict=True) if owner == (row, choice))
            assert found[row, choice].item() == pytest.approx(sum(own) * mean / length, rel=1e-4)
        assert (found[row, len(choices) :] == -torch.inf).all()


def slow_logp(model, context: list[int], choice: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
    return sum(logits[len(context) - 1 + i, token] for i, token in enumerate(choice))


@torch.no_grad()
def test_losses_of_choices_against_plain_passes(model):
    questions = [([5, 6, 7], [[8, 9], [10]]), ([4], [[1, 2, 3], [4, 5], [6]])]
    asked = zip(questions, [(11, 4), (3, 20, 6)], (1, 0), strict=True)
    group = [Example(pack(*question), gold, own) for question, own, gold in asked]
    expected = []
    for (context, choices), example in zip(questions, group, strict=True):
        mean = sum(example.lengths) / len(example.lengths)
        pairs = zip(choices, example.lengths, strict=True)
        scores = torch.stack([slow_logp(model, context, c) * mean / n for c, n in pairs])
        expected.append(-scores.log_softmax(0)[example.gold])
    close(objective.losses(model, group), torch.stack(expected))


@torch.no_grad()
def test_losses_of_a_conversation_against_a_plain_pass(model):
    """The mean over a story's own scored tokens."""
    group, expected = [], []
    for tokens, reads in [([3, 4, 5, 6, 7, 8], [1, 3, 4]), ([9, 8, 7], [0])]:
        group.append(Example(pack(tokens, [])))
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        for index in reads:
            group[-1].row.read(index, tokens[index + 1], 0)
        expected.append(-torch.stack([logits[i, tokens[i + 1]] for i in reads]).mean())
    close(objective.losses(model, group), torch.stack(expected))


@torch.no_grad()
def test_all_scores_are_those_of_plain_passes_in_the_rows_order(model):
    """Rows of different lengths and numbers of choices, several batches."""
    questions = [([5], [[8, 9], [10]]), ([4] * 9, [[1, 2, 3], [4, 5], [6]]), ([7, 7], [[3], [2]])]
    every = [Example(pack(c, choices), 0, (1,) * len(choices)) for c, choices in questions]
    found = objective.all_scores(model, every, tokens=8)
    assert found.shape == (3, 3)
    for row, (context, choices) in zip(found, questions, strict=True):
        close(row[: len(choices)], torch.stack([slow_logp(model, context, c) for c in choices]))
        assert (row[len(choices) :] == -torch.inf).all()


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_temperature_undoes_a_scale(scale):
    """Gold drawn from softmax(scores): scores made `scale` times as large need T = scale."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, 3, generator=generator)
    right = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    assert objective.fit_temperature(scores * scale, right) == pytest.approx(scale, rel=0.1)


def test_a_temperature_divides_the_scores():
    scores, right = torch.tensor([[2.0, 4.0, -torch.inf]]), torch.tensor([1])
    expected = torch.tensor([1 + torch.e**-0.5]).log()  # softmax of (1, 1.5), absent third
    torch.testing.assert_close(objective.choice_losses(scores, right, 4.0), expected)


def test_head_logprobs_and_their_gradient_against_autograd(monkeypatch):
    monkeypatch.setattr(model_module, "TRAINED", 3)  # five rows: a whole chunk and a part
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(11, 4, generator=generator)
    hidden = torch.randn(5, 4, generator=generator).requires_grad_()
    targets, weights = torch.tensor([0, 10, 3, 3, 7]), torch.randn(5, generator=generator)
    found = HeadLogprobs.apply(hidden, head, targets)
    expected = -functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((v * weights).sum(), hidden) for v in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_without_gradients_nothing_is_kept_for_one():
    found = HeadLogprobs.apply(torch.ones(2, 3), torch.ones(5, 3), torch.tensor([1, 2]))
    assert found.grad_fn is None
    torch.testing.assert_close(found, torch.full((2,), -torch.log(torch.tensor(5.0)).item()))
