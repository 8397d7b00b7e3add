"""A group is what one file of experiments/PAPER/ declares: who measures it, and in which parts."""

import re
from collections.abc import Sequence

from tipmini.errors import TipminiError, require
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.paths import experiment_files, own_groups

MERGES, PRUNINGS = "lab", "prunings"
OWN = ("elastic", "few_shot", "tunings")  # what a file may name


def module_of(group: str) -> str:
    """The module of tipmini_lab.experiments whose `measure` measures a group."""
    if file := own_groups().get(group):
        module = re.findall(r"(?m)^module: (\w+)$", file.read_text())[0]
        require(f"{file}: module", module, OWN)  # it is imported
        return module
    return PRUNINGS if group in experiment_files(prunings=True) else MERGES


def names(profile: Profile, group: str) -> list[str]:
    """The variants or runs of a group, in its order.

    Raises TipminiError for an unknown group, and for one that is measured by a module of its own,
    where one run may follow from another.
    """
    module = module_of(group)
    if module == PRUNINGS:
        from tipmini_lab.experiments.declared import grid  # and torch with it

        return [*grid(experiment_files(prunings=True)[group]).runs(profile.name)]
    if module == MERGES:
        return catalogue().names(group, profile)
    raise TipminiError(f"group {group}: {module}.py measures it as a whole; not in parts")


def part(names: Sequence[str], told: str) -> list[str]:
    """Those of one part: "2/3" are the second, fifth, eighth, ... name.

    Raises TipminiError for anything else than K/N with K from 1 to N.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", told)
    if not found or int(found[1]) > int(found[2]):
        raise TipminiError(f"part {told!r}: not K/N with K from 1 to N, such as 2/3")
    return [*names[int(found[1]) - 1 :: int(found[2])]]
