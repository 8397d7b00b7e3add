"""Merges block by block: against whole models whose weights are edited."""

import copy

import pytest
import torch
from tiny import HIDDEN, LAYERS, llama, random_adapter, tokens

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods import blockwise
from tipmini.methods.blockwise import drift_corrected, merge_blockwise
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors
from tipmini.models.lowrank import truncate

READ = ("q_proj", "v_proj", "o_proj")  # o_proj reads what q_proj and v_proj have a part in
MODULES = [f"model.layers.{i}.self_attn.{name}" for i in range(LAYERS) for name in READ]
BASE = llama().double()
SMALL = {  # updates that leave the model one that a linear map can follow
    name: random_adapter(seed, modules=MODULES, scaling=0.02, dtype=torch.float64)
    for seed, name in enumerate(("boolq", "coqa", "piqa"))
}
LENGTHS = {"boolq": (9, 7), "coqa": (30, 12, 5), "piqa": (3, 25)}
ROWS = {
    name: [tokens(1, length, seed=10 * i + length) for length in lengths]
    for i, (name, lengths) in enumerate(LENGTHS.items())
}
MANY = {
    n: [*rows, *(tokens(8, 16, seed=len(n) + 7 * i) for i in range(4))] for n, rows in ROWS.items()
}
SHARES = {"boolq": 1.0, "coqa": 0.25, "piqa": 3.0}


def batches(rows: dict = ROWS) -> dict:
    return {name: [{"input_ids": ids} for ids in own] for name, own in rows.items()}


def with_deltas(deltas: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = copy.deepcopy(BASE)
    for module, delta in deltas.items():
        model.get_submodule(module).weight.data += delta
    return model


@torch.no_grad()
def read_by(model: torch.nn.Module, module: str, rows: list[torch.Tensor]) -> torch.Tensor:
    """(tokens, k) inputs of a module of the whole model."""
    found = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, given: found.append(given[0].flatten(0, 1))
    )
    for ids in rows:
        model(ids)
    handle.remove()
    return torch.cat(found)


def close(found: torch.Tensor, expected: torch.Tensor, within: float = 1e-6) -> None:
    limit = within * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=within, atol=limit)


