import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import HIDDEN, LAYERS, llama, peft_llama, saved, tokens

from tipmini.errors import TipminiError
from tipmini.methods.merge import merge
from tipmini.models.calibration import STATISTICS, _InputSums, calibrate, calibrate_adapter

Q, V, GATE, DOWN = (
    f"model.layers.1.{name}"
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
)
LENGTHS = (7, 1, 4, 5, 3)


@pytest.fixture(scope="module")
def model():
    return llama()


def sequences() -> list[torch.Tensor]:
    return [tokens(1, length, seed=length)[0] for length in LENGTHS]


def batch_of(rows: list[torch.Tensor], side: str = "right", extra: int = 0) -> dict:
    """Pad to one length, with a token that would be seen if it counted."""
    length = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), length), 63), torch.zeros(len(rows), length).long()
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), None)
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def slow_inputs(model, module: str) -> list[torch.Tensor]:
    """What the module reads, (T, k) float64 for each sequence run alone, without any mask."""
    read = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0][0].detach().double())
    )
    with torch.no_grad():
        for row in sequences():
            model(row[None])
    hook.remove()
    return read


def slow_norm(inputs: list[torch.Tensor], statistic: str) -> torch.Tensor:
    """Channel by channel, token by token."""
    norms = []
    for j in range(inputs[0].shape[1]):
        squares = [sum(float(x[t, j]) ** 2 for t in range(len(x))) for x in inputs]
        count = sum(map(len, inputs)) if statistic == "rms" else len(inputs)
        if statistic == "mean_l2":
            norms.append(sum(s**0.5 for s in squares) / count)
        else:
            norms.append((sum(squares) / count) ** 0.5)
    return torch.tensor(norms)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_are_the_slow_ones(model, statistic):
    found = calibrate(model, [batch_of(sequences())], [Q, DOWN], statistic=statistic)
    assert list(found) == [Q, DOWN]
    for module, own in found.items():
        inputs = slow_inputs(model, module)
        if statistic.startswith("gram"):  # pair by pair of channels, token by token
            count = sum(LENGTHS) if statistic == "gram" else len(LENGTHS)
            expected = sum(torch.outer(x, x) for x in torch.cat(inputs)) / count
            assert torch.equal(own, own.T)
        else:
            expected = slow_norm(inputs, statistic)
        assert own.dtype == torch.float32 and own.shape == expected.shape
        torch.testing.assert_close(own, expected.float(), rtol=1e-5, atol=1e-5)


def test_wanda_worked_by_hand():
    """Two sequences, of two tokens and of one, through an embedding that can be read off."""
    tiny = torch.nn.Module()
    tiny.layer = torch.nn.Linear(2, 1)
    table = torch.tensor([[3.0, 0.0], [4.0, 1.0], [0.0, 7.0], [99.0, 99.0]])
    tiny.forward = lambda input_ids, **_: tiny.layer(table[input_ids])
    batch = {
        "input_ids": torch.tensor([[0, 1], [2, 3]]),
        "attention_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    expected = {
        "wanda": [(25 / 2) ** 0.5, (50 / 2) ** 0.5],
        "rms": [(25 / 3) ** 0.5, (50 / 3) ** 0.5],
        "mean_l2": [(5 + 0) / 2, (1 + 7) / 2],
    }
    for statistic, norm in expected.items():
        result = calibrate(tiny, [batch], ["layer"], statistic=statistic)["layer"]
        assert result.tolist() == pytest.approx(norm)


@pytest.mark.parametrize(("statistic", "of"), [("gram", "rms"), ("gram_sequences", "wanda")])
def test_the_diagonal_of_a_gram_matrix_is_the_norms_square(model, statistic, of):
    batches = [batch_of(sequences()[:2], "left"), batch_of(sequences()[2:])]
    norms = calibrate(model, batches, [Q, GATE, DOWN], statistic=of)
    for module, gram in calibrate(model, batches, norms, statistic=statistic).items():
        torch.testing.assert_close(gram.diagonal(), norms[module].square(), rtol=1e-5, atol=1e-7)


