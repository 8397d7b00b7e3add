"""Merging: weights, bases, the table of methods, what is refused; the fidelity of a merge."""

import inspect
import math
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import ADAPTERS, GRAMS, MODULES, NORMS, WEIGHTS, bits, llama, random_adapter, tokens
from ways import IN_DELTAS, METHODS, each_way, measured, merged_by

import tipmini as tm
from tipmini import source
from tipmini.errors import CHECKS, TipminiError, check_options
from tipmini.methods import criteria
from tipmini.methods.merge import Fidelity
from tipmini.methods.table import BY_BLOCK, CHOSEN, NEEDS, equal_weight
from tipmini.models import calibration
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors
from tipmini.papers import loraprune
from tipmini_lab import paths
from tipmini_lab.commands import arguments, one
from tipmini_lab.evaluation import documents
from tipmini_lab.experiments import catalogue


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
    ("tsv", {}),
    ("wudi", {}),
    ("wudi", {"ridge": 0.5}),
    ("regmean", {"balance": 1.0}),
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
    [
        *[("sum", 1.0), ("mean", 1 / 3), ("sqrt", 3**-0.5), ("0.6/T", 0.2), (None, 1.0)],
        ("chosen", equal_weight(CHOSEN[3], 3)),
    ],
)
def test_weights_by_rule(rule, weight):
    by_rule = tm.merge(ADAPTERS, "linear", weights=rule)
    assert bits(by_rule) == bits(
        tm.merge(ADAPTERS, "linear", weights=dict.fromkeys(ADAPTERS, weight))
    )


@pytest.mark.parametrize("rule", ["0.6/norm", "0.6/module-norm"])
def test_weights_over_norms_make_the_updates_as_large_as_one_another(rule):
    """Of an adapter without one module the others' parts there add up to the total."""
    few = replace(ADAPTERS["piqa"], factors=dict(list(ADAPTERS["piqa"].factors.items())[1:]))
    adapters = {"zeros": ADAPTERS["boolq"].map(lambda _, f: replace(f, b=0 * f.b))}
    adapters |= {"boolq": ADAPTERS["boolq"], "coqa": ADAPTERS["coqa"], "piqa": few}
    parts, _ = tm.merge_update(adapters, "cat", weights=rule)
    found = {p.name: replace(p.adapter, factors=dict(p.adapter.factors)) for p in parts}
    weighed = {
        (name, module): weight * own.delta(module).norm().item()
        for (name, own), weight in zip(found.items(), [p.weight for p in parts], strict=True)
        for module in own.modules
    }
    plain = {(n, m): a.delta(m).norm().item() for n, a in adapters.items() for m in a.modules}
    if rule == "0.6/norm":
        sizes = [math.hypot(*(v for (n, _), v in weighed.items() if n == name)) for name in found]
        wholes = [math.hypot(*(v for (n, _), v in plain.items() if n == name)) for name in found]
        groups = [dict(zip(found, zip(sizes, wholes, strict=True), strict=True))]
    else:
        groups = [
            {n: (v, plain[n, m]) for (n, m), v in weighed.items() if m == module}
            for module in MODULES
        ]
    for group in groups:
        sizes = [size for name, (size, _) in group.items() if name != "zeros"]
        assert sizes == pytest.approx([sizes[0]] * len(sizes), rel=1e-5)
        assert sum(s / w for s, w in group.values() if w) == pytest.approx(0.6, rel=1e-5)
    assert all(p.adapter.base_model == "tiny" for p in parts)


def test_weights_over_norms_of_nothing_are_zero():
    zeros = ADAPTERS["boolq"].map(lambda _, f: replace(f, b=0 * f.b))
    merged = tm.merge([zeros, zeros], "cat", weights="0.7/norm")
    assert not any(merged.delta(module).any() for module in MODULES)


