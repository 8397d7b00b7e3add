"""Pruning runs: killed and continued they end bit for bit the same, however a step is cut into
passes; what is written is what was masked."""

import math
import shutil

import prunable
import pytest
import torch
from kills import Killed, kill_at
from peft import PeftModel
from prunable import SMALL, outcome, prune
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tipmini as tm
from tipmini.methods import pruner
from tipmini.methods.groups import find_families
from tipmini.methods.pruner import load_masks, masked
from tipmini.models.int8 import dequantise
from tipmini.papers import loraprune
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.packing import batches
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.pruning import (
    PATTERNS,
    PruningRecipe,
    Run,
    cosine_rate,
    fraction,
    prune_elements,
    removes,
)

pytestmark = pytest.mark.usefixtures("small_runs")


def started(base, tmp_path, dtype="float32", **settings) -> Run:
    return Run(base, PruningRecipe(**SMALL | settings), tmp_path / "out", dtype)


def load(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# Killed and continued -----------------------------------------------------------------------------
KILLS = {  # of eight steps, with checkpoints after every third
    "before any checkpoint": ("step", 1),
    "before anything is removed": ("step", 3),
    "between checkpoints": ("step", 5),
    "while the second is written": ("_write", 1),
    "before the end": ("finish", 0),
    "while the result is made": ("story", 0),
}
WAYS = {
    "paper": {},
    "released": {"reduction": "released", "schedule": "linear"},
    "vanilla": {"method": "vanilla", "threshold": "global", "exempt_last": 1},
    "accumulated": {"tokens": 24},  # every row a pass of its own
    "recomputed": {"recompute": True, "tokens": 48},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory, tiny, tokenizer):
    """{way: folder of a run that nothing stopped}"""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        prunable.small_runs(patch, tiny, tokenizer)
        for way, settings in WAYS.items():
            out = tmp_path_factory.mktemp(way) / "out"
            found[way] = prune(base, out, **settings)
    return found


@pytest.mark.parametrize(
    ("way", "kill"), [*(("paper", k) for k in KILLS), *((w, "between checkpoints") for w in WAYS)]
)
def test_a_killed_run_ends_bit_for_bit_like_one_unbroken(
    base, unbroken, tmp_path, monkeypatch, way, kill
):
    monkeypatch.setattr("tipmini_lab.experiments.pruning.Run.every", 3)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_at(patch, Run, *KILLS[kill])
        with pytest.raises(Killed):
            prune(base, out, **WAYS[way])
    assert not out.exists()
    prune(base, out, **WAYS[way])
    assert outcome(out) == outcome(unbroken[way])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _other_weights(tmp_path, patch, base):
    """A base of the same names, shapes and configuration."""
    other = tmp_path / "other"
    shutil.copytree(base, other)
    prunable.save_model(other, pruning.load_tokenizer(base), seed=1)
    return other


def _other_code(tmp_path, patch, base):
    patch.setattr(pruning.digests, "code_digest", lambda *_: "of other code")
    return base


OTHERS_CHECKPOINTS = [{"share": 0.4}, {"seed": 1}, {"rows": 11}, {"decay": 0.5}]
OTHERS_CHECKPOINTS += [_other_weights, _other_code]


@pytest.mark.parametrize("changed", OTHERS_CHECKPOINTS)
def test_a_checkpoint_of_anything_else_is_not_continued(base, tmp_path, monkeypatch, changed):
    started(base, tmp_path).checkpoint(1)
    assert started(base, tmp_path).resume() == 1
    if not isinstance(changed, dict):
        base, changed = changed(tmp_path, monkeypatch, base), {}
    assert started(base, tmp_path, **changed).resume() == 0


def test_a_result_that_is_there_is_not_replaced(base, unbroken):
    with pytest.raises(tm.TipminiError, match="is there already"):
        Run(base, PruningRecipe(**SMALL), unbroken["paper"])


# What comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("int8", [False, True])
def test_the_checkpoint_computes_what_the_masked_model_did(base, tmp_path, int8):
    one = started(base, tmp_path, int8=int8)
    out = one.run()
    assert any(p.any() for n, p in one.factors.items() if "lora_B" in n)  # it was trained
    with masked(one.model, one.pruner.masks):
        expected = prunable.logits(one.model)
    torch.testing.assert_close(prunable.logits(load(out)), expected, rtol=1e-4, atol=1e-4)
    story = outcome(out)[1]
    assert story["gone"] == sorted(story["gone"]) and story["gone"][-1] == story["removed_share"]
    assert 0.45 < story["removed_share"] <= 0.5
    masks = load_masks(out / "masks.safetensors")
    assert story["kept"] == {name: int(mask.sum()) for name, mask in masks.items()}


def test_without_tuning_what_stays_is_the_bases_own(base, tmp_path):
    out = prune(base, tmp_path / "out", tune=False)
    loaded = load(out)
    whole = load(base)
    masks = load_masks(out / "masks.safetensors")
    for number, layer in enumerate(whole.model.layers):
        kept = masks[f"model.layers.{number}.mlp"]
        found = loaded.model.layers[number].mlp.down_proj.weight
        assert torch.equal(found, layer.mlp.down_proj.weight[:, kept])
    assert outcome(out)[1]["steps"] == 1


OTHERS = ("vanilla", "taylor", "taylor-vector", "magnitude", "wanda", "random")


@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_prunes_and_tunes(base, tmp_path, method):
    story = outcome(prune(base, tmp_path / "out", method=method, epochs=1))[1]
    assert 0.45 < story["removed_share"] <= 0.5
    assert all(math.isfinite(loss) and loss > 0 for loss in story["loss"])


def _of_line(method: str, weight, grad, norm, dim: int):
    """What one module adds to the importance of a channel, by the criteria's own words."""
    product = None if grad is None else weight * grad
    return {
        "vanilla": lambda: product.square().sum(1 - dim),
        "taylor": lambda: product.abs().sum(1 - dim),
        "taylor-vector": lambda: product.sum(1 - dim).abs(),
        "magnitude": lambda: weight.abs().sum(1 - dim),
        "wanda": lambda: (weight.abs() * norm).sum(1 - dim),
    }[method]()


@pytest.mark.parametrize("method", [m for m in OTHERS if m != "random"])
def test_a_runs_importances_are_its_methods(base, tmp_path, monkeypatch, method):
    """Of the first step, from the gradients and norms that it had: no other criterion's."""
    one = started(base, tmp_path, method=method)
    family = next(f for f in one.families if f.kind == "channels" and f.layer == 1)
    expected, observe = [], Run._observe

    def observing(self):
        parts = [pruner.base_layer(self.model.get_submodule(m.module)) for m in family.members]
        norms = [(self.norms or {}).get(m.module) for m in family.members]
        expected.append(
            sum(
                _of_line(method, part.weight.detach(), part.weight.grad, norm, m.dim)
                for part, norm, m in zip(parts, norms, family.members, strict=True)
            )
        )
        observe(self)

    monkeypatch.setattr(Run, "_observe", observing)
    one.step(0)
    found = one.pruner.averages[family.name] / (1 - one.recipe.decay)
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-8)


