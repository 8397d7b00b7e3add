"""The declared experiments: experiments/*.yaml, one file a group, read into variants by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from tipmini.errors import TipminiError
from tipmini.lab import paths
from tipmini.lab.declarations import Choice, Group
from tipmini.lab.profiles import Profile
from tipmini.lab.variants import Variant

FOLDER = paths.REPOSITORY / "experiments"
ORDER = (
    "methods",
    "sweeps",
    "ledger",
    "controls",
    "combined",
    "tuned",
)  # a file may name the former's


@dataclass(frozen=True)
class Catalogue:
    """All that is declared: the groups, and every variant by its name."""

    groups: Mapping[str, Group]
    members: Mapping[str, tuple[str, ...]]  # group -> names, of choices as well
    variants: Mapping[str, Variant]
    important: frozenset[str] = field(default_factory=frozenset)  # measured at `full` as well

    @property
    def choices(self) -> dict[str, Choice]:
        return {c.name: c for group in self.groups.values() for c in group.choices}

    def names(self, group: str, profile: Profile) -> list[str]:
        """The variants of a group that a profile measures; TipminiError for an unknown group.

        What is declared there to be chosen from alone is scored on held-out rows and no others.
        """
        if group not in self.members:
            raise TipminiError(f"group {group!r}: not one of {', '.join(self.members)}")
        every = self.members[group]
        if profile.important_only:
            return [name for name in every if name in self.important]
        choices = self.groups[group].choices
        apart = {name for choice in choices for name in self.candidates(choice)} - self.important
        return [name for name in every if name not in apart]

    def variant(self, name: str) -> Variant:
        """Raises TipminiError for a name that is not declared."""
        if name not in self.variants:
            raise TipminiError(f"variant {name!r}: not declared in {FOLDER.name}/*.yaml")
        return self.variants[name]

    def candidates(self, choice: Choice) -> list[str]:
        """The variants that a choice is among, in its order, each once."""
        return _called(choice, self.variants)


@cache
def catalogue(folder: Path = FOLDER) -> Catalogue:
    """Everything declared in a folder's files.

    Raises
    ------
    TipminiError
        A file that is no valid YAML, an unknown key, a wrong value, or a name that is unknown or
        stands there twice; one line that names the file.
    """
    groups = {name: _read(folder / f"{name}.yaml") for name in group_names(folder)}
    variants: dict[str, Variant] = {}
    members, important = {}, set()
    for name, group in groups.items():
        try:
            members[name] = tuple(_add(group, variants, important))
        except (KeyError, ValidationError, TipminiError) as error:
            raise TipminiError(f"{folder / name}.yaml: {_one_line(error)}") from None
    important |= {c.name for group in groups.values() for c in group.choices if c.full}
    important |= {name for name, variant in variants.items() if variant.full}
    return Catalogue(groups, members, variants, frozenset(important))


def group_names(folder: Path = FOLDER) -> list[str]:
    """The files' names, in an order in which each names but variants of those before it."""
    return sorted((file.stem for file in folder.glob("*.yaml")), key=_rank)


def _rank(group: str) -> tuple[int, str]:
    return (ORDER.index(group) if group in ORDER else len(ORDER), group)


def _read(file: Path) -> Group:
    try:
        return Group.model_validate(yaml.safe_load(file.read_text()))
    except yaml.YAMLError as error:
        raise TipminiError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise TipminiError(f"{file}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return f"no variant {error}" if isinstance(error, KeyError) else str(error)


def _add(group: Group, variants: dict[str, Variant], important: set[str]) -> list[str]:
    """The names of a group's members, their variants added; KeyError for an unknown name."""

    def new(variant: Variant) -> str:
        if variant.name in variants:
            raise TipminiError(f"variant {variant.name!r} is declared twice")
        if variant.norm_of and variant.norm_of not in variants:
            raise KeyError(variant.norm_of)
        variants[variant.name] = variant
        return variant.name

    def known(given: Variant | str) -> Variant:
        return variants[given] if isinstance(given, str) else given

    names = [new(variant) for variant in group.variants]
    for reading in (r for point in group.points for r in point.readings):
        known(reading.variant) if isinstance(reading.variant, str) else new(reading.variant)
        known(reading.against)
        names += [reading.name, reading.against]
        important |= {reading.name, reading.against} if reading.full else set()
    for sweep in group.sweeps:
        names += [new(sweep.at(known(line), v)) for line in sweep.lines for v in sweep.values]
    if group.controls:
        pruned = [variants[name] for name in group.controls.of]
        names += [p.name for p in pruned]
        names += [new(v) for p in pruned for c in group.controls.each for v in c.beside(p)]
    names += [new(v) for grid in group.grids for v in grid.places(variants[grid.of])]
    names += [choice.name for choice in group.choices if _called(choice, variants)]
    return list(dict.fromkeys(names))


def _called(choice: Choice, names: Iterable[str]) -> list[str]:
    """Those of the names that a choice is among; TipminiError where a pattern fits none."""
    found: list[str] = []
    for pattern in choice.among:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise TipminiError(f"choice {choice.name}: no variant is called {pattern!r}")
        found += fitting
    return list(dict.fromkeys(found))
