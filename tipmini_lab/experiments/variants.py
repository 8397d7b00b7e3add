"""Variants: every merge that is measured beside the paper's own, declared in experiments/*.yaml.

A variant is a method of the library with its options, and how the inputs were measured. What it
does not name is as the profile and the library have it: the equations as printed, and
this project's default where they leave something open.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

import tipmini as tm
from tipmini.errors import RULES, TipminiError, is_rule
from tipmini.methods.table import METHODS, preset
from tipmini_lab.declared_files import Declared
from tipmini_lab.evaluation import documents

UNMERGED = ("base", "single")  # the model alone, and with each task's own adapter
NAME = r"^[a-z0-9][a-z0-9._-]*$"  # also a file's name
Weights = float | dict[str, float] | str
Option = bool | int | float | str | None


class Inputs(Declared):
    """How the inputs of the adapters' modules are measured, for methods that need it."""

    statistic: Literal["wanda", "mean_l2", "rms", "gram"] = "wanda"
    source: Literal["adapter", "base"] = Field("adapter", description="whose activations")
    rows: int | None = Field(None, ge=1, description="train rows a task; null: the profile's")
    answers: bool = Field(True, description="whether the text ends with the right answer")
    seed: int = Field(0, ge=0, description="0: the first rows of the fixed order; else others")


class Variant(Declared):
    """One merge, or the model without one; see the fields' descriptions."""

    name: str = Field(pattern=NAME)
    title: str = Field(description="for the reader of a table")
    method: str = Field("tip", description="base, single, or a method or preset of the library")
    options: dict[str, Option] = Field({}, description="of the method; rank may be 'whole'")
    weights: Weights = Field(
        "sum",
        description="a rule of tm.merge, a number for each, one a task, or learnt; else a preset's",
    )
    seed: int | None = Field(None, description="of random methods; null: the profile's")
    adapters: int | tuple[str, ...] | None = Field(
        None, description="tasks, or how many of the profile's; null: all. Others aren't evaluated"
    )
    inputs: Inputs = Inputs()
    norm_of: str | None = Field(None, description="scaled to the size of this variant's merge")
    norm_by: Literal["model", "block"] = Field("model", description="as a whole, or each block")
    metrics: dict[str, str] = Field({}, description="task -> another metric than the usual one")
    full: bool = Field(False, description="whether the profile `full` measures it as well")

    @field_validator("options", mode="before")
    @classmethod
    def _named(cls, options: dict) -> dict:
        """YAML 1.1 reads the bare word on as true, also where it is a key."""
        return {"on" if key is True else key: value for key, value in dict(options).items()}

    @field_validator("adapters", "metrics")
    @classmethod
    def _known(cls, given: object) -> object:
        for task in given if isinstance(given, tuple | dict) else ():
            if task not in documents.TASKS:
                raise ValueError(f"{task!r} is not one of {', '.join(documents.TASKS)}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, given: object) -> object:
        """A preset's own weights where none are named."""
        method = given.get("method") if isinstance(given, dict) else None
        if not isinstance(method, str) or method not in tm.PRESETS:
            return given
        return {"weights": tm.PRESETS[method].weights} | given

    @field_validator("weights")
    @classmethod
    def _rule(cls, weights: Weights) -> Weights:
        if isinstance(weights, str) and weights != "learnt" and not is_rule(weights):
            raise ValueError(f"weights must be numbers, {RULES}, or learnt, got {weights!r}")
        return weights

    @model_validator(mode="after")
    def _possible(self) -> "Variant":
        if isinstance(self.adapters, int) and self.adapters < 1:
            raise ValueError("adapters must be 1 or more")
        if self.method in UNMERGED:
            if self.options or self.norm_of:
                raise ValueError(f"{self.method} merges nothing and has no options")
            return self
        known = tm.method_options(self.method)
        for option in self.options:
            if option not in known:
                raise ValueError(f"method {self.method} has no option {option!r}")
        return self

    @property
    def base_method(self) -> str:
        """The method of a preset; else the method itself."""
        return preset(self.method).method

    @property
    def needs(self) -> str | None:
        """`merge`'s argument for what was measured of the inputs: "norms", "grams" or nothing."""
        return None if self.method in UNMERGED else METHODS[self.base_method].needs

    def tasks(self, every: Sequence[str]) -> tuple[str, ...]:
        """Those whose adapters are merged, in the order of `every`; they alone are evaluated.

        Raises TipminiError for an adapter that is not among them.
        """
        if self.adapters is None:
            return tuple(every)
        if isinstance(self.adapters, int):
            return tuple(every)[: self.adapters]
        for task in self.adapters:
            if task not in every:
                raise TipminiError(f"variant {self.name}: {task} is not a task of the profile")
        return tuple(task for task in every if task in self.adapters)

    def metric(self, task: str) -> str:
        from tipmini_lab.evaluation.tasks import METRIC  # and lm-eval with it

        return self.metrics.get(task, METRIC[task])

    def shares(self, tasks: Sequence[str]) -> str | dict[str, float]:
        """The weights as `merge` takes them."""
        if isinstance(self.weights, float):
            return dict.fromkeys(tasks, self.weights)
        return self.weights

    def settings(self) -> dict:
        """All that the merge follows from, names and titles left out."""
        return self.model_dump(exclude={"name", "title", "metrics", "full"})

    def changed(self, **changes: object) -> "Variant":
        """A copy with other fields, checked like any."""
        return Variant(**self.model_dump(exclude_unset=True) | changes)
