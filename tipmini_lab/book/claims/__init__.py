"""What papers say and whether it holds: claims declared in book/claims/, one file a paper."""

from collections import Counter
from enum import StrEnum
from pathlib import Path

from pydantic import Field, computed_field, model_validator

from tipmini.errors import TipminiError
from tipmini_lab import declared_files, paths


class Verdict(StrEnum):
    """What a check finds; book/claims.md has a sentence on what each means."""

    HOLDS = "holds"
    IN_POINTS = "holds in points, not relative"
    IN_PART = "holds in part"
    SAVED_NOT_USED = "holds as what is saved, not as what is used"
    AT_HAND = "holds in the numbers at hand"
    WITHIN_ERROR = "within the sampling error"
    DOES_NOT_HOLD = "does not hold"
    IDENTICAL = "identical to a public record of the base model"
    SETTING = "setting, not tested"
    NO_NUMBER = "no printed number"
    NOT_AT_HAND = "table not at hand"
    NOT_SUPPORTED = "not supported at this scale"
    CONTRARY = "the contrary at this scale"
    SAME_SETTING = "same setting here"
    OTHER_SETTING = "another setting here"
    NOT_RUN = "not run"
    DEPENDS = "depends on the reading"


# No check computes these: words tell why.
NOTED = {Verdict.SETTING, Verdict.NO_NUMBER, Verdict.NOT_AT_HAND}
NOTED |= {Verdict.OTHER_SETTING, Verdict.NOT_RUN}


class Check(declared_files.Declared):
    """What is asked of the numbers, and the verdict that it must come to; or words alone."""

    check: str | None = Field(None, description="a function of checks.py or of checks_*.py")
    arguments: dict = Field({})
    number: str = Field("value", description="which of the check's numbers is judged")
    equals: float | str | tuple[str, ...] | None = Field(
        None, description="None: the printed number, in print"
    )
    above: float | None = None
    below: float | None = None
    tolerance: float | None = Field(None, ge=0, description="in the unit of the printed value")
    agreed: Verdict | None = Field(None, description="where the number is as asked")
    otherwise: Verdict | None = None
    shown: str = Field("{shown}", description="the value; {name} is one of the check's numbers")
    words: str = Field("{words}", description="the sentence on it, likewise")
    counted: bool = Field(False, description="from shapes: nothing is measured")
    verdict: Verdict = Field(description="declared; the build fails where another is computed")
    between: tuple[Verdict, ...] = Field((), description="if it depends: ours, then the others")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Check":
        noted = "words" in self.model_fields_set and self.verdict in NOTED
        if not (self.check or noted):
            raise ValueError(f"give a check; or words alone for: {'; '.join(sorted(NOTED))}")
        if (len(self.between) > 1) != (self.verdict is Verdict.DEPENDS):
            raise ValueError(f"give two verdicts or more in between, for {Verdict.DEPENDS} alone")
        return self


class Claim(declared_files.Declared):
    """A sentence, or the part of one that carries one claim."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$", description="begins with the paper's name")
    section: str
    title: str
    quote: str = Field(min_length=2, description="word for word, in the language of the text")
    english: str | None = Field(None, min_length=2, description="None: the quote is in English")
    printed: float | str | None = Field(None, description="None: cells of the paper's table")
    unit: str = ""
    in_print: Check
    here: Check

    @computed_field
    @property
    def paper(self) -> str:
        return self.id.partition("-")[0]


class Paper(declared_files.Declared):
    """A paper's head and its claims, in the order of the page."""

    title: str
    name: str = Field(description="as headings have it")
    cite: str = Field(description="its key in book/references.bib")
    place: int = Field(description="on the page, among the papers")
    language: str = Field(description="of the quotes that are put into English, as HTML names it")
    forms: dict[str, dict[str, str]] = Field(
        {}, description="reading -> contender by name: the name it has there, in what is measured"
    )
    sections: dict[str, str] = Field(description="short name -> as headings have it")
    about: str = Field(description="Markdown; {{ name }} is one of its tables")
    recomputed: str = Field("", description="likewise, above the claims")
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Paper":
        (most, times), *_ = Counter(claim.id for claim in self.claims).most_common(1)
        if times > 1:
            raise ValueError(f"claim {most!r} stands there twice")
        if unknown := [c for c in self.claims if c.section not in self.sections]:
            raise ValueError(f"claim {unknown[0].id!r}: no section {unknown[0].section!r}")
        return self


def declared(folder: Path = paths.CLAIMS) -> dict[str, Paper]:
    """{name: paper} of every file of the folder, in the order of the page.

    Raises TipminiError, one line, for a file that is not valid.
    """
    found = {file.stem: declared_files.read(Paper, file) for file in sorted(folder.glob("*.yaml"))}
    for name, paper in found.items():
        if other := next((claim.id for claim in paper.claims if claim.paper != name), None):
            raise TipminiError(f"{folder / name}.yaml: claim {other!r} does not begin with {name}-")
    return dict(sorted(found.items(), key=lambda item: item[1].place))
