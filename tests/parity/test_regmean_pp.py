"""RegMean++ of fusion-bench, whose user says what the blocks are: here those of the tiny LLaMA."""

import copy
import sys
from contextlib import nullcontext

import pytest
import torch
from tiny import ADAPTERS, MODULES, llama, tokens
from torch import Tensor, nn

from tests.parity.peers import load
from tipmini.methods.blockwise import merge_blockwise
from tipmini.models.adapter import LoraAdapter

BASE = llama().double()
# Long rows: the peer inverts the matrices as they are, without a ridge.
ROWS = {name: [tokens(4, 40, seed=i), tokens(2, 25, seed=i)] for i, name in enumerate(ADAPTERS)}
SMALL = {
    name: adapter.map(lambda _, f: type(f)(f.a.double(), f.b.double(), 0.02))
    for name, adapter in ADAPTERS.items()
}


def whole(adapter: LoraAdapter) -> nn.Module:
    model = copy.deepcopy(BASE)
    for module in adapter.modules:
        model.get_submodule(module).weight.data += adapter.delta(module)
    return model


def through(layer: nn.Module, hidden: Tensor) -> Tensor:
    places = torch.arange(hidden.shape[1])[None]
    rotary = BASE.model.rotary_emb(hidden, places)
    return layer(hidden, position_ids=places, position_embeddings=rotary, attention_mask=None)


def theirs(shrink: float) -> dict[str, Tensor]:
    """{module: delta} by RegMeanAlgorithmPlusPlus over whole models."""
    place = "fusion_bench.method.regmean_plusplus.regmean_plusplus"
    algorithm = load(f"{place}:RegMeanAlgorithmPlusPlus")

    class Pool(sys.modules[place].BaseModelPool):
        def named_models(self):
            return [(name, whole(adapter)) for name, adapter in SMALL.items()]

        def load_pretrained_model(self):
            return copy.deepcopy(BASE)

        def load_train_dataset(self, name):
            return ROWS[name]

    class OfLlama(algorithm):
        exclude_param_names_regex = ()
        reduce_non_diagonal_ratio = shrink
        config = {"exclude_param_names_regex": [], "weight_transpose": True}  # noqa: RUF012

        def __init__(self):
            pass

        def profile(self, _):
            return nullcontext()

        def print_profile_summary(self):
            pass

        def merge_embedding_layer(self, models_to_merge_dict):
            return {}

        def get_input_for_first_layer(self, model, dataset):
            return [model.model.embed_tokens(ids) for ids in dataset]

        def get_layers(self, model):
            return model.model.layers

        def layer_batches_forward(self, layer, batches_input):
            return [through(layer, hidden) for hidden in batches_input]

        def update_merged_params_dict(self, merged_params_dict, new_merged_params, layer_idx):
            named = {f"model.layers.{layer_idx}.{n}": p for n, p in new_merged_params.items()}
            return merged_params_dict | named

        def get_regmean_weights(self, model_name, layer, batches_input, linear_modules_to_merge):
            rows: dict[str, list[Tensor]] = {}
            hooks = [
                module.register_forward_pre_hook(
                    lambda _, given, name=name: rows.setdefault(name, []).append(
                        given[0].flatten(0, 1)
                    )
                )
                for name, module in linear_modules_to_merge.items()
            ]
            self.layer_batches_forward(layer, batches_input)
            for hook in hooks:
                hook.remove()
            every = {name: torch.cat(own) for name, own in rows.items()}
            return {name: x.T @ x / len(x) for name, x in every.items()}

    merged = OfLlama().run(Pool())
    weight = lambda model, module: model.get_submodule(module).weight.data  # noqa: E731
    return {m: weight(merged, m) - weight(BASE, m) for m in MODULES}


@pytest.mark.parametrize("shrink", [0.9, 0.5])
def test_regmean_pp_is_fusion_benchs(shrink):
    batches = {name: [{"input_ids": ids} for ids in rows] for name, rows in ROWS.items()}
    found = merge_blockwise(BASE, SMALL, batches, "regmean++", shrink=shrink)
    for module, expected in theirs(shrink).items():
        apart = (found.delta(module) - expected).norm() / expected.norm()
        assert apart < 1e-4, module