@pytest.mark.parametrize(
    "method",
    ["linear", "cat", "dare", "magnitude", "wanda", "tip", "regmean", "tsv", "iso", "wudi"],
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


@pytest.mark.parametrize("method", [m for m in METHODS if m != "regmean"])
def test_all_signs_turned_turn_the_result(method):
    """The sign of every weight, or of every A: an update is odd in either (TIES but for sums of 0,
    and mergekit's, which divides by the weights)."""
    turned = {name: -weight for name, weight in WEIGHTS.items()}
    one, two = (merged_by(method, weights=weights) for weights in (WEIGHTS, turned))
    for module in MODULES:
        torch.testing.assert_close(one.delta(module), -two.delta(module), rtol=1e-4, atol=1e-4)


# What is asked and refused ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(("factor", "weights"), [("a", "sum"), ("b", "sum"), ("a", "1/norm")])
def test_factors_that_are_not_finite_are_refused(method, number, factor, weights):
    """No folder has such; they come from training that failed, still in memory."""
    spoilt = getattr(ADAPTERS["coqa"].factors[MODULES[-1]], factor).clone()
    spoilt[0, -1] = number
    pair = replace(ADAPTERS["coqa"].factors[MODULES[-1]], **{factor: spoilt})
    factors = ADAPTERS["coqa"].factors | {MODULES[-1]: pair}
    with pytest.raises(TipminiError, match=f"{MODULES[-1]} of adapter coqa has NaN or Inf"):
        spoilt = ADAPTERS | {"coqa": replace(ADAPTERS["coqa"], factors=factors)}
        merged_by(method, spoilt, weights=weights)


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


OTHER_BASE = LoraAdapter({MODULES[0]: LoraFactors(torch.ones(4, 8), torch.ones(8, 4), 1.0)})
ONE, RANKS = [ADAPTERS["boolq"]], [random_adapter(0), random_adapter(1, rank=2)]
BY_MODULE = dict.fromkeys(ADAPTERS, dict.fromkeys(MODULES, 1.0))


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
        (ADAPTERS, {"weights": "median"}, "such as 0.7/norm or 0.7/T, got 'median'"),
        (ADAPTERS, {"weights": "0/norm"}, "got '0/norm'"),
        (ONE, {"weights": [1.0, 2.0]}, r"each adapter \(0\), got \(0, 1\)"),
        (ONE, {"weights": ["1"]}, "weight of adapter 0 must be finite, got 1"),
        (ONE, {"norms": NORMS}, r"norms must be one for each adapter \(0\)"),
        (ONE, {"grams": GRAMS}, r"grams must be one for each adapter \(0\)"),
        (ONE, {"weights": [math.nan]}, "must be finite, got nan"),
        (ONE, {"weights": [10**400]}, "must be finite, got 1000"),
        ([*ONE, OTHER_BASE], {}, r"q_proj is \(32, 32\) in 0, \(8, 8\) in 1"),
        *[  # before anything is merged
            (RANKS, {"method": method}, r"q_proj has 4 in 0, 2 in 1; try cat")
            for method in ("linear", "ties", "magnitude")
        ],
        *[
            (ADAPTERS, {"weights": BY_MODULE | {"boolq": weights}}, message)
            for weights, message in [
                ({MODULES[0]: 1.0}, "weights of adapter boolq must be of its modules; see model"),
                (dict.fromkeys([*MODULES, "lm_head"], 1.0), "of its modules; see lm_head"),
                (dict.fromkeys(MODULES, math.nan), r"weight of \S+ of boolq must be finite, got n"),
            ]
        ],
    ],
)
def test_what_cannot_be_merged_is_refused_at_once(adapters, arguments, message):
    with pytest.raises(TipminiError, match=message) as refused:
        tm.merge_update(adapters, **{"method": "linear"} | arguments)
    assert "\n" not in str(refused.value)


