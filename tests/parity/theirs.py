"""The peers' side: each function here calls a peer on `Inputs`, options of the peer beside.

Results are lists of tensors, the query's before the value's, that stand beside tipmini's.
"""

import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.parity.inputs import FACTORS, MODULES, QUERY, Inputs
from tests.parity.peers import load
from tipmini.models.adapter import LoraAdapter

MERGE_UTILS = "peft.utils.merge_utils"
FUSION = "fusion_bench.method"


# PEFT ------------------------------------------------------------------------------------------
def peft_function(given: Inputs, name: str, **options: object) -> list[Tensor]:
    """A function of peft.utils.merge_utils on the deltas."""
    function, weights = load(f"{MERGE_UTILS}:{name}"), torch.tensor(given.weights)
    density = {} if name == "task_arithmetic" else {"density": given.density}
    with given.drawing(MODULES):
        return [function(given.deltas(m), weights, **density, **options) for m in MODULES]


@torch.no_grad()
def weighted(given: Inputs, combination: str, see: str = "factors") -> list[Tensor]:
    """add_weighted_adapter on a tiny LLaMA that loaded the adapters from tipmini's files."""
    model = peft_model(given)
    add_weighted(model, given, combination)
    layers = [model.get_base_model().get_submodule(module) for module in MODULES]
    if see != "factors":
        return [layer.get_delta_weight(combination) for layer in layers]
    pairs = [(layer.lora_A[combination], layer.lora_B[combination]) for layer in layers]
    return [factor.weight for pair in pairs for factor in pair]


def add_weighted(model: nn.Module, given: Inputs, combination: str) -> None:
    """Merge the adapters of `given` into one that is called as the combination."""
    settings = {"combination_type": combination, "density": given.density}
    with given.drawing(MODULES if combination.endswith("svd") else FACTORS):
        model.add_weighted_adapter(given.names, list(given.weights), combination, **settings)


@functools.lru_cache(maxsize=16)
def peft_model(given: Inputs) -> nn.Module:
    """A model with the adapters of `given`, kept for the next way to combine them."""
    return peft_model_of(given.adapters)


def peft_model_of(adapters: Mapping[str, LoraAdapter], **config: object) -> nn.Module:
    """A LLaMA of one layer with adapters, which PEFT reads from the folders that we write.

    config: settings of adapter_config.json that are then overwritten.
    """
    from peft import PeftModel

    model = None
    with tempfile.TemporaryDirectory() as parent:
        for name, adapter in adapters.items():
            folder = write_folder(adapter, Path(parent) / name, **config)
            if model is None:
                base = llama(adapter.factors[QUERY].shape[1])
                model = PeftModel.from_pretrained(base, folder, name)
            else:
                model.load_adapter(folder, name)
    return model


