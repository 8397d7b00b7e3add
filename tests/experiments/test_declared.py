"""What is declared in experiments/ and profiles/, and what is said of a wrong file."""

from itertools import pairwise

import pytest
import yaml
from pydantic import ValidationError
from tiny import llama, random_adapter, random_grams, random_norms, tokens

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.blockwise import merge_blockwise
from tipmini.methods.table import BY_BLOCK
from tipmini_lab import paths
from tipmini_lab.evaluation import tasks
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments import catalogue, declared
from tipmini_lab.experiments.catalogue import UNMERGED, Variant
from tipmini_lab.experiments.merging import grouped_norms, scaled_to
from tipmini_lab.experiments.profiles import FOLDER, Profile, load_profile

KNOWN = catalogue.catalogue()
GRID = declared.grid()
READINGS = [(p.point, r) for p in KNOWN.groups["ledger"].points for r in p.readings]
ADAPTERS = {task: random_adapter(seed) for seed, task in enumerate(TASKS)}
NORMS = {task: random_norms(adapter, 5) for task, adapter in ADAPTERS.items()}
GRAMS = {task: random_grams(adapter, 5) for task, adapter in ADAPTERS.items()}
ONE = {"name": "one", "title": "One"}


def test_merges_and_prunings_are_told_apart():
    assert set(paths.experiment_files(prunings=True)) == {"pruning"}
    assert set(paths.experiment_files(prunings=False)) == set(KNOWN.groups)


def test_a_name_stands_for_one_file_of_all_papers(tmp_path):
    for paper in ("other", "tip"):
        (tmp_path / paper).mkdir()
        (tmp_path / paper / "mine.yaml").write_text("description: d")
    with pytest.raises(TipminiError, match=r"tip/mine.yaml: .*other/mine.yaml has its name"):
        catalogue.catalogue(tmp_path)


# Merges -------------------------------------------------------------------------------------------
def merged(variant: Variant) -> tm.LoraAdapter:
    """A variant of tiny adapters, as a `Lab` would merge the real ones."""
    names = variant.tasks(TASKS)
    given = {"weights": variant.shares(names), "seed": variant.seed or 0}
    if variant.weights == "learnt":
        given["weights"] = {task: dict.fromkeys(ADAPTERS[task].modules, 0.3) for task in names}
    options = {k: 64 if v == "whole" else v for k, v in variant.options.items()}
    if variant.needs == "rows":
        rows = {task: [{"input_ids": tokens(2, 20, seed=len(task))}] for task in names}
        own = {task: ADAPTERS[task] for task in names}
        return merge_blockwise(
            llama(), own, rows, variant.method, weights=given["weights"], **options
        )
    if variant.needs:
        measured = {"norms": NORMS, "grams": GRAMS}[variant.needs]
        given[variant.needs] = {task: measured[task] for task in names}
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
    variants = KNOWN.groups["methods"].variants + KNOWN.groups["nine-tenths"].variants
    assert {v.method for v in variants} == {*UNMERGED, *tm.METHODS, *BY_BLOCK, *tm.PRESETS}
    assert {v.name for v in variants} >= {*tm.METHODS, *tm.PRESETS}
    dare = [v.seed for v in variants if v.method == "dare"]
    assert len(set(dare)) == len(dare) == 5


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
    assert len(apart - {"method"}) == 1 and one.base_method == two.base_method
    if "options" in apart:
        changed = {k for k in filled[0]["options"] if filled[0]["options"][k] != _options(two)[k]}
        assert len(changed - {"rank"}) == 1


def _options(variant: Variant) -> dict:
    known = {} if variant.method in UNMERGED else tm.method_options(variant.method)
    return known | variant.options


def test_titles_tell_variants_apart():
    titles = [variant.title for variant in KNOWN.variants.values()]
    assert len(set(titles)) == len(titles)


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
    assert found.options == {"sign": -1, "summation": "cat"} and found.weights == "mean"
    printed = KNOWN.variant("combined-plus-block-factors-sum-s0.7")
    assert printed.settings() == KNOWN.variant(grid.of).settings()


def test_sweeps_name_their_variants():
    for sweep in (sweep for group in KNOWN.groups.values() for sweep in group.sweeps):
        lines = [line if isinstance(line, str) else line.name for line in sweep.lines]
        names = [sweep.place(line, value) for line in lines for value in sweep.values]
        assert set(names) <= set(KNOWN.variants)
    chosen = [KNOWN.variant(f"tip-adapters-{n}").tasks(TASKS) for n in range(2, 8)]
    assert [len(own) for own in chosen] == list(range(2, 8)) and chosen[-1] == TASKS
    assert all(more[: len(few)] == few for few, more in pairwise(chosen))