@settings(max_examples=15)
@given(
    st.permutations(range(len(LENGTHS))),
    st.lists(st.booleans(), min_size=len(LENGTHS), max_size=len(LENGTHS)),
    st.sampled_from(["left", "right"]),
    st.integers(0, 3),
    st.sampled_from(["wanda", "gram"]),
)
def test_statistics_do_not_depend_on_batching(model, order, cuts, side, extra, statistic):
    batches = [[]]
    for i, cut in zip(order, cuts, strict=True):
        if cut and batches[-1]:
            batches.append([])
        batches[-1].append(sequences()[i])
    padded, names = [batch_of(rows, side, extra) for rows in batches], [Q, GATE, DOWN]
    shuffled = calibrate(model, padded, names, statistic=statistic)
    together = calibrate(model, [batch_of(sequences())], names, statistic=statistic)
    for module, found in shuffled.items():
        limit = 1e-6 * max(1.0, found.abs().max().item())
        torch.testing.assert_close(found, together[module], rtol=1e-6, atol=limit)


def test_without_a_mask_every_token_counts(model):
    rows = tokens(3, 6)
    masked = calibrate(model, [batch_of(list(rows))], [Q])
    assert torch.equal(calibrate(model, [{"input_ids": rows}], [Q])[Q], masked[Q])


def test_modules_that_read_one_tensor_get_one_norm(model):
    k_proj, up_proj = Q.replace("q_proj", "k_proj"), GATE.replace("gate", "up")
    norms = calibrate(model, [batch_of(sequences())], [Q, V, k_proj, GATE, up_proj])
    assert torch.equal(norms[Q], norms[V]) and torch.equal(norms[Q], norms[k_proj])
    assert torch.equal(norms[GATE], norms[up_proj]) and not torch.equal(norms[Q], norms[GATE])


def test_each_tensor_is_summed_once(model, monkeypatch):
    summed, original = [], _InputSums._sum
    monkeypatch.setattr(
        _InputSums, "_sum", lambda self, name, x: summed.append(name) or original(self, name, x)
    )
    modules = model.model.named_modules(prefix="model")
    names = [name for name, module in modules if isinstance(module, torch.nn.Linear)]
    calibrate(model, [batch_of(sequences()), batch_of(sequences()[:2])], names)
    assert len(names) == 7 * LAYERS
    assert len(summed) == 2 * 4 * LAYERS  # batches x (q k v, o, gate up, down)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_logits_are_computed(wrapped, monkeypatch):
    model = peft_llama(task={}) if wrapped else llama()
    head = model.get_base_model().lm_head if wrapped else model.lm_head
    monkeypatch.setattr(head, "forward", None)
    assert calibrate(model, [batch_of(sequences())], [Q])[Q].shape == (HIDDEN,)


def test_progress_wraps_the_batches_and_the_model_is_left_as_it_was(model):
    seen, rows = [], sequences()
    model.train()
    model.model.layers[0].eval()

    def state() -> list:
        return [(module.training, len(module._forward_pre_hooks)) for module in model.modules()]

    def progress(batches):
        for batch in batches:
            seen.append(len(batch["input_ids"]))
            yield batch

    before = state()
    norms = calibrate(model, [batch_of(rows[:2]), batch_of(rows[2:])], [Q], progress=progress)
    assert seen == [2, 3] and state() == before
    model.eval()
    again = calibrate(model, [batch_of(rows[:2]), batch_of(rows[2:])], [Q])
    assert torch.equal(norms[Q], again[Q])  # without dropout


def test_hooks_are_gone_after_an_error(model):
    with pytest.raises(IndexError):
        calibrate(model, [{"input_ids": torch.tensor([[10_000]])}], [Q])
    assert not any(module._forward_pre_hooks for module in model.modules())


