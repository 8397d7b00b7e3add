"""`tipmini merge`: every option reachable, what is told and what is written."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters_on_disk import TASKS
from merge_command import (
    ADAPTERS,
    GRAMS,
    NORMS,
    assert_same,
    expected,
    merge,
    needed,
    run,
)
from safetensors.torch import load_file, save_file
from tiny import true_sum
from typer.testing import CliRunner

import tipmini as tm
from tipmini.cli import merge as merging
from tipmini.methods.table import CHOSEN, METHODS, Method, equal_weight
from tipmini_lab.commands import main

pytestmark = pytest.mark.usefixtures("on_disk")

ALL = [*tm.METHODS, *tm.PRESETS]


@pytest.mark.parametrize("method", ALL)
def test_every_option_of_every_method_is_reachable(method):
    defaults = tm.method_options(method)
    given = [word for n, v in defaults.items() for word in ("-o", f"{n}={v}")]
    facts = merge("--method", method, *needed(method), *given)
    assert facts["options"] == defaults and facts["method"] == method
    assert_same("m", expected(method))


OPTIONS = [
    ("tip", ["--sign", -1, "--sparsity", 0.4], {"sign": -1, "sparsity": 0.4}),
    ("tip", ["-o", "shift-range=0.3", "-o", "rescale=True"], {"shift_range": 0.3, "rescale": True}),
    ("tip", ["--on", "delta", "--rank", 3], {"on": "delta", "rank": 3}),
    (
        "wanda",
        ["-o", "group=matrix", "--summation", "cat"],
        {"group": "matrix", "summation": "cat"},
    ),
    ("dare", ["--drop-rate", "1e-1", "-o", "rescale=none"], {"drop_rate": 0.1, "rescale": None}),
    ("ties", ["--density", 0.5, "--option", "on=delta"], {"density": 0.5, "on": "delta"}),
    ("ties", ["-o", "variant=authors"], {"variant": "authors"}),
]


@pytest.mark.parametrize(("method", "given", "options"), OPTIONS)
def test_an_option_counts_in_its_own_type(method, given, options):
    facts = merge("--method", method, *given, *needed(method))
    assert facts["options"] == tm.method_options(method) | options
    assert_same("m", expected(method, **options))


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ([], [1.0, 1.0, 1.0]),
        (["--weights", "sum"], [1.0, 1.0, 1.0]),
        (["--weights", "mean"], "mean"),
        (["--weights", "sqrt"], "sqrt"),
        (["--weights", "0.6/T"], [0.2, 0.2, 0.2]),
        (["--weights", "0.6/norm"], "0.6/norm"),
        (["--weights", "0.6/module-norm"], "0.6/module-norm"),
        (["--weight", 0.5, "--weight", -2, "--weight", 0], [0.5, -2.0, 0.0]),
    ],
)
def test_weights(given, weights):
    merge("--method", "linear", *given)
    assert_same("m", expected("linear", weights=weights))


def test_the_recommended_merge_is_the_default():
    facts, recommended = merge(), tm.PRESETS["recommended"]
    assert (facts["method"], facts["weights"]) == ("recommended", recommended.weights)
    assert_same("m", expected("recommended"))
    told = run("merge", "--dry-run", "--out", "m2", *ADAPTERS)
    assert facts["weight"] == equal_weight(CHOSEN[3], 3)
    assert f"merged by recommended (linear, weights chosen, {facts['weight']:.4g} each)" in told


def test_seed_decides_the_draws():
    merge("--method", "dare", "--seed", 3)
    assert_same("m", expected("dare", seed=3))


# Fidelity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "linear", "svd", "dare"])
def test_the_relative_error_is_told(method):
    facts = merge("--method", method, "--weights", "mean")["relative_error"]
    merged, parts = tm.load_adapter("m"), [tm.load_adapter(path) for path in ADAPTERS]
    off = norm = 0.0
    for module in merged.modules:
        exact = sum(part.delta(module).double() for part in parts) / 3
        apart = (merged.delta(module).double() - exact).norm()
        ratio = (apart / exact.norm()).item()
        assert facts["modules"][module] == pytest.approx(ratio, rel=1e-3, abs=1e-6)
        off, norm = off + apart**2, norm + exact.norm() ** 2
    assert facts["whole"] == pytest.approx((off / norm).sqrt().item(), rel=1e-3, abs=1e-6)
    assert (facts["whole"] < 1e-6) == (method == "cat")


def test_plain_text_says_the_error_in_one_line():
    words = ["merge", "--method", "linear", "--out", "m", *ADAPTERS]
    result = CliRunner().invoke(main.app, words)
    first, second, third, fourth = result.stdout.splitlines()
    assert fourth.startswith("rank 4: ") and "not how good" in third
    assert first.startswith("m: 6 modules of 3 adapters merged by linear (weights sum, 1 each) in ")
    assert second.startswith("relative error: ||merged - exact sum|| / ||exact sum|| = ")
    assert float(second.rpartition("=")[2]) > 0.1
    assert result.stderr == ""  # no terminal, no progress


def test_a_sum_of_zero_is_said():
    zero = ["--method", "linear", "--weight", 0]
    assert "the exact sum is 0" in run("merge", *zero, "--out", "m", ADAPTERS[0])
    assert merge(*zero, adapters=ADAPTERS[:1])["relative_error"]["whole"] is None


# Merged base weights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given"), [("cat", []), ("linear", []), ("tip", ["--on", "delta", *NORMS])]
)
def test_into_writes_the_base_merged(method, given):
    facts = merge("--method", method, "--into", "base", *given, out="whole")
    norms = {t: load_file(f"{t}.safetensors") for t in TASKS} if method == "tip" else None
    options = {"on": "delta"} if method == "tip" else {}
    loaded = {task: tm.load_adapter(f"adapters/{task}") for task in TASKS}
    _, update = tm.merge_update(loaded, method, norms=norms, **options)
    before, after = load_file("base/model.safetensors"), load_file("whole/model.safetensors")
    assert before.keys() == after.keys() and Path("whole/config.json").exists()
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module in list(update):
            merged = update[module]
            tensor = tensor + (merged.delta() if isinstance(merged, tm.LoraFactors) else merged)
        assert torch.equal(after[name], tensor)
    assert facts["into"] == "base" and len(facts["relative_error"]["modules"]) == len(update)
    assert (facts["relative_error"]["whole"] < 1e-6) == (method == "cat")


# Adapters of different base models ------------------------------------------------------------


@pytest.fixture
def unlike(folder):
    """Adapters of two bases; each has a module that the other lacks."""
    for name, source, part in (("own", 0, slice(1)), ("another", 1, slice(1, None))):
        whole = tm.load_adapter(ADAPTERS[source])
        factors = {module: whole.factors[module] for module in whole.modules[part]}
        tm.LoraAdapter(factors, base_model=name).save(f"adapters/{name}")
    return ["adapters/own", "adapters/another"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("into", [[], ["--into", "base"]])
def test_adapters_of_different_bases_need_one_named(unlike, into, dry):
    given = ["merge", "--method", "cat", "--out", "m", *into, *dry, *unlike]
    refused = CliRunner().invoke(main.app, given).exception
    told = "base models: another of another, own of own; if they are one model"
    assert isinstance(refused, tm.TipminiError) and told in str(refused)
    assert not Path("m").exists()
    facts = merge("--method", "cat", "--base-model", "named", *into, *dry, adapters=unlike)
    assert facts["modules"] == 6 and Path("m").exists() == (not dry)
    if not into and not dry:
        assert tm.load_adapter("m").base_model == "named"


# Dry run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", [[], ["--into", "base"]])
@pytest.mark.parametrize(
    "given",
    [
        ["--method", "linear", "--weight", 1, "--weight", 2, "--weight", 3],
        ["--method", "tip", *NORMS],
        [],
        ["--method", "cat"],
    ],
)
def test_a_dry_run_tells_and_writes_nothing(on_disk, given, into):
    before = sorted(on_disk.rglob("*"))
    facts = merge("--dry-run", *given, *into)
    assert sorted(on_disk.rglob("*")) == before
    estimate = facts.pop("estimate")
    assert facts.pop("dry_run") is True
    assert estimate["memory_bytes"] > 10**7 and 0 < estimate["seconds"] < 60
    done = merge(*given, *into)
    [done.pop(name, None) for name in ("relative_error", "seconds", "max_lora_rank")]
    assert done == facts
    file = next(Path("m").glob("*.safetensors"))
    assert 0 <= file.stat().st_size - estimate["output_bytes"] < 5000  # the header


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *((method, []) for method in ALL),
        *((method, ["--summation", how]) for method in ("tip", "dare") for how in ("cat", "svd")),
        *((method, ["--on", "delta"]) for method in ("tip", "ties", "dare")),
        ("svd", ["--rank", 2]),
        ("magnitude", ["--on", "delta", "--rank", 3]),
        ("ties", ["--on", "delta", "--rank", 20]),  # above the rank of their sum
        ("cat", ["--dtype", "float32"]),
        ("cat", ["--dtype", "bfloat16"]),
    ],
)
def test_a_dry_run_knows_the_size_of_the_result(method, given):
    given = ["--method", method, *needed(method), *given]
    estimate = merge("--dry-run", *given)["estimate"]
    merge(*given)
    written = load_file("m/adapter_model.safetensors")
    assert estimate["output_bytes"] == sum(tensor.nbytes for tensor in written.values())


def another(name: str, **changes):
    """The first adapter with other factors, saved under a name."""
    first = tm.load_adapter(ADAPTERS[0])
    first.map(lambda _, pair: replace(pair, **{k: v(pair) for k, v in changes.items()})).save(name)


WIDER = {"a": lambda pair: pair.a.repeat(1, 2)}
MORE_RANKS = {"a": lambda pair: pair.a.repeat(2, 1), "b": lambda pair: pair.b.repeat(1, 2)}


REGMEAN = ["--method", "regmean"]
REFUSED = [
    (["--method", "linear"], MORE_RANKS, "linear needs equal ranks, model.layers.0.self_attn"),
    (["--method", "cat"], WIDER, "adapters of different base models: model.layers.0.self_attn"),
    (["--method", "tip", *NORMS[:2], "--norms", "few.st"], {}, "norms need (32,) under 'model."),
    ([*REGMEAN, *GRAMS[:2], "--grams", "few.st"], {}, "needs the Gram matrix of"),
    ([*REGMEAN, *GRAMS[:2], *GRAMS[:1], NORMS[1]], {}, "a finite Gram matrix (32"),
    ([*REGMEAN, *GRAMS[:4], "--weight", 1, "--weight", -1], {}, "from 0 on, adap"),
]


@pytest.mark.parametrize(("given", "changes", "line"), REFUSED)
def test_a_dry_run_refuses_what_the_merge_does(given, changes, line):
    another("other", **changes)
    save_file({"x": torch.ones(2)}, "few.st")
    words = ["merge", "--out", "m", *map(str, given), ADAPTERS[1], "other"]
    runs = [CliRunner().invoke(main.app, [*words, *dry]) for dry in ([], ["--dry-run"])]
    merged, dry = (str(run.exception) for run in runs)
    assert line in merged and dry == merged


def test_a_dry_run_knows_adapters_that_lack_a_module():
    whole = tm.load_adapter(ADAPTERS[0])
    tm.LoraAdapter({whole.modules[0]: whole.factors[whole.modules[0]]}).save("adapters/small")
    weights = ["--weight", 1, "--weight", 2]
    given = ["--method", "linear", *weights, "--dry-run"]
    facts = merge(*given, adapters=["adapters/small", ADAPTERS[1]])
    assert facts["modules"] == 6


def test_a_dry_run_in_plain_text_lists_everything():
    words = ["merge", "--dry-run", "--method", "ties", "--out", "m", *ADAPTERS]
    lines = run(*words).splitlines()
    how = "ties (weights sum, 1 each)"
    assert lines[0] == f"m: 6 modules of 3 adapters would be merged by {how}; nothing is written"
    starts = ["adapter"] * 3 + ["option"] * 4 + ["weights", "output", "memory", "time"]
    assert [line.split()[0] for line in lines[1:]] == starts


# Progress -------------------------------------------------------------------------------------


def test_progress_goes_to_a_terminal_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(merging._bar(silent=False)([1, 2], desc="merging", unit="module")) == [1, 2]
    shown = capsys.readouterr()
    assert "merging" in shown.err and "module" in shown.err and shown.out == ""
    assert list(merging._bar(silent=True)([1, 2], desc="merging", unit="module")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "names"), [(2, "{0} (1),{0} (2)"), (1, "piqa")])
def test_the_card_tells_an_adapter_as_often_as_it_is_merged(count, names):
    merge("--method", "linear", adapters=ADAPTERS[:1] * count)
    card = Path("m/README.md").read_text()
    assert f"# A merge of {count} LoRA adapters" in card
    for name in names.format(ADAPTERS[0]).split(","):
        assert f"| `{name}` | 1 | `" in card


@pytest.mark.parametrize("rule", ["0.6/norm", "0.6/module-norm"])
def test_a_total_over_norms_is_told_as_what_it_is(rule):
    """No weight is every adapter's, and with one a module the card has the rule."""
    facts = merge("--method", "cat", "--weights", rule)
    assert facts["weights"] == rule and "weight" not in facts
    loaded = {task: tm.load_adapter(f"adapters/{task}") for task in TASKS}
    parts, _ = tm.merge_update(loaded, "cat", weights=rule)
    card = Path("m/README.md").read_text()
    for part in parts:
        shown = rule if rule.endswith("module-norm") else f"{part.weight:g}"
        assert f"| `{part.name}` | {shown} | `" in card
    assert f"weights {rule}" in run(
        "merge", "--dry-run", "--weights", rule, "--out", "d", *ADAPTERS
    )