def test_choices_are_among_declared_variants_of_one_kind():
    assert all(len(KNOWN.candidates(choice)) > 5 for choice in KNOWN.choices.values())
    for name in ("linear", "cat", "dare", "tip"):
        names = KNOWN.candidates(KNOWN.choices[f"{name}-tuned"])
        assert {KNOWN.variant(n).method for n in names} == {name}
        assert len({KNOWN.variant(n).weights for n in names}) == len(names)


@pytest.mark.parametrize("group", ["combined", "tuned", "nine-tenths"])
def test_what_is_only_chosen_from_is_not_scored_on_evaluation_rows(group):
    measured = set(KNOWN.names(group, load_profile("mini")))
    choices = KNOWN.groups[group].choices
    assert {choice.name for choice in choices} <= measured
    candidates = {name for choice in choices for name in KNOWN.candidates(choice)}
    assert candidates & measured == candidates & KNOWN.important & set(KNOWN.members[group])


def test_unknown_names_are_refused():
    with pytest.raises(TipminiError, match="variant 'tipp': not declared in experiments"):
        KNOWN.variant("tipp")
    with pytest.raises(TipminiError, match="group 'legder': not one of methods, sweeps"):
        KNOWN.names("legder", load_profile("mini"))


# One variant --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("adapters", "expected"),
    [(None, TASKS), (2, TASKS[:2]), (99, TASKS), (("rte", "boolq"), ("boolq", "rte"))],
)
def test_the_tasks_that_are_merged(adapters, expected):
    assert Variant(**ONE, adapters=adapters).tasks(TASKS) == expected


def test_an_adapter_that_the_profile_lacks_is_refused():
    with pytest.raises(TipminiError, match="variant one: piqa is not a task of the profile"):
        Variant(**ONE, adapters=("piqa",)).tasks(("rte", "boolq"))


def test_weights_as_merge_takes_them():
    shares = lambda weights: Variant(**ONE, weights=weights).shares(("rte", "piqa"))  # noqa: E731
    assert shares("mean") == "mean" and shares({"rte": 1, "piqa": 3}) == {"rte": 1, "piqa": 3}
    assert shares(2) == {"rte": 2.0, "piqa": 2.0}
    own = Variant(**ONE, method="recommended")  # a preset's, unless others are named
    assert own.weights == tm.PRESETS["recommended"].weights != "sum"
    assert Variant(**ONE, method="recommended", weights="mean").weights == "mean"
    assert Variant(**ONE, method="tip-inverted").weights == "sum"


def test_another_metric_is_another_measurement_of_the_same_merge():
    plain, other = Variant(**ONE), Variant(**ONE, metrics={"piqa": "acc"})
    assert other.settings() == plain.settings()
    assert (other.metric("piqa"), other.metric("rte")) == ("acc", METRIC["rte"])


CHANGES = [{"method": "cat"}, {"options": {"sign": -1}}, {"weights": "mean"}, {"seed": 3}]
CHANGES += [{"adapters": 2}, {"inputs": {"rows": 8}}, {"norm_of": "tip"}]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_merge_follows_from(change):
    assert Variant(**ONE).changed(**change).settings() != Variant(**ONE).settings()


def test_a_changed_variant_is_checked():
    with pytest.raises(ValueError, match="no option"):
        Variant(**ONE).changed(options={"density": 1})


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        *[("linear", None), ("tip-dlp", "norms"), ("wanda", "norms"), ("regmean", "grams")],
        ("drift", "rows"),
    ],
)
def test_what_must_be_measured_of_the_inputs(method, needs):
    assert Variant(**ONE, method=method).needs == needs


@pytest.mark.parametrize(
    ("asked", "measured"),
    [("wanda", "gram_sequences"), ("gram", "gram"), ("gram_sequences", "gram_sequences")],
)
def test_which_gram_matrices_regmean_is_given(asked, measured):
    one = Variant(**ONE, method="regmean", inputs={"statistic": asked, "answers": False})
    assert one.measured.statistic == measured and not one.measured.answers


