r"""PEFT's settings of an adapter: which of them can be merged, and what they mean for a module."""

import math
import re
from collections.abc import Callable

import regex  # PEFT's patterns are anyone's regular expressions, and re has no time limit

from tipmini.errors import TipminiError
from tipmini.strict import one_line, shown

FLOAT32_MAX = 3.4028234663852886e38
MATCH_SECONDS = 2.0

# Settings with which an adapter is more than s B A on a linear module, and why they can't stay.
EXTRAS = {
    "alora_invocation_tokens": "aLoRA acts from some token on, which no merged factor can",
    "arrow_config": "Arrow routes between adapters",
    "bias": "trained biases of the base model would be lost",
    "ensure_weight_tying": "it adapts weights that are tied to the named ones as well",
    "kasa_config": "KaSA changes the base model and scales each rank",
    "layer_replication": "it builds another base model",
    "lora_bias": "the bias of lora_B would be lost",
    "megatron_config": "it holds one shard of the factors",
    "modules_to_save": "whole trained modules would be lost",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "factors of bare parameters have another layout",
    "trainable_token_indices": "trained token embeddings would be lost",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "use_dora": "DoRA's magnitudes depend on the base model's weights",
    "use_qalora": "QA-LoRA pools its input",
}
# Initialisations that move part of the base model's weights into the adapter.
BASE_CHANGING = ("corda", "loftq", "lora_ga", "olora", "pissa")
HARMLESS = ("gaussian", "eva", "orthogonal", "mica")
TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# Settings of PEFT 0.21 that only matter while training or loading.
INERT = {
    *("auto_mapping", "corda_config", "eva_config", "inference_mode", "layers_pattern"),
    *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "velora_config"),
}
UNSET = (None, False, "none", [], {})


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX  # NaN compares false


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 4096


def _is_list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_pattern(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        value is None
        or (isinstance(value, dict) and all(_is_line(k) and check(v) for k, v in value.items()))
    )


_names = _is_list_of(_is_line)


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


# Setting -> (what it may be, in words).
KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "r": (_is_rank, "a whole number of at least 1"),
    "lora_alpha": (_is_number, "a number that float32 holds"),
    "rank_pattern": (_is_pattern(_is_rank), "names with whole numbers of at least 1"),
    "alpha_pattern": (_is_pattern(_is_number), "names with numbers that float32 holds"),
    "use_rslora": (lambda v: v is None or isinstance(v, bool), "true or false"),
    "fan_in_fan_out": (lambda v: v is None or isinstance(v, bool), "true or false"),
    "base_model_name_or_path": (lambda v: v is None or _is_line(v), "one line of text"),
    "task_type": (lambda v: v is None or v in TASKS, f"one of {', '.join(TASKS)}"),
    "target_modules": (
        lambda v: v is None or _is_line(v) or _names(v),
        "a name or a list of names",
    ),
    "exclude_modules": (lambda v: v is None or _is_line(v) or _names(v), "names or nothing"),
    "layers_to_transform": (
        lambda v: v is None or _is_index(v) or _is_list_of(_is_index)(v),
        "numbers of layers",
    ),
    "init_lora_weights": (
        lambda v: v is None or isinstance(v, bool | str),
        "true, false or a name",
    ),
}
SETTINGS = INERT | EXTRAS.keys() | KINDS.keys()


def config_problems(config: object) -> list[str]:
    """Why the settings are not those of plain LoRA, one line each; [] for plain LoRA."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return ['not a LoRA adapter; "peft_type" must be "LORA"']
    wrong = [
        f"{name} must be {right}, got {shown(config.get(name))}"
        for name, (check, right) in KINDS.items()
        if not check(config.get(name))
    ]
    return wrong + _extras(config) + _unknown(config) + _base_changing(config)


def _extras(config: dict) -> list[str]:
    return [
        f"{name} is {shown(config[name])}; {why}; only plain LoRA can be merged"
        for name, why in EXTRAS.items()
        if config.get(name) not in UNSET
    ]


def _unknown(config: dict) -> list[str]:
    """A switch or a table of a newer PEFT may change what the factors mean; other values don't."""
    return [
        f"{shown(name)} is no setting of PEFT 0.21 and may change what the adapter means; "
        "remove it if it does not"
        for name in unknown_settings(config)
        if config[name] is True or (isinstance(config[name], dict) and config[name])
    ]


def unknown_settings(config: dict) -> list[str]:
    """The names that PEFT 0.21 does not know and ignores."""
    return sorted(config.keys() - SETTINGS)


def _base_changing(config: dict) -> list[str]:
    init = config.get("init_lora_weights")
    if not isinstance(init, str) or init.lower() in HARMLESS:
        return []
    if init.lower().startswith(BASE_CHANGING):
        what = "changes the base model"
    else:
        what = "is unknown to PEFT 0.21 and may change the base model"
    return [
        f"init_lora_weights {shown(init)} {what}; save the adapter with PEFT's "
        "path_initial_model_for_weight_conversion"
    ]


# What they mean for a module ----------------------------------------------------------------


def scaling_of(config: dict, module: str, rank: int) -> float:
    r"""The module's scaling: alpha / r, or $\alpha / \sqrt r$ with rsLoRA.

    Raises TipminiError where the settings and the tensor's own rank disagree.
    """
    r = _setting(config, "r", "rank_pattern", module)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module)
    if r != rank:
        raise TipminiError(f"rank {r} for {module}, whose tensors have rank {rank}")
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _setting(config: dict, name: str, pattern: str, module: str) -> float:
    """As PEFT's get_pattern_key: the first pattern that ends the module's name, or the default."""
    patterns = config.get(pattern) or {}
    first = next((key for key in patterns if _ends(pattern, key, module)), module)
    return patterns.get(first, config[name])


def _ends(pattern: str, key: str, module: str) -> bool:
    whole = rf"(.*\.)?({key})$"
    try:
        re.compile(whole)  # as PEFT does; regex takes more
        return bool(regex.match(whole, module, timeout=MATCH_SECONDS))
    except TimeoutError:
        why = "takes too long to match"
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        why = f"is no regular expression ({one_line(error)})"
    raise TipminiError(f"{pattern}: {shown(key)} {why}; name the module in full")


def is_targeted(config: dict, module: str) -> bool:
    """Whether PEFT would give the module an adapter, and so read its tensors.

    False only where that is sure: a regular expression in place of a list, and layers_pattern,
    count as true.
    """
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if isinstance(config.get("exclude_modules"), list) and _among(
        config["exclude_modules"], module
    ):
        return False
    if not isinstance(targets, list) or module in targets:
        return True
    if layers in (None, []) or config.get("layers_pattern"):
        return _among(targets, module)
    index = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    wanted = layers if isinstance(layers, list) else [layers]
    return _among(targets, module) and index is not None and int(index[1]) in wanted


def _among(names: list[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