def test_random_choice_hangs_on_the_seed_alone(base, tmp_path):
    masks = []
    for out, settings in (("a", {}), ("b", {"seed": 1}), ("c", {"learning_rate": 1e-3})):
        folder = prune(base, tmp_path / out, method="random", epochs=1, **settings)
        masks.append(load_masks(folder / "masks.safetensors"))
    first, other, again = ({n: m.tolist() for n, m in one.items()} for one in masks)
    assert first == again != other


def test_an_int8_weight_is_written_as_it_was_trained_with(base, tmp_path):
    one = started(base, tmp_path, "bfloat16", int8=True)
    read = pruning.as_trained("bfloat16")
    for module in (m.module for family in one.families for m in family.members):
        layer = one.model.get_submodule(module).base_layer
        trained = dequantise(layer.weight, layer.scale, torch.bfloat16)
        weight = load_file(base / "model.safetensors")[f"{module}.weight"]
        assert read(weight).dtype == weight.dtype == torch.float32
        assert torch.equal(read(weight).bfloat16(), trained)


def test_released_takes_gradients_after_clipping(base, tmp_path):
    """Before it, the clipping's size would not matter to the first step's importances."""
    found = {}
    for reduction in ("paper", "released"):
        for clip in (1e-3, 1e9):
            one = started(base, tmp_path, reduction=reduction, clip=clip)
            one.step(0)
            found[reduction, clip] = one.pruner.averages["model.layers.0.mlp"]
    assert torch.equal(found["paper", 1e-3], found["paper", 1e9])
    assert not torch.equal(found["released", 1e-3], found["released", 1e9])


