"""What an adapter folder holds and what stands in the way of merging it, without refusing any."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from tipmini.adapter_header import AdapterHeader, read_adapter_header, refuse_overflow
from tipmini.errors import TipminiError
from tipmini.peft_config import config_problems, unknown_settings
from tipmini.peft_folder import CONFIG, WEIGHTS, read_settings, weights_file
from tipmini.peft_tensors import Header, factor_names, modules_of, tensor_problems
from tipmini.strict import naming, one_line, shown
from tipmini.tensor_file import refuse_non_finite
from tipmini.tensor_header import read_header

QUANTISED = re.compile(r"4.?bit|8.?bit|bnb|gptq|awq|gguf|int[48]|fp8|hqq|aqlm|nf4", re.IGNORECASE)


def inspect_folder(path: str | PathLike) -> dict[str, object]:
    """The facts of a PEFT folder; never raises for an adapter that `load_adapter` refuses.

    All numbers are read, for NaN and overflow, but without torch.

    base, task: as the settings name them; modules: how many; targets: the last parts of their
    names; ranks, scaling, dtypes: the distinct ones; parameters: of the factors; problems:
    why it can't be merged, one line each, [] when it can; notes: what is read as meant, but worth
    knowing. A refused folder has what could be read of it and no scaling.
    """
    folder, problems = Path(path), []
    config = _config(folder, problems)
    header = _header(folder, problems)
    adapter = None
    if not problems:
        with _collecting(folder, problems):
            read = read_adapter_header(folder)
            _refuse_numbers(folder, read)
            adapter = read
    return {
        **_facts(header, adapter),
        "base": _text(config.get("base_model_name_or_path")),
        "task": _text(config.get("task_type")),
        "notes": _notes(config, adapter),
        "problems": list(dict.fromkeys(problems)),
    }


@contextmanager
def _collecting(folder: Path, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except TipminiError as error:
        problems.append(one_line(error))
    except OSError as error:
        problems.append(f"{folder}: cannot be read ({one_line(error)})")


def _config(folder: Path, problems: list[str]) -> dict:
    found: object = {}
    with _collecting(folder, problems):
        found = read_settings(folder)
        problems += [f"{folder / CONFIG}: {problem}" for problem in config_problems(found)]
    return found if isinstance(found, dict) else {}


def _header(folder: Path, problems: list[str]) -> Header:
    found: Header = {}
    with _collecting(folder, problems):
        found = read_header(weights_file(folder))
        problems += [f"{folder / WEIGHTS}: {problem}" for problem in tensor_problems(found)]
    return found


def _refuse_numbers(folder: Path, adapter: AdapterHeader) -> None:
    """Raise TipminiError for the first numbers that `load_adapter` would refuse."""
    found = {name: adapter.file.largest(name) for name in adapter.file}
    with naming(folder / WEIGHTS):
        for name, largest in found.items():
            refuse_non_finite(name, largest)
    for module, pair in adapter.factors.items():
        a, b = (found[name] for name in factor_names(module))
        refuse_overflow(folder, module, pair.scaling, pair.rank, a, b)


def _facts(header: Header, adapter: AdapterHeader | None) -> dict[str, object]:
    modules = modules_of(header)
    firsts = [header[name].shape for m in modules if (name := factor_names(m)[0]) in header]
    sizes = [math.prod(entry.shape) for entry in header.values()]
    return {
        "modules": len(modules),
        "targets": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "ranks": sorted({shape[0] for shape in firsts if shape}),
        "scaling": sorted(_scalings(adapter)),
        "dtypes": sorted({entry.dtype for entry in header.values()}),
        "parameters": sum(sizes),
    }


def _text(value: object) -> str | None:
    """A setting of any type as text that is safe to print."""
    return one_line(value) if isinstance(value, str) else None


def _scalings(adapter: AdapterHeader | None) -> set[float]:
    return {pair.scaling for pair in adapter.factors.values()} if adapter else set()


def _notes(config: dict, adapter: AdapterHeader | None) -> list[str]:
    """What is read as meant, but worth knowing."""
    base = config.get("base_model_name_or_path")
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
        "scaling 0: the adapter changes nothing": 0.0 in _scalings(adapter),
        f"settings that PEFT 0.21 does not know, ignored: {unknown}": unknown,
    }
    return [note for note, holds in notes.items() if holds]
