"""`tipmini merge --config`: a YAML file that holds any of the arguments."""

import json
from pathlib import Path

import pytest
import yaml
from adapters_on_disk import TASKS
from merge_command import ADAPTERS, NORMS, assert_same, expected, merge, run

import tipmini as tm
from tipmini.cli import merge as merging

pytestmark = pytest.mark.usefixtures("on_disk")


def configured(*given, **content):
    Path("c.yaml").write_text(yaml.safe_dump(content))
    return json.loads(run("merge", "--json", "--config", "c.yaml", *given))


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
    facts = json.loads(run("merge", "--json", "--config", "c.yaml"))
    assert facts["options"] == tm.method_options("tip") | {"sparsity": 0.6, "sign": -1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1, 2]", "must hold merge's arguments"),
        ("a: b: c", "not a readable YAML file"),
        ("\x00", "not a readable YAML file"),
        ("[" * 5000, "not a readable YAML file (maximum recursion"),
        ("seed: 2020-13-41", "not a readable YAML file (month must be"),
        ("sparsity: 0.5\nsparsity: 0.6", "a name stands there twice"),
        ('out: "a\\0b"', "--out must be a folder"),
        ('adapters: ["a\\0b"]', "adapters must be a list of paths"),
        (f"weights: [1, 2, 1{'0' * 400}]", "weights must be finite numbers"),
        ("seed: many", "seed must be a whole number, got 'many'"),
        ("seed: true", "seed must be a whole number, got True"),
        ("adapters: {a: b}", "adapters must be a list of paths"),
        ("adapters: [1]", "adapters must be a list of paths"),
        ("out: [m]", "--out must be a folder"),
        ("weights: [a, b, c]", "weights must be finite numbers"),
        ("method: [tip]", "no merge method ['tip']"),
        ("method: tip\nsparcity: 0.5", "no argument 'sparcity'; did you mean 'sparsity'?"),
        ("method: tip\ndensity: 0.5", "tip has no option 'density'"),
        ("method: tip\nsparsity: [0.5]", "sparsity of tip must be a number, got [0.5]"),
    ],
)
def test_a_wrong_configuration_is_one_line(refused, text, line):
    Path("c.yaml").write_text(text)
    given = ADAPTERS if not text.startswith("adapters:") else []
    given = given + (["--out", "m"] if not text.startswith("out:") else [])
    given = given + ([] if "method:" in text else ["--method", "tip"])
    told = refused("merge", "--config", "c.yaml", *NORMS, *given)
    assert line in told and not Path("m").exists()