def test_the_optimizer_is_the_papers(base, tmp_path):
    one = started(base, tmp_path)
    assert type(one.optimizer) is torch.optim.AdamW
    assert one.optimizer.defaults["weight_decay"] == 0


def test_2_4_leaves_two_of_every_four(base, tmp_path):
    recipe = PruningRecipe(**SMALL)
    for score in ("magnitude", "wanda"):
        out = prune_elements(base, recipe, tmp_path / score, score, "float32")
        loaded = load(out)
        for family in find_families(loaded):
            for member in family.members:
                weight = loaded.get_submodule(member.module).weight
                assert ((weight.view(-1, 4) != 0).sum(1) == 2).all()
    whole = load(base)
    up = "model.layers.0.mlp.up_proj.weight"
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "magnitude").get_parameter(up)
    blocks, found = whole.get_parameter(up).abs().view(-1, 4), kept.view(-1, 4)
    assert torch.equal(blocks.topk(2).values.sum(1), found.abs().sort().values[:, 2:].sum(1))


def test_a_pattern_takes_its_share_of_every_row():
    """By hand: of ten weights the smaller five stand at even places."""
    weight = torch.tensor([[1.0, 60, 2, 70, 3, 80, 4, 90, 5, 100]]) * torch.tensor([[1.0], [-1]])
    scores = torch.tensor([[5.0, 50, 7, 9, 6, 40, 8, 30, 4, 20], [1.0, 9, 3, 8, 2, 7, 4, 5, 6, 10]])
    kept = {name: keep(weight, scores, 0.2) for name, keep in PATTERNS.items() if name != "2:4"}
    gone = {name: [(~row).nonzero()[:, 0].tolist() for row in mask] for name, mask in kept.items()}
    assert gone["rows"] == [[0, 8], [0, 4]]
    assert gone["small"] == [[2, 6], [6, 8]]
    assert gone["large"] == [[3, 9], [5, 7]]


# A step of several passes ------------------------------------------------------------------------
LENGTH = 12  # tokens of every row, so that passes are cut by their number alone
WHOLE, ONE_BY_ONE = 10**6, LENGTH  # padded tokens of a pass


def stepped(base, tmp_path, tokens: int, steps: int, **settings) -> tuple[Run, list[float]]:
    one = started(base, tmp_path, length=LENGTH, tokens=tokens, **settings)
    return one, [one.step(number) for number in range(steps)]


@pytest.mark.parametrize("tokens", [ONE_BY_ONE, 2 * ONE_BY_ONE, WHOLE])
def test_passes_are_as_many_as_the_tokens_ask_for(base, tmp_path, tokens):
    one, _ = stepped(base, tmp_path, tokens, 0)
    lengths = [len(one.rows[i].row) for i in one.steps[0]]
    assert len(batches(lengths, tokens)) == {ONE_BY_ONE: 3, 2 * ONE_BY_ONE: 2, WHOLE: 1}[tokens]


