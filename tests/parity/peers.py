"""The libraries that merges are compared with, as `scripts/peers` installs them.

They stand in a folder of their own without their dependencies, since those conflict with this
project's. It comes last on the path: whatever both have is taken from the environment.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from types import ModuleType

from tipmini.errors import TipminiError
from tipmini_lab import paths

FOLDER = paths.BUILD / "peers"
REQUIREMENTS = paths.REPOSITORY / "requirements-peers.txt"
NAMES = ("peft", "mergekit", "fusion-bench", "loralib")

# fusion-bench's packages import lightning, hydra and more as soon as they are touched. The files
# compared with need none of it: their packages are left bare but for the names they import.
BARE: dict[str, tuple[str, ...]] = {
    "fusion_bench": ("BaseAlgorithm", "BaseModelPool", "auto_register_config"),
    "fusion_bench.utils": ("timeit_context",),
    "fusion_bench.mixins": (
        *("LightningFabricMixin", "SimpleProfilerMixin"),
        "auto_register_config",
    ),
    "fusion_bench.modelpool": ("BaseModelPool",),
    "fusion_bench.method": ("BaseAlgorithm",),
    "fusion_bench.method.dare": (),
    "fusion_bench.method.isotropic_merging": (),
    "fusion_bench.method.knots": (),
    "fusion_bench.method.regmean": (),
    "fusion_bench.method.regmean_plusplus": (),
    "fusion_bench.method.task_singular_vector": (),
    "fusion_bench.method.task_singular_vector.utils": (),
    "fusion_bench.method.ties_merging": (),
    "fusion_bench.method.wudi": (),
}


def load(place: str) -> Callable:
    """The function at "package.module:name"; raises TipminiError where the peers are missing."""
    _make_importable()
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def versions() -> dict[str, str]:
    """What is compared with, as installed."""
    _make_importable()
    return {name: version(name) for name in NAMES}


def _make_importable() -> None:
    stamp = FOLDER / REQUIREMENTS.name
    if not stamp.is_file() or stamp.read_bytes() != REQUIREMENTS.read_bytes():
        raise TipminiError(f"{FOLDER} does not hold {REQUIREMENTS.name}; run scripts/peers")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
        for package, names in BARE.items():
            sys.modules[package] = _bare(package, names)


def _bare(package: str, names: tuple[str, ...]) -> ModuleType:
    """A package whose modules can be imported though its own `__init__` never runs."""
    module = ModuleType(package)
    module.__path__ = [str(FOLDER / package.replace(".", "/"))]
    for name in names:
        # Base classes without content; a decorator that gives the class back, and a stopwatch.
        stand_in = (lambda cls: cls) if name.islower() else type(name, (), {})
        setattr(module, name, nullcontext if name.endswith("_context") else stand_in)
    return module
