"""`tipmini merge`: every option reachable and checked, what is told and what is written."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from adapters_on_disk import TASKS, write_all
from safetensors.torch import load_file
from typer.testing import CliRunner

import tipmini as tm
from tipmini import cli
from tipmini.commands import merging

ADAPTERS = [f"adapters/{task}" for task in TASKS]
NORMS = [word for task in TASKS for word in ("--norms", f"{task}.safetensors")]
GRAMS = [word for task in TASKS for word in ("--grams", f"{task}-grams.safetensors")]
ALL = [*tm.METHODS, *tm.PRESETS]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(*given, out="m", adapters=ADAPTERS):
    """What `tipmini merge --json` prints."""
    words = ["merge", "--json", "--out", out, *given, *adapters]
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output or result.exception
    return json.loads(result.stdout)


def expected(method, **options):
    """What the library makes of the same."""
    adapters = [tm.load_adapter(path) for path in ADAPTERS]
    norms = [load_file(f"{task}.safetensors") for task in TASKS]
    grams = [load_file(f"{task}-grams.safetensors") for task in TASKS]
    return tm.merge(adapters, method, norms=norms, grams=grams, **options)


def assert_same(out, merged):
    written = tm.load_adapter(out)
    assert written.modules == merged.modules
    for module in merged.modules:
        assert torch.equal(written.factors[module].a, merged.factors[module].a)
        assert torch.equal(written.factors[module].b, merged.factors[module].b)


@pytest.mark.parametrize("method", ALL)
def test_every_option_of_every_method_is_reachable(method):
    defaults = tm.method_options(method)
    given = [word for n, v in defaults.items() for word in ("-o", f"{n}={v}")]
    facts = merge("--method", method, *NORMS, *GRAMS, *given)
    assert facts["options"] == defaults and facts["method"] == method
    assert_same("m", expected(method))


@pytest.mark.parametrize(
    ("method", "given", "options"),
    [
        ("tip", ["--sign", -1, "--sparsity", 0.4], {"sign": -1, "sparsity": 0.4}),
        (
            "tip",
            ["-o", "shift-range=0.3", "-o", "rescale=True"],
            {"shift_range": 0.3, "rescale": True},
        ),
        ("tip", ["--on", "delta", "--rank", 3], {"on": "delta", "rank": 3}),
        (
            "wanda",
            ["--option", "group=matrix", "--summation", "cat"],
            {"group": "matrix", "summation": "cat"},
        ),
        (
            "dare",
            ["--drop-rate", "1e-1", "-o", "rescale=none"],
            {"drop_rate": 0.1, "rescale": None},
        ),
        (
            "ties",
            ["--density", 0.5, "-o", "variant=authors"],
            {"density": 0.5, "variant": "authors"},
        ),
    ],
)
def test_an_option_counts_in_its_own_type(method, given, options):
    facts = merge("--method", method, *given, *NORMS)
    assert facts["options"] == tm.method_options(method) | options
    assert_same("m", expected(method, **options))


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ([], [1.0, 1.0, 1.0]),
        (["--weights", "sum"], [1.0, 1.0, 1.0]),
        (["--weights", "mean"], "mean"),
        (["--weights", "sqrt"], "sqrt"),
        (["--weight", 0.5, "--weight", -2, "--weight", 0], [0.5, -2.0, 0.0]),
    ],
)
def test_weights(given, weights):
    merge("--method", "linear", *given)
    assert_same("m", expected("linear", weights=weights))


def test_seed_decides_the_draws():
    merge("--method", "dare", "--seed", 3)
    assert_same("m", expected("dare", seed=3))


# Fidelity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "linear", "svd", "dare"])
def test_fidelity_is_told(method):
    facts = merge("--method", method, "--weights", "mean")["fidelity"]
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


def test_plain_text_says_the_fidelity_in_one_line():
    words = ["merge", "--method", "linear", "--out", "m", *ADAPTERS]
    result = CliRunner().invoke(cli.app, words)
    first, second = result.stdout.splitlines()
    assert first.startswith("m: 6 modules of 3 adapters merged by linear in ")
    assert second.startswith("fidelity: ||merged - exact sum|| / ||exact sum|| = ")
    assert float(second.rpartition("=")[2]) > 0.1
    assert result.stderr == ""  # no terminal, no progress


def test_a_sum_of_zero_is_said():
    words = ["merge", "--method", "linear", "--weight", "0", "--out", "m", ADAPTERS[0]]
    assert "the exact sum is 0" in CliRunner().invoke(cli.app, words).stdout
    assert (
        merge("--method", "linear", "--weight", 0, adapters=ADAPTERS[:1])["fidelity"]["whole"]
        is None
    )


# Merged base weights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given"), [("cat", []), ("linear", []), ("tip", ["--on", "delta", *NORMS])]
)
def test_into_writes_the_base_merged(method, given):
    facts = merge("--method", method, "--into", "base", *given, out="whole")
    norms = [load_file(f"{task}.safetensors") for task in TASKS] if method == "tip" else None
    options = {"on": "delta"} if method == "tip" else {}
    loaded = [tm.load_adapter(path) for path in ADAPTERS]
    _, update = tm.merge_update(loaded, method, norms=norms, **options)
    before, after = load_file("base/model.safetensors"), load_file("whole/model.safetensors")
    assert before.keys() == after.keys() and Path("whole/config.json").exists()
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module in list(update):
            merged = update[module]
            tensor = tensor + (merged.delta() if isinstance(merged, tm.LoraFactors) else merged)
        assert torch.equal(after[name], tensor)
    assert facts["into"] == "base" and len(facts["fidelity"]["modules"]) == len(update)
    assert (facts["fidelity"]["whole"] < 1e-6) == (method == "cat")


# Adapters of different base models ------------------------------------------------------------


@pytest.fixture
def unlike(folder):
    """Adapters of two bases; each has a module that the other lacks."""
    first, last = tm.load_adapter(ADAPTERS[0]), tm.load_adapter(ADAPTERS[1])
    for name, adapter, modules in (
        ("own", first, first.modules[:1]),
        ("another", last, last.modules[1:]),
    ):
        factors = {module: adapter.factors[module] for module in modules}
        tm.LoraAdapter(factors, base_model=name).save(f"adapters/{name}")
    return ["adapters/own", "adapters/another"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("into", [[], ["--into", "base"]])
def test_adapters_of_different_bases_need_one_named(unlike, into, dry):
    given = ["merge", "--method", "cat", "--out", "m", *into, *dry, *unlike]
    refused = CliRunner().invoke(cli.app, given).exception
    told = "base models: adapters/own of own, adapters/another of another; if they are one model"
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
        NORMS,
        ["--method", "cat"],
    ],
)
def test_a_dry_run_tells_and_writes_nothing(folder, given, into):
    before = sorted(folder.rglob("*"))
    facts = merge("--dry-run", *given, *into)
    assert sorted(folder.rglob("*")) == before
    estimate = facts.pop("estimate")
    assert facts.pop("dry_run") is True
    assert estimate["memory_bytes"] > 10**7 and 0 < estimate["seconds"] < 60
    done = merge(*given, *into)
    done.pop("fidelity"), done.pop("seconds")
    assert done == facts
    file = next(Path("m").glob("*.safetensors"))
    assert 0 <= file.stat().st_size - estimate["output_bytes"] < 5000  # the header


def test_a_dry_run_knows_adapters_that_lack_a_module(folder):
    whole = tm.load_adapter(ADAPTERS[0])
    tm.LoraAdapter({whole.modules[0]: whole.factors[whole.modules[0]]}).save("adapters/small")
    weights = ["--weight", 1, "--weight", 2]
    given = ["--method", "linear", *weights, "--dry-run"]
    facts = merge(*given, adapters=["adapters/small", ADAPTERS[1]])
    assert facts["modules"] == 6


def test_a_dry_run_in_plain_text_lists_everything():
    words = ["merge", "--dry-run", "--method", "ties", "--out", "m", *ADAPTERS]
    lines = CliRunner().invoke(cli.app, words).stdout.splitlines()
    assert lines[0] == "m: 6 modules of 3 adapters would be merged by ties; nothing is written"
    starts = ["adapter"] * 3 + ["option"] * 4 + ["weights", "output", "memory", "time"]
    assert [line.split()[0] for line in lines[1:]] == starts


# Configuration --------------------------------------------------------------------------------


def configured(*given, **content):
    Path("c.yaml").write_text(yaml.safe_dump(content))
    words = ["merge", "--json", "--config", "c.yaml", *map(str, given)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output or result.exception
    return json.loads(result.stdout)


def test_a_configuration_holds_all_arguments():
    norms = [f"{task}.safetensors" for task in TASKS]
    facts = configured(
        adapters=ADAPTERS, out="m", method="tip", weights=[1, 0.5, 2], norms=norms, seed=4,
        sparsity=0.3, sign=-1, on="delta", rank=None,
    )  # fmt: skip
    assert facts["seed"] == 4 and facts["weights"] == [1.0, 0.5, 2.0]
    options = {"sparsity": 0.3, "sign": -1, "on": "delta"}
    assert facts["options"] == tm.method_options("tip") | options
    assert_same("m", expected("tip", weights=[1, 0.5, 2], **options))


def test_the_command_line_counts_over_the_configuration():
    facts = configured(
        "--method", "dare", "--seed", 9, "--drop-rate", 0.2, "--weights", "mean", *ADAPTERS[:2],
        adapters=ADAPTERS, out="m", method="dare", seed=1, drop_rate=0.9, weights=[1, 2, 3],
        rescale="l1",
    )  # fmt: skip
    assert facts["adapters"] == ADAPTERS[:2] and facts["weights"] == "mean"
    assert facts["seed"] == 9
    assert facts["options"]["drop_rate"] == 0.2 and facts["options"]["rescale"] == "l1"


def test_yaml_reads_a_bare_on_as_true():
    Path("c.yaml").write_text("method: magnitude\non: delta\nrank: 2\n")
    facts = merge("--config", "c.yaml")
    assert facts["options"]["on"] == "delta"


def test_the_helps_configuration_is_a_valid_one():
    Path("c.yaml").write_text(merging.CONFIG)
    result = CliRunner().invoke(cli.app, ["merge", "--json", "--config", "c.yaml"])
    options = {"sparsity": 0.6, "sign": -1}
    assert json.loads(result.stdout)["options"] == tm.method_options("tip") | options


# Errors ---------------------------------------------------------------------------------------

LINEAR = ["--method", "linear", "--out", "m"]
BAD = [
    (["--method", "tipp", "--out", "m", *ADAPTERS], "no merge method 'tipp'; did you mean 'tip'?"),
    (["--out", "m", *ADAPTERS], "method tip needs --norms, one file an adapter"),
    (["--method", "regmean", "--out", "m", *ADAPTERS], "method regmean needs --grams"),
    (["--norms", "none.st", *NORMS[:4], "--out", "m", *ADAPTERS], "none.st: no such file"),
    (["--norms", "c.yaml", *NORMS[:4], "--out", "m", *ADAPTERS], "c.yaml: not a readable safet"),
    ([*NORMS[:2], "--out", "m", *ADAPTERS], "norms must be one an adapter, 3, got 1"),
    (LINEAR, "give at least one adapter folder"),
    (["--method", "linear", *ADAPTERS], "--out must be a folder"),
    ([*LINEAR, "--sparsity", "0.5", *ADAPTERS], "linear has no option 'sparsity'; it has none"),
    ([*LINEAR, "--weight", "1", *ADAPTERS], "weights must be one an adapter, 3, got 1"),
    ([*LINEAR, "--weight", "nan", ADAPTERS[0]], "weights must be finite numbers"),
    ([*LINEAR, "--weights", "avg", *ADAPTERS], "sum, mean or sqrt, got 'avg'"),
    ([*LINEAR, "--weights", "mean", "--weight", "1", ADAPTERS[0]], "not both"),
    (["--method", "ties", "-o", "densty=1", *LINEAR[2:], *ADAPTERS], "did you mean 'density'?"),
    (["--method", "ties", "-o", "density", *LINEAR[2:], *ADAPTERS], "needs name=value"),
    (["--method", "ties", "--density", "x", *LINEAR[2:], *ADAPTERS], "must be a number, got 'x'"),
    (["--method", "ties", "--rank", "1.5", *LINEAR[2:], *ADAPTERS], "must be a whole number"),
    (["-o", "rescale=1", *NORMS, "--out", "m", *ADAPTERS], "must be true or false, got '1'"),
    (["--sparsity", "1", "-o", "sparsity=1", *NORMS, *LINEAR[2:], *ADAPTERS], "given twice"),
    (["--sparsity", "1.5", *NORMS, *LINEAR[2:], *ADAPTERS], "must lie in [0, 1], got 1.5"),
    (["--sign", "2", *NORMS, *LINEAR[2:], *ADAPTERS], "sign must be 1"),
    (["--method", "linear", "--out", ADAPTERS[0], *ADAPTERS], "lies in the input adapters/piqa"),
    (["--method", "linear", "--out", "adapters/rte/x/y", *ADAPTERS], "lies in the input"),
    ([*LINEAR[:2], "--into", "base", "--out", "base/x", *ADAPTERS], "lies in the input base"),
    ([*LINEAR[:2], "--into", "base", "--out", "adapters", *ADAPTERS], "is there already"),
    ([*LINEAR, "--into", "nothing", *ADAPTERS], "nothing: no such folder"),
    ([*LINEAR, "--into", "adapters/rte", *ADAPTERS], "config.json: missing"),
    (
        ["--on", "delta", "--rank", "2", "--into", "base", *NORMS, "--out", "m", *ADAPTERS],
        "with --into a delta is added whole",
    ),
    (["--config", "none.yaml"], "none.yaml: not a readable YAML file"),
    (["--config", "c.yaml", *LINEAR, *ADAPTERS], "c.yaml: merge has no argument 'adapter'; did"),
]  # fmt: skip


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(("given", "line"), BAD, ids=[line for _, line in BAD])
def test_what_the_user_can_mend_is_one_line(folder, monkeypatch, capsys, given, line, dry):
    Path("c.yaml").write_text("adapter: [adapters/piqa]\n")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["tipmini", "merge", *dry, *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1, 2]", "must hold merge's arguments"),
        ("a: b: c", "not a readable YAML file"),
        ("\x00", "not a readable YAML file"),
        ("seed: many", "seed must be a whole number, got 'many'"),
        ("seed: true", "seed must be a whole number, got True"),
        ("adapters: {a: b}", "adapters must be a list of paths"),
        ("adapters: [1]", "adapters must be a list of paths"),
        ("out: [m]", "--out must be a folder"),
        ("weights: [a, b, c]", "weights must be finite numbers"),
        ("method: [tip]", "no merge method ['tip']"),
        ("sparcity: 0.5", "no argument 'sparcity'; did you mean 'sparsity'?"),
        ("density: 0.5", "tip has no option 'density'"),
        ("sparsity: [0.5]", "sparsity of tip must be a number, got [0.5]"),
    ],
)
def test_a_wrong_configuration_is_one_line(monkeypatch, capsys, text, line):
    Path("c.yaml").write_text(text)
    key = text.partition(":")[0]
    given = ADAPTERS if key != "adapters" else []
    given = given + (["--out", "m"] if key != "out" else [])
    monkeypatch.setattr(sys, "argv", ["tipmini", "merge", "--config", "c.yaml", *NORMS, *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told and not Path("m").exists()


# Progress and memory --------------------------------------------------------------------------


def test_progress_goes_to_a_terminal_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(merging._bar(silent=False)([1, 2], what="merging", unit="module")) == [1, 2]
    shown = capsys.readouterr()
    assert "merging" in shown.err and "module" in shown.err and shown.out == ""
    assert list(merging._bar(silent=True)([1, 2], what="merging", unit="module")) == [1, 2]
    assert capsys.readouterr().err == ""
