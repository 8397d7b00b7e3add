"""The claims of book/claims.yaml, their verdicts, and accuracies known by counts alone."""

import math
from collections import Counter
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tipmini_lab import paths
from tipmini_lab.declared_files import read


def standard_error(share: float, rows: int) -> float:
    """Binomial standard error of a share of right rows."""
    return math.sqrt(share * (1 - share) / rows)


def z_score(first: float, second: float, rows: int) -> float:
    """(first - second) over its pooled standard error, both shares being of as many rows.

    The test for unpaired proportions: rows that both get right or both wrong are not known. Where
    two methods agree on many rows, a paired test would find smaller differences.
    """
    pooled = (first + second) / 2
    spread = math.sqrt(2) * standard_error(pooled, rows)
    return (first - second) / spread if spread else 0.0


def two_sided(z: float) -> float:
    """The chance of a standard normal number at least as far from 0."""
    return math.erfc(abs(z) / math.sqrt(2))


def whole_count(share: float, rows: int, digits: int = 4) -> int | None:
    """The number of right rows that prints as `share` to so many digits, or None."""
    nearest = round(share * rows)
    return nearest if round(nearest / rows, digits) == round(share, digits) else None


def by_accident(rows: int, digits: int = 4) -> float:
    """The share of all numbers of so many digits in [0, 1] that are a whole count over `rows`."""
    reached = {round(count / rows, digits) for count in range(rows + 1)}
    return len(reached) / (10**digits + 1)


# book/claims.yaml ---------------------------------------------------------------------------------
class Verdict(StrEnum):
    """What a check finds, and a sentence on what that means."""

    def __new__(cls, value: str, meaning: str) -> "Verdict":
        verdict = str.__new__(cls, value)
        verdict._value_ = value
        verdict.meaning = meaning
        return verdict

    HOLDS = "holds", "The numbers looked at say what the sentence says."
    IN_POINTS = (
        "holds in points, not relative",
        "The number is a difference of two accuracies in percentage points; "
        "the relative difference is another number.",
    )
    IN_PART = "holds in part", "Some of the tasks or baselines it speaks of show it, others do not."
    SAVED_NOT_USED = (
        "holds as what is saved, not as what is used",
        "The number is the share that is saved; the share that is used is another number.",
    )
    AT_HAND = (
        "holds in the numbers at hand",
        "The paper's numbers that were at hand say it; others that it also rests on were not.",
    )
    WITHIN_ERROR = (
        "within the sampling error",
        "The printed difference has the claimed sign, and is no larger than two draws of that "
        "many rows differ by chance.",
    )
    DOES_NOT_HOLD = "does not hold", "The numbers looked at say otherwise."
    IDENTICAL = (
        "identical to a public record of the base model",
        "The printed numbers are those that others recorded of the model without any adapter. "
        "That says that the numbers are equal, not how that came about.",
    )
    SETTING = "setting, not tested", "It says how the paper measured; no number can confirm that."
    NO_NUMBER = "no printed number", "The paper prints no number from which it could be checked."
    NOT_AT_HAND = (
        "table not at hand",
        "It rests on a table or a figure that is an image in the text at hand, or names none.",
    )
    NOT_SUPPORTED = (
        "not supported at this scale",
        "The cells measured here do not show it. At the paper's scale it may be otherwise.",
    )
    CONTRARY = (
        "the contrary at this scale",
        "Most of the comparisons measured here clearly show the contrary. At the paper's scale it "
        "may be otherwise.",
    )
    SAME_SETTING = "same setting here", "The measurements of this book are set alike."
    OTHER_SETTING = "another setting here", "The measurements of this book are set otherwise."
    NOT_RUN = "not run", "What would be needed has not been measured for this book."


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(Strict):
    """A named check, what it is given, and the verdict that it must come to."""

    check: str = Field(description="a function of a module of checks; see audit.py")
    arguments: dict = {}
    tolerance: float | None = Field(None, ge=0, description="in the unit of the printed value")
    verdict: Verdict = Field(description="declared; the build fails where another is computed")


class Claim(Strict):
    """A sentence, or the part of one that carries one claim."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    paper: str
    section: str
    title: str
    quote: str = Field(min_length=2, description="as printed, in the language of the paper's text")
    english: str | None = Field(None, min_length=2, description="None: the quote is in English")
    printed: float | str | None = Field(None, description="None: cells of the paper's table")
    unit: str = ""
    in_print: Check
    here: Check


class Paper(Strict):
    title: str
    cite: str = Field(description="its key in book/references.bib")
    language: str = Field(description="of the quotes that are put into English, as HTML names it")
    sections: dict[str, str] = Field(description="short name -> how the page calls it")


class Declared(Strict):
    papers: dict[str, Paper]
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Declared":
        (most, times), *_ = Counter(claim.id for claim in self.claims).most_common(1)
        if times > 1:
            raise ValueError(f"claim {most!r} stands there twice")
        for claim in self.claims:
            known = self.papers[claim.paper].sections if claim.paper in self.papers else ()
            if claim.section not in known:
                raise ValueError(f"claim {claim.id!r}: no {claim.section!r} of {claim.paper!r}")
        return self


def declared(file: Path = paths.CLAIMS) -> Declared:
    """What the file declares; raises TipminiError, one line, for a file that is not valid."""
    return read(Declared, file)
