"""Perplexity: which tokens are read, and the losses against the model's own."""

import labs
import pytest
import torch

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import documents, perplexity, tasks
from tipmini_lab.evaluation.evaluator import PackedLM

pytestmark = pytest.mark.usefixtures("embedded")


@pytest.mark.parametrize("corpus", perplexity.CORPORA)
def test_windows_follow_each_other_in_the_fixed_order(corpus, tokenizer):
    """Each text once; fewer windows are a part of more."""
    texts = documents.CORPORA[corpus]()
    assert len(set(texts)) == len(texts) > 2000 and all(texts)
    first = [texts[i] for i in tasks.order(len(texts))[:40]]
    every = tokenizer("\n\n".join([*first, ""]), add_special_tokens=False)["input_ids"]
    found = perplexity.windows(corpus, 6, 50, tokenizer)
    assert [len(window) for window in found] == [50] * 6
    joined = tokenizer.decode([token for window in found for token in window])
    assert tokenizer.decode(every).startswith(joined)
    assert perplexity.windows(corpus, 2, 50, tokenizer) == found[:2]


def test_boolqs_questions_are_not_read():
    questions = {row["question"] for row in documents.arrow("boolq-none")}
    assert not questions & set(documents.CORPORA["wikipedia"]())


@pytest.mark.parametrize(
    ("corpus", "count", "line"),
    [("news", 1, "corpus must be one of wikipedia, books, got 'news'"), ("books", 10**6, "wanted")],
)
def test_what_is_not_there_is_refused(corpus, count, line, tokenizer):
    with pytest.raises(TipminiError, match=line):
        perplexity.windows(corpus, count, 30, tokenizer)


@pytest.mark.parametrize("tokens", [7, 20, 4096])
def test_losses_are_the_models_own(tokens, tokenizer):
    """Window by window with the model's own loss, however many windows share a pass."""
    model = labs.llama()
    every = [[(7 * i + j * j) % 49152 for j in range(9 + i)] for i in range(4)]
    found = perplexity.losses(PackedLM(model, tokenizer=tokenizer, tokens=tokens), every)
    for window, loss in zip(every, found, strict=True):
        ids = torch.tensor([window])
        with torch.no_grad():
            assert loss == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)
