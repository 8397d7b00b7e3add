"""A PEFT adapter folder: read without its numbers, inspected, and written whole or not at all.

All that `load_adapter` refuses is refused here; torch is not needed until something is written.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tipmini.errors import TipminiError
from tipmini.models import hub
from tipmini.models.base_folder import BaseFolder
from tipmini.models.files import (
    FLOATING,
    Entry,
    TensorFile,
    largest,
    naming,
    one_line,
    parse_json,
    read_header,
    refuse_non_finite,
    replacing,
    shown,
)
from tipmini.models.identity import natural_order, plain_name
from tipmini.models.peft_settings import FLOAT32_MAX, Settings, config_problems, unknown_settings

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # what older versions of PEFT wrote
INDEX = "adapter_model.safetensors.index.json"
MAX_CONFIG = 8 << 20  # bytes; twenty thousand modules named in full take less

PREFIX = "base_model.model."  # PEFT's wrapping, before the module's own name
# Compiled models wrap once more, and what PyTorch saves itself holds the adapter's name.
WRAPPED = rf"(?:_orig_mod\.)?{re.escape(PREFIX)}"
FACTOR_NAME = re.compile(rf"{WRAPPED}(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
MAX_NAME = 500
COPIES = ("embed_tokens", "lm_head", "wte")  # layers that PEFT saves whole beside their factors

# What PEFT's other tensors are, by a part of their names.
OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitude",
    "lora_embedding_": "the adapter of an embedding",
    "lora_diag": "KaSA's singular values",
    ".bias": "a bias",
    "modules_to_save": "a whole trained module",
    "trainable_tokens": "trained token embeddings",
    "lora_a": "it is MLX's, transposed under another name; convert it to PEFT's",
    "lora_b": "it is MLX's, transposed under another name; convert it to PEFT's",
    "lora_down.": "it is of kohya's scripts; convert it to PEFT's names first (kohya has a script)",
    "lora_up.": "it is of kohya's scripts; convert it to PEFT's names first (kohya has a script)",
}
# Who writes no prefix of PEFT's: the first part of a name -> what it is.
FOREIGN = dict.fromkeys(
    ("transformer", "unet", "text_encoder", "text_encoder_2"),
    "a name of diffusers; load it there and save it with PEFT's save_pretrained",
)
# Trained weights that other tools keep in files of their own.
BESIDE = dict.fromkeys(("non_lora_trainables.bin", "mm_projector.bin"), "LLaVA's projector")
BESIDE |= dict.fromkeys(("value_head.bin", "value_head.safetensors"), "a value head")

Header = Mapping[str, Entry]


# Read ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FactorsHeader:
    """The stored A (r, k) and B (d, r) of one module, and its scaling."""

    a: Entry
    b: Entry
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k), the shape of the delta."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class AdapterHeader:
    """What is known of an adapter before its numbers are read; file holds these."""

    factors: Mapping[str, FactorsHeader]
    names: Mapping[str, tuple[str, str]]  # module -> the names of its A and B in the file
    file: TensorFile
    settings: Settings
    heads: tuple[str, ...] = ()  # tensors of whole trained modules
    copies: tuple[str, ...] = ()  # whole layers of the base that PEFT saved beside the factors

    @property
    def base_model(self) -> str | None:
        return self.settings.base_model_name_or_path

    @property
    def revision(self) -> str | None:
        return self.settings.revision

    def in_base(self, base: BaseFolder | None) -> dict[str, str]:
        """{copy of a whole layer: the base's tensor that it should be}; see `load_adapter`."""
        found = {}
        for name in self.copies:
            told = f"{self.file.path}: {name} is a copy of a whole layer"
            if base is None:
                raise TipminiError(
                    f"{told}, which may have been trained; give the base's folder (--base-model) "
                    "to compare, or save the adapter with save_embedding_layers=False"
                )
            module = name.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
            own = base.weight_name(module) or base.tied_weight()
            if own is None or base.entry(own).shape != self.file.entries[name].shape:
                raise TipminiError(f"{told} that {base.folder} lacks in this shape")
            found[name] = own
        return found


def adapter_folder(path: str | PathLike, *, pickle: bool = False) -> Path:
    """An adapter's folder: the path itself, or of an id what the hub has of it (`hub.folder_of`).

    Fetched are settings and safetensors, with pickle=True also adapter_model.bin, and what tells
    that it is no adapter. Raises TipminiError for an id of anything else.
    """
    wanted = [CONFIG, WEIGHTS, INDEX, f"*/{CONFIG}", "config.json", *([PICKLE] if pickle else [])]
    folder = hub.folder_of(path, wanted)
    if folder != Path(path) and not (folder / CONFIG).is_file():
        raise TipminiError(f"{path}: no {CONFIG} in it on the hub; {_instead(folder)}")
    if folder != Path(path) and not any((folder / n).exists() for n in (WEIGHTS, INDEX, PICKLE)):
        told = f"an {PICKLE} is fetched with --pickle alone, and numbers alone are read of it"
        raise TipminiError(f"{path}: no {WEIGHTS} in it on the hub; {told}")
    return folder


def read_adapter_header(
    folder: Path, *, heads: bool = False, weights: Path | None = None
) -> AdapterHeader:
    """Raises TipminiError of one line that names the file; see `load_adapter`.

    weights: the file of the factors, where it is another than the folder's own.
    """
    *_, adapter, problems = _examine(folder, None, heads=heads, weights=weights)
    refuse(problems)
    return adapter


def refuse(problems: list[str]) -> None:
    """Raise TipminiError of the first problem, if there is any."""
    if problems:
        more = len(problems) - 1
        tail = f" (and {more} more: `tipmini inspect` lists them)" if more else ""
        raise TipminiError(f"{problems[0]}{tail}")


def _examine(
    folder: Path, numbers: dict | None, heads: bool = False, weights: Path | None = None
) -> tuple[dict, Header, AdapterHeader | None, list[str]]:
    """The settings, the tensors, the adapter where nothing is wrong, and else what is, by file.

    numbers: filled with the largest magnitude of each tensor; None leaves all numbers unread.
    """
    config, header, adapter, problems = {}, {}, None, []

    @contextmanager
    def collecting() -> Iterator[None]:
        try:
            yield
        except TipminiError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{folder}: cannot be read ({one_line(error)})")

    with collecting():
        found = read_settings(folder)
        config = found if isinstance(found, dict) else {}
        problems += [f"{folder / CONFIG}: {problem}" for problem in config_problems(found, heads)]
    with collecting():
        weights = weights or weights_file(folder)
        header = read_header(weights)
        whole = config.get("modules_to_save") if heads else None
        problems += [f"{folder / WEIGHTS}: {problem}" for problem in tensor_problems(header, whole)]
    if not problems:
        with collecting():
            adapter = _adapter(folder, weights, Settings.model_validate(config))
            if numbers is not None:
                numbers |= {name: adapter.file.largest(name) for name in adapter.file}
                refuse_numbers(folder, adapter, numbers)
    return config, header, None if problems else adapter, list(dict.fromkeys(problems))


def _adapter(folder: Path, weights: Path, settings: Settings) -> AdapterHeader:
    file, factors = TensorFile(weights), {}
    names = factors_of(file)
    with naming(folder / CONFIG):
        for module, (a, b) in names.items():
            if not settings.targets(module):
                why = "has tensors but is no target, so PEFT would leave it out"
                raise TipminiError(f"{module} {why}")
            a, b = file.entries[a], file.entries[b]
            factors[module] = FactorsHeader(a, b, settings.scaling(module, a.shape[0]))
    rest = [name for name in file if not _parsed(name)]
    heads = tuple(name for name in rest if is_head(name, settings.modules_to_save))
    copies = tuple(name for name in rest if name not in heads)
    return AdapterHeader(factors, names, file, settings, heads, copies)


def refuse_numbers(folder: Path, adapter: AdapterHeader, largest: Mapping[str, float]) -> None:
    """Raise TipminiError for NaN and Inf, and for finite numbers so large, as damage leaves them,
    that an update overflows; by the largest magnitude of each tensor."""
    with naming(folder / WEIGHTS):
        for name, number in largest.items():
            refuse_non_finite(name, number)
        for module, pair in adapter.factors.items():
            a, b = (largest[name] for name in adapter.names[module])
            if max(1.0, abs(pair.scaling)) * pair.rank * a * b > FLOAT32_MAX:  # B A as well
                raise TipminiError(
                    f"{module}: its update overflows float32: numbers up to {a:.0e} in lora_A and "
                    f"{b:.0e} in lora_B, scaling {pair.scaling:.3g}"
                )


def tensor_problems(header: Header, whole: object = None) -> list[str]:
    """Why the tensors are not the factors of linear modules, one line each; [] when they are.

    whole: names of trained modules whose tensors may stand there as well.
    """
    if not header:
        return ["holds no tensor; an adapter has lora_A and lora_B"]
    problems = []
    for name in header:
        if not (_parsed(name) or _copied(name) or is_head(name, whole)):
            problems.append(f"{one_line(name)} is no LoRA factor of a linear module{_what(name)}")
    if len(named := sorted({found[2] or "" for found in map(_parsed, header) if found})) > 1:
        told = " and ".join(map(shown, named))
        problems.append(f"holds several adapters, {told}; save each in a folder of its own")
    else:
        problems += _twice(header)
    for module, names in factors_of(header).items():
        problems += _module_problems(header, module, names)
    heads = [name for name in header if is_head(name, whole)]
    problems += [
        f"{name} is empty, as a sharded training leaves it"
        for name in heads
        if 0 in header[name].shape
    ]
    if whole and not heads:
        problems.append(f"lacks {', '.join(map(str, whole))}, which its settings say it has whole")
    return problems


def _twice(names: Iterable[str]) -> list[str]:
    """Which factors have two names, of which one would be lost."""
    problems, known = [], {}
    for name in names:
        if (found := _parsed(name)) and (first := known.setdefault(found[:2], name)) != name:
            problems.append(f"{first} and {name} are one factor; leave one of them out")
    return problems


def _what(name: str) -> str:
    """What a tensor is that is no factor, where that is known."""
    told = next((what for part, what in OTHERS.items() if part in name), None)
    if told is None and ".lora_" in name and not re.match(WRAPPED, name):
        told = f"it lacks PEFT's prefix {PREFIX}"
        told = FOREIGN.get(name.partition(".")[0], f"{told}; put it before each tensor's name")
    return f"; it is {told}".replace("it is it", "it") if told else ""


def _module_problems(header: Header, module: str, names: tuple[str, str]) -> list[str]:
    if missing := [name for name in names if name not in header]:
        return [f"{name} is missing" for name in missing]
    a, b = (header[name] for name in names)
    if ".base_layer." in f".{module}.":
        return [f"{module}: PEFT's adapter of an attention in one piece can't be merged"]
    if 0 in a.shape or 0 in b.shape:
        why = "no side may be 0, as a sharded training leaves it, and no rank is 0"
        return [f"{module}: {why}, got {a.shape} and {b.shape}"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return [f"{module}: lora_A must be (r, k) and lora_B (d, r), got {a.shape} and {b.shape}"]
    if not {a.dtype, b.dtype} <= FLOATING.keys():
        kinds = ", ".join(FLOATING)
        return [f"{module}: factors must be one of {kinds}, got {shown(a.dtype)}, {shown(b.dtype)}"]
    return []


def _parsed(name: str) -> tuple[str, str, str | None] | None:
    """(module, "A" or "B", an adapter's name or None) of a factor's name."""
    found = FACTOR_NAME.fullmatch(name) if len(name) <= MAX_NAME and name.isprintable() else None
    return found and (plain_name(found[1]), found[2], found[3])


def factors_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{module: the names of its A and B}, in the order of the names, whether both are there."""
    modules = {}
    for name in names:
        if found := _parsed(name):
            a = re.sub(r"\.lora_[AB](?=\.(?:[^.]+\.)?weight$)", ".lora_A", name)
            modules[found[0]] = a, re.sub(r"\.lora_A(?=\.(?:[^.]+\.)?weight$)", ".lora_B", a)
    return modules


def _copied(name: str) -> bool:
    """Whether it is a whole layer that PEFT saves beside the factors of another."""
    plain = name.replace(".base_layer.weight", ".weight")
    return name.startswith(PREFIX) and plain.endswith(tuple(f".{one}.weight" for one in COPIES))


def is_head(name: str, whole: object) -> bool:
    """Whether a tensor is of a module that was trained whole: one whose name ends so, as PEFT has
    it (classifier is pre_classifier as well)."""
    parts = name.removeprefix(PREFIX).split(".")[:-1]
    modules = [".".join(parts[: end + 1]) for end in range(len(parts))]
    known = name.startswith(PREFIX) and not {"default", "modules_to_save"} & set(parts)
    return known and any(module.endswith(each) for module in modules for each in whole or ())


def factor_names(module: str) -> tuple[str, str]:
    """The names of A and B as PEFT writes them."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def read_settings(folder: Path) -> object:
    """adapter_config.json as JSON; raises TipminiError when there is no such thing."""
    file = _own_file(folder, CONFIG, _instead(folder))
    with naming(file), file.open("rb") as stream:
        data = stream.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise TipminiError(f"larger than {MAX_CONFIG >> 20} MB; settings take a few kB")
        try:
            return parse_json(data)
        except ValueError as error:
            raise TipminiError(f"not a readable JSON file ({one_line(error)})") from None


def _instead(folder: Path) -> str:
    """What there is in a folder without settings, and what to give."""
    if inner := natural_order(file.parent.name for file in folder.glob(f"*/{CONFIG}")):
        return f"{inner[-1]} in it is one; give that folder"
    if (folder / "config.json").is_file():
        return "it holds a whole model; give the folder of a PEFT adapter"
    return "give the folder of a PEFT adapter"


def weights_file(folder: Path) -> Path:
    """The file of the factors; raises TipminiError for a pickle or shards in its place."""
    found = ""
    if (folder / PICKLE).exists():
        safe = "`tipmini merge --pickle` reads numbers alone"
        found = f"{PICKLE} is a pickle, which could run code; {safe}; "
    elif (folder / INDEX).exists():
        found = f"{INDEX} names other files, and an adapter is one; "
    return _own_file(folder, WEIGHTS, f"{found}save the adapter as safetensors")


def _own_file(folder: Path, name: str, mend: str) -> Path:
    """The path of a file, links followed; refuses what is missing or no file."""
    file = folder / name
    if not folder.is_dir():
        raise TipminiError(f"{folder}: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}")
    if not file.exists():
        raise TipminiError(f"{file}: missing; {mend}")
    if not file.is_file():  # a device or a pipe may never end
        raise TipminiError(f"{file}: not a file; {mend}")
    return file


# Inspected ----------------------------------------------------------------------------------------
QUANTISED = re.compile(r"4.?bit|8.?bit|bnb|gptq|awq|gguf|int[48]|fp8|hqq|aqlm|nf4", re.IGNORECASE)


def inspect_folder(path: str | PathLike) -> dict[str, object]:
    """The facts of a PEFT folder, or of an id of the hub; never raises for an adapter that
    `load_adapter` refuses.

    All numbers are read, for NaN and overflow, but without torch.

    base, task: as the settings name them; modules: how many; targets: the last parts of their
    names; ranks, scaling, dtypes: the distinct ones; parameters: of the factors; problems:
    why it can't be merged, one line each, [] when it can; notes: what is read as meant, but worth
    knowing; hub: the id and commit, where it is of the hub's cache. A refused folder has what could
    be read of it and no scaling.
    """
    config, header, adapter, problems = {}, {}, None, []
    folder, numbers = Path(path), {}
    try:
        folder = adapter_folder(path)
        config, header, adapter, problems = _examine(folder, numbers)
    except TipminiError as error:
        problems = [str(error)]
    modules = factors_of(header)
    firsts = [header[a].shape for a, _ in modules.values() if a in header]
    known = adapter.names if adapter else {}
    scalings = {pair.scaling for pair in adapter.factors.values()} if adapter else set()
    base, task = (config.get(name) for name in ("base_model_name_or_path", "task_type"))
    unknown = ", ".join(map(shown, unknown_settings(config)))
    notes = {
        "names no base model; whether adapters fit together can't be checked": base is None,
        "the base is quantised: the adapter was trained against its rounded weights, and adds "
        "its update to others here": isinstance(base, str) and QUANTISED.search(base),
        "rsLoRA: alpha / sqrt(r), written as a plain alpha": config.get("use_rslora") is True,
        "fan_in_fan_out: the base stores its weights transposed; deltas are (outputs, inputs)": (
            config.get("fan_in_fan_out") is True
        ),
        "target_modules is a regular expression, not checked against the tensors": (
            isinstance(config.get("target_modules"), str)
        ),
        "scaling 0: the adapter changes nothing": 0.0 in scalings,
        f"settings that PEFT 0.21 does not know, ignored: {unknown}": unknown,
    }
    return {
        "modules": len(modules),
        "targets": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "ranks": sorted({shape[0] for shape in firsts if shape}),
        "scaling": sorted(scalings),
        "dtypes": sorted({entry.dtype for entry in header.values()}),
        "parameters": sum(math.prod(entry.shape) for entry in header.values()),
        "base": one_line(base) if isinstance(base, str) else None,
        "task": one_line(task) if isinstance(task, str) else None,
        "notes": [note for note, holds in notes.items() if holds]
        + notes_of(folder, {m: min(numbers[n] for n in names) for m, names in known.items()}),
        "problems": problems,
        **({"hub": of} if (of := hub.source(folder)) else {}),
    }


def notes_of(folder: Path, smaller: Mapping[str, float]) -> list[str]:
    """What else of a folder is worth knowing, one line each.

    smaller: of each module the largest magnitude in A or that in B, whichever is less.
    """
    notes = [
        f"holds {name} as well, {what}, trained beside the adapter: no merge takes it along"
        for name, what in BESIDE.items()
        if os.path.isfile(folder / name)
    ]
    if zero := sum(number == 0 for number in smaller.values()):
        told = f"lora_A or lora_B is 0 in {zero} of {len(smaller)} modules"
        notes.append(f"{told}: not trained, or a wrong file")
    return notes


# Written ------------------------------------------------------------------------------------------
CARD = "README.md"
CARD_MARK = "tipmini"  # a tag in the front matter of our own cards


def write_folder(
    path: Path,
    config: dict,
    tensors: Mapping[str, "Tensor"],
    card: str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the files, so that `path` only ever holds a whole adapter; card becomes README.md.

    An adapter that is there already is replaced; a folder that holds anything else is refused,
    but with overwrite replaced as a whole.
    Raises TipminiError when that is so, for settings or numbers that could not be read again, and
    when the disk does not take it; what was there before is then unharmed.
    """
    from safetensors.torch import save

    with naming(path / WEIGHTS):
        for name, tensor in tensors.items():
            refuse_non_finite(name, largest(tensor))
    problems = config_problems(config, heads=True)
    refuse([f"{path / CONFIG}: {problem}" for problem in problems])
    if not (overwrite and path.is_dir()):
        refuse_taken(path)
    with replacing(path) as new:
        # Copies, since safetensors refuses tensors that share memory; bytes, since its own
        # save_file makes a file that only its owner may read.
        copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        (new / WEIGHTS).write_bytes(save(copies))
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (new / CARD).write_text(card, encoding="utf-8")


def refuse_taken(path: Path) -> None:
    """Raise TipminiError unless `path` is new, empty, or holds an adapter and nothing else."""
    path = Path(os.path.realpath(path))  # a loop of links is then refused like any other file
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise TipminiError(f"{path}: cannot be written (not a folder); choose another")
        found = {file.name for file in path.iterdir()} if path.is_dir() else set()
        ours = {CONFIG, WEIGHTS} | ({CARD} if is_our_card(path / CARD) else set())
    except OSError as error:
        raise TipminiError(f"{path}: cannot be written ({one_line(error)})") from None
    if foreign := sorted(found - ours):
        raise TipminiError(f"{path}: also holds {', '.join(foreign)}; choose another folder")


def is_our_card(file: Path) -> bool:
    """Whether the front matter has our tag: a card that someone wrote by hand is never replaced."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        fence, *lines = stream.read(1 << 16).splitlines() or [b""]
    matter = lines[: lines.index(b"---")] if b"---" in lines else []
    return fence == b"---" and f"- {CARD_MARK}".encode() in matter