# Prunings -----------------------------------------------------------------------------------------
def test_the_whole_grid_is_there():
    """Every method at both shares, tuned with three seeds and not tuned; ten to fifty percent."""
    runs, name = GRID.runs("mini"), declared.run_name
    methods = {m.name for m in GRID.methods}
    assert len(methods) == 9
    expected = {name(m, s, False, 0) for m in methods for s in (0.2, 0.5)}
    expected |= {name(m, s, True, d) for m in methods for s in (0.2, 0.5) for d in range(3)}
    expected |= {name(m.name, 0.5, True, d) for m in GRID.ablations for d in range(3)}
    longer = ("lora-guided", "vanilla", "wanda", "taylor")
    expected |= {name(m, 0.5, True, 0, longer=True) for m in longer}
    apart = {name(m.name, s, True, d) for m in GRID.variants for s in (0.2, 0.5) for d in range(3)}
    expected |= apart | {"base", "base-int8", "magnitude-2to4", "wanda-2to4"}
    expected |= {"magnitude-rows", "wanda-rows", "small-weights", "large-weights"}
    assert expected <= set(runs) and not any(runs[each].zero_shot for each in apart)
    swept = {r.share for r in runs.values() if (r.method, r.tuned) == ("lora-guided", True)}
    assert swept == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}  # at 0 the control that is tuned alone


@pytest.mark.parametrize("profile", GRID.sizes)
def test_a_run_has_its_own_recipe(profile):
    for name, run in GRID.runs(profile).items():
        assert run.name == name
        if run.recipe and not run.score:
            assert run.recipe.tune == run.tuned and run.recipe.share == run.share
            named = run.method, run.share, run.tuned, run.recipe.seed, run.longer
            assert name == declared.run_name(*named)
            assert run.tuned or not run.longer
            assert run.recipe.int8 == (run.method == "lora-guided-int8")


def test_a_run_of_two_plans_is_scored_as_the_fullest_asks():
    runs = GRID.runs("mini")
    assert runs[declared.run_name("magnitude", 0.5, False, 0)].zero_shot
    assert not runs[declared.run_name("magnitude", 0.3, False, 0)].zero_shot


def test_what_is_drawn_has_three_seeds():
    seeds = {}
    for run in GRID.runs("mini").values():
        if run.recipe and not run.score and not run.longer:
            seeds.setdefault((run.method, run.share, run.tuned), set()).add(run.recipe.seed)
    undrawn = {"magnitude", "wanda", "taylor", "taylor-vector", "vanilla"}
    for (method, _, tuned), own in seeds.items():
        assert own == ({0} if method in undrawn and not tuned else {0, 1, 2})


def test_longer_tuning_takes_as_many_steps_as_the_papers():
    run = GRID.runs("mini")[declared.run_name("vanilla", 0.5, True, 0, longer=True)]
    few = GRID.size("mini").recipe(tuned=True, method="vanilla")
    assert len(run.recipe.batches(run.recipe.rows)) == 320  # 2 * 20000 / 128 is 312.5
    assert run.recipe.learning_rate == few.learning_rate and run.recipe.rows > few.rows


def test_a_profile_without_a_size_is_refused():
    with pytest.raises(TipminiError, match="profile 'full' is not one of mini, smoke"):
        GRID.runs("full")


# Profiles -----------------------------------------------------------------------------------------
def test_the_shipped_profiles_say_what_they_are():
    names = paths.declared("profiles")
    assert names == ["a40", "full", "full-seeds", "mini", "mini-seeds", "smoke"]
    profiles = {name: load_profile(name) for name in names}
    assert len({profile.store for profile in profiles.values()}) == len(names)
    for name, profile in profiles.items():
        text = (FOLDER / f"{name}.yaml").read_text()
        assert profile.name == name and len(profile.description) > 20
        assert text.startswith("# ") and text.splitlines()[0].endswith(".")
        assert set(yaml.safe_load(text)) <= set(Profile.model_fields)
        assert profile.store == paths.REPOSITORY / profile.results
        if name != "smoke":  # the settings of the paper are the same everywhere
            assert (profile.calibration_rows, profile.base_sparsity, profile.seed) == (128, 0.7, 0)
            assert profile.tasks == TASKS


