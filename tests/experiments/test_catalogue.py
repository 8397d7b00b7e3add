"""What is declared in experiments/, and what is said of a wrong file."""

from itertools import pairwise

import pytest
import yaml
from tiny import random_adapter, random_grams, random_norms

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments import catalogue
from tipmini_lab.experiments.merging import grouped_norms, scaled_to
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import UNMERGED, Variant

KNOWN = catalogue.catalogue()
READINGS = [(p.point, r) for p in KNOWN.groups["ledger"].points for r in p.readings]
ADAPTERS = {task: random_adapter(seed) for seed, task in enumerate(TASKS)}
NORMS = {task: random_norms(adapter, 5) for task, adapter in ADAPTERS.items()}
GRAMS = {task: random_grams(adapter, 5) for task, adapter in ADAPTERS.items()}


def merged(variant: Variant) -> tm.LoraAdapter:
    """A variant of tiny adapters, as a `Lab` would merge the real ones."""
    names = variant.tasks(TASKS)
    given = {"weights": variant.shares(names), "seed": variant.seed or 0}
    if variant.weights == "learnt":
        given["weights"] = {task: dict.fromkeys(ADAPTERS[task].modules, 0.3) for task in names}
    if variant.needs:
        measured = {"norms": NORMS, "grams": GRAMS}[variant.needs]
        given[variant.needs] = {task: measured[task] for task in names}
    options = {k: 64 if v == "whole" else v for k, v in variant.options.items()}
    plain = tm.merge({t: ADAPTERS[t] for t in names}, variant.method, **given, **options)
    if variant.norm_of is None:
        return plain
    return scaled_to(plain, merged(KNOWN.variant(variant.norm_of)), variant.norm_by)


def test_every_declared_merge_can_be_made():
    names = [name for name, variant in KNOWN.variants.items() if variant.method not in UNMERGED]
    assert len(names) > 100
    for name in names:
        assert merged(KNOWN.variants[name]).modules == ADAPTERS["rte"].modules, name


def test_a_scaled_sum_has_the_size_of_what_it_stands_beside():
    scaled = [v for v in KNOWN.variants.values() if v.norm_of]
    assert {v.norm_of for v in scaled} == set(KNOWN.groups["controls"].controls.of)
    for variant in scaled:
        want = grouped_norms(merged(KNOWN.variant(variant.norm_of)), variant.norm_by)
        assert grouped_norms(merged(variant), variant.norm_by) == pytest.approx(want, rel=1e-4)


def test_every_method_and_preset_is_measured():
    methods = {v.method for v in KNOWN.groups["methods"].variants}
    assert methods == {*UNMERGED, *tm.METHODS, *tm.PRESETS}
    dare = [v for v in KNOWN.groups["methods"].variants if v.method == "dare"]
    assert len({v.seed for v in dare}) == len(dare) == 5


def test_the_ledger_has_every_point_once():
    assert [p.point for p in KNOWN.groups["ledger"].points] == list(range(1, 20))


@pytest.mark.parametrize(("point", "reading"), READINGS, ids=[r.name for _, r in READINGS])
def test_a_reading_differs_in_one_thing_from_what_it_is_compared_with(point, reading):
    one, two = KNOWN.variant(reading.name), KNOWN.variant(reading.against)
    filled = [v.settings() | {"options": _options(v), "metrics": v.metrics} for v in (one, two)]
    apart = {key for key in filled[0] if filled[0][key] != filled[1][key]}
    if point in (15, 19):  # another method altogether
        assert apart
        return
    methods = {one.base_method, two.base_method}
    assert len(apart - {"method"}) == 1 and len(methods) == 1
    if "options" in apart:
        changed = {k for k in filled[0]["options"] if filled[0]["options"][k] != _options(two)[k]}
        assert len(changed - {"rank"}) == 1


def _options(variant: Variant) -> dict:
    known = {} if variant.method in UNMERGED else tm.method_options(variant.method)
    return known | variant.options


def test_titles_tell_variants_apart():
    titles = [variant.title for variant in KNOWN.variants.values()]
    twice = {title for title in titles if titles.count(title) > 1}
    assert not twice


def test_at_full_only_what_matters():
    full, mini = load_profile("full"), load_profile("mini")
    for group in KNOWN.members:
        assert set(KNOWN.names(group, full)) <= set(KNOWN.names(group, mini))
    assert 5 < len(KNOWN.names("ledger", full)) < len(KNOWN.names("ledger", mini)) / 2
    assert KNOWN.names("methods", full) == KNOWN.names("methods", mini)


def test_a_grid_has_each_setting_with_each():
    (grid,) = KNOWN.groups["combined"].grids
    names = [name for name in KNOWN.members["combined"] if name.startswith("combined-")]
    assert len([n for n in names if n in KNOWN.variants]) == 2 ** len(grid.axes)
    found = KNOWN.variant("combined-minus-block-exact-mean-s0.7")
    assert found.options == {"sign": -1, "summation": "cat"}
    assert found.weights == "mean"
    printed = KNOWN.variant("combined-plus-block-factors-sum-s0.7")
    assert printed.settings() == KNOWN.variant(grid.of).settings()