TWO = tokens(1, 2)
REFUSED = [
    (["model.layers.1.q_proj"], [TWO], {}, r"no module 'model\.layers\.1\.q_proj'; did"),
    (["zzz"], [TWO], {}, "no module 'zzz'$"),
    (["lm_head"], [TWO], {}, "'lm_head' read nothing; the LM head never runs"),
    ([Q], [], {}, "no token to calibrate with"),
    ([Q], [TWO], {"statistic": "l2"}, "gram, gram_sequences, got 'l2'"),
    (["model.embed_tokens"], [tokens(2, 2)], {}, r"reads \(2, 2\); calibration needs one row"),
    ([Q], [torch.full((1, 2), 63)], {}, "read NaN or Inf"),
]


@pytest.mark.parametrize(("modules", "batches", "options", "message"), REFUSED)
def test_what_cannot_be_calibrated_is_refused(modules, batches, options, message):
    broken = llama()
    with torch.no_grad():
        broken.model.embed_tokens.weight[63, 0] = torch.inf
    with pytest.raises(TipminiError, match=message):
        calibrate(broken, ({"input_ids": ids} for ids in batches), modules, **options)


# With an adapter -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peft_model():
    return peft_llama(one={"lora_dropout": 0.5}, two={"r": 2})


def test_adapter_norms_are_of_x_and_of_A_x(peft_model):
    norms = calibrate_adapter(peft_model, [batch_of(sequences())], "two")
    assert list(norms)[:2] == [Q.replace("1", "0"), V.replace("1", "0")]
    assert len(norms) == 2 * 2 * LAYERS
    peft_model.set_adapter("two")
    base = peft_model.get_base_model()
    inputs = slow_inputs(base, Q)
    a = base.get_submodule(Q).lora_A["two"].weight.detach().double()
    torch.testing.assert_close(norms[Q], slow_norm(inputs, "wanda"), rtol=1e-5, atol=1e-6)
    reduced = slow_norm([x @ a.T for x in inputs], "wanda")
    torch.testing.assert_close(norms[f"{Q}.lora_B"], reduced, rtol=1e-5, atol=1e-6)


def test_grams_are_of_x_alone_and_do_for_regmean(peft_model, tmp_path):
    batches = [batch_of(sequences())]
    grams = calibrate_adapter(peft_model, batches, "two", statistic="gram")
    norms = calibrate_adapter(peft_model, batches, "two", statistic="rms")
    assert list(grams) == [name for name in norms if not name.endswith("lora_B")]
    torch.testing.assert_close(grams[Q].diagonal(), norms[Q].square(), rtol=1e-5, atol=1e-7)
    adapter = saved(peft_model, tmp_path, ["two"])["two"]
    merged = merge([adapter, adapter], "regmean", grams=[grams, grams])
    torch.testing.assert_close(merged.delta(Q), adapter.delta(Q), rtol=1e-3, atol=1e-3)


def test_each_adapter_is_measured_in_its_own_stream(peft_model):
    batches = [batch_of(sequences())]
    one, two = (calibrate_adapter(peft_model, batches, name) for name in ("one", "two"))
    assert not torch.allclose(one[Q], two[Q], rtol=1e-3)  # layer 0's adapter changed what 1 reads
    assert torch.equal(one[Q.replace("1", "0")], two[Q.replace("1", "0")])


def test_names_as_in_the_base_and_as_in_peft_both_do(peft_model):
    deep = f"{Q}.lora_B.one"
    peft_model.set_adapter("one")
    norms = calibrate(peft_model, [batch_of(sequences())], [deep, f"base_model.model.{deep}"])
    assert torch.equal(norms[deep], norms[f"base_model.model.{deep}"])
    before = [p.requires_grad for p in peft_model.parameters()]
    calibrate_adapter(peft_model, [batch_of(sequences())], "two")
    assert peft_model.active_adapter == "one"  # what is active and trainable stays
    assert before == [p.requires_grad for p in peft_model.parameters()]


@pytest.mark.parametrize(("wrapped", "has"), [(True, "it has one, two"), (False, "it has -")])
def test_an_unknown_adapter_is_refused(peft_model, model, wrapped, has):
    with pytest.raises(TipminiError, match=f"no adapter 'three' in the model; {has}"):
        calibrate_adapter(peft_model if wrapped else model, [], "three")