@pytest.mark.parametrize("method", ["lora-guided", "vanilla"])
@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"reduction": "released"}])
def test_importances_and_updates_do_not_show_the_passes(base, tmp_path, method, settings):
    settings = settings | {"method": method}
    (first, losses), (other, others) = (
        stepped(base, tmp_path, tokens, 3, **settings) for tokens in (WHOLE, ONE_BY_ONE)
    )
    assert losses == pytest.approx(others, rel=1e-5)
    for name, average in first.pruner.averages.items():
        assert average.max() > 0
        torch.testing.assert_close(other.pruner.averages[name], average, rtol=2e-3, atol=1e-9)
        assert torch.equal(other.pruner.masks[name], first.pruner.masks[name])
    moved = 0.0
    for name, factor in first.factors.items():
        torch.testing.assert_close(other.factors[name], factor, rtol=1e-3, atol=1e-4)
        moved += factor.abs().sum().item() if "lora_B" in name else 0.0
    assert moved > 0


def test_a_batch_weighs_every_row_alike_however_it_is_cut(base, tmp_path):
    """A pass of one row counts a third of a batch of three, not as much as a pass of two."""
    (whole, _), (cut, _) = (stepped(base, tmp_path, t, 0) for t in (WHOLE, 2 * ONE_BY_ONE))
    for one in (whole, cut):
        one.backward([one.rows[i] for i in one.steps[0]])
    grads = [{n: p.grad for n, p in one.factors.items()} for one in (whole, cut)]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-7)


# Results that no checkpoint can hold: whole or not there, and what they stand for is masked ------
LAYERS_DIFFER = {"one layer exempt": {"exempt_first": 0.5}, "one p": {"threshold": "global"}}
MASKED = LAYERS_DIFFER | {"in 8 bits": {"threshold": "global", "int8": True}}


def ran(base, tmp_path, **settings):
    """A folder, and what the model computed before it was written."""
    one = started(base, tmp_path, **settings)
    out = one.run()
    assert not (out / "config.json").exists()
    with masked(one.model, one.pruner.masks):
        return out, prunable.logits(one.model)


@pytest.mark.parametrize("way", MASKED)
def test_masks_and_adapter_say_what_the_masked_model_did(base, tmp_path, way):
    out, expected = ran(base, tmp_path, **MASKED[way])
    named = tm.load_adapter(out / "adapter").base_model
    whole = load(named)
    worn = PeftModel.from_pretrained(whole, out / "adapter")
    masks = load_masks(out / "masks.safetensors")
    with masked(worn, masks):
        torch.testing.assert_close(prunable.logits(worn), expected, rtol=1e-4, atol=1e-4)
    if way == "one layer exempt":
        assert (
            outcome(out)[1]["kept"]["model.layers.0.mlp"] == 24 == len(masks["model.layers.0.mlp"])
        )


@pytest.mark.parametrize("way", MASKED)
@pytest.mark.parametrize("biases", [False, True])
def test_what_is_loaded_is_masked_for_good(base, tokenizer, tmp_path, way, biases):
    if biases:
        base = prunable.save_model(tmp_path / "b", tokenizer, attention_bias=True, mlp_bias=True)
    out, expected = ran(base, tmp_path, **MASKED[way])
    loaded = pruning.load(out, "float32")
    torch.testing.assert_close(prunable.logits(loaded), expected, rtol=1e-4, atol=1e-4)
    masks = load_masks(out / "masks.safetensors")
    for family in find_families(loaded):
        rows = loaded.get_submodule(family.members[0].module).weight
        zero = (rows.view(family.count, -1) == 0).all(1)
        assert zero.tolist() == (~masks[family.name]).tolist()
    assert {p.dtype for p in pruning.load(out, "bfloat16").parameters()} == {torch.bfloat16}


def test_in_8_bits_the_adapters_base_is_what_it_was_trained_on(base, tmp_path):
    out, _ = ran(base, tmp_path, **MASKED["in 8 bits"])
    assert tm.load_adapter(out / "adapter").base_model == str(out / "base")
    stored, own = (load_file(f / "model.safetensors") for f in (out / "base", base))
    read = pruning.as_trained("float32")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored[name], read(own[name])) and not torch.equal(stored[name], own[name])
    assert torch.equal(stored["model.embed_tokens.weight"], own["model.embed_tokens.weight"])


