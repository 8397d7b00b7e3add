"""A model whose layers accelerate has divided: their weights come to what they read, at every pass.

Of two places a machine without a GPU has its memory and a disk; what a path must not do is the
same: read a layer's weights without calling it.
"""

import pytest
import torch
from accelerate import dispatch_model
from labs import llama, save_adapter
from torch.testing import assert_close

from tipmini_lab.evaluation import llama as decoder
from tipmini_lab.evaluation import model, objective
from tipmini_lab.evaluation.evaluator import PackedLM

WORDS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 3, 4]]


@pytest.fixture
def divided(tmp_path):
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "lm_head"), "cpu")
    places |= {"model.rotary_emb": "cpu", "model.layers.1": "disk"}
    return dispatch_model(llama(), places, main_device="cpu", offload_dir=tmp_path / "offloaded")


def test_a_divided_model_is_called_layer_by_layer(divided):
    assert decoder.supports(llama()) and not decoder.supports(divided)
    assert divided.model.layers[1].mlp.up_proj.weight.device.type == "meta"  # not here till called


def test_what_is_scored_is_the_same(divided, tokenizer, tmp_path):
    folder = save_adapter(tmp_path / "adapter", 1)
    requests = [(("", ""), words[:3], words[3:]) for words in WORDS]
    scores = [
        PackedLM(each, folder, tokenizer)._loglikelihood_tokens(requests, disable_tqdm=True)
        for each in (llama(), divided)
    ]
    here, there = ([score for score, _ in each] for each in scores)
    assert_close(there, here)


def test_what_is_trained_on_is_the_same(divided):
    rows = [objective.plain(words) for words in WORDS]
    assert_close(objective.losses(divided, rows), objective.losses(llama(), rows))


@pytest.mark.parametrize(("count", "asked"), [(1, None), (2, "auto")])
def test_several_gpus_are_left_to_accelerate(monkeypatch, count, asked):
    class Loaded(torch.nn.Module):
        def to(self, device):
            assert asked is None, "a divided model is not moved"
            return self

    given = {}
    load = lambda path, **kwargs: given.update(kwargs) or Loaded()  # noqa: E731
    monkeypatch.setattr(model.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    model.load_base("a folder", "float16", "cuda")
    assert given.get("device_map") == asked
