"""What whole runs removed: beside the vanilla criterion's, and between seeds."""

import made_up_prunings
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


def gone(heads: list[int], channels: list[int]) -> dict[str, torch.Tensor]:
    """Masks of one layer with three groups of heads and ten channels."""
    masks = {"layers.0.self_attn": torch.ones(3), "layers.0.mlp": torch.ones(10)}
    masks["layers.0.self_attn"][heads] = masks["layers.0.mlp"][channels] = 0
    return {name: mask.bool() for name, mask in masks.items()}


FIRST, SECOND, THIRD = gone([0], [0, 1, 2, 3]), gone([1], [2, 3, 4, 5]), gone([0], [3, 4, 5, 6])


def test_the_kind_of_a_family_is_in_its_name():
    families = find_families(prunable.model("grouped"))
    assert all(f.name.endswith(pruning_masks.OF_KIND[f.kind]) for f in families)


def test_groups_that_both_runs_removed():
    assert pruning_masks.both_gone(FIRST, SECOND, "channels") == 0.5
    assert pruning_masks.both_gone(FIRST, SECOND, "heads") == 0
    assert pruning_masks.both_gone(gone([], [1]), FIRST, "heads") is None
    assert pruning_masks.by_chance(FIRST, "channels") == pytest.approx(0.4)
    assert pruning_masks.by_chance(FIRST, "heads") == pytest.approx(1 / 3)


def test_runs_are_paired_by_seed():
    known = {("vanilla", 0.5, True): {0: FIRST, 1: SECOND}}
    known |= {("wanda", 0.5, True): {1: SECOND, 0: FIRST}}
    known |= {("vanilla", 0.5, False): {0: FIRST}}
    known |= {("random", 0.5, False): {0: FIRST, 1: SECOND, 2: THIRD}}
    table = pruning_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "100.0%"
    assert table.loc["random", "channels, 50%"] == "58.3%"  # vanilla draws nothing: 4, 2, 1 of 4
    assert table.loc["by chance", "channels, 50%"] == "40.0%"
    assert table.loc["LoRAPrune", "channels, 50%"] == MISSING
    assert "vanilla, Eq. 3" not in table.index
    table = pruning_masks.between_seeds(known, GRID)
    assert table.loc["random", "channels, 50%"] == "50.0%"  # of 2 / 4, 1 / 4, 3 / 4
    assert table.loc["vanilla, Eq. 3", "channels, 50%"] == pruning_masks.ONE_SEED
    assert table.loc["Wanda", "heads, 50%, tuned"] == "0.0%"


def test_seeds_that_one_lacks_are_left_out_of_the_pairs():
    """By place the second of one would stand beside the first of the other."""
    known = {
        ("vanilla", 0.5, True): {1: SECOND, 2: THIRD},
        ("wanda", 0.5, True): {0: FIRST, 1: SECOND},
    }
    table = pruning_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "100.0%"
    known["wanda", 0.5, True] = {0: FIRST}  # no seed of both: every pair
    table = pruning_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "37.5%"  # of 2 / 4, 1 / 4


def test_stored_masks_are_read_by_run_and_seed(tmp_path):
    run = RUNS[declared.run_name("wanda", 0.5, True, 2)]
    (tmp_path / "masks").mkdir()
    for name in (run.name, declared.run_name("wanda", 0.5, True, 1)):  # the other has no cells
        (tmp_path / "masks" / f"{name}.safetensors").write_bytes(save_masks(FIRST))
    store.keep(tmp_path, made_up_prunings.bundle(run, (), 3.0))
    ((seed, found),) = pruning_masks.read(tmp_path, RUNS)[run.method, run.share, run.tuned].items()
    assert seed == 2 and all(found[name].equal(mask) for name, mask in FIRST.items())
