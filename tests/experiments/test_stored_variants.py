"""What is kept of merges below results/ was made as it would be now."""

import pytest

from tipmini_lab.experiments import experiment, profiles
from tipmini_lab.experiments.experiment import Lab
from tipmini_lab.experiments.measuring import Bundled, stale
from tipmini_lab.results import store


@pytest.mark.parametrize("name", ["mini", "full"])
def test_variants_are_of_the_settings_they_have_now(name):
    """A choice's are those of its winner, so that one that other rows won would be told."""
    profile = profiles.load_profile(name)
    kept = store.names(profile.variant_store)
    assert kept and stale(Bundled(profile), kept) == []


def test_cells_of_methods_are_of_todays_code_and_rows():
    lab = Lab(profiles.load_profile("full"))
    now = {task: lab.inputs(None, lab.definition(task)) for task in lab.profile.tasks}
    cells = {f.stem: store.load(f) for f in (lab.profile.store / "cells").glob("*.json")}
    others = [n for n, c in cells.items() if c.inputs | {"adapter": None} != now[c.task]]
    assert cells and others == []
    assert all(map(experiment.is_current, cells.values()))
