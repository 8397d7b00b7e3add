"""What whole runs removed: beside the vanilla criterion's, and between seeds."""

import made_up_prunings
import numpy as np
import pandas as pd
import prunable
import pytest
import torch

from tipmini.methods.groups import find_families
from tipmini.methods.pruner import save_masks
from tipmini_lab.book import pruning_masks
from tipmini_lab.experiments import declared
from tipmini_lab.results import store
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")


def gone(places: list[int], count: int = 10) -> np.ndarray:
    """Of one layer."""
    return np.isin(np.arange(count), places)[None]


FIRST, SECOND, THIRD = gone([0, 1, 2, 3]), gone([2, 3, 4, 5]), gone([3, 4, 5, 6])


def kept(*runs: tuple) -> pd.DataFrame:
    """(method, tuned, {seed: channels gone}) at one half."""
    lines = [(m, "channels", 0.5, t, s, mask) for m, t, own in runs for s, mask in own.items()]
    return pd.DataFrame(lines, columns=[*pruning_masks.SETTING, "seed", "gone"])


def test_the_kind_of_a_family_is_in_its_name():
    families = find_families(prunable.model("grouped"))
    assert all(f.name.endswith(pruning_masks.OF_KIND[f.kind]) for f in families)


def test_groups_that_both_runs_removed():
    assert pruning_masks.both_gone(FIRST, SECOND) == 0.5
    assert pruning_masks.both_gone(gone([0], 3), gone([1], 3)) == 0
    assert pruning_masks.by_chance(FIRST) == pytest.approx(0.4)
    assert pruning_masks.by_chance(np.vstack([FIRST, gone([0])])) == pytest.approx((1.6 + 0.1) / 5)
    none = gone([])
    assert np.isnan([pruning_masks.both_gone(none, FIRST), pruning_masks.by_chance(none)]).all()


@pytest.mark.parametrize(
    ("vanilla", "other", "tuned", "told"),
    [
        ({0: FIRST, 1: SECOND}, {1: SECOND, 0: FIRST}, True, "100.0%"),  # by seed
        ({0: FIRST}, {0: FIRST, 1: SECOND, 2: THIRD}, False, "58.3%"),  # of any: 4, 2, 1 of 4
        ({1: SECOND, 2: THIRD}, {0: FIRST, 1: SECOND}, True, "100.0%"),  # by place it were others
        ({1: SECOND, 2: THIRD}, {0: FIRST}, True, "37.5%"),  # no seed of both: every pair
        ({}, {0: FIRST}, True, MISSING),
    ],
)
def test_runs_are_paired_by_seed_where_they_can_be(vanilla, other, tuned, told):
    found = kept(("vanilla", tuned, vanilla), ("wanda", tuned, other))
    table = pruning_masks.beside_vanilla(found, GRID)
    column = f"channels, 50%{', fine-tuned' if tuned else ''}"
    assert table.loc["Wanda", column] == told and table.loc["LoRAPrune", column] == MISSING
    assert table.loc["expected at random", column] == ("40.0%" if vanilla else MISSING)
    assert (table.drop(columns=column) == MISSING).all(axis=None)
    assert "vanilla, Eq. 3" not in table.index


def test_seeds_of_one_run_are_set_against_one_another():
    found = kept(("random", False, {0: FIRST, 1: SECOND, 2: THIRD}), ("vanilla", False, {0: FIRST}))
    table = pruning_masks.between_seeds(found, GRID)["channels, 50%"]
    assert table["random"] == "50.0%"  # of 2 / 4, 1 / 4, 3 / 4
    assert (table["vanilla, Eq. 3"], table["Wanda"]) == (pruning_masks.ONE_SEED, MISSING)


def test_stored_masks_are_read_by_run_and_seed(tmp_path):
    run = RUNS[declared.run_name("wanda", 0.5, True, 2)]
    model = prunable.model("grouped")
    masks = {f.name: torch.arange(f.count) > 0 for f in find_families(model)}
    (tmp_path / "masks").mkdir()
    for name in (run.name, declared.run_name("wanda", 0.5, True, 1)):  # the other has no cells
        (tmp_path / "masks" / f"{name}.safetensors").write_bytes(save_masks(masks))
    store.keep(tmp_path, made_up_prunings.bundle(run, (), 3.0))
    found = pruning_masks.read(tmp_path, RUNS)
    assert found.drop(columns="gone").to_numpy().tolist() == [
        ["wanda", kind, 0.5, True, 2] for kind in ("heads", "channels")
    ]
    assert all(mask[:, 0].all() and mask.sum() == len(mask) for mask in found.gone)