SHARE = r"must lie in \[0, 1\], got "
RATE = r"drop_rate must be a number in \[0, 1\), got "


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magnitude", {"summation": "sum"}, "summation must be one of linear, cat, svd, got 'sum'"),
        ("magnitude", {"on": "B"}, "on must be one of factors, delta, got 'B'"),
        ("magnitude", {"rank": 3}, "rank is for on='delta' or summation='svd'"),
        ("magnitude", {"rank": 3, "summation": "cat"}, "rank is for on='delta' or summation='svd'"),
        ("ties", {"rank": 3}, "rank is for on='delta'"),
        ("magnitude", {"on": "delta", "summation": "cat"}, "summation='cat' is for factors"),
        ("magnitude", {"on": "delta", "rank": 0}, "rank must be a whole number from 1 on, got 0"),
        ("magnitude", {"summation": "svd", "rank": 0}, "rank must be a whole number from 1 on"),
        ("svd", {"rank": 0}, "rank must be a whole number from 1 on, got 0"),
        ("ties", {"summation": "cat"}, "merge method ties has no option 'summation'"),
        ("linear", {"rank": 3}, "merge method linear has no option 'rank'"),
        ("dare", {"drop_rate": 1.0}, RATE + "1.0"),
        ("dare", {"drop_rate": "half"}, RATE + "'half'"),
        ("dare", {"rescale": True}, "rescale must be 'expected', 'l1' or None, got True"),
        ("magnitude", {"sparsity": -0.1}, SHARE + "-0.1"),
        ("magnitude", {"sparsity": True}, SHARE + "True"),
        ("magnitude", {"group": "block"}, "group must be one of row, matrix, got 'block'"),
        ("ties", {"density": 1.2}, SHARE + "1.2"),
        ("ties", {"density": math.nan}, SHARE + "nan"),
        ("ties", {"density": None}, SHARE + "None"),
        ("ties", {"on": "A"}, "on must be one of factors, delta, got 'A'"),
        ("ties", {"variant": "soup"}, "variant must be one of peft, authors, mergekit, got 'soup'"),
        ("ties", {"variant": "mergekit"}, "variant 'mergekit' merges whole weights; it needs on="),
        ("dare_ties", {"variant": "mergekit"}, "it needs on='delta'"),
        ("dare_ties", {"drop_rate": 1.0}, RATE + "1.0"),
        ("dare_ties", {"rescale": "l2"}, "rescale must be 'expected', 'l1' or None, got 'l2'"),
        ("knots", {"density": 5}, SHARE + "5"),
        ("knots", {"variant": "authors"}, "variant must be one of peft, mergekit, got 'authors'"),
        ("knots", {"scaled": "yes"}, "scaled must be one of True, False, got 'yes'"),
        ("tsv", {"isotropic": 2}, "isotropic must be one of True, False, got 2"),
        ("wudi", {"ridge": -1}, "ridge must be a finite number from 0 on, got -1"),
        ("regmean", {"balance": math.inf}, "balance must be a finite number from 0 on, got inf"),
    ],
)
def test_options_that_there_are_not_or_that_do_nothing_are_refused(method, options, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge_update(ADAPTERS, method, **options)


# The table of methods, and the words of options: what is read from source is what is imported -----
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", [*METHODS, *BY_BLOCK])
def test_a_row_is_what_its_function_declares(name):
    method = (tm.METHODS | BY_BLOCK)[name]
    function = pkgutil.resolve_name(method.place)
    declared = inspect.signature(function).parameters
    named = {p.name: p for p in declared.values() if p.kind is p.KEYWORD_ONLY}
    assert method.options == {option: p.default for option, p in named.items()}
    types = {option: inspect.formatannotation(p.annotation) for option, p in named.items()}
    assert {option: " | ".join(kinds) for option, kinds in method.types.items()} == types
    assert method.summary == function.__doc__.splitlines()[0]
    assert method.summary.endswith((".", ").")) and list(tm.METHODS) == METHODS
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.M)
    assert method.reference in known
    assert method.options.keys() <= CHECKS.keys() and method.needs in NEEDS
    check_options(name, method.options)


@pytest.mark.parametrize(
    ("preset", "method", "options", "weights"),
    [
        ("tip-printed", "tip", {}, "sum"),
        ("tip-inverted", "tip", {"sign": -1}, "sum"),
        ("tip-dlp", "tip", {"shift_range": 0.3}, "sum"),
        ("recommended", "linear", {}, "chosen"),
    ],
)
def test_presets_are_methods_with_options(preset, method, options, weights):
    assert tm.method_options(preset) == tm.method_options(method) | options
    two = tm.merge(ADAPTERS, method, norms=NORMS, weights=weights, **options)
    assert bits(tm.merge(ADAPTERS, preset, norms=NORMS)) == bits(two)


