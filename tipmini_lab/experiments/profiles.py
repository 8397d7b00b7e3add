"""Profiles: at which scale the same experiments run. One documented YAML file each."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation import documents

FOLDER = paths.REPOSITORY / "profiles"


class Profile(Declared):
    """Everything a run depends on besides code, model, adapters and data themselves."""

    name: str
    description: str = Field(description="one sentence for the reader of a table")
    model: str = Field("embedded", description="'embedded', or a hub id")
    adapters: str = Field("adapters/{task}", description="folder or hub id; {task} is replaced")
    adapter_names: dict[str, str] = Field({}, description="task -> its name in `adapters`")
    data: Literal["embedded", "hub"] = "embedded"
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of the model; auto: what this machine is fast in, see `number_format`"
    )
    tasks: tuple[str, ...] = documents.TASKS
    evaluation_rows: int | None = Field(None, ge=1, description="rows a task; null: all")
    evaluation_rows_of: dict[str, int] = Field({}, description="exceptions, by task")
    calibration_rows: int = Field(128, ge=1, description="train rows a task")
    base_sparsity: float = Field(0.7, ge=0, le=1, description="S_org of TIP Eq. 5")
    drop_rate: float = Field(0.7, ge=0, lt=1, description="DARE's p; the paper gives none")
    seed: int = 0
    tokens: int = Field(2048, ge=1, description="padded tokens of one forward pass")
    answer_tokens: int = Field(
        256, ge=1, description="the most tokens of a generated answer; 256 is lm-eval's own"
    )
    results: str = Field(description="folder of the stored results, below the repository")
    variants: str | None = Field(
        None, description="folder of the declared variants' cells; null: in `results`"
    )
    selection: str | None = Field(
        None, description="folder of cells on held-out train rows; null: in `results`"
    )
    pruning: str | None = Field(
        None, description="folder of the pruned models' cells; null: in `results`"
    )
    important_only: bool = Field(
        False, description="of the declared variants only those marked `full: true`"
    )

    @field_validator("tasks", "evaluation_rows_of", "adapter_names")
    @classmethod
    def _known(cls, names: tuple[str, ...] | dict) -> tuple[str, ...] | dict:
        for name in names:
            if name not in documents.TASKS:
                raise ValueError(f"{name!r} is not one of {', '.join(documents.TASKS)}")
        return names

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
    def finals_store(self) -> Path:
        return self.selection_store / "finals"

    @property
    def scratch(self) -> Path:
        """The folder of what can be made again: merged variants and their inputs' norms."""
        return paths.BUILD / "variants" / self.name

    def rows(self, task: str) -> int | None:
        """Evaluation rows of a task; None: all there are."""
        return self.evaluation_rows_of.get(task, self.evaluation_rows)


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_profile(name: str | Path) -> Profile:
    """A profile by name (`profiles/NAME.yaml`) or by the path of a file.

    Raises
    ------
    TipminiError
        No such profile, an unknown key (the nearest valid one is named), or a wrong value.
    """
    file = Path(name) if str(name).endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise TipminiError(f"profile {str(name)!r}: not one of {', '.join(names())}")
    return read(Profile, file)
