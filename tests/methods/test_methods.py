"""The table of methods and the words of options: what is read from source is what is imported."""

import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import tipmini as tm
from tipmini import source
from tipmini.errors import CHECKS, check_options
from tipmini.methods import criteria
from tipmini.models import calibration
from tipmini.papers import loraprune
from tipmini_lab import paths
from tipmini_lab.commands import arguments, one
from tipmini_lab.evaluation import documents
from tipmini_lab.experiments import catalogue

ROOT = Path(__file__).resolve().parents[2]
each_method = pytest.mark.parametrize("name", tm.METHODS)


@each_method
def test_what_is_read_of_a_function_is_what_it_declares(name):
    method, function = tm.METHODS[name], pkgutil.resolve_name(tm.METHODS[name].place)
    declared = inspect.signature(function).parameters
    named = {p.name: p for p in declared.values() if p.kind is p.KEYWORD_ONLY}
    assert method.options == {option: p.default for option, p in named.items()}
    types = {option: inspect.formatannotation(p.annotation) for option, p in named.items()}
    assert {option: " | ".join(kinds) for option, kinds in method.types.items()} == types
    assert method.summary == function.__doc__.splitlines()[0]


@each_method
def test_a_method_names_a_reference_of_the_book(name):
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.M)
    assert tm.METHODS[name].reference in known


@each_method
def test_every_option_has_a_check_that_its_default_passes(name):
    assert tm.METHODS[name].options.keys() <= CHECKS.keys()
    check_options(name, tm.METHODS[name].options)


def test_names_for_the_command_line_are_those_of_the_laboratory():
    assert arguments.task_names() == documents.TASKS
    assert paths.declared("profiles") == ["a40", "full", "mini", "smoke"]
    assert arguments.group_names() == sorted([*catalogue.catalogue().groups, "pruning"])
    assert (*criteria.CHOICES, *one.SEMI) == one.ALL
    assert one.REDUCTIONS == criteria.REDUCTIONS
    assert tuple(loraprune.SCHEDULES) == one.SCHEDULES and len(one.SCHEDULES) == 4
    assert source.names("tipmini.models.calibration", "STATISTICS") == calibration.STATISTICS


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(tm, name) is not None for name in tm.__all__)
    assert set(tm.__all__) <= set(dir(tm))
    assert tm.merge is inspect.getmodule(tm.merge).merge  # and not the module of its name
    with pytest.raises(AttributeError, match="has no attribute 'marge'"):
        _ = tm.marge
