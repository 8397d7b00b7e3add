"""TIP: task importance-based pruning for merging LoRA adapters.

>>> import tipmini as tm
>>> adapters = {name: tm.load_adapter(name) for name in ("boolq", "piqa")}
>>> tm.merge(adapters, "linear").save("merged")

A name's module is imported once the name is asked for: importing torch takes seconds.
"""

from importlib import import_module

_NAMES = {
    "models.adapter": ["LoraAdapter", "load_adapter"],
    "models.base_folder": ["open_base", "save_merged"],
    "models.calibration": ["calibrate", "calibrate_adapter"],
    "models.factors": ["LoraFactors"],
    "papers.dare": ["dare"],
    "errors": ["TipminiError"],
    "models.peft_folder": ["inspect_folder"],
    "papers.loraprune": ["lora_gradient", "lora_guided_importance", "taylor_importance"],
    "methods.blockwise": ["merge_blockwise"],
    "methods.merge": ["merge", "merge_update"],
    "methods.table": ["METHODS", "PRESETS", "method_options"],
    "papers.tip": [
        *["layer_importance", "layer_sparsity", "normalize_importance", "sparsity_shift"],
        "wanda_score",
    ],
    "methods.tip": ["tip_importance", "tip_layers", "tip_prune", "tip_scores", "tip_sparsities"],
    "masks": ["prune_rows", "row_mask"],
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