def test_a_method_is_a_function_and_a_row(on_disk, monkeypatch):
    """Everything else reads the row: the list, the run, the dry run."""
    row = Method("tipmini.methods.merge:sum_linear", "mangrulkar2022peft")
    monkeypatch.setitem(METHODS, "toy", row)
    assert "toy" in run("methods")
    plan, done = (merge("--method", "toy", *dry) for dry in (["--dry-run"], []))
    assert plan["method"] == done["method"] == "toy" and plan["estimate"]["seconds"] > 0


@pytest.mark.parametrize(("dtype", "places"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("kept", [[], ["--rank-pattern"]])
def test_the_error_is_of_what_is_written(dtype, places, kept):
    """The exact sum, rounded: what is told is how far the file is from it, not how far it was."""
    facts = merge("--method", "cat", "--weights", "sum", "--dtype", dtype, *kept)
    own, written = [tm.load_adapter(path) for path in ADAPTERS], tm.load_adapter("m")
    apart, whole = 0.0, 0.0
    for module, pair in written.factors.items():
        exact = true_sum(dict(enumerate(own)), dict.fromkeys(range(len(own)), 1), module)
        found = pair.scaling * pair.b.double() @ pair.a.double()
        apart += (found - exact).square().sum().item()
        whole += exact.square().sum().item()
    error = facts["relative_error"]["whole"]
    assert error == pytest.approx((apart / whole) ** 0.5, rel=1e-3)
    assert 2.0**-places / 10 < error < 2.0**-places
