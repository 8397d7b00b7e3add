import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny import ADAPTERS, GRAMS, MODULES, NORMS, WEIGHTS, bits, llama, random_adapter, tokens
from ways import IN_DELTAS, METHODS, each_way, measured, merged_by

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, LoraFactors


@each_way
def test_what_is_merged_runs_in_stock_peft(tmp_path, method, options):
    merged = merged_by(method, **options)
    merged.save(tmp_path / "merged")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "merged")
    by_hand = llama()
    with torch.no_grad():
        for module in merged.modules:
            by_hand.get_submodule(module).weight += merged.delta(module)
        ids = tokens(2, 9)
        expected = by_hand(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(llama()(ids).logits, expected, atol=1e-2)


KEPT_WHOLE = [
    ("linear", {}),
    ("cat", {}),
    ("svd", {}),
    ("dare", {"drop_rate": 0.0}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": 1.0, "variant": "authors"}),
    ("dare_ties", {"drop_rate": 0.0}),
    ("magnitude", {"sparsity": 0.0}),
    ("wanda", {"sparsity": 0.0}),
    ("tip", {"sparsity": 0, "shift_range": 0}),
    ("regmean", {}),
    ("knots", {"density": 1.0}),
]


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("where", ["factors", "delta"])
@pytest.mark.parametrize(("method", "options"), KEPT_WHOLE)
def test_one_adapter_unpruned_stays_itself(method, options, where, rank):
    space = {"on": "delta"} if where == "delta" and method in IN_DELTAS else {}
    adapter = random_adapter(0, rank=rank)
    merged = tm.merge([adapter], method, **measured(adapter), **options, **space)
    assert merged.modules == adapter.modules and merged.base_model == "tiny"
    for module in MODULES:
        torch.testing.assert_close(
            merged.delta(module), adapter.delta(module), rtol=1e-3, atol=1e-4
        )


# Weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "weight"),
    [("sum", 1.0), ("mean", 1 / 3), ("sqrt", 3**-0.5), ("0.6/T", 0.2), (None, 1.0)],
)
def test_weights_by_rule(rule, weight):
    by_rule = tm.merge(ADAPTERS, "linear", weights=rule)
    assert bits(by_rule) == bits(
        tm.merge(ADAPTERS, "linear", weights=dict.fromkeys(ADAPTERS, weight))
    )


@pytest.mark.parametrize(
    "method", ["linear", "cat", "dare", "magnitude", "wanda", "tip", "regmean"]
)
def test_an_adapter_of_weight_zero_adds_nothing(method):
    weights = {"boolq": 1.0, "coqa": 0.0, "piqa": 0.5}
    rest = [name for name in ADAPTERS if name != "coqa"]
    beside = merged_by(method, weights=weights)
    alone = tm.merge(
        {n: ADAPTERS[n] for n in rest},
        method,
        weights={n: weights[n] for n in rest},
        norms={n: NORMS[n] for n in rest},
        grams={n: GRAMS[n] for n in rest},
    )
    for module in MODULES:
        torch.testing.assert_close(beside.delta(module), alone.delta(module))


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_modules_scale_them_first(method):
    """As if each module's scaling had been another from the start, here 1, 2, ... times that."""
    weights = {n: {m: 1.0 + i for i, m in enumerate(MODULES)} for n in ADAPTERS}
    found = merged_by(method, weights=weights)

    def grown(module, pair):
        return replace(pair, scaling=pair.scaling * (1.0 + MODULES.index(module)))

    grown_adapters = {name: adapter.map(grown) for name, adapter in ADAPTERS.items()}
    expected = tm.merge(grown_adapters, method, norms=NORMS, grams=GRAMS)
    for module in MODULES:
        torch.testing.assert_close(found.delta(module), expected.delta(module), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({MODULES[0]: 1.0}, "the weights of adapter boolq must be of its modules; see model"),
        (dict.fromkeys([*MODULES, "lm_head"], 1.0), "must be of its modules; see lm_head"),
        (dict.fromkeys(MODULES, math.nan), r"the weight of \S+ of boolq must be finite, got nan"),
    ],
)
def test_weights_of_other_modules_are_refused(weights, message):
    every = dict.fromkeys(ADAPTERS, dict.fromkeys(MODULES, 1.0)) | {"boolq": weights}
    with pytest.raises(tm.TipminiError, match=message):
        tm.merge(ADAPTERS, "cat", weights=every)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "regmean"])
def test_all_signs_turned_turn_the_result(method):
    """The sign of every weight, or of every A: an update is odd in either (TIES but for sums of 0,
    and mergekit's, which divides by the weights)."""
    turned = {name: -weight for name, weight in WEIGHTS.items()}
    one, two = (merged_by(method, weights=weights) for weights in (WEIGHTS, turned))
    for module in MODULES:
        torch.testing.assert_close(one.delta(module), -two.delta(module), rtol=1e-4, atol=1e-4)


# What is asked and refused ---------------------------------------------------------------------


def test_the_task_is_kept_where_the_adapters_agree():
    one, two = ADAPTERS["boolq"], replace(ADAPTERS["coqa"], task_type=None)
    assert tm.merge([one, one], "linear").task_type == one.task_type
    assert tm.merge([one, two], "linear").task_type is None


def merged_base(adapters, **given):
    return tm.merge(adapters, "linear", **given).base_model


