r"""A PEFT adapter folder on disk: adapter_config.json beside adapter_model.safetensors.

What is read is checked file by file, so that every error names its file. What is written is plain
LoRA that stock `PeftModel.from_pretrained` loads: rsLoRA's scaling becomes an alpha, and modules
of another rank or alpha go into PEFT's `rank_pattern` and `alpha_pattern`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.peft_config import config_problems
from tipmini.peft_tensors import tensor_problems
from tipmini.strict import naming, one_line, parse_json
from tipmini.tensor_file import TensorFile, refuse_non_finite
from tipmini.tensor_header import read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
PICKLE = "adapter_model.bin"  # what older versions of PEFT wrote
INDEX = "adapter_model.safetensors.index.json"
MAX_CONFIG = 8 << 20  # bytes; twenty thousand modules named in full take less
CARD_MARK = "tipmini"  # a tag in the front matter of our own cards


def read_settings(folder: Path) -> object:
    """adapter_config.json as JSON; raises TipminiError when there is no such thing."""
    file = own_file(folder, CONFIG, "give the folder of a PEFT adapter")
    with naming(file), file.open("rb") as stream:
        data = stream.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise TipminiError(f"larger than {MAX_CONFIG >> 20} MB; settings take a few kB")
        try:
            return parse_json(data)
        except ValueError as error:
            raise TipminiError(f"not a readable JSON file ({one_line(error)})") from None


def weights_file(folder: Path) -> Path:
    """The file of the factors; raises TipminiError for a pickle or shards in its place."""
    found = ""
    if (folder / PICKLE).exists():
        found = f"{PICKLE} is a pickle, which could run code; "
    elif (folder / INDEX).exists():
        found = f"{INDEX} names other files, and an adapter is one; "
    return own_file(folder, WEIGHTS, f"{found}save the adapter as safetensors")


def read_folder(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The settings and the tensors of plain LoRA; raises TipminiError for anything else."""
    try:
        config = read_settings(folder)
        _refuse(folder / CONFIG, config_problems(config))
        file = weights_file(folder)
        _refuse(file, tensor_problems(read_header(file)))
        return config, TensorFile(file).read_all()
    except OSError as error:
        raise TipminiError(f"{folder}: cannot be read ({one_line(error)})") from None


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        more = len(problems) - 1
        tail = f" (and {more} more: `tipmini inspect` lists them)" if more else ""
        raise TipminiError(f"{file}: {problems[0]}{tail}")


def own_file(folder: Path, name: str, mend: str) -> Path:
    """The path of a file; refuses what is missing, no file, or a link that leaves the folder."""
    file = folder / name
    if not folder.is_dir():
        raise TipminiError(f"{folder}: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}")
    if not os.path.lexists(file):
        raise TipminiError(f"{file}: missing; {mend}")
    real = Path(os.path.realpath(file))
    if not any(real.is_relative_to(home) for home in _homes(folder)):
        raise TipminiError(f"{file}: a link that leaves the folder; copy the file it names here")
    if not file.is_file():  # a device or a pipe may never end
        raise TipminiError(f"{file}: not a file; {mend}")
    return file


def _homes(folder: Path) -> list[Path]:
    """The folder, and where the hub's cache keeps the files that its snapshots link to."""
    real = Path(os.path.realpath(folder))
    caches = [above.parent / "blobs" for above in real.parents if above.name == "snapshots"]
    return [real, *caches]


def weights_sha256(folder: Path) -> str:
    """The hash of the factors' file, as the hub shows it, for a model card."""
    with weights_file(folder).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Writing -------------------------------------------------------------------------------------


def lora_config(
    ranks: Mapping[str, int],
    scaling: Mapping[str, float],
    base_model: str | None,
    task_type: str | None,
) -> dict:
    """The settings with which PEFT gives every module its rank and its scaling.

    Modules are named in full: a short name such as q_proj would also match modules that the
    adapter leaves alone.
    """
    alphas = {module: _whole(scaling[module] * rank) for module, rank in ranks.items()}
    r, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, r),
        "alpha_pattern": _pattern(alphas, alpha),
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """The modules that differ. A name is a pattern for the ends of names: where it would match
    another module too, or is no plain name, it is anchored and escaped."""
    ends = {name[at + 1 :] for name in values for at, c in enumerate(name) if c == "."}
    plain = {name: re.fullmatch(r"[\w.]+", name) and name not in ends for name in values}
    return {
        name if plain[name] else f"^{re.escape(name)}": value
        for name, value in values.items()
        if value != default
    }


def _commonest(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def _whole(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def write_folder(
    path: Path, config: dict, tensors: Mapping[str, Tensor], card: str | None = None
) -> None:
    """Write the files, so that `path` only ever holds a whole adapter; card becomes README.md.

    They are written into a temporary folder beside `path`, which is then renamed. An adapter that
    is there already is replaced; a folder that holds anything else is refused. Raises TipminiError
    when that is so or the disk does not take it; what was there before is then unharmed.
    """
    with naming(path / WEIGHTS):
        refuse_non_finite(tensors)
    path = Path(os.path.realpath(path))  # a loop of links is then refused like any other file
    try:
        _refuse_foreign_files(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            new = Path(staging) / "new"
            new.mkdir()
            # Copies, since safetensors refuses tensors that share memory; bytes, since its own
            # save_file makes a file that only its owner may read.
            copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
            (new / WEIGHTS).write_bytes(save(copies))
            (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            if card is not None:
                (new / CARD).write_text(card, encoding="utf-8")
            _swap(new, path, Path(staging) / "old")
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise TipminiError(f"{path}: cannot be written ({one_line(error)})") from None


def _refuse_foreign_files(path: Path) -> None:
    if not path.is_dir():
        return
    ours = {CONFIG, WEIGHTS} | ({CARD} if is_our_card(path / CARD) else set())
    foreign = sorted({file.name for file in path.iterdir()} - ours)
    if foreign:
        raise TipminiError(f"{path}: also holds {', '.join(foreign)}; choose another folder")


def is_our_card(file: Path) -> bool:
    """Whether the front matter has our tag: a card that someone wrote by hand is never replaced."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        fence, *lines = stream.read(1 << 16).splitlines() or [b""]
    matter = lines[: lines.index(b"---")] if b"---" in lines else []
    return fence == b"---" and f"- {CARD_MARK}".encode() in matter


def _swap(new: Path, path: Path, old: Path) -> None:
    """Rename new to path. No call exchanges two folders, so an old one first steps aside."""
    if not path.is_dir():
        os.rename(new, path)
        return
    os.rename(path, old)
    try:
        os.rename(new, path)
    finally:  # an interrupted program puts it back as well
        if not path.exists():
            os.rename(old, path)
    shutil.rmtree(old)
