"""The declared prunings: every run can be made, each name once, mistakes told in one line."""

import re

import pytest
import yaml

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import documents, perplexity, tasks
from tipmini_lab.evaluation.perplexity import CORPORA
from tipmini_lab.experiments import catalogue, declared
from tipmini_lab.experiments.profiles import load_profile

GRID = declared.grid()
PLAIN = yaml.safe_load(declared.FILE.read_text())


def test_the_whole_grid_is_there():
    """Every method at both shares, tuned with three seeds and not tuned; ten to fifty percent."""
    runs = GRID.runs("mini")
    assert len(GRID.methods) == 9
    for method in GRID.methods:
        for share in (0.2, 0.5):
            assert declared.run_name(method.name, share, False, 0) in runs
            for seed in range(3):
                assert declared.run_name(method.name, share, True, seed) in runs
    for method in ("lora-guided", "vanilla", "wanda", "taylor"):
        assert declared.run_name(method, 0.5, True, 0, longer=True) in runs
    swept = {r.share for r in runs.values() if (r.method, r.tuned) == ("lora-guided", True)}
    assert swept == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}  # at 0 the control that is tuned alone
    for method in GRID.ablations:
        for seed in range(3):
            assert declared.run_name(method.name, 0.5, True, seed) in runs
    for method in GRID.variants:
        for share in (0.2, 0.5):
            for seed in range(3):
                run = runs[declared.run_name(method.name, share, True, seed)]
                assert not run.zero_shot
    assert {"base", "base-int8", "magnitude-2to4", "wanda-2to4"} <= set(runs)


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


WORDS = 13  # in a row: as many as tell a copy from a phrase


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


@pytest.fixture(scope="module")
def read() -> set[tuple[str, ...]]:
    """Phrases of all rows that any run of the real profile prunes and tunes on, uncut."""
    size = GRID.size("mini")
    recipes = [size.recipe(tuned=True, longer=longer) for longer in (False, True)]
    recipes.append(size.recipe(tuned=False))
    assert {r.tasks for r in recipes} == {("coqa",)}
    definition = tasks.load("coqa", evaluation=1, train=max(r.rows for r in recipes))
    rows = [tasks.text(definition, doc) for doc in definition.training_docs()]
    assert len(rows) == max(r.rows for r in recipes)
    return set().union(*map(_phrases, rows))


def test_no_text_that_tunes_is_in_the_windows(read, tokenizer):
    size = GRID.size("mini")
    for corpus in CORPORA:
        windows = perplexity.windows(corpus, size.windows, size.length, tokenizer)
        found = _phrases(tokenizer.decode([token for window in windows for token in window]))
        assert len(found) > 5000 and not found & read
    corpus = documents.CORPORA["wikipedia"]()  # of which another part holds one of the stories
    assert any(_phrases(text) & read for text in corpus)


def test_no_text_that_tunes_is_in_the_rows_of_tasks(read):
    for task in GRID.tasks:
        definition = tasks.load(task, load_profile("mini").evaluation_rows)
        rows = [" ".join(map(str, doc.values())) for doc in definition.eval_docs]
        assert rows and not any(_phrases(row) & read for row in rows)


def test_a_run_of_two_plans_is_scored_as_the_fullest_asks():
    name = declared.run_name("magnitude", 0.5, False, 0)
    assert GRID.runs("mini")[name].zero_shot
    assert not GRID.runs("mini")[declared.run_name("magnitude", 0.3, False, 0)].zero_shot


def test_what_is_drawn_has_three_seeds():
    runs = GRID.runs("mini").values()
    seeds = {}
    for run in runs:
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


def test_merge_variants_do_not_read_the_file():
    assert "pruning" not in catalogue.group_names()


def _set(*path_and_value):
    def change(plain):
        *path, last, value = path_and_value
        for key in path:
            plain = plain[key]
        plain[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_set("sizes", "mini", "tuned", "share", 2), "sizes.mini.tuned: .*share is the plans'"),
        (_set("sizes", "mini", "tuned", "learning_rte", 1), "learning_rte"),
        (_set("sizes", "mini", "longer", "seed", 2), "sizes.mini.longer: .*seed is the plans'"),
        (_set("sizes", "mini", "windows", 0), "sizes.mini.windows: Input should be"),
        (_set("plans", 0, "methods", ["wandq"]), "no method 'wandq'"),
        (_set("plans", 0, "shares", [1.2]), r"share must lie in \[0, 1\], got 1.2"),
        (_set("methods", 0, "options", {"method": "lora"}), "method must be one of"),
        (_set("tasks", ["hellswag"]), "tasks: 'hellswag' is not one of"),
        (_set("apart", ["boolqq"]), "tasks: 'boolqq' is not one of"),
        (_set("more", 1), "unknown key 'more'; the nearest valid one is"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, change, line):
    plain = yaml.safe_load(declared.FILE.read_text())
    change(plain)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(TipminiError, match=line) as refusal:
        declared.grid(tmp_path / "grid.yaml")
    assert str(refusal.value).startswith(str(tmp_path / "grid.yaml"))
    assert "\n" not in str(refusal.value)


def test_a_profile_without_a_size_is_refused():
    with pytest.raises(TipminiError, match="profile 'full' is not one of mini, smoke"):
        GRID.runs("full")
