"""TIP: task importance-based pruning for merging LoRA adapters.

>>> import tipmini as tm
>>> adapters = {name: tm.load_adapter(name) for name in ("boolq", "piqa")}
>>> tm.merge(adapters, "linear").save("merged")

A name's module is imported once the name is asked for: importing torch takes seconds.
"""

import sys
from importlib import import_module
from types import ModuleType

_NAMES = {
    "adapter": ["LoraAdapter", "LoraFactors", "load_adapter"],
    "base_folder": ["open_base"],
    "calibration": ["calibrate", "calibrate_adapter"],
    "dare": ["dare"],
    "errors": ["TipminiError"],
    "inspection": ["inspect_folder"],
    "loraprune": ["lora_gradient", "lora_guided_importance", "taylor_importance"],
    "merge": ["merge", "merge_update"],
    "methods": ["METHODS", "PRESETS", "method_options"],
    "sparsity": ["layer_importance", "layer_sparsity", "normalize_importance", "sparsity_shift"],
    "tip": ["tip_importance", "tip_layers", "tip_scores", "tip_sparsities"],
    "tip_pruning": ["tip_prune"],
    "wanda": ["prune_rows", "row_mask", "wanda_score"],
    "weights": ["save_merged"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Where a module is called like its function (merge, dare), the name is the function's."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
