"""Profiles: at which scale the same experiments run. One documented YAML file each."""

from collections.abc import Collection
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation import documents

FOLDER = paths.REPOSITORY / "profiles"
Tasks = TypeVar("Tasks", tuple[str, ...], dict)


def known_tasks(given: Tasks, known: Collection[str] = documents.TASKS) -> Tasks:
    """The tasks as they are given; ValueError for one that is not known."""
    for name in given:
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    return given


Rows = Annotated[dict[str, int], AfterValidator(known_tasks)]  # so many of each task


class Profile(Declared):
    """Everything a run depends on besides code, model, adapters and data themselves."""

    name: str = Field(pattern=paths.NAME)  # also a folder's name
    description: str  # one sentence for the reader of a table
    model: str = "embedded"  # or a hub id
    adapters: str = "adapters/{task}"  # folder or hub id; {task} is replaced
    adapter_names: dict[str, str] = Field({})  # task -> its name in `adapters`
    data: Literal["embedded", "hub"] = "embedded"
    device: Literal["cpu", "cuda"] = "cpu"
    # Of the model; auto: what this machine is fast in, see `model.number_format`.
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tasks: tuple[str, ...] = documents.TASKS
    evaluation_rows: int | None = Field(None, ge=1)  # rows a task; null: all
    evaluation_rows_of: dict[str, int] = Field({})  # exceptions, by task
    calibration_rows: int = Field(128, ge=1)  # train rows a task
    base_sparsity: float = Field(0.7, ge=0, le=1)  # S_org of TIP Eq. 5
    drop_rate: float = Field(0.7, ge=0, lt=1)  # DARE's p; the paper gives none
    seed: int = 0
    tokens: int = Field(2048, ge=1)  # padded tokens of one forward pass
    answer_tokens: int = Field(256, ge=1)  # at most, of a generated answer; 256 is lm-eval's own
    results: str  # folder of the stored results, below the repository
    # Folders of cells elsewhere than in `results`: of declared variants, on held-out train rows,
    # of pruned models.
    variants: str | None = None
    selection: str | None = None
    pruning: str | None = None
    important_only: bool = False  # of the declared variants only those marked `full: true`
    chooses: bool = True  # on held-out rows of its adapters; else choices are read of `selection`
    # Folder whose norms, learnt weights and distilled adapters are taken over where they are of the
    # very same things.
    kept: str = "results/full"

    @field_validator("tasks", "evaluation_rows_of", "adapter_names")
    @classmethod
    def _known(cls, names: Tasks) -> Tasks:
        return known_tasks(names)

    @field_validator("adapters")
    @classmethod
    def _names_tasks(cls, pattern: str) -> str:
        for _, *field in Formatter().parse(pattern):  # of single braces it raises ValueError itself
            if field not in ([None] * 3, ["task", "", None]):
                raise ValueError("only {task} is replaced; write other braces twice")
        return pattern

    @property
    def store(self) -> Path:
        return paths.REPOSITORY / self.results

    @property
    def variant_store(self) -> Path:
        return paths.REPOSITORY / (self.variants or f"{self.results}/variants")

    @property
    def selection_store(self) -> Path:
        return paths.REPOSITORY / (self.selection or f"{self.results}/selection")

    @property
    def pruning_store(self) -> Path:
        return paths.REPOSITORY / (self.pruning or f"{self.results}/pruning")

    @property
    def kept_store(self) -> Path:
        return paths.REPOSITORY / self.kept

    @property
    def finals_store(self) -> Path:
        return self.selection_store / "finals"

    def second(self) -> "Profile":
        """The same of the second set of adapters, whose scores of what may be chosen lie apart."""
        beside = {"name": f"{self.name}-seeds", "adapters": f"{paths.OWN_SEEDS}/{{task}}"}
        return self.model_copy(
            update=beside | {"selection": str(self.selection_store / paths.OWN_SEEDS.name)}
        )

    @property
    def scratch(self) -> Path:
        """The folder of what can be made again: merged variants and their inputs' norms."""
        return paths.BUILD / "variants" / self.name

    def rows(self, task: str) -> int | None:
        """Evaluation rows of a task; None: all there are."""
        return self.evaluation_rows_of.get(task, self.evaluation_rows)


def load_profile(name: str | Path) -> Profile:
    """A profile by name (`profiles/NAME.yaml`) or by the path of a file.

    Raises
    ------
    TipminiError
        No such profile, an unknown key (the nearest valid one is named), or a wrong value.
    """
    file = Path(name) if str(name).endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(paths.declared("profiles"))
        raise TipminiError(f"profile {str(name)!r}: not one of {known}")
    return read(Profile, file)