@pytest.mark.parametrize("name", ["mini", "full"])
def test_other_adapters_are_measured_alike_and_choose_nothing(name):
    """Nor do they write where the choices and the norms of the first ones are."""
    one, other = load_profile(name), load_profile(f"{name}-seeds")
    told = one.model_dump(), other.model_dump()
    apart = {key for key in told[0] if told[0][key] != told[1][key]} - {"name", "description"}
    assert apart - {"variants", "pruning"} == {
        *("adapters", "results", "kept"),
        *(["chooses"] if name == "mini" else []),
    }
    assert not other.chooses and other.selection_store == one.selection_store
    assert other.kept_store == load_profile("full-seeds").store != one.kept_store


ROWS = {
    "smoke": {"rte": 8, "openbookqa": 8},
    "mini": {"rte": 96, "hellaswag": 96, "coqa": 32},
    "full": {"rte": None, "coqa": None, "hellaswag": 2000},
    "a40": {"rte": None, "hellaswag": None},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_task(name):
    assert {task: load_profile(name).rows(task) for task in ROWS[name]} == ROWS[name]


def test_a_profile_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_profile("mini").seed = 1


@pytest.mark.parametrize("name", ["maxi", "", "mini.yml", "nowhere/mine.yaml"])
def test_no_such_profile(name):
    with pytest.raises(TipminiError) as error:
        load_profile(name)
    assert (
        str(error.value)
        == f"profile {name!r}: not one of a40, full, full-seeds, mini, mini-seeds, smoke"
    )


def test_no_reference_answer_is_longer_than_what_may_be_generated(embedded, tokenizer):
    task = tasks.load("coqa")
    answers = {answer for doc in task.eval_docs for answer in task.doc_to_target(doc)}
    longest = max(len(tokenizer.encode(f" {answer}\n")) for answer in answers)
    assert longest < min(load_profile(name).answer_tokens for name in ("smoke", "mini", "full"))


# Wrong files --------------------------------------------------------------------------------------
POINT = {"point": 1, "question": "what?", "ours": "this"}
SWEEP = {"name": "s", "label": "{value}", "moves": "sparsity", "values": [0.1, 0.2]}
GOOD = {"name": "mine", "description": "a try", "results": "_build/results/mine"}
GROUPS = [  # what stands in a group, and what is said of it
    ({"variant": [ONE]}, "unknown key 'variant'; the nearest valid one is 'variants'"),
    ({"variants": [ONE | {"wieghts": 1}]}, "variants.0.wieghts: Extra inputs"),
    ({"variants": [ONE | {"method": "tips"}]}, "no merge method 'tips'"),
    (
        {"variants": [ONE | {"options": {"sing": -1}}]},
        "variants.0: Value error, method tip has no option 'sing'",
    ),
    (
        {"variants": [ONE | {"method": "base", "options": {"sparsity": 1}}]},
        "base merges nothing and has no options",
    ),
    ({"variants": [ONE | {"adapters": ["rta"]}]}, "'rta' is not one of arc_"),
    ({"variants": [ONE | {"adapters": 0}]}, "adapters must be 1 or more"),
    ({"variants": [ONE | {"weights": "half"}]}, "variants.0.weights: Value error, weights must be"),
    ({"variants": [ONE | {"name": "a/b"}]}, "variants.0.name: String should match"),
    ({"variants": [ONE, ONE]}, "variant 'one' is declared twice"),
    ({"variants": [ONE | {"norm_of": "two"}]}, "no variant 'two'"),
    ({"points": [POINT | {"readings": [{"option": "o", "variant": "two"}]}]}, "no variant 'two'"),
    ({"points": [POINT | {"readings": [{"option": "o", "variant": ONE}]}]}, "no variant 'tip'"),
    ({"sweeps": [SWEEP | {"lines": ["two"]}]}, "no variant 'two'"),
    (
        {"sweeps": [SWEEP | {"moves": "rows", "lines": [ONE]}]},
        "inputs.rows: Input should be a valid integer",
    ),
    (
        {"variants": [ONE], "choices": [ONE | {"name": "best", "among": ["two*"]}]},
        "choice best: no variant is called 'two*'",
    ),
    ({"variants": [ONE | {"distill": {"rows_of": {"rta": 5}}}]}, "'rta' is not one of arc_"),
    *(
        (
            {"variants": [ONE | {"distill": {"rows_of": {"rte": n}} | more}]},
            "rows_of has one row or",
        )
        for n, more in ((0, {}), (5, {"trained": True}))
    ),
    (
        {
            "variants": [ONE | {"distill": {"unseen": True}}],
            "choices": [ONE | {"name": "best", "among": ["o*"]}],
        },
        "choice best: one learns of held-out rows",
    ),
    (
        {
            "variants": [ONE | {"distill": {"trained": True}}],
            "choices": [ONE | {"name": "best", "among": ["one"]}],
        },
        "choice best: one learns of held-out rows",
    ),
]
PROFILES = [
    *(
        ({key: 1}, f"unknown key {key!r}; the nearest valid one is {near!r}")
        for key, near in [("base_sparcity", "base_sparsity"), ("task", "tasks"), ("Seed", "seed")]
    ),
    ({"base_sparsity": 1.5}, "base_sparsity: Input should be less than or equal to 1"),
    ({"drop_rate": 1}, "drop_rate: Input should be less than 1"),
    ({"evaluation_rows": 0}, "evaluation_rows: Input should be greater than or equal to 1"),
    ({"calibration_rows": "many"}, "calibration_rows: Input should be a valid integer"),
    ({"device": "tpu"}, "device: Input should be 'cpu' or 'cuda'"),
    ({"dtype": "int8"}, "dtype: Input should be 'auto', 'bfloat16', 'float16' or 'float32'"),
    ({"tasks": ["rte", "hellswag"]}, "tasks: Value error, 'hellswag' is not one of arc_"),
    ({"evaluation_rows_of": {"hellswag": 5}}, "evaluation_rows_of: Value error, 'hellswag' is"),
    ({"adapter_names": {"boolqq": "b"}}, "adapter_names: Value error, 'boolqq' is not one of"),
    ({"name": None}, "name: Input should be a valid string"),
    ({"evaluation_rows_of": {"rte": "all"}}, "evaluation_rows_of.rte: Input should be a"),
]
PRUNINGS = [  # the path of a value in the shipped file, the value, and what is said
    ("sizes mini tuned share", 2, "sizes.mini.tuned: Value error, share is the plans'"),
    ("sizes mini tuned learning_rte", 1, "unexpected keyword argument 'learning_rte'"),
    ("sizes mini tuned tasks", ["piqqa"], "sizes.mini.tuned: Value error, 'piqqa' is not one of"),
    ("sizes mini longer seed", 2, "sizes.mini.longer: Value error, seed is the plans'"),
    ("sizes mini windows", 0, "sizes.mini.windows: Input should be"),
    ("plans 0 methods", ["wandq"], "no method 'wandq'"),
    ("plans 0 shares", [1.2], "share must lie in [0, 1], got 1.2"),
    ("methods 0 options", {"method": "lora"}, "method must be one of"),
    ("tasks", ["hellswag"], "tasks: Value error, 'hellswag' is not one of"),
    ("apart", ["boolqq"], "apart: Value error, 'boolqq' is not one of"),
    ("more", 1, "unknown key 'more'; the nearest valid one is"),
]


def pruning_file(path: str, value: object) -> dict:
    plain = found = yaml.safe_load(declared.FILE.read_text())
    *parents, last = (int(key) if key.isdigit() else key for key in path.split())
    for key in parents:
        found = found[key]
    found[last] = value
    return plain


READ = {
    "group": lambda file: catalogue.catalogue(file.parents[1]),
    "profile": load_profile,
    "pruning": declared.grid,
}
WRONG = [("group", {"description": "a try"} | content, said) for content, said in GROUPS]
WRONG += [("profile", GOOD | content, said) for content, said in PROFILES]
WRONG += [("pruning", pruning_file(path, value), said) for path, value, said in PRUNINGS]
WRONG += [("profile", {"name": "mine"}, "description: Field required")]
WRONG += [
    (kind, text, "") for kind in READ for text in ("", "- a\n", "word", "a: [1,\nb: 2", "a: b: c")
]


@pytest.mark.parametrize(("kind", "content", "said"), WRONG)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, kind, content, said):
    file = tmp_path / "paper" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(TipminiError) as error:
        READ[kind](file)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{file}: ")


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "tip" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(
        yaml.safe_dump(GOOD | {"evaluation_rows": 5, "evaluation_rows_of": {"coqa": 2}})
    )
    profile = load_profile(file)
    assert profile.rows("rte") == 5 and profile.rows("coqa") == 2
    assert profile.model == "embedded" and profile.calibration_rows == 128
    # The bare word on is an option, which YAML 1.1 reads as true.
    file.write_text("description: d\nvariants: [{name: a, title: A, options: {on: delta}}]")
    assert catalogue.catalogue(tmp_path).variants["a"].options == {"on": "delta"}
