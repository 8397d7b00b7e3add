"""Ways to tune a tiny model: each starts as it should, trains what it says, is measured once."""

import math

import pytest
import torch
import yaml
from labs import llama
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from tipmini.errors import TipminiError
from tipmini.papers import lora
from tipmini_lab import paths
from tipmini_lab.book import lora_tables
from tipmini_lab.commands import main
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import target_hidden
from tipmini_lab.evaluation.packing import collate, pack
from tipmini_lab.experiments import tunings
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.tuning import Tuning, TuningRecipe, tunable
from tipmini_lab.results import store

WIDTH, LAYERS, KEYS, INNER = 16, 2, 8, 24  # of the tiny model; keys: channels of its k and v
ADAPTED = {"part": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}
HOULSBY = {"part": "bottleneck", "kind": "houlsby", "rank": 3}
# What each way trains, counted: {ways: (parts, numbers, whether the model is at first what it was)}
PFEIFFER = {"part": "bottleneck", "kind": "pfeiffer", "rank": 3}
WAYS = {
    "LoRA": ([ADAPTED], LAYERS * 2 * (2 * WIDTH + WIDTH + KEYS), True),
    "norms": ([{"part": "norms"}], (2 * LAYERS + 1) * WIDTH, True),
    "biases": ([{"part": "biases"}], LAYERS * (3 * WIDTH + 2 * KEYS + 2 * INNER), True),
    "H": ([HOULSBY], lora.adapter_parameters(2 * LAYERS, WIDTH, 3), True),
    "L": ([HOULSBY | {"kind": "lin"}], lora.adapter_parameters(LAYERS, WIDTH, 3, LAYERS), True),
    "P": ([PFEIFFER], lora.adapter_parameters(LAYERS, WIDTH, 3), True),
    "dropped": ([PFEIFFER | {"first": 1}], lora.adapter_parameters(LAYERS - 1, WIDTH, 3), True),
    "prefix": (
        [{"part": "prefix", "length": 5}],
        2 * lora.prefix_layer_parameters(LAYERS, KEYS, 5),
        False,
    ),
    "prompt": (
        [{"part": "prompt", "length": 5}],
        lora.prefix_embedding_parameters(WIDTH, 5),
        False,
    ),
    "both": (
        [ADAPTED, HOULSBY],
        LAYERS * 2 * (3 * WIDTH + KEYS) + lora.adapter_parameters(2 * LAYERS, WIDTH, 3),
        True,
    ),
    "around": (
        [ADAPTED, {"part": "prompt", "length": 5}],
        LAYERS * 2 * (3 * WIDTH + KEYS) + WIDTH * 5,
        False,
    ),
}
ROWS = [pack([1, 5, 9, 4], [[7, 8], [7, 3, 6]]), pack([2, 6], [[4, 9, 9], [5]])]  # two trees
PLAIN = [pack([1, 5, 9, 4, 7], [])]


def hidden(model: torch.nn.Module, rows=ROWS) -> torch.Tensor:
    for row in rows:
        if not row.reads:
            row.read(len(row) - 1, 0, 0)
    with torch.no_grad():
        return target_hidden(model, collate(rows))


def eager() -> torch.nn.Module:
    model = llama(vocabulary=64)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", WAYS)
def test_a_way_trains_as_many_numbers_as_counted_and_starts_as_it_should(name):
    parts, count, same = WAYS[name]
    before = hidden(eager())
    model, trained = tunable(eager(), parts, seed=0)
    assert sum(p.numel() for p in trained.values()) == count
    assert torch.equal(hidden(model), before) == same
    again, _ = tunable(eager(), parts, seed=0)
    assert torch.equal(hidden(model), hidden(again))


@pytest.mark.parametrize("last", [1, None])
def test_whole_layers_are_trained_without_the_embedding(last):
    model, trained = tunable(eager(), [{"part": "weights", "last": last}], seed=0)
    layers = model.model.layers[-last:] if last else [*model.model.layers, model.model.norm]
    expected = {id(p) for layer in layers for p in layer.parameters()}
    assert {id(p) for p in trained.values()} == expected