def test_sweeps_name_their_variants():
    for group in KNOWN.groups.values():
        for sweep in group.sweeps:
            lines = [line if isinstance(line, str) else line.name for line in sweep.lines]
            names = [sweep.place(line, value) for line in lines for value in sweep.values]
            assert set(names) <= set(KNOWN.variants)


def test_fewer_adapters_are_nested_and_evaluated_on_their_own_tasks():
    chosen = [KNOWN.variant(f"tip-adapters-{n}").tasks(TASKS) for n in range(2, 8)]
    assert [len(names) for names in chosen] == list(range(2, 8)) and chosen[-1] == TASKS
    assert all(more[: len(few)] == few for few, more in pairwise(chosen))


def test_choices_are_among_declared_variants_of_one_kind():
    for name in ("linear", "cat", "dare", "tip"):
        names = KNOWN.candidates(KNOWN.choices[f"{name}-tuned"])
        assert {KNOWN.variant(n).method for n in names} == {name}
        assert len({KNOWN.variant(n).weights for n in names}) == len(names) > 5


def test_unknown_names_are_refused():
    with pytest.raises(TipminiError, match="variant 'tipp': not declared in experiments"):
        KNOWN.variant("tipp")
    with pytest.raises(TipminiError, match="group 'legder': not one of methods, sweeps"):
        KNOWN.names("legder", load_profile("mini"))


# Wrong files --------------------------------------------------------------------------------------

ONE = {"name": "one", "title": "One"}
POINT = {"point": 1, "question": "what?", "printed": "this"}
SWEEP = {"name": "s", "label": "{value}", "moves": "sparsity", "values": [0.1, 0.2]}
WRONG = {
    "unknown key": (
        {"variant": [ONE]},
        "unknown key 'variant'; the nearest valid one is 'variants'",
    ),
    "unknown field": ({"variants": [ONE | {"wieghts": 1}]}, "variants.0.wieghts: Extra inputs"),
    "unknown method": ({"variants": [ONE | {"method": "tips"}]}, "no merge method 'tips'"),
    "unknown option": (
        {"variants": [ONE | {"options": {"sing": -1}}]},
        "variants.0: Value error, method tip has no option 'sing'",
    ),
    "options of no merge": (
        {"variants": [ONE | {"method": "base", "options": {"sparsity": 1}}]},
        "base merges nothing and has no options",
    ),
    "unknown task": ({"variants": [ONE | {"adapters": ["rta"]}]}, "'rta' is not one of arc_"),
    "no adapter": ({"variants": [ONE | {"adapters": 0}]}, "adapters must be 1 or more"),
    "wrong weights": ({"variants": [ONE | {"weights": "half"}]}, "variants.0.weights"),
    "wrong name": ({"variants": [ONE | {"name": "a/b"}]}, "variants.0.name: String should match"),
    "twice": ({"variants": [ONE, ONE]}, "variant 'one' is declared twice"),
    "size of nothing": ({"variants": [ONE | {"norm_of": "two"}]}, "no variant 'two'"),
    "unknown reading": (
        {"points": [POINT | {"readings": [{"option": "that", "variant": "two"}]}]},
        "no variant 'two'",
    ),
    "compared with nothing": (
        {"points": [POINT | {"readings": [{"option": "that", "variant": ONE}]}]},
        "no variant 'tip'",
    ),
    "unknown line": ({"sweeps": [SWEEP | {"lines": ["two"]}]}, "no variant 'two'"),
    "value out of range": (
        {"sweeps": [SWEEP | {"moves": "rows", "lines": [ONE]}]},
        "inputs.rows: Input should be a valid integer",
    ),
    "unknown candidate": (
        {"variants": [ONE], "choices": [ONE | {"name": "best", "among": ["two*"]}]},
        "choice best: no variant is called 'two*'",
    ),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line(tmp_path, content, said):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"description": "a try"} | content))
    with pytest.raises(TipminiError) as error:
        catalogue.catalogue(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [1,\nb: 2"])
def test_no_mapping(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(TipminiError, match=r"mine\.yaml: ") as error:
        catalogue.catalogue(tmp_path)
    assert "\n" not in str(error.value)


def test_the_bare_word_on_is_an_option(tmp_path):
    text = "description: d\nvariants: [{name: a, title: A, options: {on: delta}}]"
    (tmp_path / "mine.yaml").write_text(text)
    assert catalogue.catalogue(tmp_path).variants["a"].options == {"on": "delta"}


@pytest.mark.parametrize("group", ["combined", "tuned"])
def test_what_is_only_chosen_from_is_not_scored_on_evaluation_rows(group):
    measured = set(KNOWN.names(group, load_profile("mini")))
    choices = KNOWN.groups[group].choices
    assert {choice.name for choice in choices} <= measured
    candidates = {name for choice in choices for name in KNOWN.candidates(choice)}
    assert candidates & measured == candidates & KNOWN.important & set(KNOWN.members[group])