@pytest.mark.parametrize("way", MASKED)
@pytest.mark.parametrize("after", ["nothing", "the base", "the adapter", "the masks"])
def test_a_kill_between_files_leaves_nothing_and_can_be_made_good(
    base, tmp_path, monkeypatch, way, after
):
    def killed(*given, **named):
        raise Killed

    place = {
        "nothing": (pruning.tempfile, "TemporaryDirectory"),
        "the base": (tm.LoraAdapter, "save"),
        "the adapter": (pruning.Path, "write_bytes"),
        "the masks": (pruning.Path, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[after], killed)
        with pytest.raises(Killed):
            prune(base, tmp_path / "out", **MASKED[way])
    assert not (tmp_path / "out").exists()
    again = outcome(prune(base, tmp_path / "out", **MASKED[way]))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert again == outcome(prune(base, tmp_path / "unbroken", **MASKED[way]))


# The recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"method": "lora"}, "method must be one of lora-guided, vanilla"),
        ({"share": 2}, r"share must lie in \[0, 1\]"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"length": 1}, "length must be at least 2"),
        ({"threshold": "model"}, "threshold must be one of layer, global"),
        ({"schedule": "square"}, "schedule must be one of cubic, linear, one-shot, at-end"),
        ({"method": "taylor", "int8": True}, "taylor needs gradients of the weights"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(settings, line):
    with pytest.raises(tm.TipminiError, match=line):
        PruningRecipe(**settings)


@pytest.mark.parametrize(("steps", "count"), [(None, 8), (3, 3), (4, 4), (11, 11)])
def test_steps_take_the_place_of_epochs(steps, count):
    recipe = PruningRecipe(rows=12, batch=3, epochs=2, steps=steps)
    batches = recipe.batches(12)
    assert len(batches) == count and all(len(batch) == 3 for batch in batches)
    first = [row for batch in batches[:4] for row in batch]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("schedule", loraprune.SCHEDULES)
def test_all_is_gone_at_the_last_removal(schedule, steps):
    recipe = PruningRecipe(schedule=schedule)
    removals = [step for step in range(1, steps + 1) if removes(recipe, step, steps)]
    assert fraction(recipe, removals[-1], steps) == 1
    assert removes(PruningRecipe(tune=False), 1, 1)


def test_the_learning_rate_rises_and_falls_as_a_cosine():
    recipe = PruningRecipe(learning_rate=0.5, warmup=0.2)
    rates = [cosine_rate(recipe, step, 10) for step in range(10)]
    assert rates[:2] == [0.25, 0.5]
    assert rates[6] == pytest.approx(0.25) and rates == sorted(rates[:3]) + rates[3:]
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0


# The rows -----------------------------------------------------------------------------------------


def test_rows_are_taken_from_every_task_in_turn(tokenizer):
    rows = objective.plain_examples(("rte", "openbookqa"), 5, 24, tokenizer)
    first, second = (
        objective.plain_examples((t,), 3, 24, tokenizer) for t in ("rte", "openbookqa")
    )
    expected = [first[0], second[0], first[1], second[1], first[2]]
    assert [list(row.content) for row in rows] == [list(row.content) for row in expected]
    assert all(2 <= len(row.row) <= 24 for row in rows)


def test_every_token_but_the_first_is_predicted():
    row = objective.plain([5, 6, 7]).row
    assert (row.tokens, row.reads, row.targets) == ([5, 6, 7], [0, 1], [6, 7])


def test_padded_rows_are_masked():
    rows = [objective.plain(range(20)), objective.plain(range(19))]
    (batch,) = objective.padded(rows, 100)
    assert batch["attention_mask"].tolist() == [[1] * 20, [1] * 19 + [0]]
    assert batch["input_ids"][:, :19].tolist() == [list(range(19))] * 2


def test_more_rows_than_there_are_are_refused(tokenizer):
    with pytest.raises(tm.TipminiError, match=r"^task rte: \d+ train rows, 100000 wanted"):
        objective.plain_examples(("rte",), 100000, 24, tokenizer)