@pytest.mark.parametrize(
    ("part", "kind"), [("prefix", PrefixTuningConfig), ("prompt", PromptTuningConfig)]
)
def test_virtual_tokens_do_what_pefts_own_do_to_a_plain_row(part, kind):
    model, _ = tunable(eager(), [{"part": part, "length": 3}], seed=0)
    base = eager()
    torch.manual_seed(0)
    peft = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    tokens = torch.tensor([PLAIN[0].tokens])
    with torch.no_grad():
        theirs = peft(tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
    torch.testing.assert_close(model.lm_head(hidden(model, PLAIN))[0], theirs)
    assert not torch.allclose(hidden(model, PLAIN), hidden(eager(), PLAIN), atol=1e-2)


@pytest.mark.parametrize("part", ["prefix", "prompt"])
def test_a_packed_tree_is_read_as_its_requests_alone(part):
    model, _ = tunable(eager(), [{"part": part, "length": 3}], seed=0)
    packed = hidden(model, [pack([1, 5, 9], [[7, 8, 2], [3, 6, 2]])])
    alone = [hidden(model, [pack([1, 5, 9], [c])]) for c in ([7, 8, 2], [3, 6, 2])]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_an_unknown_part_or_option_is_told_in_one_line():
    with pytest.raises(TipminiError, match=r"part 'ia3': not one of weights, norms, biases, lora"):
        tunable(eager(), [{"part": "ia3"}], 0)
    with pytest.raises(TipminiError, match=r"part prefix: .* unexpected keyword argument 'rank'"):
        tunable(eager(), [{"part": "prefix", "rank": 2}], 0)


def questions(tokenizer, count: int = 12) -> list[objective.Example]:
    return objective.examples("openbookqa", tokenizer, count)


@pytest.mark.parametrize("parts", [WAYS["H"][0], WAYS["around"][0], [{"part": "weights"}]])
def test_training_lowers_the_loss_and_leaves_the_rest(parts, tokenizer):
    base = llama()
    base.set_attn_implementation("eager")
    before = {n: p.clone() for n, p in base.named_parameters()}
    recipe = TuningRecipe(rows=8, rate=1e-2, epochs=6, batch=8, held_out=4)
    run = Tuning(base, parts, recipe, questions(tokenizer), temperature=1.0)
    first = run.held_out_losses()
    run.run()
    assert len(first) == 4 and first != run.held_out_losses()
    assert run.log["loss"][-1] < run.log["loss"][0] and len(run.log["loss"]) == 6
    changed = {id(p) for p in run.trained.values()}
    kept = dict(base.named_parameters())
    assert all(
        torch.equal(before[n], kept[n]) for n in before if n in kept and id(kept[n]) not in changed
    )


def test_steps_that_16_bits_round_away_add_up(tokenizer):
    """1e-5 of a weight near 1 is a 200th of what bfloat16 tells apart."""
    base = llama().bfloat16()
    base.set_attn_implementation("eager")
    recipe = TuningRecipe(rows=4, rate=1e-5, batch=4, held_out=4)
    run = Tuning(base, [{"part": "norms"}], recipe, questions(tokenizer, 8), temperature=1.0)
    before = {n: p.detach().clone() for n, p in run.trained.items()}
    run.run()
    moved = [(kept.detach() - before[n].float()).abs().max() for n, kept in run.factors.items()]
    assert all(0 < move < 2e-5 for move in moved)
    assert all(torch.equal(p.detach(), before[n]) for n, p in run.trained.items())


# Declared groups ----------------------------------------------------------------------------------
GROUP = """
module: tunings
description: a try
version: 1
sizes: {tiny: {rows: {openbookqa: 8, rte: 8}, held_out: 4, scored: 3, batch: 4}}
tasks: [openbookqa, rte]
seeds: [0, 1]
ways:
  - {name: base, title: not tuned}
  - name: lora
    title: LoRA
    parts: [{part: lora, rank: 2, alpha: 4, targets: [q_proj, v_proj]}]
    rates: [0.001, 0.1]
    keep: true
pairs: [{name: seeds, title: two seeds, ways: [lora, lora], seeds: [0, 1]}]
amplified: [lora]
"""
RUNS = [("base", (0,)), ("lora", (0, 1))]
NAMES = [
    f"{way}-{task}-s{s}" for task in ("openbookqa", "rte") for way, seeds in RUNS for s in seeds
]


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Writes the group's file as the only one that is measured by `tunings`."""

    def write(text: str = GROUP) -> None:
        file = tmp_path / "try.yaml"
        file.write_text(text)
        monkeypatch.setattr(tunings, "own_groups", lambda module: {"try": file})

    return write


def measure(profile, *names) -> list[str]:
    shown: list[str] = []
    tunings.measure(profile, "try", names, lambda cell: shown.append(cell.method))
    return shown


def test_a_group_is_measured_once_rates_first_and_the_best_is_taken(profile, declare):
    declare()
    shown = measure(profile)
    rates = ["lora-rate-0.001", "lora-rate-0.1"]
    compared = ["seeds"] * 2 + ["amplified-lora"] * 2  # of q and v
    assert shown == [*rates, *NAMES, *compared]
    assert measure(profile) == []
    at = tunings.folder(profile, "try")
    losses = {n: store.cell_of(at, n, "held-out").mean for n in rates}
    best = float(min(losses, key=losses.get).removeprefix("lora-rate-"))
    bundle = store.read(at, "lora-rte-s1")
    assert bundle.settings["recipe"]["rate"] == bundle.facts["rate"] == best
    assert bundle.facts["trained"] == WAYS["LoRA"][1] and len(bundle.facts["loss"]) == 2
    assert [cell.count for cell in bundle.cells] == [3]
    phi = store.cell_of(at, "seeds", "q_proj").values
    assert len(phi) == 2 * 2 and all(0 <= value <= 1.0001 for value in phi)
    norms = store.cell_of(at, "amplified-lora", "v_proj").values
    assert len(norms) == LAYERS * len(tunings.NORMS)
    weight, delta, own, random, factor = norms[: len(tunings.NORMS)]
    assert random < own < weight and factor == pytest.approx(delta / (delta / factor), rel=1e-3)


def test_a_rate_at_which_training_diverges_is_stored_and_not_taken(profile, declare, monkeypatch):
    declare(GROUP.replace("rates: [0.001, 0.1]", "rates: [10.0, 0.001]"))
    losses = Tuning.held_out_losses
    diverges = lambda run: [math.nan] * 4 if run.recipe.rate == 10 else losses(run)  # noqa: E731
    monkeypatch.setattr(Tuning, "held_out_losses", diverges)
    measure(profile, "lora-rate-10", "lora-rate-0.001", "lora-rte-s0")
    at = tunings.folder(profile, "try")
    worst = store.read(at, "lora-rate-10")
    assert worst.cells[0].mean == worst.facts["held_out"] == tunings.DIVERGED
    assert store.read(at, "lora-rte-s0").facts["rate"] == 0.001
    found = lora_tables.runs(profile, "try")
    assert lora_tables.rate_table(found).iloc[0].to_dict()["10"] == "diverged"


def test_what_is_scored_is_the_tuned_model(profile, declare):
    """As lm-eval's task scores it, by its own rows."""
    declare(
        GROUP.replace("    rates: [0.001, 0.1]\n", "").replace("\nways:", "\nrates: [0.5]\nways:")
    )
    measure(profile, "base-openbookqa-s0", "lora-openbookqa-s0")
    at = tunings.folder(profile, "try")
    base, tuned = (store.read(at, f"{way}-openbookqa-s0") for way in ("base", "lora"))
    assert base.facts == {} and tuned.facts["rate"] == 0.5
    data = [one.cells[0].inputs["data"] for one in (base, tuned)]
    assert data[0] == data[1] and base.cells[0].key != tuned.cells[0].key


def test_another_recipe_is_measured_again_and_an_unmeasured_rate_is_told(profile, declare):
    declare()
    name = "lora-openbookqa-s0"
    with pytest.raises(TipminiError, match=r"way lora: rate 0\.001 isn't measured"):
        measure(profile, name)
    declare(GROUP.replace("rates: [0.001, 0.1]", "rates: [0.001]"))
    assert measure(profile, name) == [name] and measure(profile, name) == []
    declare(GROUP.replace("rates: [0.001, 0.1]", "rates: [0.002]"))
    assert measure(profile, name) == [name]


@pytest.mark.parametrize(
    ("names", "edit", "told"),
    [
        (["lor"], {}, "group try: no run 'lor' at profile tiny"),
        ([], {"sizes": {}}, "a try: profile 'tiny' is not one of "),
        ([], {"tasks": ["rt"]}, r"try\.yaml: tasks: .*'rt' is not one of"),
        ([], {"way": []}, r"unknown key 'way'; the nearest valid one is 'ways'"),
        ([], {"amplified": ["lo"]}, "no way 'lo': base, lora"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(profile, declare, names, edit, told):
    declare(yaml.safe_dump(yaml.safe_load(GROUP) | edit))
    with pytest.raises(TipminiError, match=told):
        measure(profile, *names)


def test_a_spectrum_by_hand():
    """Singular values 2 and 1: the first has 4 of 5."""
    assert tunings.energies([torch.diag(torch.tensor([1.0, 2.0]))])[:3] == [0.8, 1, 1]


def test_the_declared_groups_can_be_measured(profile):
    known = paths.own_groups("tunings")
    assert known and not known.keys() & paths.experiment_files(prunings=True).keys()
    assert not known.keys() & paths.experiment_files(prunings=False).keys()
    for name in known:
        group = tunings.group(name)
        mini = profile.model_copy(update={"name": "mini"})
        many = tunings.Tunings(mini, name, group)
        runs = [*many.sweeps(), *many.runs(), *many.comparisons()]
        assert len({run.name for run in runs}) == len(runs) > 0
        assert all(r.measures() for r in runs)


BUDGET = 460_800  # rank 8 on q and v
FREE = {"base", "full", "top2", "bitfit", "norms", "prompt"}  # of the size that they have


@pytest.mark.parametrize("name", ["lora-methods", "lora-matrices"])
def test_budgets_are_equal_within_four_per_cent(name, embedded):
    """On the real model's shapes, with no weight in memory."""
    config = AutoConfig.from_pretrained(embedded / "model")
    for way in tunings.group(name).ways:
        if way.name not in FREE:
            with torch.device("meta"):
                base = AutoModelForCausalLM.from_config(config).requires_grad_(False)
                _, trained = tunable(base, way.parts, 0)
            count = sum(p.numel() for p in trained.values())
            assert count == pytest.approx(BUDGET, rel=0.04), way.name


def test_the_command_finds_the_module(profile, monkeypatch):
    asked = []
    monkeypatch.setattr(tunings, "measure", lambda *given, **_: asked.append(given[1]))
    done = CliRunner().invoke(main.app, ["measure", "--group", "lora-ranks", "--profile", "smoke"])
    assert done.exit_code == 0 and asked == ["lora-ranks"]
    told = ["measure", "--group", "lora-ranks", "--task", "rte"]
    done = CliRunner().invoke(main.app, told)
    assert done.exit_code and "omit --task" in str(done.exception or done.output)


def test_no_best_learning_rate_lies_at_the_edge_of_those_tried():
    """Else the way was compared before it was tuned."""
    mini = load_profile("mini")
    for name in ("lora-methods", "lora-scalings"):
        stored = tunings.folder(mini, name)
        for way in tunings.group(name).ways:
            cells = {
                rate: store.cell_of(stored, f"{way.name}-rate-{rate:g}", tunings.HELD_OUT)
                for rate in way.rates
            }
            if len(way.rates) > 1 and all(cells.values()):
                best = min(cells, key=lambda rate: cells[rate].mean)
                assert min(cells) < best < max(cells), (name, way.name, best)


def test_groups_of_one_rate_have_the_one_that_was_best(embedded):
    """It is typed there; what was measured says whether it is still right."""
    methods = tunings.Tunings(load_profile("mini"), "lora-methods")
    best = {way: methods.best_rate(methods.group.way(way)) for way in ("lora", "prefix", "prompt")}
    for name in ("lora-ranks", "lora-matrices", "lora-prefixes"):
        declared = tunings.group(name)
        for way in declared.ways:
            (part,) = way.parts
            assert declared.rates_of(way) == (best[part["part"]],), (name, way.name)