@pytest.mark.parametrize(("count", "rule"), [(1, "sum"), (7, CHOSEN[7]), (9, CHOSEN[7])])
def test_what_is_chosen_leaves_one_alone_and_holds_for_more_adapters(count, rule):
    several = [ADAPTERS["coqa"]] * count
    assert bits(tm.merge(several, "recommended")) == bits(tm.merge(several, "linear", weights=rule))


def test_names_for_the_command_line_are_those_of_the_laboratory():
    assert arguments.task_names() == documents.TASKS
    assert paths.declared("profiles") == [
        "a40",
        "full",
        "full-seeds",
        "mini",
        "mini-seeds",
        "smoke",
    ]
    others = ["pruning", *paths.own_groups()]
    assert arguments.group_names() == sorted([*catalogue.catalogue().groups, *others])
    assert (*criteria.CHOICES, *one.SEMI) == one.ALL
    assert one.REDUCTIONS == criteria.REDUCTIONS
    assert tuple(loraprune.SCHEDULES) == one.SCHEDULES and len(one.SCHEDULES) == 4
    assert source.names("tipmini.models.calibration", "STATISTICS") == calibration.STATISTICS


def test_importing_the_package_loads_no_model_library():
    code = "import sys, tipmini; print({'transformers', 'peft', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(tm, name) is not None for name in tm.__all__)
    assert set(tm.__all__) <= set(dir(tm))
    assert tm.merge is inspect.getmodule(tm.merge).merge  # and not the module of its name
    with pytest.raises(AttributeError, match="has no attribute 'marge'"):
        _ = tm.marge


# How far a merge is from the exact sum -----------------------------------------------------------
CASES = [
    ("linear", {}),
    ("cat", {}),
    ("svd", {"rank": 2}),
    ("dare", {"on": "delta"}),
    ("tip", {}),
    ("tip", {"on": "delta", "sign": -1}),
]


def dense(merged):
    return merged.double() if isinstance(merged, torch.Tensor) else merged.delta().double()


@pytest.mark.parametrize(("method", "options"), CASES)
def test_as_dense_matrices_say(method, options):
    adapters = [random_adapter(seed) for seed in range(3)]
    given = {"weights": [1.0, 0.5, -0.7], "norms": list(NORMS.values())}
    _, update = tm.merge_update(adapters, method, **given, **options)
    _, exact = tm.merge_update(adapters, "cat", weights=given["weights"])
    fidelity = Fidelity(update, exact)
    off = norm = 0.0
    for module in fidelity:
        terms = zip(given["weights"], adapters, strict=True)
        total = sum(w * a.scaling[module] * dense_product(a, module) for w, a in terms)
        apart = dense(fidelity[module]) - total
        wanted = (apart.norm() / total.norm()).item()
        assert fidelity.modules()[module] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        off, norm = off + apart.norm() ** 2, norm + total.norm() ** 2
    assert len(fidelity) == len(MODULES)
    assert fidelity.whole() == pytest.approx((off / norm).sqrt().item(), rel=1e-4, abs=1e-6)


def dense_product(adapter, module):
    pair = adapter.factors[module]
    return pair.b.double() @ pair.a.double()


def test_an_exact_sum_of_zero_has_no_ratio():
    one = random_adapter(1, modules=MODULES[:1])
    for method in ("linear", "cat"):
        _, update = tm.merge_update([one, one], method, weights=[1.0, -1.0])
        _, exact = tm.merge_update([one, one], "cat", weights=[0.0, 0.0])
        fidelity = Fidelity(update, exact)
        fidelity[MODULES[0]]
        assert fidelity.whole() is None and fidelity.modules() == {MODULES[0]: None}


def test_one_weight_is_that_of_every_adapter():
    one = tm.merge(ADAPTERS, "linear", weights=0.15)
    each = tm.merge(ADAPTERS, "linear", weights=dict.fromkeys(ADAPTERS, 0.15))
    assert bits(one) == bits(each)


@pytest.mark.parametrize("method", ["recommended", "linear"])
def test_one_adapter_alone_stays_as_it_is(method):
    alone = ADAPTERS["piqa"]
    merged = tm.merge({"piqa": alone}, method)
    for module in alone.modules:
        torch.testing.assert_close(merged.delta(module), alone.delta(module))
