"""Groups: who measures them, and the parts that jobs measure side by side."""

import re
import shutil

import pytest

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.experiments import groups
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.profiles import load_profile

MINI = load_profile("mini")


@pytest.mark.parametrize(
    ("group", "module"),
    [
        ("sweeps", "lab"),
        ("pruning", "prunings"),
        ("mmlu", "few_shot"),
        ("elastic", "elastic"),
        ("lora-ranks", "tunings"),
    ],
)
def test_who_measures_a_group(group, module):
    assert groups.module_of(group) == module


@pytest.mark.parametrize("group", ["sweeps", "pruning"])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_the_parts_are_the_whole_and_share_nothing(group, count):
    names = groups.names(MINI, group)
    parts = [groups.part(names, f"{part}/{count}") for part in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("told", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "1/2; ls"])
def test_no_part_is_refused(told):
    with pytest.raises(TipminiError, match=f"part {re.escape(repr(told))}: not K/N"):
        groups.part(["a", "b"], told)


@pytest.mark.parametrize(
    ("group", "error"), [("elastic", "as a whole"), ("swepes", "group 'swepes': not one of")]
)
def test_what_has_no_parts(group, error):
    with pytest.raises(TipminiError, match=error):
        groups.names(MINI, group)


def test_the_grid_of_the_page_is_methods_by_settings_by_seeds(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (paths.BOOK / "cluster.md").read_text(), re.S)
    shutil.copytree(paths.EXPERIMENTS, tmp_path / "experiments")
    (tmp_path / "experiments/own").mkdir()
    (tmp_path / "experiments/own/draws.yaml").write_text(block)
    known = catalogue(tmp_path / "experiments")
    made = [known.variant(name) for name in known.names("draws", MINI)]
    settings = {(each.method, each.options["drop_rate"], each.seed) for each in made}
    assert len(made) == len(settings) == 2 * 2 * 3
    assert known.variant("draws-dare_ties-p0.9-s2").title.endswith("(drop rate 0.9, seed 2)")