def write_folder(adapter: LoraAdapter, folder: Path, **config: object) -> Path:
    adapter.save(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def llama(hidden: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 16, "intermediate_size": 16, "hidden_size": hidden}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


# mergekit --------------------------------------------------------------------------------------
def sparsify(given: Inputs, name: str, norm: str | None) -> list[Tensor]:
    """A function of mergekit.sparsify on every delta of one adapter."""
    function = load(f"mergekit.sparsify:{name}")
    with given.drawing(MODULES):
        return [function(given.deltas(m)[0], given.density, norm) for m in MODULES]


def mergekit(given: Inputs, method: str, **parameters: object) -> list[Tensor]:
    """mergekit's own merge of tensors, over a base of zeros, so that tensors are deltas."""
    merge = load("mergekit.merge_methods:merge_tensors")
    settings = {"weight": given.weight, **parameters}
    if method != "task_arithmetic":
        settings["density"] = given.density
    named = {"ids": ["base", *given.names], "base_index": 0, "parameters": settings}
    merged = []
    with given.drawing(MODULES):
        for module in MODULES:
            deltas = given.deltas(module)
            merged.append(merge([torch.zeros_like(deltas[0]), *deltas], method, **named))
    return merged


# fusion-bench ----------------------------------------------------------------------------------
def fusion_ties(given: Inputs, merge_func: str) -> list[Tensor]:
    """ties_merging on the adapters' deltas, each flattened to one row as the authors do."""
    ties = load(f"{FUSION}.ties_merging.ties_merging_utils:ties_merging")
    columns = [torch.stack(given.deltas(module)).flatten(1) for module in MODULES]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its steps
        flat = ties(torch.cat(columns, dim=1), given.density, merge_func)
    parts = flat.split([column.shape[1] for column in columns])
    return [p.view_as(given.deltas(m)[0]) for p, m in zip(parts, MODULES, strict=True)]


def fusion_dare(given: Inputs, rescale: bool) -> list[Tensor]:
    """param_random_drop_ on every delta of one adapter; it works in place."""
    drop = load(f"{FUSION}.dare.utils:param_random_drop_")
    tensors = [given.deltas(module)[0] for module in MODULES]
    with given.drawing(MODULES):
        for tensor in tensors:
            drop(tensor, given.drop_rate, rescale)
    return tensors


def fusion_regmean(given: Inputs, ratio: float, whole: bool = False) -> list[Tensor]:
    """merging_with_regmean_weights on the deltas, or on whole weights less the base's."""
    merge = load(f"{FUSION}.regmean.regmean:merging_with_regmean_weights")
    bases = {m: given.base(m) if whole else 0.0 for m in MODULES}
    weights = {f"{m}.weight": [bases[m] + d.double() for d in given.deltas(m)] for m in MODULES}
    merged = merge(weights, list(given.grams.values()), ratio)
    return [merged[f"{m}.weight"] - bases[m] for m in MODULES]


def fusion_knots(given: Inputs, scaled: bool) -> list[Tensor]:
    """subspace_alignment, then PEFT's ties of what it aligned: S V, as the authors, or V alone."""
    align = load(f"{FUSION}.knots.knots_utils:subspace_alignment")
    ties, weights = load(f"{MERGE_UTILS}:ties"), torch.tensor(given.weights)
    merged = []
    for module in MODULES:
        u, s, views = align(given.deltas(module))
        left, right = (u, s[:, None]) if scaled else (u * s, 1.0)
        merged.append(left @ ties([right * view for view in views], weights, given.density))
    return merged


def task_vectors(given: Inputs, times: float = 1.0) -> list[dict[str, Tensor]]:
    """Each adapter's deltas by module, times its weight."""
    return [
        {m: weight * times * given.deltas(m)[place].double() for m in MODULES}
        for place, weight in enumerate(given.weights)
    ]


def fusion_tsv(given: Inputs) -> list[Tensor]:
    """compute_and_sum_svd_mem_reduction of TSVM_utils, on the deltas."""
    place = f"{FUSION}.task_singular_vector.utils.TSVM_utils:compute_and_sum_svd_mem_reduction"
    with contextlib.redirect_stdout(io.StringIO()):
        merged = load(place)(task_vectors(given), accelerator="cpu")
    return [merged[module] for module in MODULES]


def fusion_iso(given: Inputs) -> list[Tensor]:
    """iso_c on the deltas."""
    with contextlib.redirect_stdout(io.StringIO()):
        merged = load(f"{FUSION}.isotropic_merging.iso_utils:iso_c")(task_vectors(given), "cpu")
    return [merged[module] for module in MODULES]


def fusion_wudi(given: Inputs, steps: int, times: float) -> list[Tensor]:
    """wudi_merging, which steps by 1e-5: on the deltas made smaller, and the result as much larger,
    it goes as much further in so many steps."""
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        merge = load(f"{FUSION}.wudi.wudi:wudi_merging")
        merged = merge(task_vectors(given, times), accelerator="cpu", iter_num=steps)
    return [merged[module].detach() / times for module in MODULES]


# loralib ---------------------------------------------------------------------------------------
def lora_layers(given: Inputs) -> list[nn.Module]:
    """loralib's layers over the base, with the factors of the first adapter, in training mode."""
    layers = []
    for module in MODULES:
        factors = given.adapters[given.names[0]].factors[module]
        (height, width), rank = factors.shape, factors.rank
        layer = load("loralib:Linear")(width, height, r=rank, lora_alpha=factors.scaling * rank)
        layer.weight.data = given.base(module)
        layer.lora_A.data, layer.lora_B.data = factors.a.clone(), factors.b.clone()
        layer.bias.data.zero_()
        layers.append(layer)
    return layers


def lora_merged(given: Inputs) -> list[Tensor]:
    """The weights after `eval()`, which merges."""
    layers = lora_layers(given)
    for layer in layers:
        layer.eval()  # gives nothing back, unlike torch's
    return [layer.weight.data for layer in layers]


@torch.no_grad()
def lora_forward(given: Inputs) -> list[Tensor]:
    """What the unmerged layer answers."""
    return [layer(given.rows()) for layer in lora_layers(given)]


def lora_scaling(given: Inputs) -> list[Tensor]:
    return [torch.tensor(layer.scaling) for layer in lora_layers(given)]