def own_deltas(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    return {m: SMALL[name].delta(m) for m in MODULES if m.startswith(prefix)}


# RegMean++ ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("shrink", [0.5, 1.0])
def test_regmean_pp_is_regmean_on_what_the_merged_blocks_make(shrink):
    found = merge_blockwise(BASE, SMALL, batches(MANY), weights=SHARES, shrink=shrink)
    merged: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        here = {}
        for module in (m for m in MODULES if m.startswith(prefix)):
            left = right = 0
            for name, rows in MANY.items():
                x = read_by(with_deltas(merged | own_deltas(name, prefix)), module, rows)
                gram = x.T @ x / len(x)
                gram = shrink * gram + (1 - shrink) * torch.diag(gram.diagonal())
                left = left + SHARES[name] * SMALL[name].delta(module) @ gram
                right = right + SHARES[name] * gram
            here[module] = torch.linalg.solve(right, left, left=False)
            close(found.delta(module), here[module], 1e-4)  # off by the ridge of the grams
        merged |= here


def test_in_the_first_block_it_is_regmean_itself():
    """Where nothing is merged before: the inputs are each adapter's own."""
    grams = {}
    for name, rows in ROWS.items():
        model = with_deltas(own_deltas(name))
        x = {m: read_by(model, m, rows) for m in MODULES}
        grams[name] = {m: own.T @ own / len(own) for m, own in x.items()}
    plain = tm.merge(SMALL, "regmean", grams=grams)
    found = merge_blockwise(BASE, SMALL, batches())
    for module in MODULES[:3]:
        close(found.delta(module), plain.delta(module))
    assert (found.delta(MODULES[-1]) - plain.delta(MODULES[-1])).norm() > 1e-3 * plain.delta(
        MODULES[-1]
    ).norm()


# The drift-corrected merge ------------------------------------------------------------------------
@pytest.mark.parametrize("correction", [1.0, 0.0])
def test_drift_is_the_least_squares_over_both_streams(correction):
    """Rows of X (W + Delta)^T = Y (W + Delta_t)^T as one system, module by module."""
    options = {"rank": HIDDEN, "shrink": 1.0, "correction": correction, "weights": SHARES}
    found = merge_blockwise(BASE, SMALL, batches(MANY), "drift", **options)
    merged: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        for names in (READ[:2], READ[2:]):
            here = {}
            for module in (f"model.layers.{layer}.self_attn.{name}" for name in names):
                weight, left, right = BASE.get_submodule(module).weight.data, [], []
                for name, rows in MANY.items():
                    x = read_by(with_deltas(merged), module, rows)
                    y = read_by(with_deltas(own_deltas(name)), module, rows) if correction else x
                    root = (SHARES[name] / len(x)) ** 0.5
                    left.append(root * x)
                    right.append(root * (y @ (weight + SMALL[name].delta(module)).T - x @ weight.T))
                here[module] = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution.T
                close(found.delta(module), here[module], 1e-4)
            merged |= here


def random_case(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = [draw(60, 12) * torch.linspace(0.1, 3, 12, dtype=torch.float64) for _ in range(3)]
    y = [own + 0.3 * draw(60, 12) for own in x]
    return {
        "weight": draw(9, 12),
        "pairs": [LoraFactors(draw(2, 12), draw(9, 2), 0.5) for _ in range(3)],
        "grams": [own.T @ own for own in x],
        "drifts": [(b - a).T @ a for a, b in zip(x, y, strict=True)],
        "shares": [1.0, 0.5, 2.0],
        "x": x,
        "y": y,
    }


def error(case: dict, delta: torch.Tensor) -> float:
    """The objective itself, row by row."""
    total = 0.0
    for share, pair, x, y in zip(*(case[n] for n in ("shares", "pairs", "x", "y")), strict=True):
        wanted = y @ (case["weight"] + pair.scaling * pair.b @ pair.a).T
        total += share * (x @ (case["weight"] + delta).T - wanted).square().sum().item()
    return total


def test_the_cut_is_the_best_of_its_rank():
    case = random_case()
    given = {n: case[n] for n in ("weight", "pairs", "grams", "drifts", "shares")}
    made = lambda rank: (lambda f: f.b @ f.a)(drift_corrected(**given, rank=rank))  # noqa: E731
    whole = made(9)
    least = error(case, whole)
    gram = sum(w * g for w, g in zip(case["shares"], case["grams"], strict=True))
    values, vectors = torch.linalg.eigh(gram)
    root, back = (vectors @ torch.diag(values**p) @ vectors.T for p in (0.5, -0.5))
    u, s, vh = torch.linalg.svd(whole @ root, full_matrices=False)
    for rank in (1, 3, 6):
        found = made(rank)
        close(found, u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank] @ back, 1e-4)
        assert error(case, found) - least == pytest.approx(s[rank:].square().sum().item(), rel=1e-4)
        plain = torch.linalg.svd(whole, full_matrices=False)
        cut = plain.U[:, :rank] @ torch.diag(plain.S[:rank]) @ plain.Vh[:rank]
        assert error(case, found) < error(case, cut)


def test_a_rank_is_kept_in_every_module():
    found = merge_blockwise(BASE, SMALL, batches(), "drift", rank=5)
    assert set(found.ranks.values()) == {5}
    assert set(merge_blockwise(BASE, SMALL, batches(), "drift").ranks.values()) == {12}


# Layer-wise distillation --------------------------------------------------------------------------
def leaving(layer: int, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The hidden states that leave a block of a whole model with these weights."""
    given = {f"{module}.weight": weight for module, weight in weights.items()}
    told = {"output_hidden_states": True}
    return torch.func.functional_call(BASE, given, (ids,), told).hidden_states[layer + 1]


def ratio(layer: int, merged: dict, here: dict, shares: dict = SHARES) -> torch.Tensor:
    """The objective of a block, from whole models; merged: the weights of the blocks before it,
    here: its own."""
    total = 0.0
    for name, rows in ROWS.items():
        own = {m: BASE.get_submodule(m).weight + d for m, d in own_deltas(name).items()}
        before = {m: w for m, w in own.items() if f".{layer}." not in m}  # with the block bare
        goal, bare = ([leaving(layer, w, ids) for ids in rows] for w in (own, before))
        found = [leaving(layer, merged | here, ids) for ids in rows]
        apart, size = (
            sum((one - two).square().sum() for one, two in zip(each, goal, strict=True))
            for each in (found, bare)
        )
        total = total + shares[name] * apart / size.detach() / sum(shares.values())
    return total


def weights(deltas: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {m: BASE.get_submodule(m).weight.detach() + d for m, d in deltas.items()}


@pytest.mark.parametrize("rank", [None, 3])
def test_a_layer_takes_the_steps_of_its_objective(rank):
    """One pass over all rows as one step of AdamW in the second block, which reads what the merged
    first one puts out; from the drift-corrected merge of both on."""
    options = {"weights": SHARES, "rank": rank}
    steps = {"epochs": 1, "parts": 1, "learning_rate": 1e-3}
    found = merge_blockwise(BASE, SMALL, batches(), "layerwise", **options, **steps)
    first, second = ([m for m in MODULES if f".{i}." in m] for i in (0, 1))
    merged = weights({m: found.delta(m) for m in first})
    with pytest.MonkeyPatch.context() as patch:  # the start, on the very same first block
        plain = blockwise.drift_block
        kept = lambda block, *given, **told: (  # noqa: E731
            {m: found.factors[m] for m in first}
            if ".0" in block.name
            else plain(block, *given, **told)
        )
        patch.setattr(blockwise, "drift_block", kept)
        start = merge_blockwise(BASE, SMALL, batches(), "drift", **options)
    even = {m: truncate(start.factors[m], 12) for m in second}
    a, b = ({m: getattr(even[m], x).requires_grad_() for m in second} for x in "ab")
    before = ratio(1, merged, weights({m: b[m] @ a[m] for m in second}))
    leaves = [*a.values(), *b.values()]
    for leaf, slope in zip(leaves, torch.autograd.grad(before, leaves), strict=True):
        leaf.grad = slope
    torch.optim.AdamW(leaves, 1e-3, weight_decay=0.0).step()
    for module in second:
        close(found.delta(module), (b[module] @ a[module]).detach(), 1e-5)


def test_longer_it_comes_nearer():
    first = [m for m in MODULES if ".0." in m]
    drift, taught = (
        merge_blockwise(BASE, SMALL, batches(), method, weights=SHARES, **options)
        for method, options in (("drift", {}), ("layerwise", {"epochs": 8, "learning_rate": 1e-3}))
    )
    before, after = (
        ratio(0, {}, weights({m: made.delta(m) for m in first})).item() for made in (drift, taught)
    )
    assert after < 0.99 * before < 1
    assert not any(each.grad is not None for each in BASE.parameters())


def test_an_adapter_of_no_weight_teaches_nothing():
    alone = {"coqa": SMALL["coqa"]}
    options = {"epochs": 2, "parts": 1, "learning_rate": 1e-4}
    one = merge_blockwise(BASE, alone, {"coqa": batches()["coqa"]}, "layerwise", **options)
    told = {"boolq": 0.0, "coqa": 1.0, "piqa": 0.0}
    found = merge_blockwise(BASE, SMALL, batches(), "layerwise", weights=told, **options)
    for module in MODULES:
        close(found.delta(module), one.delta(module), 0.02)


def test_an_epoch_has_every_batch_once():
    for count, parts in ((7, 3), (12, 12), (2, 5)):
        places = [i for step in range(parts) for i in blockwise._part(count, step, parts)]
        assert sorted(places) == (sorted(range(count)) if count >= parts else [0, 0, 0, 1, 1])


# What none may depend on --------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["regmean++", "drift", "layerwise"])
def test_one_adapter_stays_itself(method):
    # AdamW moves by its rate, however small the gradient is
    slow, within = ({"learning_rate": 1e-4}, 0.02) if method == "layerwise" else ({}, 1e-3)
    alone, rows = {"coqa": SMALL["coqa"]}, {"coqa": batches(MANY)["coqa"]}
    found = merge_blockwise(BASE, alone, rows, method, **slow)
    for module in MODULES:
        close(found.delta(module), SMALL["coqa"].delta(module), within)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["regmean++", "drift", "layerwise"])
def test_padding_and_batches_change_nothing(method, side):
    options = {"parts": 1, "epochs": 2} if method == "layerwise" else {}  # a part is a step

    def padded(rows: list[torch.Tensor]) -> dict:
        width = max(row.shape[1] for row in rows)
        ids, mask = torch.full((len(rows), width), 63), torch.zeros(len(rows), width).long()
        for i, row in enumerate(rows):
            at = slice(width - row.shape[1], None) if side == "left" else slice(row.shape[1])
            ids[i, at], mask[i, at] = row[0], 1
        return {"input_ids": ids, "attention_mask": mask}

    together = {name: [padded(rows)] for name, rows in ROWS.items()}
    one, two = (
        merge_blockwise(BASE, SMALL, given, method, **options) for given in (together, batches())
    )
    for module in MODULES:
        close(one.delta(module), two.delta(module))


@pytest.mark.parametrize("method", ["regmean++", "drift", "layerwise"])
def test_the_model_is_left_as_it_was(method):
    model = llama().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = {n: random_adapter(i) for i, n in enumerate(SMALL)}
    found = merge_blockwise(model, adapters, batches(), method)
    assert found.base_model == "tiny" and found.factors[MODULES[0]].a.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert model.training and not hooks


@pytest.mark.parametrize("method", ["regmean++", "drift", "layerwise"])
def test_a_module_that_some_lack_is_merged_from_the_others(method):
    few = LoraAdapter({m: SMALL["coqa"].factors[m] for m in MODULES if "q_proj" in m}, "tiny")
    found = merge_blockwise(BASE, SMALL | {"coqa": few}, batches(MANY), method)
    assert found.modules == SMALL["boolq"].modules
    assert (found.ranks[MODULES[0]], found.ranks[MODULES[1]]) == (12, 8)


def test_a_block_that_no_adapter_changes_is_only_passed():
    last = {
        n: LoraAdapter({m: a.factors[m] for m in MODULES[-3:]}, "tiny") for n, a in SMALL.items()
    }
    for method in ("regmean++", "drift", "layerwise"):
        found = merge_blockwise(BASE, last, batches(), method)
        assert set(found.modules) == set(MODULES[-3:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "regmean"},
            r"method must be one of regmean\+\+, drift, layerwise, got 'regmean'",
        ),
        ({"density": 0.5}, r"has no option 'density'; it has shrink, scale, balance"),
        ({"shrink": 2}, r"shrink must lie in \[0, 1\], got 2"),
        (
            {"method": "layerwise", "learning_rate": 0},
            "learning_rate must be a finite number above 0, got 0",
        ),
        ({"method": "layerwise", "parts": 1.5}, "parts must be a whole number from 1 on, got 1.5"),
        ({"weights": -1.0}, "needs weights from 0 on, adapter boolq has -1.0"),
        ({"batches": {}}, r"batches must be one for each adapter \(boolq, coqa, piqa\), got \(\)"),
        ({"batches": batches() | {"coqa": []}}, "no token to merge adapter coqa with"),
        ({"model": BASE.model}, r"o_proj: the model has no linear layer \(32, 32\) of this name"),
        (
            {
                "adapters": {
                    n: LoraAdapter(
                        {"lm_head": LoraFactors(torch.ones(2, 32), torch.ones(64, 2), 1.0)}
                    )
                    for n in SMALL
                }
            },
            "needs modules of one stack of blocks, got lm_head",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    given = {"model": BASE, "adapters": SMALL, "batches": batches()} | changes
    with pytest.raises(TipminiError, match=message):
        merge_blockwise(**given)


def test_blocks_of_several_kinds_of_attention_are_refused(monkeypatch):
    """As Gemma's: what the first block is called with would be every block's."""
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    monkeypatch.setattr(BASE.config, "layer_types", kinds, raising=False)
    with pytest.raises(TipminiError, match="one kind of attention, got full_attention, sliding"):
        merge_blockwise(BASE, SMALL, batches())
