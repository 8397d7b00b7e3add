"""TIP: task importance-based pruning for merging LoRA adapters.

>>> import tipmini as tm
>>> adapters = {name: tm.load_adapter(name) for name in ("boolq", "piqa")}
>>> tm.merge(adapters, "linear").save("merged")
"""

from tipmini.adapter import LoraAdapter, LoraFactors, load_adapter
from tipmini.base_folder import open_base
from tipmini.calibration import calibrate, calibrate_adapter
from tipmini.dare import dare
from tipmini.errors import TipminiError
from tipmini.inspection import inspect_folder
from tipmini.loraprune import lora_gradient, lora_guided_importance, taylor_importance
from tipmini.merge import METHODS, PRESETS, merge, merge_update, method_options
from tipmini.sparsity import (
    layer_importance,
    layer_sparsity,
    normalize_importance,
    sparsity_shift,
)
from tipmini.tip import tip_importance, tip_layers, tip_scores, tip_sparsities
from tipmini.tip_pruning import tip_prune
from tipmini.wanda import prune_rows, row_mask, wanda_score
from tipmini.weights import save_merged

__all__ = [
    "METHODS",
    "PRESETS",
    "LoraAdapter",
    "LoraFactors",
    "TipminiError",
    "calibrate",
    "calibrate_adapter",
    "dare",
    "inspect_folder",
    "layer_importance",
    "layer_sparsity",
    "load_adapter",
    "lora_gradient",
    "lora_guided_importance",
    "merge",
    "merge_update",
    "method_options",
    "normalize_importance",
    "open_base",
    "prune_rows",
    "row_mask",
    "save_merged",
    "sparsity_shift",
    "taylor_importance",
    "tip_importance",
    "tip_layers",
    "tip_prune",
    "tip_scores",
    "tip_sparsities",
    "wanda_score",
]
