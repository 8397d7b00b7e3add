"""Whether adapters belong together: base models, revisions, names of modules."""

import itertools

import pytest

from tipmini.errors import TipminiError
from tipmini.models.identity import (
    common_base,
    common_revision,
    core,
    natural_order,
    plain_name,
    spellings,
)

HUB = "meta-llama/Llama-2-7b-hf"
SAME = {
    "equal": (["a/b", "a/b"], "a/b"),
    "none told": ([None, None], None),
    "one not told": ([None, HUB], HUB),
    "empty": (["", HUB], HUB),
    "a folder": (["/data/models/Llama-2-7b-hf/", HUB], HUB),
    "two folders and the hub's name": (["/a/Llama-2-7b-hf", "/b/Llama-2-7b-hf", HUB], HUB),
    "letters": (["meta-llama/llama-2-7b-HF", HUB], HUB),
    "a mirror": (["unsloth/Llama-2-7b-hf", HUB], HUB),
    "Windows": ([r"C:\models\Llama-2-7b-hf", HUB], HUB),
    "the hub's cache": (["/c/models--meta-llama--Llama-2-7b-hf/snapshots/01ab", HUB], HUB),
    "one path in two ways": (
        ["./out//checkpoint-500/", "out/checkpoint-500"],
        "out/checkpoint-500",
    ),
}
DIFFERENT = [
    (HUB, "meta-llama/Llama-2-13b-hf"),
    ("/models/a", "/models/b"),
    ("/a/Llama-2-7b-hf", "/b/Llama-2-7b-hf"),
    ("/runs/sft-llama/checkpoint-500", "/runs/dpo-qwen/checkpoint-500"),
    *((f"/a/{last}", f"/b/{last}") for last in ("final", "merged", "model", "base", "500")),
    ("alice/llama-sft", "bob/llama-sft"),
    *((f"org/{last}", f"gro/{last}") for last in ("final", "merged", "model", "0123456789abcdef")),
]


@pytest.mark.parametrize(("bases", "common"), SAME.values(), ids=SAME)
def test_one_model_under_several_names(bases, common):
    for order in itertools.permutations(bases):
        assert common_base({str(i): base for i, base in enumerate(order)}) == common


@pytest.mark.parametrize("bases", DIFFERENT)
def test_different_models_are_refused_with_a_way_round(bases):
    with pytest.raises(TipminiError) as caught:
        common_base(dict(zip(["first", "second"], bases, strict=True)))
    line = str(caught.value)
    assert all(text in line for text in ("first", "second", *bases, "--base-model"))
    assert "\n" not in line and "quantised" not in line


@pytest.mark.parametrize("copy", ["unsloth/llama-2-7b-hf-bnb-4bit", "TheBloke/Llama-2-7B-hf-GPTQ"])
def test_a_quantised_copy_is_told(copy):
    with pytest.raises(TipminiError, match=f"{copy} looks like a quantised copy of {HUB}"):
        common_base({"a": HUB, "b": copy})


def test_nothing_has_no_base():
    assert common_base({}) is None


@pytest.mark.parametrize(
    ("revisions", "common"),
    [((None, None), None), ((None, "main"), "main"), (("v2", "v2"), "v2")],
)
def test_a_common_revision_is_kept(revisions, common):
    assert common_revision(dict(enumerate(revisions))) == common


@pytest.mark.parametrize("revisions", [("v1", "v2"), (None, "v2"), ("main", "v2")])
def test_other_revisions_are_refused(revisions):
    with pytest.raises(TipminiError, match=r"revisions.*v2"):
        common_revision(dict(enumerate(revisions)))


@pytest.mark.parametrize(
    ("module", "plain", "bare"),
    [
        ("model.layers.0.self_attn.q_proj",) * 2 + ("layers.0.self_attn.q_proj",),
        ("_orig_mod.model.layers.0.q", "model.layers.0.q", "_orig_mod.layers.0.q"),
        ("module.model.layers.0.q", "model.layers.0.q", "layers.0.q"),
        ("model.layers.0._orig_mod.q", "model.layers.0.q", "layers.0._orig_mod.q"),
        ("transformer.h.0.attn.c_attn",) * 2 + ("h.0.attn.c_attn",),
        (
            "model.layers.0._checkpoint_wrapped_module.q",
            "model.layers.0.q",
            "layers.0._checkpoint_wrapped_module.q",
        ),
        (
            "vision_tower.encoder.layers.0.q",
            "vision_tower.encoder.layers.0.q",
            "vision_tower.encoder.layers.0.q",
        ),
        ("lm_head",) * 3,
    ],
)
def test_names_without_wrappers(module, plain, bare):
    assert plain_name(module) == plain
    assert core(module) == bare


SHORT, LONG = "layers.0.q_proj", "model.layers.0.q_proj"


def test_the_base_decides_between_two_names():
    names = {"a": [SHORT], "b": [LONG]}
    for base in (SHORT, LONG):
        assert spellings(names, [base]) == {"a": {SHORT: base}, "b": {LONG: base}}
    other = "model.language_model.layers.0.q_proj"
    assert spellings(names, [other]) == {"a": {SHORT: other}, "b": {LONG: other}}


@pytest.mark.parametrize("known", [(), (SHORT, LONG), ("other.0.q_proj",)])
def test_two_names_and_no_base_are_refused(known):
    with pytest.raises(TipminiError, match=rf"{SHORT} in a, {LONG} in b.*--base-model"):
        spellings({"a": [SHORT], "b": [LONG]}, known)


@pytest.mark.parametrize(
    "modules",
    [
        {"a": [LONG], "b": ["model.layers.0.down_proj"]},
        {"a": ["language_model.layers.0.q_proj"], "b": ["vision_tower.layers.0.q_proj"]},
        {"a": [SHORT, LONG], "b": [LONG]},  # two modules of one model
    ],
)
def test_what_is_no_second_name_stays(modules):
    assert spellings(modules) == {a: {m: m for m in own} for a, own in modules.items()}


def test_modules_come_in_the_order_of_the_layers():
    names = [f"model.layers.{i}.{m}" for i in range(12) for m in ("q", "v")]
    assert natural_order(reversed(names)) == names
    assert natural_order(["a.b", "1.b", "a", "a.1"]) == ["1.b", "a", "a.1", "a.b"]
    assert natural_order(["x1\u00b23", "x1"]) == ["x1", "x1\u00b23"]  # a raised digit is no number
