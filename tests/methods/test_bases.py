"""Whether adapters belong to one base model."""

import itertools

import pytest

from tipmini.errors import TipminiError, common_base

HUB = "meta-llama/Llama-2-7b-hf"
SAME = {
    "equal": (["a/b", "a/b"], "a/b"),
    "none told": ([None, None], None),
    "one not told": ([None, HUB], HUB),
    "empty": (["", HUB], HUB),
    "a folder": (["/data/models/Llama-2-7b-hf/", HUB], HUB),
    "letters": (["meta-llama/llama-2-7b-HF", HUB], HUB),
    "Windows": ([r"C:\models\Llama-2-7b-hf", HUB], HUB),
    "the hub's cache": (["/c/models--meta-llama--Llama-2-7b-hf/snapshots/01ab", HUB], HUB),
    "folders alone": (["/b/model", "/a/model"], "/a/model"),
}
DIFFERENT = [
    (HUB, "meta-llama/Llama-2-13b-hf"),
    (HUB, "unsloth/llama-2-7b-bnb-4bit"),
    ("/models/a", "/models/b"),
]


@pytest.mark.parametrize(("bases", "common"), SAME.values(), ids=SAME)
def test_one_model_under_several_names(bases, common):
    for order in itertools.permutations(bases):
        assert common_base({str(i): base for i, base in enumerate(order)}) == common


@pytest.mark.parametrize("bases", DIFFERENT)
def test_different_models_are_refused_with_a_way_round(bases):
    named = dict(zip(["first", "second"], bases, strict=True))
    with pytest.raises(TipminiError) as caught:
        common_base(named)
    line = str(caught.value)
    assert all(text in line for text in ("first", "second", *bases, "--base-model"))
    assert "\n" not in line


def test_nothing_has_no_base():
    assert common_base({}) is None