def base_of_the_update(adapters, **given):
    parts, _ = tm.merge_update(adapters, "linear", **given)
    (base,) = {part.adapter.base_model for part in parts}
    return base


@pytest.mark.parametrize("base_of", [merged_base, base_of_the_update])
def test_adapters_of_different_bases_are_merged_only_by_name(base_of):
    one, two = ADAPTERS["boolq"], replace(ADAPTERS["coqa"], base_model="another")
    with pytest.raises(TipminiError, match="adapters of different base models: 0 of tiny, 1 of"):
        base_of([one, two])
    assert base_of([one, two], base_model="named") == "named"
    assert base_of([one, one]) == one.base_model == "tiny"
    assert base_of([replace(two, base_model=None), one]) == "tiny"
    assert base_of([replace(two, base_model=None)]) is None


@pytest.mark.parametrize("method", METHODS)
def test_modules_that_some_lack_are_merged_from_the_others(method):
    q_only = random_adapter(5, modules=MODULES[::2])
    norms, grams = (
        {"full": kind["boolq"], "q": {m: v for m, v in kind["coqa"].items() if "q_proj" in m}}
        for kind in (NORMS, GRAMS)
    )
    given = {"norms": norms, "grams": grams}
    merged = tm.merge({"full": ADAPTERS["boolq"], "q": q_only}, method, **given)
    alone = tm.merge(
        {"full": ADAPTERS["boolq"]},
        method,
        **{what: {"full": values["full"]} for what, values in given.items()},
    )
    assert merged.modules == MODULES
    for module in MODULES[1::2]:
        torch.testing.assert_close(merged.delta(module), alone.delta(module))


def test_every_method_has_one_line_and_its_options():
    assert list(tm.METHODS) == METHODS
    lines = [method.summary for method in tm.METHODS.values()]
    assert all(line.endswith((".", ").")) for line in lines) and len(set(lines)) == len(lines)
    assert tm.method_options("linear") == {} == tm.method_options("cat")
    assert tm.method_options("dare") == {
        "drop_rate": 0.7,
        "rescale": "expected",
        "on": "factors",
        "summation": "linear",
        "rank": None,
    }
    assert (
        tm.method_options("tip")
        == tm.method_options("tip-printed")
        == {
            "sparsity": 0.7,
            "on": "factors",
            "layer": "block",
            "mean": "elements",
            "normalized": "within",
            "sign": 1,
            "shift_range": 1.0,
            "bounds": "clip",
            "group": "row",
            "rescale": False,
            "score": "wanda",
            "assignment": "layer",
            "summation": "linear",
            "rank": None,
        }
    )
    assert tm.method_options("tip-inverted")["sign"] == -1
    assert tm.method_options("tip-dlp")["shift_range"] == 0.3
    assert tm.method_options("regmean") == {"shrink": 0.9, "scale": 1.0}
    assert "summation" not in tm.method_options("ties")


OTHER_BASE = LoraAdapter({MODULES[0]: LoraFactors(torch.ones(4, 8), torch.ones(8, 4), 1.0)})


@pytest.mark.parametrize(
    ("adapters", "arguments", "message"),
    [
        (ADAPTERS, {"method": "soup"}, "no merge method 'soup'; there are linear, cat, svd, dare"),
        (ADAPTERS, {"sparsity": 0.5}, "method linear has no option 'sparsity'; it has no opt"),
        (ADAPTERS, {"method": "dare", "density": 0.5}, "no option 'density'; it has drop_rate, re"),
        ([], {}, "nothing to merge"),
        ({}, {}, "nothing to merge"),
        (["boolq"], {}, "adapter 0 is a str; merge takes what load_adapter returns"),
        (ADAPTERS["boolq"], {}, "got a single one"),
        (ADAPTERS, {"weights": {"boolq": 1.0}}, r"weights must be one .* \(boolq, coqa, piqa\)"),
        (ADAPTERS, {"weights": [1.0, 1.0, 1.0]}, r"weights must be .*, got \(0, 1, 2\)"),
        (ADAPTERS, {"weights": "median"}, "such as 0.7/T, got 'median'"),
        ([ADAPTERS["boolq"]], {"weights": [1.0, 2.0]}, r"each adapter \(0\), got \(0, 1\)"),
        ([ADAPTERS["boolq"]], {"weights": ["1"]}, "weight of adapter 0 must be finite, got 1"),
        ([ADAPTERS["boolq"]], {"norms": NORMS}, r"norms must be one for each adapter \(0\)"),
        ([ADAPTERS["boolq"]], {"grams": GRAMS}, r"grams must be one for each adapter \(0\)"),
        ([ADAPTERS["boolq"]], {"weights": [math.nan]}, "must be finite, got nan"),
        ([ADAPTERS["boolq"]], {"weights": [10**400]}, "must be finite, got 1000"),
        ([ADAPTERS["boolq"], OTHER_BASE], {}, r"q_proj is \(32, 32\) in 0, \(8, 8\) in 1"),
    ],
)
def test_what_cannot_be_merged_is_refused_at_once(adapters, arguments, message):
    with pytest.raises(TipminiError, match=message) as refused:
        tm.merge_update(adapters, **{"method": "linear"} | arguments)
    assert "\n" not in str(refused.value)


def test_importing_the_package_loads_no_model_library():
    code = "import sys, tipmini; print({'transformers', 'peft', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
