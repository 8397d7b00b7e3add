"""R: divergences against plain softmaxes, and what an adapter answers against transformers'."""

import pytest
import torch
from labs import llama
from torch.nn.functional import kl_div

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import agreement, objective, tasks
from tipmini_lab.evaluation.agreement import HeadDivergence, answered, divergences, spread


def slow(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of two rows of logits."""
    return kl_div(other.log_softmax(-1), own.log_softmax(-1), log_target=True, reduction="none")


def test_the_heads_divergence_and_its_gradient(monkeypatch):
    monkeypatch.setattr(agreement, "TRAINED", 3)  # several chunks
    generator = torch.Generator().manual_seed(0)
    hidden, own = (torch.randn(7, 5, generator=generator) for _ in range(2))
    head, weigh = torch.randn(11, 5, generator=generator), torch.arange(7.0)
    found, expected = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    values = HeadDivergence.apply(found, head, own)
    plain = slow(own @ head.T, expected @ head.T).sum(-1)
    torch.testing.assert_close(values, plain)
    (values * weigh).sum().backward()
    (plain * weigh).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_choices_that_are_absent_count_nothing():
    own = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, 1.0]])
    other = torch.tensor([[1.0, 0.5, -torch.inf], [0.0, 0.0, 3.0]], requires_grad=True)
    found = agreement.choice_divergences(own, other)
    expected = [slow(own[0, :2], other[0, :2]).sum(), slow(own[1], other[1]).sum()]
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert other.grad[:, :2].isfinite().all()


@pytest.mark.parametrize("task", ["openbookqa", "rte", "coqa"])
def test_a_model_is_at_no_distance_from_itself_and_at_some_from_another(tokenizer, task):
    model, other = llama(), llama(seed=1)
    rows = answered(model, agreement.unlabelled(model, tokenizer, task, 3), 600)
    torch.testing.assert_close(divergences(model, rows), torch.zeros(3), atol=1e-5, rtol=0)
    assert (divergences(other, rows) > 0.001).all()


def test_of_choices_it_is_that_of_the_scores_over_the_temperature(tokenizer):
    model, other = llama(), llama(seed=1)
    rows = answered(model, agreement.unlabelled(model, tokenizer, "openbookqa", 3), 600)
    scores = [objective.all_scores(each, rows, 600) for each in (model, other)]
    expected = slow(*(each / 7 for each in scores)).sum(-1)
    torch.testing.assert_close(divergences(other, rows, 7.0), expected, rtol=1e-4, atol=1e-5)
    own = torch.stack([each.own for each in rows])
    assert spread(rows) == pytest.approx(max(1, own.std(-1, correction=0).mean().item()))


def test_the_words_of_choices_are_those_of_all_of_them(tokenizer):
    """Every token of every listed choice counts alike, beside the choice."""
    model, other = llama(), llama(seed=1)
    rows = answered(model, agreement.unlabelled(model, tokenizer, "openbookqa", 3), 600, True)
    for row, found in zip(rows, agreement.word_divergences(other, rows), strict=True):
        states = [objective.read_at_targets(each, [row])[1] for each in (model, other)]
        logits = [other.lm_head(each) for each in states]  # an adapter's head is the base's
        assert len(logits[0]) == len(row.row.targets)
        torch.testing.assert_close(found, slow(*logits).sum(-1).mean())
    expected = divergences(other, rows, 7.0) + 2 * agreement.word_divergences(other, rows)
    torch.testing.assert_close(divergences(other, rows, 7.0, 2.0), expected)


def test_answers_to_a_conversation_are_transformers_own(tokenizer):
    """Every answer goes on from those before it; what it ends by is read and predicted too."""
    model = llama()
    _, (doc,) = tasks.training("coqa", 1)
    (row,) = agreement.unlabelled(model, tokenizer, "coqa", 1)
    ids, at = row.row.tokens, 0
    for number, asked in enumerate(doc["questions"]["input_text"]):
        turn = f"Q: {asked}\n\nA:"
        text = f"{doc['story']}\n\n{turn}" if not number else f"\n\n{turn}"
        prompt = [*ids[:at], *tokenizer(text, add_special_tokens=not number)["input_ids"]]
        assert ids[: len(prompt)] == prompt
        given = torch.tensor([prompt])
        said = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            pad_token_id=2,
            max_new_tokens=agreement.SAID + 1,
        )[0, len(prompt) :].tolist()
        ends = [i for i, t in enumerate(said) if t == 2 or "\n" in tokenizer.decode([t])]
        length = ends[0] if ends else agreement.SAID
        assert ids[len(prompt) : len(prompt) + length] == said[:length]
        reads = [i for i in row.row.reads if len(prompt) - 1 <= i < len(prompt) + length]
        assert reads == [*range(len(prompt) - 1, len(prompt) + length)]
        at = len(prompt) + length
    assert at == len(ids)


def test_no_label_is_used(tokenizer, monkeypatch):
    model, read = llama(), tasks.rows
    wrong = {"answerKey": "D", "label": 1, "answers": {"input_text": ["wrong"] * 30}}

    def mislabelled(*given):
        return [row | {k: v for k, v in wrong.items() if k in row} for row in read(*given)]

    def found(task):
        rows = answered(model, agreement.unlabelled(model, tokenizer, task, 2), 600)
        return [(e.content, e.row.targets) for e in rows], torch.cat([e.own for e in rows])

    for task in ("openbookqa", "rte"):
        told, own = found(task)
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "rows", mislabelled)
            other, again = found(task)
        assert (told, own.tolist()) == (other, again.tolist())


def test_a_prompt_that_leaves_no_room_for_an_answer_is_one_line(tokenizer):
    _, (doc,) = tasks.training("coqa", 1)
    first = f"{doc['story']}\n\nQ: {doc['questions']['input_text'][0]}\n\nA:"
    count = len(tokenizer(first)["input_ids"])
    with pytest.raises(TipminiError, match=rf"coqa: a prompt of {count} tokens"):
        agreement.unlabelled(llama(length=count + agreement.SAID - 1), tokenizer, "coqa", 1)
    (row,) = agreement.unlabelled(llama(length=count + agreement.SAID), tokenizer, "coqa", 1)
    assert len(row.row) >= count
