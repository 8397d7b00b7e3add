"""Serving several adapters: every way computes what it should, and its costs are counted right."""

from dataclasses import asdict

import pytest
import torch
from labs import llama, save_adapter
from made_up import SIZES
from torch.utils.flop_counter import FlopCounterMode

import tipmini as tm
from bench import serving as measured
from tipmini_lab.book import serving

NAMES = ("boolq", "coqa", "piqa")
TOKENS = measured.prompts(llama(vocabulary=64), 5, 4)


@pytest.fixture(scope="module")
def what(tmp_path_factory) -> measured.Setting:
    """Three adapters of a tiny LLaMA, and their merge."""
    folder = tmp_path_factory.mktemp("served")
    adapters = {name: save_adapter(folder / name, seed) for seed, name in enumerate(NAMES)}
    merged = tm.merge({n: tm.load_adapter(f) for n, f in adapters.items()}, "linear")
    merged.save(folder / "merged", torch.float32)
    return measured.Setting(lambda: llama(vocabulary=64), adapters, folder / "merged")


@pytest.fixture(scope="module")
def answers(what) -> dict[str, tuple[torch.Tensor, int]]:
    """{way: logits, operations that torch itself counts in the pass}."""
    found = {}
    for way in what.ways:
        forward = measured.served(way, what, what.load())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            found[way] = forward(TOKENS).logits, counter.get_total_flops()
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_row_of_a_mixed_batch_is_answered_with_its_own_adapter(what, answers, count):
    for row, answer in enumerate(answers[f"mixed {count}"][0]):
        name = NAMES[row % count]
        alone = measured.in_peft(what.load(), {name: what.adapters[name]})
        with torch.no_grad():
            torch.testing.assert_close(answer, alone(TOKENS[[row]]).logits[0])
        assert not torch.allclose(answer, answers["base"][0][row], atol=0.01)


def test_the_merge_in_the_weights_answers_as_the_merged_adapter_beside_them(answers):
    (base, plain), (within, operations) = answers["base"], answers["weights"]
    torch.testing.assert_close(within, answers["one adapter"][0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(within, base, atol=0.01)
    assert operations == plain  # it costs none


@pytest.mark.parametrize("way", ["mixed 1", "mixed 2", "mixed 3", "one adapter"])
def test_torch_counts_the_same_extra_operations_however_many_adapters_are_mixed(answers, way):
    extra = answers[way][1] - answers["base"][1]
    empty = [serving.operations(SIZES, 5, 4, 0, adapted) for adapted in (True, False)]
    assert extra == empty[0] - empty[1] == 2 * TOKENS.numel() * SIZES.adapter


def test_ways_share_the_weights_of_the_base_and_leave_them_alone(what):
    base = what.load()
    with torch.no_grad():
        before = base(TOKENS).logits
        for way in what.ways[1:-1]:
            measured.served(way, what, base)(TOKENS)
        assert torch.equal(base(TOKENS).logits, before)
    peft = measured.served("one adapter", what, base)
    shared = {p.data_ptr() for p in base.parameters()} & {p.data_ptr() for p in peft.parameters()}
    assert len(shared) == len(list(base.parameters()))


def test_a_generation_goes_on_from_the_prompt():
    seen, model = [], llama(vocabulary=64)

    def forward(tokens, past_key_values=None, **options):
        seen.append((tuple(tokens.shape), past_key_values and past_key_values.get_seq_length()))
        return model(tokens, past_key_values=past_key_values, **options)

    first, after = measured.generation(forward, TOKENS, steps=2)
    assert first > 0 < after
    assert seen == [((5, 4), None), ((5, 1), 4), ((5, 1), 5)]


# Of a pass of three rows of two tokens after five: 6 and 7 keys for the two queries of a row.
BY_HAND = {
    "operations, base": (
        serving.operations(SIZES, 3, 2, 5, False),
        3 * (2 * 2 * 3840 + 2 * 1024 + 4 * 32 * (6 + 7)),
    ),
    "operations, adapted": (
        serving.operations(SIZES, 3, 2, 5, True),
        3 * (2 * 2 * (3840 + 448) + 2 * 1024 + 4 * 32 * (6 + 7)),
    ),
    "bytes, base": (serving.moved(SIZES, 3, 2, 5, 0), 4 * (3840 + 1024 + 3 * 7 * 32)),
    "bytes, two": (serving.moved(SIZES, 3, 2, 5, 2), 4 * (3840 + 1024 + 2 * 448 + 3 * 7 * 32)),
    "products": ([serving.products(SIZES, n) for n in (0, 1, 3)], [15, 23, 39]),
    "of a module": (serving.module_operations(576, 576), 663_552),
    "of an adapter": (serving.adapter_operations(576, 576, 8), 18_432),
    "floor": ([serving.floor_seconds(300, n, 100.0, 10.0) for n in (20, 50)], [3, 5]),
}


@pytest.mark.parametrize(("counted", "by_hand"), BY_HAND.values(), ids=BY_HAND)
def test_counts_by_hand(counted, by_hand):
    assert counted == by_hand


def test_a_batch_mixes_no_more_adapters_than_it_has_rows(what, monkeypatch):
    monkeypatch.setattr(measured, "memories", lambda *_: {("base", 2): 5.0})
    found = measured.measure(what, batches=(2, 3), length=4, rounds=2)
    ways = {b: {p["way"] for p in found["points"] if p["batch"] == b} for b in (2, 3)}
    assert ways[3] - ways[2] == {"mixed 3"} and ways[3] == set(what.ways)
    assert found["sizes"] == asdict(SIZES)
    for point in found["points"]:
        assert len(point["seconds"]) == 2 and point["adapters"] <= point["batch"]
    prompts = [p for p in found["points"] if p["step"] == "prompt"]
    assert [p["memory"] for p in prompts if p["way"] == "base"] == [5.0, None]
    stored = serving.read().model_copy(update={"points": found["points"], "sizes": SIZES})
    assert "mixed 3" in serving.report(stored)


def test_memory_is_asked_of_batches_that_fit_once_what_was_freed_is_given_back(what, monkeypatch):
    """Else one program rises by less where its process has freed more."""
    found = measured.peaks(what, (1, 2, 4), 4, "mixed 2")
    assert found.keys() == {2, 4} and all(peak is None or peak >= 0 for peak in found.values())
    calls = []
    monkeypatch.setattr(measured.timing, "give_memory_back", lambda: calls.append("back"))
    monkeypatch.setattr(measured.timing, "peak_memory", lambda work: calls.append("peak") or 0.0)
    measured.peaks(what, (1, 2), 4, "weights")
    assert calls == ["back", "peak"] * 2
